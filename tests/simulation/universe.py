"""Virtual time, one thread, and a seed that chooses what happens next.

Actors are kernels' engines and lanes; each lane is a real asyncio event loop in all but its clock
and its selector. The agenda holds everything else: deliveries, ends of jobs, clients, faults.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

__all__ = ["Crash", "SimLoop", "Universe", "Violation", "unfinished"]


class Violation(AssertionError):
    """A broken promise of the kernel."""


class Crash(BaseException):
    """The process dies here."""


class Universe:
    """The clock and the schedule. ``trace`` holds what happened, when asked for."""

    def __init__(self, seed: int, *, tracing: bool = False) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.steps = 0
        self.actors: list[Any] = []
        self.violations: list[str] = []
        self.trace: list[str] | None = [] if tracing else None
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.calm = False  # no more faults

    def log(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now - 1000:9.3f}  {text}")

    def blame(self, text: str) -> None:
        self.log(f"VIOLATION {text}")
        self.violations.append(text)

    def chance(self, probability: float) -> bool:
        """Whether a fault strikes; never after the calm."""
        return not self.calm and self.random.random() < probability

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._count), what))

    @property
    def pending(self) -> int:
        return len(self._agenda)

    # -- running ------------------------------------------------------------------------------

    def step(self) -> None:
        """Let one of those act that can; else go on to the next moment at which one can."""
        self.steps += 1
        now = self.now
        ready = [actor for actor in self.actors if actor.due() <= now]
        if self._agenda and self._agenda[0][0] <= now:
            ready.append(self)
        if not ready:
            moments = [actor.due() for actor in self.actors]
            if self._agenda:
                moments.append(self._agenda[0][0])
            self.now = max(now, min(moments))
            return
        actor = ready[0] if len(ready) == 1 else self.random.choice(ready)
        if actor is self:
            heapq.heappop(self._agenda)[2]()
        else:
            actor.act()

    def run(self, until: Callable[[], bool], *, seconds: float, steps: int) -> bool:
        """Go on until something is true; False when time or steps run out before."""
        end, last = self.now + seconds, self.steps + steps
        while not until():
            if self.now > end or self.steps > last:
                return False
            self.step()
        return True


def _let_go(generator: Any) -> None:
    """A killed process cleans nothing up."""


@contextmanager
def unfinished() -> Iterator[None]:
    """Asynchronous generators that are dropped meanwhile run no further."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=None, finalizer=_let_go)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*hooks)


class SimLoop(asyncio.AbstractEventLoop):
    """What a lane needs of an event loop, with the universe's clock. Callbacks keep their order."""

    def __init__(self, universe: Universe, name: str, owner: Any) -> None:
        self.universe = universe
        self.name = name
        self.owner = owner  # the process; a dead or stopped one runs nothing
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = itertools.count()
        self._tasks: list[asyncio.Task[Any]] = []
        self.closed = False

    def due(self) -> float:
        if self.closed:
            return float("inf")
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if self._ready:
            return self.owner.awake
        return max(self.owner.awake, timers[0][0]) if timers else float("inf")

    def act(self) -> None:
        while self._timers and self._timers[0][0] <= self.universe.now:
            self._ready.append(heapq.heappop(self._timers)[2])
        handle = self._ready.popleft()
        if handle.cancelled():
            return
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(before)

    def end(self) -> None:
        """As a killed process ends: nothing of it runs any more."""
        self.closed = True
        self._ready.clear()
        self._timers.clear()
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False
                # What cleans up behind it is not to be trusted: the process is gone.
                with suppress(BaseException):
                    task.get_coro().close()

    # -- the interface of an event loop ---------------------------------------------------------

    def time(self) -> float:
        return self.universe.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.closed

    def call_soon(self, callback, *args, context=None):  # type: ignore[no-untyped-def, override]
        handle = asyncio.Handle(callback, args, self, context)
        if not self.closed:
            self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(self, when, callback, *args, context=None):  # type: ignore[no-untyped-def, override]
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self.closed:
            heapq.heappush(self._timers, (when, next(self._count), handle))
        return handle

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[no-untyped-def, override]
        return self.call_at(self.universe.now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when their time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        task = asyncio.Task(coro, loop=self, **options)
        self._tasks.append(task)
        if len(self._tasks) > 256:
            self._tasks = [task for task in self._tasks if not task.done()]
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.closed:
            self.universe.blame(f"unhandled in {self.name}: {context}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)
