"""The way from a client to a kernel in the same process, and to the store behind it.

Reading needs only the store. The kernel's thread starts with the first dispatch, cancel or wait,
and from then on also takes up whatever dead kernels have left in the same home.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chelate.bundle import Bundle
from chelate.contracts.store import DispatchFilter
from chelate.digest import digest_bytes
from chelate.errors import (
    GraphError,
    ResultNotReadyError,
    StoreUnavailableError,
)
from chelate.graph import Graph
from chelate.model import FINAL, DispatchRecord, NodeRecord
from chelate.targets import CancelAnswer, as_asked, check_dispatch_id, resolve_tasks

if TYPE_CHECKING:
    from chelate.contracts.store import ResultStore
    from chelate.kernel.engine import Engine
    from chelate.kernel.plugins.registry import Plugins
    from chelate.kernel.triggers.host import TriggerHost
    from chelate.settings import Settings

__all__ = ["LocalGateway"]

_FIRST_LOOK = 0.02
_SLOWEST_LOOK = 0.5
_ORPHAN_LOOK = 1.0
_STORE_LOOK = 5.0


class LocalGateway:
    """One store and, once it is needed, one kernel on it. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pid = os.getpid()
        self.detached = False  # Ctrl-C: do not wait at exit for what has been dispatched so far
        self._lock = threading.RLock()
        self._store: ResultStore | None = None
        self._plugins: Plugins | None = None
        self._engine: Engine | None = None
        self._closed = False
        self._triggers: TriggerHost | None = None

    # -- parts, each opened when first needed ---------------------------------------------------

    @property
    def plugins(self) -> Plugins:
        """The plugins that this gateway's kernel sees."""
        with self._lock:
            if self._plugins is None:
                from chelate.kernel.plugins.registry import Plugins

                self._plugins = Plugins(
                    disable=self.settings.disable_plugins, allow=self.settings.allow_plugins
                )
            return self._plugins

    @property
    def store(self) -> ResultStore:
        """The opened result store.

        Raises:
            StoreError: it cannot be opened.
        """
        with self._lock:
            if self._store is None:
                url = self.settings.store or ""
                scheme = url.partition(":")[0] or "sqlite"
                store = self.plugins.store(scheme)(
                    url, self.settings.home, synchronous=self.settings.synchronous
                )
                store.open()
                self._store = store
            return self._store

    @property
    def engine(self) -> Engine:
        """The running kernel; StoreError when the store fails or this gateway was closed."""
        with self._lock:
            if self._closed:
                raise StoreUnavailableError(
                    "The kernel of this process was shut down meanwhile; call again to start one."
                )
            if self._engine is None:
                from chelate.kernel.engine import Engine

                engine = Engine(self.store, self.plugins, self.settings)
                engine.start()
                self._engine = engine
                self._triggers = self._host_triggers(engine)
            return self._engine

    @property
    def triggers(self) -> TriggerHost:
        """The triggers of the running kernel."""
        with self._lock:
            engine = self.engine
            if self._triggers is None:
                self._triggers = self._host_triggers(engine)
            return self._triggers

    def rest_triggers(self, timeout: float = 10.0) -> None:
        """No trigger fires here any more; the next kernel on the store takes them up."""
        with self._lock:
            triggers, self._triggers = self._triggers, None
        if triggers is not None:
            triggers.stop(timeout)

    def _host_triggers(self, engine: Engine) -> TriggerHost:
        from chelate.kernel.triggers.host import TriggerHost

        host = TriggerHost(
            self.store, self.plugins, self.settings, engine.kernel_id, self.repeat, engine.poke
        )
        host.start()
        return host

    @property
    def started(self) -> bool:
        """Whether the kernel runs in this process."""
        return self._engine is not None

    def close(self, timeout: float = 10.0) -> None:
        """Stop the kernel (remote jobs go on) and close the store."""
        self.rest_triggers(timeout)  # first, since a fire would start the kernel again
        with self._lock:
            self._closed = True
            engine, self._engine = self._engine, None
            store, self._store = self._store, None
        if engine is not None:
            engine.stop(timeout)
        if store is not None:
            store.close()

    # -- dispatching --------------------------------------------------------------------------

    def check_executors(self, graph: Graph) -> None:
        """Raise at once when an executor's plugin is missing, broken, or wrongly configured.

        Raises:
            PluginNotFoundError, PluginLoadError, PluginConflictError: see their messages.
        """
        for ref in {repr(policy.executor): policy.executor for policy in graph.policies}.values():
            options = {**self.settings.executors.get(ref.name, {}), **ref.options}
            self.plugins.executor_with(ref.name, options)

    def accept(
        self,
        bundle: Bundle,
        *,
        options: Mapping[str, Any] | None = None,
        held: bool = False,
        redispatched_from: str | None = None,
        dispatch_id: str | None = None,
        facts: Mapping[str, Any] | None = None,
        expect: Mapping[str, Any] | None = None,
    ) -> str:
        """Store a built workflow durably and run it (unless ``held``); the dispatch id.

        ``facts`` are stored in the same transaction; nothing is, unless those of ``expect`` hold.
        """
        graph = bundle.graph
        if graph is None:
            raise GraphError("There is no graph to dispatch.")
        self.check_executors(graph)
        self.detached = False
        engine = self.engine
        data = graph.to_json()
        digest = digest_bytes(data)
        dispatch_id = dispatch_id or str(uuid.uuid4())
        record = DispatchRecord(
            dispatch_id=dispatch_id,
            name=graph.name,
            root_id=dispatch_id,
            graph=digest,
            lattice=bundle.lattice,
            inputs=bundle.inputs,
            created_at=time.time(),
            owner=None if held else engine.kernel_id,
            held=held,
            redispatched_from=redispatched_from,
            options=dict(options or {}),
        )
        blobs = {**bundle.blobs, digest: data}
        if self.store.add_dispatch(record, blobs, facts, expect) and not held:
            engine.submit(record, graph)
        return dispatch_id

    def reuse_source(self, lattice_name: str, reuse_from: str) -> str | None:
        """The dispatch that ``reuse_from`` means; None when "latest" finds none of that name.

        Raises:
            InvalidDispatchIdError, DispatchNotFoundError: the id is wrong.
        """
        if reuse_from != "latest":
            return self.record(reuse_from).dispatch_id
        found = self.records(DispatchFilter(name=lattice_name, limit=50))
        return next((record.dispatch_id for record in found if not record.held), None)

    def repeat(
        self,
        dispatch_id: str,
        *,
        new_id: str | None = None,
        facts: Mapping[str, Any] | None = None,
        expect: Mapping[str, Any] | None = None,
    ) -> str:
        """Dispatch once more with the same graph and inputs, running everything; the new id.

        ``facts`` and ``expect`` as in :meth:`accept`.
        """
        parent = self.record(dispatch_id)
        bundle = Bundle(self.graph(parent), {}, parent.lattice, parent.inputs)
        kept = ("defaults", "python", "replacements", "replacement_prints", "signature")
        options = {key: parent.options[key] for key in kept if key in parent.options}
        return self.accept(
            bundle,
            options=options,
            redispatched_from=parent.dispatch_id,
            dispatch_id=new_id,
            facts=facts,
            expect=expect,
        )

    def start_held(self, dispatch_id: str) -> bool:
        """Let a dispatch that waits for a trigger run; False when it was not waiting."""
        started = self.store.release_hold(check_dispatch_id(dispatch_id))
        if started:
            self.engine.poke()
        return started

    # -- reading ------------------------------------------------------------------------------

    def record(self, dispatch_id: object) -> DispatchRecord:
        """The dispatch's row.

        Raises:
            InvalidDispatchIdError, DispatchNotFoundError.
        """
        return as_asked(self.store.dispatch(check_dispatch_id(dispatch_id)))

    def records(self, query: DispatchFilter) -> list[DispatchRecord]:
        """Dispatches, newest first."""
        return [as_asked(record) for record in self.store.dispatches(query)]

    def graph(self, record: DispatchRecord) -> Graph:
        """The dispatch's graph."""
        return Graph.from_json(self.store.read(record.graph or ""))

    def nodes(self, dispatch_id: str, ids: Iterable[int] | None = None) -> dict[int, NodeRecord]:
        """Rows of the nodes that have been touched."""
        return {row.node_id: row for row in self.store.nodes(dispatch_id, ids)}

    # -- waiting ------------------------------------------------------------------------------

    def wait(
        self,
        dispatch_id: object,
        timeout: float | None = None,
        watch: Callable[[DispatchRecord], None] | None = None,
    ) -> DispatchRecord:
        """Wait until a dispatch has ended, whichever process runs it.

        ``watch`` is called now and then with the dispatch's row.

        Raises:
            ResultNotReadyError: it did not end in time.
            StoreUnavailableError: nothing could be read or stored for 30 s.
        """
        record = self.record(dispatch_id)
        if record.status.final:
            return record
        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        pause, look = _FIRST_LOOK, 0.0
        engine = self._engine
        while True:
            engine = self._engine or engine
            left = None if deadline is None else deadline - time.monotonic()
            step = 0.2 if watch is not None else _STORE_LOOK
            if left is not None:
                step = max(0.0, min(step, left))
            ours = None if engine is None else engine.wait(record.dispatch_id, step)
            if self._closed or (engine is not None and engine.stopped and not ours):
                raise ResultNotReadyError(
                    f"The kernel of this process was shut down while dispatch {record.dispatch_id} "
                    "was waited for; the next kernel on this home takes the dispatch up again."
                )
            if ours is None:
                if time.monotonic() >= look:
                    look = time.monotonic() + _ORPHAN_LOOK
                    self._take_over(record.dispatch_id)
                time.sleep(pause if left is None else max(0.0, min(pause, left)))
                pause = min(pause * 1.5, _SLOWEST_LOOK)
            record = self.record(record.dispatch_id)
            if watch is not None:
                watch(record)
            if record.status.final:
                return record
            if engine is not None:
                engine.outage.check(began)
            if left is not None and left <= 0:
                raise ResultNotReadyError(
                    f"Dispatch {record.dispatch_id} is still {record.status} after {timeout:g} s."
                )

    def _take_over(self, dispatch_id: str) -> None:
        """Start a kernel here if nobody's kernel runs the dispatch; else leave it to its owner."""
        if self._engine is not None or dispatch_id in self.store.orphans():
            self.engine.poke()

    def wait_cancelled(self, answer: CancelAnswer, whole: bool, timeout: float | None) -> None:
        """Wait for the end of a begun dispatch's targets; errors as in :meth:`wait`."""
        if whole:
            self.wait(answer.record.dispatch_id, timeout)
        elif not answer.record.held:
            self.wait_tasks(answer.record.dispatch_id, answer.live, timeout)

    def wait_tasks(
        self, dispatch_id: str, node_ids: Sequence[int], timeout: float | None = None
    ) -> None:
        """Wait until these tasks have ended, whichever process runs them."""
        pause, look = _FIRST_LOOK, 0.0
        began = time.monotonic()
        while not self.record(dispatch_id).status.final:
            if time.monotonic() >= look:
                look = time.monotonic() + _ORPHAN_LOOK
                self._take_over(dispatch_id)
            rows = self.nodes(dispatch_id, node_ids)
            if sum(row.status in FINAL for row in rows.values()) == len(set(node_ids)):
                return
            if self._engine is not None:
                self._engine.outage.check(began)
            if timeout is not None and time.monotonic() - began >= timeout:
                raise ResultNotReadyError(
                    f"Not all of tasks {list(node_ids)[:20]} have ended after {timeout:g} s."
                )
            time.sleep(pause)
            pause = min(pause * 1.5, _SLOWEST_LOOK)

    # -- cancelling ---------------------------------------------------------------------------

    def cancel(self, dispatch_id: object, targets: Sequence[int | str] | None) -> CancelAnswer:
        """Record a cancel of the whole dispatch (None) or of tasks by node id or name.

        Raises:
            TaskNotFoundError: a target does not exist; then nothing is cancelled.
        """
        record = self.record(dispatch_id)
        graph = None if targets is None else self.graph(record)
        ids = [] if graph is None else resolve_tasks(graph, targets or ())
        if record.status.final:
            return CancelAnswer(record, (), ())
        if graph is None:
            self.store.request_cancel(record.dispatch_id, None)
            if record.held:
                self.store.release_hold(record.dispatch_id)
            self._take_over(record.dispatch_id)
            self.plugins.hooks.cancel_requested(record.dispatch_id, None)
            return CancelAnswer(record, (), ())
        rows = self.nodes(record.dispatch_id)
        over = [i for i in ids if (row := rows.get(i)) is not None and row.status in FINAL]
        live = [i for i in ids if i not in set(over)]
        if live:
            below = graph.descendants(live)
            every = sorted({*live, *below})
            self.store.request_cancel(record.dispatch_id, every)
            self._take_over(record.dispatch_id)
            self.plugins.hooks.cancel_requested(record.dispatch_id, every)
        return CancelAnswer(record, tuple(live), tuple(over))

    def logs(self, dispatch_id: str, node_id: int, stream: str) -> bytes:
        """A task's output: stored at its end, else read live where the executor can."""
        row = self.nodes(dispatch_id, [node_id]).get(node_id)
        if row is None:
            return b""
        digest = row.stdout if stream == "stdout" else row.stderr
        if digest is not None:
            return self.store.read(digest)
        if row.status in FINAL or self._engine is None:
            return b""
        return self._engine.logs(row, stream, 0, 1 << 24)
