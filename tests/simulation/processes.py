"""A process with a kernel in it: the real engine on the real SQL store, which may die any time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.simulation.cluster import Backend
from tests.simulation.executors import executor_class
from tests.simulation.universe import Crash, SimLoop, Universe

from chelate.contracts.store import CancelRequest, Commit
from chelate.errors import PluginNotFoundError, StoreError, StoreUnavailableError
from chelate.gateway import LocalGateway
from chelate.kernel.engine import Engine
from chelate.kernel.world import World
from chelate.settings import Settings
from chelate.store.sql import SQLStore

__all__ = ["Faults", "Process", "SimStore"]


@dataclass(frozen=True)
class Faults:
    """Probabilities per call, while there is no calm."""

    crash: float = 0.0  # the process dies before or after a call or a write
    plugin: float = 0.0  # hangs, errors, rubbish
    lost: float = 0.0  # requests and answers that get lost
    store: float = 0.0  # outages and full disks
    stall: float = 0.0  # the process is stopped for a while
    takeover: bool = False  # a stopped process loses its lock


class SimStore(SQLStore):
    """The real store behind a shim that may fail or end the process around every write."""

    def __init__(self, home: Path) -> None:
        super().__init__("", home, synchronous="NORMAL")
        self.process: Process | None = None
        self._honest = self._database.write
        self._database.write = self._write  # type: ignore[method-assign]

    def claim_kernel(self) -> str:
        kernel_id = super().claim_kernel()
        if self.process is not None:
            self.process.universe.log(f"{self.process.name} is a kernel")
        return kernel_id

    def crash(self) -> None:
        """As the process's death leaves the store: lock files stay, their locks do not."""
        self._database.locks.forget()  # type: ignore[attr-defined]
        self._recent.forget()
        self.process = None

    def _write(self, work: Callable[[Any], Any]) -> Any:
        process = self.process
        if process is None:
            return self._honest(work)
        universe, faults = process.universe, process.faults
        if process.dead:
            raise Crash
        if universe.chance(faults.crash):
            process.die("before a write")
            raise Crash
        self._outage(process)
        if universe.chance(faults.store):
            process.outage_until = universe.now + universe.random.uniform(0.0, 20.0)
            universe.log(f"{process.name}: the disk is full")

            def fails(connection: Any) -> Any:
                work(connection)
                raise StoreUnavailableError("database or disk is full")

            return self._honest(fails)
        answer = self._honest(work)
        if universe.chance(faults.store):
            universe.log(f"{process.name}: the answer to a COMMIT is lost, and it is sent again")
            answer = self._honest(work)
        if universe.chance(faults.crash):
            process.die("after a write")
            raise Crash
        return answer

    def _outage(self, process: Process) -> None:
        if process.outage_until > process.universe.now and not process.universe.calm:
            raise StoreUnavailableError("database is locked")

    def change_counter(self) -> int:
        if self.process is not None:
            self._outage(self.process)
        return super().change_counter()

    def commit(self, kernel_id: str, commit: Commit, seen: int) -> list[CancelRequest]:
        requests = super().commit(kernel_id, commit, seen)
        if self.process is not None and not requests:
            self.process.examiner.committed(self.process, commit)
        return requests


class _NoHooks:
    def implemented(self, hook: str) -> bool:
        return False

    def cancel_requested(self, dispatch_id: str, targets: Any) -> None:
        """Nobody listens."""


class _Plugins:
    def __init__(self, classes: dict[str, type[Any]]) -> None:
        self._classes = classes
        self.hooks = _NoHooks()

    def executor_with(self, name: str, options: Mapping[str, Any]) -> Callable[[], Any]:
        if name not in self._classes:
            raise PluginNotFoundError(f"No plugin provides {name!r}.")
        return partial(self._classes[name], **options)


class _NoThread:
    def start(self) -> None:
        """The universe calls the engine."""

    def is_alive(self) -> bool:
        return False


class _Habitat:
    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop

    def join(self, timeout: float) -> None:
        """Nothing waits here: the process lives on until its lanes have ended."""


class _SimWorld(World):
    """The universe as a kernel sees it."""

    fatal = (Crash,)

    def __init__(self, process: Process) -> None:
        self._process = process
        self._universe = process.universe

    def monotonic(self) -> float:
        return self._universe.now

    def time(self) -> float:
        return self._universe.now

    def sleep(self, seconds: float) -> None:
        """The rest of the world goes on while the engine's thread waits."""
        process, universe = self._process, self._universe
        end = universe.now + seconds
        process.sleeping = True
        woken = [False]
        universe.at(seconds, lambda: woken.__setitem__(0, True))
        universe.run(lambda: woken[0] or process.dead, seconds=seconds + 1.0, steps=10**6)
        assert process.dead or universe.now >= end or woken[0]
        process.sleeping = False
        if process.dead:
            raise Crash

    def token(self) -> str:
        return f"{self._universe.random.getrandbits(32):08x}"

    def thread(self, name: str, main: Callable[[], None]) -> Any:
        return _NoThread()

    def habitat(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> _Habitat:
        loop = SimLoop(self._universe, f"{self._process.name}/{name}", self._process)
        self._process.loops.append(loop)
        self._universe.actors.append(loop)
        self._process.lanes.append(loop.create_task(main()))
        return _Habitat(loop)


class _Gateway(LocalGateway):
    """A client in the kernel's own process."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.settings)
        self._store = process.store
        self._plugins = process.plugins  # type: ignore[assignment]
        self._engine = process.engine


class Process:
    """One kernel's process. As an actor it is its engine's thread."""

    def __init__(
        self,
        universe: Universe,
        name: str,
        store: SimStore,
        backends: dict[str, Backend],
        faults: Faults,
        examiner: Any,
    ) -> None:
        self.universe = universe
        self.name = name
        self.store = store
        self.backends = backends
        self.faults = faults
        self.examiner = examiner
        self.dead = False
        self.buried = False
        self.sleeping = False
        self.awake = 0.0  # stopped until then
        self.outage_until = 0.0
        self.stopping = False
        self.loops: list[SimLoop] = []
        self.lanes: list[Any] = []  # their main tasks
        self.settings = Settings(home=store.home, poll_interval=8.0, synchronous="normal")
        self.plugins = _Plugins(
            {name: executor_class(backend, self) for name, backend in backends.items()}
        )
        store.process = self
        self.engine = Engine(store, self.plugins, self.settings, _SimWorld(self))  # type: ignore[arg-type]
        self.gateway = _Gateway(self)

    def start(self) -> bool:
        """Whether the kernel came up."""
        try:
            self.engine.start()
        except (StoreError, Crash):
            self.die("at its start")
            self.bury()
            return False
        self.universe.actors.append(self)
        return True

    # -- as an actor ----------------------------------------------------------------------------

    def due(self) -> float:
        if self.dead:
            return 0.0
        if self.sleeping or self.stopping:
            return float("inf")
        return max(self.awake, self.engine.due())

    def act(self) -> None:
        if not self.dead:
            if self.universe.chance(self.faults.stall):
                self.stall()
                return
            with suppress(Crash):
                self.engine.step(0.0)
        if self.dead:
            self.bury()

    def stall(self) -> None:
        """SIGSTOP; with ``takeover`` the process loses its lock meanwhile."""
        seconds = self.universe.random.choice((0.5, 5.0, 60.0))
        self.awake = self.universe.now + seconds
        self.universe.log(f"{self.name} is stopped for {seconds:g} s")
        self.examiner.counts["stalls"] += 1
        if self.faults.takeover:
            self.examiner.counts["takeovers"] += 1
            self.examiner.stale = True
            self.store._database.locks.forget()  # type: ignore[attr-defined]

    def die(self, how: str) -> None:
        if self.dead:
            return
        self.universe.log(f"{self.name} DIES {how}")
        self.examiner.counts["crashes"] += not self.stopping
        self.dead = True
        self.awake = float("inf")
        for backend in self.backends.values():
            backend.process_died(self)

    def stop(self) -> None:
        """As on SIGTERM: the engine ends its turn, the lanes close, the process exits."""
        universe, engine = self.universe, self.engine
        if self.dead or self.stopping:
            return
        universe.log(f"{self.name} is asked to stop")
        self.examiner.counts["stops"] += 1
        if universe.chance(0.3):
            universe.at(universe.random.uniform(0.0, 2.0), lambda: self._end("while it stops"))
        self.stopping = engine._stopping = True
        patience = universe.now + 10.0

        def close() -> None:
            if self.dead:
                return
            if self.awake > universe.now or (self.sleeping and universe.now < patience):
                universe.at(0.25, close)
                return
            with suppress(Crash):
                engine.stop()
            leave()

        def leave() -> None:
            if all(lane.done() for lane in self.lanes) or universe.now > patience + 10.0:
                self._end("at its exit")
            else:
                universe.at(0.25, leave)

        close()

    def _end(self, how: str) -> None:
        self.die(how)
        if not self.sleeping:
            self.bury()

    def broken(self) -> bool:
        """Whether an executor could not be made for good."""
        lanes = self.engine._lanes._lanes.values()
        return any(lane.failed is not None and lane.flying for lane in lanes)

    def bury(self) -> None:
        """Take a dead process apart; never from inside one of its own calls."""
        if self.buried:
            return
        self.buried = True
        for loop in self.loops:
            loop.end()
        alive = [actor for actor in self.universe.actors if actor not in (self, *self.loops)]
        self.universe.actors[:] = alive
        for backend in self.backends.values():
            backend.listeners.clear()
        if self.store.process is self:
            self.store.crash()
            self.examiner.stores.append(self.store)

    # -- as a client ----------------------------------------------------------------------------

    def ask(self, what: str, call: Callable[[], Any]) -> bool:
        """A client's call in this process; whether it was acknowledged."""
        try:
            call()
        except StoreUnavailableError as error:
            self.universe.log(f"{what} is refused: {error}")
            return False
        except Crash:
            return False
        self.universe.log(f"{what} is acknowledged")
        return True
