"""Proves on a store what chelate promises, and names what does not hold.

The invariants are those of ``docs/reliability.md``, with their numbers. The check reads one moment
of the store, so kernels may go on meanwhile; nothing is written. What cannot be seen in a store is
left to tests.
"""

from __future__ import annotations

import itertools
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from chelate.checking.inside import BUILD, Event, Inside, Rows
from chelate.checking.report import RESTORE, Finding, Report
from chelate.contracts.store import ResultStore, Snapshot
from chelate.digest import is_digest
from chelate.errors import BlobMissingError, GraphError, StoreError
from chelate.executors.process_tree import holders
from chelate.graph import Graph, Kind, digests_in
from chelate.kernel.reuse import collecting_later
from chelate.model import FINAL, DispatchRecord, NodeRecord, NodeStatus, Status

__all__ = ["Finding", "Report", "check_store"]

T = TypeVar("T")
S = NodeStatus

_SETTLING = 1.0  # seconds for which a process may outlive the record of its end


def check_store(
    store: ResultStore, *, quick: bool = False, patterns: Iterable[re.Pattern[bytes]] = ()
) -> Report:
    """Check a store, open or not.

    Args:
        quick: do not read values, only see that they are there.
        patterns: what must occur nowhere in the store, such as a planted secret (I15).

    Raises:
        StoreError: it cannot be looked at: not there, locked, of another program.
    """
    started = time.monotonic()
    with collecting_later(), store.snapshot() as snapshot:
        report = Report()
        _Check(snapshot, report, quick).run(list(patterns))
    report.seconds = time.monotonic() - started
    return report


def _by_dispatch(
    rows: Iterator[T], of: Callable[[T], str]
) -> Callable[[str], tuple[list[str], list[T]]]:
    """Ask for the rows of one dispatch after another, in order; and whom rows before them name."""
    groups = itertools.groupby(rows, of)
    head: list[tuple[str, list[T]]] = []

    def pull(dispatch_id: str) -> tuple[list[str], list[T]]:
        strays: list[str] = []
        while True:
            if not head:
                group = next(groups, None)
                if group is None:
                    return strays, []
                head.append((group[0], list(group[1])))
            if head[0][0] > dispatch_id:
                return strays, []
            name, found = head.pop()
            if name == dispatch_id:
                return strays, found
            strays.append(name)

    return pull


class _Check(Inside):
    """One pass over a snapshot. Methods are named after what they check."""

    def __init__(self, snapshot: Snapshot, report: Report, quick: bool) -> None:
        super().__init__(report)
        self._snapshot = snapshot
        self._quick = quick
        self._values: dict[str, bool] = {}  # digest → whole
        self._held: frozenset[str] = frozenset()
        self._used: set[str] = set()
        self._records: dict[str, DispatchRecord] = {}
        self._graphs: dict[str, Graph | None] = {}
        self._origins: dict[tuple[str, int], list[tuple[str, int, str]]] = defaultdict(list)
        self._dead_keys: dict[str, tuple[str, str, int, str]] = {}

    def run(self, patterns: Sequence[re.Pattern[bytes]]) -> None:
        """Everything, in an order in which each part has what it needs."""
        snapshot, report = self._snapshot, self._report
        try:
            self._read_values()
            self._records = {record.dispatch_id: record for record in snapshot.dispatches()}
            for request in snapshot.cancels():
                self._cancels[request.dispatch_id].append(request)
            self._walk()
            self._here = ""
            self._reused()
            self._unused()
            self._secrets(patterns)
            self._waiting()
            for text in snapshot.damage(not self._quick):
                self._say("store", None, text, RESTORE)
        except StoreError as error:
            # A damaged medium: what was found before it still counts.
            self._here = ""
            self._say("store", None, str(error), RESTORE)
        self._processes()
        report.dispatches = len(self._records)

    def _read_values(self) -> None:
        self._held = frozenset(self._snapshot.held())
        for digest, size, whole, _ in self._snapshot.blobs(not self._quick):
            self._values[digest] = whole and self._values.get(digest, True)
            self._report.values += 1
            self._report.hashed += 0 if self._quick else size

    def _walk(self) -> None:
        nodes = _by_dispatch(self._snapshot.nodes(), lambda item: item[0])
        events = _by_dispatch(self._snapshot.events(), lambda item: item[0])
        numbers = 0
        first, last = 1, 0
        # Beyond every id, so that rows behind the last dispatch are seen, too.
        for dispatch_id in [*sorted(self._records), "\U0010ffff"]:
            strays, pairs = nodes(dispatch_id)
            others, facts = events(dispatch_id)
            for name in {*strays, *others}:
                self._here = name
                self._say("I13", None, "Its tasks or events are stored, and it is not.", RESTORE)
            self._here = dispatch_id
            numbers += len(facts)
            first = min([first, *(fact[1] for fact in facts)])
            last = max([last, *(fact[1] for fact in facts)])
            record = self._records.get(dispatch_id)
            if record is not None:
                try:
                    self._dispatch(record, {row.node_id: row for _, row in pairs}, facts)
                except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                    what = f"What is stored of it has another form than it should: {error!r}."
                    self._say("store", None, what, RESTORE)
        self._here = ""
        self._report.events = numbers
        if self._snapshot.gapless and (last != numbers or first < 1):
            missing = last - numbers + (first < 1)
            self._say("I12", None, f"Of {last} events {missing} are missing.", RESTORE)
        for name in self._cancels.keys() - self._records.keys():
            self._say("I13", None, f"A cancel of dispatch {name} is stored, and it is not.")

    def _dispatch(self, record: DispatchRecord, rows: Rows, facts: list[Event]) -> None:
        self._report.nodes += len(rows)
        graph = self._graph(record)
        self._form(record, rows)
        self._place(record)
        self._told(record, rows, facts)
        self._asked(record, rows)
        for row in rows.values():
            self._attempt(record, row)
            self._outcome(record, row)
            if row.key and (record.status.final or row.status is S.CANCELLED):
                invariant = "I2" if record.status.final else "I8"
                self._dead_keys[row.key] = (invariant, record.dispatch_id, row.node_id, row.status)
        for digest in (record.lattice, record.inputs, *_options(record)):
            self._value(digest, None, "a value of it")
        if record.result is not None:
            self._value(record.result.digest, None, "its result")
        if record.graph is None and any(node_id != BUILD for node_id in rows):
            self._say("I7", None, "It has tasks, and no graph.", RESTORE)
        if graph is not None:
            self._shape(record, graph, rows)
            self._status(record, graph, rows)

    def _place(self, record: DispatchRecord) -> None:
        parent = self._records.get(record.parent_id or "")
        if parent is None:
            if record.parent_id is not None:
                what = f"The dispatch {record.parent_id}, of which it is part, is not there."
                self._say("I10", None, what, RESTORE)
            elif (record.root_id, record.depth) != (record.dispatch_id, 0):
                what = f"It is part of no other, and stored at depth {record.depth} of "
                self._say("I10", None, f"{what}{record.root_id}.")
        elif (record.root_id, record.depth) != (parent.root_id, parent.depth + 1):
            what = f"It is part of {parent.dispatch_id} at depth {parent.depth}, and stored at "
            self._say("I10", None, f"{what}depth {record.depth} of {record.root_id}.")

    # -- values (I7) ----------------------------------------------------------------------------

    def _value(self, digest: str | None, node_id: int | None, what: str) -> None:
        if digest is None or (digest in self._used and self._values.get(digest)):
            return
        self._used.add(digest)
        whole = self._values.get(digest)
        if whole is None and digest in self._held:
            return  # it stays with an executor; whether it still does is not asked here
        if not whole:
            how = "is missing" if whole is None else "does not match its digest"
            advice = "Restore the file from a backup, or redispatch: what is damaged runs again."
            self._say("I7", node_id, f"The stored value {digest}, {what}, {how}.", advice)

    def _graph(self, record: DispatchRecord) -> Graph | None:
        digest = record.graph or ""
        self._value(record.graph, None, "its graph")
        if digest not in self._graphs:
            if len(self._graphs) > 8:
                self._graphs.clear()
            graph = None
            try:
                graph = Graph.from_json(self._snapshot.read(digest))
            except BlobMissingError:
                pass  # said as a value already
            except GraphError as error:
                self._say("I7", None, f"Its graph cannot be read: {error}", RESTORE)
            self._graphs[digest] = graph
            if graph is not None:
                for name in _named(graph):
                    self._value(name, None, "which its graph needs")
        return self._graphs[digest]

    def _outcome(self, record: DispatchRecord, row: NodeRecord) -> None:
        for digest, what in (
            (row.output.digest if row.output else None, "its output"),
            (row.exception, "its exception"),
            (row.stdout, "its standard output"),
            (row.stderr, "its standard error"),
        ):
            self._value(digest, row.node_id, what)
        if row.status is S.COMPLETED and row.output is None and row.node_id != BUILD:
            self._say("I7", row.node_id, "It is COMPLETED and has no output.")
        if row.reused_from is not None:
            digest = row.output.digest if row.output else ""
            self._origins[row.reused_from].append((record.dispatch_id, row.node_id, digest))
        elif row.child_id is not None:
            child = self._records.get(row.child_id)
            if child is None or (child.parent_id, child.parent_node) != (
                record.dispatch_id,
                row.node_id,
            ):
                self._say("I10", row.node_id, f"Its sub-dispatch {row.child_id} is not there.")
            elif row.status in FINAL and not child.status.final:
                what = f"It has ended, and its sub-dispatch {row.child_id} is {child.status}."
                self._say("I2", row.node_id, what, f"Cancel {row.child_id}.")
            elif row.status is S.COMPLETED and child.status is not Status.COMPLETED:
                what = f"It is COMPLETED, and its sub-dispatch is {child.status}."
                self._say("I9", row.node_id, what)

    # -- what lies between dispatches (I2, I8, I15, I17) ----------------------------------------

    def _reused(self) -> None:
        origins = sorted({dispatch_id for dispatch_id, _ in self._origins})
        outputs = {
            (dispatch_id, row.node_id): row.output.digest
            for dispatch_id, row in self._snapshot.nodes(origins)
            if row.status is S.COMPLETED and row.output is not None
        }
        for origin, reusers in self._origins.items():
            for self._here, node_id, digest in reusers:
                if outputs.get(origin) != digest:
                    what = f"It was taken over from task {origin[1]} of {origin[0]}, which has "
                    self._say("I17", node_id, f"{what}no such output.", "Redispatch it anew.")
        self._here = ""

    def _unused(self) -> None:
        for digest, size, _, age in self._snapshot.blobs(False):
            if digest not in self._used:
                self._report.unused += 1
                self._report.unused_size += size
                if age is not None:
                    self._report.unused_age = max(age, self._report.unused_age or 0.0)
                if not self._values.get(digest, True):
                    what = f"The stored value {digest}, to which nothing refers, does not match."
                    self._say("I7", None, what, "It is harmless.")

    def _secrets(self, patterns: Sequence[re.Pattern[bytes]]) -> None:
        if not patterns:
            return
        for place, data in self._snapshot.texts():
            for number, pattern in enumerate(patterns, 1):
                if pattern.search(data):
                    self._say(
                        "I15",
                        None,
                        f"What pattern {number} looks for is in {place}.",
                        "Change the secret, and pass it by environment variable or file.",
                    )

    def _waiting(self) -> None:
        left = [r for r in self._records.values() if not (r.status.final or r.held)]
        alive = self._snapshot.alive({record.owner for record in left if record.owner})
        self._report.waiting = [r.dispatch_id for r in left if r.owner not in alive]

    def _processes(self) -> None:
        """Jobs of this machine's processes; a moment later they must be gone."""
        found = holders(self._dead_keys)
        if found:
            time.sleep(_SETTLING)
            found = holders(found)
        for key, pids in sorted(found.items()):
            invariant, self._here, node_id, status = self._dead_keys[key]
            what = f"It is {status}, and its processes {sorted(pids)} live."
            self._say(invariant, node_id, what, "End these processes.")
        self._here = ""


def _named(graph: Graph) -> Iterator[str]:
    """Digests of all values that a graph needs."""
    names: list[str | None] = [graph.code]
    for function in graph.functions:
        names += (function.digest, function.manifest)
    for node in graph.nodes:
        if node.kind == Kind.PARAMETER and node.value is not None:
            names.append(node.value.digest)
        for reference in node.references():
            names += digests_in(reference)
    if graph.result:  # none before the graph is built
        names += digests_in(graph.result)
    return (name for name in names if name is not None)


def _options(record: DispatchRecord) -> list[str]:
    """Digests of the functions that a redispatch put in place of others."""
    chosen = record.options.get("replacements") or {}
    return [digest for digest in chosen.values() if is_digest(digest)]
