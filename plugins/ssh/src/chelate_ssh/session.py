"""One command on a host: from an open channel to its exit status.

The host's login shell is given one constant command, so neither its kind (POSIX or not) nor what
is in the arguments matters: the command itself is the first line of standard input, read by
``/bin/sh``. What the shell's start-up files print comes before a mark and is dropped.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncssh  # noqa: TID253 - this module is loaded with the first connection

from chelate.api import ConfigError, TransientError
from chelate.remote import UnreachableError
from chelate_ssh.connection import Connection
from chelate_ssh.pipe import Pipe

__all__ = ["Session"]

COMMAND = "exec /bin/sh -c 'IFS= read -r line && eval \"$line\"'"
_CHUNK = 256 * 1024
_NOISE = 1024 * 1024
_TRIES = 20
_WAIT = 0.02


def first_line(argv: Sequence[str], mark: str) -> bytes:
    """The line that prints the mark and becomes the command.

    Raises:
        ConfigError: an argument holds a NUL character, which no argument can.
    """
    if any("\0" in word for word in argv):
        raise ConfigError("A command for a host holds a NUL character.")
    # A line feed would end the line, so it is put in by name.
    words = [shlex.quote(word).replace("\n", "'\"$n\"'") for word in argv]
    head = "n=$(printf '\\nx') && n=${n%x} && " if any("\n" in word for word in argv) else ""
    return os.fsencode(f"{head}echo {mark} && exec {' '.join(words)}\n")


class Session:
    """One command. Made anywhere; its methods run in the hub's loop.

    After :meth:`start` they raise TransientError when the connection is cut. :meth:`abandon` is
    due at the end in any case.
    """

    def __init__(self, connection: Connection, argv: Sequence[str]) -> None:
        mark = f"chelate-{secrets.token_hex(8)}"
        self.sent = False
        self._connection = connection
        self._line = first_line(argv, mark)
        self._mark = f"{mark}\n".encode()
        self._ssh: asyncssh.SSHClientConnection
        self._channel: asyncssh.SSHClientChannel[bytes]
        self._pipe: Pipe
        self._holding = False
        self._begun = False
        self._early = b""

    async def start(self) -> None:
        """Open a channel and send the command.

        Raises:
            UnreachableError, AuthenticationError, ConfigError: nothing was sent.
        """
        gate = self._connection.gate
        for number in range(_TRIES):
            await gate.take()
            self._holding = True
            try:
                if await self._open():
                    with suppress(asyncssh.Error, OSError):  # closed: reading says why
                        self._channel.write(self._line)
                    self.sent = True
                    return
            except BaseException:
                self._let_go()
                raise
            # Right after a channel was closed the host may still count it.
            if number:
                gate.refused()
            self._let_go()
            await asyncio.sleep(_WAIT if gate.used else min(1.0, _WAIT * 2**number))
        raise UnreachableError(
            f"Host {self._connection.where} opens no session on this connection (MaxSessions)."
        )

    async def _open(self) -> bool:
        """Open a channel; False when the host allows no more at present."""
        ssh = await self._connection.ready()
        opening: asyncio.Future[Any] = asyncio.ensure_future(
            ssh.create_session(Pipe, COMMAND, encoding=None)
        )
        try:
            self._channel, self._pipe = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The slot stays taken until the host has answered.
            self._holding = False
            opening.add_done_callback(self._unwanted)
            raise
        except asyncssh.ChannelOpenError as error:
            await asyncio.sleep(0)  # lets a connection that is gone say so
            if ssh.is_closed():
                raise self._cut_before(error) from error
            if error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED:
                raise UnreachableError(
                    f"Host {self._connection.where} runs no commands for this login."
                ) from error
            return False
        except (asyncssh.Error, OSError) as error:
            raise self._cut_before(error) from error
        self._ssh = ssh
        return True

    def _unwanted(self, opening: asyncio.Future[Any]) -> None:
        self._connection.gate.give()
        if not opening.cancelled() and opening.exception() is None:
            opening.result()[0].abort()

    async def write(self, data: bytes) -> bool:
        """Pass on standard input; False when the command takes no more."""
        try:
            self._channel.write(data)
        except (asyncssh.Error, OSError):
            return False  # it has read enough, or the connection is cut and reading says so
        await self._pipe.drained()
        return not self._channel.is_closing()

    async def finish(self) -> None:
        """End standard input."""
        with suppress(asyncssh.Error, OSError):
            self._channel.write_eof()

    async def read(self, size: int = _CHUNK) -> bytes:
        """The next piece of standard output; empty at its end."""
        if not self._begun:
            await self._skip_noise()
        if self._early:
            data, self._early = self._early, b""
            return data
        return await self._read(size)

    async def end(self) -> tuple[int, bytes]:
        """Exit status (negative: a signal) and the end of the error output."""
        await self._channel.wait_closed()
        status = self._channel.get_returncode()
        if status is None:
            raise self._cut(None)
        self._let_go()
        return status, bytes(self._pipe.errors)

    def abandon(self) -> None:
        """Let go of the channel, whatever the command does."""
        if self._holding and self.sent:
            with suppress(asyncssh.Error, OSError):
                self._channel.abort()
            self._let_go()

    async def was_sent(self) -> bool:
        """Whether the command has left here."""
        return self.sent

    def _let_go(self) -> None:
        if self._holding:
            self._holding = False
            self._connection.gate.give()

    async def _read(self, size: int) -> bytes:
        try:
            return await self._pipe.read(size)
        except (asyncssh.Error, OSError) as error:
            raise self._cut(error) from error

    async def _skip_noise(self) -> None:
        found = b""
        while self._mark not in found:
            data = await self._read(_CHUNK)
            if not data or len(found) > _NOISE:
                status, errors = await self.end() if not data else (0, b"")
                said = (found + errors)[-500:].decode(errors="replace").strip()
                raise UnreachableError(
                    f"Host {self._connection.where} did not start a command (exit status {status})"
                    f"{'; it said: ' if said else '.'}{said}"
                )
            found += data
        self._early = found.partition(self._mark)[2]
        self._begun = True

    def _cut(self, error: Exception | None) -> TransientError:
        if self._ssh.is_closed() or isinstance(error, asyncssh.ConnectionLost):
            self._connection.lost(self._ssh)
        reason = f" ({error})" if error is not None and str(error) else ""
        return TransientError(
            f"The connection to {self._connection.where} was cut{reason}; the answer is lost."
        )

    def _cut_before(self, error: Exception) -> UnreachableError:
        return UnreachableError(f"The connection to {self._connection.where} was cut ({error}).")
