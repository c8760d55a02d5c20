"""This machine as a host: commands as child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from chelate.api import ExecutorError, TransientError
from chelate.remote.transport import Completed, Transport, UnreachableError

__all__ = ["LocalTransport"]

_CHUNK = 256 * 1024
_AT_ONCE = 8
T = TypeVar("T")


class LocalTransport(Transport):
    """Runs commands here, for executors that sit on the host they use (a login node, say).

    Commands are in a session of their own, so that Ctrl-C at the caller's terminal reaches none.
    """

    def __init__(self) -> None:
        self.host = os.uname().nodename
        self._slots: asyncio.Semaphore | None = None

    def _slot(self) -> asyncio.Semaphore:
        if self._slots is None:  # made in the loop that uses it
            self._slots = asyncio.Semaphore(_AT_ONCE)
        return self._slots

    async def _start(self, argv: Sequence[str]) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, limit=_CHUNK
            )
        )
        try:
            return await _to_the_end(starting)
        except (OSError, ValueError) as error:
            raise UnreachableError(f"{argv[0]} cannot be started here: {error}.") from error
        except asyncio.CancelledError:
            if starting.exception() is None:
                await _end(starting.result())
            raise

    async def run(
        self,
        argv: Sequence[str],
        stdin: bytes | AsyncIterable[bytes] = b"",
        *,
        timeout: float | None = None,
    ) -> Completed:
        """Run a command here. Raises TransientError when it does not end in time."""
        async with self._slot():
            process = await self._start(argv)
            assert process.stdout is not None
            assert process.stderr is not None
            # An error of the feeder ends all of it: the command would wait for more for ever.
            parts = [
                asyncio.ensure_future(part)
                for part in (process.stdout.read(), process.stderr.read(), _feed(process, stdin))
            ]
            try:
                first = asyncio.FIRST_EXCEPTION
                done, pending = await asyncio.wait(parts, timeout=timeout, return_when=first)
                for part in done:
                    part.result()
                if pending:
                    raise TransientError(f"{argv[0]} did not end within {timeout:g} s.")
                status = await process.wait()
            finally:
                await _end(process, *parts)
        return Completed(status, parts[0].result(), parts[1].result())

    async def stream(self, argv: Sequence[str], stdin: bytes = b"") -> AsyncIterator[bytes]:
        """Yield the output of a command that runs here."""
        async with self._slot():
            process = await self._start(argv)
            assert process.stdout is not None
            assert process.stderr is not None
            feeder = asyncio.ensure_future(_feed(process, stdin))
            errors = asyncio.ensure_future(process.stderr.read())
            try:
                while data := await process.stdout.read(_CHUNK):
                    yield data
                status = await process.wait()
                if status:
                    text = (await errors)[-2000:].decode(errors="replace").strip()
                    raise ExecutorError(f"{argv[0]} ended with exit status {status}: {text}")
            finally:
                await _end(process, feeder, errors)


async def _feed(process: asyncio.subprocess.Process, stdin: bytes | AsyncIterable[bytes]) -> bytes:
    writer = process.stdin
    assert writer is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has read enough
        if isinstance(stdin, bytes):
            writer.write(stdin)
            await writer.drain()
        else:
            async for piece in stdin:
                writer.write(piece)
                await writer.drain()
        writer.close()
    return b""


async def _to_the_end(work: Awaitable[T]) -> T:
    """Its result; a cancel of the caller waits for it, since half of it would leave things open."""
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()


async def _end(process: asyncio.subprocess.Process, *parts: asyncio.Future[Any]) -> None:
    for part in parts:
        part.cancel()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await _to_the_end(_gone(process, parts))


async def _gone(process: asyncio.subprocess.Process, parts: Sequence[asyncio.Future[Any]]) -> None:
    await asyncio.gather(*parts, return_exceptions=True)  # the caller has them, or no use for them
    assert process.stdin is not None
    writer = process.stdin.transport
    if not writer.is_closing() or writer.get_write_buffer_size():
        writer.abort()
    # A child of the command may hold the pipes open, and the collector warns of what is open here.
    transport: Any = getattr(process, "_transport", None)
    for number in () if transport is None else (1, 2):
        transport.get_pipe_transport(number).close()
    await process.wait()
    with contextlib.suppress(OSError):
        await process.stdin.wait_closed()
    if transport is not None:
        transport.close()
