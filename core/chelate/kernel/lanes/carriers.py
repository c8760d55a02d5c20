"""Accepted jobs: which packed job carries which task, and when a packed job may be cleaned up.

A task that is sent again may travel in other company, so two packed jobs may name the same task
and even have the same key. Each task is expected from one of them; only a claim moves it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chelate.contracts.executor import JobHandle, Observation
from chelate.model import Reason

__all__ = ["Carriers", "Flight", "name_of"]


@dataclass(slots=True)
class Flight:
    """A job between acceptance and release. ``absent`` counts polls that did not see it,
    ``silent`` collections that brought nothing; each since its own moment."""

    handle: JobHandle
    name: str  # the job's key, unless another job of that key is known
    adopted: bool = False
    running: bool = False
    absent: int = 0
    absent_since: float = 0.0
    silent: int = 0
    silent_since: float = 0.0
    error: str = ""  # why its outcome cannot be fetched, although it has ended
    error_since: float = 0.0
    last: Observation | None = None  # what was said last, unless that it had ended
    left: set[str] | None = None  # tasks of a packed job whose outcome is still to come
    brought: set[str] = field(default_factory=set)  # those of a packed job that it has brought
    lost: tuple[Reason, str] | None = None  # gone, but a request of it may still be on its way

    @property
    def keys(self) -> tuple[str, ...]:
        """The tasks that are still expected of it."""
        if self.left is None:
            return (self.handle.key,)
        return tuple(key for key in self.handle.tasks or (self.handle.key,) if key in self.left)

    def is_all(self, keys: Container[str]) -> bool:
        """Whether nothing but these tasks can still run in it. A task that is expected of another
        job may: the one that was sent later finds it claimed."""
        if self.left is None:
            return True
        return all(key in keys or key in self.brought for key in self.handle.tasks)


def name_of(
    handle: JobHandle, flights: Mapping[str, Flight], ended: Mapping[str, JobHandle]
) -> str:
    """The job's key, unless that names another job already and either of the two is packed."""
    flight = flights.get(handle.key)
    other = ended.get(handle.key) if flight is None else flight.handle
    packed = len(handle.tasks) > 1 or (other is not None and len(other.tasks) > 1)
    if not packed or (other is not None and other.native_id == handle.native_id):
        return handle.key
    name = f"{handle.key} {handle.native_id}"
    return handle.key if other is None and name not in flights and name not in ended else name


class Carriers:
    """Names of packed jobs by task. Tasks of jobs that carry one task only are not listed."""

    def __init__(self) -> None:
        self._carriers: dict[str, str] = {}
        self._former: dict[str, list[str]] = {}  # task → jobs that were to bring it before
        self._unstored: dict[str, set[str]] = {}  # packed job → tasks not let go yet

    def __contains__(self, key: str) -> bool:
        return key in self._carriers

    def of(self, key: str) -> str:
        """The job that is to bring the task."""
        return self._carriers.get(key, key)

    def is_free(self, key: str, name: str) -> bool:
        """Whether no other job than this one is to bring the task."""
        return self._carriers.get(key, name) == name

    def take(
        self, name: str, handle: JobHandle, keys: Iterable[str], settled: Iterable[str]
    ) -> None:
        """These tasks are to come from the job; the settled ones have come from others."""
        tasks = set(handle.tasks or (handle.key,))
        self._unstored.setdefault(name, tasks.difference(settled))
        self._carriers.update(dict.fromkeys(keys, name))

    def leave(self, key: str) -> None:
        """The task is to come from another job."""
        name = self._carriers.pop(key, None)
        if name is not None:
            self._former.setdefault(key, []).append(name)

    def let_go(self, keys: Sequence[str]) -> list[str]:
        """The outcomes of these tasks are stored; the jobs of which nothing is expected now."""
        done: list[str] = []
        for key in keys:
            for job in (self._carriers.pop(key, key), *self._former.pop(key, ())):
                unstored = self._unstored.get(job)
                if unstored is not None:
                    unstored.discard(key)
                    if unstored:
                        continue
                    del self._unstored[job]
                done.append(job)
        return done
