"""The processes with kernels, started by one that has imported everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["Kernels"]


class Kernels:
    """Slots by name, each with at most one process."""

    def __init__(self, folder: Path, width: int, environment: dict[str, str]) -> None:
        command = [sys.executable, str(Path(__file__).with_name("workload.py")), str(folder)]
        with (folder / "parent.log").open("ab") as log:
            self.parent = subprocess.Popen(
                [*command, str(width)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        assert self.parent.stdout is not None
        os.set_blocking(self.parent.stdout.fileno(), False)
        self.pids: dict[str, int] = {}
        self._pending = b""

    def start(self, name: str) -> None:
        """Ask for a process; :meth:`news` says when it is there."""
        assert self.parent.stdin is not None
        self.parent.stdin.write(f"{name}\n".encode())
        self.parent.stdin.flush()

    def news(self) -> list[tuple[str, str, int]]:
        """What has happened: ``("began", name, pid)`` and ``("ended", name, status)``."""
        assert self.parent.stdout is not None
        try:
            data = os.read(self.parent.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        if not data:
            raise RuntimeError("the parent of the kernels has ended: see parent.log")
        *lines, self._pending = (self._pending + data).split(b"\n")
        found = []
        for line in lines:
            word, name, number = line.decode().split()
            if word == "began":
                self.pids[name] = int(number)
            else:
                del self.pids[name]
            found.append((word, name, int(number)))
        return found

    def close(self) -> None:
        """End the parent; its children are not touched."""
        self.parent.kill()
        self.parent.communicate()
