"""The one place in a process where SSH connections live: a thread with an event loop.

Executors live in lanes, each with a loop of its own, and a connection is bound to one loop. Here
all of them share the connections. The thread starts with the first user and ends with the last.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from chelate.remote import UnreachableError
from chelate_ssh.target import Target

if TYPE_CHECKING:
    from chelate_ssh.connection import Connection

__all__ = ["Hub", "enter"]

_Anything = TypeVar("_Anything")


class Hub:
    """Connections by target. Methods are called from any thread unless they say otherwise."""

    def __init__(self) -> None:
        self.users = 0
        self._loop = asyncio.new_event_loop()
        self._helpers = ThreadPoolExecutor(thread_name_prefix="chelate-ssh-helper")
        self._loop.set_default_executor(self._helpers)
        self._connections: dict[Target, Connection] = {}
        threading.Thread(target=self._live, name="chelate-ssh", daemon=True).start()

    def leave(self) -> None:
        """Stop using the hub; with the last user its thread and its connections end."""
        with _lock:
            self.users -= 1
            if self.users:
                return
            if _hubs.get(os.getpid()) is self:
                del _hubs[os.getpid()]
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _live(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._end())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            # Not by the loop's shutdown_default_executor(): it starts a thread, which Python 3.12
            # refuses while the interpreter ends.
            self._helpers.shutdown()
            self._loop.close()

    async def _end(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for connection in self._connections.values():
            await connection.close()

    async def do(self, work: Coroutine[Any, Any, _Anything]) -> _Anything:
        """Run a coroutine in the hub's loop and wait for it; a cancel reaches it.

        Raises:
            UnreachableError: the last user has left the hub.
        """
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise UnreachableError("The SSH connections of this process are closed.") from error
        return await asyncio.wrap_future(future)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the hub's loop, soon; when that has ended, there is no need to."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    # -- in the hub's loop --------------------------------------------------------------------

    def connection(self, target: Target) -> Connection:
        """The connection to a target, made when first asked for."""
        from chelate_ssh.connection import Connection

        known = self._connections.get(target)
        if known is None:
            known = self._connections[target] = Connection(target, self.connection)
        return known

    async def take(self, target: Target, user: object) -> Connection:
        """Note who uses a connection."""
        connection = self.connection(target)
        connection.users.add(user)
        return connection

    async def give(self, target: Target, user: object) -> None:
        """Forget a user; a connection without any is closed, jump hosts with the last one."""
        connection = self._connections.get(target)
        if connection is None:
            return
        connection.users.discard(user)
        if connection.users:
            return
        del self._connections[target]
        await connection.close()
        if not any(other.users for other in self._connections.values()):
            rest = list(self._connections.values())
            self._connections.clear()
            for other in rest:
                await other.close()


# By process: threads and sockets do not survive a fork.
_hubs: dict[int, Hub] = {}
_lock = threading.Lock()


def enter() -> Hub:
    """Begin to use this process's hub, until :meth:`Hub.leave`."""
    with _lock:
        hub = _hubs.get(os.getpid())
        if hub is None:
            _hubs.clear()
            hub = _hubs[os.getpid()] = Hub()
        hub.users += 1
        return hub
