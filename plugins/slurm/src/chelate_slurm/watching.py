"""Watching jobs until they end, and ending them: one question for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from chelate.api import (
    AuthenticationError,
    ConfigError,
    ExecutorError,
    JobHandle,
    JobState,
    Observation,
    Outcome,
    PollReport,
    Reason,
    TransientError,
)
from chelate.remote import JobHost, Sight, job_id, key_on_host
from chelate_slurm.answers import Row
from chelate_slurm.controller import Controller
from chelate_slurm.verdicts import ACTIVE, ENDED, WAITING, Verdict, is_impossible, verdict

__all__ = ["Watcher"]

LOG = 64 * 1024  # bytes of a job's log that are told
AGAIN = 30.0  # seconds before the same scancel is sent again
SETTLE = 2.0  # seconds for which the record of a job that Slurm ended may be on its way
FRESH = 60.0  # seconds since a heartbeat for which a job that Slurm forgot counts as running


@dataclass(slots=True)
class _Watched:
    """What is remembered of a job between polls. Moments are monotonic seconds."""

    observation: Observation | None = None
    native: str = ""  # another job that holds the claim
    shared: bool = False  # and that is a pack with other tasks in it
    ended_at: float = 0.0
    hopeless_at: float = 0.0
    hopeless: str = ""
    asked: bool = False
    asked_at: dict[bool, float] | None = None
    verdict: Verdict | None = None


class Watcher:
    """Polls, cancels and collects.

    Args:
        host: what the jobs left on the shared file system.
        controller: Slurm's programs.
        result_grace: seconds for which the record of a finished job may stay invisible.
        hopeless_after: seconds for which a job may wait for what can never be.
    """

    def __init__(
        self, host: JobHost, controller: Controller, *, result_grace: float, hopeless_after: float
    ) -> None:
        self._host = host
        self._controller = controller
        self._result_grace = result_grace
        self._hopeless_after = hopeless_after
        self._accounting = False
        self._jobs: dict[str, _Watched] = {}

    def learn(self, config: Mapping[str, str]) -> None:
        """Whether this cluster has an accounting that can be asked."""
        kind = config.get("AccountingStorageType", "")
        self._accounting = kind.endswith("slurmdbd")

    def forget(self, handles: Sequence[JobHandle]) -> None:
        """These jobs are over and stored."""
        for handle in handles:
            self._jobs.pop(key_on_host(handle), None)

    def _of(self, handle: JobHandle) -> _Watched:
        return self._jobs.setdefault(key_on_host(handle), _Watched())

    # -- polling ------------------------------------------------------------------------------

    async def poll(self, handles: Sequence[JobHandle]) -> PollReport:
        """See :meth:`SlurmExecutor.poll`."""
        if not handles:
            return PollReport(frozenset(), {})
        errors: list[str] = []
        rows: dict[str, Row] | None = None
        ids = {handle.key: self._of(handle).native or handle.native_id for handle in handles}
        names = {handle.key: key_on_host(handle) for handle in handles}
        # The queue before the records: a job that ends in between has its record by then.
        try:
            rows = await self._controller.queue(set(ids.values()))
        except (AuthenticationError, ConfigError, TransientError) as error:
            errors.append(str(error))
        try:
            looked = await self._host.look(list(names.values()))
        except ExecutorError as error:
            return PollReport(frozenset(), {}, (*errors, str(error)))
        sights = {key: looked[name] for key, name in names.items() if name in looked}
        if rows is not None:
            gone = {
                number
                for key, number in ids.items()
                if number not in rows and not _is_settled(sights.get(key))
            }
            rows.update(await self._accounted(gone, errors))
        covered: set[str] = set()
        seen: dict[str, Observation] = {}
        ended: list[tuple[JobHandle, Row, Sight]] = []
        for handle in handles:
            sight = sights.get(handle.key) or Sight(handle.key)
            number = ids[handle.key]
            if sight.done:
                covered.add(handle.key)
                seen[handle.key] = self._remembered(handle, JobState.ENDED, sight)
                continue
            if rows is None:
                continue
            if self._follows_owner(handle, sight):
                continue  # asked for from the next poll on
            covered.add(handle.key)
            row = rows.get(number)
            if row is None and _is_settled(sight):
                text = f"Slurm job {number} was cancelled before it began."
                seen[handle.key] = Observation(
                    handle.key, JobState.KILLED, Reason.CANCELLED_BY_USER, text
                )
                continue
            if row is not None and row.state in ENDED:
                if not sight.known:
                    continue  # its folder is gone: released, or removed by somebody
                if self._is_over(handle, row):
                    ended.append((handle, row, sight))
                else:
                    seen[handle.key] = self._remembered(handle, _unfinished(sight), sight)
                continue
            self._of(handle).ended_at = 0.0  # it may have been requeued
            state = self._state(handle, row, sight)
            if state is not None:
                seen[handle.key] = self._remembered(handle, state, sight, row)
        for handle, row, sight in ended:
            seen[handle.key] = await self._judge(handle, row, sight)
        await self._end_hopeless(handles, rows or {}, ids, errors)
        return PollReport(frozenset(covered), seen, tuple(errors))

    async def _accounted(self, gone: Collection[str], errors: list[str]) -> dict[str, Row]:
        """What the accounting says of jobs that the controller has forgotten."""
        if not gone or not self._accounting:
            return {}
        try:
            found = await self._controller.accounting(gone)
        except (AuthenticationError, ConfigError, TransientError) as error:
            errors.append(str(error))
            return {}
        return {number: row for number, row in found.items() if number in gone}

    def _state(self, handle: JobHandle, row: Row | None, sight: Sight) -> JobState | None:
        """What a job that has not ended is doing; None when nobody knows it."""
        if row is None:
            age = sight.heartbeat_age
            alive = sight.claimed and sight.alive is not False and age is not None and age < FRESH
            return JobState.RUNNING if alive else None
        if row.state in WAITING:
            return JobState.QUEUED
        # Any other state, known or not, is taken for running once the job has begun.
        return JobState.RUNNING if sight.claimed else JobState.QUEUED

    def _remembered(
        self, handle: JobHandle, state: JobState, sight: Sight, row: Row | None = None
    ) -> Observation:
        """The same object as before unless something has changed, which saves the kernel work."""
        watched = self._of(handle)
        run = sight.run + (1 if state is JobState.QUEUED and sight.claimed else 0)
        message = row.reason if row is not None and state is JobState.QUEUED else ""
        fresh = Observation(
            handle.key, state, message=message, started_at=sight.started_at, run=run
        )
        if watched.observation != fresh:
            watched.observation = fresh
        assert watched.observation is not None
        return watched.observation

    def _follows_owner(self, handle: JobHandle, sight: Sight) -> bool:
        """Whether another copy of the job holds the claim: then that one is the job."""
        watched = self._of(handle)
        known = watched.native or handle.native_id
        if sight.claimed and sight.native and sight.native != known:
            watched.native = sight.native
            watched.shared = sight.job not in ("", job_id(key_on_host(handle)))
            watched.ended_at = 0.0
            return True
        return False

    def _is_over(self, handle: JobHandle, row: Row) -> bool:
        """Whether the record of an ended job had time enough to become visible."""
        watched = self._of(handle)
        now = time.monotonic()
        watched.ended_at = watched.ended_at or now
        finished = row.state in ("COMPLETED", "FAILED")
        # A preempted job may go back into the queue by itself.
        grace = self._result_grace if finished or row.state == "PREEMPTED" else SETTLE
        return now - watched.ended_at >= min(grace, self._result_grace)

    async def _judge(self, handle: JobHandle, row: Row, sight: Sight) -> Observation:
        watched = self._of(handle)
        if watched.verdict is None:
            log, said = await asyncio.gather(
                self._log(handle, "scheduler"),
                self._log(handle, "script"),
            )
            watched.verdict = verdict(
                row, sight, log, said, asked=watched.asked, waited=watched.hopeless
            )
        found = watched.verdict
        # Collect brings what was printed, and tells which tasks of a pack had ended well.
        state = JobState.ENDED if sight.claimed else JobState.KILLED
        return Observation(
            handle.key,
            state,
            found.reason,
            found.message,
            started_at=sight.started_at,
            run=sight.run,
        )

    async def _log(self, handle: JobHandle, stream: str) -> str:
        try:
            log = await self._host.logs(key_on_host(handle), stream, -LOG, LOG)
        except ExecutorError:
            return ""  # the log is a help, and the verdict stands without it
        return log.decode(errors="replace")

    # -- ending -------------------------------------------------------------------------------

    async def _end_hopeless(
        self,
        handles: Sequence[JobHandle],
        rows: Mapping[str, Row],
        ids: Mapping[str, str],
        errors: list[str],
    ) -> None:
        """Take jobs out of the queue that can never start, so that they end with a reason."""
        now = time.monotonic()
        hopeless: list[JobHandle] = []
        for handle in handles:
            row = rows.get(ids[handle.key])
            why = "" if row is None else is_impossible(row)
            watched = self._of(handle)
            if not why:
                watched.hopeless_at = 0.0
                if row is not None and row.state in ACTIVE:
                    watched.hopeless = ""
                continue
            watched.hopeless_at = watched.hopeless_at or now
            if now - watched.hopeless_at >= self._hopeless_after:
                watched.hopeless = why if row is None else f"{why} ({row.reason})"
                hopeless.append(handle)
        if hopeless:
            try:
                await self._controller.cancel(
                    [ids[handle.key] for handle in hopeless], gentle=False
                )
            except (AuthenticationError, ConfigError, TransientError) as error:
                errors.append(str(error))

    async def cancel(self, handles: Sequence[JobHandle], *, force: bool) -> None:
        """See :meth:`SlurmExecutor.cancel`."""
        now = time.monotonic()
        due: dict[bool, list[str]] = {True: [], False: []}  # by whether gently
        keys: list[str] = []
        for handle in handles:
            watched = self._of(handle)
            last = watched.observation
            gently = not force and last is not None and last.state is JobState.RUNNING
            asked = watched.asked_at = watched.asked_at or {}
            watched.asked = True
            if now - asked.get(gently, -AGAIN) < AGAIN:
                continue  # the kernel asks until a poll shows the end; Slurm needs it only once
            asked[gently] = now
            keys.append(key_on_host(handle))
            owner = "" if watched.shared else watched.native
            due[gently] += filter(None, (owner, handle.native_id))
        if not keys:
            return
        try:
            # First the word that it is the user's wish, then the signal.
            await self._host.stop(keys, force=force)
            for gently in (False, True):
                if due[gently]:
                    await self._controller.cancel(due[gently], gentle=gently)
        except ExecutorError:
            for handle in handles:
                self._of(handle).asked_at = None
            raise

    # -- results ------------------------------------------------------------------------------

    async def collect(
        self, handles: Sequence[JobHandle], spool: Path
    ) -> AsyncGenerator[Outcome, None]:
        """See :meth:`SlurmExecutor.collect`."""
        verdicts: dict[str, Verdict] = {}
        ended: dict[str, str] = {}
        told: set[str] = set()
        for handle in handles:
            watched = self._jobs.get(key_on_host(handle))
            if watched is not None and watched.verdict is not None:
                verdicts.update(dict.fromkeys(handle.tasks or (handle.key,), watched.verdict))
                ended[key_on_host(handle)] = watched.verdict.message
        brought = self._host.collect(handles, spool, ended)
        async with aclosing(brought) as outcomes:  # type: ignore[type-var]
            async for outcome in outcomes:
                told.add(outcome.key)
                yield _mended(outcome, verdicts.get(outcome.key))
        for key, found in verdicts.items():
            if key not in told:
                yield Outcome(key, False, reason=found.reason, error=found.message)


def _mended(outcome: Outcome, found: Verdict | None) -> Outcome:
    """The reason that only Slurm knows, in the place of what the supervisor had to guess."""
    if outcome.ok:
        return outcome
    if outcome.reason is Reason.CANCELLED_BY_BACKEND and "SIGUSR2" in (outcome.error or ""):
        text = "The job came to its time limit and was stopped; ask for more with time=."
        return replace(outcome, reason=Reason.TIMEOUT, error=text)
    if found is not None and outcome.reason is Reason.NODE_FAIL:
        return replace(outcome, reason=found.reason, error=found.message)
    return outcome


def _is_settled(sight: Sight | None) -> bool:
    """Whether a job that has left the queue needs no further word of Slurm.

    It has a record, or was cancelled before it began and never will: Slurm removes the elements
    of an array that it cancels then, and no later answer mentions them.
    """
    return sight is not None and (sight.done or (sight.cancelled and sight.forbidden))


def _unfinished(sight: Sight) -> JobState:
    return JobState.RUNNING if sight.claimed else JobState.QUEUED
