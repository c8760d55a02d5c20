"""Bringing jobs to a host: their specs, and the values that it lacks, in one stream."""

from __future__ import annotations

import hashlib
import hmac
import sys
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from chelate.api import (
    BlobMissingError,
    BlobReader,
    Deferred,
    Job,
    Reason,
    Rejected,
    StoreError,
    TransientError,
    Unknown,
    digest_bytes,
)
from chelate.remote.sights import HostReport, Prepared, job_id, job_key, store_id
from chelate.remote.transport import UnreachableError

if TYPE_CHECKING:
    from chelate.remote.host import JobHost

__all__ = ["derived", "prepare"]

_CHUNK = 256 * 1024
_KNOWN = 100_000
_SMALL = 32 * 1024
Answer = Prepared | Rejected | Deferred | Unknown


def derived(secret: bytes, identifier: str) -> bytes:
    """The key of one job, from the secret of the host's root folder (HMAC-SHA256, RFC 2104)."""
    return hmac.new(secret, identifier.encode(), hashlib.sha256).digest()


async def prepare(
    host: JobHost,
    jobs: Sequence[Job],
    start: bool,
    variables: Mapping[str, Mapping[str, str]],
) -> list[Answer]:
    """See :meth:`JobHost.prepare`."""
    report = await host.probe()
    script = host.environment.script()
    answers: dict[str, Answer] = {}
    wanted: list[Job] = []
    held: set[str] = set()
    needed: dict[str, BlobReader | bytes] = {digest_bytes(script): script}
    for job in jobs:
        refused = _mismatch(host, report, job) or _unreadable(job)
        if refused is not None:
            answers[job.key] = refused
            continue
        wanted.append(job)
        for task in job.tasks:
            needed.update(dict.fromkeys(task.inputs, job.blobs))
            held |= task.held
        if job.code is not None:
            needed[job.code] = job.blobs
    if wanted:
        sent = False
        try:
            for _ in range(2):  # the second time when values were removed that had been there
                missing = await _missing(host, needed, held)
                # What has come home since the task was made can be sent after all.
                gone = {d for d in held.intersection(missing) if _stays_away(d, needed[d])}
                if gone:
                    missing = [digest for digest in missing if digest not in gone]
                    answers.update(_lost(host, wanted, gone))
                    wanted = [job for job in wanted if job.key not in answers]
                    if not wanted:
                        break
                specs = [
                    _spec(host, job, digest_bytes(script), variables.get(job.key) or {})
                    for job in wanted
                ]
                sent = True
                request = {
                    "start": start,
                    "blobs": [[digest, _size(digest, needed[digest])] for digest in missing],
                    "jobs": specs,
                }
                answer = await host.call("put", request, _pieces(missing, needed), timeout=None)
                lacking = answer.get("lacking")
                if not lacking:
                    break
                host.present.difference_update(lacking)
            else:
                raise TransientError(
                    f"Values that were sent to {host.transport.host} are not there; "
                    "is something removing files below its root folder?"
                )
        except UnreachableError:
            raise
        except TransientError as error:
            # Without a start nothing has begun, and all of it may be repeated.
            lost = Unknown if start and sent else Deferred
            answers.update({job.key: lost(job.key, str(error)) for job in wanted})
        except StoreError as error:
            # One of many values went away between the look and the reading.
            answers.update({job.key: Deferred(job.key, str(error)) for job in wanted})
        else:
            if len(host.present) > _KNOWN:
                host.present.clear()
            host.present.update(needed)
            for job in wanted:
                key = job_key([task.key for task in job.tasks])
                name = job_id(key)
                folder = f"{report.root}/jobs/{name}"
                command = (*report.agent, "supervise", folder)
                answers[job.key] = Prepared(key, name, folder, command)
    return [answers[job.key] for job in jobs]


async def _missing(
    host: JobHost, needed: Mapping[str, BlobReader | bytes], held: Set[str]
) -> list[str]:
    unknown = [digest for digest in needed if digest not in host.present]
    if held.isdisjoint(unknown) and sum(_size(d, needed[d]) for d in unknown) <= _SMALL:
        return unknown  # sending them twice takes less time than asking
    missing: list[str] = []
    for at in range(0, len(unknown), 10_000):
        answer = await host.call("missing", {"digests": unknown[at : at + 10_000]})
        missing += answer["missing"]
    return missing


def _stays_away(digest: str, source: BlobReader | bytes) -> bool:
    return not isinstance(source, bytes) and source.path(digest) is None


def _lost(host: JobHost, jobs: Sequence[Job], gone: set[str]) -> dict[str, Rejected]:
    """Refusals of jobs that take results which stayed on the host and are no longer there."""
    refused: dict[str, Rejected] = {}
    for job in jobs:
        for task in job.tasks:
            for node, digest in task.call["values"].items():
                if digest in gone:
                    text = (
                        f"The result of node {node}, which task {task.name!r} takes, stayed on "
                        f"{host.transport.host} and is no longer there (value {digest}). Run that "
                        "node again: ct.redispatch with reuse_previous_results=True runs what is "
                        "gone."
                    )
                    lost = gone.intersection(task.inputs)
                    refused[job.key] = Rejected(
                        job.key, Reason.RESULT_MISSING, text, frozenset(lost)
                    )
    return refused


def _spec(host: JobHost, job: Job, script: str, variables: Mapping[str, str]) -> dict[str, Any]:
    key = job_key([task.key for task in job.tasks])
    return {
        "v": 1,
        "id": job_id(key),
        "key": key,
        "store": store_id(job.store),
        "script": script,
        "shell": list(host.environment.shell),
        "prerun": bool(host.environment.prerun),
        "postrun": bool(host.environment.postrun),
        "code": job.code,
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "timeout": job.timeout,
        "grace": host.grace,
        "workdir": host.workdir,
        "variables": {"OMP_NUM_THREADS": str(job.resources.cpus), **variables},
        "tasks": [
            {
                "key": task.key,
                "id": job_id(task.key),
                "inputs": list(task.inputs),
                "call": task.call,
                "stay": host.holds and task.stay,
                "context": {
                    **task.context,
                    "dispatch_id": task.dispatch_id,
                    "node_id": task.node_id,
                    "attempt": task.attempt,
                    "name": task.name,
                },
            }
            for task in job.tasks
        ],
    }


def _mismatch(host: JobHost, report: HostReport, job: Job) -> Rejected | None:
    """Refuse before anything is uploaded what could not be loaded there."""
    wanted = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if report.python is None or report.python.startswith(f"{wanted}."):
        return None
    return Rejected(
        job.key,
        Reason.ENV_MISMATCH,
        f"Tasks were made with Python {wanted}, and {host.environment.describes} on "
        f"{host.transport.host} is Python {report.python} ({report.executable}). Functions travel "
        f"by value and need the same minor version; name a Python {wanted} there: "
        f"python='/path/to/python{wanted}', conda= or venv=.",
    )


def _unreadable(job: Job) -> Rejected | None:
    """Refuse a job alone when one of its values is gone."""
    for task in job.tasks:
        for digest in task.inputs:
            if digest in task.held:
                continue  # the host is asked
            try:
                job.blobs.size(digest)
            except StoreError as error:
                missing = isinstance(error, BlobMissingError)
                reason = Reason.RESULT_MISSING if missing else Reason.RESULT_CORRUPT
                return Rejected(job.key, reason, f"An input of task {task.name!r}: {error}")
    if job.code is not None:
        try:
            job.blobs.size(job.code)
        except StoreError as error:
            return Rejected(
                job.key,
                Reason.ENV_MISSING,
                f"The stored code of the workflow cannot be had: {error} "
                "Dispatch the workflow again from its source.",
            )
    return None


def _size(digest: str, source: BlobReader | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.size(digest)


async def _pieces(
    digests: Sequence[str], needed: Mapping[str, BlobReader | bytes]
) -> AsyncIterator[bytes]:
    """The bytes of the values, one behind the other, never more than a piece in memory."""
    small: list[bytes] = []
    size = 0
    for digest in digests:
        source = needed[digest]
        path = None if isinstance(source, bytes) else source.path(digest)
        if path is not None:
            if small:
                yield b"".join(small)
                small, size = [], 0
            with path.open("rb") as file:
                while piece := file.read(_CHUNK):
                    yield piece
            continue
        data = source if isinstance(source, bytes) else source.read(digest)
        small.append(data)
        size += len(data)
        if size >= _CHUNK:
            yield b"".join(small)
            small, size = [], 0
    if small:
        yield b"".join(small)
