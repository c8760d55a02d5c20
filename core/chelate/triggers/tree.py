"""A directory as data: what is in it, and what two looks at it differ in."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

__all__ = ["CLOSED", "NEW", "SEEN", "WRITTEN", "Entry", "Tree", "differences", "entry", "scan"]

# What is known of a file besides its number, size and time of change: it was seen in a scan;
# an event said that it is new; it was written to and is not closed; it was closed.
SEEN, NEW, WRITTEN, CLOSED = "s", "n", "w", "c"

Entry = list[Any]  # [inode, size, mtime in ns (0 for directories), SEEN | NEW | WRITTEN | CLOSED]
Tree = dict[str, Entry]


def _entry(found: os.stat_result, mark: str) -> Entry:
    if stat.S_ISDIR(found.st_mode):
        return [found.st_ino, 0, 0, mark]
    return [found.st_ino, found.st_size, found.st_mtime_ns, mark]


def entry(path: str, mark: str) -> Entry:
    """What is at ``path`` now; zeros when there is nothing (any more)."""
    try:
        return _entry(os.lstat(path), mark)
    except OSError:
        return [0, 0, 0, mark]


def scan(root: str, only: str | None, recursive: bool) -> Tree:
    """Everything below ``root``, itself excluded, by path relative to it.

    Args:
        only: the one name to look for, or None for all.
        recursive: sub-directories' contents as well.

    Raises:
        OSError: there is no such directory, or it cannot be read.
    """
    from watchdog.utils.dirsnapshot import DirectorySnapshot

    if only is not None:
        found_there = entry(f"{root}/{only}", SEEN)
        return {only: found_there} if found_there[0] else {}
    with os.scandir(root):  # raises what DirectorySnapshot passes over
        pass
    found = DirectorySnapshot(root, recursive=recursive, stat=os.lstat)
    return {
        os.path.relpath(os.fsdecode(path), root): _entry(found.stat_info(path), SEEN)
        for path in found.paths
        if os.fsdecode(path) != root
    }


def differences(old: Tree, new: Tree) -> Iterator[str]:
    """The events between two looks: ``created``, ``deleted``, ``moved``, ``modified``, ``closed``.

    A file that was written is modified and, as far as a scan can tell, closed. A rename keeps
    inode, size and time of change.
    """
    lost = {tuple(item[:3]): path for path, item in old.items() if path not in new and item[0]}
    moved = set()
    for path, item in new.items():
        before = old.get(path)
        if before is None:
            source = lost.pop(tuple(item[:3]), None)
            if source is not None:
                moved.add(source)
                yield "moved"
            else:
                yield "created"
                if item[1]:
                    yield "modified"
                if item[2]:
                    yield "closed"
        elif before[0] and before[0] != item[0]:
            yield from ("deleted", "created")
            if item[2]:
                yield from ("modified", "closed")
        elif before[:3] != item[:3]:
            yield from ("modified", "closed")
        elif before[3] == NEW and item[2]:
            if item[1]:
                yield "modified"
            yield "closed"
        elif before[3] == WRITTEN:
            yield "closed"
    for path in old:
        if path not in new and path not in moved:
            yield "deleted"
