"""What other kernels of this host have left of local tasks, or hold."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from chelate.api import JobHandle
from chelate.executors import process_tree
from chelate.executors.pool_folder import PoolFolder, boot_id, prefix

__all__ = ["Neighbours", "Owner", "place", "register"]

PATIENCE = 2.0  # seconds that the processes of a dead pool may take to end
_LOOK = 0.02  # seconds between two looks at processes that end


class Owner(Protocol):
    """An executor with a pool. Its kernel may leave it, when its thread hangs in something."""

    abandoned: bool

    def halt(self) -> None:
        """Start nothing more; called in any thread."""


_OWNERS: WeakValueDictionary[Path, Owner] = WeakValueDictionary()  # in this process


def register(pool: Path, owner: Owner) -> None:
    """Tell of a pool of this process."""
    _OWNERS[pool] = owner


def place(pool: Path) -> dict[str, str]:
    """Where a pool is, as its handles tell."""
    return {"host": os.uname().nodename, "boot": boot_id(), "pool": str(pool)}


class Neighbours:
    """The other pools, as one executor knows them."""

    def __init__(self) -> None:
        self._pools: dict[Path, PoolFolder] = {}
        self._killed: set[str] = set()  # in living pools

    async def settle(
        self, handles: Sequence[JobHandle], own: PoolFolder | None
    ) -> tuple[set[str], list[str]]:
        """End what dead kernels left of these jobs, so that absent means gone.

        Gives the keys of those of which it is known, and why it is not known of others.
        """
        covered: set[str] = set()
        errors: list[str] = []
        groups: dict[str, list[JobHandle]] = {}
        for handle in handles:
            groups.setdefault(handle.data.get("pool", ""), []).append(handle)
        for pool, group in groups.items():
            data, folder = group[0].data, PoolFolder(Path(pool))
            if own is not None and folder.path == own.path:
                covered.update(handle.key for handle in group)  # released, so it had ended
            elif data.get("host") != os.uname().nodename:
                errors.append(f"Local tasks of host {data.get('host')} cannot be seen from here.")
            elif data.get("boot") != boot_id():
                covered.update(handle.key for handle in group)
            else:
                try:
                    gone = await self._settle_here(folder, group)
                except OSError as error:
                    errors.append(f"What the pool {folder.path} holds cannot be told: {error}.")
                    continue
                covered.update(gone)
                if len(gone) < len(group):
                    errors.append(
                        f"Process {folder.owner}, a kernel that still lives on this host, holds "
                        "some of the tasks. If it is stopped, let it go on or end it."
                    )
        return covered, errors

    async def _settle_here(self, folder: PoolFolder, group: Sequence[JobHandle]) -> set[str]:
        keys = [key for handle in group for key in handle.tasks]
        if not folder.here:  # of a container before its restart
            await _end_leftovers([], keys)
        elif _is_dead(folder) or not (folder.path.is_dir() or process_tree.of_pools([folder.path])):
            await _end_leftovers([folder], keys)
        else:
            ended = await _end_leftovers([], keys)
            self._killed |= ended
            if ended:
                with suppress(OSError):  # for other kernels, if there are any
                    folder.write_off(ended)
            ended = self._killed | folder.written_off()
            return {handle.key for handle in group if not ended.isdisjoint(handle.tasks)}
        return {handle.key for handle in group}

    async def look_up(self, keys: Sequence[str], own: PoolFolder | None) -> dict[str, Path]:
        """Which pools of living kernels hold these tasks. All others are over, and none begins."""
        pools = {pool.path: pool for pool in await asyncio.to_thread(_other_pools)}
        if own is not None:
            pools.pop(own.path, None)
        self._pools = {path: self._pools.get(path, pool) for path, pool in pools.items()}
        found: dict[str, Path] = {}
        dead = []
        for path, pool in self._pools.items():
            if _is_dead(pool):
                dead.append(pool)
                continue
            with suppress(FileNotFoundError):
                found.update(dict.fromkeys(pool.forbid(keys), path))
        await _end_leftovers(dead, [key for key in keys if key not in found])
        return found


def _is_dead(pool: PoolFolder) -> bool:
    """Whether nobody can start anything in this pool any more."""
    owner = _OWNERS.get(pool.path)
    if owner is not None and owner.abandoned:
        owner.halt()
        return True
    return not pool.owner_lives


def _other_pools() -> list[PoolFolder]:
    """Every pool of this user and host that has a process, or a folder where this process makes
    its own; also one's own."""
    paths = set(Path(tempfile.gettempdir()).glob(f"{prefix()}*"))
    paths.update(path for path in process_tree.pools() if path.name.startswith(prefix()))
    return [PoolFolder(path) for path in sorted(paths) if _is_mine(path)]


def _is_mine(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except FileNotFoundError:
        return True  # a process of it is
    except OSError:
        return False


async def _end_leftovers(dead: Collection[PoolFolder], keys: Sequence[str]) -> set[str]:
    """Kill, and see gone, all processes of these tasks and of dead pools; the keys found.

    For a process of a dead pool that does not end, none of the tasks is waited for: it is to be
    killed, so it begins nothing.
    """
    folders = [pool.path for pool in dead]
    found: set[str] = set()
    deadline = time.monotonic() + PATIENCE
    while True:
        held = _halt(keys)
        found.update(held)
        left = process_tree.of_pools(folders)
        process_tree.send(set().union(*held.values(), left), signal.SIGKILL)
        if not held and not left:
            break
        if not held and time.monotonic() > deadline:
            return found
        await asyncio.sleep(_LOOK)
    for folder in folders:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return found


def _halt(keys: Sequence[str]) -> dict[str, set[int]]:
    """Stop the processes of these tasks, by key. What is in another task by now goes on."""
    seen = process_tree.holders(keys)
    if not seen:
        return {}
    pids = set().union(*seen.values())
    process_tree.send(pids, signal.SIGSTOP)
    held = process_tree.holders(keys)
    process_tree.send(pids.difference(*held.values()), signal.SIGCONT)
    return held
