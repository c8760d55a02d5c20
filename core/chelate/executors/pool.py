"""The pool: what workers answer, and what happens when one must go.

What was prefetched behind a task that turns out slow is taken back. Taking back is ordered with
starting by a lock in the worker, which makes at most one run certain. Everything here runs in
the lane's loop thread.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Iterable

from chelate.api import JobState
from chelate.executors import process_tree
from chelate.executors.ending import Ending
from chelate.executors.link import Frame, Link
from chelate.executors.placing import STALLED, Placing
from chelate.executors.record import Record, crash_outcome, outcome_of
from chelate.worker import NEWS

__all__ = ["Pool"]

LEAST_COST = 8e-6  # what even an empty task takes
UNANSWERED = 0.5  # a worker that does not answer for this long holds the interpreter's lock
FUNCTIONS = 4096  # whose cost is remembered


class Pool(Placing):
    """Worker processes on ``slots`` slots. Started by the first task."""

    def refresh(self) -> bool:
        """Look at what runs; True while a worker is about to begin a task."""
        starting = False
        for link in self._links:
            if link.outstanding:
                mark = link.mark()
                record: Record | None = link.outstanding.get(mark.sequence)
                if record is None:
                    starting = True
                elif record.observation.state is JobState.QUEUED:
                    record.observe(JobState.RUNNING, mark.started)
        return starting or bool(self._narrow) or bool(self._wide)

    def cancel(self, records: Iterable[Record], force: bool) -> None:
        """Take tasks back, or end the trees of those that run."""
        asked: dict[Link, list[int]] = {}
        for record in records:
            if record.final:
                self._give_up(record)
                continue
            record.cancelled = True
            record.force = record.force or force
            link = record.link
            if link is None:
                self._cancelled(record)
                continue
            if link.victim is record:
                if force and link.ending is not None:
                    link.ending.force()
                continue
            sequence = next(n for n, other in link.outstanding.items() if other is record)
            asked.setdefault(link, []).append(sequence)
        for link, sequences in asked.items():
            link.order(sequences, hold=True)
            self.loop.call_later(UNANSWERED, self._unanswered, link, sequences)

    def _received(self, link: Link, frames: list[Frame]) -> None:
        now = self.loop.time()
        for frame in frames:
            if frame.flags & NEWS:
                self._news(link, frame.meta)
                continue
            record = self._gone(link, frame.sequence)
            if record is None:
                continue
            link.progress = now
            record.outcome = outcome_of(record.task.key, frame)
            spent = max(frame.ended - frame.started, LEAST_COST)
            known = self._costs.get(record.function)
            self._costs[record.function] = spent if known is None else known + (spent - known) / 4
            if link.victim is not record:
                self._end(record)
        if len(self._costs) > FUNCTIONS:
            self._costs.clear()
        if not link.outstanding and link.ending is None:
            self._freed(link)
        self._pump()

    def _news(self, link: Link, meta: bytes) -> None:
        news = json.loads(meta)
        if "ready" in news:
            link.ready = True
            self._failed_starts = 0
            return
        self._requeue(link, news["taken"])
        held = link.outstanding.get(news["held"])
        if held is not None:
            self._end_worker(link, held)

    def _end(self, record: Record) -> None:
        """A task has its outcome, or none because it was cancelled."""
        if record.cancelled and (record.outcome is None or not record.outcome.ok):
            record.kill()
        else:
            record.observe(JobState.ENDED, record.outcome.started_at if record.outcome else None)
        if record.cancelled:
            self._give_up(record)
        record.link = None
        self.finished += 1
        self._notify()

    def _tick(self) -> None:
        """Move what waits behind a task that takes longer than it used to."""
        self._ticking = False
        now = self.loop.time()
        waiting = [link for link in self._links if len(link.outstanding) > 1 and not link.leaving]
        if self._free > 0 and not self._narrow:
            for link in waiting:
                if now - link.progress > STALLED:
                    link.order(list(link.outstanding)[1:], hold=False)
        if waiting:
            self._ticking = True
            self.loop.call_later(STALLED, self._tick)

    def _unanswered(self, link: Link, sequences: list[int]) -> None:
        """The worker did not answer a cancel: look for ourselves, with the worker halted."""
        if link.dead or link.leaving or not any(n in link.outstanding for n in sequences):
            return
        process_tree.send([link.process.pid], signal.SIGSTOP)
        record = link.outstanding.get(link.mark().sequence)
        if record is not None and record.cancelled:
            self._end_worker(link, record)
        else:
            self.loop.call_later(UNANSWERED, self._unanswered, link, sequences)
        process_tree.send([link.process.pid], signal.SIGCONT)

    def _end_worker(self, link: Link, victim: Record | None, *, ask: bool = False) -> None:
        """The tree of a worker must go; its other tasks have not begun and move."""
        link.victim = victim
        others = [n for n, record in link.outstanding.items() if record is not victim]
        key = victim.task.key if victim is not None else None
        link.ending = Ending(self.loop, link, key, self._buried)
        self._requeue(link, others)
        if ask or (victim is not None and victim.cancelled and not victim.force and not link.dead):
            link.ending.ask()
        else:
            link.ending.force()

    def _died(self, link: Link) -> None:
        if link.ending is None:
            self._end_worker(link, link.outstanding.get(link.mark().sequence))

    def _buried(self, link: Link) -> None:
        """Nothing of the worker lives: say how its task ended, and let another take its place."""
        victim = link.victim
        if victim is not None:
            if victim.outcome is None and not victim.cancelled:
                victim.outcome = crash_outcome(victim, link, self._memory, time.time())
            self._end(victim)
        link.outstanding.clear()
        self._freed(link)
        self._links.remove(link)
        failed = None if link.ready or link.retired else link.log(1, 0)
        code = link.process.returncode
        link.dispose()
        if failed is not None:
            words = failed.decode(errors="replace").strip()
            self._start_failed(f"it ended with code {code}. {words}")
        else:
            self._pump()

    async def close(self) -> None:
        """End every worker with its tree and remove the pool's folder."""
        self._closing = True
        for link in list(self._links):
            link.retire()
            if link.outstanding and link.ending is None:
                self._end_worker(link, None, ask=True)
        moment = self.loop.time() + 0.5
        while self._links:
            await asyncio.sleep(0.005)
            for link in list(self._links):
                if link.ending is None and self.loop.time() > moment:
                    self._end_worker(link, None)
        if self._guardian is not None:
            self._guardian.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)
