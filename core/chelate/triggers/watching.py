"""One watchdog observer for all directories that are watched in this process.

watchdog gives each directory a thread, so only so many are watched live; the others are looked
at every second by the poller that every trigger has anyway.
"""

from __future__ import annotations

import os
import threading
from typing import Any

__all__ = ["SharedObserver"]

_MOST_DIRECTORIES = 16


class SharedObserver:
    """Starts with its first watch and stops with its last. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._observer: Any = None
        self._handlers: dict[tuple[str, bool], tuple[Any, set[Any]]] = {}
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """A forked child has none of the threads."""
        self._guard = threading.Lock()
        self._observer = None
        self._handlers = {}

    def watch(self, handler: Any, root: str, recursive: bool) -> bool:
        """Send events below ``root`` to ``handler``; False when it cannot be watched live."""
        from watchdog.observers import Observer

        key = (root, recursive)
        with self._guard:
            if key not in self._handlers and len(self._handlers) >= _MOST_DIRECTORIES:
                return False
            try:
                if self._observer is None:
                    self._observer = Observer()
                    self._observer.daemon = True
                    self._observer.start()
                watch = self._observer.schedule(handler, root, recursive=recursive)
            except OSError:  # the system's limit of watches is reached
                self._stop_if_idle()
                return False
            self._handlers.setdefault(key, (watch, set()))[1].add(handler)
            return True

    def unwatch(self, handler: Any, root: str, recursive: bool) -> None:
        """The inverse of :meth:`watch`."""
        key = (root, recursive)
        with self._guard:
            watch, handlers = self._handlers.get(key, (None, set()))
            if handler not in handlers or self._observer is None:
                return
            handlers.discard(handler)
            if handlers:
                self._observer.remove_handler_for_watch(handler, watch)
                return
            del self._handlers[key]
            self._observer.unschedule(watch)
            self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        if not self._handlers and self._observer is not None:
            self._observer.stop()
            self._observer = None
