"""How long a restart and a cancel take: 10,000 running tasks, and one that will not die.

Run: ``PYTHONPATH=core:. python benchmarks/reliability.py [--tasks N]``; a Postgres of its own is
started where the server's programs are installed, without waiting for the disk (fsync=off). Wall
clock; the best and the middle of several turns. Goals: 10,000 tasks adopted in 5 s, their cancel
recorded in 200 ms, a process tree that ignores SIGTERM gone 5 s after its grace.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.kernel.conftest import Bench
from tests.kernel.fakes import FAST, Backend, fake
from tests.kernel.graphs import graph_of
from tests.services import postgres

import chelate as ct
from chelate.contracts.store import Commit
from chelate.executors.local import LocalExecutor
from chelate.gateway import LocalGateway
from chelate.model import DispatchRecord, NodeRecord, NodeStatus
from chelate.store import SQLStore

TURNS = 7
GRACE = LocalExecutor.limits.cancel_grace
LIMITS = dataclasses.replace(
    FAST, max_in_flight=1 << 20, run_batch=1000, poll_min=1.0, poll_max=1.0, call_timeout=60.0
)
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def say(what: str, seconds: list[float]) -> None:
    best, middle = min(seconds), statistics.median(seconds)
    print(f"{what:58} {best * 1000:8.0f} ms  {middle * 1000:8.0f} ms")


def until(condition: Callable[[], Any], seconds: float = 300.0) -> float:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError("it did not come true")
        time.sleep(0.005)
    return time.monotonic() - began


def record(url: str, home: Path, tasks: int) -> None:
    """The store's part of a cancel."""
    store = SQLStore(url, home)
    store.open()
    kernel = store.claim_kernel()
    kind = "Postgres" if url else "SQLite"
    for what, there, ids in (
        ("whole dispatch", True, None),
        ("by ids, no rows yet", False, list(range(tasks))),
        ("by ids, rows that exist", True, list(range(tasks))),
    ):
        taken = []
        for turn in range(TURNS):
            name = f"{what}{turn}"
            store.add_dispatch(DispatchRecord(name, "w", owner=kernel), {})
            if there:
                rows = [
                    NodeRecord(i, NodeStatus.RUNNING, 1, f"{name}:{i}", "local", {"n": i}, 1.0)
                    for i in range(tasks)
                ]
                store.commit(kernel, Commit(nodes={name: rows}), 1 << 40)
            began = time.perf_counter()
            store.request_cancel(name, ids)
            taken.append(time.perf_counter() - began)
        say(f"{kind}: recorded, {what}", taken)
    store.close()


def restart(home: Path, tasks: int, url: str | None = None) -> None:
    """Running tasks are taken over by the next kernel, and cancelled by ids and as a whole."""
    backend = Backend(finish=lambda key, node: None)
    executor = fake(backend, limits=LIMITS)
    kind = "Postgres" if url else "SQLite"
    first = Bench(home, executor, store=url)
    dispatch_id = first.dispatch(graph_of([[]] * tasks))
    until(lambda: first.gateway.record(dispatch_id).counts.get("RUNNING") == tasks)
    first.close()
    polled: set[str] = set()
    honest = executor.poll

    async def poll(self: Any, handles: Any) -> Any:
        polled.update(handle.key for handle in handles)
        return await honest(self, handles)

    executor.poll = poll  # type: ignore[method-assign]
    taken = []
    for _ in range(3):
        polled.clear()
        second = Bench(home, executor, store=url)
        began = time.monotonic()
        second.gateway.engine.poke()
        until(lambda: len(polled) == tasks)
        taken.append(time.monotonic() - began)
        second.close()
    say(f"{kind}: a new kernel has adopted and polled all", taken)
    second = Bench(home, executor, store=url)
    second.gateway.engine.poke()
    polled.clear()
    until(lambda: len(polled) == tasks)
    other = LocalGateway(second.gateway.settings)
    for what, targets in (("by ids", list(range(tasks - 1))), ("whole dispatch", None)):
        began = time.monotonic()
        (other if targets is None else second.gateway).cancel(dispatch_id, targets)
        say(f"{kind}: ct.cancel returns, {what}", [time.monotonic() - began])
    began = time.monotonic()
    second.wait(dispatch_id, 300.0)
    say(f"{kind}: all CANCELLED after that", [time.monotonic() - began])
    other.close()
    second.close()


@ct.electron
def stubborn(folder: str) -> None:
    """Computes for ever, as does its child, and neither heeds SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], start_new_session=True)
    Path(folder, "pids").write_text(f"{os.getpid()} {child.pid}")
    while True:
        pass


@ct.electron
def neighbour(folder: str) -> int:
    """Notes who runs it, and waits."""
    Path(folder, "neighbour").write_text(str(os.getpid()))
    until(Path(folder, "go").exists)
    return os.getpid()


@ct.lattice
def both(folder: str) -> Any:
    """A task to cancel and its neighbour in the pool."""
    return [neighbour(folder), stubborn(folder)]


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def tree(home: Path) -> None:
    """A CPU-bound task with a grandchild that ignores SIGTERM."""
    taken = []
    for turn in range(3):
        folder = home / str(turn)
        folder.mkdir(parents=True)
        ct.configure(home=home / "home", executors={"local": {"workers": 2}})
        dispatch_id = ct.dispatch(both)(str(folder))
        until(lambda: (folder / "pids").exists() and (folder / "neighbour").exists())  # noqa: B023
        time.sleep(0.3)
        pids = [int(pid) for pid in (folder / "pids").read_text().split()]
        began = time.monotonic()
        ct.cancel(dispatch_id, "stubborn", wait=True)
        taken.append(time.monotonic() - began)
        assert not any(map(alive, pids))
        (folder / "go").touch()
        result = ct.get_result(dispatch_id, wait=True)
        row = result.get_node_result(0)
        assert (row["status"], row["output"], row["attempts"]) == (
            "COMPLETED", int((folder / "neighbour").read_text()), 1,
        )  # fmt: skip
    say(f"a tree that ignores SIGTERM is gone (grace {GRACE:g} s)", taken)
    ct.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    tasks = parser.parse_args().tasks
    print(f"{tasks} tasks; load {os.getloadavg()[0]:.1f}" + " " * 36 + "best        middle")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        tree(home / "tree")
        record("", home / "sqlite", tasks)
        restart(home / "restart", tasks)
        if postgres.find_binaries() is None:
            print("Postgres: not installed")
            return
        with postgres.start() as server:
            record(server.fresh(), home / "postgres", tasks)
            restart(home / "restart-postgres", tasks, server.fresh())
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
