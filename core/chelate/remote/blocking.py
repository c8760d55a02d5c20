"""Plain methods in threads of their own, of which none keeps the process or the others waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from chelate.api import TransientError

__all__ = ["Blocking"]

_LEFT = 4  # times ``size``: calls that may be given up before no further one is begun


class Blocking:
    """Runs functions in daemon threads, at most ``size`` at once.

    A thread cannot be stopped: a call that is given up leaves it behind and frees its place. So a
    function that hangs holds up neither those after it nor the end of the process.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._most = _LEFT * size
        self._places = asyncio.Semaphore(size)
        self._left: set[threading.Thread] = set()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns or raises.

        Raises:
            TransientError: too many earlier calls have not returned; this one was not begun.
        """
        async with self._places:
            self._left = {thread for thread in self._left if thread.is_alive()}
            if len(self._left) >= self._most:
                raise TransientError(
                    f"{len(self._left)} earlier calls of executor {self._name!r} have not returned "
                    "yet, so no other is begun."
                )
            loop = asyncio.get_running_loop()
            ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

            def tell(value: Any, error: BaseException | None) -> None:
                if not ended.done():
                    ended.set_result((value, error))

            def work() -> None:
                value, raised = None, None
                try:
                    value = function(*arguments)
                except BaseException as error:  # noqa: BLE001 - whoever called is told
                    raised = error
                with suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(tell, value, raised)

            thread = threading.Thread(target=work, name=f"chelate-{self._name}", daemon=True)
            thread.start()
            try:
                value, raised = await ended
            except asyncio.CancelledError:
                self._left.add(thread)
                raise
            if raised is not None:
                raise raised
            return value
