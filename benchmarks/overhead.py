"""What a durable no-op task costs, beside ``concurrent.futures.ProcessPoolExecutor``.

Workload: ``n`` independent no-op tasks (default 10,000), every intent and every result committed
to SQLite (write-ahead log, synchronous as configured), on two local workers; the pool is given
the same function by ``submit`` one by one, with two processes. Both are warm. The two alternate;
the figures are medians over the repeats, and the ratio is taken pair by pair. Kernel memory is
the peak of the whole process, the benchmark included.

Run: ``python benchmarks/overhead.py [--tasks 10000] [--repeats 5]``
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import chelate as ct


def nothing(number: int) -> None:
    """The task of the pool."""


@ct.electron
def no_op(number: int) -> None:
    """The task of chelate."""


@ct.lattice
def many(count: int) -> None:
    """Independent tasks."""
    for number in range(count):
        no_op(number)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = []
    with (
        tempfile.TemporaryDirectory() as home,
        ProcessPoolExecutor(2) as pool,
    ):
        ct.configure(home=home, progress="off", executors={"local": {"workers": 2}})
        list(pool.map(nothing, range(200)))
        ct.dispatch_sync(many)(200).raise_for_status()
        for _ in range(options.repeats):
            start = time.perf_counter()
            for future in [pool.submit(nothing, number) for number in range(options.tasks)]:
                future.result()
            theirs = time.perf_counter() - start
            cpu = time.process_time()
            start = time.perf_counter()
            ct.dispatch_sync(many)(options.tasks).raise_for_status()
            ours = time.perf_counter() - start
            rows.append((ours, theirs, time.process_time() - cpu))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ct.shutdown()
    scale = 1e6 / options.tasks
    ours, theirs, cpu = (statistics.median(column) * scale for column in zip(*rows, strict=True))
    ratio = statistics.median(row[0] / row[1] for row in rows)
    out = sys.stdout.write
    out(f"{options.tasks} no-op tasks, {options.repeats} repeats, medians\n")
    out(f"chelate            {ours:8.1f} µs per task ({cpu:.1f} µs of CPU in this process)\n")
    out(f"ProcessPoolExecutor{theirs:8.1f} µs per task\n")
    out(f"ratio              {ratio:8.2f} (chelate / pool, median of pairs)\n")
    out(f"peak memory        {peak:8.0f} MB\n")


if __name__ == "__main__":
    main()
