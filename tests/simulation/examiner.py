"""The promises, checked from outside: by triggers in the database, at every call, and at the end.

Numbers are those of the invariants: I1 every dispatch ends, I3 one body per attempt, I4 ends never
change, I5 nothing is submitted after the commit of its cancel, I6 inputs first, I7 results whole,
I8 ended means gone, I9 status of the dispatch, I11 epochs, I12 events, I13 acknowledged calls.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from tests.simulation.cluster import Backend, Instance
from tests.simulation.universe import Universe

from chelate.contracts.executor import Job
from chelate.contracts.store import Commit
from chelate.digest import digest_bytes
from chelate.errors import ChelateError
from chelate.graph import Graph
from chelate.model import FINAL, NodeStatus, Status

__all__ = ["TRIGGERS", "Examiner"]

_FINAL = ", ".join(f"'{status.value}'" for status in FINAL)
_ENDED = ", ".join(f"'{status.value}'" for status in Status if status.final)
_CANCELLED = """(NEW.cancel_requested OR EXISTS (SELECT 1 FROM dispatches AS d
    WHERE d.dispatch_id = NEW.dispatch_id AND d.cancel_requested))"""

TRIGGERS = f"""
CREATE TABLE IF NOT EXISTS broken (what TEXT);
CREATE TRIGGER IF NOT EXISTS i4_nodes AFTER UPDATE ON nodes
WHEN OLD.status IN ({_FINAL}) AND (NEW.status, NEW.output, NEW.attempt, NEW.error)
    IS NOT (OLD.status, OLD.output, OLD.attempt, OLD.error)
BEGIN INSERT INTO broken VALUES ('I4 node ' || NEW.dispatch_id || ':' || NEW.node_id || ' was '
    || OLD.status || ' and became ' || NEW.status); END;
CREATE TRIGGER IF NOT EXISTS i4_dispatches AFTER UPDATE ON dispatches
WHEN OLD.status IN ({_ENDED}) AND (NEW.status, NEW.result) IS NOT (OLD.status, OLD.result)
BEGIN INSERT INTO broken VALUES ('I4 dispatch ' || NEW.dispatch_id || ' was ' || OLD.status
    || ' and became ' || NEW.status); END;
CREATE TRIGGER IF NOT EXISTS i11 AFTER UPDATE ON dispatches WHEN NEW.epoch < OLD.epoch
BEGIN INSERT INTO broken VALUES ('I11 the epoch of ' || NEW.dispatch_id || ' went back'); END;
CREATE TRIGGER IF NOT EXISTS i5_update AFTER UPDATE ON nodes
WHEN NEW.status = 'SUBMITTING' AND (OLD.status, OLD.key) IS NOT (NEW.status, NEW.key)
    AND {_CANCELLED}
BEGIN INSERT INTO broken VALUES ('I5 intent after the cancel of ' || NEW.key); END;
CREATE TRIGGER IF NOT EXISTS i5_insert AFTER INSERT ON nodes
WHEN NEW.status = 'SUBMITTING' AND {_CANCELLED}
BEGIN INSERT INTO broken VALUES ('I5 intent after the cancel of ' || NEW.key); END;
CREATE TRIGGER IF NOT EXISTS i7_update AFTER UPDATE ON nodes
WHEN NEW.status = 'COMPLETED' AND OLD.status <> 'COMPLETED' AND NOT EXISTS
    (SELECT 1 FROM blobs WHERE digest = json_extract(NEW.output, '$[0]'))
BEGIN INSERT INTO broken VALUES ('I7 no blob behind ' || NEW.key); END;
"""


def _place(key: str) -> tuple[str, int, int]:
    dispatch_id, node, attempt, _ = key.split(":")
    return dispatch_id, int(node), int(attempt)


class Examiner:
    """Looks over a universe's shoulder; what it finds goes to ``universe.violations``."""

    def __init__(
        self, universe: Universe, database: sqlite3.Connection, backends: dict[str, Backend]
    ) -> None:
        self.universe = universe
        self.database = database
        self.backends = backends
        self.counts: Counter[str] = Counter()
        self.stores: list[Any] = []  # free for the next process
        self.stale = False  # a stopped kernel may send what its successor gave up
        self.ended: dict[tuple[str, int], tuple[float, NodeStatus]] = {}
        self.cancelled: dict[tuple[str, int | None], float] = {}  # acknowledged, at
        self.dispatched: list[str] = []

    def _one(self, sql: str, *values: Any) -> Any:
        return self.database.execute(sql, values).fetchone()

    # -- at calls -------------------------------------------------------------------------------

    def sent(self, jobs: Sequence[Job]) -> None:
        """``run`` was called."""
        for job in jobs:
            for task in job.tasks:
                if task.cancel_requested:
                    self.universe.blame(f"I5 {task.key} was sent although its cancel was known")
                row = self._one(
                    "SELECT key, status FROM nodes WHERE dispatch_id = ? AND node_id = ?",
                    task.dispatch_id,
                    task.node_id,
                )
                if not self.stale and (row is None or row[0] != task.key):
                    self.universe.blame(f"intent first: {task.key} was sent, the row says {row}")
                for parent in task.call["values"]:
                    status = self._one(
                        "SELECT status FROM nodes WHERE dispatch_id = ? AND node_id = ?",
                        task.dispatch_id,
                        int(parent),
                    )
                    if status is None or status[0] != "COMPLETED":
                        self.universe.blame(f"I6 {task.key} was sent while {parent} is {status}")

    def released(self, instance: Instance) -> None:
        """``release`` was called: the results are the kernel's."""
        if instance.state == "KILLED" and instance.forgotten:
            return  # nobody could see what had ended before
        for key, outcome in instance.outcomes.items():
            dispatch_id, node, _ = _place(key)
            row = self._one(
                "SELECT key, status, child_id FROM nodes WHERE dispatch_id = ? AND node_id = ?",
                dispatch_id,
                node,
            )
            if (
                outcome.ok
                and not self.stale
                and row[0] == key
                and row[1] not in (*FINAL, "EXPANDED")
                and row[2] is None  # the result of a build is the sub-workflow
            ):
                self.universe.blame(f"{key} is released while its row says {row[1]}")

    def asked_to_end(self, backend: Backend, instance: Instance) -> None:
        """``cancel`` was called: no task may go along that nobody wants to end."""
        for key in instance.keys:
            if key in instance.over or backend.claims.get(key, instance.number) != instance.number:
                continue
            dispatch_id, node, _ = _place(key)
            row = self._one(
                "SELECT key, status FROM nodes WHERE dispatch_id = ? AND node_id = ?",
                dispatch_id,
                node,
            )
            if not self.stale and row in ((key, "SUBMITTED"), (key, "RUNNING")):
                self.universe.blame(f"{key} is ended although its row says {row[1]}")

    def committed(self, process: Any, commit: Commit) -> None:
        """A turn is stored."""
        for dispatch_id, records in commit.nodes.items():
            for record in records:
                place = (dispatch_id, record.node_id)
                if record.status not in FINAL or place in self.ended:
                    continue
                self.ended[place] = (self.universe.now, record.status)
                self.universe.log(
                    f"{process.name} stores {record.status} of {dispatch_id}:{record.node_id}"
                )

    # -- at the end -----------------------------------------------------------------------------

    def open_dispatches(self) -> list[str]:
        return [
            row[0]
            for row in self.database.execute(
                f"SELECT dispatch_id FROM dispatches WHERE status NOT IN ({_ENDED})"
            )
        ]

    def uncertain(self) -> list[str]:
        query = "SELECT DISTINCT dispatch_id FROM nodes WHERE status = 'UNCERTAIN'"
        return [row[0] for row in self.database.execute(query)]

    def close(self, store: Any) -> None:
        """Everything has come to rest."""
        blame = self.universe.blame
        for (what,) in self.database.execute("SELECT what FROM broken"):
            blame(what)
        known = {row[0] for row in self.database.execute("SELECT dispatch_id FROM dispatches")}
        for dispatch_id in self.dispatched:
            if dispatch_id not in known:
                blame(f"I13 acknowledged dispatch {dispatch_id} is gone")
        for dispatch_id in self.open_dispatches():
            rows = self.database.execute(
                "SELECT node_id, status, error, attempt, handle FROM nodes WHERE dispatch_id = ?",
                (dispatch_id,),
            )
            blame(f"I1 {dispatch_id} never ends: {list(rows)}")
        for dispatch_id in sorted(known):
            self._dispatch(store, dispatch_id)
        self._bodies()

    def _dispatch(self, store: Any, dispatch_id: str) -> None:
        blame = self.universe.blame
        record = store.dispatch(dispatch_id)
        if not record.status.final:
            return
        graph = Graph.from_json(store.read(record.graph))
        rows = {row.node_id: row for row in store.nodes(dispatch_id)}
        statuses = {rows[node.id].status if node.id in rows else None for node in graph.tasks()}
        if not statuses <= FINAL:
            blame(f"I9 {dispatch_id} is {record.status} with nodes {statuses}")
            return
        if statuses & {NodeStatus.FAILED, NodeStatus.SKIPPED}:
            expected = Status.FAILED
        elif NodeStatus.CANCELLED in statuses:
            expected = Status.CANCELLED
        else:
            expected = Status.COMPLETED
        if record.status is not expected:
            blame(f"I9 {dispatch_id} is {record.status}, its nodes say {expected}")
        for node in graph.tasks():
            row = rows[node.id]
            retry = graph.policies[node.policy].retry
            counted = [entry for entry in row.attempts if entry.get("counted", True)]
            if len(counted) > retry.times + retry.losses:
                blame(f"I16 {dispatch_id}:{node.id} was tried too often: {row.attempts}")
            if row.reused_from is not None:
                self._reused(store, row, [rows[parent].output for parent in node.parents()])
            elif row.status is NodeStatus.COMPLETED and row.child_id is None:
                self._output(store, row)
        self._events(dispatch_id, record.status, rows)

    def _output(self, store: Any, row: Any) -> None:
        try:
            data = store.read(row.output.digest)
        except ChelateError as error:
            self.universe.blame(f"I7 {row.key}: {error}")
            return
        if data != b"value of " + row.key.encode() or digest_bytes(data) != row.output.digest:
            self.universe.blame(f"I7 {row.key} has the result {data!r}")

    def _reused(self, store: Any, row: Any, inputs: list[Any]) -> None:
        """What was taken over is what an equal task with equal inputs gave."""
        self.counts["reused"] += 1
        dispatch_id, node = row.reused_from
        rows = {other.node_id: other for other in store.nodes(dispatch_id)}
        origin = rows[node]
        if origin.status is not NodeStatus.COMPLETED or origin.output != row.output:
            self.universe.blame(f"I17 {row} is none of {origin}")
        graph = Graph.from_json(store.read(store.dispatch(dispatch_id).graph))
        given = [rows[parent].output for parent in graph.nodes[node].parents()]
        if [value.digest for value in given] != [value.digest for value in inputs]:
            self.universe.blame(f"I17 {row} was taken over from {origin} with other inputs")
        if row.key is not None:
            self.universe.blame(f"I17 {row.key} was sent and its output taken over")

    def _events(self, dispatch_id: str, status: Status, rows: dict[int, Any]) -> None:
        folded: dict[int | None, str] = {}
        last = -1
        query = "SELECT epoch, changes FROM events WHERE dispatch_id = ? ORDER BY seq"
        for epoch, changes in self.database.execute(query, (dispatch_id,)):
            if epoch < last:
                self.universe.blame(f"I11 events of {dispatch_id} go back to epoch {epoch}")
            last = epoch
            folded.update(json.loads(changes))
        told = {node: text for node, text in folded.items() if node is not None and node in rows}
        if any(rows[node].status.value != text for node, text in told.items()):
            self.universe.blame(f"I12 events of {dispatch_id} say {folded}")
        if folded.get(None, status.value) != status.value:
            self.universe.blame(f"I12 events of {dispatch_id} say {folded[None]}")

    def _bodies(self) -> None:
        blame = self.universe.blame
        for backend in self.backends.values():
            model = backend.model
            runs: Counter[tuple[str, int, int]] = Counter()
            times: dict[tuple[str, int], list[Any]] = defaultdict(list)
            for body in backend.bodies:
                place = _place(body.key)
                runs[place] += 1
                times[place[:2]].append(body)
            self.counts["bodies"] += len(backend.bodies)
            for place, number in runs.items():
                if number > 1:
                    blame(f"I3 attempt {place} ran {number} times on {model.name}")
            # A stopped kernel that lost its lock may send late what nobody can forbid.
            excused = not model.certain or (self.stale and not model.claim)
            for (dispatch_id, node), bodies in times.items():
                end = self.ended.get((dispatch_id, node))
                for body in bodies:
                    if end is not None and body.ended > end[0] and not excused:
                        blame(
                            f"I8 {body.key} ran until {body.ended - 1000:.1f} on {model.name}, "
                            f"but was {end[1]} at {end[0] - 1000:.1f}"
                        )
                    self._cancel_kept(dispatch_id, node, body, end)
            living = [key for key in backend.living() if _place(key)[:2] in self.ended]
            if living and not excused:
                blame(f"I2 jobs live on: {living}")

    def _cancel_kept(self, dispatch_id: str, node: int, body: Any, end: Any) -> None:
        asked = [
            at
            for target in ((dispatch_id, None), (dispatch_id, node))
            if (at := self.cancelled.get(target)) is not None
        ]
        done = end is not None and end[1] in (NodeStatus.COMPLETED, NodeStatus.FAILED)
        row = self._one(
            "SELECT key, child_id FROM nodes WHERE dispatch_id = ? AND node_id = ?",
            dispatch_id,
            node,
        )
        if asked and done and body.ended > min(asked) + 10.0 and row == (body.key, None):
            self.universe.blame(
                f"I13 {body.key} ended at {body.ended - 1000:.1f} and is {end[1]}, although its "
                f"cancel was acknowledged at {min(asked) - 1000:.1f}"
            )
