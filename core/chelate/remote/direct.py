"""Executors that start jobs on hosts by themselves, without a scheduler in between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from chelate.api import (
    Accepted,
    AuthenticationError,
    Capabilities,
    ConfigError,
    Deferred,
    Executor,
    ExecutorError,
    Job,
    JobHandle,
    JobState,
    Limits,
    Observation,
    Outcome,
    PollReport,
    Reason,
    Rejected,
    RunOutcome,
    TransientError,
    Unknown,
)
from chelate.remote.host import JobHost
from chelate.remote.sights import Prepared, job_id, job_key, key_on_host, observation
from chelate.remote.slots import Doubts, HostSlots, together
from chelate.remote.spool import Spool

__all__ = ["DirectExecutor"]

LAUNCH_GRACE = 60.0  # seconds in which a job that was started must have claimed itself
WAIT = 0.5  # seconds before a job that found no free slot is offered again


class DirectExecutor(Executor):
    """Base of executors whose jobs run on hosts directly; a subclass gives :meth:`hosts`.

    Jobs are detached: they outlive the connection and the kernel. Each is claimed by the one
    supervisor that runs it, so a request sent twice is one job. A claim holds on its own host:
    what was looked up in vain goes to one of several hosts once the others cannot start it.
    """

    # Questions have deadlines of their own; this one is for large values on slow lines.
    limits = Limits(
        poll_min=0.5, poll_max=20.0, absent_grace=15.0, find_grace=5.0, call_timeout=600.0
    )
    capabilities = Capabilities(
        find=True,
        idempotent=True,
        logs=True,
        packing=True,
        cancel_task=True,
        claims=True,
        listing=True,
    )
    _slots: list[HostSlots] | None = None

    @cached_property
    def _spool(self) -> Spool:
        return Spool()

    @abstractmethod
    def hosts(self) -> Sequence[HostSlots]:
        """The hosts, made once, without touching the network. Raises ConfigError."""

    def _all(self) -> list[HostSlots]:
        if self._slots is None:
            self._slots = list(self.hosts())
            names = [item.name for item in self._slots]
            if not names or len(set(names)) < len(names):
                raise ConfigError(
                    f"Executor {self.name!r} needs at least one host, and each once: {names}."
                )
        return self._slots

    async def open(self) -> None:
        """Check the options; connections are made when a job needs them."""
        slots = [item.slots for item in self._all()]
        if any(count is not None and count < 1 for count in slots):
            raise ConfigError(f"slots of executor {self.name!r} must be at least 1.")
        hosts = [item.host for item in self._all()]
        for host in hosts if len(hosts) > 1 else ():
            host.holds = False  # nobody knows yet where the next task will run
        self.capabilities = replace(self.capabilities, holds=hosts[0].holds)
        if all(slots):
            most = sum(count or 0 for count in slots) * self.limits.pack
            self.limits = replace(self.limits, max_in_flight=most)

    async def close(self) -> None:
        """Let go of connections and of what was fetched; jobs go on."""
        for item in self._slots or ():
            await item.host.transport.close()
        self._spool.close()

    # -- starting -----------------------------------------------------------------------------

    async def run(self, jobs: Sequence[Job]) -> AsyncIterator[RunOutcome]:
        """Place jobs on hosts with free slots and start them, one round per host."""
        placed: dict[str, list[Job]] = {}
        troubles = await self._ready()
        for job in jobs:
            refused = self._place(job, placed, troubles)
            if refused is not None:
                yield refused
        for item in self._all():
            group = placed.get(item.name)
            if not group:
                continue
            async for outcome in self._start(item, group):
                yield outcome

    async def _ready(self) -> dict[str, Exception]:
        """Have each host's capacity known; why not, by host."""
        troubles: dict[str, Exception] = {}
        asked = self._all()
        reports = await together(item.host.probe() for item in asked)
        for item, report in zip(asked, reports, strict=True):
            if isinstance(report, Exception):
                troubles[item.name] = report
                continue
            item.slots = item.slots or report.cpus
            item.mem = item.mem or report.memory >> 20
        return troubles

    def _place(
        self, job: Job, placed: dict[str, list[Job]], troubles: Mapping[str, Exception]
    ) -> RunOutcome | None:
        items = [item for item in self._all() if item.name not in troubles]
        if not items:
            return _refusal(job.key, troubles)
        barred = self._doubts.barred(task.key for task in job.tasks)
        items = [item for item in items if item.name not in barred] or items
        name = _name(job)
        wants = job.resources
        why = next(
            (
                f"Resources({name}={getattr(wants, name)!r}) means nothing to executor "
                f"{self.name!r}; leave it out, or use an executor that knows it."
                for name, asked in (
                    ("nodes", wants.nodes > 1),
                    ("disk", wants.disk is not None),
                    ("gpu_type", wants.gpu_type is not None),
                )
                if asked
            ),
            "",
        )
        mem = int(wants.mem or 0)
        able = [
            item
            for item in items
            if wants.cpus <= (item.slots or 0)
            and wants.gpus <= item.gpus
            and mem <= (item.mem or 0)
        ]
        if not why and not able:
            if troubles:  # one of those may be able
                return Deferred(job.key, str(next(iter(troubles.values()))))
            why = (
                f"Resources(cpus={wants.cpus}, mem={wants.mem}, gpus={wants.gpus}) is more than "
                f"any host of executor {self.name!r} has; ask for less, or add a host."
            )
        if why:
            return Rejected(job.key, Reason.UNSCHEDULABLE, why)
        for item in able:
            if name in item.used:  # sent before, and the answer was lost
                placed.setdefault(item.name, []).append(job)
                return None
        best = max(able, key=lambda item: item.free() / (item.slots or 1))
        alone = not best.used if wants.exclusive else True
        gpus = best.free_gpus()[: wants.gpus]
        if (
            best.free() < wants.cpus
            or best.free_memory() < mem
            or len(gpus) < wants.gpus
            or not alone
        ):
            return Deferred(job.key, f"All slots of executor {self.name!r} are taken.", WAIT)
        data: dict[str, object] = {
            "cpus": best.slots if wants.exclusive else wants.cpus,
            "mem": mem,
        }
        if best.gpus:
            data["gpus"] = ",".join(map(str, gpus))
        best.used[name] = data
        placed.setdefault(best.name, []).append(job)
        return None

    async def _start(self, item: HostSlots, jobs: list[Job]) -> AsyncIterator[RunOutcome]:
        names = {job.key: _name(job) for job in jobs}
        variables = {
            key: {"CUDA_VISIBLE_DEVICES": str(item.used[name]["gpus"])}
            for key, name in names.items()
            if "gpus" in item.used[name]
        }
        live: list[Job] = []
        answers: list[RunOutcome | Prepared] = []
        for job in jobs:
            if all(task.cancel_requested for task in job.tasks):
                answers.append(Deferred(job.key, "Cancelled before it was sent."))
            elif (elsewhere := await self._elsewhere(item, job)) is not None:
                answers.append(elsewhere)
            else:
                live.append(job)
        try:
            if live:
                answers += await item.host.prepare(live, start=True, variables=variables)
        except (AuthenticationError, ConfigError) as error:
            answers += [_refusal(job.key, {item.name: error}) for job in live]
        sent = {names[job.key]: job for job in live}
        for answer in answers:
            if isinstance(answer, Prepared):
                job = sent[answer.key]
                yield Accepted(job.key, self._handle(item, [task.key for task in job.tasks]))
            else:
                item.used.pop(names[answer.key], None)
                yield answer

    async def _elsewhere(self, item: HostSlots, job: Job) -> RunOutcome | None:
        """Why a job cannot be sent to this host: it may be on its way to another, or is there."""
        try:
            other = await self._doubts.settle(job.tasks, item, self._all())
        except ExecutorError as error:
            text = f"{error} The task may have been sent there, so {item.name} has to wait."
            return Deferred(job.key, text)
        text = f"The task, or one of its pack, has started on {other}."
        return None if other is None else Unknown(job.key, text)

    @cached_property
    def _doubts(self) -> Doubts:
        return Doubts()

    @cached_property
    def _lost(self) -> dict[str, str]:
        return {}  # why jobs whose supervisor is gone have ended

    def _handle(self, item: HostSlots, tasks: Sequence[str]) -> JobHandle:
        name = job_key(tasks)
        data = {"host": item.name, **item.used.get(name, {})}
        return JobHandle(tasks[0], self.name, f"{item.name}/{job_id(name)}", data, tuple(tasks))

    # -- watching -----------------------------------------------------------------------------

    def _by_host(self, handles: Sequence[JobHandle]) -> list[tuple[HostSlots, list[JobHandle]]]:
        groups: dict[str, list[JobHandle]] = {}
        for handle in handles:
            groups.setdefault(str(handle.data.get("host")), []).append(handle)
        return [(item, groups[item.name]) for item in self._all() if item.name in groups]

    async def poll(self, handles: Sequence[JobHandle]) -> PollReport:
        """One question per host; what an unreachable host has keeps its state."""
        covered: set[str] = set()
        seen: dict[str, Observation] = {}
        errors: list[str] = []
        known = {item.name for item in self._all()}
        lost = sorted({str(handle.data.get("host")) for handle in handles} - known)
        if lost:
            errors.append(f"Executor {self.name!r} is not configured for {', '.join(lost)}.")
        groups = self._by_host(handles)
        answers = await together(
            item.host.look(list(map(key_on_host, group)), launch_grace=LAUNCH_GRACE)
            for item, group in groups
        )
        for (item, group), sights in zip(groups, answers, strict=True):
            if isinstance(sights, Exception):
                errors.append(str(sights))
                continue
            for handle in group:
                name = key_on_host(handle)
                sight = sights.get(name)
                if sight is None:
                    continue
                covered.add(handle.key)
                observed = observation(sight, where=item.name, launch_grace=LAUNCH_GRACE)
                if observed is not None and observed.reason is Reason.NODE_FAIL:
                    self._lost[name] = observed.message
                    observed = replace(observed, state=JobState.ENDED)  # with what it printed
                if observed is not None:
                    seen[handle.key] = replace(observed, key=handle.key)
                if observed is None or observed.state.name in ("ENDED", "KILLED"):
                    item.used.pop(name, None)
                else:
                    item.used.setdefault(name, handle.data)
        return PollReport(frozenset(covered), seen, tuple(errors))

    async def find(self, keys: Sequence[str]) -> Mapping[str, Sequence[JobHandle]]:
        """Jobs that were claimed, on any host. Raises TransientError unless all hosts answer."""
        found: dict[str, list[JobHandle]] = {}
        barred: dict[str, set[str]] = {key: set() for key in keys}
        for item in self._all():
            for key, sight in (await item.host.look(keys)).items():
                if sight.claimed or sight.done:
                    found.setdefault(key, []).append(self._handle(item, sight.tasks))
                elif sight.forbidden:
                    barred[key].add(item.name)
        if len(self._all()) > 1:
            self._doubts.note({k: hosts for k, hosts in barred.items() if k not in found})
        return found

    async def forbid(self, keys: Sequence[str]) -> Mapping[str, JobHandle]:
        """Take the claims on every host."""
        held: dict[str, JobHandle] = {}
        for item in self._all():
            for key, sight in (await item.host.forbid(keys)).items():
                if sight.claimed or sight.done:
                    held[key] = self._handle(item, sight.tasks)
                else:
                    item.used.pop(key, None)
        return held

    async def list_jobs(self, store: str) -> Sequence[JobHandle]:
        """Claimed jobs of this store that are not over, on every host."""
        return [
            self._handle(item, sight.tasks)
            for item in self._all()
            for sight in (await item.host.listing(store)).values()
        ]

    async def cancel(self, handles: Sequence[JobHandle], *, force: bool) -> None:
        """Ask the supervisors; with ``force`` everything is killed at once."""
        failed: Exception | None = None
        for item, group in self._by_host(handles):
            try:
                await item.host.stop(list(map(key_on_host, group)), force=force)
            except TransientError as error:
                failed = error
        if failed is not None:
            raise failed

    async def cancel_tasks(self, handle: JobHandle, keys: Sequence[str], *, force: bool) -> None:
        """Stop some tasks of a pack."""
        for item, _ in self._by_host([handle]):
            await item.host.stop_tasks(key_on_host(handle), keys, force=force)

    # -- results ------------------------------------------------------------------------------

    async def collect(self, handles: Sequence[JobHandle]) -> AsyncIterator[Outcome]:
        """Outcomes, host by host; values large enough become files here."""
        for item, group in self._by_host(handles):
            async for outcome in item.host.collect(group, self._spool.folder(), self._lost):
                yield outcome

    async def fetch_held(self, handle: JobHandle, digest: str, target: Path) -> None:
        """From the host where the job ran."""
        await self._of(handle).fetch(key_on_host(handle), digest, target)

    async def missing_held(self, handle: JobHandle, digests: Sequence[str]) -> set[str]:
        """Looked up on the host where the job ran."""
        return await self._of(handle).lacking(digests)

    def _of(self, handle: JobHandle) -> JobHost:
        for item, _ in self._by_host([handle]):
            return item.host
        raise ConfigError(
            f"Executor {self.name!r} is not configured for {handle.data.get('host')}."
        )

    async def logs(self, handle: JobHandle, stream: str, offset: int, limit: int) -> bytes:
        """Output so far."""
        for item, _ in self._by_host([handle]):
            return await item.host.logs(key_on_host(handle), stream, offset, limit)
        return b""

    async def release(self, handles: Sequence[JobHandle]) -> None:
        """Clean up here and there."""
        for item, group in self._by_host(handles):
            names = list(map(key_on_host, group))
            for name in names:
                item.used.pop(name, None)
                self._lost.pop(name, None)
                self._spool.drop(job_id(name))
            self._doubts.drop(key for handle in group for key in handle.tasks)
            await item.host.release(names)


def _name(job: Job) -> str:
    return job_key([task.key for task in job.tasks])


def _refusal(key: str, troubles: Mapping[str, Exception]) -> RunOutcome:
    """Why a job cannot be started on any host; nothing was sent."""
    errors = list(troubles.values())
    for error in errors:
        if isinstance(error, TransientError):
            return Deferred(key, str(error), error.retry_after)
    text = " ".join(dict.fromkeys(map(str, errors)))
    if isinstance(errors[0], AuthenticationError):
        return Rejected(key, Reason.AUTH, text)
    return Rejected(key, getattr(errors[0], "reason", Reason.INVALID_SPEC), text)
