"""The hooks: how a plugin registers what it provides, and what else it may observe or decide.

A plugin is a module named by an entry point of the group ``chelate``. It implements hooks as
functions marked with :data:`hookimpl`. Hooks are plain functions (never coroutines), are called
once per batch rather than once per task, and take no default values; an implementation may leave
out arguments it does not need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from chelate.contracts.executor import Executor, Job, Observation
    from chelate.contracts.store import ResultStore
    from chelate.contracts.trigger import BaseTrigger
    from chelate.model import DispatchRecord, ExecutorRef, NodeRecord, Reason

__all__ = [
    "chelate_before_run",
    "chelate_cancel_requested",
    "chelate_classify_failure",
    "chelate_dispatch_changed",
    "chelate_register_executors",
    "chelate_register_stores",
    "chelate_register_triggers",
    "chelate_tasks_changed",
    "hookimpl",
]

hookspec = pluggy.HookspecMarker("chelate")
hookimpl = pluggy.HookimplMarker("chelate")


@hookspec
def chelate_register_executors() -> Sequence[type[Executor]]:  # type: ignore[empty-body]
    """Executor classes that the plugin provides; called when one of its names is asked for.

    Import the class inside the function, so that listing plugins stays cheap. Example::

        from chelate.api import hookimpl

        @hookimpl
        def chelate_register_executors():
            from chelate.executors.local import LocalExecutor

            return [LocalExecutor]
    """


@hookspec
def chelate_register_triggers() -> Sequence[type[BaseTrigger]]:  # type: ignore[empty-body]
    """Trigger classes that the plugin provides; called when one of its names is asked for.

    Example::

        from chelate.api import hookimpl

        @hookimpl
        def chelate_register_triggers():
            from chelate_tides.trigger import TideTrigger

            return [TideTrigger]
    """


@hookspec
def chelate_register_stores() -> Sequence[type[ResultStore]]:  # type: ignore[empty-body]
    """Result store classes; each lists the URL schemes it answers to in ``schemes``.

    Example::

        from chelate.api import hookimpl

        @hookimpl
        def chelate_register_stores():
            from chelate_cockroach.store import CockroachStore

            return [CockroachStore]
    """


@hookspec
def chelate_before_run(executor: ExecutorRef, jobs: Sequence[Job]) -> None:
    """Policy: look at jobs before they are sent, and raise ``RejectedError`` to refuse them.

    Called with the batch about to be sent to one executor. ``RejectedError`` refuses the whole
    batch and its message reaches the user; any other exception is logged against the plugin and
    refuses nothing. Example, a cap on accelerators::

        from chelate.api import RejectedError, hookimpl

        @hookimpl
        def chelate_before_run(executor, jobs):
            for job in jobs:
                if executor.name == "awsbatch" and job.resources.gpus > 4:
                    raise RejectedError("More than 4 GPUs per task need approval on AWS Batch.")
    """


@hookspec(firstresult=True)
def chelate_classify_failure(
    executor: ExecutorRef, observation: Observation, record: NodeRecord
) -> Reason | None:
    """Site knowledge: why did the platform end this job? The first answer that is not None wins.

    Example, a site whose node health check kills jobs with a message of its own::

        from chelate.api import Reason, hookimpl

        @hookimpl
        def chelate_classify_failure(observation):
            if "node health check" in observation.message:
                return Reason.NODE_FAIL
            return None
    """


@hookspec
def chelate_tasks_changed(dispatch_id: str, changes: Sequence[NodeRecord]) -> None:
    """Observe: these nodes of a dispatch have changed, and the change is committed.

    ``changes`` are rows as stored; read them only. Errors are logged. Example::

        import logging

        from chelate.api import NodeStatus, hookimpl

        @hookimpl
        def chelate_tasks_changed(dispatch_id, changes):
            failed = sum(row.status is NodeStatus.FAILED for row in changes)
            if failed:
                logging.getLogger("site").warning("%s: %d tasks failed", dispatch_id, failed)
    """


@hookspec
def chelate_dispatch_changed(change: DispatchRecord) -> None:
    """Observe: a dispatch has changed, and the change is committed. Errors are logged.

    Example::

        import logging

        from chelate.api import hookimpl

        @hookimpl
        def chelate_dispatch_changed(change):
            if change.status.final:
                logging.getLogger("site").info("%s %s", change.name, change.status)
    """


@hookspec
def chelate_cancel_requested(dispatch_id: str, targets: Sequence[int] | None) -> None:
    """Observe: a cancel is committed. ``targets`` are node ids, None for the whole dispatch.

    Example::

        import logging

        from chelate.api import hookimpl

        @hookimpl
        def chelate_cancel_requested(dispatch_id, targets):
            logging.getLogger("site").info("cancel of %s: %s", dispatch_id, targets or "all")
    """
