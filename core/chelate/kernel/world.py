"""What a kernel lives on: a clock, chance and threads, handed in so that they can be simulated."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from chelate.kernel.pool import Helpers

__all__ = ["Habitat", "World"]

_LOG = logging.getLogger("chelate.lanes")


class Habitat(Protocol):
    """Where one lane lives: its event loop, whose clock the lane goes by."""

    loop: asyncio.AbstractEventLoop

    def join(self, timeout: float) -> None:
        """Wait for at most ``timeout`` seconds until the lane has ended."""


class World:
    """The real one. ``fatal`` is what ends a process that is simulated, and nobody may catch."""

    fatal: tuple[type[BaseException], ...] = ()

    def monotonic(self) -> float:
        """Seconds on a clock that nobody sets."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the epoch, for display and for deadlines that outlive the process."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Let others go on for a while."""
        time.sleep(seconds)

    def token(self) -> str:
        """Eight random digits."""
        return secrets.token_hex(4)

    def thread(self, name: str, main: Callable[[], None]) -> threading.Thread:
        """A thread that runs ``main`` and keeps no process alive; not started."""
        return threading.Thread(target=main, name=name, daemon=True)

    def habitat(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> Habitat:
        """A place for a lane, with ``main`` running in it."""
        return _Thread(self.thread, name, main)


class _Thread:
    """A thread with an event loop."""

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        thread: Callable[[str, Callable[[], None]], threading.Thread],
        name: str,
        main: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._main = main
        self._ready = threading.Event()
        self._name = name
        self._over = False
        self._thread = thread(name, self._run)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:  # noqa: BLE001 - a plugin may stop or cancel the loop itself
            if not self._over:  # when Python ends, asyncio cannot tidy up any more
                _LOG.warning("The event loop of %s was ended from within: %r", self._name, error)

    async def _live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_default_executor(Helpers(f"{self._name}-helper"))
        self._ready.set()
        await self._main()
        self._over = True

    def join(self, timeout: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout)
