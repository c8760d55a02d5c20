"""A fresh process that polls, collects or cancels jobs by their handles; started by the kit.

It reads one JSON order from its input and prints one JSON answer. No value is opened here.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
import time
from typing import Any

from chelate.contracts.executor import Executor, JobHandle, JobState
from chelate.digest import digest_bytes

__all__ = ["main"]

FINAL = (JobState.ENDED, JobState.KILLED)


def _kind(order: dict[str, Any]) -> type[Executor]:
    try:
        found: Any = importlib.import_module(order["module"])
    except ImportError:  # a test module, which only its file leads to
        spec = importlib.util.spec_from_file_location("kit_executor", order["file"])
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules["kit_executor"] = found
        spec.loader.exec_module(found)
    for name in order["class"].split("."):
        found = getattr(found, name)
    kind: type[Executor] = found
    return kind


async def _follow(order: dict[str, Any]) -> dict[str, Any]:
    executor = _kind(order)(**order["options"])
    handles = [JobHandle.from_json(data) for data in order["handles"]]
    await executor.open()
    try:
        if order["do"] == "cancel":
            await executor.cancel(handles, force=True)
        deadline = time.monotonic() + order["patience"]
        while True:
            report = await executor.poll(handles)
            seen = [report.seen.get(handle.key) for handle in handles]
            known = all(handle.key in report.covered for handle in handles)
            over = all(item is None or item.state in FINAL for item in seen)
            if known and (over or order["do"] == "poll"):
                break
            assert time.monotonic() < deadline, report
            await asyncio.sleep(0.05)
        answer: dict[str, Any] = {
            "states": {handle.key: item.state.value if item else "ABSENT"
                       for handle, item in zip(handles, seen, strict=True)},
        }  # fmt: skip
        if order["do"] == "collect":
            answer.update(ok={}, digests={})
            async for outcome in executor.collect(handles):
                payload = outcome.payload
                data = payload if isinstance(payload, (bytes, type(None))) else payload.read_bytes()
                answer["ok"][outcome.key] = outcome.ok
                answer["digests"][outcome.key] = None if data is None else digest_bytes(data)
        return answer
    finally:
        await executor.close()


def main() -> int:
    """Follow the order on standard input."""
    answer = asyncio.run(_follow(json.load(sys.stdin)))
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
