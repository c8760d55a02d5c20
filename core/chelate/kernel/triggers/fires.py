"""From a look at the world to runs: each fire and what it counted in one transaction.

A fire is stored only while the trigger is active and owned by this kernel, which the same
transaction checks. So a trigger that was stopped, from whichever process, starts nothing more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from chelate.contracts.store import ResultStore
from chelate.contracts.trigger import BaseTrigger, Check
from chelate.errors import DispatchNotFoundError, StoreUnavailableError
from chelate.kernel.triggers.records import (
    ACTIVE,
    KEPT_CHUNKS,
    Definition,
    Progress,
    fact,
    fire_id,
    fires_fact,
    plain_cursor,
    state_fact,
)

__all__ = ["Armed", "Firing"]

_LOG = logging.getLogger("chelate.triggers")
_ROOM_EVERY = 0.5
_SLOWEST = 60.0


@dataclass(slots=True, eq=False)
class Armed:
    """A trigger that this kernel runs.

    ``latest`` holds the fires of the newest stored hundred. ``lock`` is held while its class
    looks or a fire is stored; ``closed`` is True once nothing may happen any more.
    """

    definition: Definition
    progress: Progress
    cursor: Any
    latest: list[list[Any]]
    instance: BaseTrigger | None = None
    closed: bool = False
    busy: bool = False
    again: bool = False
    tick: int = 0
    observing: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def trigger_id(self) -> str:
        """Its id."""
        return self.definition.trigger_id


def _said(error: BaseException) -> str:
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except Exception:  # noqa: BLE001 - a class of a user's
        return name


class Firing:
    """Applies looks to the store.

    ``repeat`` redispatches (``LocalGateway.repeat``); ``poke`` has the engine take up released
    dispatches; ``lost`` is called when a write was refused.
    """

    def __init__(
        self,
        store: ResultStore,
        kernel_id: str,
        repeat: Callable[..., str],
        poke: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._store = store
        self._kernel_id = kernel_id
        self._repeat = repeat
        self._poke = poke
        self._lost = lost
        self._gate = threading.Lock()
        self._shut = False

    def shut(self) -> None:
        """Wait for the fire that is being stored; none follows."""
        self._shut = True
        with self._gate:
            return

    def apply(self, armed: Armed, look: Check) -> float | None:
        """Store what a look gave and start its runs; seconds until there may be room for more.

        Raises:
            PluginContractError: the look is none.
            StoreError: nothing more was stored; the next look counts from what is.
        """
        cursor = armed.cursor
        if look.cursor is not cursor:
            cursor = plain_cursor(armed.definition.kind, look)
        pending = armed.progress.pending + look.fires
        progress = replace(
            armed.progress, pending=pending, next_fire=look.next_fire, error=None, failures=0
        )
        wait: float | None = None
        while progress.pending:
            progress, room = self._room(armed.definition, progress)
            if not room and armed.definition.overlap == "skip":
                skipped = progress.skipped + progress.pending
                progress = replace(progress, skipped=skipped, pending=0)
            elif not room:
                wait = _ROOM_EVERY
                break
            elif self._fire(armed, cursor, progress):
                progress = armed.progress
            else:
                return None
        if (cursor != armed.cursor or progress != armed.progress) and not armed.closed:
            self._save(armed, cursor, progress)
        return wait

    def failed(self, armed: Armed, error: BaseException, state: str = "failing") -> float:
        """Show an error, in the store too; seconds until the next try."""
        message = _said(error)
        _LOG.warning("Trigger %s (%s): %s", armed.trigger_id, armed.definition.kind, message)
        shown = {"at": time.time(), "state": state, "message": message}
        with armed.lock:
            failures = armed.progress.failures + 1
            if not isinstance(error, StoreUnavailableError) and not armed.closed:
                progress = replace(armed.progress, failures=failures, error=shown)
                try:
                    self._save(armed, armed.cursor, progress)
                except BaseException as unsaved:  # noqa: BLE001 - a store may raise anything
                    _LOG.warning("Trigger %s: %s", armed.trigger_id, _said(unsaved))
        return min(_SLOWEST, 2.0 ** min(failures - 1, 10))

    # -- parts ----------------------------------------------------------------------------------

    def _expect(self, armed: Armed) -> dict[str, Any]:
        return {fact("trigger-state", armed.trigger_id): state_fact(ACTIVE, self._kernel_id)}

    def _facts(self, armed: Armed, cursor: Any, progress: Progress) -> dict[str, Any]:
        facts: dict[str, Any] = {fact("trigger-progress", armed.trigger_id): progress.to_json()}
        if cursor != armed.cursor:
            # Wrapped, since a fact that is None is no fact.
            facts[fact("trigger-cursor", armed.trigger_id)] = [cursor]
        return facts

    def _save(self, armed: Armed, cursor: Any, progress: Progress) -> None:
        if self._store.set_facts(self._facts(armed, cursor, progress), self._expect(armed)):
            armed.cursor, armed.progress = cursor, progress
        else:
            self._lost()

    def _fire(self, armed: Armed, cursor: Any, progress: Progress) -> bool:
        """Start one run; False when it may not be, since the trigger is no longer ours."""
        source_id = armed.definition.dispatch_id
        for _ in range(3):
            held = self._store.dispatch(source_id).held
            number = progress.fires + 1
            new_id = source_id if held else fire_id(armed.trigger_id, number)
            limited = armed.definition.limit is not None
            after = replace(
                progress,
                pending=progress.pending - 1,
                fires=number,
                last_fire=time.time(),
                running=(*progress.running, new_id) if limited else (),
            )
            latest = [
                *(armed.latest if number % 100 != 1 else ()),
                [number, after.last_fire, new_id],
            ]
            facts = self._facts(armed, cursor, after)
            facts[fires_fact(armed.trigger_id, number)] = latest
            if number > 100 * KEPT_CHUNKS:
                facts[fires_fact(armed.trigger_id, number - 100 * KEPT_CHUNKS)] = None
            with self._gate:
                if self._shut or armed.closed:
                    return False
                if held:
                    self._store.release_hold(source_id, facts, self._expect(armed))
                    self._poke()
                else:
                    self._repeat(source_id, new_id=new_id, facts=facts, expect=self._expect(armed))
            stored = self._store.get_fact(fact("trigger-progress", armed.trigger_id)) or {}
            if stored.get("fires") == number and stored.get("last_fire") == after.last_fire:
                armed.cursor, armed.progress, armed.latest = cursor, after, latest
                if not held and armed.instance is not None:
                    armed.instance.new_dispatch_ids.append(new_id)
                return True
            state = self._store.get_fact(fact("trigger-state", armed.trigger_id))
            if state != state_fact(ACTIVE, self._kernel_id):
                break
        self._lost()
        return False

    def _room(self, definition: Definition, progress: Progress) -> tuple[Progress, bool]:
        """Without runs that have ended, and whether one more may start."""
        if definition.limit is None or definition.overlap == "allow":
            return progress, True
        running = tuple(run for run in progress.running if self._runs(run))
        if running != progress.running:
            progress = replace(progress, running=running)
        return progress, len(running) < definition.limit

    def _runs(self, dispatch_id: str) -> bool:
        try:
            return not self._store.dispatch(dispatch_id).status.final
        except DispatchNotFoundError:
            return False
