"""How many commands run over one connection at a time, learned from a host that allows fewer."""

from __future__ import annotations

import asyncio
import time
from collections import deque

__all__ = ["ChannelGate"]

_REGROW = 60.0  # seconds without a refusal after which one more is tried


class ChannelGate:
    """Slots for channels. A host's ``MaxSessions`` may be lower than ours and is not announced.

    Every refusal takes one slot away, so a burst ends with as many as the host allows; they come
    back one by one. Used in one event loop.
    """

    def __init__(self, most: int) -> None:
        self.most = self.limit = most
        self.used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._changed = 0.0

    async def take(self) -> None:
        """Wait for a slot, first come, first served."""
        self._regrow()
        if self.used < self.limit and not self._waiting:
            self.used += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def give(self) -> None:
        """Return a slot."""
        self.used -= 1
        self._regrow()
        self._pass_on()

    def refused(self) -> None:
        """The host refused a channel of a slot that is held."""
        self.limit = max(1, min(self.limit, self.used) - 1)
        self._changed = time.monotonic()

    def _regrow(self) -> None:
        if self.limit < self.most and time.monotonic() - self._changed > _REGROW:
            self.limit += 1
            self._changed = time.monotonic()

    def _pass_on(self) -> None:
        while self._waiting and self.used < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.used += 1
                turn.set_result(None)
