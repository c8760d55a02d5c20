"""How long fingerprints take: values of several kinds, and a warm and a cold task.

Run: ``PYTHONPATH=core python benchmarks/fingerprint.py``. Goals: 250 MiB/s for buffers, a million
integers in 150 ms, a warm task in 0.5 ms.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from chelate.client.fingerprint import fingerprint_function
from chelate.values import combine, fingerprint

TASK = """
from dataclasses import dataclass
SCALE = 2
@dataclass
class Point:
    x: int = 1
    def norm(self):
        return self.x * SCALE
def helper(x):
    return Point(x).norm()
def task(a, b=2):
    return helper(a) + b
"""


@dataclasses.dataclass
class Row:
    number: int
    name: str


def best(function, repetitions=5):
    """The shortest of some runs, in seconds."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    numbers = list(range(10**6))
    buffer = np.arange(8 << 20, dtype="f8")
    short = [f"name {number}" for number in numbers]
    cases = {
        "bytes, 64 MiB": buffer.tobytes(),
        "numpy f8, 64 MiB": buffer,
        "the same, strided": np.repeat(buffer[: 4 << 20], 2)[::2],
        "10^6 integers": numbers,
        "10^6 floats": [float(number) for number in numbers],
        "10^6 short strings": short,
        "dict of 10^5 str: int": dict(zip(short[: 10**5], numbers, strict=False)),
        "set of 10^6 integers": set(numbers),
        "10^5 dataclasses": [Row(number, "name") for number in range(10**5)],
        "10^5 pairs": [(number, "name") for number in range(10**5)],
        "DataFrame, 10^6 x 4 f8": pd.DataFrame(np.random.default_rng(0).random((10**6, 4))),
        "DataFrame, 10^6 strings": pd.DataFrame({"name": short}),
    }
    for name, value in cases.items():
        seconds = best(lambda value=value: fingerprint(value), 3)
        size = getattr(value, "nbytes", len(value) if isinstance(value, bytes) else 0)
        rate = f"{size / seconds / 2**20:8.0f} MiB/s" if size and not hasattr(size, "sum") else ""
        print(f"{name:26}{seconds * 1000:9.1f} ms {rate}")
    found = [fingerprint(number) for number in range(1000)]
    print(f"{'combine 1,000 parts':26}{best(lambda: combine('l', found)) * 1000:9.2f} ms")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "benchmark_task.py").write_text(TASK)
        sys.path.insert(0, folder)
        task = importlib.import_module("benchmark_task").task
        print(f"{'task, cold':26}{best(lambda: fingerprint_function(task), 1) * 1000:9.2f} ms")
        print(f"{'task, warm':26}{best(lambda: fingerprint_function(task), 50) * 1000:9.2f} ms")


if __name__ == "__main__":
    main()
