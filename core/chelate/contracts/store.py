"""The result store contract: records, blobs and ownership behind one interface.

Writes that decide something happen in one transaction with the check that this kernel still
owns what it writes. Reads may come from any process at any time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

from chelate.errors import StoreError
from chelate.model import DispatchRecord, NodeRecord, Status

__all__ = ["CancelRequest", "Commit", "DispatchFilter", "ResultStore", "Snapshot"]


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """A recorded wish to cancel. ``nodes`` is None for the whole dispatch. ``seq`` only grows."""

    seq: int
    dispatch_id: str
    nodes: tuple[int, ...] | None


@dataclass(slots=True)
class Commit:
    """Everything one turn writes, in one transaction.

    ``blobs`` are small values by digest, written first; large ones must already be stored.
    ``nodes`` are whole rows by dispatch; ``dispatches`` whole rows; ``created`` new dispatches
    (a sub-workflow's), inserted unless they exist. ``held`` are results that stay elsewhere, as
    :meth:`ResultStore.held` gives them. ``epochs`` are those in which dispatches were read: where
    the store has another, somebody else owned the dispatch since, and the commit is refused as if
    it were not owned.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    nodes: dict[str, list[NodeRecord]] = field(default_factory=dict)
    dispatches: list[DispatchRecord] = field(default_factory=list)
    created: list[DispatchRecord] = field(default_factory=list)
    held: dict[str, dict[str, Any]] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DispatchFilter:
    """What ``list_dispatches`` selects; newest first.

    In ``status``, a dispatch that shall be cancelled and has not ended counts as CANCELLING.
    """

    status: tuple[Status, ...] = ()
    name: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    roots_only: bool = True
    since: float | None = None
    limit: int = 100
    offset: int = 0


class Snapshot(Protocol):
    """A store as it was at one moment, read only, whoever writes meanwhile; for ``chelate fsck``.

    Rows that cannot be read are left out, and ``damage`` tells of them afterwards. ``gapless``
    says that the numbers of events count every one from 1.
    """

    gapless: bool

    def dispatches(self) -> Iterator[DispatchRecord]:
        """All, in the order of their ids (by code point, as everywhere here)."""

    def nodes(self, dispatch_ids: Sequence[str] | None = None) -> Iterator[tuple[str, NodeRecord]]:
        """Rows with their dispatch's id, in the order of both ids; of all dispatches or some."""

    def events(self) -> Iterator[tuple[str, int, int, str, list[list[Any]]]]:
        """Dispatch id, sequence number, epoch, turn and changes, in the order of the first two.

        A request to cancel is a turn ``cancel:<seq>`` without changes."""

    def cancels(self) -> Iterator[CancelRequest]:
        """All requests."""

    def alive(self, kernel_ids: Iterable[str]) -> set[str]:
        """Which kernels hold their locks now."""

    def blobs(self, hashed: bool) -> Iterator[tuple[str, int, bool, float | None]]:
        """Digest, size, whether the bytes match (True unless ``hashed``), and for a file the
        seconds since it was written."""

    def held(self) -> Iterator[str]:
        """Digests of values that stay with an executor, whether or not they are here as well."""

    def read(self, digest: str) -> bytes:
        """A value, unchecked. Raises BlobMissingError."""

    def texts(self) -> Iterator[tuple[str, bytes]]:
        """Everything that is stored, piece by piece, with the name of its place."""

    def damage(self, thorough: bool) -> list[str]:
        """What is wrong with the medium itself, in sentences."""


class ResultStore(ABC):
    """A store for dispatches, nodes and blobs. ``schemes`` are the URL schemes it answers to,
    and ``can_hold`` says that it keeps note of results that stay with their executors.

    Every method may be called from any thread. All raise StoreUnavailableError when the medium
    fails, with nothing half-written.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    can_hold: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, url: str, home: Path, *, synchronous: str | None = None) -> None:
        """Keep the arguments; nothing is touched before :meth:`open`.

        Args:
            url: of one of ``schemes``; empty for the store's own place below ``home``.
            home: the folder of this home: locks, large values.
            synchronous: how hard a commit is pressed onto the disk (``"full"``, ``"normal"``).
        """

    @abstractmethod
    def open(self) -> None:
        """Connect, create or migrate the schema.

        Raises:
            SchemaTooNewError: written by a newer chelate.
            StoreUnavailableError: missing, read-only, locked.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and of the ownership lock."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """A look at everything; the store need not be open, and nothing is written.

        Raises:
            StoreError: there is no store, or it is of a kind that cannot be looked through.
        """
        raise StoreError(f"A store of the kind {type(self).__name__} cannot be checked.")

    # -- ownership ----------------------------------------------------------------------------

    @abstractmethod
    def claim_kernel(self) -> str:
        """Take the lock of a new kernel and return its id; the lock dies with the process."""

    @abstractmethod
    def orphans(self) -> list[str]:
        """Ids of dispatches that have not ended and whose owner is gone or was never set."""

    @abstractmethod
    def adopt(self, kernel_id: str, dispatch_ids: Sequence[str]) -> list[str]:
        """Make ``kernel_id`` the owner, epoch + 1; the ids that were won."""

    @abstractmethod
    def kernels_alive(self, kernel_ids: Iterable[str]) -> set[str]:
        """Which of them hold their locks; the others never come back."""

    # -- writing ------------------------------------------------------------------------------

    @abstractmethod
    def add_dispatch(
        self,
        record: DispatchRecord,
        blobs: Mapping[str, bytes],
        facts: Mapping[str, Any] | None = None,
        expect: Mapping[str, Any] | None = None,
    ) -> bool:
        """Insert a dispatch with its blobs and facts, durably; False when the id exists already.

        Nothing is written either unless every fact of ``expect`` has that value.
        """

    @abstractmethod
    def commit(self, kernel_id: str, commit: Commit, seen: int) -> list[CancelRequest]:
        """Write one turn.

        Refuses rows of dispatches that ``kernel_id`` does not own; rows of ended nodes never
        change. When cancel requests newer than ``seen`` exist for a dispatch the kernel owns,
        *nothing* is written and they are returned: the turn must be decided again.

        Raises:
            OwnershipLostError: another kernel owns one of the dispatches; ``args[1]`` names them.
        """

    @abstractmethod
    def request_cancel(self, dispatch_id: str, nodes: Sequence[int] | None) -> int:
        """Record a cancel of a dispatch (None) or of nodes, durably; its sequence number."""

    @abstractmethod
    def cancel_requests(self, kernel_id: str, seen: int) -> list[CancelRequest]:
        """Requests newer than ``seen`` for dispatches owned by ``kernel_id``."""

    @abstractmethod
    def release_hold(
        self,
        dispatch_id: str,
        facts: Mapping[str, Any] | None = None,
        expect: Mapping[str, Any] | None = None,
    ) -> bool:
        """Let a held dispatch start; False when it was not held. ``facts`` and ``expect`` as in
        :meth:`add_dispatch`."""

    # -- reading ------------------------------------------------------------------------------

    @abstractmethod
    def dispatch(self, dispatch_id: str) -> DispatchRecord:
        """Raises DispatchNotFoundError."""

    @abstractmethod
    def dispatches(self, query: DispatchFilter) -> list[DispatchRecord]:
        """Newest first."""

    @abstractmethod
    def nodes(self, dispatch_id: str, ids: Iterable[int] | None = None) -> list[NodeRecord]:
        """Rows of touched nodes, by id."""

    @abstractmethod
    def change_counter(self) -> int:
        """A cheap number that changes when another process has written."""

    # -- blobs --------------------------------------------------------------------------------

    @abstractmethod
    def missing_blobs(self, digests: Iterable[str]) -> set[str]:
        """Which of them are neither in the store nor held elsewhere."""

    def held(self, digests: Iterable[str] | None) -> dict[str, dict[str, Any]]:
        """Those of the values (None: of all) that are not here but stay elsewhere, each with its
        ``size`` in bytes, its ``executor`` (a reference as text) and the JSON of a job's
        ``handle``."""
        return {}

    def unhold(self, digest: str, *, gone: bool) -> None:
        """A held value was brought here, or turned out to be ``gone`` where it was."""
        raise StoreError(f"A store of the kind {type(self).__name__} holds no results elsewhere.")

    @abstractmethod
    def put_file(self, digest: str, path: Path, *, move: bool) -> None:
        """Store a large value: temporary name, fsync, rename, before any row names it."""

    @abstractmethod
    def read(self, digest: str) -> bytes:
        """Raises BlobMissingError (BlobHeldError when it stays elsewhere), BlobDamagedError."""

    @abstractmethod
    def read_many(self, digests: Iterable[str]) -> dict[str, bytes]:
        """Small values in bulk; large or missing ones are left out."""

    @abstractmethod
    def stream(self, digest: str) -> BinaryIO:
        """The value as a file object."""

    @abstractmethod
    def path(self, digest: str) -> Path | None:
        """The file of a large value, or None when it lives in the database."""

    @abstractmethod
    def size(self, digest: str) -> int:
        """Size in bytes. Raises BlobMissingError."""

    # -- small durable facts -------------------------------------------------------------------

    @abstractmethod
    def get_fact(self, name: str) -> Any:
        """A JSON value by name, or None."""

    @abstractmethod
    def set_fact(self, name: str, value: Any) -> None:
        """Store a JSON value by name; None removes it."""

    @abstractmethod
    def set_facts(self, values: Mapping[str, Any], expect: Mapping[str, Any] | None = None) -> bool:
        """Store several facts in one transaction, and only while every fact of ``expect`` has
        that value (None: is not there); whether they were stored."""

    @abstractmethod
    def facts(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Names and values of the facts that begin with ``prefix``."""
