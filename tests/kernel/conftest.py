from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chelate.bundle import Bundle
from chelate.contracts.executor import Executor
from chelate.gateway import LocalGateway
from chelate.graph import Graph
from chelate.model import DispatchRecord, NodeRecord
from chelate.settings import Settings


class Bench:
    """A kernel over a home of its own, fed with graphs made by hand."""

    def __init__(self, home: Path, *classes: type[Executor], **settings: Any) -> None:
        self.gateway = LocalGateway(
            Settings(home=home, **{"poll_interval": 0.05, "synchronous": "normal", **settings})
        )
        for executor in classes:
            self.gateway.plugins.register_class(executor)

    def dispatch(self, graph: Graph) -> str:
        return self.gateway.accept(Bundle(graph))

    def wait(self, dispatch_id: str, timeout: float = 20.0) -> DispatchRecord:
        return self.gateway.wait(dispatch_id, timeout)

    def run(self, graph: Graph) -> DispatchRecord:
        return self.wait(self.dispatch(graph))

    def node(self, dispatch_id: str, node: int = 0) -> NodeRecord:
        return self.gateway.nodes(dispatch_id).get(node, NodeRecord(node))

    def until(self, condition: Callable[[], Any], timeout: float = 15.0) -> None:
        """Wait for something that must become true."""
        import time

        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.01)

    def close(self) -> None:
        self.gateway.close(5.0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*classes: type[Executor], **settings: Any) -> Bench:
        made.append(Bench(tmp_path / "home", *classes, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
