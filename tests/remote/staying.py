"""A process of its own on a home with results that stayed: ``staying.py HOME ROOT WORD [ID]``."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from contextlib import aclosing
from pathlib import Path

from tests.remote.box import Box, Named

import chelate as ct
from chelate import embedding

SIZE = 2 << 20


def make(n):
    import random

    return random.Random(n).randbytes(2 << 20)


def turned(data, _=None):
    return data[::-1]


def measured(data):
    return len(data), data[:4]


def waiting(path):
    import time
    from pathlib import Path

    while not Path(path).exists():
        time.sleep(0.02)


def begin(home: Path) -> None:
    ct.configure(home=home, poll_interval=0.05)
    embedding.current().plugins.register_class(Box)


def chain(executor, last=None):
    """``measured(turned(make(n)))``, where the last task may be somebody else's."""
    a = ct.electron(make, executor=executor)
    b = ct.electron(turned, executor=executor)
    c = ct.electron(measured, executor=last or executor)

    @ct.lattice
    def flow(n):
        return c(b(a(n)))

    return flow


def replaced(dispatch_id):
    """Dispatch again with all results, but for the last task, which runs here."""
    new = ct.electron(lambda data: ("here", len(data)), executor="local")
    again = ct.redispatch(
        dispatch_id, replace_electrons={"measured": new}, reuse_previous_results=True
    )
    return again()


async def halting(self, argv, stdin=b""):
    """A connection that brings half of a value and then nothing."""
    brought = 0
    async with aclosing(_stream(self, argv, stdin)) as pieces:
        async for piece in pieces:
            brought += len(piece)
            yield piece
            if "value" in argv and brought > SIZE // 2:
                print("half", flush=True)  # noqa: T201 - who started us waits for it
                await asyncio.sleep(600)


_stream = Named.stream

if __name__ == "__main__":
    place, root, word, given = *map(Path, sys.argv[1:3]), sys.argv[3], sys.argv[4]
    begin(place)
    if word == "read":
        output = ct.get_result(given).get_node_result("make")["output"]
        print(hashlib.sha256(output).hexdigest())  # noqa: T201
    else:
        Named.stream = halting
        dispatch_id = replaced(given)
        print(dispatch_id, flush=True)  # noqa: T201
        ct.get_result(dispatch_id, wait=True)
