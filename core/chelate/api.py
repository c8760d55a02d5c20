"""Everything a plugin may import, and nothing else. The built-ins import only this, too.

``API`` is the version of these contracts as (major, minor). Within a major version hook
arguments, methods with a default and fields with a default may be added; nothing goes away.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chelate.contracts.executor import (
    Accepted,
    BlobReader,
    Capabilities,
    Deferred,
    Executor,
    Job,
    JobHandle,
    JobState,
    Limits,
    Observation,
    Outcome,
    PollReport,
    Rejected,
    RunOutcome,
    Task,
    Unknown,
)
from chelate.contracts.hookspecs import hookimpl
from chelate.contracts.store import (
    CancelRequest,
    Commit,
    DispatchFilter,
    ResultStore,
)
from chelate.contracts.trigger import BaseTrigger, Check
from chelate.digest import (
    DIGEST_BYTES,
    digest_bytes,
    digest_stream,
    is_digest,
)
from chelate.errors import (
    AuthenticationError,
    BlobDamagedError,
    BlobHeldError,
    BlobMissingError,
    BuildError,
    ChelateError,
    ConfigError,
    CycleError,
    DispatchCancelledError,
    DispatchError,
    DispatchNotFoundError,
    ExecutorError,
    ForeignPlaceholderError,
    GraphError,
    InvalidDispatchIdError,
    MachineError,
    OwnershipLostError,
    PluginConflictError,
    PluginContractError,
    PluginError,
    PluginLoadError,
    PluginNotFoundError,
    RedispatchError,
    RejectedError,
    ResultNotReadyError,
    SchemaTooNewError,
    SerializationError,
    StoreError,
    StoreUnavailableError,
    TaskCancelledError,
    TaskFailedError,
    TaskNotFoundError,
    TransientError,
    UserError,
)
from chelate.model import (
    FINAL,
    DispatchRecord,
    ExecutorRef,
    NodeRecord,
    NodeStatus,
    Reason,
    Resources,
    Retry,
    Status,
    TaskPolicy,
    ValueRef,
    parse_duration,
    parse_memory,
)

if TYPE_CHECKING:
    from chelate.remote.simple import TaskExecutor as TaskExecutor
    from chelate.remote.task_run import TaskRun as TaskRun

__all__ = [
    "API",
    "DIGEST_BYTES",
    "FINAL",
    "Accepted",
    "AuthenticationError",
    "BaseTrigger",
    "BlobDamagedError",
    "BlobHeldError",
    "BlobMissingError",
    "BlobReader",
    "BuildError",
    "CancelRequest",
    "Capabilities",
    "Check",
    "ChelateError",
    "Commit",
    "ConfigError",
    "CycleError",
    "Deferred",
    "DispatchCancelledError",
    "DispatchError",
    "DispatchFilter",
    "DispatchNotFoundError",
    "DispatchRecord",
    "Executor",
    "ExecutorError",
    "ExecutorRef",
    "ForeignPlaceholderError",
    "GraphError",
    "InvalidDispatchIdError",
    "Job",
    "JobHandle",
    "JobState",
    "Limits",
    "MachineError",
    "NodeRecord",
    "NodeStatus",
    "Observation",
    "Outcome",
    "OwnershipLostError",
    "PluginConflictError",
    "PluginContractError",
    "PluginError",
    "PluginLoadError",
    "PluginNotFoundError",
    "PollReport",
    "Reason",
    "RedispatchError",
    "Rejected",
    "RejectedError",
    "Resources",
    "ResultNotReadyError",
    "ResultStore",
    "Retry",
    "RunOutcome",
    "SchemaTooNewError",
    "SerializationError",
    "Status",
    "StoreError",
    "StoreUnavailableError",
    "Task",
    "TaskCancelledError",
    "TaskExecutor",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskPolicy",
    "TaskRun",
    "TransientError",
    "Unknown",
    "UserError",
    "ValueRef",
    "digest_bytes",
    "digest_stream",
    "hookimpl",
    "is_digest",
    "parse_duration",
    "parse_memory",
]

API = (1, 0)


def __getattr__(name: str) -> Any:
    # Built upon this module, and so loaded only when a plugin asks for it.
    homes = {"TaskExecutor": "simple", "TaskRun": "task_run"}
    if name in homes:
        return getattr(import_module(f"chelate.remote.{homes[name]}"), name)
    raise AttributeError(f"module 'chelate.api' has no attribute {name!r}")
