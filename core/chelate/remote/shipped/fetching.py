"""Sending outcomes and logs."""

import json
import os
from typing import Any

from . import files

__all__ = ["fetch", "let_go", "logs", "value"]

CHUNK = 256 * 1024
STAY = 1024 * 1024  # results of so many bytes may stay here
HEAD, TAIL = 64 * 1024, 1024 * 1024  # of a very long output the middle is left out


def fetch(root: str, request: "dict[str, Any]", send: Any) -> None:
    """The records, outputs and values of jobs that are done."""
    for name in request["jobs"]:
        folder = files.job_folder(root, name)
        spec = files.fresh_spec(folder)
        claim = files.claim_of(folder)
        if spec is None or claim is None or not files.is_over(folder):
            continue
        run = claim["run"]
        have = request["have"].get(name) or {}
        for index in range(len(spec["tasks"])):
            stay = spec["tasks"][index].get("stay", False)
            _task(root, folder, name, run, index, int(have.get(str(index), 0)), stay, send)


def _task(
    root: str, folder: str, name: str, run: int, index: int, offset: int, stay: bool, send: Any
) -> None:
    try:
        with open(files.record_path(folder, run, index), "rb") as file:
            record = file.read().decode()
    except FileNotFoundError:
        record = ""
    place = os.path.join(folder, "run-{}".format(run))
    outputs = [_output(os.path.join(place, "{}.{}".format(s, index))) for s in ("stdout", "stderr")]
    head = {"id": name, "index": index, "record": record, "size": -1, "offset": offset}
    head["stdout"], head["stderr"] = map(len, outputs)
    document = json.loads(record.partition("\n")[2]) if record else {}
    digest = document.get("digest")
    found = _open(root, digest) if digest is not None else None
    if digest is None or found is None:
        send(head, outputs)
        return
    with found:
        size = found.seek(0, os.SEEK_END)
        if stay and size >= STAY and not document.get("graph"):
            open(files.pin_path(root, digest, name), "ab").close()
            head["held"] = size
            send(head, outputs)
            return
        _rest(head, outputs, found, size, offset, send)


def _open(root: str, digest: str) -> Any:
    path = files.blob_path(root, digest)
    files.touch(path)
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None


def _rest(
    head: "dict[str, Any]", outputs: "list[bytes]", found: Any, size: int, offset: int, send: Any
) -> None:
    if offset > size:
        offset = 0
    head["offset"] = offset
    head["size"] = size - offset
    found.seek(offset)
    send(head, _pieces(outputs, found, size - offset))


def value(root: str, request: "dict[str, Any]", send: Any) -> None:
    """A value from an offset on; the size is -1 when it is not here."""
    found = _open(root, request["digest"])
    if found is None:
        send({"size": -1}, ())
        return
    with found:
        _rest({}, [], found, found.seek(0, os.SEEK_END), request["offset"], send)


def let_go(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """A result that stayed here has been fetched."""
    try:
        os.unlink(files.pin_path(root, request["digest"], request["job"]))
    except FileNotFoundError:
        pass
    return {}


def _pieces(outputs: "list[bytes]", value: Any, size: int) -> Any:
    for data in outputs:
        yield data
    while size:
        piece = value.read(min(CHUNK, size))
        if not piece:
            raise OSError("a value became shorter while it was read")
        size -= len(piece)
        yield piece


def _output(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size <= HEAD + TAIL:
                return file.read(HEAD + TAIL)
            head = file.read(HEAD)
            file.seek(-TAIL, os.SEEK_END)
            note = "\n[chelate: {} bytes of output are left out here]\n".format(size - HEAD - TAIL)
            return head + note.encode() + file.read(TAIL)
    except FileNotFoundError:
        return b""


def logs(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """Part of an output, counted over all tasks in their order."""
    folder = files.job_folder(root, request["job"])
    claim = files.claim_of(folder) or {"run": 0}
    place = os.path.join(folder, "run-{}".format(claim["run"]))
    stream = request["stream"]
    if stream == "script":
        paths = [os.path.join(place, "script.out"), os.path.join(place, "script.err")]
    elif stream in ("supervisor", "scheduler"):
        paths = [os.path.join(folder, stream + ".log")]
    elif stream in ("stdout", "stderr"):
        spec = files.fresh_spec(folder) or {"tasks": []}
        count = len(spec["tasks"])
        paths = [os.path.join(place, "{}.{}".format(stream, index)) for index in range(count)]
    else:
        raise files.Refusal("SPEC", "there is no output called {!r}.".format(stream))
    sizes = [os.path.getsize(path) if os.path.exists(path) else 0 for path in paths]
    offset = request["offset"] if request["offset"] >= 0 else sum(sizes) + request["offset"]
    offset, limit = max(0, offset), min(request["limit"], 8 << 20)
    found = []
    for path, size in zip(paths, sizes):
        if limit > 0 and offset < size:
            with open(path, "rb") as file:
                file.seek(offset)
                found.append(file.read(min(limit, size - offset)))
            limit -= len(found[-1])
        offset = max(0, offset - size)
    return {"data": b"".join(found).hex()}
