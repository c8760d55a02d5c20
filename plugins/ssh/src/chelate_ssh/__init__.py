"""Tasks of chelate workflows on hosts that SSH reaches."""

from __future__ import annotations

from chelate_ssh.executor import SSHExecutor
from chelate_ssh.target import Target
from chelate_ssh.transport import SSHTransport

__all__ = ["SSHExecutor", "SSHTransport", "Target"]
