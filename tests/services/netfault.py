"""Lost packets between loopback addresses, by a table of nftables' own. Needs root and ``nft``.

Unlike :mod:`tests.services.tcpproxy`, TCP itself sees the loss: retransmission, keepalive and
connect time-outs do their work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["cut", "require"]


def _nft() -> str | None:
    return shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _apply(rules: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_nft() or "nft", "-f", "-"], input=rules, capture_output=True, text=True, timeout=30
    )


def require() -> None:
    """Skip, or fail where services are required, when packets cannot be dropped here."""
    problem = None
    if os.geteuid() != 0:
        problem = "dropping packets needs root"
    elif _nft() is None:
        problem = "nftables is not installed (on Debian: apt install nftables)"
    elif (
        tried := _apply("table inet chelate_probe\ndelete table inet chelate_probe\n")
    ).returncode:
        problem = f"this kernel has no nftables: {tried.stderr.strip()[:200]}"
    if problem is not None:
        if os.environ.get("CHELATE_REQUIRE_SERVICES") == "1" and os.geteuid() == 0:
            pytest.fail(problem)
        pytest.skip(problem)


@contextmanager
def cut(port: int) -> Iterator[None]:
    """Drop every packet from and to a loopback port, without a word to either side.

    Raises:
        RuntimeError: nftables refused the rules.
    """
    table = f"inet chelate_{os.getpid()}_{port}"
    rules = (
        f"table {table} {{ chain in {{ type filter hook input priority -10; policy accept;\n"
        f"iif lo tcp dport {port} counter drop\niif lo tcp sport {port} counter drop\n}}\n}}\n"
    )
    applied = _apply(rules)
    if applied.returncode:
        raise RuntimeError(f"nftables refused the rules: {applied.stderr}")
    try:
        yield
    finally:
        _apply(f"delete table {table}\n")
