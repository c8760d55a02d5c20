"""Rows that are not worth a write yet."""

from __future__ import annotations

from collections.abc import Callable, Container

from chelate.kernel.world import World
from chelate.model import NodeRecord, NodeStatus

__all__ = ["Passing"]

_PASSING = frozenset({NodeStatus.SUBMITTED, NodeStatus.RUNNING})
_AFTER = 0.1  # seconds


class Passing:
    """Leaves out rows that a crash would make worthless and that soon change again.

    That a local task was accepted or runs is stored only once it has lasted a moment: its handle
    dies with this process, and a short task would be written three times over.
    """

    def __init__(self, dies_with_us: Callable[[str | None], bool], world: World) -> None:
        self._world = world
        self._dies_with_us = dies_with_us
        self._held: dict[tuple[str, int], tuple[float, NodeRecord]] = {}

    def due(self) -> float | None:
        """The monotonic moment at which the oldest row has to be written."""
        for since, _ in self._held.values():
            return since + _AFTER
        return None

    def sift(self, changed: dict[str, dict[int, NodeRecord]], live: Container[str]) -> None:
        """Take passing rows out of ``changed`` and put those in that have lasted."""
        now = self._world.monotonic()
        ours: dict[str | None, bool] = {}
        held = self._held
        for dispatch_id, records in changed.items():
            passing = []
            for node_id, record in records.items():
                if record.status in _PASSING:
                    lane = record.executor
                    if lane not in ours:
                        ours[lane] = self._dies_with_us(lane)
                    if ours[lane]:
                        passing.append(node_id)
                        continue
                if held:
                    held.pop((dispatch_id, node_id), None)
            for node_id in passing:
                held.setdefault((dispatch_id, node_id), (now, records.pop(node_id)))
        while self._held:
            entry = next(iter(self._held))
            since, record = self._held[entry]
            if now < since + _AFTER:
                break
            del self._held[entry]
            if entry[0] in live:
                changed.setdefault(entry[0], {})[entry[1]] = record
        for dispatch_id in [key for key, records in changed.items() if not records]:
            del changed[dispatch_id]
