"""Programs as users write them; ``python flows.py NAME [argument …]`` runs one as a process."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import chelate as ct

# -- the workflows of the guides, with tasks here and there --------------------------------------


@ct.electron(executor="ssh")
def task_0(a):
    return a


@ct.electron
def task_1(a, b):
    return a + b


@ct.electron(executor="ssh")
def task_2(a, b):
    return a / b


@ct.electron(executor="ssh")
def task_2_redefined(a, b):
    return a * b


@ct.lattice
def workflow(a, b):
    res_0 = task_0(a)
    res_1 = task_1(res_0, b)
    return task_2(res_1, b)


def redispatch() -> None:
    first = ct.dispatch(workflow)(1, 2)
    assert ct.get_result(first, wait=True).result == 1.5
    swap = {"task_2": task_2_redefined}
    second = ct.redispatch(first, replace_electrons=swap)()
    assert ct.get_result(second, wait=True).result == 6
    third = ct.redispatch(first, replace_electrons=swap, reuse_previous_results=True)(1, 4)
    result = ct.get_result(third, wait=True)
    assert result.result == 20
    node = result.get_node_result(0)
    assert node["start_time"] == node["end_time"]


@ct.electron(executor="ssh")
def prepare_data():
    return random.randint(0, 100)


@ct.electron
def process_data(data):
    return data + 1


@ct.lattice
def data_processing_workflow():
    return [process_data(prepare_data()) for _ in range(4)]


def many() -> None:
    result = ct.get_result(ct.dispatch(data_processing_workflow)(), wait=True)
    assert all(1 <= value <= 101 for value in result.result), result


@ct.electron(executor="ssh")
def endless(marker):
    """Starts a grandchild in a session of its own that ignores SIGTERM, and waits with it."""
    stubborn = f"trap '' TERM HUP; exec 3>{marker}; while :; do sleep 0.1; done"
    subprocess.Popen(
        ["sh", "-c", 'setsid sh -c "$0" & echo; wait', stubborn], start_new_session=True
    )
    while True:
        time.sleep(0.1)


@ct.lattice(executor="ssh")
def to_cancel(marker):
    one = endless(marker)
    return task_1(one, 1)


def cancel(marker: str) -> None:
    dispatch_id = ct.dispatch(to_cancel)(marker)
    while not Path(marker).exists():
        time.sleep(0.02)
    begun = time.monotonic()
    ct.cancel(dispatch_id, task_ids=[0])
    result = ct.get_result(dispatch_id, wait=True)
    assert time.monotonic() - begun < 30
    assert result.get_node_result(0)["status"] == "CANCELLED", result.get_node_result(0)
    assert result.get_node_result(2)["status"] in ("CANCELLED", "SKIPPED")


def guides(marker: str) -> None:
    redispatch()
    many()
    cancel(marker)


# -- one task ------------------------------------------------------------------------------------


@ct.lattice(executor="ssh")
def single(value):
    return task_0(value)


def one() -> None:
    result = ct.get_result(ct.dispatch(single)(7), wait=True)
    node = result.get_node_result(0)
    sys.stdout.write(f"{result.status}|{result.result}|{node['reason']}|{node['error']}\n")


# -- a workflow that is killed -------------------------------------------------------------------


def note(ledger: str, line: str) -> None:
    """One line, whole even when many processes append at once."""
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


@ct.electron(executor="ssh")
def step(ledger, number, seconds, *before):
    dispatch, node, attempt = os.environ["CHELATE_TASK_KEY"].split(":")[:3]
    note(ledger, f"start {dispatch} {node} {attempt}")
    time.sleep(seconds)
    note(ledger, f"end {dispatch} {node} {attempt}")
    return number + sum(before)


@ct.lattice
def ledgered(ledger, width, seconds):
    first = [step(ledger, number, seconds) for number in range(width)]
    second = [step(ledger, 1, seconds, first[number]) for number in range(0, width, 2)]
    return step(ledger, 0, seconds, *first, *second)


def begin(ledger: str, width: str, seconds: str) -> None:
    sys.stdout.write(f"{ct.dispatch(ledgered)(ledger, int(width), float(seconds))}\n")
    sys.stdout.flush()


def wait(dispatch_id: str) -> None:
    result = ct.get_result(dispatch_id, wait=True)
    sys.stdout.write(f"{result.status} {result.result}\n")


def whole(ledger: str, width: str, seconds: str) -> None:
    dispatch_id = ct.dispatch(ledgered)(ledger, int(width), float(seconds))
    sys.stdout.write(f"{dispatch_id}\n")
    sys.stdout.flush()
    wait(dispatch_id)


@ct.electron(executor="ssh")
def large(size):
    return bytes(size)


@ct.lattice
def bulk_flow(size):
    return large(size)


def bulk(size: str) -> None:
    """Status, and by how many MiB this process grew while the result came here."""
    assert ct.get_result(ct.dispatch(bulk_flow)(100_000), wait=True).status == "COMPLETED"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = ct.get_result(ct.dispatch(bulk_flow)(int(size)), wait=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    sys.stdout.write(f"{result.status} {grown / 1024}\n")


def expected(width: int) -> int:
    first = list(range(width))
    return sum(first) + sum(1 + first[number] for number in range(0, width, 2))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
