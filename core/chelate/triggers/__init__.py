"""Triggers: what starts workflows by itself.

>>> @ct.lattice(triggers=ct.triggers.TimeTrigger(3600))
... def hourly(): ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chelate.api import BaseTrigger, Check

if TYPE_CHECKING:
    from chelate.triggers.database import DatabaseTrigger, SQLiteTrigger
    from chelate.triggers.directory import DirTrigger
    from chelate.triggers.time import TimeTrigger

__all__ = [
    "BaseTrigger",
    "Check",
    "DatabaseTrigger",
    "DirTrigger",
    "SQLiteTrigger",
    "TimeTrigger",
]

_WHERE = {
    "DatabaseTrigger": "chelate.triggers.database",
    "DirTrigger": "chelate.triggers.directory",
    "SQLiteTrigger": "chelate.triggers.database",
    "TimeTrigger": "chelate.triggers.time",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'chelate.triggers' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value
