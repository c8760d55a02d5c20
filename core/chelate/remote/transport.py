"""How commands and bytes reach one host: the only thing a remote executor does itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass

from chelate.api import TransientError

__all__ = ["Completed", "Transport", "UnreachableError"]


class UnreachableError(TransientError):
    """Nothing was sent: the host did not answer, or refused before the command left here.

    Any other :class:`~chelate.api.TransientError` of a transport means that the command may have
    run although its answer was lost.
    """


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended. ``exit_status`` is negative for the signal that ended it."""

    exit_status: int
    stdout: bytes
    stderr: bytes


class Transport(ABC):
    """One connection to one host, shared by everything that talks to it.

    Arguments are never interpreted by a shell: an implementation that has to go through one
    quotes each of them. Implementations bound their own concurrency.

    Every method raises UnreachableError, TransientError (the answer was lost), AuthenticationError
    (nothing may be tried again by itself) or ConfigError (an unknown host key, a wrong option).
    """

    host: str  # for sentences and for the identity of processes

    async def open(self) -> None:
        """Connect, or reconnect when the connection is gone."""
        return None

    async def close(self) -> None:
        """Let go of the connection; what runs on the host goes on."""
        return None

    @abstractmethod
    async def run(
        self,
        argv: Sequence[str],
        stdin: bytes | AsyncIterable[bytes] = b"",
        *,
        timeout: float | None = None,
    ) -> Completed:
        """Run a command to its end. ``stdin`` may be a stream of any length; the output is small.

        What ``stdin`` raises ends the command and is raised here.
        ``timeout`` is in seconds; None: as long as the connection is alive.
        """

    @abstractmethod
    def stream(self, argv: Sequence[str], stdin: bytes = b"") -> AsyncIterator[bytes]:
        """Run a command and yield its output in pieces, in bounded memory.

        Raises TransientError when the connection is cut, and ExecutorError with the end of
        its error output when the command fails.
        """
