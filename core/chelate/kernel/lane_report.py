"""What a lane tells the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chelate.contracts.executor import Capabilities, JobHandle, Limits, Outcome
from chelate.errors import TransientError, UserError
from chelate.kernel import events as ev

__all__ = ["LaneReport", "sentence"]


@dataclass(slots=True)
class LaneReport:
    """What a lane tells the engine in one go."""

    lane: str
    events: list[tuple[str, ev.Event]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    handles: dict[str, dict[str, Any]] = field(default_factory=dict)  # by task, of the outcomes
    opened: tuple[Limits, Capabilities] | None = None
    listed: list[JobHandle] | None = None  # jobs of this store, whoever started them
    failed: str | None = None  # the executor cannot be made: a sentence
    trouble: str | None = None  # it cannot be reached at present: a sentence; "" when it can again


def sentence(error: BaseException) -> str:
    """An exception for people; its class is named unless the message was written for them."""
    text = str(error) or type(error).__name__
    plain = isinstance(error, (UserError, TransientError))
    return text if plain else f"{type(error).__name__}: {text}"
