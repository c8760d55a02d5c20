"""How a worker ends: asked, then forced, and never believed gone before nothing of it is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chelate.executors.link import Link

__all__ = ["GRACE", "Ending"]

GRACE = 2.0  # seconds from SIGTERM to SIGKILL
LOOK = 0.02  # seconds between two looks at a tree that ends


class Ending:
    """Ends the tree of one worker and calls ``gone(link)`` when nothing of it lives.

    ``values`` are the task's keys that processes of the tree may carry besides the worker's mark.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: Link,
        key: str | None,
        gone: Callable[[Link], None],
    ) -> None:
        self._loop = loop
        self._link = link
        self._gone = gone
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        if key is not None:
            link.tree.values |= {key.encode()}

    def ask(self) -> None:
        """SIGTERM to every process of the tree, SIGKILL to what is left after the grace."""
        self._deadline = self._loop.time() + GRACE
        self._link.tree.terminate()
        self._look()

    def force(self) -> None:
        """SIGKILL to every process of the tree."""
        self._deadline = 0.0
        self._look()

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        tree = self._link.tree
        merciful = self._loop.time() < self._deadline
        gone = not tree.living() if merciful else tree.kill()
        if gone and self._link.dead:
            self._gone(self._link)
        else:
            self._timer = self._loop.call_later(LOOK, self._look)
