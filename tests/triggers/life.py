"""One life of a process with twenty triggers, to be killed at any moment.

``python -m tests.triggers.life <folder> [--last]``: registers the triggers in its first life,
prints ``ready``, and runs until it is killed; the last life ends by itself once all is counted.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.triggers.own import CountingTrigger

import chelate as ct

DIRECTORIES = TABLES = 7
FILES = 4
CLOCKS = 2


@ct.electron
def note(ledger: str) -> str:
    context = ct.get_context()
    dispatch_id = context.dispatch_id
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{dispatch_id}:{context.attempt}\n".encode())
    os.close(descriptor)
    return dispatch_id


@ct.lattice
def noted(ledger: str) -> str:
    return note(ledger)


def triggers(folder: Path) -> list[ct.triggers.BaseTrigger]:
    kinds = ct.triggers
    found: list[ct.triggers.BaseTrigger] = []
    for number in range(DIRECTORIES):
        found.append(kinds.DirTrigger(folder / f"dir{number}", ["created"], number % 3 + 1))
    for number in range(TABLES):
        found.append(
            kinds.SQLiteTrigger(
                str(folder / "rows.db"), f"t{number}", 0.1, trigger_after_n=number % 3 + 1
            )
        )
    for number in range(FILES):
        found.append(CountingTrigger(str(folder / f"file{number}")))
    for number in range(CLOCKS):
        found.append(kinds.TimeTrigger(0.5 + number))
    return found


def main(folder: Path, last: bool) -> None:
    ct.configure(home=folder / "home", poll_interval=0.1, synchronous="normal", exit_wait=False)
    marker = folder / "registered"
    if not marker.exists():
        for trigger in triggers(folder):
            trigger.lattice_dispatch_id = ct.dispatch(noted, disable_run=True)(
                str(folder / "ledger")
            )
            trigger.register()
        marker.touch()
    else:
        ct.dispatch(noted, disable_run=True)("nothing")  # opens the kernel
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    quiet, before = 0.0, None
    while not last or quiet < 4:
        time.sleep(0.2)
        if last:
            rows = [row for row in ct.list_triggers() if row.kind != "TimeTrigger"]
            now = [(row.id, row.fires, row.pending) for row in rows]
            quiet, before = (quiet + 0.2 if now == before else 0.0), now
    if last:
        ct.stop_triggers([row.id for row in ct.list_triggers()])
        for row in ct.list_triggers():
            for run in row.dispatch_ids:
                ct.get_result(run, wait=True, timeout=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--last" in sys.argv)
