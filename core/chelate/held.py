"""Results that stayed with an executor, brought here for readers, with or without a kernel."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

from chelate.contracts.executor import Executor, JobHandle
from chelate.contracts.store import DispatchFilter
from chelate.errors import (
    BlobHeldError,
    BlobMissingError,
    ChelateError,
    TransientError,
)
from chelate.gateway import LocalGateway

__all__ = ["look_for_held", "read_value"]

T = TypeVar("T")

_TRIES = 4  # in a row that bring nothing, within some 7 s
_EVERY = 10_000_000


def read_value(gateway: LocalGateway, digest: str) -> bytes:
    """A stored value, brought here first when it stayed with its executor.

    Raises:
        BlobMissingError: it is gone, or cannot be had now; the message says from where.
        BlobDamagedError: it does not match its digest.
    """
    try:
        return gateway.store.read(digest)
    except BlobHeldError:
        _bring(gateway, digest)
    return gateway.store.read(digest)


def _bring(gateway: LocalGateway, digest: str) -> None:
    from chelate.kernel.lane_fetches import Wanted, bring, store_fetched

    store = gateway.store
    note = store.held([digest]).get(digest)
    if note is None:
        return  # it has come meanwhile
    wanted = Wanted.of(store, digest, note, gateway.settings.home)

    async def work(executor: Executor) -> None:
        async def call(of: Callable[[], Awaitable[Any]]) -> Any:
            return await asyncio.wait_for(of(), executor.limits.call_timeout)

        target = wanted.folder / digest
        tries, size = 0, 0
        while True:
            try:
                store_fetched(store, digest, await bring(executor, wanted, call))
                return
            except (TransientError, OSError, asyncio.TimeoutError):
                grown = target.stat().st_size if target.exists() else 0
                tries = 1 if grown > size else tries + 1
                size = grown
                if tries >= _TRIES:
                    raise
                await asyncio.sleep(0.5 * tries**2)

    try:
        _with_executor(gateway, str(note["executor"]), work)
    except BlobMissingError as error:
        store.unhold(digest, gone=True)
        raise BlobMissingError(f"{error} Redispatch the workflow that made it.") from error
    except (ChelateError, OSError, asyncio.TimeoutError) as error:
        raise BlobHeldError(
            f"The value {digest} ({note['size']:,} bytes) stayed with executor "
            f"{note['executor']}, and cannot be had from there now: {error} Nothing is lost; "
            "ask again when that works."
        ) from error


def _with_executor(
    gateway: LocalGateway, name: str, work: Callable[[Executor], Coroutine[Any, Any, T]]
) -> T:
    """Do some work with the executor that a lane of this name has."""
    from chelate.kernel.keys import lane_ref

    ref = lane_ref(name)
    options = {**gateway.settings.executors.get(ref.name, {}), **ref.options}
    made_by = gateway.plugins.executor(ref.name)

    async def main() -> T:
        executor = made_by(**options)
        await asyncio.wait_for(executor.open(), executor.limits.call_timeout)
        try:
            return await work(executor)
        finally:
            await executor.close()

    # The caller's thread may have an event loop that runs, as in a notebook.
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(main()))
        except BaseException as error:  # noqa: BLE001 - raised where it was asked for
            failed.append(error)

    thread = threading.Thread(target=run, name="chelate-fetch", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def look_for_held(gateway: LocalGateway, dispatch_id: str) -> None:
    """Before results of a dispatch and its sub-workflows are reused: find out which of those that
    stayed with their executors are gone. What cannot be asked now counts as there."""
    store = gateway.store
    everything = store.held(None)
    if not everything:
        return
    root = gateway.record(dispatch_id).root_id
    family = store.dispatches(DispatchFilter(root_id=root, limit=_EVERY))
    outputs = {
        row.output.digest
        for record in family
        for row in store.nodes(record.dispatch_id)
        if row.output is not None
    }
    groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for digest in outputs & everything.keys():
        note = everything[digest]
        groups[note["executor"], str(note["handle"]["data"].get("host"))][digest] = note
    for (name, _), notes in groups.items():
        handle = JobHandle.from_json(next(iter(notes.values()))["handle"])

        look = partial(_look, handle=handle, digests=list(notes))
        try:
            gone = _with_executor(gateway, name, look)
        except (ChelateError, OSError, asyncio.TimeoutError):
            continue  # the task that takes the value says so, if it comes to that
        for digest in gone:
            store.unhold(digest, gone=True)


async def _look(executor: Executor, handle: JobHandle, digests: list[str]) -> set[str]:
    return await executor.missing_held(handle, digests)
