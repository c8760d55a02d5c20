"""The schema's history: whole numbers, forward only.

``MIGRATIONS[n - 1]`` brings a store from version ``n - 1`` to ``n``. A new store gets the tables
as they are declared today and the newest number at once, so a migration runs only on a store that
is older than itself. It runs in the transaction that also writes the new number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chelate.api import (
    SchemaTooNewError,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["MIGRATIONS", "Migration", "check", "migrate"]

Migration = Callable[["Connection"], None]


def _create_all(connection: Connection) -> None:
    from chelate.store.tables import METADATA

    METADATA.create_all(connection)
    if connection.dialect.name == "postgresql":
        # Every row is written several times; a new version that fits beside the old one leaves
        # the index alone, which is most of the cost.
        connection.exec_driver_sql("ALTER TABLE nodes SET (fillfactor = 50)")


MIGRATIONS: tuple[Migration, ...] = (_create_all,)


def check(found: int, place: str) -> None:
    """Refuse a store whose schema is newer than this module.

    Raises:
        SchemaTooNewError: names both versions and the store.
    """
    known = len(MIGRATIONS)
    if found > known:
        raise SchemaTooNewError(
            f"The store {place} has schema version {found}, and this chelate knows versions up to "
            f"{known}. Nothing was changed; upgrade with: pip install --upgrade chelate"
        )


def migrate(connection: Connection, found: int) -> int:
    """Bring the schema from version ``found`` (0: nothing there) to the newest; its number."""
    if found == 0:
        MIGRATIONS[0](connection)
    else:
        for migration in MIGRATIONS[found:]:
            migration(connection)
    return len(MIGRATIONS)
