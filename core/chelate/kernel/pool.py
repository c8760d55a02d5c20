"""A few daemon threads for short work, so that work which hangs never keeps a process alive."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["Helpers", "Pool"]

_HELPERS = 32


class Pool:
    """At most ``size`` threads, each made when there is work and no idle one."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._work: queue.SimpleQueue[Callable[[], bool | None] | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def submit(self, work: Callable[[], bool | None]) -> None:
        """Run ``work`` soon; it must not raise. One that gives True ends its thread, for which
        another had come by :meth:`grow`."""
        with self._guard:
            if self._closed:
                self._start(work)
                return
            if self._idle:
                self._idle -= 1
            elif self._threads < self._size:
                self._start(self._run)
            self._work.put(work)

    def grow(self) -> None:
        """One thread more from now on, because one of them hangs."""
        with self._guard:
            if not self._closed:
                self._size += 1
                self._start(self._run)

    def _start(self, target: Callable[[], Any]) -> None:
        self._threads += 1
        name = f"{self._name}-{self._threads}"
        threading.Thread(target=target, name=name, daemon=True).start()

    def close(self) -> None:
        """Let the threads end once they are idle. Work that comes later has one each."""
        with self._guard:
            if not self._closed:
                self._closed = True
                for _ in range(self._threads):
                    self._work.put(None)

    def _run(self) -> None:
        while True:
            work = self._work.get()
            if work is None:
                return
            over = work()
            with self._guard:
                if over:
                    self._threads -= 1
                    self._size -= 1
                    return
                if self._work.empty():
                    self._idle += 1


class Helpers(ThreadPoolExecutor):
    """Where an event loop runs what ``asyncio.to_thread`` is given, in threads of a :class:`Pool`.

    Python waits for the threads of its own executors when the process ends; a plugin's call that
    hangs would keep it for ever.
    """

    def __init__(self, name: str) -> None:
        super().__init__(_HELPERS)
        self._pool = Pool(name, _HELPERS)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See :meth:`concurrent.futures.Executor.submit`."""
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                answer = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - whoever waits is told
                future.set_exception(error)
            else:
                future.set_result(answer)

        self._pool.submit(work)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """The threads end once they are idle; nobody waits for them."""
        self._pool.close()
