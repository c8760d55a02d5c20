"""Results that stayed with an executor, brought here for readers, with or without a kernel."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from chelate.contracts.executor import HOLD_FROM, Executor, JobHandle
from chelate.contracts.store import DispatchFilter
from chelate.errors import (
    BlobDamagedError,
    BlobHeldError,
    BlobMissingError,
    ChelateError,
    ExecutorError,
    TransientError,
)
from chelate.gateway import LocalGateway
from chelate.model import ValueRef

__all__ = ["NodeResult", "away", "look_for_held", "read_value"]

T = TypeVar("T")

_TRIES = 4  # in a row that bring nothing, within some 7 s
_EVERY = 10_000_000
_LOOK = 60.0  # seconds for which a redispatch waits for a host at most
_SAID = (ChelateError, OSError)


class _Away:
    """In place of a value that is not here."""

    def __init__(self, text: str, load: Callable[[], Any]) -> None:
        self._text = text
        self.load = load

    def __repr__(self) -> str:
        return f"<{self._text}>"


def away(gateway: LocalGateway, ref: ValueRef | None, load: Callable[[str], Any]) -> _Away | None:
    """What stands for a large value that stays with its executor or is gone; None when it is
    here."""
    if ref is None or ref.size < HOLD_FROM:
        return None
    try:
        with gateway.store.stream(ref.digest):
            return None
    except BlobMissingError as error:
        return _Away(str(error), partial(load, ref.digest))


class NodeResult(dict[str, Any]):
    """A node's fields. An output that is not here comes (or fails) when it is read, so that
    looking at times and states moves no gigabytes; ``repr`` does not read it."""

    def _read(self) -> NodeResult:
        found = super().get("output")
        if isinstance(found, _Away):
            self["output"] = found.load()
        return self

    def __getitem__(self, key: str) -> Any:
        return dict.__getitem__(self._read() if key == "output" else self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """The field."""
        return dict.get(self._read() if key == "output" else self, key, default)

    def __iter__(self) -> Iterator[str]:
        # With an iterator of its own, dict(...) and {**...} ask __getitem__ for the values.
        return super().__iter__()

    def __repr__(self) -> str:
        return super().__repr__()  # said again, or pprint would read all items

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def __eq__(self, other: object) -> bool:
        return dict(self) == other

    def __ne__(self, other: object) -> bool:
        return dict(self) != other

    __hash__ = None

    def items(self) -> Any:
        """All fields."""
        return dict.items(self._read())

    def values(self) -> Any:
        """All values."""
        return dict.values(self._read())

    def copy(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(self)

    def pop(self, key: str, *default: Any) -> Any:
        """The field, taken out."""
        return dict.pop(self._read() if key == "output" else self, key, *default)


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
    from chelate.kernel.lanes.fetches import Wanted, bring, store_fetched

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
    except (BlobDamagedError, BlobMissingError) as error:
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
    from chelate.kernel.lanes.report import sentence

    ref = lane_ref(name)
    options = {**gateway.settings.executors.get(ref.name, {}), **ref.options}
    make = gateway.plugins.executor_with(ref.name, options)

    async def main() -> T:
        executor = make()
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
    for error in failed:
        if isinstance(error, Exception) and not isinstance(error, (*_SAID, asyncio.TimeoutError)):
            raise ExecutorError(f"Executor {name}: {sentence(error)}") from error
        raise error
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
    limit = min(_LOOK, executor.limits.call_timeout)
    return await asyncio.wait_for(executor.missing_held(handle, digests), limit)
