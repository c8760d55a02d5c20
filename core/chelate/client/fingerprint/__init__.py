"""Fingerprints of functions: what a task's result depends on besides its arguments.

Two digests are kept of everything a function reaches. ``ast`` is that of normalised syntax trees
and holds over Pythons; ``code`` is that of normalised bytecode, holds for one Python, and is there
even where no source is. Two functions are the same if either agrees.

What is found and cannot be followed, such as an iterator, makes a function the same as none. Not
seen: patches made after the walk, data put into libraries, environment variables, files that are
not declared with ``depends_on``, random state, line numbers, and module attributes such as
``__file__``.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import FunctionType, ModuleType
from typing import Any

from chelate import values
from chelate.errors import ConfigError
from chelate.values.encoding import Unstable

from .manifest import compare_manifests
from .parts import innermost
from .walk import Component, Walk, is_walking

__all__ = [
    "FunctionFingerprint",
    "code_digest",
    "compare_manifests",
    "fingerprint_function",
    "remembering",
    "same",
]


@dataclass(frozen=True, slots=True)
class FunctionFingerprint:
    """The fingerprint of a function.

    ``ast`` and ``code`` are 64 hexadecimal characters each; ``ast`` is None when the source of a
    part is not to be had. Both are None when something the function reaches has no stable
    fingerprint, so that it is the same as nothing. ``manifest`` can be stored as JSON: ``tag`` and
    ``python`` of the interpreter, ``version``, ``digest``, the ``components`` (``role``, ``label``,
    ``edge``, ``kind``, ``ast``, ``code``, ``text``) and ``not_tracked``, sentences for people.
    """

    ast: str | None
    code: str | None
    manifest: dict[str, Any]


def same(first: FunctionFingerprint, second: FunctionFingerprint) -> bool:
    """Whether two functions do the same, as far as can be told."""
    if first.ast is not None and first.ast == second.ast:
        return True
    return first.code is not None and first.code == second.code


def fingerprint_function(
    function: Callable[..., Any],
    *,
    version: str | None = None,
    depends_on: Sequence[Any] = (),
    ignore: Sequence[str] = (),
) -> FunctionFingerprint:
    """The fingerprint of ``function`` as it is now.

    ``version`` replaces everything that would be found; ``depends_on`` adds functions, classes,
    values, ``File`` objects and names of modules; the defaults of parameters in ``ignore`` do not
    count. Raises ConfigError for a parameter that does not exist.
    """
    _check_ignored(function, ignore)
    walk = Walk(frozenset(ignore), declared=bool(depends_on))
    if version is None:
        walk.root(function)
    for number, item in enumerate(depends_on):
        found = _module_named(item) if isinstance(item, str) else item
        place = f"depends_on {number}"
        component = walk.components[walk.visit(found, "depends_on", _label(item), place)]
        walk.run()
        if component.role != "depends_on":  # the code reaches it too; what is stated comes first
            stated = replace(component, role="depends_on", label=_label(item), edge=place)
            walk.add(("stated", number), stated)
    tag = sys.implementation.cache_tag or sys.implementation.name
    found = walk.components
    tree = code = None
    if all(component.ast is not None for component in found):
        tree = _combined("tree1", version, [(item.ast or "", item) for item in found])
    if all(component.kind != "unstable" for component in found):
        code = _combined("code1", version, [(item.code, item) for item in found])
    manifest = {
        "tag": tag,
        "python": platform.python_version(),
        "version": version,
        "digest": tree or code,
        "components": [_entry(component) for component in found],
        "not_tracked": [
            f"{component.label or component.edge} ({component.text})"
            for component in found
            if not component.tracked
        ],
    }
    return FunctionFingerprint(tree, code, manifest)


def _combined(kind: str, version: str | None, parts: list[tuple[str, Component]]) -> str:
    state = hashlib.blake2b(repr((kind, version)).encode(), digest_size=32)
    for digest, component in parts:
        state.update(f"\n{digest} {component.references!r}".encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def _entry(component: Component) -> dict[str, Any]:
    names = ("role", "label", "edge", "kind", "ast", "code", "text")
    return {name: getattr(component, name) for name in names}


def _label(item: Any) -> str:
    if isinstance(item, values.File):
        return item.path.replace("\\", "/").rpartition("/")[2]
    return item if isinstance(item, str) else str(getattr(item, "__name__", type(item).__name__))


def _module_named(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"depends_on names the module {name!r}, which cannot be imported: {error}"
        ) from error


def _check_ignored(function: Any, ignore: Sequence[str]) -> None:
    inner = innermost(function)
    if not ignore or not isinstance(inner, FunctionType):
        return
    code = inner.__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    unknown = [name for name in ignore if name not in known]
    if unknown and not code.co_flags & 0x08:
        raise ConfigError(
            f"ignore names {unknown[0]!r}, but {inner.__name__}() has the parameters"
            f" {', '.join(known) or 'none'}"
        )


_digests: ContextVar[dict[Any, str] | None] = ContextVar("code digests", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """While this holds, the code of a class or function is read once."""
    token = _digests.set({})
    try:
        yield
    finally:
        _digests.reset(token)


def code_digest(found: Any) -> str | None:
    """What a function, class or module inside of a value counts as; None during a walk, which
    finds them itself."""
    if is_walking():
        return None
    known = _digests.get()
    digest = None if known is None else known.get(found)
    if digest is None:
        taken = fingerprint_function(found)
        digest = taken.ast or taken.code
        if digest is None:
            raise Unstable(f"what {_label(found)} uses cannot be compared")
        if known is not None:
            known[found] = digest
    return digest


values.read_code_with(code_digest)
