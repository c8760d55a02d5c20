"""What a dispatch has come to, as the client sees it; the only door that opens values.

Values are fetched and unpickled when they are asked for, each once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from chelate.client.codec import load_value, pickle_value
from chelate.errors import (
    DispatchCancelledError,
    ResultNotReadyError,
    SerializationError,
    TaskFailedError,
    TaskNotFoundError,
)
from chelate.gateway import LocalGateway
from chelate.graph import Graph, Kind, Node, nodes_in
from chelate.held import NodeResult, away, read_value
from chelate.model import DispatchRecord, NodeRecord, NodeStatus, Status, ValueRef
from chelate.worker import Runner

__all__ = ["Result", "TransportableObject"]

# What a user is told of a node: the six statuses of a dispatch, and SKIPPED.
_SHOWN = {
    NodeStatus.WAITING: "NEW_OBJ",
    NodeStatus.READY: "NEW_OBJ",
    NodeStatus.BACKOFF: "RUNNING",
    NodeStatus.SUBMITTING: "RUNNING",
    NodeStatus.SUBMITTED: "RUNNING",
    NodeStatus.EXPANDED: "RUNNING",
}


class TransportableObject:
    """A stored value in its pickled form, with the interpreter it was made for."""

    def __init__(self, data: bytes, python_version: str | None = None) -> None:
        self._data = data
        self.python_version = python_version or ".".join(map(str, sys.version_info[:3]))

    @classmethod
    def make_transportable(cls, value: Any) -> TransportableObject:
        """Pickle a value. Raises SerializationError."""
        return cls(pickle_value(value))

    @property
    def object_string(self) -> str:
        """``str`` of the value."""
        return str(self.get_deserialized())

    def get_deserialized(self) -> Any:
        """The value."""
        return load_value(self._data)

    def get_serialized(self) -> bytes:
        """The pickle."""
        return self._data

    def __repr__(self) -> str:
        return f"<TransportableObject, {len(self._data)} bytes>"


class Result:
    """A snapshot of a dispatch.

    ``status``, times and node statuses are those of the moment it was taken
    (``ct.get_result``); values are read from the store on access.
    """

    NEW_OBJ: ClassVar[Status] = Status.NEW_OBJ
    RUNNING: ClassVar[Status] = Status.RUNNING
    CANCELLING: ClassVar[Status] = Status.CANCELLING
    COMPLETED: ClassVar[Status] = Status.COMPLETED
    FAILED: ClassVar[Status] = Status.FAILED
    CANCELLED: ClassVar[Status] = Status.CANCELLED

    def __init__(self, gateway: LocalGateway, record: DispatchRecord) -> None:
        self._gateway = gateway
        self._record = record
        self._graph: Graph | None = None
        self._rows: dict[int, NodeRecord] | None = None
        self._values: dict[str, Any] = {}
        self._folder: str | None = None

    # -- the dispatch -------------------------------------------------------------------------

    @property
    def dispatch_id(self) -> str:
        """Id of the dispatch."""
        return self._record.dispatch_id

    @property
    def root_dispatch_id(self) -> str:
        """Id of the outermost dispatch when this is a sub-workflow's, else its own."""
        return self._record.root_id

    @property
    def name(self) -> str:
        """The lattice's name."""
        return self._record.name

    @property
    def status(self) -> Status:
        """NEW_OBJ, RUNNING, CANCELLING, COMPLETED, FAILED or CANCELLED."""
        return self._record.status

    @property
    def error(self) -> str | None:
        """Which tasks failed, with their tracebacks; None when none did."""
        return self._record.error

    @property
    def start_time(self) -> datetime | None:
        """When it began to run (UTC)."""
        return _moment(self._record.started_at)

    @property
    def end_time(self) -> datetime | None:
        """When it ended (UTC)."""
        return _moment(self._record.ended_at)

    @property
    def result(self) -> Any:
        """What the lattice returned; None until the dispatch has COMPLETED."""
        return None if self._record.result is None else self._load(self._record.result.digest)

    @property
    def encoded_result(self) -> TransportableObject | None:
        """The pickled form of :attr:`result`."""
        if self._record.result is None:
            return None
        return TransportableObject(
            read_value(self._gateway, self._record.result.digest), self._python
        )

    @property
    def inputs(self) -> dict[str, Any]:
        """``{"args": tuple, "kwargs": dict}`` as given to the lattice."""
        if self._record.inputs is None:
            return {"args": (), "kwargs": {}}
        args, kwargs = self._load(self._record.inputs)
        return {"args": args, "kwargs": kwargs}

    @property
    def lattice(self) -> Any:
        """The lattice that was dispatched, as it was stored."""
        return None if self._record.lattice is None else self._load(self._record.lattice)

    @property
    def redispatched_from(self) -> str | None:
        """Id of the dispatch that this one re-executes."""
        return self._record.redispatched_from

    @property
    def results_dir(self) -> str:
        """Where :meth:`save_result` writes: ``<home>/results/<dispatch id>`` unless set."""
        return self._folder or str(self._gateway.settings.home / "results" / self.dispatch_id)

    @results_dir.setter
    def results_dir(self, folder: str | os.PathLike[str]) -> None:
        self._folder = os.fspath(folder)

    def raise_for_status(self) -> Result:
        """Itself when COMPLETED.

        Raises:
            TaskFailedError: FAILED; the message carries the tracebacks.
            DispatchCancelledError: CANCELLED.
        """
        if self.status is Status.FAILED:
            raise TaskFailedError(f"Dispatch {self.dispatch_id} failed.\n{self.error}")
        if self.status is Status.CANCELLED:
            raise DispatchCancelledError(f"Dispatch {self.dispatch_id} was cancelled.")
        return self

    # -- nodes --------------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        """The graph, as data."""
        if self._graph is None:
            self._graph = self._gateway.graph(self._record)
        return self._graph

    @property
    def node_records(self) -> Mapping[int, NodeRecord]:
        """Stored rows of the nodes that have been touched."""
        if self._rows is None:
            self._rows = self._gateway.nodes(self.dispatch_id)
        return self._rows

    def get_node_result(self, node_id: int | str) -> dict[str, Any]:
        """One node: ``node_id, node_name, start_time, end_time, status, output, error,
        sublattice_result, stdout, stderr``, and ``executor, job_handle, attempts, reused_from,
        reason, usage``, ``nondeterministic``: whether an audit found another value here, and
        ``cancel_tries``: how often its job has been asked to stop. An output that stayed with its
        executor is brought here when it is read.

        Args:
            node_id: the node's id, or the name of a task (the first that has it).

        Raises:
            TaskNotFoundError: there is no such node.
        """
        for node in self.graph.nodes:
            if node.id == node_id or (isinstance(node_id, str) and node.name == node_id):
                return self._describe(node)
        raise TaskNotFoundError(
            f"Dispatch {self.dispatch_id} has no node {node_id!r}; its ids go from 0 to "
            f"{len(self.graph.nodes) - 1}."
        )

    def get_all_node_results(self) -> list[dict[str, Any]]:
        """Every node, in order of id."""
        return [self._describe(node) for node in sorted(self.graph.nodes, key=lambda n: n.id)]

    def get_all_node_outputs(self) -> dict[str, Any]:
        """Outputs by ``"name(id)"``; None for nodes without one."""
        return {
            f"{node.name}({node.id})": self._output(node)
            for node in sorted(self.graph.nodes, key=lambda n: n.id)
        }

    def _output_ref(self, node: Node) -> ValueRef | None:
        if node.kind == Kind.PARAMETER:
            return node.value
        row = self.node_records.get(node.id)
        return None if row is None else row.output

    def _output(self, node: Node) -> Any:
        ref = self._output_ref(node)
        return None if ref is None else self._load(ref.digest)

    def _describe(self, node: Node) -> dict[str, Any]:
        row = self.node_records.get(node.id) or NodeRecord(node.id)
        if node.kind == Kind.PARAMETER:
            moment = _moment(self._record.created_at)
            start, end, status = moment, moment, "COMPLETED"
        else:
            start, end = _moment(row.started_at), _moment(row.ended_at)
            status = _SHOWN.get(row.status, row.status.value)
        unreadable = None
        late = away(self._gateway, self._output_ref(node), self._load)
        output: Any = late
        try:
            output = late or self._output(node)
        except SerializationError as error:
            unreadable = str(error)  # the rest of the node is readable all the same
        child = None
        if row.child_id is not None:
            child = Result(self._gateway, self._gateway.record(row.child_id))
        fields = {
            "node_id": node.id,
            "node_name": node.name,
            "start_time": start,
            "end_time": end,
            "status": status,
            "output": output,
            "error": unreadable if row.status is NodeStatus.COMPLETED else row.error,
            "sublattice_result": child,
            "stdout": self._text(row, "stdout"),
            "stderr": self._text(row, "stderr"),
            "executor": row.executor,
            "job_handle": row.handle,
            "attempts": row.attempt,
            "cancel_tries": row.cancel_tries,
            "earlier_attempts": list(row.attempts),
            "reused_from": row.reused_from,
            "reason": row.reason,
            "nondeterministic": row.decision == "AUDIT_DIFFERENT",
            "usage": row.usage,
        }
        return fields if late is None else NodeResult(fields)

    def _text(self, row: NodeRecord, stream: str) -> str:
        if row.started_at is None:
            return ""
        return self._gateway.logs(self.dispatch_id, row.node_id, stream).decode("utf-8", "replace")

    def _load(self, digest: str) -> Any:
        if digest not in self._values:
            self._values[digest] = load_value(read_value(self._gateway, digest))
        return self._values[digest]

    @property
    def _python(self) -> str | None:
        return self._record.options.get("python")

    # -- whole results ------------------------------------------------------------------------

    def post_process(self) -> Any:
        """The lattice's return value, put together here from the nodes' outputs.

        For a dispatch whose own last step could not run; needs every output it names.

        Raises:
            ResultNotReadyError: an output is missing.
        """
        reference = self.graph.result
        nodes = {node.id: node for node in self.graph.nodes}
        if reference[0] == "n" and nodes[reference[1]].kind == Kind.RETURN:
            reference = nodes[reference[1]].args[0]
        values: dict[str, str] = {}
        for node_id in nodes_in(reference):
            ref = self._output_ref(nodes[node_id])
            if ref is None:
                raise ResultNotReadyError(
                    f"Task {nodes[node_id].name} (node {node_id}) has no output yet."
                )
            values[str(node_id)] = ref.digest
        call = {"kind": Kind.RETURN, "args": [reference], "kwargs": {}, "values": values}
        header, payload, _ = Runner(partial(read_value, self._gateway)).run(
            {**call, "name": self.name}
        )
        if not header["ok"]:
            raise TaskFailedError(str(header["error"]))
        return load_value(payload)

    def save_result(self, results_dir: str | os.PathLike[str] | None = None) -> Path:
        """Write ``result.pkl`` (the pickled value) and ``result.json`` (everything else, readable)
        below ``results_dir``; the folder."""
        from chelate.show.summary import result_as_json

        if results_dir is not None:
            self.results_dir = results_dir
        folder = Path(self.results_dir)
        folder.mkdir(parents=True, exist_ok=True)
        encoded = self.encoded_result
        if encoded is not None:
            (folder / "result.pkl").write_bytes(encoded.get_serialized())
        (folder / "result.json").write_text(result_as_json(self), encoding="utf-8")
        return folder

    def __repr__(self) -> str:
        from chelate.show.summary import result_as_text

        return result_as_text(self)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        from chelate.show.summary import result_as_html

        return result_as_html(self)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
