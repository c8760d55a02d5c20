"""Registers the result stores that come with chelate, as any plugin registers its own."""

from __future__ import annotations

from chelate.api import ResultStore, hookimpl

__all__ = ["chelate_register_stores"]


@hookimpl
def chelate_register_stores() -> list[type[ResultStore]]:
    """The SQL store, for SQLite and PostgreSQL."""
    from chelate.store.sql import SQLStore

    return [SQLStore]
