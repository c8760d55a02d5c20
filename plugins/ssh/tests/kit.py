"""What the tests of the SSH plugin share."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.services.sshd import Sshd

from chelate_ssh import SSHTransport, Target

__all__ = [
    "FLOWS",
    "Program",
    "carry_out",
    "installed",
    "marked",
    "run_agent",
    "serving",
    "target_of",
    "with_transport",
]

FLOWS = Path(__file__).with_name("flows.py")


def target_of(server: Sshd, **changes: Any) -> Target:
    """The way to a server."""
    return Target(**server.client(**changes))


def with_transport(
    target: Target, work: Callable[[SSHTransport], Coroutine[Any, Any, Any]], limit: float = 60
) -> Any:
    """What ``work`` returns, given an open transport to the target."""

    async def scenario() -> Any:
        transport = SSHTransport(target)
        try:
            return await work(transport)
        finally:
            await transport.close()

    return asyncio.run(asyncio.wait_for(scenario(), limit))


def carry_out(target: Target, *argv: str, stdin: bytes = b"") -> str:
    """The output of one command."""

    async def work(transport: SSHTransport) -> str:
        done = await transport.run(argv, stdin, timeout=30)
        assert done.exit_status == 0, done
        return done.stdout.decode()

    return str(with_transport(target, work))


def installed(folder: Path) -> list[str]:
    """Folders for ``sys.path`` that make the plugin known where it is not installed."""
    if any(point.name == "ssh" for point in metadata.entry_points(group="chelate")):
        return []
    info = folder / "chelate_ssh-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chelate-ssh\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[chelate]\nssh = chelate_ssh.plugin\n")
    return [str(folder)]


def run_agent(folder: Path, key: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """An SSH agent that holds one key; its process and its socket."""
    socket = folder / "agent"
    process = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    subprocess.run(["sh", "-c", f"until [ -S {socket} ]; do sleep 0.02; done"], timeout=20)
    environment = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
    subprocess.run(["ssh-add", "-q", str(key)], env=environment, check=True, timeout=20)
    return process, socket


class Program:
    """Runs the programs of ``flows.py`` in one home, with the settings a user would make."""

    def __init__(self, folder: Path, options: dict[str, Any], **settings: str) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [*installed(folder / "installed"), *filter(None, sys.path)]
            ),
            "CHELATE_HOME": str(folder / "chelate"),
            "CHELATE_EXECUTORS": json.dumps({"ssh": options}),
            **settings,
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A program as a process, with its output to read."""
        return subprocess.Popen(
            [sys.executable, str(FLOWS), *words],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, limit: float = 120) -> str:
        """What a program prints; it must succeed."""
        with self.start(*words) as process:
            try:
                output = process.communicate(timeout=limit)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == 0, output
        return output


def marked(text: str) -> list[int]:
    """Processes whose environment holds a text, such as the key of a task."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and text.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def serving(root: Path) -> list[int]:
    """Supervisors and agents of a root folder."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if (
                folder.name.isdigit()
                and f"{root}/tools/".encode() in (folder / "cmdline").read_bytes()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found
