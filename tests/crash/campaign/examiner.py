"""What must hold after a round, seen from outside: ledger, journals, process table, store."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.crash.campaign import processes
from tests.crash.campaign.workload import FEW, RESULTS, journalled

from chelate.checking import check_store
from chelate.client.codec import load_value
from chelate.model import DispatchRecord, NodeRecord, NodeStatus, Status
from chelate.store import SQLStore

__all__ = ["Line", "Seen", "Watch", "examine", "executions", "read_ledger"]

SLACK = 0.02  # seconds by which two processes' readings of one clock may seem out of order


class Line(NamedTuple):
    """One line of the ledger; ``job`` is the scheduler's, ``-`` for a local task."""

    at: float
    word: str
    key: str
    restart: int
    pid: int
    job: str


def read_ledger(folder: Path) -> list[Line]:
    """All lines, in the order in which they were written."""
    path = folder / "ledger"
    fields = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [Line(float(at), *words, int(a), int(b), job) for at, *words, a, b, job in fields]


@dataclass(slots=True)
class Seen:
    """What the store holds at the end."""

    dispatches: dict[str, DispatchRecord]
    nodes: dict[tuple[str, int], NodeRecord]


def _read(store: SQLStore) -> Seen:
    with store.snapshot() as snapshot:
        dispatches = {record.dispatch_id: record for record in snapshot.dispatches()}
        nodes = {(dispatch, row.node_id): row for dispatch, row in snapshot.nodes()}
    return Seen(dispatches, nodes)


class Watch:
    """While it goes on: whatever the store calls ended has no living process."""

    def __init__(self, folder: Path, store: SQLStore) -> None:
        self.folder = folder
        self.store = store
        self.known: set[str] = set()
        self.looks = 0

    def look(self) -> list[str]:
        """Violations seen now."""
        ended = {
            row.key: row
            for row in _read(self.store).nodes.values()
            if row.key and row.status in (NodeStatus.CANCELLED, NodeStatus.FAILED)
        }
        fresh = ended.keys() - self.known
        self.known |= fresh
        self.looks += len(fresh)
        # The store first: what lives now was alive when the end was recorded.
        alive = processes.of_task(processes.look(self.folder), fresh) if fresh else {}
        return [
            f"{key} was {ended[key].status} ({ended[key].reason}) while {found} lived"
            for key, seen in alive.items()
            for found in [[f"{one.pid}: {one.command:.80}" for one in seen]]
        ]


def examine(folder: Path, store: SQLStore) -> list[str]:
    """Everything that does not hold; one sentence each."""
    found = _read(store)
    journal = journalled(folder)
    lines = read_ledger(folder)
    report = check_store(store)
    return [
        *_acknowledged(found, journal, store),
        *executions(found, lines),
        *_cancels(found, journal, lines),
        *_retries(found, journal),
        *(f"fsck: {item.invariant} {item.dispatch_id} {item.what}" for item in report.findings),
    ]


def _acknowledged(found: Seen, journal: list[dict], store: SQLStore) -> list[str]:
    """Each acknowledged dispatch has ended, as it should have."""
    wrong = []
    aimed = {line["id"] for line in journal if line["do"] == "cancel"}
    for line in journal:
        if line["do"] != "dispatch":
            continue
        name = f"dispatch {line['id']} ({line['flow']})"
        record = found.dispatches.get(line["id"])
        if record is None:
            wrong.append(f"{name} was acknowledged and is not in the store")
            continue
        expected = RESULTS[line["flow"]]
        wanted = Status.FAILED if expected is None else Status.COMPLETED
        # A cancel that was sent and not acknowledged may have arrived all the same.
        allowed = {wanted}
        if record.cancel_requested or line["id"] in aimed or _any_cancel(found, line["id"]):
            allowed |= {Status.CANCELLED}
        if record.status not in allowed:
            wrong.append(f"{name} ended as {record.status}: {record.error}")
        elif record.status is Status.COMPLETED and expected is not None:
            assert record.result is not None
            value = load_value(store.read(record.result.digest))
            if value != expected(line["number"]):
                wrong.append(f"{name} gave {value}, not {expected(line['number'])}")
    wrong += [
        f"dispatch {record.dispatch_id} ({record.name}) is {record.status} at the end"
        for record in found.dispatches.values()
        if not record.status.final
    ]
    return wrong


def _any_cancel(found: Seen, dispatch_id: str) -> bool:
    return any(
        row.cancel_requested
        for (dispatch, _), row in found.nodes.items()
        if dispatch == dispatch_id
    )


def executions(found: Seen, lines: list[Line]) -> list[str]:
    """Each attempt ran once; attempts follow each other; nothing runs after its end."""
    wrong = []
    starts: dict[tuple[str, int], list[Line]] = defaultdict(list)
    bodies: dict[tuple[str, int], dict[int, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        dispatch, node, attempt, _ = line.key.split(":")
        bodies[dispatch, int(node)][int(attempt)].append(line)
        if line.word == "start":
            starts[line.key, line.restart].append(line)
    wrong += [
        f"attempt {key} (restart {restart}) ran {len(many)} times: {many}"
        for (key, restart), many in starts.items()
        if len(many) > 1
    ]
    for (dispatch, node), attempts in bodies.items():
        row = found.nodes.get((dispatch, node))
        if row is None:
            wrong.append(f"{dispatch}:{node} ran and is not in the store")
            continue
        last = -1.0
        for attempt in sorted(attempts):
            first = min(line.at for line in attempts[attempt])
            if first < last - SLACK:
                wrong.append(
                    f"{dispatch}:{node} began attempt {attempt} at {first:.3f}, and an earlier one "
                    f"ran until {last:.3f}: {attempts}"
                )
            last = max(last, *(line.at for line in attempts[attempt]))
        if row.ended_at is not None and last > row.ended_at + SLACK:
            wrong.append(
                f"{row.key} was {row.status} at {row.ended_at:.3f}, and ran until {last:.3f}"
            )
        if row.status is NodeStatus.COMPLETED and not row.child_id:
            words = [line.word for line in attempts[row.attempt] if line.key == row.key]
            if words.count("end") < 1:
                wrong.append(f"{row.key} is COMPLETED and did not run to its end: {words}")
    ran = set(bodies)
    wrong += [
        f"{row.key} ({place}) is COMPLETED and never ran"
        for place, row in found.nodes.items()
        if row.status is NodeStatus.COMPLETED and row.key and not row.child_id and place not in ran
    ]
    return wrong


def _cancels(found: Seen, journal: list[dict], lines: list[Line]) -> list[str]:
    """An acknowledged cancel is in the store; a confirmed one is final from then on."""
    wrong = []
    for line in journal:
        if line["do"] != "cancel" or "being cancelled" not in line["answer"]:
            continue
        record = found.dispatches[line["id"]]
        if line["tasks"] is None and not record.cancel_requested:
            wrong.append(f"the cancel of {line['id']} was acknowledged and is lost")
        if line["tasks"] is not None and not _any_cancel(found, line["id"]):
            wrong.append(f"the cancel of {line['tasks']} in {line['id']} was acknowledged and lost")
        if line["waited"] and line["tasks"] is None:
            tree = {r.dispatch_id for r in found.dispatches.values() if r.root_id == line["id"]}
            later = [
                one for one in lines if one.at > line["at"] and one.key.partition(":")[0] in tree
            ]
            if later:
                wrong.append(f"{line['id']} was confirmed as cancelled and ran on: {later}")
    return wrong


def _retries(found: Seen, journal: list[dict]) -> list[str]:
    """A task that fails by itself is tried as often as its policy says, and not more."""
    wrong = []
    flows = {line["id"]: line["flow"] for line in journal if line["do"] == "dispatch"}
    for (dispatch, node), row in found.nodes.items():
        if flows.get(dispatch) != "failing" or row.status is not NodeStatus.FAILED:
            continue
        blamed = [entry for entry in row.attempts if entry["reason"] in ("USER_ERROR", "CRASHED")]
        if len(blamed) > FEW.times + 1:
            wrong.append(f"{dispatch}:{node} failed {len(blamed)} times: {row.attempts}")
    return wrong
