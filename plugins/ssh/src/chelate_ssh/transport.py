"""Commands on a host by SSH, from any event loop of the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from chelate.api import ExecutorError, TransientError
from chelate.remote import Completed, Transport, UnreachableError
from chelate_ssh.hub import Hub, enter
from chelate_ssh.target import Target

if TYPE_CHECKING:
    from chelate_ssh.connection import Connection
    from chelate_ssh.session import Session

__all__ = ["SSHTransport"]


class SSHTransport(Transport):
    """One host by SSH.

    All transports of a process with an equal target share one connection and its channels. It is
    opened with the first command and again after it was cut.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.host = target.host if target.port is None else f"{target.host}:{target.port}"
        self._hub: Hub | None = None
        self._connection: Connection | None = None

    async def open(self) -> None:
        """Connect, unless connected. Raises as every method of a transport does."""
        there, connection = await self._taken()
        await there.do(connection.ready())

    async def close(self) -> None:
        """Let go of the connection; the last one to do so closes it."""
        there, self._hub, self._connection = self._hub, None, None
        if there is not None:
            try:
                await there.do(there.give(self.target, self))
            finally:
                there.leave()

    async def _taken(self) -> tuple[Hub, Connection]:
        if self._hub is None:
            self._hub = enter()
        there = self._hub
        if self._connection is None:
            self._connection = await there.do(there.take(self.target, self))
        return there, self._connection

    async def _session(self, argv: Sequence[str]) -> tuple[Hub, Session]:
        from chelate_ssh.session import Session

        there, connection = await self._taken()
        return there, Session(connection, argv)

    async def run(
        self,
        argv: Sequence[str],
        stdin: bytes | AsyncIterable[bytes] = b"",
        *,
        timeout: float | None = None,
    ) -> Completed:
        """Run a command to its end; see :meth:`Transport.run`."""
        there, session = await self._session(argv)
        try:
            return await asyncio.wait_for(_run(there, session, stdin), timeout)
        except asyncio.TimeoutError as error:
            # Asked in the hub, where the cancel is over by now.
            if await there.do(session.was_sent()):
                raise TransientError(
                    f"Host {self.host} did not end a command within {timeout:g} s."
                ) from error
            raise UnreachableError(
                f"No command could be sent to host {self.host} within {timeout:g} s."
            ) from error

    async def stream(self, argv: Sequence[str], stdin: bytes = b"") -> AsyncIterator[bytes]:
        """Yield a command's output; see :meth:`Transport.stream`."""
        there, session = await self._session(argv)
        feeding = None
        try:
            await there.do(session.start())
            feeding = asyncio.ensure_future(there.do(_fed(session, stdin)))
            while data := await there.do(session.read()):
                yield data
            status, errors = await there.do(session.end())
            if status:
                text = errors[-2000:].decode(errors="replace").strip()
                raise ExecutorError(
                    f"A command on {self.host} ended with exit status {status}: {text}"
                )
        finally:
            await _over(there, session, feeding)


async def _run(there: Hub, session: Session, stdin: bytes | AsyncIterable[bytes]) -> Completed:
    feeding: asyncio.Future[None] | None = None
    try:
        if isinstance(stdin, bytes):
            return await there.do(_whole(session, stdin))
        await there.do(session.start())
        feeding = asyncio.ensure_future(_feed(there, session, stdin))
        try:
            done = await there.do(_answer(session))
        except TransientError:
            if feeding.done():
                feeding.result()  # what the source itself raised
            raise
        if feeding.done():
            feeding.result()
        return done
    finally:
        await _over(there, session, feeding)


async def _over(there: Hub, session: Session, feeding: asyncio.Future[None] | None) -> None:
    there.call(session.abandon)
    if feeding is not None:
        feeding.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await feeding


async def _feed(there: Hub, session: Session, stdin: AsyncIterable[bytes]) -> None:
    """Pass a stream on from this loop to the hub's, piece by piece."""
    try:
        async for piece in stdin:
            if not await there.do(session.write(piece)):
                return
        await there.do(session.finish())
    except Exception:
        # Half of its input must not look like the whole to the command.
        there.call(session.abandon)
        raise


async def _fed(session: Session, stdin: bytes) -> None:
    if not stdin or await session.write(stdin):
        await session.finish()


async def _whole(session: Session, stdin: bytes) -> Completed:
    """All of it in the hub's loop: a small command crosses from loop to loop once."""
    await session.start()
    feeding = asyncio.ensure_future(_fed(session, stdin))
    try:
        return await _answer(session)
    finally:
        feeding.cancel()


async def _answer(session: Session) -> Completed:
    pieces = []
    while data := await session.read():
        pieces.append(data)
    status, errors = await session.end()
    return Completed(status, b"".join(pieces), errors)
