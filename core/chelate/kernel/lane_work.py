"""What a lane does with its executor: run, poll, collect, look up, cancel, release.

It owns cadence (batches, poll intervals, back-off), the look-up of unknown submissions, the
repetition of cancels and the rules for absent jobs. It never touches the store's rows; it tells
the engine what it saw. All of it runs in the lane's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chelate.contracts.executor import (
    Accepted,
    Deferred,
    Executor,
    Job,
    JobHandle,
    JobState,
    Outcome,
    PollReport,
    Rejected,
    Unknown,
)
from chelate.errors import PluginContractError, TransientError
from chelate.kernel import events as ev
from chelate.kernel.keys import split_key
from chelate.kernel.lane_report import LaneReport, sentence
from chelate.model import Reason

__all__ = ["LaneWork"]

_LOG = logging.getLogger("chelate.lanes")
_ABSENT_POLLS = 3
_CANCEL_FIRST = 1.0
_CANCEL_LAST = 60.0


@dataclass(slots=True)
class _Flight:
    """A job between acceptance and release."""

    handle: JobHandle
    adopted: bool = False
    running: bool = False
    absent: int = 0
    absent_since: float = 0.0


@dataclass(slots=True)
class _Stop:
    """A cancel that goes on until the job is gone."""

    tries: int = 0
    due: float = 0.0


class LaneWork:
    """The parts of a lane that talk to the executor; each part is a loop of its own."""

    def __init__(self, name: str, executor: Executor, report: Callable[[LaneReport], None]) -> None:
        self.name = name
        self._report = report
        self._executor = executor
        self._limits = executor.limits
        self._capabilities = executor.capabilities
        self._waiters: set[asyncio.Future[None]] = set()
        self._jobs: list[Job] = []
        self._flights: dict[str, _Flight] = {}
        self._lookups: dict[str, float] = {}  # key → moment of the first successful look-up
        self._stops: dict[str, _Stop] = {}
        self._ended: dict[str, JobHandle] = {}
        self._releases: list[str] = []
        self._changed = 0.0
        self._closing = False
        self._calls: dict[asyncio.Task[Any], float] = {}

    def parts(self) -> list[Callable[[], Any]]:
        """The loops, to be kept alive by the lane."""
        return [self._runner, self._poller, self._seeker, self._stopper, self._watchdog]

    # -- commands ----------------------------------------------------------------------------

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def enqueue(self, jobs: Sequence[Job]) -> None:
        """Jobs to start."""
        self._jobs.extend(jobs)
        self._wake()

    def adopt(self, handles: Sequence[JobHandle]) -> None:
        """Jobs that an earlier kernel started."""
        for handle in handles:
            self._flights[handle.key] = _Flight(handle, adopted=True)
        self._changed = time.monotonic()
        self._wake()

    def seek(self, keys: Sequence[str]) -> None:
        """Keys to look up."""
        for key in keys:
            self._lookups.setdefault(key, 0.0)
        self._wake()

    def stop(self, keys: Sequence[str]) -> None:
        """Jobs to cancel until they are gone."""
        for key in keys:
            self._stops.setdefault(key, _Stop())
        self._wake()

    def let_go(self, keys: Sequence[str]) -> None:
        """Jobs whose outcome is stored."""
        self._releases.extend(keys)
        self._wake()

    def begin_close(self) -> None:
        """No new calls; running ones are cancelled."""
        self._closing = True
        self._wake()
        for task in list(self._calls):
            task.cancel()

    async def pause(self, seconds: float | None) -> None:
        """Wait until a command arrives or the time is over."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait_for(waiter, seconds)
        except asyncio.TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)

    async def forever(self, part: Callable[[], Any]) -> None:
        """Keep one part of the lane alive whatever the plugin raises."""
        delay = 0.1
        while not self._closing:
            task = asyncio.ensure_future(part())
            try:
                await task
                delay = 0.1
            except asyncio.CancelledError:
                if self._closing or not task.cancelled():
                    task.cancel()
                    raise
                _LOG.warning("Executor %s: a call passed its deadline.", self.name)
            except BaseException as error:  # noqa: BLE001
                _LOG.warning("Executor %s: %s", self.name, sentence(error), exc_info=error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 10.0)

    async def _timed(self, call: Any) -> Any:
        """Await one plugin call under the deadline."""
        return await asyncio.wait_for(call, self._limits.call_timeout)

    # -- running ------------------------------------------------------------------------------

    async def _runner(self) -> None:
        if not self._jobs:
            await self.pause(None)
            return
        batch, self._jobs = (
            self._jobs[: self._limits.run_batch],
            self._jobs[self._limits.run_batch :],
        )
        await self._run_batch(batch)

    async def _run_batch(self, batch: list[Job]) -> None:
        open_jobs = {job.key: job for job in batch}
        report = LaneReport(self.name)
        task = asyncio.current_task()
        assert task is not None
        message = "The executor did not answer for this job."
        try:
            jobs = []
            for job in batch:
                if all(entry.cancel_requested for entry in job.tasks):
                    open_jobs.pop(job.key)
                    self._tell(report, job.key, ev.Deferred, "Cancelled before it was sent.")
                else:
                    jobs.append(job)
            self._calls[task] = time.monotonic()
            async for outcome in self._executor.run(jobs):
                self._calls[task] = time.monotonic()
                if getattr(outcome, "key", None) not in open_jobs:
                    raise PluginContractError(f"run() answered for an unknown job: {outcome!r}")
                del open_jobs[outcome.key]
                self._on_run(report, outcome)
                if len(report.events) >= 512:
                    self._report(report)
                    report = LaneReport(self.name)
        except asyncio.CancelledError:
            message = f"The executor did not answer within {self._limits.call_timeout:g} s."
            if self._closing:
                raise
        except TransientError as error:
            for key in open_jobs:
                self._tell(report, key, ev.Deferred, sentence(error))
            open_jobs = {}
            self._later(report, error.retry_after)
        except BaseException as error:  # noqa: BLE001
            message = sentence(error)
            _LOG.warning("Executor %s: run() raised: %s", self.name, message, exc_info=error)
        finally:
            self._calls.pop(task, None)
        for key in open_jobs:
            self._tell(report, key, ev.Unsure, message)
        self._changed = time.monotonic()
        if report.events:
            self._report(report)
        self._wake()

    def _later(self, report: LaneReport, delay: float | None) -> None:
        """Hold back a report of deferrals, so that the same jobs do not come straight back."""
        events, report.events = report.events, []
        held = LaneReport(self.name, events)
        asyncio.get_running_loop().call_later(delay or 1.0, self._report, held)

    def _on_run(self, report: LaneReport, outcome: Any) -> None:
        key = outcome.key
        if isinstance(outcome, Accepted):
            handle = outcome.handle
            self._flights[key] = _Flight(handle)
            for task_key in handle.tasks or (key,):
                dispatch_id, node, attempt = split_key(task_key)
                report.events.append((dispatch_id, ev.Accepted(node, attempt, handle.to_json())))
        elif isinstance(outcome, Rejected):
            dispatch_id, node, attempt = split_key(key)
            refused = ev.Refused(node, attempt, outcome.reason, outcome.message)
            report.events.append((dispatch_id, refused))
        elif isinstance(outcome, Deferred):
            held = LaneReport(self.name)
            self._tell(held, key, ev.Deferred, outcome.message)
            self._later(held, outcome.delay)
        elif isinstance(outcome, Unknown):
            self._tell(report, key, ev.Unsure, outcome.message)
        else:
            raise PluginContractError(f"run() yielded {outcome!r}, which is no outcome.")

    @staticmethod
    def _tell(report: LaneReport, key: str, kind: Callable[..., ev.Event], *values: Any) -> None:
        dispatch_id, node, attempt = split_key(key)
        report.events.append((dispatch_id, kind(node, attempt, *values)))

    # -- polling ------------------------------------------------------------------------------

    async def _poller(self) -> None:
        if self._releases:
            await self._release()
        if not self._flights:
            await self.pause(None)
            return
        handles = [flight.handle for flight in self._flights.values()]
        for start in range(0, len(handles), self._limits.poll_batch):
            batch = handles[start : start + self._limits.poll_batch]
            report = await self._timed(self._executor.poll(batch))
            if not isinstance(report, PollReport):
                raise PluginContractError(f"poll() returned {report!r}, not a PollReport.")
            await self._digest(batch, report)
        if self._capabilities.push and self._limits.poll_min <= 0:
            # poll() itself waits; give way once, so that a plugin that does not cannot spin us.
            await asyncio.sleep(0)
            return
        quiet = time.monotonic() - self._changed
        interval = min(self._limits.poll_max, max(self._limits.poll_min, quiet / 2))
        wakes = time.monotonic() + interval
        while (left := wakes - time.monotonic()) > 0 and not self._closing:
            await self.pause(left)
            if self._releases:
                await self._release()

    async def _release(self) -> None:
        keys, self._releases = self._releases, []
        handles = [handle for key in keys if (handle := self._ended.pop(key, None))]
        if handles:
            await self._timed(self._executor.release(handles))

    async def _digest(self, handles: list[JobHandle], report: PollReport) -> None:
        told = LaneReport(self.name, trouble=report.errors[0] if report.errors else None)
        ended: list[JobHandle] = []
        now = time.monotonic()
        for handle in handles:
            flight = self._flights.get(handle.key)
            if flight is None:
                continue
            seen = report.seen.get(handle.key)
            if seen is None:
                if handle.key in report.covered:
                    self._absent(told, flight, now)
                continue
            flight.absent = 0
            if seen.state is JobState.RUNNING and not flight.running:
                flight.running = True
                for key in handle.tasks or (handle.key,):
                    self._tell(told, key, ev.Started, seen.started_at or time.time())
            elif seen.state is JobState.ENDED:
                ended.append(handle)
            elif seen.state is JobState.KILLED:
                self._lost(told, flight, seen.reason or Reason.UNKNOWN, seen.message)
        if told.events or ended:
            self._changed = now
        if ended:
            await self._collect(told, ended)
        if told.events or told.outcomes or told.trouble:
            self._report(told)

    def _absent(self, told: LaneReport, flight: _Flight, now: float) -> None:
        flight.absent += 1
        if flight.absent == 1:
            flight.absent_since = now
        grace = self._limits.absent_grace
        if grace > 0 and (flight.absent < _ABSENT_POLLS or now - flight.absent_since < grace):
            return
        if flight.adopted and not self._capabilities.detached:
            message = "The process that ran this task is gone."
        else:
            message = "The backend no longer knows this job, and it left no result."
        self._lost(told, flight, Reason.LOST, message)

    def _lost(self, told: LaneReport, flight: _Flight, reason: Reason, message: str) -> None:
        handle = flight.handle
        del self._flights[handle.key]
        self._stops.pop(handle.key, None)
        self._ended[handle.key] = handle
        self._releases.append(handle.key)
        # The death of the kernel took the job with it; that is nobody's failure.
        counted = not (flight.adopted and not self._capabilities.detached and reason is Reason.LOST)
        for key in handle.tasks or (handle.key,):
            self._tell(told, key, ev.Gone, reason, message, counted)

    async def _collect(self, told: LaneReport, ended: list[JobHandle]) -> None:
        wanted = {key: handle for handle in ended for key in handle.tasks or (handle.key,)}
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = time.monotonic()
        try:
            async for outcome in self._executor.collect(ended):
                self._calls[task] = time.monotonic()
                if not isinstance(outcome, Outcome) or outcome.key not in wanted:
                    raise PluginContractError(f"collect() yielded {outcome!r:.200}.")
                del wanted[outcome.key]
                told.outcomes.append(outcome)
        finally:
            self._calls.pop(task, None)
            missing = {handle.key for handle in wanted.values()}
            for handle in ended:
                if handle.key not in missing:
                    self._flights.pop(handle.key, None)
                    self._stops.pop(handle.key, None)
                    self._ended[handle.key] = handle

    # -- looking up ---------------------------------------------------------------------------

    async def _seeker(self) -> None:
        if not self._lookups:
            await self.pause(None)
            return
        told = LaneReport(self.name)
        keys = list(self._lookups)
        if not self._capabilities.find:
            self._lookups.clear()
            for key in keys:
                if self._capabilities.idempotent:
                    self._tell(told, key, ev.NotFound, True)
                else:
                    text = f"Executor {self.name} cannot say whether the task ever started."
                    self._tell(told, key, ev.Unanswerable, text)
            self._report(told)
            return
        found = await self._timed(self._executor.find(keys))
        now = time.monotonic()
        for key in keys:
            handles = found.get(key) or ()
            if handles:
                self._lookups.pop(key, None)
                self._flights[key] = _Flight(handles[0], adopted=True)
                for task_key in handles[0].tasks or (key,):
                    self._tell(told, task_key, ev.Accepted, handles[0].to_json())
                self._stop_copies(handles[1:])
                continue
            since = self._lookups.get(key) or now
            self._lookups[key] = since
            # A listing may lag behind a submission: only a later second look is certain.
            if now - since >= self._limits.find_grace:
                self._lookups.pop(key, None)
                self._tell(told, key, ev.NotFound, self._capabilities.idempotent)
        if told.events:
            self._changed = now
            self._report(told)
        if self._lookups:
            await self.pause(max(0.05, self._limits.find_grace / 3))

    def _stop_copies(self, copies: Sequence[JobHandle]) -> None:
        if copies:
            _LOG.warning("Executor %s: %d copies of one job are cancelled.", self.name, len(copies))
            asyncio.ensure_future(self._executor.cancel(list(copies), force=True))

    # -- cancelling ---------------------------------------------------------------------------

    async def _stopper(self) -> None:
        now = time.monotonic()
        due = [key for key, stop in self._stops.items() if stop.due <= now]
        if not due:
            waits = [stop.due - now for stop in self._stops.values()]
            await self.pause(max(0.01, min(waits)) if waits else None)
            return
        for force in (False, True):
            handles = []
            for key in due:
                stop, flight = self._stops.get(key), self._flights.get(key)
                if stop is None:
                    continue
                if flight is None:
                    self._stops.pop(key)  # over, or never accepted
                elif (stop.tries > 0) is force:
                    handles.append(flight.handle)
            for handle in handles:
                stop = self._stops[handle.key]
                stop.tries += 1
                wait = max(_CANCEL_FIRST * 2 ** min(stop.tries - 1, 10), 0.0)
                if stop.tries == 1:
                    wait = min(self._limits.cancel_grace, 5.0)
                stop.due = now + min(wait, _CANCEL_LAST)
            if handles:
                await self._timed(self._executor.cancel(handles, force=force))
        self._changed = time.monotonic()

    # -- deadlines ----------------------------------------------------------------------------

    async def _watchdog(self) -> None:
        """Cancel a batch call that made no progress within the call timeout."""
        await asyncio.sleep(min(1.0, self._limits.call_timeout / 2))
        now = time.monotonic()
        for task, since in list(self._calls.items()):
            if now - since > self._limits.call_timeout:
                task.cancel()
