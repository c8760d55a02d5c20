"""Reading and changing settings from code, by dotted key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chelate.embedding import configure, settings, shutdown

__all__ = ["get_config", "reload_config", "set_config"]


def get_config(key: str | None = None) -> Any:
    """All settings as a dict, or one by dotted key (``"executors.local.workers"``).

    Raises:
        ConfigError: there is no such setting.
    """
    loaded = settings()
    return loaded.to_dict() if key is None else loaded.get(key)


def set_config(key: str | Mapping[str, Any], value: Any = None) -> None:
    """Change settings for this process; files are not written.

    Raises:
        ConfigError: a name or value is wrong.
    """
    changes = dict(key) if isinstance(key, Mapping) else {key: value}
    nested: dict[str, Any] = {}
    for name, entry in changes.items():
        head, _, rest = name.partition(".")
        for part in reversed(rest.split(".") if rest else []):
            entry = {part: entry}
        nested[head] = entry
    configure(**nested)


def reload_config() -> None:
    """Read file and environment again; takes effect with the next dispatch."""
    shutdown()
