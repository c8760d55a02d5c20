"""Processes with a kernel each that dispatch and cancel until they are told to stop.

``python workload.py FOLDER WIDTH`` imports everything, then forks a process for each name that it
reads, so that a kernel that dies is back in a moment; it prints ``began NAME PID`` and
``ended NAME STATUS``. The processes share one home. What a call acknowledged is in the slot's
journal, on disk, before the next call. Dispatches of a dead process are taken up by whichever
kernel comes first.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

import chelate as ct
from chelate.contracts.store import DispatchFilter
from chelate.embedding import current
from chelate.model import Status
from chelate.store import SQLStore

# Every kill of a task's process costs an attempt; what is looked at is that none runs twice.
PATIENT = ct.Retry(times=200, delay=0.02, factor=1.0, infrastructure=200)
FEW = ct.Retry(times=2, delay=0.02, factor=1.0, infrastructure=200)
ALIVE = (Status.NEW_OBJ, Status.RUNNING, Status.CANCELLING)


def note(ledger, word):
    """One line, whole even when many processes append at once; the fields of examiner.Line."""
    key = os.environ["CHELATE_TASK_KEY"]
    job = os.environ.get("SLURM_JOB_ID", "-")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    line = f"{time.time():.6f} {word} {key} {restart} {os.getpid()} {job}\n"
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def work(ledger, number, *before):
    note(ledger, "start")
    time.sleep(0.03)
    note(ledger, "end")
    return number + sum(before)


@ct.electron
def here(ledger, number, *before):
    return work(ledger, number, *before)


@ct.electron(executor="slurm")
def there(ledger, number, *before):
    return work(ledger, number, *before)


@ct.electron(retries=FEW)
def wrong(ledger, number):
    note(ledger, "start")
    note(ledger, "end")
    raise ValueError(f"wrong on purpose: {number}")


@ct.electron
def stubborn(ledger, number):
    """Takes long, and has a grandchild that does not listen."""
    note(ledger, "start")
    script = 'trap "" TERM; sleep 900 & wait'
    with subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True) as child:
        time.sleep(5)
        os.killpg(child.pid, signal.SIGKILL)
    note(ledger, "end")
    return number


@ct.electron(retries=PATIENT)
@ct.lattice(retries=PATIENT)
def inner(ledger, number):
    return here(ledger, there(ledger, number), here(ledger, number))


@ct.lattice(retries=PATIENT)
def mixed(ledger, number):
    """→ 9 * number + 5"""
    first = [here(ledger, number + index) for index in range(3)]
    second = [there(ledger, index, one) for index, one in enumerate(first[:2])]
    return here(ledger, 0, *first, *second, inner(ledger, number), inner(ledger, number))


@ct.lattice(retries=PATIENT)
def quick(ledger, number):
    """→ number + 10"""
    chain = here(ledger, number)
    for _ in range(3):
        chain = here(ledger, 1, chain)
    side = [here(ledger, 1) for _ in range(4)]
    return here(ledger, 3, chain, *side)


@ct.lattice(retries=PATIENT)
def array(ledger, number):
    """→ 4 * number + 6"""
    return here(ledger, 0, *[there(ledger, number + index) for index in range(4)])


@ct.lattice(retries=PATIENT)
def failing(ledger, number):
    """FAILED, after at most three attempts of ``wrong``; its neighbour completes."""
    here(ledger, number)
    return here(ledger, wrong(ledger, number))


@ct.lattice(retries=PATIENT)
def slow(ledger, number):
    """→ 2 * number, if nobody cancels it"""
    return here(ledger, 0, stubborn(ledger, number), far(ledger, number))


far = ct.electron(stubborn.function, executor="slurm", name="far")

FLOWS = {"mixed": mixed, "quick": quick, "array": array, "failing": failing, "slow": slow}
WEIGHTS = {"mixed": 3, "quick": 4, "array": 2, "failing": 1, "slow": 5}
RESULTS = {
    "mixed": lambda number: 9 * number + 5,
    "quick": lambda number: number + 10,
    "array": lambda number: 4 * number + 6,
    "failing": None,
    "slow": lambda number: 2 * number,
}


def configure(folder: Path) -> None:
    """The settings of every process of a campaign."""
    slurm = {
        "slurm_bin": str(folder / "spool" / "bin"),
        "root": str(folder / "root"),
        "python": sys.executable,
        "env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]},
        "requeue": True,
        "poll_min": 0.4,
        "poll_max": 1.5,
        "gather": 0.1,
        "find_grace": 3.0,
        "absent_grace": 3.0,
        "cancel_grace": 2.0,
        "result_grace": 2.0,
    }
    ct.configure(
        home=str(folder / "home"),
        poll_interval=0.1,
        synchronous="normal",
        progress="off",
        exit_wait=False,
        executors={"slurm": slurm, "local": {"workers": 2}},
    )


class Journal:
    """What was acknowledged to one slot; each line is on disk before anything else happens."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **line: object) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{json.dumps({**line, 'at': time.time()})}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def journalled(folder: Path) -> list[dict]:
    """What was acknowledged to any slot, in the order of time."""
    lines = [
        json.loads(line)
        for path in (folder / "journal").iterdir()
        for line in path.read_text().splitlines()
    ]
    return sorted(lines, key=lambda line: line["at"])


def cancel_something(rng: random.Random, folder: Path, journal: Journal) -> None:
    """A whole dispatch or some tasks, of any slot."""
    before = time.time() - rng.uniform(0.0, 5.0)  # at any stage of their lives
    known = [x for x in journalled(folder) if x["do"] == "dispatch" and x["at"] < before][-6:]
    if not known:
        return
    line = rng.choice([x for x in known if x["flow"] == "slow"] or known)
    names = {"mixed": ["there", "inner"], "slow": ["far", "stubborn"]}.get(line["flow"], ["here"])
    tasks = [rng.choice(names)] if rng.random() < 0.5 else None
    waits = rng.random() < 0.2
    answer = ct.cancel(line["id"], tasks, wait=waits)
    journal.write(do="cancel", id=line["id"], tasks=tasks, answer=answer, waited=waits)


def main(folder: Path, slot: str, width: int) -> None:
    configure(folder)
    journal = Journal(folder / "journal" / slot)
    lives = journal.path.read_text().count('"kernel"') if journal.path.exists() else 0
    rng = random.Random(f"{(folder / 'seed').read_text()}:{slot}:{lives}")
    gateway = current()
    journal.write(do="kernel", pid=os.getpid(), kernel=gateway.engine.kernel_id)
    ledger = str(folder / "ledger")
    unfinished = DispatchFilter(status=ALIVE, limit=10_000)
    while not (folder / "stop").exists():
        if len(gateway.records(unfinished)) < width:
            flow = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            number = rng.randrange(1000)
            dispatch_id = ct.dispatch(FLOWS[flow])(ledger, number)
            journal.write(do="dispatch", id=dispatch_id, flow=flow, number=number)
        if rng.random() < 0.05:
            cancel_something(rng, folder, journal)
        time.sleep(rng.uniform(0.02, 0.2))
    while left := gateway.records(unfinished):
        gateway.wait(left[-1].dispatch_id)
    ct.shutdown()


def fork(folder: Path, slot: str, width: int) -> int:
    """A process for the slot; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        log = os.open(folder / f"{slot}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        main(folder, slot, width)
        status = 0
    except BaseException:  # the log is the only place where it can be told
        traceback.print_exc()
    finally:
        os._exit(status)


def serve(folder: Path, width: int) -> None:
    """Fork on request until the requests end."""
    for name in ("kernel.engine", "kernel.triggers.host", "client.build", "executors.builtin"):
        import_module(f"chelate.{name}")
    import_module("chelate_slurm")
    store = SQLStore("", folder / "rehearsal")  # the first use imports most
    store.open()
    store.dispatches(DispatchFilter())
    store.close()
    slots: dict[int, str] = {}
    pending = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        said = []
        if ready:
            data = os.read(0, 4096)
            if not data:
                return
            *names, pending = (pending + data).split(b"\n")
            for slot in map(bytes.decode, names):
                pid = fork(folder, slot, width)
                slots[pid] = slot
                said.append(f"began {slot} {pid}\n")
        while slots:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            said.append(f"ended {slots.pop(pid)} {os.waitstatus_to_exitcode(status)}\n")
        os.write(1, "".join(said).encode())


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
