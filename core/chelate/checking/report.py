"""What a check has found, and how much it has looked at."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DEFECT", "RESTORE", "Finding", "Report"]

RESTORE = "Restore the store from a backup, or redispatch the workflow."
DEFECT = "If no other program wrote to the store, this is a defect in chelate: please report it."


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold: the invariant (``I7``; ``store`` for the medium itself),
    where, what, and what to do about it."""

    invariant: str
    dispatch_id: str | None
    node_id: int | None
    what: str
    advice: str


@dataclass(slots=True)
class Report:
    """What was looked at, and what was found. Sizes in bytes, ages in seconds.

    ``waiting`` are dispatches that have not ended and that no living kernel owns. ``unused`` are
    values that nothing refers to: harmless, left by a crash between a value and its row.
    """

    findings: list[Finding] = field(default_factory=list)
    dispatches: int = 0
    nodes: int = 0
    events: int = 0
    values: int = 0
    hashed: int = 0
    waiting: list[str] = field(default_factory=list)
    unused: int = 0
    unused_size: int = 0
    unused_age: float | None = None
    seconds: float = 0.0

    def sentence(self) -> str:
        """The whole in a line or three."""
        lines = [
            f"{len(self.findings) or 'No'} finding{'s' * (len(self.findings) != 1)} in "
            f"{self.dispatches} dispatches, {self.nodes} tasks, {self.events} events and "
            f"{self.values} values ({self.hashed / 1e6:.1f} MB read) in {self.seconds:.1f} s."
        ]
        if self.waiting:
            lines.append(f"{len(self.waiting)} dispatches wait for a kernel: chelate resume")
        if self.unused:
            age = (
                "" if self.unused_age is None else f", up to {self.unused_age / 86400:.1f} days old"
            )
            lines.append(
                f"{self.unused} values ({self.unused_size} bytes{age}) are used by nothing."
            )
        return "\n".join(lines)
