"""Jobs that nobody waits for are ended, whenever they become known."""

from __future__ import annotations

import asyncio

from tests.kernel.fakes import Backend, fake

from chelate.contracts.executor import Capabilities, JobHandle
from chelate.kernel.lanes.calls import LaneCalls
from chelate.kernel.lanes.strays import Strays
from chelate.kernel.world import World


def test_what_is_found_while_others_are_ended_is_ended_too() -> None:
    asked: list[tuple[list[str], bool]] = []
    seen = asyncio.Event()

    async def cancel(self, handles, *, force):
        asked.append(([handle.key for handle in handles], force))
        if len(asked) == 1:
            strays.stop([handle_of("two")])
            await asyncio.sleep(0)
        else:
            seen.set()

    def handle_of(name):
        return JobHandle(f"{name}:0:1:x", "fake", "", {}, (f"{name}:0:1:x",))

    async def scenario() -> None:
        nonlocal strays
        executor = fake(Backend(), cancel=cancel)
        executor.capabilities = Capabilities(detached=False)
        calls = LaneCalls("fake", executor(), lambda report: None, World())
        strays = Strays(calls, "store")
        loop = asyncio.ensure_future(calls.forever(strays.part))
        strays.stop([handle_of("one")])
        await asyncio.wait_for(seen.wait(), 20)
        loop.cancel()
        await asyncio.wait([loop])

    strays: Strays
    asyncio.run(scenario())
    assert asked == [(["one:0:1:x"], False), (["two:0:1:x"], False)]
