"""How long a submission by SSH takes when the host is 50 ms away: one job alone, and a hundred.

    python -m benchmarks.ssh_latency [--round-trip MS] [--jobs N] [--alone N]

Starts an OpenSSH server of its own on loopback, behind a proxy that delays every byte. The
connection is warm: the host has been asked once what it is, and has the tools and the function.
A submission is over when the host has answered that the jobs are claimed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.services import sshd
from tests.services.tcpproxy import TcpProxy

from chelate.api import Accepted, Job
from chelate.testing.executor_bench import Bench
from chelate_ssh import SSHExecutor


def nothing(number: int) -> int:
    """The task."""
    return number


async def submitted(bench: Bench, jobs: Sequence[Job]) -> float:
    """Seconds until every job is accepted."""
    begun = time.perf_counter()
    outcomes = await bench.run(*jobs)
    seconds = time.perf_counter() - begun
    refused = [outcome for outcome in outcomes if not isinstance(outcome, Accepted)]
    if refused:
        raise SystemExit(f"not accepted: {refused[0]}")
    return seconds


async def measure(bench: Bench, alone: int, many: int) -> tuple[list[float], float]:
    """Seconds of each job alone, and of many at once."""
    await bench.executor.open()
    try:
        for number in range(2):
            await submitted(bench, [bench.job(nothing, number)])
        singles = []
        for number in range(alone):
            singles.append(await submitted(bench, [bench.job(nothing, number)]))
            await bench.outcomes(list(bench.handles.values()))
        return singles, await submitted(
            bench, [bench.job(nothing, number) for number in range(many)]
        )
    finally:
        await bench.outcomes(list(bench.handles.values()))
        await bench.executor.close()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--round-trip", type=float, default=50.0, help="milliseconds")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--alone", type=int, default=15)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        sshd.start() as server,
        TcpProxy((server.address, server.port)) as proxy,
    ):
        server.know(proxy.address[1])
        proxy.delay = options.round_trip / 2000
        reach = server.client(
            port=proxy.address[1],
            python=sys.executable,
            root=f"{folder}/root",
            slots=options.jobs + 10,
        )
        bench = Bench(lambda: SSHExecutor(**reach), Path(folder), 300.0)
        singles, many = asyncio.run(measure(bench, options.alone, options.jobs))
    print(f"round trip {options.round_trip:g} ms")
    print(f"one job alone: p50 {statistics.median(singles):.3f} s, worst {max(singles):.3f} s")
    print(f"{options.jobs} jobs: {many:.3f} s")


if __name__ == "__main__":
    main()
