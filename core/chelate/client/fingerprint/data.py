"""What data that code refers to counts as, and which code is inside of it."""

from __future__ import annotations

import operator
import sys
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from chelate.values import fingerprint
from chelate.values.encoding import SCALARS, Encoder, Unstable, to_text
from chelate.values.rules import encode

from .bytecode import code_facts
from .classes import is_user_class
from .parts import (
    electron_function,
    harmless,
    is_built_in,
    is_class,
    spelled,
    wrapper_parts,
)

__all__ = ["Reader"]

# Packages whose objects read no annotations of the functions that they hold.
_INWARD: Final = sys.stdlib_module_names | {"chelate", "numpy", "pandas"}


_BIG: Final = 10_000
_PLAIN: Final = SCALARS.keys() - {bytearray}
_READ: dict[int, tuple[Any, list[Any], str | None]] = {}


def _plain_items(value: Any) -> list[Any] | None:
    """The items of a big container of numbers and texts; None for anything else."""
    if type(value) not in (list, tuple, set, frozenset, dict) or len(value) < _BIG:
        return None
    items = [*value, *value.values()] if type(value) is dict else list(value)
    return items if _PLAIN.issuperset(map(type, items)) else None


def _remembered(value: Any, items: list[Any]) -> str | None:
    """The fingerprint of a big container, taken again only when an item is another object."""
    seen, before, digest = _READ.get(id(value), (None, [], None))
    if seen is value and len(before) == len(items) and all(map(operator.is_, before, items)):
        return digest
    digest = fingerprint(value)
    if len(_READ) >= 16:
        _READ.clear()
    _READ[id(value)] = value, items, digest
    return digest


class Reader:
    """Reads one value. ``opaque`` says that it cannot be looked into and need not be, ``outside``
    that an object of an installed package is in it, ``why`` what cannot be followed."""

    def __init__(self, value: Any) -> None:
        self.why = ""
        self.opaque = False
        self.outside = False
        self.packages: set[str] = set()
        self._value = value
        self._known: dict[int, tuple[str, Any]] = {}
        self._placed: list[Any] = []
        self._named: dict[str, Any] = {}

    def read(self) -> str | None:
        """The digest of the value with a mark for each piece of code in it, or None."""
        self._library(type(self._value))
        plain = _plain_items(self._value)
        if plain is not None:
            return _remembered(self._value, plain)
        try:
            return to_text(Encoder(encode, self._follow).run(self._value))
        except Unstable as error:
            self.why = f"{''.join(reversed(error.where))} {error}".strip()
            return None

    def parts(self) -> list[tuple[str, Any]]:
        """The code in the value by its marks: by place, and after that by name for that in sets."""
        placed = [(f"part {number}", item) for number, item in enumerate(self._placed)]
        return placed + [(f"part {name}", self._named[name]) for name in sorted(self._named)]

    def _follow(self, found: Any, unordered: bool) -> str | None:
        found = electron_function(found)
        known = self._known.get(id(found))
        if known is not None:
            return known[0]
        text = harmless(found)
        if text is not None:
            self.opaque |= found is self._value
            return text
        if isinstance(found, CodeType):
            return f"code {code_facts(found).digest}"
        if is_class(found):
            if not is_user_class(found):
                self._library(found)
                return None
        elif not (
            isinstance(found, (FunctionType, ModuleType))
            or is_built_in(found)
            or wrapper_parts(found) is not None
        ):
            return None
        if not unordered:
            mark = f"#{len(self._placed)}"
            self._placed.append(found)
        else:
            mark = spelled(found)
            if mark in self._named:
                raise Unstable(f"two of its {mark} cannot be told apart in a set")
            self._named[mark] = found
        self._known[id(found)] = mark, found
        return mark

    def _library(self, kind: type) -> None:
        """Note the package that a class is from."""
        top = kind.__module__.partition(".")[0]
        if not is_user_class(kind) and top != "builtins":
            self.packages.add(top)
            self.outside |= top not in _INWARD
