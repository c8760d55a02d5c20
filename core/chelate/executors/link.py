"""One worker process of a pool and the pipes to it. Nothing here decides what runs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import mmap
import os
import subprocess
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chelate.executors.process_tree import Tree
from chelate.worker import FRAME, MARK, RESULT, read_slice

__all__ = ["Frame", "Link", "Mark"]

PIPE_SIZE = 1 << 20


class Frame(NamedTuple):
    """One message of a worker, cut into its parts but not read."""

    sequence: int
    flags: int
    started: float
    ended: float
    digest: bytes
    meta: bytes
    fingerprint: bytes
    payload: bytes
    exception: bytes
    stdout: bytes
    stderr: bytes


class Mark(NamedTuple):
    """What a worker is in: sequence 0 when in nothing; ``offsets`` of its two logs at the start."""

    sequence: int
    started: float
    offsets: tuple[int, int]


class Link:
    """A running worker. ``on_data(link, frames)`` and ``on_death(link)`` are called by the loop.

    ``code`` is digest and file of the snapshot of user modules that it runs.

    Raises:
        OSError: the process could not be started.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        folder: Path,
        number: int,
        python: str | None,
        environment: Mapping[str, str],
        on_data: Callable[[Link, list[Frame]], None],
        on_death: Callable[[Link], None],
        code: tuple[str, str] | None = None,
    ) -> None:
        self.loop = loop
        self.code = None if code is None else code[0]
        self.on_data = on_data
        self.on_death = on_death
        self.ready = False
        self.dead = False
        self.outstanding: dict[int, Any] = {}  # by sequence, in the order sent
        self.sequence = 0
        self.messages = 0
        self.ahead = 0.0
        self.progress = loop.time()
        self.held = False  # it occupies slots
        self.wide: Any = None  # the one task of several slots that it is for
        self.devices: tuple[str, ...] = ()
        self.victim: Any = None  # the task that its end is about
        self.ending: Any = None
        self.retired = False
        self.known: OrderedDict[str, int] = OrderedDict()
        self.known_size = 0
        self._pending: deque[memoryview] = deque()
        self._rest = b""
        self._pidfd = -1
        self._mark_path = folder / f"{number}.mark"
        self._mark_path.write_bytes(b"\0" * MARK.size)
        with self._mark_path.open("r+b") as file:
            self._mark = mmap.mmap(file.fileno(), MARK.size)
        self._log_paths = [folder / f"{number}.stdout", folder / f"{number}.stderr"]
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self.logs = [os.open(path, flags, 0o600) for path in self._log_paths]
        self._spawn(python, environment)
        self.tree = Tree(self.process.pid, [os.fsencode(self._mark_path)])
        path = [str(Path(entry).absolute()) for entry in sys.path]
        if python is not None:  # another interpreter has a library of its own
            own = (sys.prefix, sys.base_prefix)
            path = [entry for entry in path if not entry.startswith(own)]
        hello = {"path": path, "replace": python is None, "spool": str(folder), "code": code}
        self.send(hello, [])

    def _spawn(self, python: str | None, environment: Mapping[str, str]) -> None:
        worker = Path(__file__).resolve().parent.parent / "worker.py"
        pipes = [os.pipe() for _ in range(3)]
        (tasks, self._tasks), (self._results, results), (control, self._control) = pipes
        theirs = (tasks, results, control)
        try:
            self.process = subprocess.Popen(
                [python or sys.executable, str(worker), *map(str, theirs), str(self._mark_path)],
                stdin=subprocess.DEVNULL,
                stdout=self.logs[0],
                stderr=self.logs[1],
                pass_fds=theirs,
                start_new_session=True,
                env={
                    **os.environ,
                    **environment,
                    "CHELATE_WORKER_MARK": str(self._mark_path),
                },
            )
        except OSError:
            for descriptor in (*theirs, self._tasks, self._results, self._control, *self.logs):
                os.close(descriptor)
            raise
        for descriptor in theirs:
            os.close(descriptor)
        for descriptor in (self._tasks, self._results):
            os.set_blocking(descriptor, False)
            with contextlib.suppress(AttributeError, OSError):  # a larger pipe is only faster
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.set_blocking(self._control, False)
        self.loop.add_reader(self._results, self._readable)
        # A grandchild may hold the pipe open, so its end is no sure sign of the worker's death.
        with contextlib.suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(self.process.pid)
            self.loop.add_reader(self._pidfd, self._died)

    @property
    def leaving(self) -> bool:
        """Whether it takes no more tasks."""
        return self.retired or self.dead or self.ending is not None

    @property
    def fresh(self) -> bool:
        """Whether it was never sent a task."""
        return self.sequence == 0

    # -- to the worker ------------------------------------------------------------------------

    def send(self, header: dict[str, Any], blobs: Sequence[bytes]) -> None:
        """Queue one frame; what the pipe does not take now follows when it can."""
        head = json.dumps(header, separators=(",", ":")).encode()
        size = sum(map(len, blobs))
        if self._tasks < 0:
            return
        self._pending.append(memoryview(b"".join((FRAME.pack(len(head), size), head, *blobs))))
        if len(self._pending) == 1:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._pending:
                data = self._pending[0]
                sent = os.write(self._tasks, data)
                if sent < len(data):
                    self._pending[0] = data[sent:]
                else:
                    self._pending.popleft()
        except BlockingIOError:
            self.loop.add_writer(self._tasks, self._flush)
            return
        except OSError:
            self._pending.clear()  # the worker is dead, and its death is reported by itself
        self.loop.remove_writer(self._tasks)

    def order(self, take: Iterable[int], *, hold: bool) -> None:
        """Ask for tasks back, out of turn; with ``hold``, also for a halt after a running one."""
        line = json.dumps({"take": list(take), "hold": hold}).encode() + b"\n"
        with contextlib.suppress(OSError):  # full or broken: nobody listens, others look after it
            os.write(self._control, line)

    def retire(self) -> None:
        """Let an idle worker leave by itself."""
        self.retired = True
        if self._tasks >= 0:
            self.loop.remove_writer(self._tasks)
            os.close(self._tasks)
            self._tasks = -1

    # -- from the worker ----------------------------------------------------------------------

    def mark(self) -> Mark:
        """What the worker is in now, or was in when it died."""
        sequence, started, out, err, _ = MARK.unpack(self._mark)
        return Mark(sequence, started, (out, err))

    def log(self, stream: int, start: int) -> bytes:
        """The log from ``start`` on, without the middle of a very long text."""
        end = os.fstat(self.logs[stream]).st_size
        return read_slice(self.logs[stream], start, end) if end > start else b""

    def _readable(self) -> None:
        try:
            data = os.read(self._results, PIPE_SIZE)
        except BlockingIOError:
            return
        if data:
            self.on_data(self, list(self._cut(self._rest + data if self._rest else data)))
            return
        self.loop.remove_reader(self._results)
        if self._pidfd < 0:
            self._died()

    def _cut(self, data: bytes) -> Iterator[Frame]:
        at, size = 0, RESULT.size
        while len(data) - at >= size:
            body, sequence, flags, started, ended, digest, *lengths = RESULT.unpack_from(data, at)
            if len(data) - at - size < body:
                break
            at += size
            parts = []
            for length in lengths:
                parts.append(data[at : at + length])
                at += length
            yield Frame(sequence, flags, started, ended, digest, *parts)
        self._rest = data[at:]

    def _died(self) -> None:
        if self.process.poll() is None:
            self.loop.call_later(0.01, self._died)
            return
        if self.dead:
            return
        self.dead = True
        self.loop.remove_reader(self._results)
        if self._pidfd >= 0:
            self.loop.remove_reader(self._pidfd)
        while self._drain():
            continue
        self.on_death(self)

    def _drain(self) -> bool:
        try:
            data = os.read(self._results, PIPE_SIZE)
        except OSError:
            return False
        if data:
            self.on_data(self, list(self._cut(self._rest + data)))
        return bool(data)

    def dispose(self) -> None:
        """Close and remove everything of a dead worker."""
        self.retire()
        self._mark.close()
        for descriptor in (self._results, self._control, self._pidfd, *self.logs):
            if descriptor >= 0:
                os.close(descriptor)
        for path in (self._mark_path, *self._log_paths):
            path.unlink(missing_ok=True)
