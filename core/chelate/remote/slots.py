"""How much of a host its jobs take, and on which of several hosts a job may start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from chelate.api import Task
from chelate.remote.host import JobHost

__all__ = ["Doubts", "HostSlots", "together"]

T = TypeVar("T")


@dataclass(slots=True)
class HostSlots:
    """A host and what may run there at once.

    ``slots`` are processors (None: as many as the host says it has), ``mem`` MiB (None: what
    the host has), ``gpus`` accelerators, given to jobs by number in ``CUDA_VISIBLE_DEVICES``.
    """

    host: JobHost
    slots: int | None = None
    mem: int | None = None
    gpus: int = 0
    used: dict[str, Mapping[str, object]] = field(default_factory=dict)  # handle data by key

    @property
    def name(self) -> str:
        """What handles call the host."""
        return self.host.transport.host

    def can(self, cpus: int, mem: int, gpus: int) -> bool:
        """Whether a job could run here if it were alone."""
        return cpus <= (self.slots or 0) and mem <= (self.mem or 0) and gpus <= self.gpus

    def free(self) -> int:
        """Slots that are free; negative when the host was overcommitted by another kernel."""
        return (self.slots or 0) - sum(_number(data, "cpus") for data in self.used.values())

    def free_memory(self) -> int:
        """MiB that no job here has asked for."""
        return (self.mem or 0) - sum(_number(data, "mem") for data in self.used.values())

    def free_gpus(self) -> list[int]:
        """Numbers of the accelerators that no job here has."""
        taken = {
            number
            for data in self.used.values()
            for number in str(data.get("gpus") or "").split(",")
        }
        return [number for number in range(self.gpus) if str(number) not in taken]


class Doubts:
    """Tasks that were looked up in vain, with the hosts that cannot start them any more.

    The request whose answer was lost may still be on its way to any of several hosts.
    """

    def __init__(self) -> None:
        self._barred: dict[str, set[str]] = {}

    def note(self, barred: Mapping[str, set[str]]) -> None:
        """No host has these tasks; the names of those where their claims are taken by nobody."""
        self._barred.update(barred)

    def drop(self, keys: Iterable[str]) -> None:
        """These are over."""
        for key in keys:
            self._barred.pop(key, None)

    def barred(self, keys: Iterable[str]) -> set[str]:
        """Names of hosts that cannot start all of these."""
        return set().union(*(self._barred.get(key, ()) for key in keys))

    async def settle(
        self, tasks: Sequence[Task], chosen: HostSlots, hosts: Sequence[HostSlots]
    ) -> str | None:
        """Keep all hosts but one from starting these tasks; where one has started after all.

        Raises:
            ExecutorError: a host does not answer.
        """
        doubtful = [task.key for task in tasks if task.key in self._barred]
        for other in hosts if doubtful else ():
            asked = [key for key in doubtful if other.name not in self._barred[key]]
            if other is chosen or not asked:
                continue
            for key, sight in (await other.host.forbid(asked)).items():
                if sight.claimed or sight.done:
                    return other.name
                self._barred[key].add(other.name)
        return None


async def together(questions: Iterable[Awaitable[T]]) -> list[T | Exception]:
    """Answers of several hosts at once; a bad host must not stop or hide the others."""
    answers: list[T | Exception] = []
    for answer in await asyncio.gather(*questions, return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, Exception):
            raise answer
        answers.append(answer)
    return answers


def _number(data: Mapping[str, object], name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) else 0
