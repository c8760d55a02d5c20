"""Triggers as users write them, in a module that can be imported again after a restart."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from chelate.api import BaseTrigger, Check


class CountingTrigger(BaseTrigger):
    """The durable way: a file whose length is the number of events."""

    interval = 0.1

    def __init__(self, path: str, **common: Any) -> None:
        super().__init__(**common)
        self.path = path

    def check(self, cursor: Any, now: float) -> Check:
        size = Path(self.path).stat().st_size
        return Check(0 if cursor is None else size - cursor, size)


class WatchingTrigger(BaseTrigger):
    """The plain way: a loop of one's own, with a cursor of one's own."""

    def __init__(self, path: str, **common: Any) -> None:
        super().__init__(**common)
        self.path = path

    def observe(self) -> None:
        if self.cursor is None:
            self.cursor = 0
        while not self.stop_flag.is_set():
            if Path(self.path).stat().st_size > self.cursor:
                self.cursor += 1
                self.trigger()
            else:
                time.sleep(0.05)

    def stop(self) -> None:
        super().stop()


class ForgetfulTrigger(WatchingTrigger):
    """What it finds when it begins to look is where it begins."""

    def observe(self) -> None:
        seen = Path(self.path).stat().st_size
        while not self.stop_flag.wait(0.05):
            while Path(self.path).stat().st_size > seen:
                seen += 1
                self.trigger()


class AsyncTrigger(WatchingTrigger):
    """A coroutine function."""

    async def observe(self) -> None:  # type: ignore[override]
        import asyncio

        assert self.event_loop is asyncio.get_running_loop()
        self.cursor = self.cursor or 0
        while not self.stop_flag.is_set():
            if Path(self.path).stat().st_size > self.cursor:
                self.cursor += 1
                self.trigger()
            else:
                await asyncio.sleep(0.05)


class BrokenTrigger(BaseTrigger):
    """Raises until a file exists."""

    interval = 0.1

    def __init__(self, path: str, **common: Any) -> None:
        super().__init__(**common)
        self.path = path

    def check(self, cursor: Any, now: float) -> Check:
        if cursor is not None and not Path(self.path).exists():
            raise OSError("the gauge does not answer")
        return Check(0 if cursor is None else 1, (cursor or 0) + 1)
