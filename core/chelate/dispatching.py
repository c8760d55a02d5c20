"""What users call: dispatch, get_result, wait, cancel, list_dispatches."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from chelate.client.lattice import Lattice
from chelate.client.options import Options
from chelate.client.signature import Parameters
from chelate.contracts.store import DispatchFilter
from chelate.embedding import current, detaching
from chelate.errors import ChelateError, ConfigError, UserError
from chelate.gateway import LocalGateway
from chelate.held import look_for_held
from chelate.model import ExecutorRef, Retry, Status
from chelate.result import Result
from chelate.targets import as_targets, check_dispatch_id

__all__ = [
    "Submission",
    "cancel",
    "dispatch",
    "dispatch_sync",
    "get_result",
    "list_dispatches",
    "wait",
]


def _gateway(dispatcher_addr: str | None) -> LocalGateway:
    if dispatcher_addr is not None:
        raise ConfigError(
            f"dispatcher_addr={dispatcher_addr!r}: this version runs embedded, without a server; "
            "leave dispatcher_addr out, or share a store with store='postgresql://…'."
        )
    return current()


def dispatch(
    lattice: Lattice,
    dispatcher_addr: str | None = None,
    *,
    disable_run: bool = False,
    reuse_from: str | None = None,
) -> Submission:
    """A function that builds the lattice with its arguments, stores it durably, runs it, and
    returns the dispatch id.

    Args:
        lattice: a function decorated with ``@ct.lattice``.
        dispatcher_addr: reserved for a server.
        disable_run: store it only; ``ct.redispatch`` or a trigger starts it later.
        reuse_from: id of an earlier dispatch whose results are taken over where code and inputs
            are equal, or ``"latest"`` for the newest one of this lattice's name.

    Raises (from the returned function):
        GraphError: the body does what a graph cannot hold.
        BuildError: the body raised.
        SerializationError: a function or argument cannot be pickled.
        PluginNotFoundError: an executor is not installed; says what to install.
        StoreError: it could not be stored; then nothing runs.
    """
    if not isinstance(lattice, Lattice):
        raise UserError(
            f"ct.dispatch takes a lattice, not {type(lattice).__name__}; "
            "decorate the workflow function with @ct.lattice."
        )
    gateway = _gateway(dispatcher_addr)
    source = None if reuse_from is None else gateway.reuse_source(lattice.name, reuse_from)
    if source is not None:
        source = _built(gateway, source)
        look_for_held(gateway, source)
    return Submission(gateway, lattice, disable_run, source)


def _built(gateway: LocalGateway, dispatch_id: str) -> str:
    """The dispatch itself or, when its graph has not been built, the one that it came from."""
    record = gateway.record(dispatch_id)
    if record.redispatched_from is None:
        return dispatch_id  # a graph is built where the workflow is written
    from chelate.explaining import stored_graph

    try:
        return stored_graph(gateway, record, gateway.graph(record))[0]
    except ChelateError:
        return dispatch_id  # the plan and explain say what is wrong with it


class Submission:
    """What ``ct.dispatch(...)`` returns; see there."""

    def __init__(
        self, gateway: LocalGateway, lattice: Lattice, hold: bool, reuse_from: str | None
    ) -> None:
        self._gateway = gateway
        self._lattice = lattice
        self._hold = hold
        self._reuse_from = reuse_from

    def __call__(self, /, *args: Any, **kwargs: Any) -> str:
        """Build, store and run; the dispatch id."""
        bundle = self._lattice.build(args, kwargs, defaults=self._defaults())
        accept = partial(self._gateway.accept, bundle, options=self._options())
        triggers = self._lattice.triggers
        if not triggers:
            return accept(held=self._hold)
        from chelate.triggering import dispatch_with

        dispatch_id = str(uuid.uuid4())
        held = partial(accept, held=True, dispatch_id=dispatch_id)
        return dispatch_with(self._gateway, triggers, held, dispatch_id)

    def plan(self, /, *args: Any, **kwargs: Any) -> Any:
        """What would be reused, run, or decided on the way, and why; nothing is run."""
        from chelate.explaining import plan_dispatch

        bundle = self._lattice.build(args, kwargs, defaults=self._defaults())
        assert bundle.graph is not None
        return plan_dispatch(self._gateway, bundle.graph, self._options(), bundle.blobs)

    def _defaults(self) -> dict[str, Any]:
        """What holds where neither electron nor lattice says anything."""
        settings = self._gateway.settings
        losses = settings.infrastructure_retries
        retries = Retry(infrastructure=losses) if losses != Retry().losses else None
        return Options(ExecutorRef(settings.default_executor), retries=retries).to_json()

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "defaults": self._lattice.effective(self._defaults()),
            "python": ".".join(map(str, sys.version_info[:3])),
        }
        signature = Parameters(self._lattice.workflow_function, self._lattice.name).to_json()
        if signature is not None:
            options["signature"] = signature
        if self._reuse_from is not None:
            options["reuse_from"] = self._reuse_from
        return options


def dispatch_sync(lattice: Lattice, dispatcher_addr: str | None = None) -> Callable[..., Result]:
    """As :func:`dispatch`, but waits and returns the :class:`Result`."""
    submit = dispatch(lattice, dispatcher_addr)

    def run(*args: Any, **kwargs: Any) -> Result:
        result: Result = get_result(submit(*args, **kwargs), wait=True)
        return result

    return run


def get_result(
    dispatch_id: str,
    wait: bool = False,
    dispatcher_addr: str | None = None,
    status_only: bool = False,
    *,
    timeout: float | None = None,
    results_dir: str | None = None,
) -> Any:
    """The :class:`Result` of a dispatch, whichever process ran it.

    Args:
        dispatch_id: its id.
        wait: wait until it has ended.
        status_only: return ``{"id", "status"}`` instead of a Result; honours ``wait``.
        timeout: seconds to wait at the most; implies ``wait``.
        results_dir: where ``save_result`` shall write.

    Raises:
        InvalidDispatchIdError: that is no id.
        DispatchNotFoundError: nobody has that id.
        ResultNotReadyError: it did not end within ``timeout``.
        StoreUnavailableError: the store has not answered for 30 s.
    """
    gateway = _gateway(dispatcher_addr)
    _check_timeout(timeout)
    record = gateway.record(dispatch_id)
    if (wait or timeout is not None) and not record.status.final:
        from chelate.show.progress import Progress

        with detaching(), Progress(enabled=gateway.settings.progress) as progress:
            watch = progress.update if progress.active else None
            record = gateway.wait(dispatch_id, timeout, watch)
    if status_only:
        return {"id": record.dispatch_id, "status": record.status}
    result = Result(gateway, record)
    if results_dir is not None:
        result.results_dir = results_dir
    return result


def _check_timeout(timeout: object) -> None:
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (number and float(timeout) >= 0):  # type: ignore[arg-type]
        raise ConfigError(f"timeout={timeout!r} must be a number of seconds, 0 or more.")


def wait(child: Any, parents: Any = None, *, timeout: float | None = None) -> Any:
    """Two things that read alike:

    * inside a lattice, ``ct.wait(child, parents)`` makes the task ``child`` start only after
      ``parents`` (one task or several) and returns ``child``;
    * elsewhere, ``ct.wait(dispatch_id, timeout=…)`` waits for a dispatch and returns its status.
    """
    if parents is None and isinstance(child, str):
        return get_result(child, wait=True, timeout=timeout).status
    from chelate.client.build import wait_for

    return wait_for(child, parents)


def cancel(
    dispatch_id: str,
    task_ids: int | str | Sequence[int | str] | None = None,
    dispatcher_addr: str | None = None,
    *,
    wait: bool = False,
    timeout: float | None = None,
) -> str:
    """Cancel a dispatch, or some of its tasks and what depends on them; a sentence.

    The request is stored before this returns; nothing is submitted for these tasks after it, and
    running ones become CANCELLED when their backend confirms that they are gone.

    Args:
        dispatch_id: its id.
        task_ids: node ids or task names; None for the whole dispatch, an empty list for nothing.
        wait: return only when every target has ended.
        timeout: seconds to wait at the most; implies ``wait``.

    Raises:
        InvalidDispatchIdError, DispatchNotFoundError: as :func:`get_result`.
        TaskNotFoundError, ConfigError: a target does not exist; then nothing is cancelled.
        ResultNotReadyError: not all have ended within ``timeout``; they are still being cancelled.
    """
    gateway = _gateway(dispatcher_addr)
    _check_timeout(timeout)
    targets = as_targets(task_ids)
    answer = gateway.cancel(dispatch_id, targets)
    sentence = answer.sentence(targets is None)
    if not (wait or timeout is not None) or answer.record.status.final:
        return sentence
    gateway.wait_cancelled(answer, targets is None, timeout)
    return f"{sentence} Now: {gateway.record(dispatch_id).status}."


def list_dispatches(
    status: Status | str | Iterable[Status | str] | None = None,
    name: str | None = None,
    *,
    since: datetime | float | None = None,
    root_dispatch_id: str | None = None,
    sublattices: bool = False,
    limit: int = 100,
    offset: int = 0,
    dispatcher_addr: str | None = None,
) -> list[Result]:
    """Dispatches of this home, newest first.

    Args:
        status: one or several statuses.
        name: the lattice's name.
        since: only those created then or later (aware datetime, or seconds since the epoch).
        root_dispatch_id: the whole tree of one dispatch.
        sublattices: sub-workflows' dispatches as well.
        limit: at most so many; ``offset`` skips the first.

    Raises:
        ConfigError: a status that does not exist.
    """
    gateway = _gateway(dispatcher_addr)
    wanted: tuple[Status, ...] = ()
    if status is not None:
        try:
            words = [status] if isinstance(status, str) else list(status)
            wanted = tuple(Status(word) for word in words)
        except (TypeError, ValueError) as error:
            names = ", ".join(word.value for word in Status)
            raise ConfigError(f"{error}. Statuses are {names}.") from error
    if since is not None and not isinstance(since, (int, float, datetime)):
        raise ConfigError(f"since={since!r} must be an aware datetime or seconds since the epoch.")
    for name_of, number in (("limit", limit), ("offset", offset)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ConfigError(f"{name_of}={number!r} must be a whole number, 0 or more.")
    query = DispatchFilter(
        status=wanted,
        name=name,
        root_id=None if root_dispatch_id is None else check_dispatch_id(root_dispatch_id),
        roots_only=not sublattices and root_dispatch_id is None,
        since=since.timestamp() if isinstance(since, datetime) else since,
        limit=limit,
        offset=offset,
    )
    return [Result(gateway, record) for record in gateway.records(query)]
