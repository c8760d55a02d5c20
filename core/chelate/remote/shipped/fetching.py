"""Sending outcomes and logs."""

import json
import os
from typing import Any

from . import files

__all__ = ["fetch", "logs"]

CHUNK = 256 * 1024
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
            _task(root, folder, name, run, index, int(have.get(str(index), 0)), send)


def _task(root: str, folder: str, name: str, run: int, index: int, offset: int, send: Any) -> None:
    try:
        with open(files.record_path(folder, run, index), "rb") as file:
            record = file.read().decode()
    except FileNotFoundError:
        record = ""
    place = os.path.join(folder, "run-{}".format(run))
    outputs = [_output(os.path.join(place, "{}.{}".format(s, index))) for s in ("stdout", "stderr")]
    head = {"id": name, "index": index, "record": record, "size": -1, "offset": offset}
    head["stdout"], head["stderr"] = map(len, outputs)
    digest = json.loads(record.partition("\n")[2]).get("digest") if record else None
    value = None
    if digest is not None:
        path = files.blob_path(root, digest)
        files.touch(path)
        try:
            value = open(path, "rb")
        except FileNotFoundError:
            value = None
    if value is None:
        send(head, outputs)
        return
    with value:
        size = value.seek(0, os.SEEK_END)
        if offset > size:
            offset = head["offset"] = 0
        head["size"] = size - offset
        value.seek(offset)
        send(head, _pieces(outputs, value, size - offset))


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
