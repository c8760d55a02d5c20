"""Commands on this machine: given up at any moment, they leave nothing behind and log nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import time

import pytest

from chelate.remote import LocalTransport

# One that does not read, one whose child holds the pipes, and one that is over at once.
COMMANDS = {"deaf": ["sleep", "120"], "child": ["sh", "-c", "sleep 120; :"], "over": ["true"]}


async def given_up(argv: list[str], stdin: bytes, wait: float, turns: int) -> list[str]:
    """What the loop complains of when a command is cancelled, and again some turns later."""
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
    running = asyncio.ensure_future(LocalTransport().run(argv, stdin))
    await asyncio.sleep(wait)
    running.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    del running
    gc.collect()
    return complaints


@pytest.mark.parametrize("argv", COMMANDS.values(), ids=COMMANDS)
def test_a_cancelled_command_is_gone_without_a_word(argv: list[str], caplog) -> None:
    begun = time.monotonic()
    with caplog.at_level(logging.ERROR, "asyncio"):
        for wait in (0, 0.02):
            for turns in (0, 1, 3, 9):
                assert asyncio.run(given_up(argv, bytes(turns << 17), wait, turns)) == []
    gc.collect()
    assert not caplog.records
    assert time.monotonic() - begun < 60, "who does not hear SIGTERM is not waited for"
