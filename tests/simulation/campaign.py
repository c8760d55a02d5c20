"""One seed: a few random workflows, clients, kernels and faults; then calm, and the accounts."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.simulation.cluster import MODELS, Backend
from tests.simulation.examiner import TRIGGERS, Examiner
from tests.simulation.processes import Faults, Process, SimStore
from tests.simulation.universe import Universe, unfinished

from chelate.bundle import Bundle
from chelate.contracts.executor import Capabilities, Outcome
from chelate.errors import StoreUnavailableError
from chelate.graph import Graph, Kind, Node
from chelate.model import ExecutorRef, Reason, Resources, Retry, TaskPolicy

__all__ = ["Bench", "Report", "run_seed"]

_TABLES = ("nodes", "dispatches", "events", "cancels", "blobs", "facts", "kernels", "broken")


class Bench:
    """A real store on a disk of its own, used by one seed after the other."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        folder = memory if memory.is_dir() else None
        self.home = Path(tempfile.mkdtemp(prefix="chelate-simulation-", dir=folder))
        self.stores: list[SimStore] = [self._store()]
        self.database = sqlite3.connect(self.home / "chelate.db", isolation_level=None)
        self.database.executescript(TRIGGERS)

    def _store(self) -> SimStore:
        store = SimStore(self.home)
        store.open()
        return store

    def take(self) -> SimStore:
        return self.stores.pop() if self.stores else self._store()

    def wipe(self) -> None:
        self.database.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            self.database.execute(f"DELETE FROM {table}")
        self.database.execute("COMMIT")
        shutil.rmtree(self.home / "kernels", ignore_errors=True)
        (self.home / "kernels").mkdir()

    def close(self) -> None:
        self.database.close()
        for store in self.stores:
            store.close()
        shutil.rmtree(self.home, ignore_errors=True)


@dataclass
class Report:
    """What became of a seed."""

    seed: int
    violations: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)
    steps: int = 0
    virtual: float = 0.0


class _Story:
    """A seed's scenario, drawn at the start where possible."""

    def __init__(
        self,
        seed: int,
        bench: Bench,
        tracing: bool,
        models: Sequence[str] = (),
        faults: Faults | None = None,
    ) -> None:
        self.universe = universe = Universe(seed, tracing=tracing)
        self.bench = bench
        rng = universe.random
        names = list(models) or rng.sample(sorted(MODELS), rng.choice((1, 1, 2)))
        self.backends = {
            name: Backend(
                universe,
                MODELS[name],
                self._outcome,
                partial(self._span, MODELS[name].capabilities),
            )
            for name in names
        }
        self.examiner = Examiner(universe, bench.database, self.backends)
        self.faults = faults or self._faults(rng)
        self.doomed: set[str] = set()  # dispatches that somebody will cancel
        self.processes: list[Process] = []
        self.graphs: dict[str, Graph] = {}
        self.kernels = 0
        self.unread: set[str] = set()
        self.asked = 0  # client calls that are to come or not acknowledged yet

    @staticmethod
    def _faults(rng: Random) -> Faults:
        level = rng.choice((0.0, 0.3, 1.0, 1.0))
        crashes = rng.choice((0.0, 0.003, 0.01, 0.03))
        stalls = rng.random() < 0.25
        return Faults(
            crash=crashes,
            plugin=0.05 * level * rng.random(),
            lost=0.25 * level * rng.random(),
            store=rng.choice((0.0, 0.0, 0.02)) * level,
            stall=0.005 if stalls else 0.0,
            takeover=stalls and rng.random() < 0.5,
        )

    # -- workflows ------------------------------------------------------------------------------

    def graph(self, rng: Random, depth: int = 0) -> Graph:
        """Two to eight tasks; fewer in sub-workflows."""
        size = rng.randint(2, 8) if depth == 0 else rng.randint(1, 3)
        wide = any(MODELS[name].capabilities.packing for name in self.backends)
        parents = (0, 0, 0, 1, 2) if wide else (0, 1, 1, 2)  # what is ready together is packed
        policies = [
            TaskPolicy(
                ExecutorRef(rng.choice(sorted(self.backends))),
                Retry(times=rng.choice((0, 0, 1, 2)), delay=rng.choice((0.0, 1.0, 5.0))),
                rng.choice((None, None, None, 10.0, 30.0)),
                Resources(),
            )
            for _ in range(rng.randint(1, 3))
        ]
        nodes = []
        for node_id in range(size):
            inputs = sorted(rng.sample(range(node_id), min(node_id, rng.choice(parents))))
            kind = Kind.SUBLATTICE if depth < 2 and rng.random() < 0.12 else Kind.TASK
            nodes.append(
                Node(
                    node_id,
                    f"task_{node_id}",
                    kind,
                    args=[["n", parent] for parent in inputs],
                    policy=rng.randrange(len(policies)),
                )
            )
        return Graph("flow", nodes, policies=policies, result=["n", size - 1])

    def _outcome(self, key: str) -> Outcome:
        """How a body ends."""
        rng = self.universe.random
        dispatch_id, node, _, _ = key.split(":")
        if rng.random() < 0.1:
            return Outcome(key, False, reason=Reason.USER_ERROR, error="ValueError: no")
        row = self.bench.database.execute(
            "SELECT depth, graph FROM dispatches WHERE dispatch_id = ?", (dispatch_id,)
        ).fetchone()
        graph = self.graphs.get(row[1])
        if graph is None:
            data = self.bench.database.execute(
                "SELECT data FROM blobs WHERE digest = ?", (row[1],)
            ).fetchone()
            graph = self.graphs[row[1]] = Graph.from_json(data[0])
        if graph.nodes[int(node)].kind == Kind.SUBLATTICE:
            bundle = Bundle(self.graph(rng, row[0] + 1))
            return Outcome(key, True, bundle.to_bytes(), graph=True)
        value = b"value of " + key.encode()
        return Outcome(key, True, value, fingerprint=f"test:{key}")

    def _span(self, model: Capabilities, key: str) -> float:
        """How long a body runs; some never end unless they are stopped."""
        rng = self.universe.random
        doomed = key.split(":")[0] in self.doomed and rng.random() < 0.2
        if model.packing:
            # Without help a cancelled task ends with its pack.
            return 1e6 if doomed and model.cancel_task else rng.uniform(0.1, 12.0)
        if doomed:
            return 1e6
        return rng.choice((rng.uniform(0.1, 3.0), rng.uniform(1.0, 20.0), rng.uniform(1.0, 60.0)))

    # -- kernels --------------------------------------------------------------------------------

    def start_kernel(self) -> None:
        store = self.bench.take()
        self.kernels += 1
        process = Process(
            self.universe, f"K{self.kernels}", store, self.backends, self.faults, self.examiner
        )
        if process.start():
            self.processes.append(process)

    def alive(self) -> list[Process]:
        self.processes = [process for process in self.processes if not process.dead]
        self.bench.stores += self.examiner.stores
        self.examiner.stores.clear()
        return self.processes

    def able(self) -> list[Process]:
        """Processes that can be asked for something."""
        now = self.universe.now
        return [p for p in self.alive() if p.awake <= now and not p.stopping]

    def watch_over(self) -> None:
        """Somebody starts a kernel again when there is none."""
        if all(process.stopping for process in self.alive()):
            self.start_kernel()
        self.universe.at(self.universe.random.uniform(0.5, 8.0), self.watch_over)

    def stop_kernel(self) -> None:
        """Somebody ends a process in good order."""
        for process in self.able()[:1]:
            process.stop()

    # -- clients --------------------------------------------------------------------------------

    def ask(self, what: str, call: Callable[[Process], Any], told: Callable[[], None]) -> None:
        """Ask any kernel's process until one acknowledges."""
        self.asked += 1

        def attempt() -> None:
            able = self.able()
            if able:
                process = self.universe.random.choice(able)
                name = f"{what} at {process.name}"
                acknowledged = process.ask(name, lambda: call(process))
                if process.dead:
                    process.bury()
                if acknowledged:
                    self.asked -= 1
                    told()
                    return
            self.universe.at(1.0, attempt)

        attempt()

    def dispatch(self, number: int) -> None:
        universe, rng = self.universe, self.universe.random
        dispatch_id = self._new_id()
        graph = self.graph(rng)
        universe.log(
            f"dispatch {dispatch_id}: "
            + "; ".join(
                f"{n.id}{'*' if n.kind == Kind.SUBLATTICE else ''}"
                f"({graph.policies[n.policy].executor.name})<-{sorted(n.parents())}"
                for n in graph.nodes
            )
        )

        self.accept(dispatch_id, graph)
        self._maybe_again(dispatch_id, graph)
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            whole = rng.random() < 0.5
            some = rng.sample(range(len(graph.nodes)), rng.randint(1, 2))
            if whole:
                self.doomed.add(dispatch_id)
            universe.at(
                rng.choice((rng.uniform(0.0, 5.0), rng.uniform(0.0, 80.0))),
                lambda targets=None if whole else some: self.cancel(dispatch_id, targets),
            )

    def _new_id(self) -> str:
        return str(uuid.UUID(int=self.universe.random.getrandbits(128), version=4))

    def accept(
        self, dispatch_id: str, graph: Graph, options: Any = None, parent: str | None = None
    ) -> None:
        def call(process: Process) -> None:
            process.gateway.accept(
                Bundle(graph),
                dispatch_id=dispatch_id,
                options=options,
                redispatched_from=parent,
            )

        self.ask(
            f"dispatch {dispatch_id} {options or ''}",
            call,
            lambda: self.examiner.dispatched.append(dispatch_id),
        )

    def _maybe_again(self, parent: str, graph: Graph) -> None:
        universe, rng = self.universe, self.universe.random
        if rng.random() < 0.15:
            after = rng.choice((rng.uniform(0.0, 20.0), rng.uniform(10.0, 100.0)))
            self.asked += 1
            universe.at(after, lambda: self.redispatch(parent, graph))

    def redispatch(self, parent: str, graph: Graph) -> None:
        """Once more, with what has not changed taken over; whether the first has ended or not."""
        if parent not in self.examiner.dispatched:
            self.universe.at(2.0, lambda: self.redispatch(parent, graph))
            return
        rng = self.universe.random
        renewed = rng.sample(graph.nodes, rng.choice((0, 1, 1)))  # these run again in any case
        policies = list(graph.policies)
        nodes = list(graph.nodes)
        for node in renewed:
            nodes[node.id] = replace(node, policy=len(policies))
            policies.append(replace(policies[node.policy], reuse=False))
        again = Graph(graph.name, nodes, policies=policies, result=graph.result)
        self.examiner.counts["redispatches"] += 1
        dispatch_id = self._new_id()
        self.accept(dispatch_id, again, {"reuse_from": parent}, parent)
        self.asked -= 1  # of the one that was to come
        self._maybe_again(dispatch_id, again)

    def cancel(self, dispatch_id: str, targets: list[int] | None) -> None:
        if dispatch_id not in self.examiner.dispatched:
            self.universe.at(2.0, lambda: self.cancel(dispatch_id, targets))
            return
        reached: list[int | None] = [None]

        def call(process: Process) -> None:
            nonlocal reached
            gateway = process.gateway
            answer = gateway.cancel(dispatch_id, targets)
            if targets is None:
                reached = [] if answer.record.status.final else [None]
            else:
                graph = gateway.graph(answer.record)
                reached = [*answer.live, *graph.descendants(answer.live)]

        def told() -> None:
            for node in reached:
                self.examiner.cancelled.setdefault((dispatch_id, node), self.universe.now)

        self.ask(f"cancel {dispatch_id} {targets or ''}", call, told)

    # -- the whole ------------------------------------------------------------------------------

    def play(self) -> None:
        universe, rng, examiner = self.universe, self.universe.random, self.examiner
        universe.log(f"{self.faults} {sorted(self.backends)}")
        self.watch_over()
        for number in range(rng.choice((1, 1, 2))):
            universe.at(rng.uniform(0.0, 10.0), lambda number=number: self.dispatch(number))
        if rng.random() < 0.3:
            universe.at(rng.uniform(0.0, 40.0), self.start_kernel)
        storm = rng.uniform(20.0, 120.0)
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            universe.at(rng.uniform(0.0, storm), self.stop_kernel)
        universe.run(lambda: self._at_rest(), seconds=storm, steps=60_000)
        universe.log("CALM")
        universe.calm = True
        self._user()
        if not universe.run(self._at_rest, seconds=3000.0, steps=200_000):
            universe.log("it does not come to rest")
        universe.run(lambda: not self._on_its_way(), seconds=300.0, steps=50_000)
        examiner.close(self.bench.take() if not self.alive() else self.processes[0].store)

    def _user(self) -> None:
        """Somebody cancels what waits for a decision of theirs."""
        for dispatch_id in self.examiner.uncertain():
            self.examiner.counts["uncertain"] += 1
            self.cancel_now(dispatch_id)
        for process in self.alive():
            if process.broken():
                process.die("to be started again, since an executor could not be made")
                process.bury()
        self.universe.at(20.0, self._user)

    def cancel_now(self, dispatch_id: str) -> None:
        for process in self.able():
            try:
                process.gateway.cancel(dispatch_id, None)
            except StoreUnavailableError:
                continue
            return

    def _at_rest(self) -> bool:
        return (
            self.universe.steps % 16 == 0
            and not self.asked
            and bool(self.examiner.dispatched)
            and self.universe.now > 1010.0
            and not self.examiner.open_dispatches()
        )

    def _on_its_way(self) -> bool:
        return any(backend.on_its_way or backend.living() for backend in self.backends.values())

    def end(self) -> None:
        for process in self.alive():
            process.dead = True
            process.bury()
        self.alive()
        self.bench.wipe()


def run_seed(
    seed: int,
    bench: Bench,
    *,
    tracing: bool = False,
    models: Sequence[str] = (),
    faults: Faults | None = None,
) -> Report:
    """Play one seed; the same seed plays the same way.

    ``models`` and ``faults`` replace what the seed would choose.
    """
    story = _Story(seed, bench, tracing, models, faults)
    try:
        with unfinished():
            story.play()
    except Exception as error:
        story.universe.blame(f"{type(error).__name__}: {error}")
        if tracing:
            raise
    finally:
        story.end()
    universe, counts = story.universe, story.examiner.counts
    for backend in story.backends.values():
        counts.update(backend.counts)
    return Report(
        seed,
        universe.violations,
        counts,
        universe.trace or [],
        universe.steps,
        universe.now - 1000.0,
    )
