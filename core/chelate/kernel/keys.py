"""Attempt keys, ``<dispatch>:<node>:<attempt>:<random>``, and names of lanes."""

from __future__ import annotations

import json

from chelate.errors import PluginContractError
from chelate.model import ExecutorRef

__all__ = ["lane_name", "lane_ref", "split_key"]


def split_key(key: str) -> tuple[str, int, int]:
    """Dispatch id, node id and attempt of a task's key.

    Raises:
        PluginContractError: the text is no key.
    """
    try:
        dispatch_id, node, attempt, _ = key.split(":")
        return dispatch_id, int(node), int(attempt)
    except (AttributeError, ValueError) as error:
        raise PluginContractError(f"{key!r} is not the key of a task.") from error


def lane_name(ref: ExecutorRef) -> str:
    """Equal references give equal names: ``local`` or ``ssh {"host": …}``."""
    if not ref.options:
        return ref.name
    options = json.dumps(dict(ref.options), sort_keys=True, separators=(",", ":"))
    return f"{ref.name} {options}"


def lane_ref(name: str) -> ExecutorRef:
    """The inverse of :func:`lane_name`."""
    head, _, options = name.partition(" ")
    return ExecutorRef(head, json.loads(options) if options else {})
