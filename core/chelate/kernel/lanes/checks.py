"""Whether what a plugin answers keeps to the executor contract; nothing else reaches the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chelate.contracts.executor import (
    HOLD_FROM,
    JobHandle,
    Observation,
    Outcome,
    PollReport,
)
from chelate.digest import is_digest
from chelate.errors import PluginContractError
from chelate.kernel.keys import split_key
from chelate.model import Reason

__all__ = ["checked_handle", "checked_outcome", "checked_reason", "checked_report", "is_seen"]

_LARGEST_HANDLE = 1 << 16


def checked_handle(handle: Any, key: str, tasks: Sequence[str] | None = None) -> dict[str, Any]:
    """The handle of the job that carries the task ``key``, as JSON.

    ``tasks`` are all the tasks that the job was given.

    Raises:
        PluginContractError: it is none, belongs to another job, or cannot be stored.
    """
    if not isinstance(handle, JobHandle) or (handle.key != key and key not in handle.tasks):
        raise PluginContractError(f"{handle!r:.200} is not the handle of job {key}.")
    if tasks is not None and len(tasks) > 1 and set(handle.tasks) != set(tasks):
        raise PluginContractError(f"The handle of job {key} must name its {len(tasks)} tasks.")
    try:
        document = handle.to_json()
        # Handles are made by the thousand and are nearly always a few short texts.
        text = "" if _is_simple(handle) else json.dumps(document, allow_nan=False)
        for task in handle.tasks:
            if task != key:
                split_key(task)
    except (TypeError, ValueError) as error:
        raise PluginContractError(f"The handle of job {key} is not plain JSON: {error}") from error
    if not isinstance(handle.native_id, str) or len(text) > _LARGEST_HANDLE:
        raise PluginContractError(
            f"The handle of job {key} needs a text as native_id and at most "
            f"{_LARGEST_HANDLE >> 10} KiB in all."
        )
    return document


def _is_simple(handle: JobHandle) -> bool:
    return len(handle.data) < 32 and all(
        type(value) is str and len(value) < 1024 for value in handle.data.values()
    )


def checked_reason(reason: Any, message: Any) -> tuple[Reason, str]:
    """Why a job was refused or ended.

    Raises:
        PluginContractError: the reason is no Reason.
    """
    if not isinstance(reason, Reason):
        raise PluginContractError(f"{reason!r:.200} is not a Reason ({message!s:.500}).")
    return reason, str(message)


def checked_report(report: Any) -> PollReport:
    """The answer of ``poll``. Raises PluginContractError."""
    try:
        if isinstance(report, PollReport):
            frozenset(report.covered)
            report.seen.get("")
            return report
    except (AttributeError, TypeError):
        pass
    raise PluginContractError(f"poll() returned {report!r:.200}, not a PollReport.")


def is_seen(seen: Any) -> bool:
    """Whether what a report says of one job can be believed."""
    return (
        isinstance(seen, Observation)
        and (seen.reason is None or isinstance(seen.reason, Reason))
        and _is_moment(seen.started_at)
    )


def _is_usual(outcome: Outcome) -> bool:
    """Whether it is a plain success of a local task, which comes by the thousand."""
    return (
        outcome.ok is True
        and type(outcome.payload) is bytes
        and type(outcome.stdout) is bytes
        and type(outcome.stderr) is bytes
        and type(outcome.started_at) is float
        and type(outcome.ended_at) is float
        and outcome.error is None
        and outcome.held is None
        and outcome.exception is None
        and outcome.reason is None
        and outcome.usage is None
        and (outcome.fingerprint is None or type(outcome.fingerprint) is str)
        and (outcome.digest is None or is_digest(outcome.digest))
        and 0.0 <= outcome.started_at < 1e11
        and 0.0 <= outcome.ended_at < 1e11
    )


def checked_outcome(outcome: Outcome) -> Outcome:
    """The outcome, or in its place a failure that names what the plugin got wrong."""
    if _is_usual(outcome):
        return outcome
    wrong = [
        name
        for name, fine in (
            ("ok", isinstance(outcome.ok, bool)),
            ("payload", outcome.payload is None or isinstance(outcome.payload, (bytes, Path))),
            ("digest", outcome.digest is None or is_digest(outcome.digest)),
            ("fingerprint", outcome.fingerprint is None or isinstance(outcome.fingerprint, str)),
            ("reason", outcome.reason is None or isinstance(outcome.reason, Reason)),
            ("error", outcome.error is None or isinstance(outcome.error, str)),
            ("exception", outcome.exception is None or isinstance(outcome.exception, bytes)),
            ("stdout", isinstance(outcome.stdout, bytes)),
            ("stderr", isinstance(outcome.stderr, bytes)),
            ("started_at", _is_moment(outcome.started_at)),
            ("ended_at", _is_moment(outcome.ended_at)),
            ("held", outcome.held is None or _is_held(outcome)),
            ("usage", outcome.usage is None or _is_json(outcome.usage)),
        )
        if not fine
    ]
    if not wrong:
        return outcome
    values = ", ".join(f"{name}={getattr(outcome, name)!r:.100}" for name in wrong)
    return Outcome(
        outcome.key,
        False,
        reason=Reason.PLUGIN,
        error=f"The executor's outcome breaks its contract: {values}.",
    )


def _is_held(outcome: Outcome) -> bool:
    size, whole = outcome.held, outcome.ok and not outcome.graph and outcome.payload is None
    return isinstance(size, int) and size >= HOLD_FROM and whole and outcome.digest is not None


def _is_moment(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and 0 <= value < 1e11)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return isinstance(value, dict)
