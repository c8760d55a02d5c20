"""How a lane calls its plugin: under a deadline, and contained whatever it raises."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from chelate.contracts.executor import Executor
from chelate.errors import AuthenticationError, PluginContractError, TransientError
from chelate.kernel.lanes.report import FIRST_PAUSE, LAST_PAUSE, Complaints, LaneReport, sentence
from chelate.kernel.world import World

__all__ = ["LaneCalls", "contained", "timed"]

_LOG = logging.getLogger("chelate.lanes")
_LONGEST = 86400.0  # seconds
_UNWINDING = 5.0  # seconds that a cancelled call has to clean up behind itself


async def contained(call: Callable[[], Any], what: str) -> Any:
    """Await a plugin's coroutine; what would end the lane's event loop becomes an ordinary error.

    Raises:
        PluginContractError: the plugin returned no awaitable, or wants to end the process.
    """
    try:
        awaitable = call()
        if not inspect.isawaitable(awaitable):
            raise PluginContractError(f"{what}() must be a coroutine: write 'async def {what}'.")
        return await awaitable
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise PluginContractError(f"{what}() raised {error!r}.") from error


async def timed(
    what: str,
    call: Callable[[], Any],
    limit: float,
    heard: Callable[[], float] | None = None,
) -> Any:
    """Await one call for ``limit`` seconds; a plugin that will not be cancelled is left behind.

    ``heard`` gives the moment from which the limit counts, where that is not the start.

    Raises:
        TimeoutError: no answer in time.
        PluginContractError: as of :func:`contained`, or the call cancelled itself.
    """
    now = asyncio.get_running_loop().time
    start = now()
    task = asyncio.ensure_future(contained(call, what))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        while not task.done():
            left = (heard() if heard else start) + limit - now()
            if left <= 0:
                task.cancel()
                await asyncio.wait({task}, timeout=min(limit, _UNWINDING))
                raise TimeoutError(f"{what}() did not answer within {limit:g} s.")
            await asyncio.wait({task}, timeout=left)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=min(limit, _UNWINDING))  # it cleans up behind itself
        raise
    if task.cancelled():
        raise PluginContractError(f"{what}() was cancelled from within.")
    return task.result()


class LaneCalls:
    """What the parts of a lane share: the executor, its deadlines, and a way to wait for work."""

    def __init__(
        self,
        name: str,
        executor: Executor,
        report: Callable[[LaneReport], None],
        world: World,
    ) -> None:
        self.name = name
        self.world = world
        self.executor = executor
        self.report = report
        self.now = asyncio.get_running_loop().time  # monotonic seconds
        self.limits = executor.limits
        self.capabilities = executor.capabilities
        self.changed = 0.0
        self.closing = False
        self.beats = 0  # grows while the lane's thread answers
        self.complaints = Complaints(_LOG, f"Executor {name}")
        self._troubled = False
        self._waiters: dict[asyncio.Future[None], None] = {}  # in order

    # -- calling --------------------------------------------------------------------------------

    async def timed(self, what: str, call: Callable[[], Any]) -> Any:
        """Await one call under the deadline.

        Raises:
            TimeoutError: no answer within the executor's call timeout.
        """
        return await timed(what, call, self.limits.call_timeout)

    async def stream(self, what: str, call: Callable[[], Any], take: Callable[[Any], None]) -> None:
        """Give each item of the plugin's async iterator to ``take``; each has the deadline of a
        call. Nothing is taken any more once this has returned or raised.

        Raises:
            TimeoutError: no item, and no end, within the executor's call timeout.
            PluginContractError: it is no async iterator, or as of :func:`contained`.
        """
        heard, over = self.now(), False

        async def pump() -> None:
            nonlocal heard
            items = call()
            if not hasattr(items, "__aiter__"):
                if inspect.iscoroutine(items):
                    items.close()
                raise PluginContractError(f"{what}() must yield: write 'async def' with 'yield'.")
            try:
                async for item in items:
                    if over:
                        return
                    take(item)
                    heard = self.now()
            finally:
                if hasattr(items, "aclose"):
                    await items.aclose()

        try:
            await timed(what, pump, self.limits.call_timeout, lambda: heard)
        finally:
            over = True

    async def heartbeat(self) -> None:
        """Show that the lane's thread answers."""
        await asyncio.sleep(min(1.0, self.limits.call_timeout / 2))
        self.beats += 1

    def complain(self, text: str, error: BaseException | None = None) -> None:
        """Log what fails, now and then for as long as it does."""
        self.complaints.say(text, self.now(), error)

    # -- waiting --------------------------------------------------------------------------------

    def wake(self) -> None:
        """A command has arrived."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def pause(self, seconds: float | None) -> None:
        """Wait until a command arrives or the time is over."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await asyncio.wait_for(waiter, seconds)
        except asyncio.TimeoutError:
            pass
        finally:
            del self._waiters[waiter]

    def trouble(self, text: str, error: BaseException | None = None) -> None:
        """The executor cannot do its work at present, and why."""
        self._troubled = True
        told = None if isinstance(error, TransientError) else error  # it says all there is to say
        self.complain(f"It has trouble, and its jobs stay as they are meanwhile: {text}", told)
        self.report(LaneReport(self.name, trouble=text))

    def fine(self) -> None:
        """The executor does its work; any trouble is over."""
        if self._troubled:
            self._troubled = False
            self.report(LaneReport(self.name, trouble=""))

    def later(self, report: LaneReport, seconds: float) -> None:
        """Hold a report back, so that the same jobs do not come straight back."""
        if report.events:
            sane = isinstance(seconds, (int, float)) and 0 <= seconds < _LONGEST
            delay = seconds if sane else 1.0  # a plugin may take it from a header as it is
            asyncio.get_running_loop().call_later(delay, self.report, report)

    def begin_close(self) -> None:
        """No new calls."""
        self.closing = True
        self.wake()

    async def forever(self, part: Callable[[], Any]) -> None:
        """Keep one part of the lane alive whatever the plugin raises; it ends when cancelled."""
        delay = 0.0
        while not self.closing:
            first, last = 0.1, 10.0
            try:
                await part()
                delay = 0.0
                continue
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything
                text = sentence(error)
                _LOG.info("Executor %s", self.name, exc_info=error)
                if isinstance(error, AuthenticationError):
                    first, last = FIRST_PAUSE, LAST_PAUSE
            self.trouble(text)
            delay = min(max(first, 2 * delay), last)
            await asyncio.sleep(delay)
