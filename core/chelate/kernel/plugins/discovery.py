"""Which plugins are installed: entry points of the group ``chelate``, listed without importing.

The name of an entry point is the name it provides: an executor, a trigger or the URL scheme of a
result store.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

__all__ = ["BUILT_IN", "GROUP", "Entry", "PluginFailure", "installed_entries"]

GROUP = "chelate"

# The entry points of chelate's own distribution, for a source tree that was never installed.
BUILT_IN = {
    "DatabaseTrigger": "chelate.triggers.builtin",
    "DirTrigger": "chelate.triggers.builtin",
    "SQLiteTrigger": "chelate.triggers.builtin",
    "TimeTrigger": "chelate.triggers.builtin",
    "local": "chelate.executors.builtin",
    "postgresql": "chelate.store.builtin",
    "sqlite": "chelate.store.builtin",
}


@dataclass(frozen=True, slots=True)
class PluginFailure:
    """What went wrong with a plugin, and whose it is.

    ``stage`` is ``find``, ``import``, ``register``, ``provide`` or the name of a hook.
    """

    name: str
    distribution: str
    version: str
    stage: str
    error: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One name that one distribution provides, and the module (or attribute) that does so."""

    name: str
    value: str
    distribution: str
    version: str

    def load(self) -> object:
        """Import what the entry point names; raises whatever the import raises."""
        return metadata.EntryPoint(self.name, self.value, GROUP).load()

    def failure(self, stage: str, error: BaseException) -> PluginFailure:
        """The record of an error of this entry."""
        return PluginFailure(
            self.name, self.distribution, self.version, stage, f"{type(error).__name__}: {error}"
        )


def _entry(point: metadata.EntryPoint, distribution: metadata.Distribution | None) -> Entry:
    name = version = None
    if distribution is not None:
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
    return Entry(point.name, point.value, str(name or "unknown"), str(version or "unknown"))


def _one_by_one(
    failures: list[PluginFailure],
) -> Iterable[tuple[metadata.EntryPoint, metadata.Distribution | None]]:
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            name = str(distribution.metadata["Name"])
            if name in seen:
                continue
            seen.add(name)
            points = [point for point in distribution.entry_points if point.group == GROUP]
        except Exception as error:  # noqa: BLE001 - third-party metadata may be broken in any way
            path = getattr(distribution, "_path", "a distribution")
            message = f"unreadable entry points: {type(error).__name__}: {error}"
            failures.append(PluginFailure(str(path), str(path), "unknown", "find", message))
            continue
        for point in points:
            yield point, distribution


def installed_entries() -> tuple[list[Entry], list[PluginFailure]]:
    """Every entry, sorted by name and distribution, and the distributions that cannot be read."""
    failures: list[PluginFailure] = []
    found: Iterable[tuple[metadata.EntryPoint, metadata.Distribution | None]]
    try:
        found = [(point, point.dist) for point in metadata.entry_points(group=GROUP)]
    except Exception:  # noqa: BLE001 - one unreadable distribution hides all others; look singly
        found = _one_by_one(failures)
    entries = {_entry(point, distribution) for point, distribution in found}
    own = {entry.name for entry in entries if entry.distribution == "chelate"}
    for name in BUILT_IN.keys() - own:
        entries.add(Entry(name, BUILT_IN[name], "chelate", "built in"))
    return sorted(entries, key=lambda entry: (entry.name, entry.distribution)), failures
