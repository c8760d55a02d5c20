"""Jobs of this store that nobody waits for: listed now and then, and ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from chelate.contracts.executor import JobHandle
from chelate.errors import PluginContractError
from chelate.kernel.keys import split_key
from chelate.kernel.lanes.calls import LaneCalls
from chelate.kernel.lanes.checks import checked_handle
from chelate.kernel.lanes.report import LaneReport, sentence

__all__ = ["Strays"]

_EVERY = 60.0  # seconds


class Strays:
    """Lists the jobs of a store when the lane opens and every minute; the engine says which of
    them belong to no live attempt.

    Args:
        calls: the way to the executor.
        store: the store's id, with which its jobs are marked.
    """

    def __init__(self, calls: LaneCalls, store: str) -> None:
        self._calls = calls
        self._store = store
        self._due = 0.0
        self._found: list[JobHandle] = []
        self._tries: Counter[str] = Counter()

    async def part(self) -> None:
        """One listing, or what came of one."""
        calls = self._calls
        handles, self._found = self._found, []
        for force in (False, True):
            await self._ask([h for h in handles if (self._tries[_name(h)] > 0) is force], force)
        self._tries.update(map(_name, handles))
        if self._found:
            return  # meanwhile
        now = calls.now()
        if now < self._due or not calls.capabilities.listing:
            await calls.pause(self._due - now if calls.capabilities.listing else None)
            return
        self._due = now + _EVERY
        listed = await calls.timed("list_jobs", lambda: calls.executor.list_jobs(self._store))
        if not isinstance(listed, Sequence):
            raise PluginContractError(f"list_jobs() returned {listed!r:.200}, not a list.")
        for handle in listed:
            checked_handle(handle, getattr(handle, "key", ""))
            for key in handle.tasks or (handle.key,):
                split_key(key)
        if listed:
            calls.report(LaneReport(calls.name, listed=list(listed)))

    def stop(self, handles: Sequence[JobHandle]) -> None:
        """Ask these to stop; those that come again, without mercy."""
        self._found += handles
        self._calls.wake()

    async def _ask(self, handles: list[JobHandle], force: bool) -> None:
        calls = self._calls
        if not handles:
            return
        try:
            await calls.timed("cancel", lambda: calls.executor.cancel(handles, force=force))
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            calls.complain(f"jobs that belong to no task go on: {sentence(error)}")


def _name(handle: JobHandle) -> str:
    return handle.native_id or handle.key
