"""Threads in which a trigger's own code runs; one that hangs is left behind, and missed by none."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

from chelate.kernel.pool import Helpers, Pool
from chelate.kernel.triggers.fires import Armed

__all__ = ["Threads"]

_LOG = logging.getLogger("chelate.triggers")
_POLLS = 8
_PATIENCE = 10.0  # seconds that stop() and release() may take
_HANGS = 60.0  # seconds after which a look counts as hanging
_MOST = 64  # threads that are left behind


@dataclass(slots=True)
class _Look:
    """A look that is under way; its thread is ``replaced`` when it hangs."""

    armed: Armed
    pool: Pool
    began: float
    replaced: bool = False


class Threads:
    """One for what is quick, a few for what looks elsewhere, and others for what ends."""

    def __init__(self) -> None:
        self._polls = Pool("chelate-trigger", _POLLS)
        self._quick = Pool("chelate-timer", 1)
        self._endings = Helpers("chelate-trigger-end")
        self._hanging = 0
        self._looks: dict[int, _Look] = {}
        self._numbers = itertools.count()
        self._guard = threading.Lock()
        self._patience = _PATIENCE

    def _pool(self, armed: Armed) -> Pool:
        return self._quick if armed.instance is not None and armed.instance.quick else self._polls

    def look(self, armed: Armed, work: Callable[[], None]) -> None:
        """Run one look of a trigger; ``work`` must not raise."""
        pool, number = self._pool(armed), next(self._numbers)

        def timed() -> bool:
            look = _Look(armed, pool, time.monotonic())
            with self._guard:
                self._looks[number] = look
            work()
            with self._guard:
                del self._looks[number]
                self._hanging -= look.replaced
            return look.replaced

        pool.submit(timed)

    def make_room(self) -> None:
        """The others go on in another thread while a look hangs."""
        now = time.monotonic()
        with self._guard:
            for look in self._looks.values():
                if now - look.began > _HANGS and not look.replaced and self._hanging < _MOST:
                    look.replaced = True
                    self._hanging += 1
                    look.pool.grow()
                    one = look.armed
                    kind = one.definition.kind
                    _LOG.error("Trigger %s (%s) hangs in its check().", one.trigger_id, kind)

    def end(self, armed: Armed, what: str, call: Callable[[], Any]) -> None:
        """Run ``stop`` or ``release``, and say when it goes wrong."""
        answer = self._endings.submit(call)
        patience = self._patience
        done = wait([answer], patience).done
        if not done:
            self._patience = min(patience, 0.5)  # the next ones must not add up
        if not done or answer.exception() is not None:
            how = f"raised {answer.exception()!r}" if done else f"took over {patience:g} s"
            kind = armed.definition.kind
            _LOG.error("Trigger %s (%s): %s() %s.", armed.trigger_id, kind, what, how)

    def close(self) -> None:
        """Let the threads end once they are idle."""
        self._polls.close()
        self._quick.close()
        self._endings.shutdown()
