"""From an executor's outcome to an event: values stored, sub-workflows turned into dispatches."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

from chelate.bundle import Bundle
from chelate.contracts.executor import Outcome
from chelate.contracts.store import ResultStore
from chelate.errors import GraphError, StoreError
from chelate.kernel import events as ev
from chelate.kernel.jobs import keep_text, settle
from chelate.kernel.live import BUILD_NODE, LiveDispatch, child_record
from chelate.model import FINAL, NodeRecord, Reason

__all__ = ["Intake"]


@dataclass(slots=True)
class Intake:
    """What a turn has taken in: blobs to store, sub-dispatches to create, rows to keep.

    ``kept`` are rows of machines that were replaced when a dispatch's own graph was built.
    """

    store: ResultStore
    kernel_id: str
    max_depth: int
    blobs: dict[str, bytes] = field(default_factory=dict)
    created: list[LiveDispatch] = field(default_factory=list)
    kept: dict[str, dict[int, NodeRecord]] = field(default_factory=dict)

    def event(
        self, live: LiveDispatch, outcome: Outcome, node: int, attempt: int
    ) -> ev.Event | None:
        """The event that an outcome means to the dispatch's machine; None when nothing is left
        to tell, because the dispatch's own graph was built and has replaced the machine."""
        try:
            if outcome.ok and outcome.graph:
                return self._built(live, outcome, node, attempt)
            return settle(outcome, node, attempt, self.store, self.blobs)
        except (OSError, StoreError, GraphError) as error:
            return ev.Ended(
                node,
                attempt,
                False,
                reason=_storing_failed(error),
                error=f"The task ended, but its result could not be stored: {error}",
            )

    def _built(
        self, live: LiveDispatch, outcome: Outcome, node: int, attempt: int
    ) -> ev.Event | None:
        payload = outcome.payload
        bundle = Bundle.from_bytes(
            payload.read_bytes() if isinstance(payload, Path) else payload or b""
        )
        ended = ev.Ended(
            node, attempt, True, started_at=outcome.started_at, ended_at=outcome.ended_at
        )
        record = live.machine.records.get(node)
        if record is None or record.attempt != attempt:
            return None
        if record.cancel_requested or record.child_id is not None or record.status in FINAL:
            return ended
        if node == BUILD_NODE:
            live.machine.handle([ended], live.world.time())
            changed, _ = live.machine.drain()
            self.kept[live.record.dispatch_id] = {row.node_id: row for row in changed}
            live.replace_graph(bundle, self.blobs, self.store)
            return None
        if live.record.depth >= self.max_depth:
            return ev.Ended(
                node,
                attempt,
                False,
                reason=Reason.DEPTH,
                error=f"Sub-workflow {live.node(node).name} would be nested more than "
                f"{self.max_depth} deep. Look for a recursion without an end, or raise the "
                "setting max_depth.",
            )
        child, blobs = child_record(live, node, attempt, bundle, live.world.time(), self.kernel_id)
        self.blobs.update(blobs)
        assert bundle.graph is not None
        self.created.append(LiveDispatch.of(child, bundle.graph, self.store, live.world))
        return ev.Built(
            node,
            attempt,
            child.dispatch_id,
            outcome.started_at,
            keep_text(outcome.stdout, self.blobs),
            keep_text(outcome.stderr, self.blobs),
        )


def _storing_failed(error: Exception) -> Reason:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return Reason.DISK_FULL
        cause = cause.__cause__
    return Reason.RESULT_CORRUPT
