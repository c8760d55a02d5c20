"""Placing: which task goes to which worker, and when there is a new one.

A worker gets at most ``CREDIT`` seconds of work ahead, judged by what the same function took
before, so a slow task is never followed by a prefetched queue. A worker runs tasks of one snapshot
of the user's code; an idle one is replaced when tasks of another need its place.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from chelate.api import BlobMissingError, JobState, Outcome, Reason, StoreError
from chelate.executors import process_tree
from chelate.executors.backlog import Backlog
from chelate.executors.link import Frame, Link
from chelate.executors.message import Message
from chelate.executors.pool_folder import PoolFolder
from chelate.executors.record import MemoryWatch, Record

__all__ = ["STALLED", "Placing"]

CREDIT = 0.002  # seconds of work ahead of a worker
BATCH = 256
STALLED = 0.01  # a worker this long in one task gives back what waits behind it
PATIENCE = 0.5  # a job of several slots, or of other code, waits this long while others pass it
STARTS = 3  # workers that may die at their start before tasks fail of it


class Placing(ABC):
    """The half of a pool that fills workers; :class:`~chelate.executors.pool.Pool` is the rest."""

    def __init__(
        self,
        shared: PoolFolder,
        slots: int,
        mem: int,
        devices: Sequence[str],
        python: str | None,
        environment: Mapping[str, str],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.shared = shared
        self.folder = shared.path
        self.finished = 0  # tasks that ended, ever
        self.waiting: dict[asyncio.Future[None], int] = {}  # who waits for how many to end
        self._slots = self._free = slots
        self._mem = mem
        self._devices = list(devices)
        self._gpus = bool(devices)
        self._python = python
        self._version = "{}.{}".format(*sys.version_info)
        self._environment = dict(environment)
        self._links: list[Link] = []
        self._narrow = Backlog()
        self._wide: deque[Record] = deque()
        self._costs: dict[str, float] = {}
        self._number = 0
        self._failed_starts = 0
        self._pumping = self._ticking = self._closing = False
        self._given_up: list[str] = []
        self._memory = MemoryWatch()
        self._guardian: subprocess.Popen[bytes] | None = None

    def submit(self, record: Record) -> None:
        """Queue a task; it is sent in the loop's next round, together with its neighbours."""
        record.queued_at = self.loop.time()
        if record.wide:
            self._wide.append(record)
        else:
            self._narrow.add(record)
        self._wake()

    def _wake(self) -> None:
        if not self._pumping:
            self._pumping = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._closing:
            return
        now = self.loop.time()
        while self._wide and self._place(self._wide[0]):
            self._wide.popleft()
        if not self._wide or now - self._wide[0].queued_at < PATIENCE:
            if any(self._overdue(code, now) for code in self._narrow.codes()):
                self._grow()
            held = any(self._overdue(code, now) for code in self._narrow.codes())
            for link in self._links:
                while self._narrow and (link.fresh or not held) and self._feed(link):
                    continue
            self._grow()
        if not self._ticking and any(len(link.outstanding) > 1 for link in self._links):
            self._ticking = True
            self.loop.call_later(STALLED, self._tick)

    def _feed(self, link: Link) -> bool:
        """Send one message of narrow tasks if the worker has room."""
        busy = bool(link.outstanding)
        if not link.ready or link.leaving or link.wide or link.devices or link.messages >= 2:
            return False
        stalled = busy and self.loop.time() - link.progress > STALLED
        if stalled or not (busy or self._free):
            return False
        queue = self._narrow.queue(link.code)
        if queue is None:
            return False
        share = -(-len(queue) // sum(other.code == link.code for other in self._links))
        batch: list[Record] = []
        ahead = link.ahead if busy else 0.0
        while queue and len(batch) < min(BATCH, share):
            record = queue[0]
            if record.final:
                queue.popleft()
                continue
            cost = self._costs.get(record.function, CREDIT * 2)
            if (busy or batch) and ahead + cost > CREDIT:
                break
            queue.popleft()
            record.cost = cost
            ahead += cost
            batch.append(record)
        self._narrow.queue(link.code)  # forgets it once it is empty
        if not batch:
            return False
        if not busy:
            self._free -= 1
            link.held = True
        self._send(link, batch)
        link.ahead = ahead
        return True

    def _place(self, record: Record) -> bool:
        """Give a wide task its worker; False while there is no room for it."""
        if record.final:
            return True
        gpus = record.job.resources.gpus
        if record.slots > self._free or record.mem > self._mem or gpus > len(self._devices):
            return False
        devices = tuple(self._devices[:gpus])
        idle = [link for link in self._links if not link.outstanding and not link.leaving]
        code = record.job.code
        fitting = [link for link in idle if (link.devices, link.code) == (devices, code)]
        link = next((link for link in fitting if link.ready), None)
        if link is None:
            if not fitting:
                if not self._make_room(code) and idle:
                    idle[0].retire()
                self._start(devices, record)
            return False
        record.devices = devices
        del self._devices[:gpus]
        self._free -= record.slots
        self._mem -= record.mem
        link.wide = record
        link.held = True
        self._send(link, [record])
        link.ahead = CREDIT * 2
        return True

    def _grow(self) -> None:
        """Start workers while there is work for more of them than there are."""
        for code in self._narrow.codes():
            while self._free and (queue := self._narrow.queue(code)):
                plain = [link for link in self._plain() if link.code == code]
                starting = sum(not link.ready for link in plain)
                cost = self._costs.get(queue[0].function, 1.0)
                enough = starting >= len(queue) or len(queue) * cost < 0.02 * starting
                if enough or not self._make_room(code) or not self._start((), queue[0]):
                    break

    def _plain(self) -> list[Link]:
        return [link for link in self._links if not link.leaving and not link.devices]

    def _overdue(self, code: str | None, now: float) -> bool:
        """Whether tasks of this code have waited long, and no worker is there that could take them.

        Then no other narrow task is sent but to new workers, so that the next one to fall idle
        makes room.
        """
        queue = self._narrow.queue(code)
        if not queue or now - queue[0].queued_at < PATIENCE:
            return False
        return all(link.code != code for link in self._plain())

    def _make_room(self, code: str | None) -> bool:
        """Whether one more worker may start, in the place of an idle one of other use."""
        active = [link for link in self._links if not link.leaving]
        if len(active) < self._slots:
            return True
        needed = {record.job.code for record in self._wide if not record.final}
        now = self.loop.time()
        overdue = self._overdue(code, now)
        for link in active:
            if not link.ready or link.outstanding:
                continue
            queue = self._narrow.queue(link.code)
            unused = link.code not in needed and queue is None
            if link.devices or (link.code != code and (unused or (overdue and not link.fresh))):
                if queue is not None:
                    queue[0].queued_at = now  # its patience begins anew
                link.retire()
                return True
        return False

    def _start(self, devices: tuple[str, ...], record: Record) -> bool:
        """Start a worker for a task; its code must be that task's."""
        environment = dict(self._environment)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        self._number += 1
        try:
            code = self._archive(record)
            link = Link(
                self.loop,
                self.folder,
                self._number,
                self._python,
                environment,
                self._received,
                self._died,
                code,
            )
            if self._guardian is None:
                self._guardian = subprocess.Popen(
                    [sys.executable, "-I", "-S", process_tree.__file__, str(self.folder)],
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                )
        except OSError as error:
            self._start_failed(f"the process could not be started: {error}", final=True)
            return False
        except StoreError as error:
            self._no_code(record.job.code, error)
            return False
        self._links.append(link)
        link.devices = devices
        return True

    def _archive(self, record: Record) -> tuple[str, str] | None:
        """Digest and file of the stored code that a task needs."""
        code = record.job.code
        if code is None:
            return None
        path = record.job.blobs.path(code)
        if path is None:
            path = self.folder / f"{code}.zip"
            if not path.exists():
                part = path.with_suffix(".part")
                part.write_bytes(record.job.blobs.read(code))
                part.replace(path)
        return code, str(path.absolute())

    def _no_code(self, code: str | None, error: StoreError) -> None:
        for record in (*self._narrow, *self._wide):
            if record.job.code == code and not record.final:
                self._fail(
                    record,
                    Reason.ENV_MISSING,
                    f"The stored code of task {record.task.name!r} cannot be had: {error} "
                    "Dispatch the workflow again from its source.",
                )
        self._wake()

    def _start_failed(self, why: str, *, final: bool = False) -> None:
        self._failed_starts += 1
        if self._failed_starts < STARTS and not final:
            self._pump()
            return
        self._failed_starts = 0
        for record in (*self._narrow, *self._wide):
            if not record.final:
                self._fail(record, Reason.LAUNCH_FAIL, f"No worker process could start: {why}")
        self._narrow.clear()
        self._wide.clear()

    def _fail(self, record: Record, reason: Reason, error: str) -> None:
        record.outcome = Outcome(record.task.key, False, reason=reason, error=error + "\n")
        record.observe(JobState.ENDED)
        self.finished += 1
        self._notify()

    def _send(self, link: Link, batch: list[Record]) -> None:
        message = Message(link, self._version)
        left = [0]
        for record in batch:
            try:
                message.add(record)
            except StoreError as error:
                missing = isinstance(error, BlobMissingError)
                reason = Reason.RESULT_MISSING if missing else Reason.RESULT_CORRUPT
                self._fail(record, reason, f"An input of task {record.task.name!r}: {error}")
                continue
            link.outstanding[link.sequence] = record
            record.link = link
            record.batch = left
            left[0] += 1
        if not left[0]:
            if not link.outstanding:
                self._freed(link)
            return
        if left[0] == len(link.outstanding):
            link.progress = self.loop.time()
        link.messages += 1
        message.send()

    def _gone(self, link: Link, sequence: int) -> Record | None:
        """Forget a task that the worker no longer has."""
        record: Record | None = link.outstanding.pop(sequence, None)
        if record is not None:
            record.batch[0] -= 1
            if not record.batch[0]:
                link.messages -= 1
            link.ahead -= record.cost
        return record

    def _freed(self, link: Link) -> None:
        """The worker has nothing more to do: its slots are for others."""
        if not link.held:
            return
        link.held = False
        link.ahead = 0.0
        wide, link.wide = link.wide, None
        if wide is None:
            self._free += 1
            return
        self._free += wide.slots
        self._mem += wide.mem
        self._devices = sorted((*self._devices, *wide.devices))
        wide.devices = ()

    def _requeue(self, link: Link, sequences: Iterable[int]) -> None:
        """Tasks that never started go to the front again; cancelled ones have ended."""
        for sequence in sorted(sequences, reverse=True):
            record = self._gone(link, sequence)
            if record is None:
                continue
            record.link = None
            if record.cancelled:
                self._cancelled(record)
            else:
                if record.wide:
                    self._wide.appendleft(record)
                else:
                    self._narrow.put_back(record)

    def _cancelled(self, record: Record) -> None:
        """A task that never started has been taken back."""
        record.kill()
        self._give_up(record)
        self.finished += 1
        self._notify()

    def _give_up(self, record: Record) -> None:
        if not self._given_up:
            self.loop.call_soon(self._write_off)
        self._given_up.append(record.task.key)

    def _write_off(self) -> None:
        keys, self._given_up = self._given_up, []
        try:
            self.shared.write_off(keys)
        except OSError:  # the disk is full, or the folder is being removed
            if not self._closing:
                self._given_up = keys
                self.loop.call_later(1.0, self._write_off)

    def halt(self) -> None:
        """From another thread: start nothing more, for this pool was left behind."""
        self._closing = True

    def _notify(self) -> None:
        for future, target in self.waiting.items():
            if self.finished >= target and not future.done():
                future.set_result(None)

    @abstractmethod
    def _received(self, link: Link, frames: list[Frame]) -> None:
        """A worker has sent these."""

    @abstractmethod
    def _died(self, link: Link) -> None:
        """A worker's process has ended."""

    @abstractmethod
    def _tick(self) -> None:
        """Some workers have had more than one task for ``STALLED`` seconds."""
