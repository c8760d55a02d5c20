"""Every exception chelate raises on purpose, as one tree.

::

    ChelateError
    ├── UserError                      the caller can mend it
    │   ├── GraphError                 a lattice body does what a graph cannot hold
    │   │   ├── CycleError             wait_for closes a circle
    │   │   └── ForeignPlaceholderError a placeholder of another lattice
    │   ├── BuildError                 the lattice body itself raised
    │   ├── SerializationError         a value or function cannot be pickled
    │   ├── ConfigError                a setting or option is wrong
    │   └── RedispatchError            a redispatch that cannot be meant
    ├── PluginError
    │   ├── PluginNotFoundError        nobody provides that name; says what to install
    │   ├── PluginLoadError            the plugin broke while loading
    │   ├── PluginConflictError        two distributions provide one name
    │   └── PluginContractError        a plugin answered outside its contract
    ├── ExecutorError
    │   ├── RejectedError              the backend, or a policy, refuses the job for good
    │   ├── TransientError             try again later; nothing was accepted
    │   └── AuthenticationError        credentials are missing, wrong or expired
    ├── StoreError
    │   ├── StoreUnavailableError      cannot be opened, read-only, full, locked
    │   ├── SchemaTooNewError          written by a newer chelate
    │   ├── BlobMissingError           a stored value is gone
    │   │   └── BlobHeldError          a stored value stays on another host
    │   ├── BlobDamagedError           a stored value does not match its digest
    │   └── OwnershipLostError         another kernel owns the dispatch now
    ├── DispatchError
    │   ├── DispatchNotFoundError      no dispatch has that id
    │   ├── InvalidDispatchIdError     the id is not an id
    │   ├── TaskNotFoundError          no task has that node id or name
    │   ├── ResultNotReadyError        the dispatch has not ended, or not in time
    │   ├── TaskFailedError            the dispatch failed; carries the task's traceback
    │   └── DispatchCancelledError     the dispatch was cancelled
    ├── TaskCancelledError             raised by an executor to stop a cancelled task cleanly
    └── MachineError                   an impossible event: a defect in chelate, please report
"""

from __future__ import annotations

__all__ = [
    "AuthenticationError",
    "BlobDamagedError",
    "BlobHeldError",
    "BlobMissingError",
    "BuildError",
    "ChelateError",
    "ConfigError",
    "CycleError",
    "DispatchCancelledError",
    "DispatchError",
    "DispatchNotFoundError",
    "ExecutorError",
    "ForeignPlaceholderError",
    "GraphError",
    "InvalidDispatchIdError",
    "MachineError",
    "OwnershipLostError",
    "PluginConflictError",
    "PluginContractError",
    "PluginError",
    "PluginLoadError",
    "PluginNotFoundError",
    "RedispatchError",
    "RejectedError",
    "ResultNotReadyError",
    "SchemaTooNewError",
    "SerializationError",
    "StoreError",
    "StoreUnavailableError",
    "TaskCancelledError",
    "TaskFailedError",
    "TaskNotFoundError",
    "TransientError",
    "UserError",
]


class ChelateError(Exception):
    """The root of the tree."""


class UserError(ChelateError):
    """The caller can mend it."""


class GraphError(UserError):
    """A lattice body does something that a graph cannot hold."""


class CycleError(GraphError):
    """``wait_for`` closes a circle; the message names the nodes on it."""


class ForeignPlaceholderError(GraphError):
    """A placeholder of another lattice, or of an earlier build, was used."""


class BuildError(UserError):
    """The lattice body raised while the graph was built; the cause is attached."""


class SerializationError(UserError):
    """A value or function cannot be pickled; the message names it."""


class ConfigError(UserError):
    """A setting, option or argument is wrong."""


class RedispatchError(UserError):
    """A redispatch that cannot be meant: unknown replacement, signature that does not bind."""


class PluginError(ChelateError):
    """Something about a plugin."""


class PluginNotFoundError(PluginError, UserError):
    """Nobody provides that name; the message says what to install."""


class PluginLoadError(PluginError):
    """The plugin broke while loading; the message names distribution, version and error."""


class PluginConflictError(PluginError):
    """Two distributions provide one name; the message names both."""


class PluginContractError(PluginError):
    """A plugin answered outside its contract."""


class ExecutorError(ChelateError):
    """Something about a backend."""


class RejectedError(ExecutorError):
    """The backend, or a policy, refuses the job for good."""


class TransientError(ExecutorError):
    """Nothing was accepted; try again later.

    ``retry_after`` is the backend's own wish in seconds, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AuthenticationError(ExecutorError):
    """Credentials are missing, wrong or expired; trying again could lock an account."""


class StoreError(ChelateError):
    """Something about the store."""


class StoreUnavailableError(StoreError):
    """The store cannot be opened or written: missing, read-only, full, locked."""


class SchemaTooNewError(StoreError):
    """The store was written by a newer chelate than this one."""


class BlobMissingError(StoreError):
    """A stored value is gone."""


class BlobHeldError(BlobMissingError):
    """A stored value stays on another host, and can be brought here."""


class BlobDamagedError(StoreError):
    """A stored value does not match its digest."""


class OwnershipLostError(StoreError):
    """Another kernel owns the dispatch now; this kernel's write was refused."""


class DispatchError(ChelateError):
    """Something about a dispatch."""


class DispatchNotFoundError(DispatchError, KeyError):
    """No dispatch has that id."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InvalidDispatchIdError(DispatchError, ValueError):
    """The id is not a dispatch id."""


class TaskNotFoundError(DispatchError, KeyError):
    """No task of the dispatch has that node id or name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ResultNotReadyError(DispatchError, TimeoutError):
    """The dispatch has not ended, or did not end in time."""


class TaskFailedError(DispatchError):
    """The dispatch failed; the message carries the failing task's own traceback."""


class DispatchCancelledError(DispatchError):
    """The dispatch was cancelled, so it has no result."""


class TaskCancelledError(ChelateError):
    """An executor raises this when it finds ``task.cancel_requested`` set, to stop cleanly."""


class MachineError(ChelateError):
    """An impossible event reached the state machine: a defect in chelate, with the node's story."""
