"""Which values are asked for before a job is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chelate.contracts.executor import HOLD_FROM, Job, JobHandle, Task
from chelate.kernel import events as ev
from chelate.kernel.homecoming import Homecoming
from chelate.kernel.lanes.report import LaneReport
from chelate.model import Resources

DIGEST = "d" * 64


class Store:
    def held(self, digests: Any) -> dict[str, dict[str, Any]]:
        handle = JobHandle("k:0:1:r", "far", "1", {}, ("k:0:1:r",)).to_json()
        return {d: {"executor": "far", "size": HOLD_FROM, "handle": handle} for d in digests}


def job(key: str) -> Job:
    call = {"values": {"0": DIGEST}}
    task = Task(key, "k", 1, 1, "take", call, (DIGEST,), held=frozenset({DIGEST}))
    return Job(key, (task,), Resources(), Store())  # type: ignore[arg-type]


def test_a_value_is_asked_for_again_whose_news_was_lost() -> None:
    """A turn that fails loses what the lanes have told, and its dispatches are read again."""
    told: list[LaneReport] = []
    coming = Homecoming(Store(), Path("home"), told.append)  # type: ignore[arg-type]
    for key in ("k:1:1:a", "k:1:1:b"):
        orders = {"local": [job(key)]}
        wanted = coming.sift(orders)
        assert [item.digest for item in wanted["far"]] == [DIGEST]
        assert orders == {"local": []}
        assert coming.waiting() == {"local": 1}
        assert coming.drop([key]) == [key]  # it is looked up
    for report in told:
        ((dispatch_id, event),) = report.events
        assert dispatch_id == "k"
        assert isinstance(event, ev.Stuck)
        assert "node 0, which stayed with executor far" in event.message
