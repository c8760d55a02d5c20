"""The trigger of times: every so many seconds, or as a cron expression says."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from chelate.api import BaseTrigger, Check, ConfigError

__all__ = ["TimeTrigger"]


class TimeTrigger(BaseTrigger):
    """Fires every ``time_gap`` seconds, the first time one gap after it was registered, or at the
    moments of a cron expression.

    The moments lie on a grid that a late fire, a pause or a restart does not move. However many
    were missed, as while no kernel ran, they make one fire, at once.

    Args:
        time_gap: seconds between fires; a positive number.
        lattice_dispatch_id, dispatcher_addr, triggers_server_addr, max_concurrent, overlap: see
            :class:`BaseTrigger`.
        cron: instead of ``time_gap``, five fields (``"*/15 * * * *"``) or six, the last being
            seconds.
        timezone: the IANA name of the time zone that ``cron`` speaks of.

    Attributes:
        time_gap: seconds between fires, None with ``cron``.
    """

    quick: ClassVar[bool] = True

    def __init__(
        self,
        time_gap: float | None = None,
        lattice_dispatch_id: str | None = None,
        dispatcher_addr: str | None = None,
        triggers_server_addr: str | None = None,
        *,
        cron: str | None = None,
        timezone: str = "UTC",
        max_concurrent: int | None = None,
        overlap: str | None = None,
    ) -> None:
        super().__init__(
            lattice_dispatch_id,
            dispatcher_addr,
            triggers_server_addr,
            max_concurrent=max_concurrent,
            overlap=overlap,
        )
        self.time_gap = time_gap
        self.cron = cron
        self.timezone = timezone

    def validate(self) -> None:
        gap = self.time_gap
        if (gap is None) == (self.cron is None):
            raise ConfigError("A TimeTrigger takes either time_gap= or cron=, and one of them.")
        if self.cron is not None:
            self._validate_cron()
        elif isinstance(gap, bool) or not isinstance(gap, (int, float)) or not 0 < gap < math.inf:
            raise ConfigError(f"time_gap={gap!r} must be a number of seconds above 0.")

    def _validate_cron(self) -> None:
        try:
            ZoneInfo(self.timezone)
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"timezone={self.timezone!r} is not known here ({error}); write an IANA name such "
                "as 'Europe/Berlin', and install tzdata where the system has no time zones."
            ) from error
        try:
            self._next(datetime.now().timestamp())  # noqa: DTZ005 - only a moment to begin at
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"cron={self.cron!r} is not a cron expression that ever comes ({error}); write "
                "five fields, such as '30 6 * * mon-fri'."
            ) from error

    def _next(self, now: float) -> float:
        """The first moment after ``now``."""
        if self.cron is None:
            return now + float(self.time_gap or 0)
        try:
            from croniter import croniter
        except ImportError as error:
            raise ConfigError(
                "cron= needs croniter. Try: pip install 'chelate[triggers]'"
            ) from error
        begin = datetime.fromtimestamp(now, ZoneInfo(self.timezone))
        found: datetime = croniter(self.cron, begin).get_next(datetime)
        # An hour that the clocks repeat in autumn must not be taken for the past.
        while found.timestamp() <= now:
            begin = begin + timedelta(minutes=1)
            found = croniter(self.cron, begin).get_next(datetime)
        return found.timestamp()

    def check(self, cursor: Any, now: float) -> Check:
        """``cursor`` is the moment of the next fire, in seconds since the epoch."""
        if cursor is None:
            return self._wait(0, self._next(now), now)
        moment = float(cursor)
        if now < moment:
            if self.time_gap is not None and moment - now > self.time_gap:
                moment = now + self.time_gap  # the clock was set back
            return self._wait(0, moment, now)
        if self.time_gap is None:
            return self._wait(1, self._next(now), now)
        gaps = math.floor((now - moment) / self.time_gap) + 1
        return self._wait(1, moment + gaps * self.time_gap, now)

    def _wait(self, fires: int, moment: float, now: float) -> Check:
        return Check(fires, moment, max(0.0, moment - now), moment)
