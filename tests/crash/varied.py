"""A varied life of a store: ``python varied.py HOME [URL] [ROUNDS] [WIDE]``.

Every round dispatches work that completes, fails, is tried again, is cancelled whole and in part,
nests and is redispatched with reuse; then, where asked for, come four dispatches of WIDE tasks. At
the end the ids are printed as one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import chelate as ct


@ct.electron
def add(first, second=1):
    return first + second


@ct.electron
def fail(value):
    raise ValueError(f"{value} is no good")


@ct.electron(retries=2)
def third_time(folder):
    place = Path(folder) / "tries"
    with place.open("a") as out:
        out.write("x")
    if len(place.read_text()) < 3:
        raise RuntimeError("not yet")
    return folder


@ct.electron
def large(size):
    sys.stdout.write(f"making {size}")
    return b"x" * size


@ct.electron
def nap(seconds):
    time.sleep(seconds)
    return seconds


@ct.electron
@ct.lattice
def inner(value):
    return add(add(value))


@ct.electron
@ct.lattice
def constant(value):
    return 5


@ct.lattice
def good(value):
    return inner(add(value)), large(2_000_000), constant(value)


@ct.lattice
def bad(value, folder):
    broken = add(fail(add(value)))
    return broken, third_time(folder), add(value)


@ct.electron
@ct.lattice
def sleepers(seconds):
    return add(nap(seconds))


@ct.lattice
def slow(seconds):
    return add(nap(seconds)), sleepers(seconds), add(nap(seconds + 0.01))


@ct.lattice
def many(count):
    return [add(number) for number in range(count)]


def running(dispatch_id, node_id):
    while ct.get_result(dispatch_id).get_node_result(node_id)["status"] != "RUNNING":
        time.sleep(0.01)


def live(folder: Path, number: int) -> dict[str, str]:
    tries = folder / f"tries{number}"
    tries.mkdir(parents=True)
    ids = {"good": ct.dispatch(good)(number), "bad": ct.dispatch(bad)(number, str(tries))}
    ids["whole"] = ct.dispatch(slow)(60)
    ids["part"] = ct.dispatch(slow)(0.05)
    running(ids["whole"], 0)
    ct.cancel(ids["whole"])
    ct.cancel(ids["part"], task_ids=[0])
    ct.get_result(ids["good"], wait=True)
    ids["again"] = ct.redispatch(ids["good"], reuse_previous_results=True)()
    changed = ct.redispatch(
        ids["good"], replace_electrons={"add": add}, reuse_previous_results=True
    )
    ids["changed"] = changed(number + 1)
    for dispatch_id in ids.values():
        ct.get_result(dispatch_id, wait=True)
    return ids


if __name__ == "__main__":
    home = Path(sys.argv[1])
    ct.configure(
        home=home,
        store=(sys.argv[2:] or [""])[0] or None,
        poll_interval=0.05,
        executors={"local": {"workers": 2}},
    )
    for turn in range(int((sys.argv[3:] or ["1"])[0])):
        ids = live(home, turn)
    for _ in range(4 if sys.argv[4:] else 0):
        ct.dispatch_sync(many)(int(sys.argv[4])).raise_for_status()
    sys.stdout.write(json.dumps(ids))
