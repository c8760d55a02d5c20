"""What a lane does with its executor: run, poll, collect, look up, cancel, release.

It owns cadence (batches, poll intervals, back-off), the look-up of unknown submissions, the
repetition of cancels and the rules for absent jobs. It never touches the store's rows; it tells
the engine what it saw. All of it runs in the lane's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Container, Mapping, Sequence
from typing import Any

from chelate.contracts.executor import (
    Accepted,
    Deferred,
    Executor,
    Job,
    JobHandle,
    Rejected,
    Unknown,
)
from chelate.errors import AuthenticationError, PluginContractError, TransientError
from chelate.kernel import events as ev
from chelate.kernel.keys import split_key
from chelate.kernel.lanes.calls import LaneCalls
from chelate.kernel.lanes.checks import checked_handle, checked_reason
from chelate.kernel.lanes.fetches import Fetches, Wanted
from chelate.kernel.lanes.flights import Flights
from chelate.kernel.lanes.packs import Departures
from chelate.kernel.lanes.report import FIRST_PAUSE, LAST_PAUSE, LaneReport, pausing, sentence
from chelate.kernel.lanes.roster import tell
from chelate.kernel.lanes.stops import FIRST_WAIT, LAST_WAIT, Stops
from chelate.kernel.lanes.strays import Strays
from chelate.kernel.world import World
from chelate.model import Reason

__all__ = ["LaneWork"]

_LOG = logging.getLogger("chelate.lanes")


def _tell_all(report: LaneReport, job: Job, kind: Callable[..., ev.Event], *values: Any) -> None:
    for task in job.tasks:
        tell(report, task.key, kind, *values)


async def _nothing() -> AsyncIterator[Any]:
    return
    yield


class LaneWork:
    """The parts of a lane that talk to the executor; each part is a loop of its own."""

    def __init__(
        self,
        name: str,
        executor: Executor,
        report: Callable[[LaneReport], None],
        world: World,
        store: str,
    ) -> None:
        self.name = name
        self._calls = LaneCalls(name, executor, report, world)
        self._flights = Flights(self._calls, self._found)
        self._departures = Departures(executor.limits, executor.capabilities)
        self._told: LaneReport | None = None
        self._asked: set[str] = set()  # tasks that run() was given
        self._disowned: set[str] = set()  # of them, those that are another kernel's by now
        self._lookups: dict[str, float] = {}  # key → moment of the first successful look-up
        self._resends: dict[str, int] = {}
        self._stops = Stops(self._calls, self._flights, self._sending)
        self._strays = Strays(self._calls, store)
        self._rest = FIRST_PAUSE  # how long the next pause lasts
        self._paused_at = 0.0
        self._lifting: asyncio.TimerHandle | None = None
        self._fetches = Fetches(self._calls)

    def loops(self) -> list[asyncio.Task[None]]:
        """Start the loops; they run until they are cancelled."""
        calls = self._calls
        parts = (
            self._runner,
            self._flights.part,
            self._seeker,
            self._stops.part,
            self._strays.part,
            self._fetches.part,
            calls.heartbeat,
        )
        return [asyncio.ensure_future(calls.forever(part)) for part in parts]

    @property
    def beats(self) -> int:
        """Grows while the lane's thread answers."""
        return self._calls.beats

    # -- commands ----------------------------------------------------------------------------

    def enqueue(self, jobs: Sequence[Job]) -> None:
        """Jobs to start."""
        self._departures.add(jobs, self._calls.now())
        self._calls.wake()

    def adopt(self, jobs: Sequence[tuple[JobHandle, Collection[str]]]) -> None:
        """Jobs that an earlier kernel started, and what of each ended elsewhere."""
        for handle, settled in jobs:
            self._flights.add(handle, adopted=True, settled=settled)
        self._calls.wake()

    def seek(self, keys: Sequence[str]) -> None:
        """Keys to look up."""
        self._disowned.difference_update(keys)
        for key in keys:
            if not self._sending(key):
                self._lookups.setdefault(key, 0.0)
        self._calls.wake()

    def _found(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._lookups.pop(key, None)

    def _sending(self, key: str) -> bool:
        """Whether run() is about to answer for this task."""
        return key in self._departures.keys or key in self._asked

    def stop(self, keys: Sequence[str], unwanted: Container[str]) -> None:
        """Tasks to end until they are gone; of those that are unwanted, without a result, too."""
        self._stops.add(keys, unwanted)

    def end_strays(self, handles: Sequence[JobHandle]) -> None:
        """Listed jobs that belong to no live attempt."""
        self._strays.stop(handles)

    def fetch(self, wanted: Sequence[Wanted]) -> None:
        """Values to bring home."""
        self._fetches.add(wanted)

    def disown(self, dispatch_id: str) -> None:
        """Another kernel runs the dispatch; what would end with this process ends now."""
        self._departures.drop(dispatch_id)
        if not self._calls.capabilities.detached:
            self._disowned |= {key for key in self._asked if split_key(key)[0] == dispatch_id}
            self._strays.stop(self._flights.drop(dispatch_id))

    def let_go(self, keys: Sequence[str]) -> None:
        """Jobs whose outcome is stored."""
        self._found(keys)
        self._stops.drop(keys)
        self._flights.let_go(keys)
        self._calls.wake()

    def hurry(self) -> None:
        """Let a pause end as soon as another try does no harm."""
        if self._lifting is not None:
            self._lifting.cancel()
            self._lift_at(self._paused_at + FIRST_PAUSE)

    def begin_close(self) -> None:
        """No new calls."""
        self._calls.begin_close()

    # -- running ------------------------------------------------------------------------------

    async def _runner(self) -> None:
        wait = self._departures.wait(self._calls.now())
        if wait != 0.0:
            await self._calls.pause(wait)
            return
        await self._run_batch()

    def _wanted(self) -> list[Job]:
        """What goes out now: nothing that was cancelled until this moment."""
        report = LaneReport(self.name)
        wanted: list[Job] = []
        for job in self._departures.take():
            if job.tasks[0].cancel_requested:
                tell(report, job.key, ev.Deferred, "Cancelled before it was sent.")
            else:
                wanted.append(job)
        if report.events:
            self._calls.report(report)
        return self._departures.packed(wanted)

    async def _run_batch(self) -> None:
        calls = self._calls
        unanswered: dict[str, Job] = {}
        message = "The executor did not answer for this job."

        def begin() -> Any:
            # Between this and the plugin's first step nobody else has the lane's thread.
            jobs = self._wanted()
            unanswered.update((job.key, job) for job in jobs)
            self._asked = {task.key for job in jobs for task in job.tasks}
            return calls.executor.run(jobs) if jobs else _nothing()

        def take(outcome: Any) -> None:
            key = getattr(outcome, "key", None)
            if key not in unanswered:
                raise PluginContractError(f"run() answered {outcome!r:.200}, unasked.")
            self._on_run(self._answers(), unanswered[key], outcome)
            self._asked.difference_update(t.key for t in unanswered.pop(key).tasks)

        try:
            await calls.stream("run", begin, take)
        except TransientError as error:
            held = LaneReport(self.name)
            for job in unanswered.values():
                _tell_all(self._answers(), job, ev.Stuck, sentence(error))
                _tell_all(held, job, ev.Deferred, sentence(error))
            unanswered.clear()
            calls.trouble(sentence(error))
            calls.later(held, error.retry_after or FIRST_WAIT)
        except AuthenticationError as error:
            for job in unanswered.values():
                self._refused_login(job, error)
            unanswered.clear()
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            message = sentence(error)
            calls.trouble(message, error)
        for job in unanswered.values():
            _tell_all(self._answers(), job, ev.Unsure, message)
        self._asked, self._disowned = set(), set()
        calls.changed = calls.now()
        calls.wake()

    def _answers(self) -> LaneReport:
        """What run() has answered. It leaves as soon as the plugin waits for anything, so that a
        handle is stored while the next job is sent, and before any news of its job."""
        if self._told is None:
            self._told = LaneReport(self.name)
            asyncio.get_running_loop().call_soon(self._tell_answers)
        return self._told

    def _tell_answers(self) -> None:
        told, self._told = self._told, None
        if told is not None and (told.events or told.gone):
            self._calls.report(told)

    def _on_run(self, report: LaneReport, job: Job, outcome: Any) -> None:
        if isinstance(outcome, Accepted):
            keys = [task.key for task in job.tasks]
            document = checked_handle(outcome.handle, job.key, keys)
            self._accepted(report, keys, outcome.handle, document)
        elif isinstance(outcome, Rejected):
            reason = checked_reason(outcome.reason, outcome.message)
            if outcome.reason is Reason.AUTH:
                self._refused_login(job, AuthenticationError(reason[1]))
                return
            report.gone.update(outcome.gone)
            for task in job.tasks:
                if outcome.gone and outcome.gone.isdisjoint(task.held):
                    tell(report, task.key, ev.Deferred, reason[1])  # only others of its pack fail
                elif self._resends.pop(task.key, None) is None:
                    tell(report, task.key, ev.Refused, *reason)
                else:
                    self._refused_again(report, task.key, *reason)
        elif isinstance(outcome, Deferred):
            held = LaneReport(self.name)
            _tell_all(report, job, ev.Stuck, str(outcome.message))  # people see what it waits for
            _tell_all(held, job, ev.Deferred, str(outcome.message))
            self._calls.later(held, outcome.delay or FIRST_WAIT)
        elif isinstance(outcome, Unknown):
            _tell_all(report, job, ev.Unsure, str(outcome.message))
        else:
            raise PluginContractError(f"run() yielded {outcome!r:.200}, which is no outcome.")

    def _refused_login(self, job: Job, error: AuthenticationError) -> None:
        """The job was not sent; no other is, until another try of the credentials is due."""
        calls = self._calls
        text = pausing(error)
        calls.complain(text)
        calls.report(LaneReport(self.name, paused=text))
        if self._lifting is None:
            self._paused_at = calls.now()
            self._lift_at(self._paused_at + self._rest)
            self._rest = min(2 * self._rest, LAST_PAUSE)
        held = LaneReport(self.name)
        for task in job.tasks:
            # What was sent before would come straight back, paused or not.
            again = task.key in self._resends
            tell(held if again else self._answers(), task.key, ev.Deferred, text)
        calls.later(held, min(self._rest, LAST_WAIT))

    def _lift_at(self, moment: float) -> None:
        wait = max(0.0, moment - self._calls.now())
        self._lifting = asyncio.get_running_loop().call_later(wait, self._lift)

    def _lift(self) -> None:
        self._lifting = None
        self._calls.report(LaneReport(self.name, paused=""))

    def _refused_again(self, report: LaneReport, key: str, reason: Reason, message: str) -> None:
        """Of a job sent more than once the backend refuses one request; what of the others?"""
        can = self._calls.capabilities
        if can.claims:
            self._flights.doubt(key, reason, message)
        elif can.find:
            tell(report, key, ev.Refused, reason, message)
        else:
            text = f"It may have started, although a second request was refused: {message}"
            tell(report, key, ev.Unanswerable, text)

    def _accepted(
        self,
        report: LaneReport,
        keys: Sequence[str],
        handle: JobHandle,
        document: dict[str, Any],
        *,
        found: bool = False,
    ) -> None:
        self._rest = FIRST_PAUSE
        for key in keys:
            self._resends.pop(key, None)
        if not self._disowned.isdisjoint(keys):
            self._strays.stop([handle])
        elif not self._calls.capabilities.detached and len(handle.tasks) <= 1:
            # A local job: its handle is news only if it lasts; short ones end first.
            self._flights.add(handle, untold=document, adopted=found)
        else:
            self._flights.add(handle, keys)
            for key in keys:
                tell(report, key, ev.Accepted, document)

    # -- looking up ---------------------------------------------------------------------------

    async def _seeker(self) -> None:
        calls = self._calls
        if not self._lookups:
            await calls.pause(None)
            return
        told = LaneReport(self.name)
        keys = list(self._lookups)
        if not calls.capabilities.find:
            self._lookups.clear()
            for key in keys:
                if calls.capabilities.idempotent:
                    self._not_found(told, key)
                else:
                    text = f"Executor {self.name} cannot say whether the task ever started."
                    tell(told, key, ev.Unanswerable, text)
            calls.report(told)
            return
        found = await calls.timed("find", lambda: calls.executor.find(keys))
        if not isinstance(found, Mapping):
            raise PluginContractError(f"find() returned {found!r:.200}, not a mapping.")
        now = self._calls.now()
        for key in keys:
            if key not in self._lookups:
                continue  # it was found on another way, and may be over by now
            handles = list(found.get(key) or ())
            if handles:
                document = checked_handle(handles[0], key)
                self._lookups.pop(key, None)
                self._accepted(told, [key], handles[0], document, found=True)
                await self._stop_copies(handles[1:])
                continue
            since = self._lookups.get(key) or now
            self._lookups[key] = since
            # A listing may lag behind a submission: only a later second look is certain.
            if now - since >= calls.limits.find_grace:
                self._lookups.pop(key, None)
                self._not_found(told, key)
        if told.events:
            calls.report(told)
        if self._lookups:
            await calls.pause(max(0.05, calls.limits.find_grace / 3))

    def _not_found(self, told: LaneReport, key: str) -> None:
        """The backend never got it. A job that is sent over and over is sent ever more slowly."""
        can = self._calls.capabilities
        if not can.idempotent:
            tell(told, key, ev.NotFound, False)
            return
        certain = can.find and not can.claims  # workers that claim are there for late requests
        sent = self._resends.get(key, 0)
        self._resends[key] = sent + 1
        held = LaneReport(self.name) if sent else told
        tell(held, key, ev.NotFound, True, certain)
        if sent:
            self._calls.later(held, min(FIRST_WAIT * 2 ** min(sent - 1, 10), LAST_WAIT))

    async def _stop_copies(self, copies: Sequence[JobHandle]) -> None:
        calls = self._calls
        if not copies or calls.capabilities.idempotent:
            return  # copies of such a job end by themselves
        _LOG.warning("Executor %s: %d copies of one job are cancelled.", self.name, len(copies))
        try:
            await calls.timed("cancel", lambda: calls.executor.cancel(list(copies), force=True))
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            _LOG.warning("Executor %s: copies go on: %s", self.name, sentence(error))
