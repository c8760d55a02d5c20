"""A lane: one thread with one event loop around one executor instance.

A plugin that blocks or hangs delays nobody but its own lane. Commands may come from any thread
and at any moment, also before the executor has been made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Container, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial

from chelate.contracts.executor import Executor, Job, JobHandle
from chelate.errors import AuthenticationError, PluginContractError, TransientError
from chelate.kernel.lanes.calls import contained, timed
from chelate.kernel.lanes.fetches import Wanted
from chelate.kernel.lanes.report import (
    FIRST_PAUSE,
    LAST_PAUSE,
    Complaints,
    LaneReport,
    pausing,
    sentence,
)
from chelate.kernel.lanes.work import LaneWork
from chelate.kernel.world import Habitat, World

__all__ = ["Lane"]

_LOG = logging.getLogger("chelate.lanes")
_DEAF = 60.0  # seconds for which nobody asks for output after an answer did not come


class Lane:
    """Drives one executor. Every public method may be called from any thread.

    Args:
        name: the lane's name, the executor reference as text.
        make: makes the executor; called in the lane's thread, so a slow import delays only it.
        report: takes a :class:`LaneReport`; called in the lane's thread.
        world: where the lane's thread comes from.
        store: the store's id.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Executor],
        report: Callable[[LaneReport], None],
        world: World,
        store: str,
    ) -> None:
        self.name = name
        self._store = store
        self._make = make
        self._take = report
        self._abandoned = False
        self._deaf_until = 0.0
        self._world = world
        self._habitat: Habitat | None = None
        self._executor: Executor | None = None
        self._work: LaneWork | None = None
        self._early: list[Callable[[LaneWork], None]] = []
        self._closing: asyncio.Event
        self._hurried: asyncio.Event

    def start(self) -> None:
        """Start the thread; the executor is made and opened in it."""
        self._habitat = self._world.habitat(f"chelate-lane-{self.name}", self._live)

    def _post(self, command: Callable[[LaneWork], None]) -> None:
        self._post_to_loop(partial(self._obey, command))

    def _post_to_loop(self, callback: Callable[[], None]) -> None:
        # The loop of an executor that could not be made closes by itself, at any moment.
        with suppress(RuntimeError):
            if self._habitat is not None:
                self._habitat.loop.call_soon_threadsafe(callback)

    def _obey(self, command: Callable[[LaneWork], None]) -> None:
        if self._work is None:
            self._early.append(command)
        else:
            command(self._work)

    def run(self, jobs: Sequence[Job]) -> None:
        """Start jobs whose intent is committed."""
        self._post(lambda work: work.enqueue(jobs))

    def watch(self, jobs: Sequence[tuple[JobHandle, Collection[str]]]) -> None:
        """Poll jobs that an earlier kernel started; with each those of its tasks that ended in
        another job, and that it will never bring."""
        self._post(lambda work: work.adopt(jobs))

    def look_up(self, keys: Sequence[str]) -> None:
        """Find out whether the backend has these keys."""
        self._post(lambda work: work.seek(keys))

    def cancel(self, keys: Sequence[str], unwanted: Container[str]) -> None:
        """Ask for jobs to stop until they are gone; the result of those that are ``unwanted``, by
        a user and not for a time limit, is waited for only so long."""
        self._post(lambda work: work.stop(keys, unwanted))

    def end_strays(self, handles: Sequence[JobHandle]) -> None:
        """End jobs that belong to no live attempt."""
        self._post(lambda work: work.end_strays(handles))

    def fetch(self, wanted: Sequence[Wanted]) -> None:
        """Bring values home that stayed with the executor."""
        self._post(lambda work: work.fetch(wanted))

    def disown(self, dispatch_id: str) -> None:
        """Another kernel owns the dispatch now."""
        self._post(lambda work: work.disown(dispatch_id))

    def hurry(self) -> None:
        """Try refused credentials again soon: somebody may have mended them."""
        self._post_to_loop(self._hurry)

    def _hurry(self) -> None:
        if self._work is None:
            self._hurried.set()
        else:
            self._work.hurry()

    def release(self, keys: Sequence[str]) -> None:
        """The outcomes of these keys are safely stored."""
        self._post(lambda work: work.let_go(keys))

    def logs(self, handle: JobHandle, stream: str, offset: int, limit: int) -> bytes:
        """Read a running job's output; blocks for at most the executor's call timeout.

        Empty when it cannot say in time or at all: nobody who only looks shall fail for it.
        """
        executor, habitat = self._executor, self._habitat
        if executor is None or habitat is None or self._work is None:
            return b""
        if self._world.monotonic() < self._deaf_until:
            return b""
        call = contained(lambda: executor.logs(handle, stream, offset, limit), "logs")
        future = asyncio.run_coroutine_threadsafe(call, habitat.loop)
        try:
            answer = future.result(executor.limits.call_timeout)
        except (Exception, CancelledError) as error:  # noqa: BLE001 - a plugin may raise anything
            if not future.done():  # of many tasks, only one is waited for
                self._deaf_until = self._world.monotonic() + _DEAF
            future.cancel()
            _LOG.warning("Executor %s showed no output: %s", self.name, sentence(error))
            return b""
        return answer if isinstance(answer, bytes) else b""

    @property
    def beats(self) -> int | None:
        """Grows while the thread answers; None before the executor is open."""
        return None if self._work is None else self._work.beats

    def abandon(self) -> None:
        """Leave a thread that a plugin blocks to itself; nothing it may still say is heard."""
        self._abandoned = True
        if self._executor is not None:
            with suppress(Exception):  # a plugin's class may refuse anything
                self._executor.abandoned = True
        self.begin_close()

    def _report(self, report: LaneReport) -> None:
        if not self._abandoned:
            self._take(report)

    def begin_close(self) -> None:
        """Close the executor (which ends no job that can outlive us) and end the thread."""
        self._post_to_loop(self._begin_close)

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended; a plugin that hangs is left behind."""
        if self._habitat is not None:
            self._habitat.join(timeout)

    def _begin_close(self) -> None:
        self._closing.set()
        self._hurried.set()
        if self._work is not None:
            self._work.begin_close()

    # -- in the lane's thread -----------------------------------------------------------------

    async def _live(self) -> None:
        self._closing, self._hurried = asyncio.Event(), asyncio.Event()
        try:
            self._executor = self._make()
            opened = await self._open(self._executor)
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything
            self._report(LaneReport(self.name, failed=sentence(error)))
            return
        if opened:
            await self._drive(self._executor)

    async def _open(self, executor: Executor) -> bool:
        """Open the executor, for as long as it takes; False when it cannot be or we close."""
        delay = 0.0
        complaints = Complaints(_LOG, f"Executor {self.name}")
        while not self._closing.is_set():
            self._hurried.clear()
            first, last, text = 1.0, 60.0, ""
            try:
                await timed("open", executor.open, executor.limits.call_timeout)
                return True
            except AuthenticationError as error:
                first, last, text = FIRST_PAUSE, LAST_PAUSE, pausing(error)
                self._report(LaneReport(self.name, paused=text))
            except (TransientError, OSError, asyncio.TimeoutError) as error:
                text = sentence(error)
                self._report(LaneReport(self.name, trouble=text, paused=""))
            complaints.say(text, asyncio.get_running_loop().time())
            delay = min(max(first, 2 * delay), last)
            await _until(self._closing, first)
            await _until(self._hurried, delay - first)
        return False

    async def _drive(self, executor: Executor) -> None:
        self._work = work = LaneWork(self.name, executor, self._report, self._world, self._store)
        opened = (executor.limits, executor.capabilities)
        self._report(LaneReport(self.name, opened=opened, paused=""))
        early, self._early = self._early, []
        for command in early:
            command(work)
        tasks = work.loops()
        closing = asyncio.ensure_future(self._closing.wait())
        await asyncio.wait({closing, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if not self._closing.is_set():
            # The plugin has cancelled what it was not given. Half a lane is worse than none,
            # which is noticed, and replaced.
            raise PluginContractError("The plugin has cancelled the lane's own tasks.")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await timed("close", executor.close, executor.limits.call_timeout)
        except BaseException as error:  # noqa: BLE001
            _LOG.warning("Executor %s did not close cleanly: %s", self.name, sentence(error))


async def _until(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, for so long at the most."""
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
