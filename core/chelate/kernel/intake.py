"""From an executor's outcome to an event: values stored, sub-workflows turned into dispatches."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chelate.bundle import Bundle
from chelate.contracts.executor import JobHandle, JobState, Observation, Outcome
from chelate.contracts.store import ResultStore
from chelate.errors import GraphError, StoreError, StoreUnavailableError
from chelate.kernel import events as ev
from chelate.kernel.jobs import keep_text, settle
from chelate.kernel.keys import lane_ref, split_key
from chelate.kernel.lane_table import Orders
from chelate.kernel.lanes.report import LaneReport
from chelate.kernel.live import BUILD_NODE, LiveDispatch, child_record
from chelate.kernel.plugins.hooks import Hooks
from chelate.model import FINAL, NodeRecord, Reason

__all__ = ["Intake"]


@dataclass(slots=True)
class Intake:
    """What a turn has taken in: blobs to store, sub-dispatches to create, rows to keep.

    ``held`` are results that stay with their executors (``Commit.held``). ``kept`` are rows of
    machines that were replaced when a dispatch's own graph was built.
    """

    store: ResultStore
    kernel_id: str
    max_depth: int
    blobs: dict[str, bytes] = field(default_factory=dict)
    created: list[LiveDispatch] = field(default_factory=list)
    kept: dict[str, dict[int, NodeRecord]] = field(default_factory=dict)
    held: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(
        self,
        report: LaneReport,
        lives: Mapping[str, LiveDispatch],
        orders: Orders,
        hooks: Hooks,
    ) -> Iterator[tuple[str, ev.Event]]:
        """What a lane's report means to the dispatches, in order."""
        classify = hooks.implemented("classify_failure")
        for dispatch_id, event in report.events:
            if classify and isinstance(event, ev.Gone):
                live = lives.get(dispatch_id)
                if live is not None:
                    _classify(hooks, live, report.lane, event, event.message)
            yield dispatch_id, event
        release = [key for key in report.lost if split_key(key)[0] in lives]
        for outcome in report.outcomes:
            dispatch_id, node, attempt = split_key(outcome.key)
            live = lives.get(dispatch_id)
            if live is None:
                continue  # whoever owns the dispatch now still needs what the job left
            release.append(outcome.key)
            fact = self.event(live, outcome, node, attempt)
            if outcome.held is not None and outcome.digest is not None:
                # Of a packed job, the handle names thousands of tasks that have nothing to do here.
                handle = {**report.handles[outcome.key], "tasks": [outcome.key]}
                note = {"executor": report.lane, "size": outcome.held, "handle": handle}
                self.held[outcome.digest] = note
            if isinstance(fact, ev.Ended):
                fact.handle = report.handles.get(outcome.key)
                if classify and not fact.ok:
                    _classify(hooks, live, report.lane, fact, fact.error or "")
            if fact is not None:
                yield dispatch_id, fact
        if release:
            orders.release.setdefault(report.lane, []).extend(release)
        if report.listed:
            strays = [h for h in report.listed if not self._is_wanted(h, lives)]
            if strays:
                orders.strays[report.lane] = strays

    def _is_wanted(self, handle: JobHandle, lives: Mapping[str, LiveDispatch]) -> bool:
        """Whether a job carries a live attempt, of this kernel or another on the same store."""
        for key in handle.tasks or (handle.key,):
            dispatch_id, node, _ = split_key(key)
            live = lives.get(dispatch_id)
            try:
                row = (
                    live.machine.records.get(node)
                    if live is not None
                    else next(iter(self.store.nodes(dispatch_id, [node])), None)
                )
            except StoreUnavailableError:
                return True  # nobody can say so now; it is listed again
            if row is not None and row.key == key and row.status not in FINAL:
                return True
        return False

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


def _classify(
    hooks: Hooks, live: LiveDispatch, lane: str, event: ev.Gone | ev.Ended, message: str
) -> None:
    """Ask the site why the attempt failed."""
    record = live.machine.records.get(event.node)
    if record is None or record.attempt != event.attempt:
        return
    state = JobState.KILLED if isinstance(event, ev.Gone) else JobState.ENDED
    seen = Observation(record.key or "", state, event.reason, message, record.started_at)
    event.reason = hooks.classify_failure(lane_ref(lane), seen, record) or event.reason


def _storing_failed(error: Exception) -> Reason:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return Reason.DISK_FULL
        cause = cause.__cause__
    return Reason.RESULT_CORRUPT
