"""Where lanes live."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading

import pytest

from chelate.kernel.world import World

HANGS = """
import asyncio, threading
from chelate.kernel.world import World

begun = threading.Event()

def hang():
    begun.set()
    threading.Event().wait()

async def main():
    await asyncio.to_thread(hang)

World().habitat("lane", main)
assert begun.wait(60)
print("main ends")
"""


def test_a_plugins_thread_that_hangs_does_not_keep_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HANGS)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "main ends\n"), done.stderr


def test_plugins_may_use_threads_as_ever() -> None:
    found: list[object] = []
    gate = threading.Barrier(8)

    def raises() -> None:
        raise LookupError("nothing there")

    async def main() -> None:
        await asyncio.gather(*(asyncio.to_thread(gate.wait, 60) for _ in range(8)))
        found.extend(await asyncio.gather(*(asyncio.to_thread(pow, 2, n) for n in range(100))))
        with pytest.raises(LookupError, match="nothing there"):
            await asyncio.to_thread(raises)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(threading.Event().wait), 0.1)
        found.append("done")

    place = World().habitat("lane", main)
    place.join(60)
    assert found == [*(2**n for n in range(100)), "done"]
