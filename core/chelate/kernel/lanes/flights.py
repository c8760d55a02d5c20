"""The jobs of a lane between acceptance and release: polled, collected, let go.

Silence is no news: a job counts as lost only when several successful polls in a row did not see
it for longer than the executor's grace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from chelate.contracts.executor import JobHandle, JobState, Outcome, PollReport
from chelate.errors import PluginContractError
from chelate.kernel import events as ev
from chelate.kernel.lanes.calls import LaneCalls
from chelate.kernel.lanes.carriers import Flight
from chelate.kernel.lanes.checks import checked_handle, checked_outcome, checked_report, is_seen
from chelate.kernel.lanes.report import LaneReport, sentence
from chelate.kernel.lanes.roster import Roster, tell
from chelate.model import Reason

__all__ = ["Flights"]

_ABSENT_POLLS = 3


class Flights(Roster):
    """Looks at the accepted jobs, and brings what they leave."""

    def __init__(self, calls: LaneCalls, known: Callable[[Sequence[str]], None]) -> None:
        super().__init__(calls, known)
        self._doubts: dict[str, tuple[Reason, str]] = {}  # refused, but sent before

    # -- polling --------------------------------------------------------------------------------

    async def part(self) -> None:
        """One round: release what is stored, look at everything, wait for the next round."""
        calls, limits = self._calls, self._calls.limits
        await self._release()
        if not self._flights and not self._doubts:
            await calls.pause(None)
            return
        await self._settle()
        for batch in self._batches():
            handles = [flight.handle for flight in batch]
            answer = await calls.timed("poll", partial(calls.executor.poll, handles))
            await self._digest(batch, checked_report(answer))
        if calls.capabilities.push and limits.poll_min <= 0:
            # poll() itself waits; give way once, so that a plugin that does not cannot spin us.
            await asyncio.sleep(0)
            return
        polled = self._calls.now()
        while not calls.closing:
            # Counted anew after every wake: a job that has just come must not wait for the
            # long interval of a lane where nothing happened.
            quiet = (polled - calls.changed) / 2
            wakes = polled + min(limits.poll_max, max(limits.poll_min, quiet))
            left = wakes - self._calls.now()
            if left <= 0:
                break
            await calls.pause(left)
            await self._release()

    def _batches(self) -> Iterator[list[Flight]]:
        """What each poll asks for: no key twice, since its answer goes by keys."""
        size = self._calls.limits.poll_batch
        flights = [flight for flight in self._flights.values() if flight.lost is None]
        plain = [flight for flight in flights if flight.name == flight.handle.key]
        for start in range(0, len(plain), size):
            yield plain[start : start + size]
        if len(plain) < len(flights):
            yield from ([flight] for flight in flights if flight.name != flight.handle.key)

    async def _release(self) -> None:
        keys, self._releases = self._releases, []
        handles = [handle for key in keys if (handle := self._ended.pop(key, None))]
        if not handles:
            return
        calls = self._calls
        try:
            await calls.timed("release", lambda: calls.executor.release(handles))
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            calls.complain(f"it did not clean up: {sentence(error)}")

    async def _digest(self, flights: list[Flight], report: PollReport) -> None:
        told = LaneReport(self._calls.name)
        if report.errors:
            self._calls.trouble(str(report.errors[0]))
        else:
            self._calls.fine()
        collect: list[Flight] = []
        final: set[str] = set()  # those of which nothing more will come
        now = self._calls.now()
        for flight in flights:
            handle = flight.handle
            if self._flights.get(flight.name) is not flight:
                continue
            seen = report.seen.get(handle.key)
            if seen is not None and seen is flight.last:
                flight.absent = 0
                continue  # nothing new: most jobs, most of the time
            if handle.key not in report.seen:
                if handle.key in report.covered:
                    self._absent(told, flight, now)
                continue
            if seen is None or not is_seen(seen):
                self._calls.trouble(f"poll() said {seen!r:.200} of a job: no observation.")
                continue
            flight.absent = 0
            if seen.state is not JobState.ENDED and not seen.ended:
                flight.last, flight.error = seen, ""
            if seen.state is JobState.RUNNING and not flight.running:
                flight.running = True
                if (document := self._untold.pop(handle.key, None)) is not None:
                    tell(told, handle.key, ev.Accepted, document)
                for key in flight.keys:
                    tell(told, key, ev.Started, seen.started_at or self._calls.world.time())
            if seen.state is JobState.ENDED:
                collect.append(flight)
                final.add(flight.name)
            elif flight.left and flight.left & seen.ended:
                collect.append(flight)
                if seen.state is JobState.KILLED:
                    final.add(flight.name)
            elif seen.state is JobState.KILLED:
                reason = seen.reason or Reason.UNKNOWN
                if flight.adopted and not self._calls.capabilities.detached:
                    reason = Reason.LOST  # its kernel ended it, not a user
                self._lost(told, flight, reason, str(seen.message))
        if told.events or collect:
            self._calls.changed = now
        try:
            if collect:
                await self._collect(told, collect, final)
        finally:
            if told.events or told.outcomes:
                self._calls.report(told)

    # -- claims --------------------------------------------------------------------------------

    async def take_claims(self, keys: Sequence[str]) -> dict[str, JobHandle]:
        """Keep tasks from starting; the jobs of those that hold their claims already.

        Raises:
            PluginContractError: the answer is no mapping of handles.
        """
        calls = self._calls
        held = await calls.timed("forbid", lambda: calls.executor.forbid(list(keys)))
        if not isinstance(held, Mapping):
            raise PluginContractError(f"forbid() returned {held!r:.200}, not a mapping.")
        found = {key: held[key] for key in keys if key in held}
        for key, handle in found.items():
            checked_handle(handle, key)
        return found

    def follow(self, told: LaneReport, key: str, handle: JobHandle) -> None:
        """Another job than the one that was known holds the task's claim."""
        if self.get(key) is None:
            self._carriers.leave(key)
        self.add(handle, [key])
        tell(told, key, ev.Accepted, handle.to_json())

    # -- losing ---------------------------------------------------------------------------------

    def _absent(self, told: LaneReport, flight: Flight, now: float) -> None:
        flight.absent += 1
        if flight.absent == 1:
            flight.absent_since = now
        grace = self._calls.limits.absent_grace
        if grace > 0 and (flight.absent < _ABSENT_POLLS or now - flight.absent_since < grace):
            return
        if flight.adopted and not self._calls.capabilities.detached:
            message = "The process that ran this task is gone."
        else:
            message = "The backend no longer knows this job, and it left no result."
        self._lost(told, flight, Reason.LOST, message)

    def _lost(self, told: LaneReport, flight: Flight, reason: Reason, message: str) -> None:
        """The job is gone. What never ran may have a twin on its way, whose claim is taken first,
        so that neither a cancel nor another attempt meets it. Of a packed job that ran it is not
        known which tasks did."""
        if flight.lost is not None:
            return  # known, and about to be settled
        ran = flight.running and flight.left is None
        if self._calls.capabilities.claims and not ran:
            flight.lost = (reason, message)
        else:
            self._end(told, flight, reason, message)

    def _end(self, told: LaneReport, flight: Flight, reason: Reason, message: str) -> None:
        handle = flight.handle
        del self._flights[flight.name]
        self._untold.pop(handle.key, None)
        self._ended[flight.name] = handle
        told.lost += flight.keys
        # The death of the kernel took the job with it; that is nobody's failure.
        detached = self._calls.capabilities.detached
        counted = not (flight.adopted and not detached and reason is Reason.LOST)
        for key in flight.keys:
            tell(told, key, ev.Gone, reason, message, counted)

    def doubt(self, key: str, reason: Reason, message: str) -> None:
        """A request for the task was refused, and another may be on its way."""
        self._doubts[key] = (reason, message)
        self._calls.wake()

    async def _settle(self) -> None:
        """Take the claims of jobs that are gone or refused, and follow whoever holds one."""
        lost = [flight for flight in self._flights.values() if flight.lost is not None]
        doubts = dict(self._doubts)
        if not lost and not doubts:
            return
        try:
            asked = [*doubts, *(key for flight in lost for key in flight.keys)]
            held = await self.take_claims(asked)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            self._calls.trouble(sentence(error))
            return
        told = LaneReport(self._calls.name)
        for key, refusal in doubts.items():
            del self._doubts[key]
            if key in held:
                self.follow(told, key, held[key])
            else:
                tell(told, key, ev.Refused, *refusal)
        for flight in lost:
            if self._flights.get(flight.name) is not flight or flight.lost is None:
                continue  # it was dropped meanwhile
            others = {
                key: handle
                for key in flight.keys
                if (handle := held.get(key)) and handle.native_id != flight.handle.native_id
            }
            if flight.left is None and others:
                del self._flights[flight.name]
            else:
                if flight.left is not None:
                    flight.left -= others.keys()
                self._end(told, flight, *flight.lost)
            for key, handle in others.items():
                self.follow(told, key, handle)
        self._calls.changed = self._calls.now()
        self._calls.report(told)

    # -- collecting -----------------------------------------------------------------------------

    async def _collect(self, told: LaneReport, asked: list[Flight], final: set[str]) -> None:
        """Fetch the outcomes of jobs that ended, and of the ended tasks of packed ones."""
        calls = self._calls
        handles = [flight.handle for flight in asked]
        wanted = {key: flight for flight in asked for key in flight.keys}
        known = {key for handle in handles for key in handle.tasks}
        complete = False

        def take(outcome: Any) -> None:
            key = outcome.key if isinstance(outcome, Outcome) else None
            if key not in wanted:
                if key in known:
                    return  # brought before, with others of its job
                raise PluginContractError(f"collect() yielded {outcome!r:.200}.")
            carrier = wanted.pop(key)
            if carrier.left is not None:
                carrier.left.discard(key)
                carrier.brought.add(key)
            told.outcomes.append(checked_outcome(outcome))
            if (document := self._untold.pop(outcome.key, None)) is not None:
                told.handles[outcome.key] = document
            elif outcome.held is not None:
                told.handles[outcome.key] = carrier.handle.to_json()

        try:
            await calls.stream("collect", lambda: calls.executor.collect(handles), take)
            complete = True
        except Exception as error:  # a plugin may raise anything
            for flight in wanted.values():
                if flight.name in final:
                    flight.error_since = flight.error_since if flight.error else calls.now()
                    flight.error = sentence(error)
            raise
        finally:
            missing = {flight.name for flight in wanted.values()}
            # Others may have given up or dropped some of them meanwhile.
            for flight in [f for f in asked if self._flights.get(f.name) is f]:
                if flight.name not in missing and not flight.left:
                    del self._flights[flight.name]
                    self._ended[flight.name] = flight.handle
                elif complete and flight.name in final:
                    flight.error = ""
                    self._silent(told, flight)
            first = next((flight.name for flight in wanted.values()), "")
            if first in self._flights and not complete:
                # Whatever the plugin stumbled over comes last next time.
                self._flights[first] = self._flights.pop(first)

    def _silent(self, told: LaneReport, flight: Flight) -> None:
        now = self._calls.now()
        flight.silent += 1
        if flight.silent == 1:
            flight.silent_since = now
        grace = self._calls.limits.absent_grace
        if flight.silent >= _ABSENT_POLLS and now - flight.silent_since >= grace:
            message = "The job ended, but its executor brought no outcome."
            self._lost(told, flight, Reason.RESULT_MISSING, message)

    def give_up(self, keys: Sequence[str], stops: Container[str]) -> None:
        """Tasks that nobody wants any more and whose jobs have ended: whose outcome cannot be
        fetched for longer than an absent job is waited for, goes without. ``stops`` is as in
        :meth:`split`."""
        told = LaneReport(self._calls.name)
        since = self._calls.now() - self._calls.limits.absent_grace
        for key in keys:
            flight = self._flights.get(self._carriers.of(key))
            if flight and flight.error and flight.error_since <= since and flight.is_all(stops):
                message = f"The job ended, but its outcome cannot be fetched: {flight.error}"
                self._lost(told, flight, Reason.RESULT_MISSING, message)
        if told.events:
            self._calls.report(told)
