"""The jobs of a lane between acceptance and release: polled, collected, let go.

Silence is no news: a job counts as lost only when several successful polls in a row did not see
it for longer than the executor's grace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from chelate.contracts.executor import JobHandle, JobState, Outcome, PollReport
from chelate.errors import PluginContractError
from chelate.kernel import events as ev
from chelate.kernel.keys import split_key
from chelate.kernel.lanes.calls import LaneCalls
from chelate.kernel.lanes.carriers import Carriers, Flight, name_of
from chelate.kernel.lanes.checks import checked_handle, checked_outcome, checked_report, is_seen
from chelate.kernel.lanes.report import LaneReport, sentence
from chelate.model import Reason

__all__ = ["Flights", "tell"]

_LASTS = 0.05  # seconds
_ABSENT_POLLS = 3


def tell(report: LaneReport, key: str, kind: Callable[..., ev.Event], *values: Any) -> None:
    """Add an event about the attempt ``key`` to a report."""
    dispatch_id, node, attempt = split_key(key)
    report.events.append((dispatch_id, kind(node, attempt, *values)))


class Flights:
    """Accepted jobs by name; ``known`` is told the tasks of each."""

    def __init__(self, calls: LaneCalls, known: Callable[[Sequence[str]], None]) -> None:
        self._calls = calls
        self._known = known
        self._flights: dict[str, Flight] = {}
        self._ended: dict[str, JobHandle] = {}
        self._releases: list[str] = []
        self._untold: dict[str, dict[str, Any]] = {}  # handles that the engine has not been told
        self._doubts: dict[str, tuple[Reason, str]] = {}  # refused, but sent before
        self._carriers = Carriers()

    def add(
        self,
        handle: JobHandle,
        keys: Sequence[str] = (),
        *,
        adopted: bool = False,
        settled: Collection[str] = (),
        untold: dict[str, Any] | None = None,
    ) -> None:
        """Follow a job from now on.

        Args:
            handle: what it is known by.
            keys: its tasks that are expected of it, of which another job may bring some; () is all.
            adopted: an earlier kernel started it.
            settled: its tasks that have ended in another job.
            untold: the handle as JSON, to be told if the job lasts.
        """
        if untold is not None:
            if not self._untold:
                asyncio.get_running_loop().call_later(_LASTS, self._tell_handles)
            self._untold[handle.key] = untold
        self._known(keys or handle.tasks or (handle.key,))
        name = name_of(handle, self._flights, self._ended)
        flight = self._flights.get(name)
        if len(handle.tasks) > 1 or name != handle.key or handle.key in self._carriers:
            tasks = keys or handle.tasks or (handle.key,)
            # Also what it has brought before: the turn that took it in may not have been stored.
            free = [key for key in tasks if self._carriers.is_free(key, name)]
            new = [key for key in free if key not in settled and self.get(key) is None]
            if new:
                flight = flight or self._follow(Flight(handle, name, adopted))
                flight.left = {*(flight.left or ()), *new}
                flight.running, flight.last = False, None  # it is told anew that it runs
                self._carriers.take(name, handle, new, settled)
        elif flight is None:
            self._follow(Flight(handle, name, adopted))
        self._calls.changed = self._calls.now()
        self._calls.wake()

    def _follow(self, flight: Flight) -> Flight:
        self._ended.pop(flight.name, None)
        self._flights[flight.name] = flight
        return flight

    def _tell_handles(self) -> None:
        untold, self._untold = self._untold, {}
        told = LaneReport(self._calls.name)
        for key, document in untold.items():
            tell(told, key, ev.Accepted, document)
        if told.events:
            self._calls.report(told)

    def let_go(self, keys: Sequence[str]) -> None:
        """The outcomes of these tasks are stored."""
        self._releases += self._carriers.let_go(keys)

    def drop(self, dispatch_id: str) -> list[JobHandle]:
        """Follow the jobs of this dispatch no longer; their handles."""
        known = {name: flight.handle for name, flight in self._flights.items()} | self._ended
        dropped = {n: h for n, h in known.items() if split_key(h.key)[0] == dispatch_id}
        for name, handle in dropped.items():
            self._flights.pop(name, None)
            self._ended.pop(name, None)
            self._untold.pop(handle.key, None)
        return list(dropped.values())

    def get(self, key: str) -> JobHandle | None:
        """The handle of the job that carries this task, while the task is in flight."""
        flight = self._flights.get(self._carriers.of(key))
        if flight is None or (flight.left is not None and key not in flight.left):
            return None
        return flight.handle

    def over(self, key: str) -> bool:
        """Whether the task's outcome has been told and waits to be stored."""
        return self._carriers.of(key) in self._ended

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

    def unfetched(self, key: str) -> str:
        """Why the task's outcome cannot be fetched, although its job has ended; "" is usual."""
        flight = self._flights.get(self._carriers.of(key))
        return "" if flight is None else flight.error

    def give_up(self, keys: Sequence[str], stops: Container[str]) -> None:
        """Tasks that shall end and whose jobs have: whose outcome cannot be fetched for longer
        than an absent job is waited for, goes without. ``stops`` is as in :meth:`split`."""
        told = LaneReport(self._calls.name)
        since = self._calls.now() - self._calls.limits.absent_grace
        for key in keys:
            flight = self._flights.get(self._carriers.of(key))
            if flight and flight.error and flight.error_since <= since and flight.is_all(stops):
                message = f"The job ended, but its outcome cannot be fetched: {flight.error}"
                self._lost(told, flight, Reason.RESULT_MISSING, message)
        if told.events:
            self._calls.report(told)

    def split(
        self, keys: Sequence[str], stops: Container[str]
    ) -> tuple[list[JobHandle], list[tuple[JobHandle, list[str]]]]:
        """Jobs to cancel as a whole, and packed jobs with those of their tasks that shall end.

        ``stops`` are all the tasks that shall end: a packed job ends when nothing else is in it.
        """
        whole: dict[str, JobHandle] = {}
        parts: dict[str, list[str]] = {}
        for key in keys:
            job = self._carriers.of(key)
            flight = self._flights[job]
            if flight.is_all(stops):
                whole[job] = flight.handle
            else:
                parts.setdefault(job, []).append(key)
        return list(whole.values()), [
            (self._flights[job].handle, part) for job, part in parts.items()
        ]

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
                flight.last = seen
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
                self._lost(told, flight, seen.reason or Reason.UNKNOWN, str(seen.message))
        if told.events or collect:
            self._calls.changed = now
        try:
            if collect:
                await self._collect(told, collect, final)
        finally:
            if told.events or told.outcomes:
                self._calls.report(told)

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
        ran = flight.running and flight.left is None
        if self._calls.capabilities.claims and not ran and flight.lost is None:
            flight.lost = (reason, message)
            return
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
            assert flight.lost is not None
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
                self._lost(told, flight, *flight.lost)
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
                if flight.name not in missing:
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
