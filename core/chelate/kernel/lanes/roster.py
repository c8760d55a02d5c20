"""Which jobs of a lane have been accepted, and which of their tasks are expected of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container, Sequence
from typing import Any

from chelate.contracts.executor import JobHandle
from chelate.kernel import events as ev
from chelate.kernel.keys import split_key
from chelate.kernel.lanes.calls import LaneCalls
from chelate.kernel.lanes.carriers import Carriers, Flight, name_of
from chelate.kernel.lanes.report import LaneReport

__all__ = ["Roster", "tell"]

_LASTS = 0.05  # seconds


def tell(report: LaneReport, key: str, kind: Callable[..., ev.Event], *values: Any) -> None:
    """Add an event about the attempt ``key`` to a report."""
    dispatch_id, node, attempt = split_key(key)
    report.events.append((dispatch_id, kind(node, attempt, *values)))


class Roster:
    """Accepted jobs by name; ``known`` is told the tasks of each."""

    def __init__(self, calls: LaneCalls, known: Callable[[Sequence[str]], None]) -> None:
        self._calls = calls
        self._known = known
        self._flights: dict[str, Flight] = {}
        self._ended: dict[str, JobHandle] = {}
        self._releases: list[str] = []
        self._untold: dict[str, dict[str, Any]] = {}  # handles that the engine has not been told
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

    def unfetched(self, key: str) -> str:
        """Why the task's outcome cannot be fetched, although its job has ended; "" is usual."""
        flight = self._flights.get(self._carriers.of(key))
        return "" if flight is None else flight.error

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
