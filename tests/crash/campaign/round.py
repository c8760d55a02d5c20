"""One round: processes are killed and stopped at random, then looked at until all is quiet."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.campaign import processes, scheduler
from tests.crash.campaign.examiner import Watch, examine, read_ledger
from tests.crash.campaign.kernels import Kernels
from tests.crash.campaign.workload import journalled

import chelate
from chelate.contracts.store import DispatchFilter
from chelate.model import FINAL, Status
from chelate.store import SQLStore

__all__ = ["Outcome", "Round"]

HERE = Path(__file__).parent
WEIGHTS = {
    "kernel": 16,
    "worker": 22,
    "child": 14,
    "supervisor": 12,
    "scheduler": 8,
    "program": 5,
    "step": 3,
    "guardian": 2,
    "grandchild": 2,
    "stop kernel": 4,
    "stop worker": 4,
}
FAULTS = {
    "sbatch_lost": 0.06,
    "sbatch_answer_lost": 0.06,
    "sbatch_late": 0.05,
    "squeue_lost": 0.05,
    "scancel_lost": 0.15,
    "scancel_answer_lost": 0.1,
    "scontrol_lost": 0.03,
    "delay": 0.3,
    "lag": 0.3,
    "requeue": 0.1,
}
ALIVE = (Status.NEW_OBJ, Status.RUNNING, Status.CANCELLING)


@dataclass(slots=True)
class Outcome:
    """What a round came to. Times in seconds."""

    kills: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    dispatches: Counter[str] = field(default_factory=Counter)
    executions: int = 0
    remote: int = 0  # of them, in jobs of the scheduler
    cancels: int = 0
    stopped: int = 0  # tasks that had begun and were cancelled
    looks: int = 0
    restarts: list[float] = field(default_factory=list)  # until a new kernel is open
    adoptions: list[float] = field(default_factory=list)  # until the dead one's work is owned
    quiet: float = 0.0
    seconds: float = 0.0

    def add(self, other: Outcome) -> None:
        """Take in another round."""
        for name in ("kills", "dispatches"):
            getattr(self, name).update(getattr(other, name))
        for name in ("executions", "remote", "cancels", "stopped", "looks", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("violations", "restarts", "adoptions"):
            getattr(self, name).extend(getattr(other, name))
        self.quiet = max(self.quiet, other.quiet)


class Round:
    """A home, a scheduler, and ``slots`` processes with kernels, for ``kills`` kills.

    Args:
        folder: empty; the round's evidence stays in it.
        seed: decides what is killed when, and what the scheduler does.
        pace: mean seconds between two faults.
        patience: seconds after the last fault until all must have ended.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: str,
        kills: int,
        slots: int = 2,
        width: int = 4,
        pace: float = 0.25,
        patience: float = 120.0,
    ) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.seed = seed
        self.wanted = kills
        self.width = width
        self.pace = pace
        self.patience = patience
        self.outcome = Outcome()
        self.left: set[str] = set()
        self.names = [f"kernel-{number}" for number in range(slots)]
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.due: dict[str, float] = {}  # what is to be started again, and when
        self.asleep: dict[int, float] = {}
        self.opening: dict[str, float] = {}
        self.orphaned: dict[str, float] = {}
        for name in ("home", "journal", "root", "tmp"):
            (folder / name).mkdir()
        (folder / "root").chmod(0o700)
        (folder / "seed").write_text(seed)
        scheduler.install(folder / "spool", seed=seed, slots=3, **FAULTS)
        self.store = SQLStore("", folder / "home", synchronous="normal")
        places = [
            str(Path(chelate.__file__).parents[1]),
            *map(os.path.abspath, filter(None, sys.path)),
        ]
        self.environment = {
            **os.environ,
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(places)),
        }
        self.kernels = Kernels(folder, width, self.environment)

    # -- processes --------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        if name != "scheduler":
            if self.outcome.kills:
                self.opening[name] = time.monotonic()
            self.kernels.start(name)
            return
        command = [sys.executable, "-ISE", str(HERE / "scheduler.py"), "serve"]
        with (self.folder / "scheduler.log").open("ab") as log:
            self.scheduler = subprocess.Popen(
                [*command, str(self.folder / "spool")],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self) -> Outcome:
        """Kill until there were enough, then wait and look. Leaves no process behind."""
        began = time.monotonic()
        try:
            self.start("scheduler")
            for name in self.names:
                self.start(name)
            self.until(self.begun, 120.0, "the first task")
            self.store.open()
            watch = Watch(self.folder, self.store)
            self.trouble(watch)
            calm = time.monotonic()
            if self.settle(watch):
                self.leftovers()
            self.outcome.quiet = time.monotonic() - calm
            self.outcome.looks = watch.looks
            self.count()
            self.outcome.violations += examine(self.folder, self.store)
        finally:
            self.clear()
            self.store.close()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def begun(self) -> bool:
        self.tend()
        return (self.folder / "ledger").exists() and len(self.kernels.pids) == len(self.names)

    def until(self, condition, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come within {seconds:g} s: {self.folder}")
            time.sleep(0.05)

    # -- faults -----------------------------------------------------------------------------------

    def trouble(self, watch: Watch) -> None:
        look = 0.0
        while self.outcome.kills.total() - self.stops() < self.wanted:
            # Mostly in bursts, and sometimes with time enough for work to get far.
            lull = 12.0 if self.rng.random() < 0.08 else 1.0
            pause = time.monotonic() + self.rng.uniform(0.1, 1.2) * self.pace * lull
            while (now := time.monotonic()) < pause:
                self.tend()
                time.sleep(0.02)
            self.fault()
            if now - look > 1.5:
                look = now
                self.outcome.violations += watch.look()

    def stops(self) -> int:
        return sum(many for kind, many in self.outcome.kills.items() if kind.startswith("stop "))

    def fault(self) -> None:
        """One fault, of a kind that is drawn first and then waited for a moment."""
        kind = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        role = kind.removeprefix("stop ")
        deadline = time.monotonic() + 4 * self.pace
        while not (victims := self.victims(role)):
            self.tend()
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        victim = self.rng.choice(victims)
        stop = kind != role
        if kind == "kernel":
            self.orphan(victim)
        try:
            os.kill(victim, signal.SIGSTOP if stop else signal.SIGKILL)
        except ProcessLookupError:
            return
        self.outcome.kills[kind] += 1
        if stop:
            self.asleep[victim] = time.monotonic() + self.rng.uniform(0.2, 3.0)

    def victims(self, role: str) -> list[int]:
        if role == "kernel":
            return sorted(set(self.kernels.pids.values()) - self.asleep.keys())
        seen = processes.look(self.folder)
        return sorted(one.pid for one in seen if one.role == role and one.pid not in self.asleep)

    def orphan(self, pid: int) -> None:
        """Remember which kernel dies, to see when its dispatches are owned again."""
        for line in reversed(journalled(self.folder)):
            if line["do"] == "kernel" and line["pid"] == pid:
                self.orphaned[line["kernel"]] = time.monotonic()
                return

    def tend(self) -> None:
        """Wake what has slept, start what has died, and note how long recovery takes."""
        now = time.monotonic()
        for pid in [pid for pid, moment in self.asleep.items() if moment <= now]:
            del self.asleep[pid]
            self.wake(pid)
        ended = [(name, status) for word, name, status in self.kernels.news() if word == "ended"]
        if self.scheduler is not None and self.scheduler.poll() is not None:
            ended.append(("scheduler", self.scheduler.returncode))
            self.scheduler = None
        for name, status in ended:
            self.opening.pop(name, None)
            if status == 0 and (self.folder / "stop").exists():
                self.left.add(name)
                continue
            if status != -signal.SIGKILL:
                self.outcome.violations.append(
                    f"{name} ended by itself with status {status}: {self.folder / name}.log"
                )
            self.due[name] = now + self.rng.choice([0.0, 0.0, 0.3, 1.0])
        for name in [name for name, moment in self.due.items() if moment <= now]:
            del self.due[name]
            self.start(name)
        if self.opening:
            opened = {line["pid"] for line in journalled(self.folder) if line["do"] == "kernel"}
            for name, pid in self.kernels.pids.items():
                if name in self.opening and pid in opened:
                    self.outcome.restarts.append(now - self.opening.pop(name))
        if self.orphaned:
            query = DispatchFilter(status=ALIVE, roots_only=False, limit=10_000)
            owners = {record.owner for record in self.store.dispatches(query)}
            for kernel in self.orphaned.keys() - owners:
                self.outcome.adoptions.append(now - self.orphaned.pop(kernel))

    def wake(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return

    # -- the end ----------------------------------------------------------------------------------

    def settle(self, watch: Watch) -> bool:
        """No more faults: whether every kernel says in time that all has ended, and leaves."""
        (self.folder / "spool" / "calm").touch()
        (self.folder / "stop").touch()
        for pid in list(self.asleep):
            del self.asleep[pid]
            self.wake(pid)
        deadline = time.monotonic() + self.patience
        look = 0.0
        while len(self.left) < len(self.names):
            self.tend()
            now = time.monotonic()
            if now - look > 1.5:
                look = now
                self.outcome.violations += watch.look()
            if now > deadline:
                left = "; ".join(self.unfinished())
                self.outcome.violations.append(f"did not end within {self.patience:g} s: {left}")
                return False
            time.sleep(0.05)
        self.outcome.violations += watch.look()
        return True

    def unfinished(self) -> list[str]:
        query = DispatchFilter(status=ALIVE, roots_only=False, limit=10_000)
        return [
            f"{record.dispatch_id} ({record.name}, {record.status}, of {record.owner}): "
            + ", ".join(
                f"{row.node_id} {row.status} {row.key} cancel={row.cancel_requested}"
                for row in self.store.nodes(record.dispatch_id)
                if row.status not in FINAL
            )
            for record in self.store.dispatches(query)
        ]

    def leftovers(self) -> None:
        """After the end nothing lives but the scheduler."""
        deadline = time.monotonic() + 10.0
        while True:
            known = {self.kernels.parent.pid, 0 if self.scheduler is None else self.scheduler.pid}
            left = [one for one in processes.look(self.folder) if one.pid not in known]
            if not left:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.outcome.violations += [
            f"process {one.pid} ({one.role}) outlived everything: {one.command:.200}"
            for one in left
        ]

    def count(self) -> None:
        lines = read_ledger(self.folder)
        self.outcome.executions = sum(line.word == "start" for line in lines)
        self.outcome.remote = sum(line.word == "start" and line.job != "-" for line in lines)
        with self.store.snapshot() as snapshot:
            gone = {row.key for _, row in snapshot.nodes() if row.status == "CANCELLED"}
        self.outcome.stopped = len(gone & {line.key for line in lines})
        journal = journalled(self.folder)
        self.outcome.cancels = sum(line["do"] == "cancel" for line in journal)
        known = [self.store.dispatch(x["id"]) for x in journal if x["do"] == "dispatch"]
        self.outcome.dispatches.update(str(record.status) for record in known)

    def clear(self) -> None:
        """End whatever of this round still lives."""
        deadline = time.monotonic() + 10.0
        while (left := processes.look(self.folder)) and time.monotonic() < deadline:
            for one in left:
                try:
                    os.kill(one.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        self.kernels.close()
        if self.scheduler is not None:
            self.scheduler.wait()
