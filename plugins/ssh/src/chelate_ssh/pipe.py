"""The bytes of one channel, in bounded memory whatever the pace of its two ends."""

from __future__ import annotations

import asyncio
from collections import deque

import asyncssh  # noqa: TID253 - this module is loaded with the first connection

__all__ = ["ERRORS", "Pipe"]

ERRORS = 64 * 1024  # bytes kept of the end of a command's error output
_AHEAD = 1 << 20  # bytes of output that may wait here


class Pipe(asyncssh.SSHClientSession[bytes]):
    """Takes what a channel brings. Used in the loop of its connection.

    asyncssh's own streams let output pile up when it comes faster than it is read: whenever a
    little is taken, the host is allowed a whole window more. Here a channel is stopped when enough
    waits, and goes on only when all of that is gone.
    """

    def __init__(self) -> None:
        self.errors = bytearray()
        self._channel: asyncssh.SSHClientChannel[bytes]
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._stopped = self._flushing = self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is open."""
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Output, or error output when there is a kind."""
        if datatype is not None:
            self.errors += data
            del self.errors[:-ERRORS]
            return
        self._pieces.append(data)
        self._waiting += len(data)
        self._news.set()
        if not self._flushing:
            self._stop()

    def eof_received(self) -> bool:
        """The output has ended; the input need not."""
        self._ended = True
        self._news.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed, or the connection cut."""
        self._error = exc
        self._ended = True
        self._news.set()
        self._writable.set()

    def pause_writing(self) -> None:
        """The host takes no more input at present."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._writable.set()

    async def drained(self) -> None:
        """Wait until more may be written."""
        await self._writable.wait()

    async def read(self, size: int) -> bytes:
        """The next bytes, ``size`` at most; empty at the end. Raises what cut the channel."""
        while not self._pieces:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return b""
            self._news.clear()
            await self._news.wait()
        taken = []
        while self._pieces and size > 0:
            piece = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            taken.append(piece)
            size -= len(piece)
            self._waiting -= len(piece)
        if self._stopped and not self._pieces:
            self._stopped, self._flushing = False, True
            self._channel.resume_reading()
            self._flushing = False
            self._stop()
        return b"".join(taken)

    def _stop(self) -> None:
        if not self._stopped and self._waiting >= _AHEAD:
            self._stopped = True
            self._channel.pause_reading()
