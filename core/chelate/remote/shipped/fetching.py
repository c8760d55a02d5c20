"""Sending outcomes and logs."""

import json
import os
from typing import Any

from . import files, packs

__all__ = ["fetch", "let_go", "logs", "value"]

CHUNK = 256 * 1024
STAY = 1024 * 1024  # results of so many bytes may stay here
HEAD, TAIL = 64 * 1024, 1024 * 1024  # of a very long output the middle is left out


def fetch(root: str, request: "dict[str, Any]", send: Any) -> None:
    """The records, outputs and values of jobs that are done, or whose end is known elsewhere."""
    ended = set(request["ended"])
    for name in request["jobs"]:
        job, only = packs.carrier(root, name)
        folder = files.job_folder(root, job)
        spec = files.fresh_spec(folder)
        claim = files.claim_of(folder)
        if spec is None or claim is None or not (name in ended or files.is_over(folder)):
            continue
        have = request["have"].get(name) or {}
        for index in packs.own(root, job, spec) if only is None else (only,):
            number = index if only is None else 0
            head = {
                "id": name,
                "index": number,
                "job": job,
                "offset": int(have.get(str(number), 0)),
            }
            task = spec["tasks"][index]
            stays = task["id"] if task.get("stay", False) else ""
            _task(root, folder, claim["run"], index, head, stays, send)


def _task(
    root: str, folder: str, run: int, index: int, head: "dict[str, Any]", stays: str, send: Any
) -> None:
    try:
        with open(files.record_path(folder, run, index), "rb") as file:
            record = file.read().decode()
    except FileNotFoundError:
        record = ""
    place = os.path.join(folder, "run-{}".format(run))
    outputs = [_output(os.path.join(place, "{}.{}".format(s, index))) for s in ("stdout", "stderr")]
    head.update(record=record, size=-1)
    head["stdout"], head["stderr"] = map(len, outputs)
    document = json.loads(record.partition("\n")[2]) if record else {}
    digest = document.get("digest")
    found = _open(root, digest) if digest is not None else None
    if digest is None or found is None:
        send(head, outputs)
        return
    with found:
        size = found.seek(0, os.SEEK_END)
        if stays and size >= STAY and not document.get("graph"):
            open(files.pin_path(root, digest, stays), "ab").close()
            head["held"] = size
            send(head, outputs)
            return
        _rest(head, outputs, found, size, head["offset"], send)


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
    job, only = packs.carrier(root, request["job"])
    folder = files.job_folder(root, job)
    claim = files.claim_of(folder) or {"run": 0}
    place = os.path.join(folder, "run-{}".format(claim["run"]))
    stream = request["stream"]
    if stream == "script":
        paths = [os.path.join(place, "script.out"), os.path.join(place, "script.err")]
    elif stream in ("supervisor", "scheduler"):
        paths = [os.path.join(folder, stream + ".log")]
    elif stream in ("stdout", "stderr"):
        spec = files.fresh_spec(folder) or {"tasks": []}
        indices = range(len(spec["tasks"])) if only is None else (only,)
        paths = [os.path.join(place, "{}.{}".format(stream, index)) for index in indices]
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
