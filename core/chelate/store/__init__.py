"""The built-in result store: SQLite by default, Postgres by URL.

``tables`` says what is stored, ``rows`` turns records into rows and back, ``database`` owns
connections and transactions (``sqlite`` and ``postgres`` are its two kinds), ``blobs`` keeps large
values as files and ``values`` reads and writes them by digest, ``locks`` tells living kernels from
dead ones, ``migrations`` brings an older schema up to date, ``statements`` holds all SQL, and
``sql`` puts them together as :class:`SQLStore`.
"""

from __future__ import annotations

from chelate.store.sql import SQLStore

__all__ = ["SQLStore"]
