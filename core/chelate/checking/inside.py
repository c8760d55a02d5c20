"""What holds within one dispatch: its row, its tasks' rows, its events and its graph."""

from __future__ import annotations

from collections import Counter, defaultdict

from chelate.checking.report import DEFECT, RESTORE, Finding, Report
from chelate.contracts.store import CancelRequest
from chelate.graph import Graph
from chelate.kernel.states.forms import strange_moments, strangeness
from chelate.kernel.states.retries import is_loss
from chelate.model import (
    FINAL,
    DispatchRecord,
    NodeRecord,
    NodeStatus,
    Reason,
    Retry,
    Status,
    ValueRef,
)

__all__ = ["BUILD", "Event", "Inside", "Rows"]

S = NodeStatus
Event = tuple[str, int, int, str, list[list[object]]]
Rows = dict[int, NodeRecord]

BUILD = -1  # the node that built a dispatch's graph is not part of it
_STARTED = frozenset(S) - {S.WAITING, S.READY, S.CANCELLED, S.SKIPPED}
_ENDS = {status.value for status in Status if status.final}
_NODE_ENDS = {status.value for status in FINAL}


class Inside:
    """Checks of one dispatch after another; ``_here`` is the id of the one at hand."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._here = ""
        self._cancels: dict[str, list[CancelRequest]] = defaultdict(list)

    def _say(self, invariant: str, node_id: int | None, what: str, advice: str = DEFECT) -> None:
        found = Finding(invariant, self._here or None, node_id, what, advice)
        self._report.findings.append(found)

    # -- forms ----------------------------------------------------------------------------------

    def _form(self, record: DispatchRecord, rows: Rows) -> None:
        """What can be read, and still says nothing."""
        for text in strange_moments(record):
            self._say("store", None, text, RESTORE)
        for node_id, row in rows.items():
            for text in strangeness(row):
                self._say("store", node_id, text, RESTORE)

    # -- attempts (I3) --------------------------------------------------------------------------

    def _attempt(self, record: DispatchRecord, row: NodeRecord) -> None:
        if row.status in _STARTED and row.reused_from is None:
            expected = f"{record.dispatch_id}:{row.node_id}:{row.attempt}:"
            if not (row.key or "").startswith(expected):
                what = f"It is {row.status}, and {row.key!r} is no key of attempt {row.attempt}."
                self._say("I3", row.node_id, what)
            elif row.attempt > len(row.attempts) + 1:
                what = (
                    f"It is at attempt {row.attempt}, and {len(row.attempts)} before it are told."
                )
                self._say("I3", row.node_id, what)

    # -- events (I4, I5, I11, I12) and requests (I13) -------------------------------------------

    def _told(self, record: DispatchRecord, rows: Rows, facts: list[Event]) -> None:
        told: dict[object, object] = {}
        stopped: set[object] = set()
        everything = False
        requests = {f"cancel:{request.seq}": request for request in self._cancels[self._here]}
        epoch = 0
        for _, seq, at, turn, changes in facts:
            if at < epoch:
                self._say("I11", None, f"Event {seq} of epoch {at} follows one of {epoch}.")
            epoch = max(at, epoch)
            if turn in requests:
                nodes = requests.pop(turn).nodes
                everything = everything or nodes is None
                stopped.update(nodes or ())
            for node, status in changes:
                node_id = node if isinstance(node, int) else None
                before = told.get(node)
                ends = _ENDS if node is None else _NODE_ENDS
                if before in ends:
                    what = f"It had ended {before}, and event {seq} says {status}."
                    self._say("I4", node_id, what)
                if status == "SUBMITTING" and (everything or node in stopped):
                    what = f"Event {seq} submits it after a cancel of it was recorded."
                    self._say("I5", node_id, what)
                told[node] = status
        if epoch > record.epoch:
            self._say("I11", None, f"It is in epoch {record.epoch}, and an event in {epoch}.")
        for turn in requests:
            self._say("I12", None, f"The event of request {turn!r} is missing.", RESTORE)
        for node_id in {*rows, *(node for node in told if isinstance(node, int))}:
            row = rows.get(node_id)
            stored = S.WAITING if row is None else row.status
            if told.get(node_id, "WAITING") != stored:
                what = f"It is stored as {stored}, and its events say {told.get(node_id)}."
                self._say("I12", node_id, what)
        if told.get(None, "NEW_OBJ") != record.status:
            what = f"It is stored as {record.status}, and its events say {told.get(None)}."
            self._say("I12", None, what)

    def _asked(self, record: DispatchRecord, rows: Rows) -> None:
        lost = "A recorded cancel is not on the row any more."
        for request in self._cancels[record.dispatch_id]:
            if request.nodes is None and not record.cancel_requested:
                self._say("I13", None, lost, "Cancel it again.")
            for node_id in request.nodes or ():
                row = rows.get(node_id)
                if row is None or not (row.cancel_requested or row.status in FINAL):
                    self._say("I13", node_id, lost, "Cancel it again.")

    # -- graph (I6, I10, I16) -------------------------------------------------------------------

    def _shape(self, record: DispatchRecord, graph: Graph, rows: Rows) -> None:
        nodes = {node.id: node for node in graph.tasks()}
        needs = graph.dependencies()
        for node_id, row in rows.items():
            node = nodes.get(node_id)
            if node is None:
                if node_id != BUILD:
                    self._say(
                        "I10", node_id, "There is a row for it, and its graph has no such task."
                    )
                continue
            if row.status in _STARTED:
                for parent in sorted(needs[node_id]):
                    state = rows[parent].status if parent in rows else S.WAITING
                    if state is not S.COMPLETED:
                        what = f"It is {row.status}, and task {parent}, which it needs, is {state}."
                        self._say("I6", node_id, what)
            if row.attempts and node.policy >= 0:
                self._retries(row, graph.policies[node.policy].retry, node.kind)

    def _retries(self, row: NodeRecord, retry: Retry, task: str) -> None:
        losses = {reason.value for reason in Reason if is_loss(reason, task)}
        spent = Counter(
            entry.get("reason") in losses for entry in row.attempts if entry.get("counted", True)
        )
        for loss, allowed in ((False, retry.times), (True, retry.losses)):
            if spent[loss] > allowed:
                kind = "losses" if loss else "failures"
                what = f"It was tried again after {spent[loss]} {kind}; {allowed} are allowed."
                self._say("I16", row.node_id, what)

    # -- status (I1, I9, I10) -------------------------------------------------------------------

    def _status(self, record: DispatchRecord, graph: Graph, rows: Rows) -> None:
        tasks = [node.id for node in graph.tasks()]
        found = Counter(rows[task].status if task in rows else S.WAITING for task in tasks)
        left = sum(count for status, count in found.items() if status not in FINAL)
        counted = {status: record.counts.get(status.value, 0) for status in FINAL}
        if record.counts and (
            sum(record.counts.values()) != len(tasks)
            or any(counted[status] != found[status] for status in FINAL)
        ):
            stored = {str(status): count for status, count in found.items()}
            self._say(
                "I10", None, f"Its counts {record.counts} are not those of its tasks {stored}."
            )
        expected = record.status
        if not record.status.final:
            if not left and tasks and record.status is not Status.NEW_OBJ:
                self._say("I1", None, "All its tasks have ended, and it has not.")
            if record.status is Status.CANCELLING and not record.cancel_requested:
                self._say("I9", None, "It is CANCELLING, and nobody asked for that.")
            return
        if left:
            self._say("I9", None, f"It is {record.status}, and {left} of its tasks have not ended.")
            return
        if found[S.FAILED] or found[S.SKIPPED]:
            expected = Status.FAILED
        else:
            expected = Status.CANCELLED if found[S.CANCELLED] else Status.COMPLETED
        if record.status is not expected:
            self._say("I9", None, f"It is {record.status}, and by its tasks it is {expected}.")
        elif record.status is Status.COMPLETED:
            self._result(record, graph, rows)

    def _result(self, record: DispatchRecord, graph: Graph, rows: Rows) -> None:
        expected: ValueRef | None = None
        head, where = graph.result[0], graph.result[1]
        if head == "n":
            expected = rows[where].output
        if record.result is None or (expected and expected.digest != record.result.digest):
            self._say("I9", None, "Its result is not the output of the task that gives it.")
