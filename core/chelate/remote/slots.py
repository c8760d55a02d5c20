"""How much of a host its jobs take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chelate.remote.host import JobHost

__all__ = ["HostSlots"]


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


def _number(data: Mapping[str, object], name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) else 0
