"""What a lane tells the engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chelate.contracts.executor import Capabilities, JobHandle, Limits, Outcome
from chelate.errors import AuthenticationError, TransientError, UserError
from chelate.kernel import events as ev

__all__ = [
    "FIRST_PAUSE",
    "LAST_PAUSE",
    "Complaints",
    "Fetched",
    "LaneReport",
    "pausing",
    "sentence",
]

# Seconds until refused credentials are tried again: a login that fails often locks an account.
FIRST_PAUSE = 30.0
LAST_PAUSE = 600.0
_AGAIN = 60.0  # seconds until a complaint that lasts is logged a second time
_SELDOM = 3600.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A value that stayed with the lane's executor: a file now, or why it is none."""

    digest: str
    path: Path | None
    error: Exception | None = None


@dataclass(slots=True)
class LaneReport:
    """What a lane tells the engine in one go."""

    lane: str
    events: list[tuple[str, ev.Event]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    handles: dict[str, dict[str, Any]] = field(default_factory=dict)  # by task, of the outcomes
    lost: list[str] = field(default_factory=list)  # tasks whose job is gone without an outcome
    opened: tuple[Limits, Capabilities] | None = None
    listed: list[JobHandle] | None = None  # jobs of this store, whoever started them
    fetched: list[Fetched] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)  # held values that are no longer there
    failed: str | None = None  # the executor cannot be made: a sentence
    trouble: str | None = None  # it cannot be reached at present: a sentence; "" when it can again
    paused: str | None = None  # why it is given no tasks for now: a sentence; "" when it is again


def sentence(error: BaseException) -> str:
    """An exception for people; its class is named unless the message was written for them."""
    text = str(error) or type(error).__name__
    plain = isinstance(error, (UserError, TransientError, AuthenticationError))
    return text if plain else f"{type(error).__name__}: {text}"


def pausing(error: BaseException) -> str:
    """What to say of an executor that is not let in."""
    return (
        f"The executor is paused, because it is not let in: {sentence(error).rstrip('.')}. Mend "
        "that, or cancel. No task fails; it is tried again by itself now and then, and soon after "
        "the next dispatch."
    )


class Complaints:
    """Log lines about what goes wrong again and again.

    A complaint is logged at once, again after a minute, and then at intervals that double up to
    an hour, for as long as it comes back within two of them.
    """

    def __init__(self, log: logging.Logger, whose: str, level: int = logging.WARNING) -> None:
        self._log, self._whose, self._level = log, whose, level
        self._known: dict[str, tuple[float, float]] = {}  # text → last logged, interval

    def say(self, text: str, now: float, error: BaseException | None = None) -> None:
        """``now`` is a monotonic moment; the traceback of ``error`` goes along."""
        last, interval = self._known.get(text, (now, 0.0))
        if now - last > 2 * max(interval, _AGAIN):
            interval = 0.0
        elif now - last < interval:
            return
        if len(self._known) >= 100:
            self._known.clear()
        self._known[text] = (now, min(max(_AGAIN, 2 * interval), _SELDOM))
        self._log.log(self._level, "%s: %s", self._whose, text, exc_info=error)
