"""From what somebody typed to the dispatch or task that is meant."""

from __future__ import annotations

import uuid

from chelate.contracts.store import DispatchFilter
from chelate.errors import DispatchNotFoundError, InvalidDispatchIdError, TaskNotFoundError
from chelate.gateway import LocalGateway
from chelate.graph import Graph
from chelate.model import DispatchRecord
from chelate.show.marks import plain

__all__ = ["find_dispatch", "find_task", "unfinished_here"]

_PREFIX = 4
_PAGE = 1000


def find_dispatch(gateway: LocalGateway, text: str) -> DispatchRecord:
    """The dispatch of an id or of the beginning of one."""
    prefix = text.strip().lower()
    try:
        return gateway.record(str(uuid.UUID(prefix)))
    except ValueError:
        pass
    if len(prefix) < _PREFIX or prefix.strip("0123456789abcdef-"):
        raise InvalidDispatchIdError(
            f"{text!r:.80} is not a dispatch id, nor the first {_PREFIX} characters or more of "
            "one; 'chelate ls' lists them."
        )
    found: list[DispatchRecord] = []
    offset = 0
    while True:
        query = DispatchFilter(roots_only=False, limit=_PAGE, offset=offset)
        page = gateway.records(query)
        found += [record for record in page if record.dispatch_id.startswith(prefix)]
        offset += _PAGE
        if len(page) < _PAGE:
            break
    if len(found) == 1:
        return found[0]
    if not found:
        raise DispatchNotFoundError(
            f"No dispatch begins with {prefix!r}; 'chelate ls --all' lists them."
        )
    some = ", ".join(record.dispatch_id for record in found[:3])
    raise InvalidDispatchIdError(
        f"{len(found)} dispatches begin with {prefix!r} ({some}{', …' if len(found) > 3 else ''}); "
        "give more characters."
    )


def find_task(whole: Graph, text: str) -> tuple[int, str]:
    """Id and name of the one task that is meant."""
    tasks = {node.id: node.name for node in whole.tasks()}
    found = [node_id for node_id, name in tasks.items() if name == text]
    if not found and text.isdecimal() and int(text) in tasks:
        found = [int(text)]
    if len(found) == 1:
        return found[0], tasks[found[0]]
    if found:
        some = ", ".join(map(str, found[:20])) + (", …" if len(found) > 20 else "")
        raise TaskNotFoundError(f"{len(found)} tasks are named {text!r}; give an id: {some}.")
    some = ", ".join(f"{node_id} ({name})" for node_id, name in list(tasks.items())[:20])
    more = ", …" if len(tasks) > 20 else ""
    raise TaskNotFoundError(f"There is no task {text!r}; its tasks: {plain(some) or 'none'}{more}.")


def unfinished_here(gateway: LocalGateway, seen: set[str]) -> list[DispatchRecord]:
    """Dispatches, sub-workflows aside, that nobody else runs and that have not ended."""
    # Orphans are listed before the kernel starts, which adopts them at a moment of its own.
    found = [*gateway.store.orphans(), *gateway.engine.running()]
    records = [gateway.record(dispatch_id) for dispatch_id in dict.fromkeys(found)]
    return [
        record
        for record in records
        if record.parent_id is None and not record.held and record.dispatch_id not in seen
    ]
