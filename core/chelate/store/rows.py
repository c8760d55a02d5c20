"""Records as rows and rows as records: plain tuples in the order of the tables' columns.

This is the hot path of every commit, so there are no row objects and no reflection here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from chelate.api import (
    DispatchRecord,
    NodeRecord,
    NodeStatus,
    Status,
    StoreError,
    ValueRef,
)

__all__ = [
    "clean_text",
    "decode_dispatch",
    "decode_node",
    "dump_json",
    "encode_dispatch",
    "encode_node",
]

T = TypeVar("T")
Row = tuple[Any, ...]

dump_json = json.JSONEncoder(separators=(",", ":")).encode
_NODE_STATUS = {status.value: status for status in NodeStatus}
_STATUS = {status.value: status for status in Status}


def clean_text(text: str | None) -> str | None:
    """``text`` as both databases can hold it: a task may print NUL or broken UTF-8 anywhere."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def _dump_value(value: ValueRef | None) -> str | None:
    if value is None:
        return None
    if value.parts is not None:
        return dump_json(value.to_json())
    if value.fingerprint is None:
        return f'["{value.digest}",{value.size},null]'
    if value.fingerprint.isalnum():
        return f'["{value.digest}",{value.size},"{value.fingerprint}"]'
    return dump_json([value.digest, value.size, value.fingerprint])


def encode_node(dispatch_id: str, node: NodeRecord) -> Row:
    """A row of ``nodes``."""
    handle = node.handle
    reused_from = node.reused_from
    usage = node.usage
    return (
        dispatch_id,
        node.node_id,
        node.status._value_,
        node.attempt,
        node.key,
        node.executor,
        None if handle is None else dump_json(handle),
        node.started_at,
        node.ended_at,
        _dump_value(node.output),
        None if node.error is None else clean_text(node.error),
        node.exception,
        # A Reason is a str of its own class, which a driver would have to look up how to adapt.
        None if node.reason is None else str.__str__(node.reason),
        node.stdout,
        node.stderr,
        None if reused_from is None else dump_json(reused_from),
        node.child_id,
        node.cancel_requested,
        node.cancel_tries,
        node.due,
        dump_json(node.attempts) if node.attempts else None,
        None if usage is None else dump_json(usage),
        node.decision,
    )


def _readable(decode: Callable[[Sequence[Any]], T]) -> Callable[[Sequence[Any]], T]:
    @functools.wraps(decode)
    def safely(row: Sequence[Any]) -> T:
        try:
            return decode(row)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"The stored row {row[0]}, {row[1]} cannot be read ({error!r}): the medium or "
                "another program changed it. See what else is damaged with: chelate fsck"
            ) from error

    return safely


def _check_texts(*texts: Any) -> None:
    # SQLite stores anything in any column, and bytes come through as such.
    for text in texts:
        if text is not None and type(text) is not str:
            raise TypeError(f"{text!r:.100} is no text")


@_readable
def decode_node(row: Sequence[Any]) -> NodeRecord:
    """The record of a row of ``nodes``."""
    _check_texts(row[4], row[5], row[10], row[11], row[12], row[13], row[14], row[16], row[22])
    reused_from = json.loads(row[15]) if row[15] is not None else None
    return NodeRecord(
        node_id=row[1],
        status=_NODE_STATUS[row[2]],
        attempt=row[3],
        key=row[4],
        executor=row[5],
        handle=None if row[6] is None else json.loads(row[6]),
        started_at=row[7],
        ended_at=row[8],
        output=None if row[9] is None else ValueRef.from_json(json.loads(row[9])),
        error=row[10],
        exception=row[11],
        reason=row[12],
        stdout=row[13],
        stderr=row[14],
        reused_from=None if reused_from is None else (reused_from[0], reused_from[1]),
        child_id=row[16],
        cancel_requested=bool(row[17]),
        cancel_tries=row[18],
        due=row[19],
        attempts=[] if row[20] is None else json.loads(row[20]),
        usage=None if row[21] is None else json.loads(row[21]),
        decision=row[22],
    )


def encode_dispatch(record: DispatchRecord) -> Row:
    """A row of ``dispatches``."""
    return (
        record.dispatch_id,
        clean_text(record.name),
        record.status._value_,
        record.root_id,
        record.parent_id,
        record.parent_node,
        record.depth,
        record.graph,
        record.lattice,
        record.inputs,
        _dump_value(record.result),
        clean_text(record.error),
        record.created_at,
        record.started_at,
        record.ended_at,
        record.owner,
        record.epoch,
        record.cancel_requested,
        record.held,
        record.redispatched_from,
        dump_json(record.options),
        dump_json(record.counts),
    )


@_readable
def decode_dispatch(row: Sequence[Any]) -> DispatchRecord:
    """The record of a row of ``dispatches``."""
    _check_texts(*row[:2], row[3], row[4], *row[7:10], row[11], row[15], row[19])
    return DispatchRecord(
        dispatch_id=row[0],
        name=row[1],
        status=_STATUS[row[2]],
        root_id=row[3],
        parent_id=row[4],
        parent_node=row[5],
        depth=row[6],
        graph=row[7],
        lattice=row[8],
        inputs=row[9],
        result=None if row[10] is None else ValueRef.from_json(json.loads(row[10])),
        error=row[11],
        created_at=row[12],
        started_at=row[13],
        ended_at=row[14],
        owner=row[15],
        epoch=row[16],
        cancel_requested=bool(row[17]),
        held=bool(row[18]),
        redispatched_from=row[19],
        options=json.loads(row[20]),
        counts=json.loads(row[21]),
    )
