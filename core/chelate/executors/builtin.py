"""Registers the executors that come with chelate, as any plugin registers its own."""

from __future__ import annotations

from chelate.api import Executor, hookimpl

__all__ = ["chelate_register_executors"]


@hookimpl
def chelate_register_executors() -> list[type[Executor]]:
    """The local executor."""
    from chelate.executors.local import LocalExecutor

    return [LocalExecutor]
