"""The workflow of ``redispatch.py`` in redun and Prefect, in an environment that has them.

``python benchmarks/redispatch_peers.py redun|prefect [NODES]`` prints the seconds by the clock of a
first run and of a run with one changed leaf, and how many tasks each ran. Prefect is set to keep
results by task source and inputs, since by default it reuses nothing across runs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Any

RAN: list[int] = []


def with_redun(half: int, folder: str) -> Any:
    from redun import Scheduler, task
    from redun.config import Config

    @task(namespace="bench")
    def leaf(number: int) -> int:
        RAN.append(1)
        return number

    @task(namespace="bench")
    def step(value: int) -> int:
        RAN.append(1)
        return value * 2

    @task(namespace="bench")
    def total(values: list[int]) -> int:
        RAN.append(1)
        return sum(values)

    @task(namespace="bench")
    def main(changed: int) -> int:
        return total([step(leaf(number if number else changed)) for number in range(half)])

    database = {"db_uri": f"sqlite:///{folder}/redun.db"}
    scheduler = Scheduler(config=Config({"backend": database, "executors.default": {
        "type": "local", "max_workers": "2"}}))  # fmt: skip
    scheduler.load()
    return lambda changed: scheduler.run(main(changed))


def with_prefect(half: int, folder: str) -> Any:
    os.environ["PREFECT_HOME"] = folder
    os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
    from prefect import flow, task
    from prefect.cache_policies import INPUTS, TASK_SOURCE

    policy = INPUTS + TASK_SOURCE

    @task(cache_policy=policy, persist_result=True)
    def leaf(number: int) -> int:
        RAN.append(1)
        return number

    @task(cache_policy=policy, persist_result=True)
    def step(value: int) -> int:
        RAN.append(1)
        return value * 2

    @task(cache_policy=policy, persist_result=True)
    def total(values: list[int]) -> int:
        RAN.append(1)
        return sum(values)

    @flow
    def main(changed: int) -> int:
        return total([step(leaf(number if number else changed)) for number in range(half)])

    return main


def main(peer: str, nodes: int) -> None:
    half = (nodes - 1) // 2
    with tempfile.TemporaryDirectory() as folder:
        run = {"redun": with_redun, "prefect": with_prefect}[peer](half, folder)
        for name, changed in (("first run", 0), ("one leaf changed", -1)):
            RAN.clear()
            started = time.perf_counter()
            assert run(changed) == sum(2 * number for number in range(half)) + 2 * changed
            seconds = time.perf_counter() - started
            print(f"{peer}, {2 * half + 1} nodes, {name}: {seconds:.2f} s, {len(RAN)} tasks ran")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000)
