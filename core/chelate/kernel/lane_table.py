"""The lanes of one kernel: opened when first needed, filled to their limits, told what to do."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from chelate.contracts.executor import Capabilities, Executor, Job, JobHandle, Limits
from chelate.contracts.store import ResultStore
from chelate.errors import RejectedError
from chelate.kernel import events as ev
from chelate.kernel.homecoming import Homecoming
from chelate.kernel.keys import lane_ref, split_key
from chelate.kernel.lanes.lane import Lane
from chelate.kernel.lanes.report import LaneReport
from chelate.kernel.live import LiveDispatch
from chelate.kernel.plugins.registry import Plugins
from chelate.kernel.states.resuming import unresolved
from chelate.kernel.world import World
from chelate.model import FINAL, NodeRecord, NodeStatus, Reason
from chelate.settings import Settings

__all__ = ["LaneTable", "Orders"]

_LOG = logging.getLogger("chelate.lanes")
_IN_FLIGHT = frozenset(
    {NodeStatus.SUBMITTING, NodeStatus.SUBMITTED, NodeStatus.RUNNING, NodeStatus.CANCELLING}
)
_NO_LIMIT = 1 << 30
_CHECK_EVERY = 1.0  # seconds
_THREADS = 5
_SHOWN = 10  # waiting tasks of a dispatch that say why they wait
# Seconds until an executor that could not be made is made again while tasks depend on it.
_FIRST_WAIT = 30.0
_LAST_WAIT = 600.0


def _seconds(limits: Limits | None) -> str:
    return f"{(limits or Limits()).call_timeout:g}"


@dataclass(slots=True)
class _LaneState:
    """A lane as the engine sees it. ``limits`` is None until its executor is open."""

    lane: Lane
    limits: Limits | None = None
    capabilities: Capabilities | None = None
    failed: str | None = None
    failed_at: float = 0.0  # seconds since the epoch, as a dispatch's creation
    renew: bool = False  # somebody wants it to be made again
    renew_due: float = 0.0  # monotonic, as is wanted for tasks that it runs
    renew_wait: float = 0.0
    trouble: str | None = None
    paused: str = ""
    hurried_at: float = 0.0
    flying: set[tuple[str, int]] = field(default_factory=set)
    beats: int | None = None
    silent: int = 0  # checks in a row at which its thread had not answered
    left_behind: int = 0  # threads that its plugin has blocked for good

    def blocked(self) -> bool:
        """Whether its thread has answered nothing for longer than a call may take.

        Counted in checks, not by a clock: a process that was stopped has checked nothing.
        """
        beats = self.lane.beats
        self.silent = 0 if beats is None or beats != self.beats else self.silent + 1
        self.beats = beats
        limit = self.limits.call_timeout if self.limits is not None else 0.0
        return self.silent * _CHECK_EVERY > limit + 3.0 and self.left_behind < _THREADS

    @property
    def room(self) -> int:
        """How many more attempts it may be given; a failed lane refuses any number at once."""
        if self.failed is not None:
            return 0 if self.renew else _NO_LIMIT
        if self.limits is None or self.paused:
            return 0
        return self.limits.max_in_flight - len(self.flying)

    @property
    def holding(self) -> str | None:
        """Why it takes no tasks, when that is worth telling."""
        return self.paused or (self.trouble if self.limits is None else None)


@dataclass(slots=True)
class Orders:
    """What one turn asks of the lanes, gathered per lane."""

    jobs: dict[str, list[Job]] = field(default_factory=dict)
    watch: dict[str, dict[object, JobHandle]] = field(default_factory=dict)  # each job once
    look_up: dict[str, list[str]] = field(default_factory=dict)
    cancel: dict[str, list[str]] = field(default_factory=dict)
    unwanted: set[str] = field(default_factory=set)  # those of them that a user asked for
    release: dict[str, list[str]] = field(default_factory=dict)
    strays: dict[str, list[JobHandle]] = field(default_factory=dict)

    def add(self, effect: ev.Effect, record: NodeRecord) -> None:
        """File one effect other than Run under its lane."""
        name = record.executor or ""
        if isinstance(effect, ev.LookUp):
            self.look_up.setdefault(name, []).append(record.key or "")
        elif record.handle is not None and isinstance(effect, ev.Watch):
            job = (record.handle["key"], record.handle["native_id"], len(record.handle["tasks"]))
            handles = self.watch.setdefault(name, {})
            if job not in handles:
                handles[job] = JobHandle.from_json(record.handle)
        elif isinstance(effect, ev.CancelJob) and record.status is NodeStatus.CANCELLING:
            self.cancel.setdefault(name, []).append(record.key or "")
            if record.cancel_requested:
                self.unwanted.add(record.key or "")

    def keep_results(self, dispatch_ids: set[str]) -> None:
        """Release no job of these dispatches: their new owner has not collected it."""
        for name, keys in self.release.items():
            self.release[name] = [key for key in keys if split_key(key)[0] not in dispatch_ids]


class LaneTable:
    """Lanes by name. Used by the engine's thread only, but for ``find``."""

    def __init__(
        self,
        plugins: Plugins,
        settings: Settings,
        report: Callable[[LaneReport], None],
        world: World,
        store: ResultStore,
    ) -> None:
        self._world = world
        self._plugins = plugins
        self._settings = settings
        self._report = report
        self._lanes: dict[str, _LaneState] = {}
        self._homecoming = Homecoming(store, settings.home, report)
        self._check_due = 0.0
        self.store_id = ""
        self.strays: Counter[str] = Counter()  # jobs of nobody that were ended, by lane

    def find(self, name: str) -> Lane | None:
        """The lane of that name if it has been opened."""
        state = self._lanes.get(name)
        return None if state is None else state.lane

    def dies_with_us(self, name: str | None) -> bool:
        """Whether the lane's jobs end with this process."""
        state = self._lanes.get(name or "")
        known = None if state is None else state.capabilities
        return known is not None and not known.detached

    def troubles(self) -> dict[str, str]:
        """Lane name → why its executor does not work at present."""
        return {
            name: text
            for name, state in list(self._lanes.items())
            if (text := state.failed or state.paused or state.trouble)
        }

    def close(self, timeout: float) -> None:
        """Close every lane."""
        states = list(self._lanes.values())
        for state in states:
            state.lane.begin_close()
        deadline = self._world.monotonic() + timeout
        for state in states:
            state.lane.join(max(0.0, deadline - self._world.monotonic()))

    def _get(self, name: str) -> _LaneState:
        state = self._lanes.get(name)
        if state is not None:
            return state
        state = self._lanes[name] = _LaneState(self._open(name))
        return state

    def _open(self, name: str) -> Lane:
        ref = lane_ref(name)

        def make() -> Executor:
            options = {**self._settings.executors.get(ref.name, {}), **ref.options}
            return self._plugins.executor_with(ref.name, options)()

        lane = Lane(name, make, self._report, self._world, self.store_id)
        lane.start()
        return lane

    def renew(self, lives: Iterable[LiveDispatch], orders: Orders) -> None:
        """Begin anew, as after a restart, where an executor could not be made or its plugin
        blocks the thread."""
        now = self._world.monotonic()
        failed = [
            name
            for name, state in self._lanes.items()
            if state.failed and (state.renew or (state.flying and now >= state.renew_due))
        ]
        for name in failed:
            state = self._lanes[name]
            state.lane, state.failed, state.renew = self._open(name), None, False
        blocked: list[str] = []
        if now >= self._check_due:
            self._check_due = now + _CHECK_EVERY
            blocked = [name for name, state in self._lanes.items() if state.blocked()]
            self._replace(blocked)
        again = {*failed, *blocked}
        for live in lives if again else ():
            for record in live.machine.records.values():
                if record.status in _IN_FLIGHT and record.executor in again:
                    policy = live.machine.policy(record.node_id)
                    for effect in unresolved(record, policy, self._world.time()):
                        if not isinstance(effect, (ev.StartTimer, ev.CancelChild)):
                            orders.add(effect, record)

    def _replace(self, blocked: Iterable[str]) -> None:
        for name in blocked:
            state = self._lanes[name]
            state.lane.abandon()
            state.lane, state.beats, state.silent = self._open(name), None, 0
            state.left_behind += 1
            state.lane.fetch(self._homecoming.asked(name))
            state.trouble = (
                f"Its plugin blocked or ended its thread, and nothing came for longer than "
                f"{_seconds(state.limits)} s; "
                f"thread {state.left_behind + 1} has taken over."
            )
            _LOG.error("Executor %s: %s", name, state.trouble)

    def note(self, report: LaneReport) -> None:
        """Take in what a lane says of itself."""
        state = self._lanes[report.lane]
        if report.opened is not None:
            state.limits, state.capabilities = report.opened
            state.renew_wait = 0.0
        if report.failed is not None:
            state.failed, state.failed_at = report.failed, self._world.time()
            state.renew_wait = min(max(_FIRST_WAIT, 2 * state.renew_wait), _LAST_WAIT)
            state.renew_due = self._world.monotonic() + state.renew_wait
        if report.paused is not None:
            if report.paused and not state.paused:
                state.hurried_at = self._world.time()
            state.paused = report.paused
        if report.trouble is not None or report.opened is not None:
            state.trouble = report.trouble or None
        for name, job in self._homecoming.take(report):
            self._run(name, [job])

    def stuck(
        self, report: LaneReport, lives: Mapping[str, LiveDispatch]
    ) -> Iterator[tuple[str, ev.Event]]:
        """Attempts of which nothing comes while the lane cannot be used, and why."""
        state = self._lanes[report.lane]
        message = "" if report.opened is not None else report.failed or state.holding
        if message is None:
            return
        for dispatch_id, node in state.flying:
            live = lives.get(dispatch_id)
            record = None if live is None else live.machine.records.get(node)
            if record is None:
                continue
            # What is over is news only where something was said.
            tell = report.failed or record.status is NodeStatus.CANCELLING
            if tell if message else record.error:
                yield dispatch_id, ev.Stuck(node, record.attempt, message)

    def take(self, lives: Iterable[LiveDispatch]) -> None:
        """Give ready nodes to lanes that have room, dispatch by dispatch."""
        waiting = self._homecoming.waiting()
        for live in lives:
            ready = live.machine.ready
            for name in list(ready):
                if not ready[name]:
                    del ready[name]
                    continue
                state = self._get(name)
                self._hurry(state, live)
                room = state.room
                if waiting[name] and state.limits is not None and not state.paused:
                    # A job that waits for a value keeps no other from running, within reason.
                    room += min(waiting[name], state.limits.max_in_flight)
                if room > 0:
                    taken = live.machine.take(name, room, self._world.time())
                    state.flying.update((live.record.dispatch_id, node) for node in taken)
                elif why := state.holding:
                    told = islice(ready[name], _SHOWN)
                    notes = [ev.Stuck(i, live.machine.records[i].attempt, why) for i in told]
                    live.machine.handle(notes, self._world.time())

    def _hurry(self, state: _LaneState, live: LiveDispatch) -> None:
        """A dispatch that is younger than a trouble may be the user's next try."""
        created = live.record.created_at
        if state.failed is not None:
            state.renew |= created > state.failed_at
        elif state.paused and live.record.parent_id is None and created > state.hurried_at:
            state.hurried_at = created
            state.lane.hurry()

    def count(self, dispatch_id: str, records: Sequence[NodeRecord]) -> None:
        """Keep the number of attempts in flight after nodes have changed."""
        for record in records:
            state = self._lanes.get(record.executor or "")
            if state is None:
                continue
            if record.status in _IN_FLIGHT:
                state.flying.add((dispatch_id, record.node_id))
            else:
                state.flying.discard((dispatch_id, record.node_id))

    def adopt(self, live: LiveDispatch) -> None:
        """Count the attempts that an earlier kernel left in flight."""
        for record in live.machine.records.values():
            if record.status in _IN_FLIGHT:
                entry = (live.record.dispatch_id, record.node_id)
                self._get(record.executor or "").flying.add(entry)

    def forget(self, dispatch_id: str) -> None:
        """A dispatch left this kernel."""
        self._homecoming.forget(dispatch_id)
        for state in self._lanes.values():
            state.flying = {entry for entry in state.flying if entry[0] != dispatch_id}
            state.lane.disown(dispatch_id)  # its lane may have more: ends that were never stored

    def carry_out(self, orders: Orders, lives: Mapping[str, LiveDispatch]) -> None:
        """Hand a turn's orders to the lanes."""
        for name, wanted in self._homecoming.sift(orders.jobs).items():
            lane = self._get(name)
            lane.lane.fetch(wanted)
            if lane.failed is not None:
                self._report(LaneReport(name, failed=lane.failed))
        for name, jobs in orders.jobs.items():
            if jobs:
                self._run(name, jobs)
        for name, watch in orders.watch.items():
            handles = list(watch.values())
            if not self._is_stuck(name, [k for h in handles for k in h.tasks or (h.key,)]):
                self._get(name).lane.watch([(h, _settled(h, lives)) for h in handles])
        for name, keys in orders.look_up.items():
            self._homecoming.drop(keys)
            if not self._is_stuck(name, keys):
                self._get(name).lane.look_up(keys)
        for name, asked in orders.cancel.items():
            keys = self._homecoming.cancelled(name, asked)
            if not self._is_stuck(name, keys):
                self._get(name).lane.cancel(keys, orders.unwanted)
        for name, keys in orders.release.items():
            self._get(name).lane.release(keys)
        for name, handles in orders.strays.items():
            self.strays[name] += len(handles)
            text = "Executor %s: %d jobs that belong to no task are ended: %s"
            _LOG.warning(text, name, len(handles), ", ".join(h.native_id for h in handles[:10]))
            self._get(name).lane.end_strays(handles)

    def _is_stuck(self, name: str, keys: Sequence[str]) -> bool:
        """Whether the lane could not be made; then that is said of these tasks."""
        failed = self._get(name).failed
        if failed is None:
            return False
        report = LaneReport(name)
        for key in keys:
            dispatch_id, node, attempt = split_key(key)
            report.events.append((dispatch_id, ev.Stuck(node, attempt, failed)))
        self._report(report)
        return True

    def _run(self, name: str, jobs: list[Job]) -> None:
        state = self._get(name)
        hooks = self._plugins.hooks
        refusal = (Reason.PLUGIN, state.failed) if state.failed else None
        if refusal is None and hooks.implemented("before_run"):
            try:
                hooks.before_run(lane_ref(name), jobs)
            except RejectedError as error:
                refusal = (Reason.INVALID_SPEC, str(error))
        if refusal is None:
            state.lane.run(jobs)
            return
        report = LaneReport(name)
        for job in jobs:
            for task in job.tasks:
                refused = ev.Refused(task.node_id, task.attempt, *refusal)
                report.events.append((task.dispatch_id, refused))
        self._report(report)


def _settled(handle: JobHandle, lives: Mapping[str, LiveDispatch]) -> set[str]:
    """Tasks of a packed job that another job had claimed, and that have ended there."""
    found: set[str] = set()
    for key in handle.tasks if len(handle.tasks) > 1 else ():
        dispatch_id, node, _ = split_key(key)
        record = lives[dispatch_id].machine.records.get(node) if dispatch_id in lives else None
        if record is None or record.key != key or record.status not in FINAL:
            continue
        if (record.handle or {}).get("native_id") not in (None, handle.native_id):
            found.add(key)
    return found
