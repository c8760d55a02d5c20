"""Threads in which a trigger's own code runs; one that hangs is left behind, and missed by none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import wait
from typing import Any

from chelate.kernel.pool import Helpers, Pool
from chelate.kernel.triggers.fires import Armed

__all__ = ["Threads"]

_LOG = logging.getLogger("chelate.triggers")
_POLLS = 8
_PATIENCE = 10.0  # seconds that stop() and release() may take
_HANGS = 60.0  # seconds after which a look counts as hanging
_MOST = 64  # threads that are left behind


class Threads:
    """One for what is quick, a few for what looks elsewhere, and others for what ends."""

    def __init__(self) -> None:
        self._polls = Pool("chelate-trigger", _POLLS)
        self._quick = Pool("chelate-timer", 1)
        self._endings = Helpers("chelate-trigger-end")
        self._hanging = 0

    def _pool(self, armed: Armed) -> Pool:
        return self._quick if armed.instance is not None and armed.instance.quick else self._polls

    def look(self, armed: Armed, work: Callable[[], None]) -> None:
        """Run one look of a trigger; ``work`` must not raise."""
        self._pool(armed).submit(work)

    def make_room(self, armed: Iterable[Armed]) -> None:
        """The others go on in another thread while a look hangs."""
        now = time.monotonic()
        for one in armed:
            began = one.began
            if began is not None and now - began > _HANGS and self._hanging < _MOST:
                one.began = None
                self._hanging += 1
                self._pool(one).grow()
                _LOG.error("Trigger %s (%s) hangs in check().", one.trigger_id, one.definition.kind)

    def end(self, armed: Armed, what: str, call: Callable[[], Any]) -> None:
        """Run ``stop`` or ``release``, and say when it goes wrong."""
        answer = self._endings.submit(call)
        done = wait([answer], _PATIENCE).done
        if not done or answer.exception() is not None:
            how = f"raised {answer.exception()!r}" if done else f"took over {_PATIENCE:g} s"
            kind = armed.definition.kind
            _LOG.error("Trigger %s (%s): %s() %s.", armed.trigger_id, kind, what, how)

    def close(self) -> None:
        """Let the threads end once they are idle."""
        self._polls.close()
        self._quick.close()
        self._endings.shutdown()
