"""Slurm for chelate: tasks become jobs of a cluster, from its login node or over SSH."""

from __future__ import annotations

from chelate_slurm.executor import SlurmExecutor

__all__ = ["SlurmExecutor"]
