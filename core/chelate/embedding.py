"""The kernel that lives in the user's own process: made when first needed, let go at exit.

A forked child gets a gateway of its own. At interpreter exit the process waits for what its
kernel still runs, with one line that says so; Ctrl-C detaches.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from chelate.contracts.store import DispatchFilter
from chelate.errors import StoreError
from chelate.gateway import LocalGateway
from chelate.model import DispatchRecord, Status
from chelate.settings import Settings

__all__ = ["configure", "current", "detaching", "settings", "shutdown", "unfinished"]

_DETACHED = (
    "Detached. Jobs on other machines go on; the next process on this home, or "
    "'chelate resume', takes the dispatches up again."
)
# These start neither threads nor processes once the interpreter has begun to end.
_TOO_LATE = (3, 12) <= sys.version_info < (3, 12, 3)
_lock = threading.RLock()
_gateways: dict[int, LocalGateway] = {}
_overrides: dict[str, Any] = {}
_registered = False


def settings() -> Settings:
    """The settings that the next gateway gets: file, environment, then :func:`configure`."""
    return Settings.load(overrides=_overrides)


def configure(**overrides: Any) -> Settings:
    """Change settings for this process; a kernel that already runs is shut down first.

    Raises:
        ConfigError: a name or value is wrong; then nothing changes.
    """
    merged = {**_overrides, **overrides}
    loaded = Settings.load(overrides=merged)
    with _lock:
        shutdown()
        _overrides.clear()
        _overrides.update(merged)
    return loaded


def current() -> LocalGateway:
    """This process's gateway."""
    global _registered
    with _lock:
        gateway = _gateways.get(os.getpid())
        if gateway is None:
            gateway = _gateways[os.getpid()] = LocalGateway(settings())
            if not _registered:
                _registered = True
                _at_exit(_leave)
        return gateway


def shutdown(timeout: float = 10.0) -> None:
    """Stop this process's kernel without waiting for its dispatches; the next one takes over."""
    with _lock:
        gateway = _gateways.pop(os.getpid(), None)
    if gateway is not None:
        gateway.close(timeout)


def _at_exit(function: Callable[[], None]) -> None:
    """Run ``function`` while threads and subprocesses may still be started.

    Since Python 3.12 plain ``atexit`` callbacks may come too late for that; the standard
    library's own executors use this registration for the same reason.
    """
    register = getattr(threading, "_register_atexit", None)
    if register is None:
        atexit.register(function)
    else:
        register(function)


def _leave() -> None:
    gateway = _gateways.get(os.getpid())
    if gateway is None:
        return
    try:
        gateway.rest_triggers()  # or there would be no end of what is waited for
        if gateway.settings.exit_wait and not gateway.detached:
            (_name_rest if _TOO_LATE else _wait_for_rest)(gateway)
    except KeyboardInterrupt:
        _say(_DETACHED)
    except StoreError as error:
        _say(f"{error} {_DETACHED}")
    finally:
        with suppress(ValueError):  # only the main thread may; another gets no interrupt either
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        shutdown()


@contextmanager
def detaching() -> Iterator[None]:
    """Around a wait: Ctrl-C says what becomes of the dispatch, and needs no second Ctrl-C at
    exit. The KeyboardInterrupt goes on; a script that does not catch it ends without a traceback.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        current().detached = True
        _say(_DETACHED)
        _end_quietly(interrupt)
        raise


def _end_quietly(interrupt: KeyboardInterrupt) -> None:
    hook = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if error is not interrupt:
            hook(kind, error, trace)

    sys.excepthook = excepthook


def _wait_for_rest(gateway: LocalGateway) -> None:
    said = False
    while waiting := _rest(gateway):
        if not said:
            said = True
            _say(f"Waiting for {_names(waiting)} to end; Ctrl-C detaches.")
        gateway.wait(waiting[0].dispatch_id)


def _name_rest(gateway: LocalGateway) -> None:
    if waiting := _rest(gateway):
        python = ".".join(map(str, sys.version_info[:3]))
        _say(
            f"Python {python} cannot wait at its exit (3.12.3 can): {_names(waiting)} goes on with"
            " the next process on this home, or by `chelate resume`. To wait, call"
            " ct.wait(dispatch_id)."
        )


def _rest(gateway: LocalGateway) -> list[DispatchRecord]:
    return [record for record in unfinished(gateway) if record.parent_id is None]


def _names(records: list[DispatchRecord]) -> str:
    names = ", ".join(f"{record.name} ({record.dispatch_id})" for record in records[:3])
    return names + (f" and {len(records) - 3} more" if len(records) > 3 else "")


def unfinished(gateway: LocalGateway) -> list[DispatchRecord]:
    """Dispatches that this process's kernel is running."""
    if not gateway.started:
        return []
    alive = (Status.NEW_OBJ, Status.RUNNING, Status.CANCELLING)
    query = DispatchFilter(status=alive, limit=1000)
    mine = set(gateway.engine.running())
    return [record for record in gateway.records(query) if record.dispatch_id in mine]


def _say(line: str) -> None:
    if sys.stderr is not None and not sys.stderr.closed:
        sys.stderr.write(f"chelate: {line}\n")
        sys.stderr.flush()


def _after_fork() -> None:
    """The child has none of the parent's threads, so nothing of its kernel may be used."""
    global _lock
    _lock = threading.RLock()
    _gateways.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
