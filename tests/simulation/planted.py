"""The protocol with one rule removed; each removal names where it hurts."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from tests.simulation.cluster import MODELS
from tests.simulation.processes import Faults

from chelate import diff
from chelate.contracts.executor import JobHandle
from chelate.contracts.store import Commit
from chelate.digest import digest_bytes
from chelate.errors import StoreUnavailableError
from chelate.kernel import events as ev
from chelate.kernel import reuse
from chelate.kernel.engine import Engine
from chelate.kernel.intake import Intake
from chelate.kernel.lane_table import Orders
from chelate.kernel.lanes.carriers import Carriers
from chelate.kernel.lanes.flights import Flights
from chelate.kernel.lanes.stops import Stops
from chelate.kernel.lanes.work import LaneWork
from chelate.kernel.states import machine, moves
from chelate.kernel.states.machine import Machine
from chelate.kernel.turn import Turn
from chelate.model import NodeStatus, Reason, ValueRef
from chelate.store.sql import SQLStore
from chelate.store.statements import Statements

__all__ = ["PLANTED", "Planted"]

S = NodeStatus
_LOSSY = Faults(crash=0.003, plugin=0.02, lost=0.25)
_CRASHES = Faults(crash=0.03, plugin=0.01, lost=0.05)
_STALLS = Faults(stall=0.02, takeover=True)


@dataclass(frozen=True)
class Planted:
    """``plant`` removes a rule; the ``models`` and ``faults`` are those that the rule is for."""

    plant: Callable[[pytest.MonkeyPatch], None]
    models: tuple[str, ...]
    faults: Faults = _LOSSY


def _no_intent(patch: pytest.MonkeyPatch) -> None:
    honest = Turn.commit

    def commit(self: Turn) -> Commit | None:
        stored = honest(self)
        for dispatch_id, records in (stored.nodes if stored else {}).items():
            stored.nodes[dispatch_id] = [r for r in records if r.status is not S.SUBMITTING]
        return stored

    patch.setattr(Turn, "commit", commit)


def _resend_at_once(patch: pytest.MonkeyPatch) -> None:
    def on_unsure(self: Machine, record: Any, event: Any) -> None:
        if record.status is S.SUBMITTING:
            self._begin(record, again=True)
        else:
            self._effects.append(ev.LookUp(record.node_id))

    patch.setattr(Machine, "_on_unsure", on_unsure)


def _change_model(name: str, **changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        model = MODELS[name]
        limits = dataclasses.replace(model.limits, **changes.pop("limits", {}))
        patch.setitem(MODELS, name, dataclasses.replace(model, limits=limits, **changes))

    return plant


def _no_tombstone(patch: pytest.MonkeyPatch) -> None:
    async def take_claims(self: Flights, keys: Any) -> dict[str, JobHandle]:
        return {}

    patch.setattr(Flights, "take_claims", take_claims)


def _tombstone_for_unresolved_only(patch: pytest.MonkeyPatch) -> None:
    honest = Flights._lost

    def lost(self: Flights, told: Any, flight: Any, reason: Any, message: str) -> None:
        flight.running = True
        honest(self, told, flight, reason, message)

    patch.setattr(Flights, "_lost", lost)


def _cancelled_when_asked(patch: pytest.MonkeyPatch) -> None:
    def stop(self: Machine, record: Any, reason: Reason) -> None:
        record.reason = reason.value
        self._finish(record, S.CANCELLED, reason)

    patch.setattr(moves.Moves, "_stop", stop)


def _cancel_once(patch: pytest.MonkeyPatch) -> None:
    def put_off(stop: Any, now: float) -> None:
        stop.due = float("inf")
        stop.first, stop.tries = now, 1

    patch.setattr(Stops, "_put_off", staticmethod(put_off))
    honest = Stops.part

    async def part(self: Stops) -> None:
        for stop in self._stops.values():
            if stop.tries:
                stop.due = float("inf")
        await honest(self)

    patch.setattr(Stops, "part", part)


def _owner_unchecked(patch: pytest.MonkeyPatch) -> None:
    writing: list[str] = []
    honest_commit, honest_lock = SQLStore.commit, Statements.lock_dispatches

    def commit(self: SQLStore, kernel_id: str, what: Commit, seen: int) -> Any:
        writing.append(kernel_id)
        what.epochs.clear()
        try:
            return honest_commit(self, kernel_id, what, seen)
        finally:
            writing.pop()

    def lock(self: Statements, connection: Any, ids: Any) -> Any:
        rows = honest_lock(self, connection, ids)
        return [row._replace(owner=writing[-1]) for row in rows] if writing else rows

    patch.setattr(SQLStore, "commit", commit)
    patch.setattr(Statements, "lock_dispatches", lock)
    patch.setattr(SQLStore, "_require_live", lambda self, *_: None)


def _row_before_blob(patch: pytest.MonkeyPatch) -> None:
    honest = SQLStore.commit

    def commit(self: SQLStore, kernel_id: str, what: Commit, seen: int) -> Any:
        blobs, what.blobs = what.blobs, {}
        requests = honest(self, kernel_id, what, seen)
        what.blobs = blobs
        if not requests and blobs:
            self._database.write(lambda link: self._sql().add_blobs(link, blobs))
        return requests

    patch.setattr(SQLStore, "commit", commit)


def _flag_unchecked_in_the_lane(patch: pytest.MonkeyPatch) -> None:
    async def runner(self: LaneWork) -> None:
        wait = self._departures.wait(self._calls.now())
        if wait != 0.0:
            await self._calls.pause(wait)
            return
        await self._run_batch(self._departures.packed(self._departures.take()))

    patch.setattr(LaneWork, "_runner", runner)


def _ready_from_memory(patch: pytest.MonkeyPatch) -> None:
    honest = Machine.resume

    def resume(self: Machine, records: Any, now: float) -> None:
        rows = list(records)
        pending = dict(self._pending)
        children, self._children = self._children, {}
        honest(self, rows, now)
        self._children, self._pending = children, pending

    patch.setattr(Machine, "resume", resume)


def _forgotten_at_restart(*statuses: NodeStatus) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        honest = machine.unresolved
        patch.setattr(
            machine,
            "unresolved",
            lambda record, policy, now: (
                [] if record.status in statuses else honest(record, policy, now)
            ),
        )

    return plant


def _released_before_stored(patch: pytest.MonkeyPatch) -> None:
    honest = Flights._collect

    async def collect(self: Flights, told: Any, asked: Any, final: Any) -> None:
        await honest(self, told, asked, final)
        self.let_go([outcome.key for outcome in told.outcomes])
        await self._release()

    patch.setattr(Flights, "_collect", collect)


def _new_key_for_a_resend(patch: pytest.MonkeyPatch) -> None:
    honest = Machine._begin

    def begin(self: Machine, record: Any, *, again: bool = False) -> None:
        if again:
            record.key = f"{record.key.rpartition(':')[0]}:{int(record.key[-8:], 16) ^ 1:08x}"
        honest(self, record, again=again)

    patch.setattr(Machine, "_begin", begin)


def _resends_count_as_unsent(patch: pytest.MonkeyPatch) -> None:
    honest = Machine._begin
    patch.setattr(Machine, "_begin", lambda self, record, *, again=False: honest(self, record))


def _commit_ignores_cancels(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Statements, "cancels", lambda self, link, kernel_id, seen: [])


def _cancel_takes_the_pack(patch: pytest.MonkeyPatch) -> None:
    async def cancel_part(self: Stops, handle: Any, keys: Any, *, force: bool) -> None:
        await self._cancel([handle], force=force)

    patch.setattr(Stops, "_cancel_part", cancel_part)


def _first_of_a_pack_adopted(patch: pytest.MonkeyPatch) -> None:
    def adopt(self: LaneWork, jobs: Any) -> None:
        for handle, _ in jobs:
            self._flights.add(handle, [handle.key], adopted=True)
        self._calls.wake()

    patch.setattr(LaneWork, "adopt", adopt)


def _claims_of_packs_that_ran_untaken(patch: pytest.MonkeyPatch) -> None:
    honest = Flights._lost

    def lost(self: Flights, told: Any, flight: Any, reason: Any, message: str) -> None:
        if flight.running:
            flight.lost = (reason, message)
        honest(self, told, flight, reason, message)

    patch.setattr(Flights, "_lost", lost)


def _tasks_stay_with_their_first_job(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Carriers, "leave", lambda self, key: None)


def _ends_at_a_stop(patch: pytest.MonkeyPatch) -> None:
    honest = Engine.stop

    def stop(self: Engine, timeout: float = 10.0) -> None:
        for live in self._live.values():
            for record in list(live.machine.records.values()):
                if record.status is S.RUNNING:
                    gone = ev.Gone(record.node_id, record.attempt, Reason.LOST, "stopped")
                    live.machine.handle([gone], self._world.time())
        with suppress(StoreUnavailableError):
            self._decide_and_store(Intake(self.store, self.kernel_id, 9), Orders())
        honest(self, timeout)

    patch.setattr(Engine, "stop", stop)


def _cancels_at_a_stop(patch: pytest.MonkeyPatch) -> None:
    honest = LaneWork.begin_close

    def begin_close(self: LaneWork) -> None:
        handles = [flight.handle for flight in self._flights._flights.values()]
        self.last = asyncio.ensure_future(  # type: ignore[attr-defined]
            self._calls.executor.cancel(handles, force=True)
        )
        honest(self)

    patch.setattr(LaneWork, "begin_close", begin_close)


def _inputs_do_not_count(patch: pytest.MonkeyPatch) -> None:
    honest = reuse.execution_keys

    def keys(node: Any, tables: Any, output: Any) -> Any:
        return honest(dataclasses.replace(node, args=[], kwargs={}), tables, output)

    patch.setattr(reuse, "execution_keys", keys)
    patch.setattr(diff, "execution_keys", keys)


def _running_tasks_taken_over(patch: pytest.MonkeyPatch) -> None:
    honest = reuse.Reuse.look

    def look(self: Any, node_id: int, output: Any) -> Any:
        decided = honest(self, node_id, output)
        candidate = self.index.records.get(node_id)
        if decided.origin is None and candidate is not None and candidate.key is not None:
            value = ValueRef(digest_bytes(b""), 0, "test:")
            origin = (self.index.dispatch_id, node_id)
            return dataclasses.replace(decided, origin=origin, output=value)
        return decided

    patch.setattr(reuse.Reuse, "look", look)


PLANTED = {
    "no intent before the call": Planted(_no_intent, ("lookup",)),
    "sent again at once after an unknown outcome": Planted(_resend_at_once, ("lookup",)),
    "no quiet period": Planted(_change_model("lookup", limits={"find_grace": 0.0}), ("lookup",)),
    "workers claim nothing": Planted(_change_model("claims", claim=False), ("claims",)),
    "no tombstone": Planted(_no_tombstone, ("claims-only",)),
    "tombstone for unresolved attempts only": Planted(
        _tombstone_for_unresolved_only, ("claims", "claims-only")
    ),
    "absent is lost at once": Planted(
        _change_model("lookup", limits={"absent_grace": 0.0}), ("lookup",)
    ),
    "cancelled when asked": Planted(_cancelled_when_asked, ("token",)),
    "cancel is asked once": Planted(_cancel_once, ("token",)),
    "owner and epoch unchecked": Planted(_owner_unchecked, ("claims",), _STALLS),
    "row before blob": Planted(_row_before_blob, ("token",)),
    "flag unchecked between commit and call": Planted(_flag_unchecked_in_the_lane, ("token",)),
    "children readied from memory": Planted(_ready_from_memory, ("token",), _CRASHES),
    "running tasks forgotten at a restart": Planted(
        _forgotten_at_restart(S.SUBMITTED, S.RUNNING), ("token",), _CRASHES
    ),
    "intents forgotten at a restart": Planted(
        _forgotten_at_restart(S.SUBMITTING), ("token",), _CRASHES
    ),
    "cancels forgotten at a restart": Planted(
        _forgotten_at_restart(S.CANCELLING), ("token",), _CRASHES
    ),
    "released before it is stored": Planted(_released_before_stored, ("token",)),
    "a new key for a resend": Planted(_new_key_for_a_resend, ("claims-only",)),
    "resends count as unsent": Planted(_resends_count_as_unsent, ("claims-only",)),
    "the commit ignores cancels": Planted(_commit_ignores_cancels, ("token",)),
    "inputs do not count for reuse": Planted(_inputs_do_not_count, ("token",), _CRASHES),
    "running tasks are taken over": Planted(_running_tasks_taken_over, ("token",), _CRASHES),
    "a cancel of one task ends its pack": Planted(_cancel_takes_the_pack, ("packs",)),
    "only the first task of a pack is adopted": Planted(
        _first_of_a_pack_adopted, ("packs",), _CRASHES
    ),
    "no claims are taken of a pack that ran": Planted(
        _claims_of_packs_that_ran_untaken, ("packs",)
    ),
    "a task stays with its first job": Planted(_tasks_stay_with_their_first_job, ("packs",)),
    "a kernel that stops ends its tasks": Planted(_ends_at_a_stop, ("token",), _CRASHES),
    "a kernel that stops cancels its jobs": Planted(_cancels_at_a_stop, ("token",), _CRASHES),
}
