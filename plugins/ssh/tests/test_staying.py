"""What crosses the wire when tasks of one host pass large values on to each other."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from tests.services.sshd import Sshd

import chelate as ct
from chelate_ssh import SSHExecutor, SSHTransport

READER = """
import hashlib, sys
import chelate as ct
output = ct.get_result(sys.argv[1]).get_node_result("make")["output"]
print(hashlib.sha256(output).hexdigest())
"""


def make(size: int) -> bytes:
    import random

    return random.Random(3).randbytes(size)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", [8 << 20, pytest.param(50 << 20, marks=pytest.mark.large)])
def test_a_chain_of_large_values_stays_on_its_host(
    size: int, sshd_session: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = 0
    run, stream = SSHTransport.run, SSHTransport.stream

    async def counted_run(self: SSHTransport, *given: Any, **options: Any) -> Any:
        nonlocal came
        done = await run(self, *given, **options)
        came += len(done.stdout)
        return done

    async def counted_stream(
        self: SSHTransport, *given: Any, **options: Any
    ) -> AsyncIterator[bytes]:
        nonlocal came
        async with aclosing(stream(self, *given, **options)) as pieces:
            async for piece in pieces:
                came += len(piece)
                yield piece

    monkeypatch.setattr(SSHTransport, "run", counted_run)
    monkeypatch.setattr(SSHTransport, "stream", counted_stream)
    options = sshd_session.client(
        python=sys.executable, root=str(tmp_path / "root"), poll_interval=0.2, slots=2
    )
    executor = SSHExecutor(**options)
    a = ct.electron(make, executor=executor)
    b = ct.electron(lambda data: data[::-1], executor=executor)
    c = ct.electron(lambda data: (len(data), data[:4]), executor=executor)

    @ct.lattice
    def flow(size: int) -> Any:
        return c(b(a(size)))

    dispatch_id = ct.dispatch(flow)(size)
    result = ct.get_result(dispatch_id, wait=True, timeout=120)
    data = make(size)
    assert result.result == (size, data[::-1][:4]), result.error
    assert came < 1 << 20, f"{came} bytes came home"
    # A process without a kernel fetches one of them.
    home = str(tmp_path / "chelate")
    done = subprocess.run(
        [sys.executable, "-c", READER, dispatch_id],
        env={
            **os.environ,
            "CHELATE_HOME": home,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == hashlib.sha256(data).hexdigest(), done.stderr
    assert result.get_node_result("make")["output"] == data  # it is here now
    assert came < 1 << 20
    assert result.get_node_result(2)["output"] == data[::-1]  # through this process
    assert size < came < size + (1 << 20)
