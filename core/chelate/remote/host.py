"""One host over one transport, as its agent sees it: the near side of the job protocol."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from chelate.api import (
    ConfigError,
    Deferred,
    ExecutorError,
    Job,
    JobHandle,
    Outcome,
    Reason,
    Rejected,
    TransientError,
    Unknown,
)
from chelate.remote import collecting, holding, staging
from chelate.remote.environment import Environment
from chelate.remote.sights import HostReport, Prepared, Sight, job_id, store_id
from chelate.remote.tools import NO_AGENT, NO_ROOT, UNFIT, probe_command, tools
from chelate.remote.transport import Transport, UnreachableError
from chelate.remote.wire import frames_of

__all__ = ["HostRefusalError", "JobHost"]

CLEANUPS = ("on_success", "always", "never")
SAYS_WHY = (-1, 81, 82, 84)  # exit statuses of the job script that come with a sentence
_ERRORS = {"DISK_FULL": Reason.DISK_FULL, "QUOTA": Reason.QUOTA, "SPEC": Reason.INVALID_SPEC}


class HostRefusalError(ExecutorError):
    """The host cannot run the jobs as they are; ``reason`` says why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class JobHost:
    """Everything an executor does with one host.

    No state is needed but the connection's: any method may be called by a fresh process, for jobs
    that another one started. Keys are those of tasks, or :func:`job_key` of a pack's.

    Every method raises what :class:`Transport` raises, HostRefusalError when the host answered
    that it cannot, and ConfigError for options that the host refuses.

    Args:
        transport: the way there.
        root: folder for jobs and values on the host, absolute or below ``~/``; made with mode
            0700, and refused when others may write to it.
        environment: what tasks find around them.
        workdir: folder that tasks start in; default: a fresh one per job, removed with it.
        grace: seconds between SIGTERM and SIGKILL when a task is stopped.
        cleanup: which job directories :meth:`release` removes: of jobs that succeeded
            (``"on_success"``), ``"always"`` or ``"never"``.
        keep: seconds after which :meth:`sweep` removes what was left of jobs that are over, and
            values that nobody used.
        results: where large results go that only later tasks of the same executor take:
            ``"host"`` leaves them there until they are needed elsewhere (30 days after their last
            use :meth:`sweep` removes them), ``"store"`` brings them home at once.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        root: str = "~/.chelate",
        environment: Environment | None = None,
        workdir: str | None = None,
        grace: float = 10.0,
        cleanup: str = "on_success",
        keep: float = 7 * 86400.0,
        results: str = "store",
    ) -> None:
        if cleanup not in CLEANUPS:
            raise ConfigError(f"cleanup={cleanup!r} must be one of {', '.join(CLEANUPS)}.")
        if results not in ("host", "store"):
            raise ConfigError(f"results={results!r} must be 'host' or 'store'.")
        for name, value in (("root", root), ("workdir", workdir)):
            if value is not None and not _is_folder(value):
                raise ConfigError(f"{name}={value!r} must be an absolute path, or one below ~/.")
        self.transport = transport
        self.root = root
        self.environment = environment or Environment()
        self.workdir = workdir
        self.grace = grace
        self.cleanup = cleanup
        self.keep = keep
        self.holds = results == "host"
        self.present: set[str] = set()  # digests that the host is known to have
        self._report: HostReport | None = None
        self._secret = b""
        self._swept = 0.0

    # -- asking -------------------------------------------------------------------------------

    async def probe(self, *, fresh: bool = False) -> HostReport:
        """What the host is and has; asked once, and brings the agent there.

        Raises:
            HostRefusalError: no usable interpreter (ENV_MISSING), or the root cannot be made.
        """
        if self._report is not None and not fresh:
            return self._report
        request = {
            "root": self.root,
            "script": self.environment.script().decode(),
            "shell": self.environment.shell,
        }
        # With the agent there already, which is usual, its files are not sent again.
        for install in (False, True):
            command, stdin = probe_command(
                self.root, self.environment.candidates, request, install=install
            )
            sent = time.time()
            done = await self.transport.run(command, stdin, timeout=90.0)
            if done.exit_status != NO_AGENT:
                break
        if done.exit_status in UNFIT:
            names = ", ".join(self.environment.candidates)
            old = re.findall(r"^chelate:([0-9.]+)$", done.stdout.decode(errors="replace"), re.M)
            versions = ", ".join(dict.fromkeys(old))
            why = f"finds only Python {versions}" if old else f"finds no interpreter ({names})"
            raise HostRefusalError(
                Reason.ENV_MISSING,
                f"Host {self.transport.host} {why}. The job protocol needs Python 3.6 or later "
                "there, and tasks the version they were made with. Install one, or name it: "
                "python='/path/to/python3'.",
            )
        if done.exit_status == NO_ROOT:
            text = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            full = {"[Errno 28]": Reason.DISK_FULL, "[Errno 122]": Reason.QUOTA}
            raise HostRefusalError(
                full.get(text[:11].rpartition("]")[0] + "]", Reason.INVALID_SPEC),
                f"The folder root={self.root!r} on {self.transport.host} cannot be used: {text}.",
            )
        answer = self._answer(done.stdout, done.stderr, done.exit_status)
        del answer["end"]
        clock = answer["clock"] - (sent + time.time()) / 2
        self._secret = bytes.fromhex(answer.pop("secret"))
        env = answer.pop("env")
        # What prerun changes can only be seen when a task starts.
        sure = not self.environment.prerun
        if sure and "python" not in env:
            why = " ".join(env["stderr"].split())
            if env["status"] not in SAYS_WHY:
                status = f"exit status {env['status']}"
                why = f"what is started there is no Python interpreter ({status}). {why}"
            raise HostRefusalError(
                Reason.ENV_MISSING,
                f"The environment of tasks ({self.environment.describes}) on "
                f"{self.transport.host} cannot be used: {why}".strip(),
            )
        self._report = HostReport(
            root=answer["root"],
            agent=tuple(answer["agent"]),
            python=env.get("python") if sure else None,
            executable=env.get("executable"),
            hostname=answer["hostname"],
            boot_id=answer["boot"],
            platform=answer["platform"],
            cpus=answer["cpus"],
            memory=answer["memory"],
            free=answer["free"],
            clock=clock,
            cloudpickle=bool(env.get("cloudpickle")),
            details={**answer, "env": env},
        )
        return self._report

    def forget(self) -> None:
        """The connection is new, or the host may have changed: probe again before the next use."""
        self._report = None
        self.present.clear()

    async def call(
        self,
        verb: str,
        request: Mapping[str, Any],
        body: AsyncIterator[bytes] | None = None,
        *,
        timeout: float | None = 50.0,
    ) -> dict[str, Any]:
        """One question to the agent; its answer."""
        report = await self.probe()
        head = _head(request)
        stdin = head if body is None else _chained(head, body)
        done = await self.transport.run([*report.agent, verb], stdin, timeout=timeout)
        return self._answer(done.stdout, done.stderr, done.exit_status)

    def _answer(self, stdout: bytes, stderr: bytes, status: int) -> dict[str, Any]:
        frames = frames_of(stdout)
        if frames is None:
            self.forget()  # the agent may have been removed, or its interpreter
            text = stderr[-1000:].decode(errors="replace").strip()
            raise TransientError(
                f"Host {self.transport.host} gave no answer (exit status {status}). {text}".strip()
            )
        return self.checked(frames[-1])

    def checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer, unless it is a refusal."""
        kind = answer.get("error")
        if kind is None:
            return answer
        message = f"Host {self.transport.host}: {answer['message']}"
        if kind == "CONFIG":
            raise ConfigError(message)
        if kind in _ERRORS:
            raise HostRefusalError(_ERRORS[kind], message)
        raise TransientError(message)

    def key_of(self, identifier: str) -> bytes:
        """The key that signs what the supervisor of a job writes."""
        return staging.derived(self._secret, identifier)

    # -- starting -----------------------------------------------------------------------------

    async def prepare(
        self,
        jobs: Sequence[Job],
        *,
        start: bool = False,
        variables: Mapping[str, Mapping[str, str]] | None = None,
    ) -> list[Prepared | Rejected | Deferred | Unknown]:
        """Bring everything that jobs need to the host, each in a directory of its own.

        Asks which values are missing (unless all are known to be there) and sends those, once
        each, with the specs in one stream. Repeating it changes nothing.

        Args:
            jobs: what to bring.
            start: start each job as well, detached, and wait until it is claimed.
            variables: environment variables by key of job, beyond the environment's.

        Returns:
            One entry per job, in their order. Unknown is given with ``start`` only.
        """
        try:
            return await staging.prepare(self, jobs, start, variables or {})
        except HostRefusalError as error:
            return [Rejected(job.key, error.reason, str(error)) for job in jobs]
        except UnreachableError as error:
            return [Deferred(job.key, str(error), error.retry_after) for job in jobs]

    async def start(self, keys: Sequence[str]) -> dict[str, Sight]:
        """Start prepared jobs, detached from this connection; repeating it starts none twice.

        Returns as soon as each is claimed, within 5 seconds.
        """
        return await self._sights("start", keys)

    # -- watching -----------------------------------------------------------------------------

    async def look(
        self, keys: Sequence[str], *, launch_grace: float | None = None
    ) -> dict[str, Sight]:
        """All of ``keys`` in one question.

        Of a job whose supervisor is dead everything is ended before the answer says so. With
        ``launch_grace``, the claim of a job that was prepared so many seconds ago and is still
        not claimed is taken, as by :meth:`forbid`.
        """
        return await self._sights("look", keys, launch_grace=launch_grace)

    async def listing(self, store: str) -> dict[str, Sight]:
        """Jobs of a store that are not over, by key."""
        answer = await self.call("list", {"store": store_id(store)})
        return {item["key"]: _sight(item["key"], item) for item in answer["jobs"]}

    async def _sights(self, verb: str, keys: Sequence[str], **extra: Any) -> dict[str, Sight]:
        found: dict[str, Sight] = {}
        for at in range(0, len(keys), 1000):
            by_id = {job_id(key): key for key in keys[at : at + 1000]}
            answer = await self.call(verb, {"jobs": list(by_id), **extra})
            for item in answer["jobs"]:
                key = by_id[item["id"]]
                found[key] = _sight(key, item)
        return found

    # -- stopping -----------------------------------------------------------------------------

    async def stop(self, keys: Sequence[str], *, force: bool = False) -> dict[str, Sight]:
        """Ask jobs to stop; ``force`` ends every process of them at once.

        A job that nobody has claimed will never start.
        """
        return await self._sights("stop", keys, force=force)

    async def stop_tasks(self, key: str, tasks: Collection[str], *, force: bool = False) -> None:
        """Stop some tasks of a packed job; the others go on."""
        await self.call("stop_tasks", {"job": job_id(key), "tasks": list(tasks), "force": force})

    async def forbid(self, keys: Sequence[str]) -> dict[str, Sight]:
        """Take the claims of ``keys``, known or not: none of them can start any more.

        Those whose claim a supervisor holds already come back ``claimed``.
        """
        return await self._sights("forbid", keys)

    # -- results ------------------------------------------------------------------------------

    def collect(
        self, handles: Sequence[JobHandle], spool: Path, ended: Mapping[str, str] | None = None
    ) -> AsyncIterator[Outcome]:
        """Outcomes of jobs that are done, in one stream and bounded memory.

        Values of 64 KiB and more become files in ``spool``; what a cut left there is taken up
        at its end. A record or value that was not made by the job's supervisor is refused with
        RESULT_CORRUPT. Jobs that are not done are left out, unless ``ended`` has their keys
        and a sentence: those whose supervisor is known to be gone. Tasks that ended before it died
        have their outcome, the others one with NODE_FAIL and what they had printed.
        """
        return collecting.collect(self, handles, spool, ended or {})

    async def fetch(self, key: str, digest: str, target: Path) -> None:
        """See :meth:`Executor.fetch_held`; ``key`` is the job's."""
        await holding.fetch(self, key, digest, target)

    async def lacking(self, digests: Sequence[str]) -> set[str]:
        """Which of these values the host has not."""
        return set((await self.call("missing", {"digests": list(digests)}))["missing"])

    async def logs(self, key: str, stream: str, offset: int, limit: int) -> bytes:
        """Part of ``"stdout"`` or ``"stderr"`` of the tasks, or of ``"script"`` (what prerun and
        the environment printed), ``"supervisor"`` or ``"scheduler"`` (a file ``scheduler.log`` in
        the job's directory); a negative offset counts from the end."""
        request = {"job": job_id(key), "stream": stream, "offset": offset, "limit": limit}
        answer = await self.call("logs", request)
        return bytes.fromhex(answer["data"])

    # -- cleaning up --------------------------------------------------------------------------

    async def release(self, keys: Sequence[str]) -> None:
        """Remove the directories of ended jobs as ``cleanup`` says; now and then sweep."""
        ids = [job_id(key) for key in keys]
        await self.call("release", {"jobs": ids, "cleanup": self.cleanup})
        if time.monotonic() - self._swept > 3600.0:
            await self.sweep()

    async def sweep(self) -> int:
        """Remove jobs that are over and values not used for ``keep`` seconds; how many."""
        self._swept = time.monotonic()
        request = {"keep": self.keep, "hold": holding.HOLD, "tools": tools().digest}
        answer = await self.call("sweep", request)
        self.present.clear()
        return int(answer["removed"])


def _is_folder(path: object) -> bool:
    if not isinstance(path, str):
        return False
    parts = path.split("/")
    return (
        parts[0] in ("", "~")
        and len(parts) > 1
        and ".." not in parts
        and any(parts[1:])
        and path.isprintable()
    )


def _head(request: Mapping[str, Any]) -> bytes:
    data = json.dumps(request).encode()
    return b"%d\n%b" % (len(data), data)


async def _chained(head: bytes, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for piece in body:
        yield piece


def _sight(key: str, item: Mapping[str, Any]) -> Sight:
    fields = {name: item[name] for name in Sight.__dataclass_fields__ if name in item}
    fields["key"] = key
    fields["tasks"] = tuple(item.get("tasks") or (key,))
    return Sight(**fields)
