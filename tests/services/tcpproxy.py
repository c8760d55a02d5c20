"""A TCP proxy for tests that is slow, silent or cuts connections on request; needs no root.

::

    with TcpProxy(("127.0.0.1", 22)) as proxy:
        connect(*proxy.address)
        proxy.delay = 0.025          # seconds for every chunk, each way: 50 ms round trip
        proxy.hold()                 # forward nothing and close nothing ...
        proxy.let_go()               # ... and deliver it now
        proxy.cut()                  # reset every connection
        proxy.refuse(); proxy.listen()
        proxy.cut_after = 1_000_000  # reset the next connection after so many bytes downwards

Each side keeps a healthy TCP peer: for lost packets use :mod:`tests.services.netfault`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

__all__ = ["TcpProxy"]

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # linger for no time: closing sends a reset


class TcpProxy:
    """Forwards connections to ``target``. Counters and switches may be used from any thread."""

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        self.target = target
        self.address = (host, 0)
        self.delay = 0.0
        self.cut_after: int | None = None
        self.accepted = self.most_open = self.bytes_up = self.bytes_down = 0
        self._open: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcpproxy", daemon=True)
        self._flowing: asyncio.Event

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        self._do(self._begin())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    def hold(self) -> None:
        """Forward nothing until :meth:`let_go`."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def let_go(self) -> None:
        """Deliver what was held back, and go on."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def cut(self) -> None:
        """Reset every connection."""
        self._do(self._cut())

    def refuse(self) -> None:
        """Accept no new connection."""
        self._do(self._close())

    def listen(self) -> None:
        """Accept connections, at the same port as before."""
        self._do(self._listen())

    # -- in the proxy's thread ---------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _begin(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        await self._listen()

    async def _end(self) -> None:
        await self._close()
        await self._cut()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, *self.address)
            self.address = self._server.sockets[0].getsockname()[:2]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _cut(self) -> None:
        tasks = list(self._open)
        for task in tasks:
            self._reset(task)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reset(self, task: asyncio.Task[None]) -> None:
        for writer in self._open.get(task, ()):
            raw = writer.get_extra_info("socket")
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        try:
            there, to = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open[task] = (writer, to)
        self.most_open = max(self.most_open, len(self._open))
        halves = [
            asyncio.ensure_future(self._forward(reader, to, up=True)),
            asyncio.ensure_future(self._forward(there, writer, up=False)),
        ]
        try:
            with suppress(OSError, asyncio.CancelledError):
                await asyncio.gather(*halves)
        finally:
            for half in halves:
                half.cancel()
            await asyncio.gather(*halves, return_exceptions=True)
            self._open.pop(task, None)
            writer.close()
            to.close()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        # Chunks are stamped as they come, so that the delay costs time and no throughput.
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        loop = asyncio.get_running_loop()
        left = None if up else self.cut_after

        async def receive() -> None:
            data = b"begun"
            while data:
                try:
                    data = await reader.read(_CHUNK)
                except OSError:
                    data = b""
                await queue.put((loop.time() + self.delay, data))

        receiving = asyncio.ensure_future(receive())
        try:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._flowing.wait()
                if not data:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return None
                writer.write(data)
                await writer.drain()
                if up:
                    self.bytes_up += len(data)
                else:
                    self.bytes_down += len(data)
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        self.cut_after = None
                        raise OSError("cut")
        finally:
            receiving.cancel()
