"""Which dispatches this kernel runs, for the threads that wait for them."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from chelate.errors import MachineError

__all__ = ["Waiters"]


class Waiters:
    """Thread-safe. The engine tells, clients wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[str] = set()
        self._broken: dict[str, str] = {}
        self._stopped = False

    def begin(self, dispatch_id: str) -> None:
        """The dispatch runs here from now on."""
        with self._changed:
            self._running.add(dispatch_id)

    def end(self, dispatch_ids: Iterable[str]) -> None:
        """These have ended, or are another kernel's now."""
        with self._changed:
            self._running.difference_update(dispatch_ids)
            self._changed.notify_all()

    def break_off(self, dispatch_id: str, why: str) -> None:
        """The dispatch met a defect and is set aside."""
        with self._changed:
            self._broken[dispatch_id] = why
            self._running.discard(dispatch_id)
            self._changed.notify_all()

    def stop(self) -> None:
        """Let everybody go."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def running(self) -> list[str]:
        """Ids of the dispatches that run here."""
        with self._changed:
            return sorted(self._running)

    def wait(self, dispatch_id: str, timeout: float | None) -> bool | None:
        """True when the dispatch has ended, False on time-out or stop, None if not ours.

        Raises:
            MachineError: it was set aside.
        """
        with self._changed:
            if dispatch_id not in self._running and dispatch_id not in self._broken:
                return None
            done = self._changed.wait_for(
                lambda: dispatch_id not in self._running or self._stopped, timeout
            )
            if dispatch_id in self._broken:
                raise MachineError(self._broken[dispatch_id])
            return done and not self._stopped
