"""What the entry point names: tells chelate which executor this distribution provides."""

from __future__ import annotations

from chelate.api import Executor, hookimpl

__all__ = ["chelate_register_executors"]


@hookimpl
def chelate_register_executors() -> list[type[Executor]]:
    """The SSH executor."""
    from chelate_ssh.executor import SSHExecutor

    return [SSHExecutor]
