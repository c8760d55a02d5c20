"""Finding jobs again: by their names in the queue, by the claims that they made on the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from chelate.api import JobHandle
from chelate.remote import JobHost, Sight, is_pack, store_id
from chelate_slurm.answers import Row
from chelate_slurm.controller import Controller
from chelate_slurm.naming import is_array, keys_of_script, parse_name
from chelate_slurm.submitting import handle_of
from chelate_slurm.verdicts import ACTIVE

__all__ = ["Lookup"]


class Lookup:
    """Looks up jobs of this user, whoever submitted them."""

    def __init__(self, executor: str, host: JobHost, controller: Controller) -> None:
        self._executor = executor
        self._host = host
        self._controller = controller
        self._arrays: dict[str, dict[str, str]] = {}  # array's job id → index → key

    async def find(self, keys: Sequence[str]) -> Mapping[str, Sequence[JobHandle]]:
        """See :meth:`SlurmExecutor.find`."""
        # The queue first: a job that ends between the two questions has its claim by then.
        rows = await self._controller.mine()
        named = await self._keyed(rows.values())
        packs = {key for key in named.values() if is_pack(key)}
        sights = await self._host.look([*keys, *packs])
        queued: dict[str, dict[str, Sequence[str]]] = {key: {} for key in keys}
        for number, name in named.items():
            pack = sights.get(name) if name in packs else None
            if pack is None:
                queued.get(name, {})[number] = (name,)
                continue
            for key in pack.tasks:
                if _may_run(pack, sights.get(key)):
                    queued.get(key, {})[number] = pack.tasks
        handles: dict[str, list[JobHandle]] = {}
        for key, jobs in queued.items():
            sight = sights.get(key) or Sight(key)
            numbers = sorted(jobs, key=_order)
            if (sight.claimed or sight.done) and sight.native:
                # The one that holds the claim is the job; the others are copies.
                numbers = [sight.native, *(one for one in numbers if one != sight.native)]
                jobs[sight.native] = sight.tasks or (key,)
            if numbers:
                handles[key] = [handle_of(jobs[number], number) for number in numbers]
        return handles

    async def forbid(self, keys: Sequence[str]) -> Mapping[str, JobHandle]:
        """See :meth:`SlurmExecutor.forbid`."""
        sights = await self._host.forbid(keys)
        return {
            key: handle_of(sight.tasks, sight.native)
            for key, sight in sights.items()
            if sight.claimed or sight.done
        }

    async def list_jobs(self, store: str) -> Sequence[JobHandle]:
        """See :meth:`SlurmExecutor.list_jobs`."""
        mark = store_id(store)
        rows = [
            row
            for row in (await self._controller.mine()).values()
            if row.state in ACTIVE and (parse_name(row.name) or ("",))[0] == mark
        ]
        named = await self._keyed(rows)
        packs = [key for key in named.values() if is_pack(key)]
        sights = await self._host.look(packs) if packs else {}
        carried = {key: sight.tasks for key, sight in sights.items() if sight.known}
        return [
            handle_of(carried.get(key, (key,)), number)
            for number, key in named.items()
            if key in carried or not is_pack(key)
        ]

    async def _keyed(self, rows: Iterable[Row]) -> dict[str, str]:
        """Keys by job id, of the rows that are ours."""
        named: dict[str, str] = {}
        for row in rows:
            parsed = parse_name(row.name)
            if parsed is None:
                continue
            if not is_array(parsed[1]):
                named[row.id] = parsed[1]
                continue
            base, _, index = row.id.partition("_")
            if base not in self._arrays:
                script = await self._controller.script(base)
                if not script:
                    continue
                self._arrays[base] = keys_of_script(script)
            if key := self._arrays[base].get(index):
                named[row.id] = key
        return named


def _may_run(pack: Sight, task: Sight | None) -> bool:
    """Whether a pack in the queue has a task, or may still claim it."""
    if task is None or not (task.claimed or task.forbidden):
        return not (pack.claimed or pack.forbidden)
    return task.claimed and task.job == pack.job


def _order(number: str) -> tuple[int, int]:
    base, _, index = number.partition("_")
    return int(base), int(index or 0)
