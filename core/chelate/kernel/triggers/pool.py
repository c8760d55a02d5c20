"""A few daemon threads for short work, so that work which hangs never keeps a process alive."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["Pool"]


class Pool:
    """At most ``size`` threads, each made when there is work and no idle one."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._threads = 0
        self._idle = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` soon; it must not raise."""
        with self._guard:
            if self._idle:
                self._idle -= 1
            elif self._threads < self._size:
                self._threads += 1
                threading.Thread(
                    target=self._run, name=f"{self._name}-{self._threads}", daemon=True
                ).start()
            self._work.put(work)

    def close(self) -> None:
        """Let the threads end once they are idle."""
        with self._guard:
            for _ in range(self._threads):
                self._work.put(None)
            self._threads = self._size

    def _run(self) -> None:
        while True:
            work = self._work.get()
            if work is None:
                return
            work()
            with self._guard:
                if self._work.empty():
                    self._idle += 1
