"""The triggers of one kernel: one thread that knows when each is due, and a small pool that looks.

A trigger costs no thread of its own unless its ``observe`` blocks. Each is owned by one kernel;
when an owner dies, the next kernel on the store that notices takes over.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chelate.contracts.store import ResultStore
from chelate.contracts.trigger import BaseTrigger, Check
from chelate.errors import ChelateError, ConfigError, PluginError, StoreUnavailableError
from chelate.kernel.pool import Pool
from chelate.kernel.trigger_fires import Armed, Firing
from chelate.kernel.trigger_records import (
    ACTIVE,
    STOPPED,
    Definition,
    Progress,
    Secrets,
    TriggerClasses,
    fact,
    fires_fact,
    state_fact,
)
from chelate.kernel.trigger_watch import Observing

if TYPE_CHECKING:
    from chelate.kernel.plugins import Plugins
    from chelate.settings import Settings

__all__ = ["Prepared", "TriggerHost"]

_LOG = logging.getLogger("chelate.triggers")
_POLLS = 8
_OWNERS_EVERY = 1.0
_LONGEST = 60.0  # a clock that was set, or a suspended machine, is noticed after so many seconds
_CLASS_EVERY = 30.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked trigger whose ``facts`` wait to be stored; then :meth:`TriggerHost.arm` it."""

    armed: Armed
    facts: Mapping[str, Any]


class TriggerHost:
    """Runs the triggers that its kernel owns. Public methods may be called from any thread."""

    def __init__(
        self,
        store: ResultStore,
        plugins: Plugins,
        settings: Settings,
        kernel_id: str,
        repeat: Callable[..., str],
        poke: Callable[[], None],
    ) -> None:
        self.classes = TriggerClasses(plugins)
        self.secrets = Secrets(settings.home / "triggers")
        self._store = store
        self._kernel_id = kernel_id
        self._every = settings.poll_interval
        self._firing = Firing(store, kernel_id, repeat, poke, self.refresh)
        self._polls = Pool("chelate-trigger", _POLLS)
        self._quick = Pool("chelate-timer", 1)
        self._armed: dict[str, Armed] = {}  # guarded by _changed, as the next three
        self._parked: dict[str, BaseTrigger] = {}
        self._due: list[tuple[float, int, Armed]] = []
        self._look_due = 0.0
        self._counter: int | None = None
        self._owners: set[str] = set()
        self._owners_due = 0.0
        self._tick = itertools.count(1)
        self._changed = threading.Condition(threading.RLock())
        self._looking = threading.RLock()
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="chelate-triggers", daemon=True)

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the scheduler; stored triggers without a living owner are taken up at once."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Let go: nothing fires any more, and the next kernel takes the triggers up."""
        with self._changed:
            self._closing = True
            armed = list(self._armed.values())
            self._changed.notify_all()
        self._firing.shut()
        for item in armed:
            self._disarm(item)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        self._polls.close()
        self._quick.close()

    def refresh(self) -> None:
        """Look at once for triggers that were stopped, paused, resumed or left behind."""
        with self._changed:
            self._look_due = 0.0
            self._counter = None
            self._changed.notify_all()

    def settle(self) -> None:
        """As :meth:`refresh`, but done when this returns."""
        self._look_around(force=True)

    # -- registering ----------------------------------------------------------------------------

    def prepare(self, trigger: BaseTrigger, dispatch_id: str, *, copy: bool) -> Prepared:
        """Check a trigger, make its first look, and say what to store.

        Args:
            trigger: any trigger, not registered.
            dispatch_id: what it starts.
            copy: run an equal one, and leave this object alone.

        Raises:
            ConfigError: an option is wrong.
        """
        kind = type(trigger)
        observes = kind.observe is not BaseTrigger.observe
        if not kind.checks() and not observes:
            raise ConfigError(
                f"{kind.__name__} implements neither observe() nor check(); a trigger needs one "
                "of them."
            )
        trigger.check_common()
        trigger.validate()
        options = trigger.options()
        hidden = trigger.hide(options)
        where, plugin = self.classes.note(kind)
        overlap = trigger.overlap or ("queue" if trigger.max_concurrent else "allow")
        now = time.time()
        definition = Definition(
            trigger_id=str(uuid.uuid4()),
            dispatch_id=dispatch_id,
            kind=kind.name,
            where=where,
            plugin=plugin,
            options=options,
            max_concurrent=trigger.max_concurrent,
            overlap=overlap,
            created_at=now,
            secret=bool(hidden),
        )
        if hidden:
            self.secrets.write(definition.trigger_id, hidden)
        instance = definition.make(kind, self.secrets) if copy else trigger
        look = instance.check(None, now)
        progress = Progress(pending=look.fires, next_fire=look.next_fire)
        armed = Armed(definition, progress, look.cursor, [], instance)
        facts = {
            fact("trigger", definition.trigger_id): definition.to_json(),
            fact("trigger-state", definition.trigger_id): state_fact(ACTIVE, self._kernel_id),
            fact("trigger-progress", definition.trigger_id): progress.to_json(),
            fact("trigger-cursor", definition.trigger_id): [look.cursor],
        }
        return Prepared(armed, facts)

    def arm(self, prepared: Prepared) -> str:
        """Start a prepared trigger whose facts are stored; its id."""
        armed = prepared.armed
        with self._changed:
            if self._closing:
                return armed.trigger_id
            current = self._armed.setdefault(armed.trigger_id, armed)
        if current is not armed:
            # The scheduler saw the facts first and made an instance of its own from them.
            self._disarm(current)
            with self._changed:
                self._armed[armed.trigger_id] = armed
        self._begin(armed)
        return armed.trigger_id

    # -- the scheduler --------------------------------------------------------------------------

    def _main(self) -> None:
        while True:
            with self._changed:
                while not self._closing:
                    now = time.monotonic()
                    due = self._look_due
                    if self._due:
                        due = min(due, self._due[0][0])
                    if due <= now:
                        break
                    self._changed.wait(due - now)
                if self._closing:
                    return
                ready = self._take(time.monotonic())
                look = self._look_due <= time.monotonic()
            for armed in ready:
                quick = armed.instance is not None and armed.instance.quick
                (self._quick if quick else self._polls).submit(lambda item=armed: self._turn(item))
            if look:
                self._look_safely()

    def _take(self, now: float) -> list[Armed]:
        ready = []
        while self._due and self._due[0][0] <= now:
            _, tick, armed = heapq.heappop(self._due)
            if tick == armed.tick and not armed.closed:
                armed.busy = True
                ready.append(armed)
        return ready

    def _schedule(self, armed: Armed, delay: float) -> None:
        with self._changed:
            if armed.busy:
                armed.again = True
                return
            armed.tick = next(self._tick)
            due = time.monotonic() + min(delay, _LONGEST)
            heapq.heappush(self._due, (due, armed.tick, armed))
            if self._due[0][1] == armed.tick:
                self._changed.notify_all()

    def _turn(self, armed: Armed) -> None:
        """One look, in the pool."""
        delay: float | None = None
        try:
            with armed.lock:
                if armed.closed:
                    return
                delay = self._look(armed)
        except Exception as error:  # noqa: BLE001 - whatever a trigger raises is shown, not fatal
            delay = self._firing.failed(armed, error)
        finally:
            with self._changed:
                armed.busy = False
                again, armed.again = armed.again, False
            if armed.closed:
                self._let_go(armed)
            elif again or delay is not None:
                self._schedule(armed, 0.0 if again else delay or 0.0)

    def _look(self, armed: Armed) -> float | None:
        if armed.instance is None:
            try:
                self._make(armed)
            except (PluginError, ConfigError) as error:
                self._firing.failed(armed, error, "class not found")
                return _CLASS_EVERY
            if not type(armed.instance).checks():
                Observing(self._firing, armed, self._ended).start()
        instance = armed.instance
        assert instance is not None
        if type(instance).checks():
            look = instance.check(armed.cursor, time.time())
            rest = instance.interval if look.due is None else look.due
        else:
            look, rest = Check(0, armed.cursor, None, armed.progress.next_fire), None
        wait = self._firing.apply(armed, look)
        if wait is None or rest is None:
            return wait if rest is None else rest
        return min(wait, rest)

    # -- arming and disarming -------------------------------------------------------------------

    def _begin(self, armed: Armed) -> None:
        if armed.instance is not None:
            self._connect(armed, armed.instance)
            if not type(armed.instance).checks():
                Observing(self._firing, armed, self._ended).start()
        self._schedule(armed, 0.0)

    def _connect(self, armed: Armed, instance: BaseTrigger) -> None:
        instance._link = Link(self, armed)
        instance.stop_flag.clear()
        instance.cursor = armed.cursor

    def _make(self, armed: Armed) -> None:
        found = self.classes.find(armed.definition)
        instance = self._parked.get(armed.trigger_id)
        if instance is None:
            instance = armed.definition.make(found, self.secrets)
        self._connect(armed, instance)
        armed.instance = instance

    def _load(self, trigger_id: str) -> Armed | None:
        data = self._store.get_fact(fact("trigger", trigger_id))
        if data is None:
            return None
        progress = Progress.from_json(self._store.get_fact(fact("trigger-progress", trigger_id)))
        wrapped = self._store.get_fact(fact("trigger-cursor", trigger_id))
        latest = self._store.get_fact(fires_fact(trigger_id, max(1, progress.fires)))
        cursor = None if wrapped is None else wrapped[0]
        return Armed(Definition.from_json(data), progress, cursor, latest or [])

    def _disarm(self, armed: Armed) -> None:
        """Nothing more happens, though a look may still be under way; its outcome is dropped."""
        with self._changed:
            armed.closed = True
            if self._armed.get(armed.trigger_id) is armed:
                del self._armed[armed.trigger_id]
            busy = armed.busy
        instance = armed.instance
        if instance is None:
            return
        try:
            instance.stop()
        except Exception:
            _LOG.exception("stop() of trigger %s (%s)", armed.trigger_id, armed.definition.kind)
        if not busy:
            self._let_go(armed)

    def _let_go(self, armed: Armed) -> None:
        try:
            if armed.instance is not None:
                armed.instance.release()
        except Exception:
            _LOG.exception("release() of trigger %s (%s)", armed.trigger_id, armed.definition.kind)

    def _ended(self, armed: Armed) -> None:
        """``observe`` returned by itself: the trigger is done."""
        self.finish(armed)

    def finish(self, armed: Armed) -> None:
        """Stop a trigger for good."""
        if armed.closed:
            return
        self._store.set_fact(fact("trigger-state", armed.trigger_id), state_fact(STOPPED, None))
        self.secrets.forget(armed.trigger_id)
        self._disarm(armed)

    # -- what other threads and processes have done -----------------------------------------------

    def _look_safely(self) -> None:
        try:
            self._look_around()
        except StoreUnavailableError as error:
            if not self._closing:
                _LOG.warning("Triggers wait for the store: %s", error)
        except ChelateError:
            _LOG.exception("Triggers could not be looked through.")

    def _look_around(self, *, force: bool = False) -> None:
        with self._looking:
            now = time.monotonic()
            with self._changed:
                self._look_due = now + self._every
                known, force = self._counter, force or self._counter is None
            counter = self._store.change_counter()
            orphaned = False
            if self._owners and now >= self._owners_due:
                self._owners_due = now + _OWNERS_EVERY
                orphaned = self._owners != self._store.kernels_alive(self._owners)
            if not force and counter == known and not orphaned:
                return
            with self._changed:
                self._counter = counter
            self._compare(dict(self._store.facts("trigger-state:")))

    def _compare(self, stored: dict[str, Any]) -> None:
        mine, others = set(), {}
        for name, value in stored.items():
            trigger_id = name.partition(":")[2]
            if value["state"] != ACTIVE:
                continue
            if value["owner"] == self._kernel_id:
                mine.add(trigger_id)
            else:
                others[trigger_id] = value
        owners = {value["owner"] for value in others.values() if value["owner"]}
        alive = self._store.kernels_alive(owners) if owners else set()
        self._owners = alive
        for trigger_id, value in others.items():
            if value["owner"] not in alive and not self._closing:
                name = fact("trigger-state", trigger_id)
                owned = state_fact(ACTIVE, self._kernel_id)
                if self._store.set_facts({name: owned}, {name: value}):
                    mine.add(trigger_id)
        with self._changed:
            gone = [armed for key, armed in self._armed.items() if key not in mine]
            new = mine - self._armed.keys()
        for armed in gone:
            if armed.instance is not None and armed.trigger_id in {
                name.partition(":")[2]
                for name, value in stored.items()
                if value["state"] != STOPPED
            }:
                self._parked[armed.trigger_id] = armed.instance
            self._disarm(armed)
        for trigger_id in new:
            loaded = self._load(trigger_id)
            with self._changed:
                if loaded is None or self._closing or trigger_id in self._armed:
                    continue
                self._armed[trigger_id] = loaded
            self._schedule(loaded, 0.0)


class Link:
    """How a registered trigger reaches its host."""

    def __init__(self, host: TriggerHost, armed: Armed) -> None:
        self._host = host
        self._armed = armed
        self.trigger_id = armed.trigger_id

    def fire(self, trigger: BaseTrigger) -> None:
        self._host.fire(self._armed, trigger)

    def stop(self) -> None:
        self._host.finish(self._armed)

    def wake(self) -> None:
        if not self._armed.closed:
            self._host._schedule(self._armed, 0.0)
