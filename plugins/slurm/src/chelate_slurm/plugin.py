"""What chelate finds under the name ``slurm``."""

from __future__ import annotations

from chelate.api import Executor, hookimpl

__all__ = ["chelate_register_executors"]


@hookimpl
def chelate_register_executors() -> list[type[Executor]]:
    """The Slurm executor."""
    from chelate_slurm.executor import SlurmExecutor

    return [SlurmExecutor]
