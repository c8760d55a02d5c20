"""The trigger of files: fires when so many files were created, changed, moved or deleted.

Two sources, one count. Live events come from watchdog and are counted against a tree of what is
known; after a restart the stored tree is compared with the directory. An event that a scan has
already seen is recognised by that tree, so nothing counts twice.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chelate.api import BaseTrigger, Check, ConfigError
from chelate.triggers.tree import CLOSED, NEW, SEEN, WRITTEN, Tree, differences, entry, scan
from chelate.triggers.watching import SharedObserver

__all__ = ["EVENT_NAMES", "DirTrigger"]

EVENT_NAMES = ("created", "deleted", "modified", "moved", "closed")
_OBSERVER = SharedObserver()
_POLL = 1.0
_STILL_THERE = 5.0


class DirTrigger(BaseTrigger):
    """Fires after every ``batch_size`` events in a directory, or of one file.

    Sub-directories that appear, go or are renamed count as files do; that a directory's content
    changed is not an event of its own. Several quick writes to one file may be one ``modified``.
    What happened while no kernel ran is counted at the next start, as far as the directory shows
    it: a file that came and went meanwhile left no trace.

    Args:
        dir_path: a directory or a file.
        event_names: some of ``created``, ``deleted``, ``modified``, ``moved`` and ``closed``
            (closed after writing).
        batch_size: events per fire.
        recursive: watch sub-directories, too.
        lattice_dispatch_id, dispatcher_addr, triggers_server_addr, max_concurrent, overlap: see
            :class:`BaseTrigger`.

    Attributes:
        n_changes: events since the last fire.
        event_handler: the watchdog handler that :meth:`attach_methods_to_handler` fills.
    """

    def __init__(
        self,
        dir_path: str | os.PathLike[str],
        event_names: str | Sequence[str],
        batch_size: int = 1,
        recursive: bool = False,
        lattice_dispatch_id: str | None = None,
        dispatcher_addr: str | None = None,
        triggers_server_addr: str | None = None,
        *,
        max_concurrent: int | None = None,
        overlap: str | None = None,
    ) -> None:
        super().__init__(
            lattice_dispatch_id,
            dispatcher_addr,
            triggers_server_addr,
            max_concurrent=max_concurrent,
            overlap=overlap,
        )
        self.dir_path = os.fspath(dir_path)
        self.event_names = [event_names] if isinstance(event_names, str) else event_names
        self.batch_size = batch_size
        self.recursive = recursive
        self.n_changes = 0
        self.event_handler: Any = None
        self._guard = threading.RLock()
        self._events: deque[tuple[str, str, str]] = deque()
        self._tree: Tree | None = None
        self._last: Any = None
        self._seq = 0
        self._live: tuple[str, bool] | None = None
        self._inode = 0
        self._touched = True

    def validate(self) -> None:
        names = self.event_names
        if isinstance(names, (set, frozenset, tuple)):
            names = self.event_names = sorted(names)
        if not isinstance(names, list) or not names:
            raise ConfigError("event_names must name at least one event, in a list.")
        for name in names:
            if name not in EVENT_NAMES:
                raise ConfigError(
                    f"There is no event {name!r} of a directory; event_names are "
                    f"{', '.join(EVENT_NAMES)}."
                )
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"batch_size={size!r} must be a whole number of at least 1.")
        if not isinstance(self.recursive, bool):
            raise ConfigError(f"recursive={self.recursive!r} must be True or False.")
        try:
            import watchdog  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "A DirTrigger needs watchdog. Try: pip install 'chelate[triggers]'"
            ) from error
        path = Path(self.dir_path).expanduser().absolute()
        self.dir_path = str(path)
        if not path.exists():
            raise ConfigError(
                f"dir_path={self.dir_path!r} does not exist; create it before the trigger is "
                "registered."
            )

    # -- looking --------------------------------------------------------------------------------

    def _place(self, cursor: Any) -> tuple[str, str | None]:
        """The directory to watch, and the one name in it that matters, if any.

        A file is watched through its directory, since editors replace files.
        """
        path = Path(os.path.realpath(self.dir_path))
        single = path.is_file() if cursor is None else cursor["single"]
        return (str(path.parent), path.name) if single else (str(path), None)

    def check(self, cursor: Any, now: float) -> Check:
        """``cursor`` holds what is known (``root``, ``single``, ``tree``) and counted."""
        with self._guard:
            root, only = self._place(cursor)
            try:
                inode = Path(root).stat().st_ino
            except OSError:
                self.release()  # when it is back, it is another directory
                raise
            same = self._tree is not None and cursor is not None and cursor["seq"] == self._seq
            if not same or self._inode != inode or (cursor and cursor["root"] != root):
                self.release()
                self._inode = inode
                self._watch(root)
                found = self._rescan(root, only, cursor)
            elif self._live is None:
                found = self._rescan(root, only, cursor)
            else:
                found = 0
            found += self._drain(root, only)
            fires, self.n_changes = divmod(
                (cursor or {"count": 0})["count"] + found, self.batch_size
            )
            due = _POLL if self._live is None else _STILL_THERE
            if cursor is not None and same and not self._touched:
                return Check(0, cursor, due)
            self._seq += 1
            self._touched = False
            tree = {path: list(item) for path, item in (self._tree or {}).items()}
            state = {"root": root, "single": only is not None, "tree": tree}
            return Check(fires, {**state, "count": self.n_changes, "seq": self._seq}, due)

    def _watch(self, root: str) -> None:
        self.attach_methods_to_handler()
        if _OBSERVER.watch(self.event_handler, root, self.recursive):
            self._live = (root, self.recursive)

    def _rescan(self, root: str, only: str | None, cursor: Any) -> int:
        """Compare with the directory; how many events that were."""
        before = self._tree if self._tree is not None else (cursor or {}).get("tree")
        self._tree = scan(root, only, self.recursive)
        if before is None:
            self._touched = True
            return 0
        events = list(differences(before, self._tree))
        self._touched = self._touched or bool(events)
        return sum(name in self.event_names for name in events)

    def _drain(self, root: str, only: str | None) -> int:
        """Count the events that have come; how many were asked for."""
        assert self._tree is not None
        found = 0
        while self._events:
            name, source, target = self._events.popleft()
            path = os.path.relpath(source, root)
            moved = os.path.relpath(target, root) if target else ""
            if path == "." and name in ("deleted", "moved"):
                self._inode = 0  # nothing comes from this watch any more: look anew
                self.wake()
            if path == "." or (only is not None and only not in (path, moved)):
                continue
            counted = self._note(self._tree, name, root, path, moved)
            self._touched = True
            found += counted is not None and counted in self.event_names
        return found

    def _note(self, tree: Tree, name: str, root: str, path: str, moved: str) -> str | None:
        """Bring the tree up to an event; the event's name, or None when a scan has seen it."""
        known = tree.get(path)
        now = entry(f"{root}/{path}", SEEN)
        stale = known is not None and known[3] == SEEN and known[:3] == now[:3]
        if name == "created":
            if known is not None:
                return None
            tree[path] = [now[0], 0, 0, NEW]
        elif name == "deleted":
            if known is None or (stale and now[0]):
                return None
            del tree[path]
        elif name == "moved":
            there = entry(f"{root}/{moved}", known[3] if known else SEEN)
            if known is None and moved in tree and tree[moved][:3] == there[:3]:
                return None
            tree.pop(path, None)
            tree[moved] = there
        elif name == "modified":
            if known is None or (known[3] != NEW and known[:3] == now[:3]):
                return None
            tree[path] = [*now[:3], WRITTEN]
        elif name == "closed":
            if known is None or stale:
                return None
            tree[path] = [*now[:3], CLOSED]
        return name

    # -- events ---------------------------------------------------------------------------------

    def attach_methods_to_handler(self) -> None:
        """Give ``event_handler`` the ``on_…`` methods that count ``event_names``, and those that
        keep the tree of what is known up to date."""
        from watchdog.events import FileSystemEventHandler

        handler: Any = FileSystemEventHandler()
        for name in EVENT_NAMES:
            setattr(handler, f"on_{name}", self._listener(name))
        handler.on_attrib = self._listener("modified")  # a new time of change, in newer watchdogs
        self.event_handler = handler

    def _listener(self, name: str) -> Any:
        def on_event(event: Any) -> None:
            if name == "modified" and event.is_directory:
                return
            source, target = os.fsdecode(event.src_path), os.fsdecode(event.dest_path or "")
            self._events.append((name, source, target))
            self.wake()

        return on_event

    def release(self) -> None:
        """Stop watching; the next look scans."""
        with self._guard:
            live, self._live = self._live, None
            if live is not None:
                _OBSERVER.unwatch(self.event_handler, *live)
            self._events.clear()
            self._tree = None
