"""This machine as a host: commands as child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

from chelate.api import ExecutorError, TransientError
from chelate.remote.transport import Completed, Transport, UnreachableError

__all__ = ["LocalTransport"]

_CHUNK = 256 * 1024
_AT_ONCE = 8


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
        try:
            return await asyncio.create_subprocess_exec(
                *argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, limit=_CHUNK
            )
        except (OSError, ValueError) as error:
            raise UnreachableError(f"{argv[0]} cannot be started here: {error}.") from error

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
        await writer.wait_closed()
    return b""


async def _end(process: asyncio.subprocess.Process, *parts: asyncio.Future[Any]) -> None:
    for part in parts:
        part.cancel()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    await asyncio.gather(*parts, return_exceptions=True)
    # Else the pipes are closed by the collector, which warns.
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
