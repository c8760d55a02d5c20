"""A store into which nothing can be written for a while."""

from __future__ import annotations

import logging

from chelate.errors import StoreUnavailableError
from chelate.kernel.lanes.report import Complaints
from chelate.kernel.world import World

__all__ = ["Outage"]

_LOG = logging.getLogger("chelate.engine")
_PATIENCE = 30.0  # seconds, as in the store's own calls


class Outage:
    """Told by the engine, asked by those who wait for it; moments are monotonic seconds."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._now: tuple[float, str] | None = None  # since when, and how
        self._complaints = Complaints(_LOG, "Nothing goes on until the store works", logging.ERROR)

    def goes_on(self, since: float, error: StoreUnavailableError) -> None:
        """The store has failed again; this try began at ``since``."""
        self._now = self._now or (since, str(error))
        self._complaints.say(str(error), self._world.monotonic())

    def over(self) -> None:
        """The store works."""
        self._now = None

    def check(self, since: float) -> None:
        """Have patience for half a minute, from ``since`` at the earliest.

        Raises:
            StoreUnavailableError: it is over.
        """
        now = self._now
        if now is not None and self._world.monotonic() - max(since, now[0]) >= _PATIENCE:
            raise StoreUnavailableError(
                f"Nothing could be stored for {_PATIENCE:g} s: {now[1]} What was dispatched goes "
                "on when the store works again; wait for it anew."
            )
