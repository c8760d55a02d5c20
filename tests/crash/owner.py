"""A kernel's process that is stopped and woken: ``python owner.py HOME URL LEDGER [ID]``.

It dispatches (or, with an id, waits for what another process dispatched) and prints the id, then
the status and the result.
"""

from __future__ import annotations

import os
import sys
import time

import chelate as ct


@ct.electron
def step(ledger, number):
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{os.environ['CHELATE_TASK_KEY']}\n".encode())
    os.close(descriptor)
    time.sleep(0.2)
    while number == 5 and os.path.exists(f"{ledger}.hold"):  # noqa: PTH110
        time.sleep(0.01)
    return number + 1


@ct.lattice
def flow(ledger):
    chain = 0
    for _ in range(6):
        chain = step(ledger, chain)
    return chain, step(ledger, 1)


if __name__ == "__main__":
    home, url, ledger, *known = sys.argv[1:]
    ct.configure(
        home=home,
        store=url or None,
        poll_interval=0.05,
        progress="off",
        executors={"local": {"workers": 2}},
    )
    dispatch_id = known[0] if known else ct.dispatch(flow)(ledger)
    sys.stdout.write(f"{dispatch_id}\n")
    sys.stdout.flush()
    result = ct.get_result(dispatch_id, wait=True)
    sys.stdout.write(f"{result.status} {result.result}\n")
