"""Runs one task of the fake backend: ``fake_task.py FOLDER``, where the backend has laid it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

from chelate.worker import Runner, Terminated

__all__ = ["main"]


def _terminate(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated("The task was told to stop.")


def main(folder: Path) -> int:
    """Run the task and write ``outcome.json`` last, so that it is there only when all is."""
    order = json.loads((folder / "task.json").read_text())
    values = Path(order["values"])
    context: Any = types.ModuleType("_chelate_task_context")
    context.current = order["context"]
    sys.modules["_chelate_task_context"] = context
    signal.signal(signal.SIGTERM, _terminate)
    started = time.time()
    (folder / "started").write_text(str(started))
    runner = Runner(lambda digest: (values / digest).read_bytes(), None)
    header, payload, exception = runner.run(order["call"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / "payload").write_bytes(payload)
    (folder / "exception").write_bytes(exception)
    text = json.dumps({**header, "started_at": started, "ended_at": time.time()})
    (folder / "outcome.part").write_text(text)
    (folder / "outcome.part").rename(folder / "outcome.json")
    return 0


if __name__ == "__main__":
    task = Path(sys.argv[1])
    os.chdir(task)
    sys.exit(main(task))
