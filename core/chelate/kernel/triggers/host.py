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
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from chelate.contracts.store import ResultStore
from chelate.contracts.trigger import BaseTrigger, Check
from chelate.errors import ConfigError, PluginError, StoreUnavailableError
from chelate.kernel.triggers.fires import Armed, Firing
from chelate.kernel.triggers.intake import Prepared, prepare
from chelate.kernel.triggers.observing import Observing
from chelate.kernel.triggers.records import (
    ACTIVE,
    PAUSED,
    STOPPED,
    Definition,
    Progress,
    Secrets,
    TriggerClasses,
    fact,
    fires_fact,
    state_fact,
)
from chelate.kernel.triggers.threads import Threads

if TYPE_CHECKING:
    from chelate.kernel.plugins.registry import Plugins
    from chelate.settings import Settings

__all__ = ["Link", "TriggerHost"]

_LOG = logging.getLogger("chelate.triggers")
_OWNERS_EVERY = 1.0
_LONGEST = 60.0  # a clock that was set, or a suspended machine, is noticed after so many seconds
_CLASS_EVERY = 30.0


class TriggerHost:
    """Runs the triggers that its kernel owns. Public methods may be called from any thread.

    ``quiet`` is a lock: while it is held, the scheduler does not read which triggers there are.
    """

    def __init__(
        self,
        store: ResultStore,
        plugins: Plugins,
        settings: Settings,
        kernel_id: str,
        repeat: Callable[..., str],
        poke: Callable[[], None],
    ) -> None:
        self.quiet = threading.RLock()
        self._classes = TriggerClasses(plugins)
        self._secrets = Secrets(settings.home / "triggers")
        self._store = store
        self._kernel_id = kernel_id
        self._every = settings.poll_interval
        self._firing = Firing(store, kernel_id, repeat, poke, self._refresh)
        self._threads = Threads()
        self._changed = threading.Condition(threading.RLock())
        self._armed: dict[str, Armed] = {}  # guarded by _changed
        self._due: list[tuple[float, int, Armed]] = []  # guarded by _changed
        self._look_due = 0.0  # guarded by _changed
        self._counter: int | None = None  # guarded by _changed
        self._parked: dict[str, BaseTrigger] = {}
        self._owners: set[str] = set()  # guarded by quiet
        self._owners_due = 0.0  # guarded by quiet
        self._tick = itertools.count(1)
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="chelate-triggers", daemon=True)

    # -- from other threads ---------------------------------------------------------------------

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
        self._threads.close()

    def prepare(self, trigger: BaseTrigger, dispatch_id: str, *, copy: bool) -> Prepared:
        """See :func:`chelate.kernel.triggers.intake.prepare`."""
        return prepare(
            trigger, dispatch_id, self._kernel_id, self._classes, self._secrets, copy=copy
        )

    def arm(self, prepared: Prepared) -> None:
        """Start a prepared trigger; ``quiet`` is held since before its facts were stored, or the
        scheduler would make an instance of its own from them."""
        armed = prepared.armed
        with self._changed:
            if self._closing:
                return
            self._armed[armed.trigger_id] = armed
        assert armed.instance is not None
        self._connect(armed, armed.instance)
        self._schedule(armed, 0.0)

    def forget(self, prepared: Prepared) -> None:
        """Undo :meth:`prepare`: its facts could not be stored."""
        self._secrets.forget(prepared.armed.trigger_id)
        self._let_go(prepared.armed)

    def fire(self, armed: Armed, trigger: BaseTrigger) -> None:
        """Fire once, now, because the trigger says so.

        Raises:
            RuntimeError: the kernel has been shut down.
        """
        with armed.lock:
            if armed.closed:
                if self._closing:
                    raise RuntimeError(
                        f"The kernel that ran trigger {armed.trigger_id} has been shut down; the "
                        "next one on this home takes it up."
                    )
                _LOG.info("Trigger %s is stopped: trigger() starts nothing.", armed.trigger_id)
                return
            cursor = armed.cursor if type(trigger).checks() else trigger.cursor
            look = Check(1, cursor, None, armed.progress.next_fire)
            wait = self._firing.apply(armed, look)
        if wait is not None:
            self._schedule(armed, wait)

    def wake(self, armed: Armed) -> None:
        """Look soon."""
        if not armed.closed:
            self._schedule(armed, 0.0)

    def finish(self, armed: Armed) -> None:
        """Stop a trigger for good."""
        if not armed.closed:
            name = fact("trigger-state", armed.trigger_id)
            self._store.set_fact(name, state_fact(STOPPED, None))
            self._secrets.forget(armed.trigger_id)
            self._disarm(armed)

    def settle(self) -> None:
        """Do at once what the store says: stop, pause, resume."""
        self._look_around(force=True)

    # -- the scheduler --------------------------------------------------------------------------

    def _main(self) -> None:
        while True:
            with self._changed:
                while not self._closing:
                    now = time.monotonic()
                    due = min(self._look_due, self._due[0][0]) if self._due else self._look_due
                    if due <= now:
                        break
                    self._changed.wait(due - now)
                if self._closing:
                    return
                ready = self._take(time.monotonic())
                look = self._look_due <= time.monotonic()
            for armed in ready:
                self._threads.look(armed, partial(self._turn, armed))
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

    def _refresh(self) -> None:
        with self._changed:
            self._look_due = 0.0
            self._counter = None
            self._changed.notify_all()

    # -- one look, in the pool --------------------------------------------------------------------

    def _turn(self, armed: Armed) -> None:
        delay: float | None = None
        try:
            with armed.lock:
                if not armed.closed:
                    delay = self._look(armed)
        except BaseException as error:  # noqa: BLE001 - what a trigger raises is shown, not fatal
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
        """Seconds until the next look; None when somebody else says when."""
        if armed.instance is None:
            try:
                self._make(armed)
            except (PluginError, ConfigError) as error:
                self._firing.failed(armed, error, "class not found")
                return _CLASS_EVERY
        instance = armed.instance
        assert instance is not None
        if not type(instance).checks():
            if not armed.observing:
                armed.observing = True
                Observing(self._firing, armed, self.finish).start()
            if not armed.progress.pending:
                return None
            return self._firing.apply(armed, Check(0, armed.cursor))
        look = instance.check(armed.cursor, time.time())
        rest = instance.interval if look.due is None else look.due
        wait = self._firing.apply(armed, look)
        return rest if wait is None else min(wait, rest)

    # -- arming and disarming -------------------------------------------------------------------

    def _connect(self, armed: Armed, instance: BaseTrigger) -> None:
        instance._link = Link(self, armed)
        instance.stop_flag.clear()
        instance.cursor = armed.cursor

    def _make(self, armed: Armed) -> None:
        found = self._classes.find(armed.definition)
        instance = self._parked.pop(armed.trigger_id, None)
        if instance is None:
            instance = armed.definition.make(found, self._secrets)
        self._connect(armed, instance)
        armed.instance = instance

    def _load(self, trigger_id: str) -> Armed | None:
        get = self._store.get_fact
        data = get(fact("trigger", trigger_id))
        if data is None:
            return None
        progress = Progress.from_json(get(fact("trigger-progress", trigger_id)))
        wrapped = get(fact("trigger-cursor", trigger_id))
        latest = get(fires_fact(trigger_id, max(1, progress.fires)))
        cursor = None if wrapped is None else wrapped[0]
        return Armed(Definition.from_json(data), progress, cursor, latest or [])

    def _disarm(self, armed: Armed) -> None:
        """Nothing more happens, though a look may still be under way; its outcome is dropped."""
        with self._changed:
            armed.closed = True
            if self._armed.get(armed.trigger_id) is armed:
                del self._armed[armed.trigger_id]
            busy = armed.busy
        if armed.instance is None:
            return
        self._threads.end(armed, "stop", armed.instance.stop)
        if not busy:
            self._let_go(armed)

    def _let_go(self, armed: Armed) -> None:
        if armed.instance is not None:
            self._threads.end(armed, "release", armed.instance.release)

    # -- what other threads and processes have done -----------------------------------------------

    def _look_safely(self) -> None:
        self._threads.make_room()
        try:
            self._look_around()
        except StoreUnavailableError as error:
            if not self._closing:
                _LOG.warning("Triggers wait for the store: %s", error)
        except BaseException:  # noqa: BLE001 - a store may raise anything, or be damaged
            _LOG.exception("The stored triggers could not be read.")

    def _look_around(self, *, force: bool = False) -> None:
        with self.quiet:
            now = time.monotonic()
            with self._changed:
                self._look_due = now + self._every
                known = self._counter
            counter = self._store.change_counter()
            orphaned = False
            if self._owners and now >= self._owners_due:
                self._owners_due = now + _OWNERS_EVERY
                orphaned = self._owners != self._store.kernels_alive(self._owners)
            if force or counter != known or orphaned:
                with self._changed:
                    self._counter = counter
                self._compare(dict(self._store.facts("trigger-state:")))

    def _compare(self, stored: dict[str, Any]) -> None:
        """Arm what is this kernel's or nobody's, disarm the rest."""
        active = {name: value for name, value in stored.items() if value["state"] == ACTIVE}
        owners = {value["owner"] for value in active.values()} - {None, self._kernel_id}
        self._owners = self._store.kernels_alive(owners) if owners else set()
        mine = set()
        for name, value in active.items():
            if value["owner"] != self._kernel_id:
                owned = state_fact(ACTIVE, self._kernel_id)
                taken = value["owner"] in self._owners or self._closing
                if taken or not self._store.set_facts({name: owned}, {name: value}):
                    continue
            mine.add(name.partition(":")[2])
        with self._changed:
            gone = [armed for key, armed in self._armed.items() if key not in mine]
            new = mine - self._armed.keys()
        for armed in gone:
            state = stored.get(fact("trigger-state", armed.trigger_id), {}).get("state")
            if armed.instance is not None and state == PAUSED:
                self._parked[armed.trigger_id] = armed.instance
            self._disarm(armed)
        for trigger_id in new:
            loaded = self._load(trigger_id)
            with self._changed:
                if loaded is None or self._closing:
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
        """Start or redispatch the workflow."""
        self._host.fire(self._armed, trigger)

    def stop(self) -> None:
        """Stop the trigger for good."""
        self._host.finish(self._armed)

    def wake(self) -> None:
        """Have ``check`` called soon."""
        self._host.wake(self._armed)
