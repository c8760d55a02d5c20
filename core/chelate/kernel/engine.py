"""The engine: one thread that decides, stores, tells and acts, in that order, turn by turn.

A turn drains the inbox, lets the machines of all dispatches decide, writes everything in one
transaction, wakes who waits, and only then hands effects to the lanes: an effect never leaves
before the commit that caused it. Work is per batch, never per task.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

from chelate.contracts.executor import JobHandle
from chelate.contracts.store import CancelRequest, Commit, ResultStore
from chelate.errors import (
    ChelateError,
    MachineError,
    OwnershipLostError,
    StoreUnavailableError,
)
from chelate.graph import Graph
from chelate.kernel import events as ev
from chelate.kernel.intake import Intake
from chelate.kernel.lane_table import LaneTable, Orders
from chelate.kernel.lanes.report import LaneReport, sentence
from chelate.kernel.live import LiveDispatch
from chelate.kernel.outage import Outage
from chelate.kernel.outside import Outside
from chelate.kernel.passing import Passing
from chelate.kernel.plugins.registry import Plugins
from chelate.kernel.turn import Turn
from chelate.kernel.waiters import Waiters
from chelate.kernel.world import World
from chelate.model import DispatchRecord, NodeRecord
from chelate.settings import Settings

__all__ = ["Engine"]

_LOG = logging.getLogger("chelate.engine")
_STORE_ID = "store-id"
_DEFECTS = 3  # turns of one dispatch that may fail


class Engine:
    """Runs dispatches over one store. Public methods may be called from any thread."""

    def __init__(
        self, store: ResultStore, plugins: Plugins, settings: Settings, world: World | None = None
    ) -> None:
        self._world = world or World()
        self.store = store
        self.plugins = plugins
        self.settings = settings
        self.kernel_id = ""
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._live: dict[str, LiveDispatch] = {}
        self._lanes = LaneTable(plugins, settings, self._inbox.put, self._world, store)
        self._timers: list[tuple[float, int, str, ev.Event]] = []
        self._tick = itertools.count()
        self._outside = Outside(store, settings.poll_interval, self._world)
        self._passing = Passing(self._lanes.dies_with_us, self._world)
        self._waiters = Waiters()
        self._seen = 0
        self._defects: Counter[str] = Counter()
        self._unread: list[str] = []  # adopted, and not yet read
        self._early: dict[str, list[CancelRequest]] = {}  # for dispatches not yet begun
        self.outage = Outage(self._world)
        self._stopping = False
        self._thread = self._world.thread("chelate-kernel", self._main)

    # -- from other threads -------------------------------------------------------------------

    def start(self) -> None:
        """Take a kernel's lock and start the thread.

        Raises:
            StoreError: the store cannot be used.
        """
        self._lanes.store_id = self._store_id()
        self.kernel_id = self.store.claim_kernel()
        self._thread.start()

    def _store_id(self) -> str:
        """What marks this store's jobs; made by the first kernel."""
        made = self._world.token() + self._world.token()
        self.store.set_facts({_STORE_ID: made}, {_STORE_ID: None})
        return str(self.store.get_fact(_STORE_ID))

    def submit(self, record: DispatchRecord, graph: Graph) -> None:
        """Run a dispatch that is already stored with this kernel as its owner."""
        self._waiters.begin(record.dispatch_id)
        self._inbox.put((record, graph))

    def poke(self) -> None:
        """Look at once for cancels and orphaned dispatches."""
        self._inbox.put(None)

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopping

    def running(self) -> list[str]:
        """Ids of dispatches this kernel is running, sub-workflows left out."""
        return self._waiters.running()

    def wait(self, dispatch_id: str, timeout: float | None) -> bool | None:
        """Wait for a dispatch; True when it has ended, False on time-out, None if not ours.

        Raises:
            MachineError: the dispatch hit a defect and was set aside.
        """
        return self._waiters.wait(dispatch_id, timeout)

    def logs(self, record: NodeRecord, stream: str, offset: int, limit: int) -> bytes:
        """Output of a running task, straight from its executor; empty when not reachable."""
        lane = self._lanes.find(record.executor or "")
        if lane is None or record.handle is None:
            return b""
        return lane.logs(JobHandle.from_json(record.handle), stream, offset, limit)

    def strays(self) -> dict[str, int]:
        """Lane name → how many jobs that belonged to no task were ended."""
        return dict(self._lanes.strays)

    def troubles(self) -> dict[str, str]:
        """Lane name → why its executor does not work at present."""
        return self._lanes.troubles()

    def stop(self, timeout: float = 10.0) -> None:
        """Let go: stored dispatches are taken up again by the next kernel on this store."""
        self._stopping = True
        self._inbox.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        self._lanes.close(timeout)
        self._waiters.stop()

    # -- the loop -----------------------------------------------------------------------------

    def _main(self) -> None:
        while not self._stopping:
            self.step(max(0.0, self.due() - self._world.monotonic()))

    def due(self) -> float:
        """The monotonic moment at which something is to be done even if no news comes."""
        if not self._inbox.empty():
            return 0.0
        due = min(self._outside.due, self._timers[0][0]) if self._timers else self._outside.due
        passing = self._passing.due()
        return due if passing is None else min(due, passing)

    def step(self, wait: float) -> None:
        """One turn, after at most ``wait`` seconds without news. The thread does nothing else."""
        items = self._receive(wait)
        if self._stopping:
            return
        try:
            self._turn(items)
            self.outage.over()
            for dispatch_id in self._defects.keys() - set(self._unread):
                del self._defects[dispatch_id]
        except StoreUnavailableError as error:
            self.outage.goes_on(self._world.monotonic(), error)
            self._reload(items)
        except self._world.fatal:
            raise
        except BaseException as error:  # noqa: BLE001 - a defect, or a store that raises anything
            _LOG.exception("A turn of the kernel failed; every dispatch is read again.")
            self._reload(items, error)

    def _receive(self, wait: float) -> list[Any]:
        """Everything in the inbox; waits for the first item."""
        items: list[Any] = []
        with suppress(queue.Empty):
            items.append(self._inbox.get(timeout=wait))
            while True:
                items.append(self._inbox.get_nowait())
        return items

    def _turn(self, items: list[Any]) -> None:
        intake = Intake(self.store, self.kernel_id, self.settings.max_depth)
        events: dict[str, list[ev.Event]] = {}
        orders = Orders()
        for item in items:
            if isinstance(item, LaneReport):
                self._lanes.note(item)
                told = intake.take(item, self._live, orders, self.plugins.hooks)
                for dispatch_id, event in (*told, *self._lanes.stuck(item, self._live)):
                    events.setdefault(dispatch_id, []).append(event)
            elif item is None:
                self._outside.hurry()
            else:
                self._begin(*item)
        self._fire_timers(events)
        self._look_around(events)
        for dispatch_id, facts in events.items():
            self._apply(dispatch_id, facts)
        self._decide_and_store(intake, orders)

    def _begin(self, record: DispatchRecord, graph: Graph) -> None:
        live = LiveDispatch.of(record, graph, self.store, self._world)
        self._live[record.dispatch_id] = live
        live.begin(self._world.time())
        live.machine.start()
        self._heed(self._early.pop(record.dispatch_id, []))

    def _apply(self, dispatch_id: str, facts: list[ev.Event]) -> None:
        live = self._live.get(dispatch_id)
        if live is None:
            return
        try:
            live.machine.handle(facts, self._world.time())
        except MachineError as error:
            _LOG.exception("Dispatch %s is set aside.", dispatch_id)
            self._set_aside(dispatch_id, str(error))

    def _set_aside(self, dispatch_id: str, why: str) -> None:
        self._live.pop(dispatch_id, None)
        self._lanes.forget(dispatch_id)
        self._waiters.break_off(dispatch_id, why)

    def _reload(self, items: list[Any], defect: BaseException | None = None) -> None:
        """Trust only the store. A dispatch that keeps meeting a defect is set aside."""
        begun = {item[0].dispatch_id for item in items if isinstance(item, tuple)}
        for dispatch_id in [*self._live, *(begun - self._live.keys())]:
            self._defects[dispatch_id] += defect is not None
            why = f"A defect in chelate: {defect!r}"
            delay = 0.1
            while self._defects[dispatch_id] < _DEFECTS and not self._stopping:
                try:
                    live = LiveDispatch.load(self.store, dispatch_id, self._world)
                    self._live[dispatch_id] = live
                    break
                except StoreUnavailableError:
                    self._world.sleep(delay)
                    delay = min(delay * 2, 5.0)
                except ChelateError as error:
                    why = str(error)
                    self._defects[dispatch_id] = _DEFECTS
                except self._world.fatal:
                    raise
                except BaseException as error:  # noqa: BLE001 - a store may raise anything
                    why = f"Its store raised {error!r}."
                    self._defects[dispatch_id] += 1
                    self._world.sleep(delay)
            else:
                if not self._stopping:
                    self._set_aside(dispatch_id, why)
        for live in [one for one in self._live.values() if one.record.owner != self.kernel_id]:
            del self._live[live.record.dispatch_id]  # another kernel's by now
            self._lanes.forget(live.record.dispatch_id)
            self._waiters.end([live.record.dispatch_id])

    # -- facts --------------------------------------------------------------------------------

    def _fire_timers(self, events: dict[str, list[ev.Event]]) -> None:
        now = self._world.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, dispatch_id, event = heapq.heappop(self._timers)
            events.setdefault(dispatch_id, []).append(event)

    def _look_around(self, events: dict[str, list[ev.Event]]) -> None:
        """What other processes have asked for, and what dead ones have left behind."""
        if not self._outside.look_due():
            return
        try:
            self._heed(self._outside.requests(self.kernel_id, self._seen))
            self._unread += self._outside.adopted(self.kernel_id)
            if self._unread:
                self._adopt()
            for dispatch_id, event in self._outside.ended_children(self._live):
                events.setdefault(dispatch_id, []).append(event)
        except StoreUnavailableError as error:
            _LOG.warning("The store cannot be read at present: %s", error)
        except OwnershipLostError as error:
            self._live_on(error)

    def _live_on(self, error: OwnershipLostError) -> None:
        """Become a new kernel when the old one has lost its lock for good."""
        _LOG.warning("%s", error.args[0])
        if not self.store.kernels_alive([self.kernel_id]):
            self.kernel_id = self.store.claim_kernel()

    def _heed(self, requests: list[CancelRequest]) -> None:
        for request in requests:
            self._seen = max(self._seen, request.seq)
            live = self._live.get(request.dispatch_id)
            if live is None:
                self._early.setdefault(request.dispatch_id, []).append(request)
                continue
            if request.nodes is None:
                live.record.cancel_requested = True
                live.changed = True
            live.machine.handle([ev.Cancel(request.nodes)], self._world.time())

    def _adopt(self) -> None:
        again: list[str] = []
        while self._unread:
            dispatch_id = self._unread[-1]
            known = self._live.get(dispatch_id)
            try:
                live = LiveDispatch.load(self.store, dispatch_id, self._world, known)
            except StoreUnavailableError:
                raise  # it stays unread until the store works again
            except self._world.fatal:
                raise
            except BaseException as error:  # noqa: BLE001 - a store may raise anything
                self._unread.pop()
                self._defects[dispatch_id] += 1
                _LOG.error("Dispatch %s cannot be resumed: %s", dispatch_id, sentence(error))
                if isinstance(error, ChelateError) or self._defects[dispatch_id] >= _DEFECTS:
                    self._set_aside(dispatch_id, sentence(error))
                else:
                    again.append(dispatch_id)
                continue
            self._unread.pop()
            if live is not known:
                if known is not None:
                    self._lanes.forget(dispatch_id)
                self._live[dispatch_id] = live
                self._lanes.adopt(live)
                self._waiters.begin(dispatch_id)
        self._unread = again
        self._heed(self.store.cancel_requests(self.kernel_id, 0))

    # -- deciding and storing -----------------------------------------------------------------

    def _decide_and_store(self, intake: Intake, orders: Orders) -> None:
        turn = Turn(self._live, self._lanes, intake, orders)
        while True:
            turn.settle_down()
            self._passing.sift(turn.changed, self._live)
            commit = turn.commit()
            requests = [] if commit is None else self._commit(commit, turn)
            if not requests:
                break
            self._heed(requests)
        for live in self._live.values():
            live.changed = False
        self._tell(turn)
        self._order(turn)
        self._lanes.renew(self._live.values(), orders)
        self._lanes.carry_out(orders, self._live)

    def _commit(self, commit: Commit, turn: Turn) -> list[CancelRequest]:
        """Store a turn, however long the store is unavailable: nothing is acted on before."""
        delay, started = 0.1, self._world.monotonic()
        while True:
            try:
                return self.store.commit(self.kernel_id, commit, self._seen)
            except OwnershipLostError as error:
                self._live_on(error)
                self._waiters.end(turn.drop(commit, set(error.args[1])))
            except StoreUnavailableError as error:
                if self._stopping:
                    raise
                self.outage.goes_on(started, error)
                self._world.sleep(delay)
                delay = min(delay * 2, 5.0)

    # -- telling and acting -------------------------------------------------------------------

    def _tell(self, turn: Turn) -> None:
        changed, over = turn.changed, turn.over
        if over:
            self._waiters.end([live.record.dispatch_id for live in over])
        hooks = self.plugins.hooks
        if changed and hooks.implemented("tasks_changed"):
            for dispatch_id, records in changed.items():
                hooks.tasks_changed(dispatch_id, list(records.values()))
        if over and hooks.implemented("dispatch_changed"):
            for live in over:
                hooks.dispatch_changed(live.record)

    def _order(self, turn: Turn) -> None:
        """Turn effects into orders for the lanes; what was cancelled meanwhile is not sent."""
        orders = turn.orders
        for live, effect in turn.effects:
            if self._live.get(live.record.dispatch_id) is not live:
                continue  # another kernel's by now, and so is the effect
            if isinstance(effect, ev.StartTimer):
                due = self._world.monotonic() + effect.seconds
                entry = (due, next(self._tick), live.record.dispatch_id, effect.event)
                heapq.heappush(self._timers, entry)
            elif isinstance(effect, ev.CancelChild):
                self.store.request_cancel(effect.child_id, None)
            elif isinstance(effect, ev.Run):
                if live.machine.sent(effect.node):
                    record = live.machine.records[effect.node]
                    job = live.job(record, self.store, self._lanes.store_id)
                    orders.jobs.setdefault(record.executor or "", []).append(job)
            else:
                orders.add(effect, live.machine.records[effect.node])
