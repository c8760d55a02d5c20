"""Whose class or function it is, and the digest of its code where that can be read.

Reading code is the business of ``chelate.client.fingerprint``. It is imported when the first
class or function of the user is met, and where it cannot be (on a host with the worker alone),
such a class counts by its name.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable
from typing import Any, Final

__all__ = ["code_of", "read_code_with", "written_by_user"]

Reader = Callable[[Any], "str | None"]
_READER: list[Reader | None] = []
_USERS: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()
_OURS: Final = __name__.partition(".")[0]


def read_code_with(reader: Reader) -> None:
    """Let ``reader`` give the digest of a class's or function's code, or None."""
    _READER[:] = [reader]


def code_of(found: Any) -> str | None:
    """The digest of the code of a user's class, function or module; None when it is unknown."""
    if not _READER:
        _READER.append(_find_reader())
    reader = _READER[0]
    return None if reader is None else reader(found)


def _find_reader() -> Reader | None:
    try:
        module = importlib.import_module("chelate.client.fingerprint")
    except ImportError:
        return None
    reader: Reader = module.code_digest
    if _OURS != "_chelate_values":
        return reader
    known: dict[Any, str | None] = {}

    def read_once(found: Any) -> str | None:  # the code of a worker stays as it is
        if found not in known:
            known[found] = reader(found)
        return known[found]

    return read_once


def written_by_user(kind: type) -> bool:
    """Whether a class belongs neither to Python nor to an installed package nor to chelate."""
    known = _USERS.get(kind)
    if known is None:
        name = kind.__module__
        top = name.partition(".")[0]
        file = str(getattr(sys.modules.get(name), "__file__", None) or "")
        known = name == "__main__" or not (
            top in sys.stdlib_module_names
            or top in ("chelate", "_chelate_values", "values")
            or "site-packages" in file
            or "dist-packages" in file
        )
        _USERS[kind] = known
    return known
