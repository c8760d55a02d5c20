"""The one place in a process where SSH connections live: a thread with an event loop.

Executors live in lanes, each with a loop of its own; connections are bound to one loop. Here all
of them share the connections, counted by who uses them: the thread starts with the first user
and ends with the last.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from chelate_ssh.target import Target

if TYPE_CHECKING:
    from chelate_ssh.connection import Connection

__all__ = ["Hub", "hub"]

_Anything = TypeVar("_Anything")


class Hub:
    """Connections by target. Methods are called from any thread unless they say otherwise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._connections: dict[Target, Connection] = {}

    def enter(self) -> None:
        """Begin to use the hub."""
        with self._lock:
            self._users += 1
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._live, args=(self._loop,), name="chelate-ssh", daemon=True
                )
                self._thread.start()

    def leave(self) -> None:
        """Stop using the hub; with the last user its thread ends."""
        with self._lock:
            self._users -= 1
            if self._users or self._loop is None:
                return
            loop, self._loop = self._loop, None
        loop.call_soon_threadsafe(loop.stop)

    @staticmethod
    def _live(loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_forever()
            loop.run_until_complete(_end_all())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    async def do(self, work: Coroutine[Any, Any, _Anything]) -> _Anything:
        """Run a coroutine in the hub's loop and wait for it; a cancel reaches it.

        Raises:
            RuntimeError: nobody has entered the hub.
        """
        future = self.post(work)
        return await asyncio.wrap_future(future)

    def post(self, work: Coroutine[Any, Any, _Anything]) -> concurrent.futures.Future[_Anything]:
        """Run a coroutine in the hub's loop."""
        if self._loop is None:
            work.close()
            raise RuntimeError("The SSH connections of this process are closed.")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the hub's loop, soon; nothing happens when the hub is closed."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function)

    # -- in the hub's loop --------------------------------------------------------------------

    def connection(self, target: Target) -> Connection:
        """The connection to a target, made when first asked for."""
        from chelate_ssh.connection import Connection

        known = self._connections.get(target)
        if known is None:
            known = self._connections[target] = Connection(target, self.connection)
        return known

    async def take(self, target: Target) -> Connection:
        """Count one more user of a connection."""
        connection = self.connection(target)
        connection.users += 1
        return connection

    async def give(self, connection: Connection) -> None:
        """Count one less; a connection without users is closed, and jump hosts with the last."""
        connection.users -= 1
        if connection.users:
            return
        self._connections.pop(connection.target, None)
        await connection.close()
        if not any(other.users for other in self._connections.values()):
            rest = list(self._connections.values())
            self._connections.clear()
            for other in rest:
                await other.close()


async def _end_all() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


_hubs: dict[int, Hub] = {}
_hubs_lock = threading.Lock()


def hub() -> Hub:
    """This process's hub: threads and sockets do not survive a fork."""
    with _hubs_lock:
        return _hubs.setdefault(os.getpid(), Hub())
