"""``python -m tests.simulation --seeds 1000 --from 0`` and ``--replay SEED``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from tests.simulation.campaign import Bench, run_seed
from tests.simulation.running import killed_quietly, run_seeds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--replay", type=int, help="play one seed and print its schedule")
    options = parser.parse_args()
    logging.getLogger("chelate").setLevel(logging.CRITICAL)
    if options.replay is not None:
        bench = Bench()
        try:
            with killed_quietly():
                report = run_seed(options.replay, bench, tracing=True)
        finally:
            bench.close()
        sys.stdout.write("\n".join([*report.trace, *report.violations, ""]))
        return bool(report.violations)
    counts: Counter[str] = Counter()
    bad, virtual, begin = 0, 0.0, time.monotonic()
    for report in run_seeds(range(options.first, options.first + options.seeds), options.jobs):
        counts.update(report.counts)
        virtual += report.virtual
        if report.violations:
            bad += 1
            sys.stdout.write(f"seed {report.seed}: {'; '.join(report.violations[:3])}\n")
            sys.stdout.flush()
    seconds = time.monotonic() - begin
    sys.stdout.write(
        f"{options.seeds} seeds, {bad} bad, {seconds:.1f} s "
        f"({options.seeds / seconds:.1f} a second), {virtual / 3600:.1f} virtual hours, "
        f"{dict(sorted(counts.items()))}\n"
    )
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
