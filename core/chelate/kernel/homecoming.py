"""Jobs that wait for values which stayed with another executor: those come home first.

A large result that only later tasks of its own executor need stays there (``Task.stay``). When a
task of another executor takes it after all (a redispatch changed who runs what), its job waits
here, committed and unsent, while the holder's lane brings the value. A kernel that dies meanwhile
leaves an attempt that nobody has heard of, and the next one sends it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chelate.contracts.executor import Job, Task
from chelate.contracts.store import ResultStore
from chelate.errors import BlobDamagedError, BlobMissingError, StoreError
from chelate.graph import Graph, Kind, nodes_in
from chelate.kernel import events as ev
from chelate.kernel.keys import lane_name, split_key
from chelate.kernel.lanes.fetches import Wanted, store_fetched
from chelate.kernel.lanes.report import Fetched, LaneReport
from chelate.model import Reason

__all__ = ["Homecoming", "staying"]


def staying(graph: Graph) -> frozenset[int]:
    """Nodes whose results nobody but tasks of their own executor takes."""
    lanes = [lane_name(policy.executor) for policy in graph.policies]
    away = set(nodes_in(graph.result))
    if len(set(lanes)) > 1:
        of = {node.id: lanes[node.policy] for node in graph.tasks()}
        for node in graph.tasks():
            for reference in node.references():
                away.update(i for i in nodes_in(reference) if of.get(i) != of[node.id])
    return frozenset(
        node.id
        for node in graph.tasks()
        if node.id not in away and node.kind in (Kind.TASK, Kind.OPERATOR)
    )


@dataclass(slots=True)
class _Waiting:
    lane: str
    job: Job
    lacks: set[str]


class Homecoming:
    """The jobs that wait, and the values that are on their way.

    Args:
        store: knows which values stay where.
        home: the folder below which they arrive.
        report: takes what the engine is to be told.
    """

    def __init__(
        self, store: ResultStore, home: Path, report: Callable[[LaneReport], None]
    ) -> None:
        self._store = store
        self._home = home
        self._report = report
        self._waiting: dict[str, _Waiting] = {}
        self._coming: dict[str, tuple[str, Wanted]] = {}  # by digest, with the lane that brings it

    def sift(self, orders: dict[str, list[Job]]) -> dict[str, list[Wanted]]:
        """Take jobs out of ``orders`` whose values must come first; the values, by lane.

        The tasks of the others are told which of their inputs their executor has kept.
        """
        large = {
            digest
            for jobs in orders.values()
            for job in jobs
            for task in job.tasks
            for digest in task.held
        }
        held = self._store.held(large) if large else {}
        wanted: dict[str, list[Wanted]] = {}
        for lane, jobs in orders.items():
            ready: list[Job] = []
            for job in jobs:
                lacks: set[str] = set()
                for task in job.tasks:
                    here = {d for d in task.held if d in held and held[d]["executor"] == lane}
                    lacks |= {digest for digest in task.held - here if digest in held}
                    task.held = frozenset(here)
                if not lacks:
                    ready.append(job)
                    continue
                self._waiting[job.key] = _Waiting(lane, job, lacks)
                # Asked for again even if it is on its way: the news of it may have been lost with
                # a turn that failed, and a lane brings it once.
                for digest in lacks:
                    holder = held[digest]["executor"]
                    item = Wanted.of(self._store, digest, held[digest], self._home)
                    self._coming[digest] = holder, item
                    wanted.setdefault(holder, []).append(item)
                    self._say(self._waiting[job.key], digest, holder, "is on its way")
            orders[lane] = ready
        return wanted

    def waiting(self) -> Counter[str]:
        """How many jobs of each lane wait; they take nothing there yet."""
        return Counter(waiting.lane for waiting in self._waiting.values())

    def drop(self, keys: Iterable[str]) -> list[str]:
        """Send these no more; those that had been waiting."""
        return [key for key in keys if self._waiting.pop(key, None) is not None]

    def cancelled(self, lane: str, keys: list[str]) -> list[str]:
        """Say of jobs that wait that they were not sent; the other keys."""
        waited = self.drop(keys)
        report = LaneReport(lane)
        for key in waited:
            dispatch_id, node, attempt = split_key(key)
            deferred = ev.Deferred(node, attempt, "Cancelled before it was sent.")
            report.events.append((dispatch_id, deferred))
        if waited:
            self._report(report)
        return [key for key in keys if key not in set(waited)]

    def forget(self, dispatch_id: str) -> None:
        """The dispatch left this kernel."""
        self.drop([key for key in self._waiting if split_key(key)[0] == dispatch_id])

    def take(self, report: LaneReport) -> Iterator[tuple[str, Job]]:
        """Store what a lane has brought; jobs that can be sent now, with their lanes."""
        for digest in report.gone:
            self._store.unhold(digest, gone=True)
        if report.trouble:
            why = f"cannot be brought at present: {report.trouble.rstrip('.')}"
            for waiting in self._waiting.values():
                for digest in waiting.lacks & self._coming.keys():
                    if self._coming[digest][0] == report.lane:
                        self._say(waiting, digest, report.lane, why)
        failed = [] if report.failed is None else self._lost_lane(report.lane, report.failed)
        for item in [*report.fetched, *failed]:
            self._coming.pop(item.digest, None)
            error = item.error
            if error is None:
                try:
                    store_fetched(self._store, item.digest, item.path)
                except StoreError as failure:
                    error = failure
            elif isinstance(error, (BlobDamagedError, BlobMissingError)):
                self._store.unhold(item.digest, gone=True)
            for key, waiting in list(self._waiting.items()):
                if item.digest not in waiting.lacks:
                    continue
                if error is not None:
                    del self._waiting[key]
                    self._refuse(waiting, item.digest, report.lane, error)
                    continue
                waiting.lacks.discard(item.digest)
                if not waiting.lacks:
                    del self._waiting[key]
                    yield waiting.lane, waiting.job

    def _lost_lane(self, lane: str, message: str) -> list[Fetched]:
        return [
            Fetched(digest, None, StoreError(message))
            for digest, (holder, _) in self._coming.items()
            if holder == lane
        ]

    def asked(self, lane: str) -> list[Wanted]:
        """What a lane is to bring."""
        return [wanted for holder, wanted in self._coming.values() if holder == lane]

    def _say(self, waiting: _Waiting, digest: str, holder: str, what: str) -> None:
        """What a job waits for, for people."""
        report = LaneReport(waiting.lane)
        for task in waiting.job.tasks:
            text = f"It waits for the result of node {_maker(task, digest)}, which stayed with "
            stuck = ev.Stuck(task.node_id, task.attempt, f"{text}executor {holder} and {what}.")
            report.events.append((task.dispatch_id, stuck))
        self._report(report)

    def _refuse(self, waiting: _Waiting, digest: str, holder: str, error: Exception) -> None:
        report = LaneReport(waiting.lane)
        for task in waiting.job.tasks:
            text = (
                f"The result of node {_maker(task, digest)}, which task {task.name!r} takes, "
                f"stayed with executor {holder} and cannot be brought here: {error} Run that node "
                "again: ct.redispatch with reuse_previous_results=True runs what is gone."
            )
            refused = ev.Refused(task.node_id, task.attempt, Reason.RESULT_MISSING, text)
            report.events.append((task.dispatch_id, refused))
        self._report(report)


def _maker(task: Task, digest: str) -> str:
    """Ids of the nodes whose result the value is, as text."""
    values = task.call["values"]
    return ", ".join(node for node, found in values.items() if found == digest)
