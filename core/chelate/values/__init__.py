"""Fingerprints of values: equal for equal values of equal types, in every process and Python.

:func:`fingerprint` knows the types of the standard library, dataclasses, attrs, pydantic, numpy,
pandas and torch (found among the loaded modules, never imported here), instances of other classes
by their fields, and whatever can be taken apart by ``__reduce_ex__``. A class may answer for
itself with ``__fingerprint__()``; :func:`register` does that for classes of others. What has no
stable fingerprint (generators, locks, files, iterators) gets None, never a random token.

Functions and classes count by name where they belong to Python or to an installed package, and
by their code where they are the user's. So an instance of a user's class has another fingerprint
when a method changed, unless the class answers with ``__fingerprint__()``. Reading code takes
``chelate.client.fingerprint``; on a host that lacks it a class counts by name, and a function has
no fingerprint.

A short value is readable from its fingerprint, see ``encoding.py``: keep the fingerprint of a
secret only where the secret itself would be kept.

Standard library only, and nothing of the package around it: this folder may be copied alone to
another host and imported there as ``values``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .code import read_code_with
from .encoding import BUILTIN, SCALARS, Encoder, Unstable, combine, to_text
from .files import File
from .rules import FOUND, HOOKS, encode

__all__ = [
    "File",
    "combine",
    "describe",
    "explain_unstable",
    "fingerprint",
    "part_key",
    "parts",
    "read_code_with",
    "register",
]


def fingerprint(value: object) -> str | None:
    """64 hexadecimal characters that name ``value``, or None when it has no stable fingerprint."""
    try:
        return to_text(Encoder(encode).run(value))
    except Unstable:
        return None


def describe(value: object) -> tuple[str | None, dict[str, str]]:
    """:func:`fingerprint`, and digests of the users' code in the value by kind and name:
    ``{"class project.models:Model": digest}``."""
    encoder = Encoder(encode)
    try:
        return to_text(encoder.run(value)), encoder.code
    except Unstable:
        return None, encoder.code


def explain_unstable(value: object) -> str | None:
    """Which part of ``value`` has no stable fingerprint and why, or None when all have one."""
    try:
        Encoder(encode).run(value)
    except Unstable as error:
        return f"value{''.join(reversed(error.where))}: {error}"
    return None


def part_key(key: object) -> str | None:
    """How :func:`parts` names an item: ``0`` for index 0, ``"a"`` (quoted) for the key "a"."""
    if type(key) is int:
        return str(key)
    return f'"{key}"' if type(key) is str else None


def parts(value: object, limit: int = 64) -> dict[str, str] | None:
    """Fingerprints of the direct items of a tuple, list or dict, by :func:`part_key`.

    None for any other value and for more than ``limit`` items; items without a stable fingerprint
    and keys that are neither ``str`` nor ``int`` are left out.
    """
    if not isinstance(value, (tuple, list, dict)) or len(value) > limit:
        return None
    items: Iterable[tuple[Any, Any]] = (
        value.items() if isinstance(value, dict) else enumerate(value)
    )
    named = ((part_key(key), fingerprint(item)) for key, item in items)
    return {key: digest for key, digest in named if key is not None and digest is not None}


def register(kind: type, function: Callable[[Any], Any]) -> None:
    """Fingerprint instances of ``kind`` and its subclasses by what ``function(value)`` returns.

    The returned value is encoded by the usual rules, behind the name of the class; returning None
    says that this value has no stable fingerprint. Raises ValueError for a built-in scalar or
    container, whose encoding is fixed.
    """
    if kind in SCALARS or kind in BUILTIN:
        raise ValueError(f"the fingerprint of {kind.__name__} is fixed")
    HOOKS[kind] = function
    FOUND.clear()
