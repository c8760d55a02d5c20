"""Attempt keys: ``<dispatch>:<node>:<attempt>:<random>``."""

from __future__ import annotations

from chelate.errors import PluginContractError

__all__ = ["split_key"]


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
