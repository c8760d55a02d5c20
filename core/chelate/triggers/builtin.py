"""Registers the triggers that come with chelate, as any plugin registers its own."""

from __future__ import annotations

from chelate.api import BaseTrigger, hookimpl

__all__ = ["chelate_register_triggers"]


@hookimpl
def chelate_register_triggers() -> list[type[BaseTrigger]]:
    """Times, directories and tables."""
    from chelate.triggers.database import DatabaseTrigger, SQLiteTrigger
    from chelate.triggers.directory import DirTrigger
    from chelate.triggers.time import TimeTrigger

    return [DatabaseTrigger, DirTrigger, SQLiteTrigger, TimeTrigger]
