"""Redispatch of a workflow of 10,000 nodes in which one leaf changed.

``python benchmarks/redispatch.py [NODES]`` runs the workflow once, then plans and redispatches it
with one other input, in a home of its own. It prints seconds of processor time (of the caller for
the plan, of the kernel's thread for the redispatch), the ratio to the goal, and what was read from
the store.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections import Counter
from typing import Any

GOALS = {"plan": 1.0, "redispatch": 2.0}


def main(nodes: int) -> None:
    import chelate as ct
    from chelate.embedding import current
    from chelate.explaining import plan_dispatch

    @ct.electron
    def leaf(number: int) -> int:
        return number

    @ct.electron
    def step(value: int) -> int:
        return value * 2

    @ct.electron
    def total(values: list[int]) -> int:
        return sum(values)

    @ct.lattice
    def workflow(changed: int) -> Any:
        half = (nodes - 1) // 2
        return total([step(leaf(number if number else changed)) for number in range(half)])

    started = time.perf_counter()
    first = ct.dispatch(workflow)(0)
    result = ct.get_result(first, wait=True)
    assert result.status == "COMPLETED", result.error
    full = time.perf_counter() - started
    print(f"first run: {len(result.get_all_node_results())} nodes in {full:.1f} s")

    gateway = current()
    store = gateway.store
    reads: Counter[str] = Counter()
    lock = threading.Lock()
    for name in ("read", "read_many", "stream"):
        plain = getattr(store, name)

        def counted(*args: Any, _plain: Any = plain, _name: str = name) -> Any:
            found = _plain(*args)
            with lock:
                reads[_name] += 1
                if isinstance(found, dict):
                    reads["values"] += len(found)
                    reads["bytes"] += sum(map(len, found.values()))
                elif isinstance(found, bytes):
                    reads["bytes"] += len(found)
            return found

        setattr(store, name, counted)

    started = time.perf_counter()
    bundle = workflow.build((-1,), {})
    built = time.perf_counter() - started
    print(f"building the graph: {built:.2f} s")
    submission = ct.dispatch(workflow, reuse_from=first)
    options = submission._options()
    assert bundle.graph is not None
    started, used = time.perf_counter(), time.thread_time()
    plan = plan_dispatch(gateway, bundle.graph, options, bundle.blobs)
    show("plan", time.thread_time() - used)
    print(f"  {time.perf_counter() - started:.2f} s by the clock, {plan.counts}, {dict(reads)}")
    reads.clear()

    kernel = next(thread for thread in threading.enumerate() if "kernel" in thread.name.lower())
    clock = time.pthread_getcpuclockid(kernel.ident or 0)
    before, started = time.clock_gettime(clock), time.perf_counter()
    second = gateway.accept(bundle, options=options)
    result = ct.get_result(second, wait=True)
    wall = time.perf_counter() - started
    used = time.clock_gettime(clock) - before
    assert result.result == sum(2 * n for n in range((nodes - 1) // 2)) - 2, result.error
    show("redispatch", used)
    print(f"  {wall:.2f} s by the clock, {dict(reads)}")
    reads.clear()
    started = time.perf_counter()
    told = ct.explain(second)
    print(f"explain: {time.perf_counter() - started:.2f} s, {told.counts}")
    print(f"a full run takes {full / wall:.1f} times as long as the redispatch")


def show(name: str, seconds: float) -> None:
    print(f"{name}: {seconds:.2f} s, {seconds / GOALS[name]:.2f} of the goal")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["CHELATE_HOME"] = home
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
