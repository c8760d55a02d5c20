"""One batch of tasks for one worker, with the stored values that the worker lacks."""

from __future__ import annotations

from typing import Any

from chelate.executors.link import Link
from chelate.executors.record import Record
from chelate.worker import LARGE

__all__ = ["Message"]

KNOWN_COUNT, KNOWN_BYTES = 4096, 16 << 20


class Message:
    """Collects tasks and sends them as one frame.

    The worker keeps small values; which ones it still has is decided here, so that both agree.
    """

    def __init__(self, link: Link, python: str) -> None:
        self._link = link
        self._python = python
        self._heads: dict[tuple[Any, ...], list[int]] = {}
        self._common: list[list[Any]] = []
        self._tasks: list[list[Any]] = []
        self._blobs: list[list[Any]] = []
        self._bodies: list[bytes] = []
        self._files: dict[str, str] = {}
        self._needed: set[str] = set()

    def add(self, record: Record) -> None:
        """Put a task in, as the next of the link's sequence.

        Raises:
            StoreError: one of its inputs cannot be read.
        """
        task = record.task
        known = self._link.known
        for digest in task.inputs:
            if digest in known:
                known.move_to_end(digest)
                self._needed.add(digest)
            elif digest not in self._needed:
                self._fetch(record, digest)
                self._needed.add(digest)
        link = self._link
        link.sequence += 1
        call = task.call
        head = self._head(record)
        where = (task.node_id, task.attempt, record.folder)
        self._tasks.append(
            [link.sequence, task.key, head, call["args"], call["kwargs"], call["values"], *where]
        )

    def _head(self, record: Record) -> int:
        """Index of what the task has in common with others, said once per message."""
        task = record.task
        call = task.call
        own = task.key if call.get("defaults") or call.get("replacements") else None
        split = call.get("parts")
        same = (call.get("function"), call["kind"], task.name, task.dispatch_id, own, split)
        for index in self._heads.get(same, ()):
            if self._common[index][1] == task.context:
                return index
        index = len(self._common)
        self._heads.setdefault(same, []).append(index)
        rest = {key: call[key] for key in call if key not in ("args", "kwargs", "values")}
        self._common.append([rest, task.context, task.dispatch_id, task.name])
        return index

    def _fetch(self, record: Record, digest: str) -> None:
        blobs = record.job.blobs
        path = blobs.path(digest)
        if path is not None:
            self._files[digest] = str(path.absolute())
            return
        data = blobs.read(digest)
        keep = len(data) < LARGE
        self._blobs.append([digest, len(data), keep])
        self._bodies.append(data)
        if keep:
            self._link.known[digest] = len(data)
            self._link.known_size += len(data)

    def send(self) -> None:
        """Send what was collected, and what the worker may forget to keep within bounds."""
        link = self._link
        forget = []
        while len(link.known) > KNOWN_COUNT or link.known_size > KNOWN_BYTES:
            oldest = next(iter(link.known))
            if oldest in self._needed:
                break  # all that is left is needed by this very message
            link.known_size -= link.known.pop(oldest)
            forget.append(oldest)
        header = {
            "python": self._python,
            "forget": forget,
            "blobs": self._blobs,
            "files": self._files,
            "common": self._common,
            "tasks": self._tasks,
        }
        link.send(header, self._bodies)
