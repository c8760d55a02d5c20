"""Ending jobs: asked again and again until they are gone, or kept from starting at all.

A request that is still on its way cannot be cancelled. Where the backend's workers claim a key
before they run it, the lane takes the claim itself, and whoever comes later finds it taken.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from chelate.contracts.executor import JobHandle
from chelate.errors import TransientError
from chelate.kernel import events as ev
from chelate.kernel.lanes.calls import LaneCalls
from chelate.kernel.lanes.flights import Flights
from chelate.kernel.lanes.report import LaneReport, sentence
from chelate.kernel.lanes.roster import tell

__all__ = ["FIRST_WAIT", "LAST_WAIT", "Stops"]

FIRST_WAIT = 1.0
LAST_WAIT = 60.0
_PATIENCE = 3  # requests after which a task goes without an outcome that cannot be fetched


@dataclass(slots=True)
class _Stop:
    """A cancel that goes on until the job is gone. Moments are monotonic seconds."""

    first: float = 0.0  # when its job was asked
    tries: int = 0
    due: float = 0.0
    known: bool = False  # there was a job once
    unwanted: bool = False  # by a user, and not only because its time was up


class Stops:
    """Tasks that shall end.

    Args:
        calls: the way to the executor.
        flights: the accepted jobs.
        sending: whether ``run`` is about to answer for a task.
    """

    def __init__(self, calls: LaneCalls, flights: Flights, sending: Callable[[str], bool]) -> None:
        self._calls = calls
        self._flights = flights
        self._sending = sending
        self._stops: dict[str, _Stop] = {}
        self._failures: dict[str, str] = {}  # of the current round, by task

    def add(self, keys: Sequence[str], unwanted: Container[str]) -> None:
        """Tasks to end, whatever it takes, and those of which nobody wants a result."""
        for key in keys:
            self._stops.setdefault(key, _Stop()).unwanted |= key in unwanted
        self._calls.wake()

    def drop(self, keys: Sequence[str]) -> None:
        """These have ended."""
        for key in keys:
            self._stops.pop(key, None)

    async def part(self) -> None:
        """One round: ask for what is due, wait for the next."""
        now = self._calls.now()
        await self._unaccepted(now)
        unwanted = {key: stop for key, stop in self._stops.items() if stop.unwanted}
        patient = [key for key, stop in unwanted.items() if stop.tries >= _PATIENCE]
        self._flights.give_up(patient, unwanted)
        due = {key: s for key, s in self._stops.items() if s.due <= now and self._flights.get(key)}
        if not due:
            waits = [stop.due - now for stop in self._stops.values() if stop.due > now]
            await self._calls.pause(max(0.01, min(waits)) if waits else None)
            return
        grace = self._calls.limits.cancel_grace
        gentle: list[str] = []
        forced: list[str] = []
        for key, stop in due.items():
            if not stop.first:
                stop.first, stop.tries = now, 0
            harsh = stop.tries > 0 and now >= stop.first + grace
            (forced if harsh else gentle).append(key)
            self._put_off(stop, now)
            if not harsh:
                stop.due = min(stop.due, stop.first + max(grace, 0.01))
        self._calls.changed = now
        asks = [
            (self._flights.split(keys, self._stops), force)
            for keys, force in ((gentle, False), (forced, True))
        ]
        for (whole, parts), force in asks:
            await self._cancel(whole, force=force)
            for handle, some in parts:
                await self._cancel_part(handle, some, force=force)
        self._tell(due)

    @staticmethod
    def _put_off(stop: _Stop, now: float) -> None:
        stop.due = now + min(FIRST_WAIT * 2 ** min(stop.tries, 10), LAST_WAIT)
        stop.tries += 1

    def _tell(self, asked: Mapping[str, _Stop]) -> None:
        """Say what a cancel waits for, once it lasts or fails."""
        told = LaneReport(self._calls.name)
        failures, self._failures = self._failures, {}
        for key, stop in asked.items():
            failure = failures.get(key)
            if error := self._flights.unfetched(key):
                failure = f"it has ended, but its outcome cannot be fetched: {error.rstrip('.')}"
            if failure is None and (stop.tries < 2 or self._flights.get(key) is None):
                continue
            text = (
                f"Executor {self._calls.name} was asked {stop.tries} times to stop this task; "
                f"{failure or 'it still shows the job'}. It is asked again until the job is gone."
            )
            tell(told, key, ev.Stuck, text, stop.tries)
        if told.events:
            self._calls.report(told)

    # -- before there is a job --------------------------------------------------------------------

    async def _unaccepted(self, now: float) -> None:
        """Tasks without a job that is known: they must never start, or nobody can tell."""
        can = self._calls.capabilities
        told = LaneReport(self._calls.name)
        claims: list[str] = []
        for key, stop in list(self._stops.items()):
            if self._flights.get(key) is not None:
                stop.known = True
                continue
            if self._sending(key):
                continue
            if stop.known or self._flights.over(key):
                del self._stops[key]
                continue
            if can.claims:
                if stop.due <= now:
                    claims.append(key)
                continue
            del self._stops[key]  # when a look-up finds it, it comes again
            if not can.find:
                text = f"Executor {self._calls.name} cannot say whether the task ever started."
                tell(told, key, ev.Unanswerable, text)
        if told.events:
            self._calls.report(told)
        if not claims:
            return
        for key in claims:
            self._put_off(self._stops[key], now)
        try:
            await self.forbid(claims)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            self._failed(claims, error)
            self._tell({key: self._stops[key] for key in claims if key in self._stops})

    async def forbid(self, keys: Sequence[str]) -> None:
        """Keep tasks from starting; those that have a job all the same are followed."""
        held = await self._flights.take_claims(keys)
        told = LaneReport(self._calls.name)
        for key in keys:
            if key not in self._stops:
                continue  # its end was stored while the answer was on its way
            handle = held.get(key)
            if handle is None:
                self._stops.pop(key, None)
                tell(told, key, ev.Forbidden)
            else:
                self._flights.follow(told, key, handle)
        if told.events:
            self._calls.report(told)

    # -- asking -----------------------------------------------------------------------------------

    def _failed(self, keys: Sequence[str], error: Exception) -> None:
        text = sentence(error)
        self._calls.trouble(f"A cancel failed: {text}", error)
        self._failures.update(dict.fromkeys(keys, f"the last answer was: {text.rstrip('.')}"))

    async def _cancel_part(self, handle: JobHandle, keys: list[str], *, force: bool) -> None:
        """Some tasks of a packed job; without the executor's help they end with the job."""
        calls = self._calls
        if not calls.capabilities.cancel_task:
            return
        try:
            await calls.timed(
                "cancel_tasks", lambda: calls.executor.cancel_tasks(handle, keys, force=force)
            )
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            self._failed(keys, error)

    async def _cancel(self, handles: list[JobHandle], *, force: bool) -> None:
        """Ask once; after a failure one by one, so that one bad job keeps no other alive.

        Where nobody answered, single requests would get no answer either.
        """
        calls = self._calls
        if not handles:
            return
        try:
            await calls.timed("cancel", lambda: calls.executor.cancel(handles, force=force))
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            self._failed(
                [key for handle in handles for key in handle.tasks or (handle.key,)], error
            )
            if len(handles) > 1 and not isinstance(error, (TimeoutError, TransientError)):
                for handle in handles:
                    await self._cancel([handle], force=force)
