"""What the tests of executors run; each travels by value and needs the standard library only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["beats", "divides", "notes", "shows", "tree", "waits", "witness"]


def notes(path: str) -> Callable[[Any], Any]:
    """A task that adds a line to a ledger and returns what it is given."""

    def note(value: Any) -> Any:
        import os

        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{value}\n".encode())
        os.close(descriptor)
        return value

    return note


def beats(path: str, *, stubborn: bool = False) -> Callable[[], None]:
    """A task that adds a byte to a file for as long as it lives; ``stubborn`` ignores SIGTERM."""

    def beat() -> None:
        import os
        import signal
        import time

        if stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end = time.monotonic() + 300
        while time.monotonic() < end:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(descriptor, b".")
            os.close(descriptor)
            time.sleep(0.05)

    return beat


def divides() -> Callable[[int], float]:
    """A task that fails in ``inner``, called by ``outer``, in a file of the user's."""

    def inner(value: int) -> float:
        return value / 0

    def outer(value: int) -> float:
        return inner(value)

    for function in (inner, outer):
        # Frames of files of chelate's own are not shown to users.
        function.__code__ = function.__code__.replace(co_filename="/home/user/flow.py")
    return outer


def waits(path: str, value: Any = None) -> Callable[[], Any]:
    """A task that runs until a file is there, and returns ``value``."""

    def wait() -> Any:
        import pathlib
        import time

        end = time.monotonic() + 300
        while not pathlib.Path(path).exists() and time.monotonic() < end:
            time.sleep(0.02)
        return value

    return wait


def shows(folder: str, parts: int) -> Callable[[], str]:
    """A task that prints part after part, each when the file ``go-<n>`` appears in ``folder``."""

    def show() -> str:
        import pathlib
        import sys
        import time

        end = time.monotonic() + 300
        for number in range(parts):
            while not (pathlib.Path(folder) / f"go-{number}").exists():
                if time.monotonic() > end:
                    return "nobody said go"
                time.sleep(0.02)
            sys.stdout.write(f"part {number} größe\n")
            sys.stdout.flush()
        return "shown"

    return show


def tree(path: str) -> Callable[[], None]:
    """A task with a child that has a child of its own: out of the group, deaf to SIGTERM."""

    def grow() -> None:
        import subprocess
        import sys
        import time

        grandchild = (
            "import os, signal, sys, time\n"
            "os.setsid()\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "for _ in range(3000):\n"
            "    with open(sys.argv[1], 'a') as file:\n"
            "        file.write('.')\n"
            "    time.sleep(0.05)\n"
        )
        child = (
            "import subprocess, sys, time\n"
            "subprocess.Popen([sys.executable, '-c', sys.argv[2], sys.argv[1]])\n"
            "time.sleep(300)\n"
        )
        subprocess.Popen([sys.executable, "-c", child, path, grandchild])
        time.sleep(300)

    return grow


def witness(path: str) -> Any:
    """A value that notes, in a ledger, the id of every process that unpickles it."""

    def rebuild(where: str) -> Any:
        import os

        descriptor = os.open(where, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        os.close(descriptor)

        class Witness:
            def __reduce__(self) -> Any:
                return rebuild, (where,)

        return Witness()

    class Seed:
        def __reduce__(self) -> Any:
            return rebuild, (path,)

    return Seed()
