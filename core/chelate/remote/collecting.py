"""Fetching outcomes: one stream, bounded memory, taken up again where it was cut."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chelate.api import JobHandle, Outcome, Reason, digest_stream, is_digest
from chelate.remote.sights import job_id, key_on_host
from chelate.remote.wire import Reader

if TYPE_CHECKING:
    from chelate.remote.host import JobHost

__all__ = ["collect"]

LARGE = 64 * 1024


async def collect(
    host: JobHost, handles: Sequence[JobHandle], spool: Path, ended: Mapping[str, str]
) -> AsyncIterator[Outcome]:
    """See :meth:`JobHost.collect`."""
    report = await host.probe()
    by_id = {job_id(key_on_host(handle)): handle for handle in handles}
    have = {
        name: {
            str(index): path.stat().st_size
            for index in range(len(handle.tasks) or 1)
            if (path := _part(spool, name, index)).exists()
        }
        for name, handle in by_id.items()
    }
    over = [name for name, handle in by_id.items() if key_on_host(handle) in ended]
    request = json.dumps({"jobs": list(by_id), "have": have, "ended": over}).encode()
    stdin = b"%d\n%b" % (len(request), request)
    pieces = host.transport.stream([*report.agent, "fetch"], stdin)
    try:
        reader = Reader(pieces)
        while True:
            frame = host.checked(await reader.frame())
            if "end" in frame:
                await reader.drain()
                return
            handle = by_id[frame["id"]]
            yield await _outcome(host, handle, frame, reader, spool, ended)
    finally:
        close = getattr(pieces, "aclose", None)  # of a generator, which most are
        if close is not None:
            await close()


async def _outcome(
    host: JobHost,
    handle: JobHandle,
    frame: Mapping[str, Any],
    reader: Reader,
    spool: Path,
    gone: Mapping[str, str],
) -> Outcome:
    name, index = str(frame["id"]), int(frame["index"])
    key = (handle.tasks or (handle.key,))[index]
    stdout = await reader.exactly(frame["stdout"])
    stderr = await reader.exactly(frame["stderr"])
    part = _part(spool, name, index)
    size = int(frame["size"])  # of what follows
    payload: bytes | Path | None = None
    if size >= 0:
        offset = int(frame["offset"])
        if offset + size < LARGE:
            payload = await reader.exactly(size)
        else:
            with part.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.truncate()
                async for piece in reader.body(size):
                    file.write(piece)
            payload = part
    refusal = None
    record: dict[str, Any] = {}
    if frame["record"]:
        record, refusal = _verified(host, frame["job"], key, frame["record"])
    else:
        usual = "The supervisor of the job was killed before this task ended."
        text = gone.get(key_on_host(handle), usual)
        return Outcome(
            key, False, reason=Reason.NODE_FAIL, error=text, stdout=stdout, stderr=stderr
        )
    if refusal is None and record["ok"] and "held" not in frame:
        refusal = _compared(record, payload)
    if refusal is not None or not record["ok"]:
        part.unlink(missing_ok=True)
    ended = Outcome(key, False, stdout=stdout, stderr=stderr)
    if refusal is not None:
        ended.reason, ended.error = refusal
        return ended
    ended.ok = record["ok"]
    ended.started_at, ended.ended_at = record["started_at"], record["ended_at"]
    ended.usage = record["usage"]
    if ended.ok:
        host.present.add(record["digest"])
        ended.held = frame.get("held")
        ended.payload, ended.digest = payload, record["digest"]
        ended.fingerprint, ended.parts = _fingerprint(record.get("fingerprint"))
        ended.graph = bool(record.get("graph"))
    else:
        ended.reason, ended.error = Reason(record["reason"]), record["error"]
        if record.get("exception"):
            ended.exception = base64.b64decode(record["exception"])
    return ended


def _verified(
    host: JobHost, name: str, key: str, text: str
) -> tuple[dict[str, Any], tuple[Reason, str] | None]:
    """The record if the job's own supervisor made it for this very task."""
    mac, _, body = text.partition("\n")
    wanted = hmac.new(host.key_of(name), body.encode(), hashlib.sha256).hexdigest()
    if hmac.compare_digest(mac.encode(), wanted.encode()):
        record = json.loads(body)
        if (record["job"], record["task"]) == (name, key):
            return record, None
    return {}, (
        Reason.RESULT_CORRUPT,
        f"The record of the task's end on {host.transport.host} does not carry the signature of "
        "its job, so somebody else may have written it; it is refused. Run the task again.",
    )


def _compared(record: Mapping[str, Any], payload: bytes | Path | None) -> tuple[Reason, str] | None:
    if payload is None:
        text = "The task succeeded, but its value is no longer on the host. Run the task again."
        return Reason.RESULT_MISSING, text
    if isinstance(payload, bytes):
        digest = hashlib.blake2b(payload, digest_size=32).hexdigest()
    else:
        with payload.open("rb") as file:
            digest = digest_stream(file)
    if is_digest(record["digest"]) and digest == record["digest"]:
        return None
    text = "The value that came is not the one that the task returned; it is refused."
    return Reason.RESULT_CORRUPT, text


def _fingerprint(text: str | None) -> tuple[str | None, dict[str, str] | None]:
    """A value's fingerprint and those of its parts, which the worker joins by a space."""
    if not text:
        return None, None
    whole, _, parts = text.partition(" ")
    return whole or None, json.loads(parts) if parts else None


def _part(spool: Path, name: str, index: int) -> Path:
    return spool / f"{name}-{index}.part"
