"""What other processes have asked for, and what dead ones have left behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from chelate.contracts.store import CancelRequest, ResultStore
from chelate.kernel import events as ev
from chelate.kernel.live import LiveDispatch
from chelate.kernel.world import World
from chelate.model import FINAL, NodeStatus

__all__ = ["Outside"]

_ADOPT_EVERY = 1.0


class Outside:
    """Looks into the store now and then, and at once after :meth:`hurry`."""

    def __init__(self, store: ResultStore, interval: float, world: World) -> None:
        self._store = store
        self._world = world
        self._interval = interval
        self._counter = -1
        self._adopt_due = 0.0
        self._unsure: list[str] = []  # adopted by a call whose answer was lost, perhaps
        self.due = 0.0  # monotonic moment of the next look

    def hurry(self) -> None:
        """Look at the next opportunity."""
        self.due = self._adopt_due = 0.0

    def look_due(self) -> bool:
        """Whether it is time to look; the next time is set."""
        now = self._world.monotonic()
        if now < self.due:
            return False
        self.due = now + self._interval
        return True

    def requests(self, kernel_id: str, seen: int) -> list[CancelRequest]:
        """New cancel requests, when anything has been written since the last look."""
        counter = self._store.change_counter()
        if counter == self._counter and self._adopt_due:
            return []
        found = self._store.cancel_requests(kernel_id, seen)
        self._counter = counter
        return found

    def adopted(self, kernel_id: str) -> list[str]:
        """Dispatches taken over from kernels that are gone; once a second at the most."""
        now = self._world.monotonic()
        if now < self._adopt_due:
            return []
        self._adopt_due = now + _ADOPT_EVERY
        mine = [name for name in self._unsure if self._store.dispatch(name).owner == kernel_id]
        orphans = self._store.orphans()
        self._unsure = [*mine, *orphans]
        adopted = self._store.adopt(kernel_id, orphans) if orphans else []
        self._unsure = []
        return [*mine, *adopted]

    def ended_children(
        self, lives: Mapping[str, LiveDispatch]
    ) -> Iterator[tuple[str, ev.ChildEnded]]:
        """Ends of sub-dispatches that another kernel ran, or that ended before a restart."""
        for dispatch_id, live in lives.items():
            counts = live.machine.counts
            if not counts[NodeStatus.EXPANDED] and not counts[NodeStatus.CANCELLING]:
                continue
            waiting: Iterable[tuple[int, str]] = [
                (record.node_id, record.child_id)
                for record in live.machine.records.values()
                if record.child_id is not None
                and record.status not in FINAL
                and record.child_id not in lives
            ]
            for node_id, child_id in waiting:
                child = self._store.dispatch(child_id)
                if child.status.final:
                    yield (
                        dispatch_id,
                        ev.ChildEnded(node_id, child_id, child.status, child.result, child.error),
                    )
