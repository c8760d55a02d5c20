"""The workflow that is killed: tasks that note their start and end in a ledger.

``python workflow.py dispatch HOME LEDGER`` dispatches it and waits; ``python workflow.py resume
HOME ID`` is what the next process on the same home does.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import pairwise

import chelate as ct


def note(ledger: str, line: str) -> None:
    """One line, whole even when many processes append at once."""
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


@ct.electron
def step(ledger: str, number: int, *before: int) -> int:
    key = os.environ["CHELATE_TASK_KEY"].split(":")
    name = f"{key[0]} {key[1]} {key[2]}"
    note(ledger, f"start {name}")
    time.sleep(0.02)
    note(ledger, f"end {name}")
    return number + sum(before)


@ct.electron
@ct.lattice
def inner(ledger: str, number: int) -> int:
    return step(ledger, number) + step(ledger, number)


@ct.lattice
def flow(ledger: str, width: int) -> int:
    first = [step(ledger, number) for number in range(width)]
    second = [step(ledger, 1, one, other) for one, other in pairwise(first)]
    nested = [inner(ledger, 5) for _ in range(3)]
    return step(ledger, 0, *second, *nested)


def expected(width: int) -> int:
    return sum(1 + number + number + 1 for number in range(width - 1)) + 3 * 10


if __name__ == "__main__":
    command, home, argument = sys.argv[1:4]
    ct.configure(home=home, poll_interval=0.05, synchronous="normal")
    if command == "dispatch":
        dispatch_id = ct.dispatch(flow)(argument, 24)
        sys.stdout.write(f"{dispatch_id}\n")
        sys.stdout.flush()
    else:
        dispatch_id = argument
    result = ct.get_result(dispatch_id, wait=True)
    sys.stdout.write(f"{result.status} {result.result}\n")
