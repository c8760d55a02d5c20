"""Many seeds, in a process or in several."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from tests.simulation.campaign import Bench, Report, run_seed

__all__ = ["killed_quietly", "run_seeds"]

_CHUNK = 25


def _run_some(seeds: list[int]) -> list[Report]:
    logging.getLogger("chelate").setLevel(logging.CRITICAL)
    bench = Bench()
    with killed_quietly():
        try:
            return [run_seed(seed, bench) for seed in seeds]
        finally:
            bench.close()


@contextmanager
def killed_quietly() -> Iterator[None]:
    """Coroutines of killed processes complain when they are collected; nobody is to hear it."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.collect()
    gc.disable()  # what a seed leaves behind goes with its chunk
    try:
        yield
    finally:
        gc.enable()
        for _ in range(3):  # what finalizers bring back to life goes with the next round
            gc.collect()
        sys.unraisablehook = before


def run_seeds(seeds: Iterable[int], jobs: int) -> Iterator[Report]:
    """Reports as they come; ``jobs`` processes share the work."""
    wanted = list(seeds)
    chunks = [wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK)]
    if jobs < 2:
        for chunk in chunks:
            yield from _run_some(chunk)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for reports in pool.map(_run_some, chunks):
            yield from reports
