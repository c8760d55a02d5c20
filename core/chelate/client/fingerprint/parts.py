"""What single objects hold, and what to call it."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Final

from .bytecode import all_codes
from .classes import is_user_class
from .library import is_library_module, library_place

__all__ = [
    "BUILT_IN",
    "ITEMS",
    "classes_within",
    "electron_function",
    "innermost",
    "instance_fields",
    "is_installed",
    "items_of",
    "maker",
    "role_and_label",
    "wrapper_parts",
]

ITEMS: Final = 1_000
_DEEPEST: Final = 4
BUILT_IN: Final = (
    BuiltinFunctionType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
)


def electron_function(found: Any) -> Any:
    """The function of an electron or lattice; anything else as it is."""
    while type(found).__name__ in ("Electron", "Lattice"):
        inner = getattr(found, "function", None) or getattr(found, "workflow_function", None)
        if inner is None:
            break
        found = inner
    return found


def innermost(function: Any) -> Any:
    """The function under decorators, partial applications and bound methods."""
    seen: set[int] = set()
    while id(function) not in seen:
        seen.add(id(function))
        function = electron_function(function)
        if isinstance(function, (functools.partial, functools.partialmethod)):
            function = function.func
        elif isinstance(function, (MethodType, staticmethod, classmethod)):
            function = function.__func__
        elif not isinstance(function, type):
            function = getattr(function, "__wrapped__", function)
    return function


def role_and_label(owner: tuple[str, str], edge: str, found: Any) -> tuple[str, str]:
    """The role and label of what a component with the role and label ``owner`` refers to."""
    role, label = owner
    if role == "depends_on":
        return role, label
    if role == "decorator":
        return role, maker(found) if isinstance(found, FunctionType) else label
    word, _, rest = edge.partition(" ")
    code = isinstance(found, FunctionType) or wrapper_parts(found) is not None
    if role == "body" and word in ("default", "closure"):
        if word == "default":
            return "default", rest
        if not code and not isinstance(found, type):
            return "closure", rest
    elif word != "global" and not code and not isinstance(found, (type, ModuleType, *BUILT_IN)):
        return role, label
    elif isinstance(found, type):
        return "class", found.__name__
    elif role in ("class", "global", "default", "closure") and word != "global":
        return role, label
    if isinstance(found, type):
        return "class", found.__name__
    if code or isinstance(found, (ModuleType, *BUILT_IN)):
        if word not in ("global", "closure"):
            return "helper", label
        named = "<" not in getattr(found, "__qualname__", "<")
        return "helper", found.__name__ if named else rest.rpartition(".")[2]
    return "global", rest or edge


def maker(function: FunctionType) -> str:
    """The name of the decorator that made a wrapper, which ``functools.wraps`` does not tell."""
    code = function.__code__
    place = library_place(code.co_filename)
    if place is not None:
        return place[0].partition("/")[0].removesuffix(".py")
    name = getattr(code, "co_qualname", None)  # Python 3.11
    if name is None:
        for name, found in function.__globals__.items():
            if isinstance(found, FunctionType) and code in all_codes(found.__code__):
                return name
        return code.co_name
    return str(name).partition(".")[0]


def wrapper_parts(found: Any) -> list[tuple[str, Any]] | None:
    """What the wrappers of the standard library (and pydantic's) hold; None for anything else."""
    for kind, names in _WRAPPERS:
        if isinstance(found, kind):
            parts = [(name, getattr(found, name)) for name in names]
            return [(name, part) for name, part in parts if part is not None]
    if isinstance(found, (functools.partial, functools.partialmethod)):
        return [
            ("func", found.func),
            *((f"argument {number}", item) for number, item in enumerate(found.args)),
            *((f"keyword {name}", item) for name, item in sorted(found.keywords.items())),
        ]
    if type(found).__name__ == "_lru_cache_wrapper":
        return [("wrapped", found.__wrapped__), ("cache", found.cache_parameters())]
    if type(found).__name__ == "PydanticDescriptorProxy":
        return [("wrapped", found.wrapped), ("settings", repr(found.decorator_info))]
    return None


_WRAPPERS: Final[list[tuple[type, tuple[str, ...]]]] = [
    (MethodType, ("__func__", "__self__")),
    (staticmethod, ("__func__",)),
    (classmethod, ("__func__",)),
    (property, ("fget", "fset", "fdel")),
    (functools.cached_property, ("func",)),
    (functools.singledispatchmethod, ("func",)),
]


def is_installed(top: str) -> bool:
    """Whether a top-level name is Python's or an installed package's; nothing is imported."""
    if top in sys.modules:
        return is_library_module(top)
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    origin = spec.origin if spec is not None else None
    return origin is not None and library_place(origin) is not None


def items_of(found: Any) -> list[tuple[str, Any]] | None:
    """The items of an exact container; a set gives them only if their order can be told."""
    kind = type(found)
    if kind in (list, tuple):
        return [(f"[{number}]", item) for number, item in enumerate(found)]
    if kind is dict:
        items = [(f"[{key!r}]", item) for key, item in found.items() if isinstance(key, (str, int))]
        if len(items) == len(found):
            return items
        keyed = [part for pair in found.items() for part in pair]
        return [(f"[{number}]", item) for number, item in enumerate(keyed)]
    if kind in (set, frozenset):
        named = sorted((f"{getattr(item, '__qualname__', '')}", item) for item in found)
        return [(f"[{name}]", item) for name, item in named] if all(n for n, _ in named) else None
    return None


def instance_fields(found: Any) -> dict[str, Any]:
    """What an instance holds, in ``__dict__`` and in slots, by name."""
    fields = dict(getattr(found, "__dict__", ()))
    for owner in type(found).__mro__:
        slots = owner.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__") and hasattr(found, name):
                fields[name] = getattr(found, name)
    return fields


def classes_within(found: Any) -> list[type]:
    """The user's classes of an object and of what it directly holds, by name."""
    classes: dict[str, type] = {}
    waiting: list[tuple[Any, int]] = [(found, 0)]
    for item, depth in waiting:
        kind = type(item)
        inner: Callable[[], Any] | None = None
        if kind in (list, tuple, set, frozenset):
            inner = lambda item=item: item  # noqa: E731
        elif kind is dict:
            inner = item.values
        elif kind.__module__ != "builtins" and is_user_class(kind):
            classes.setdefault(f"{kind.__module__}:{kind.__qualname__}", kind)
            inner = lambda item=item: instance_fields(item).values()  # noqa: E731
        if inner is not None and depth < _DEEPEST and len(waiting) < ITEMS:
            waiting.extend((part, depth + 1) for part in list(inner())[:ITEMS])
    return [classes[name] for name in sorted(classes)]
