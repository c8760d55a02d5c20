"""What single objects hold, and what to call it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import sys
import types
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

from .bytecode import all_codes, code_facts
from .classes import is_user_class
from .library import is_library_module, library_place
from .syntax import syntax_digest

__all__ = [
    "electron_function",
    "harmless",
    "hashed",
    "innermost",
    "is_built_in",
    "is_class",
    "is_installed",
    "is_patch",
    "maker",
    "role_and_label",
    "spelled",
    "wrapper_parts",
]

_COUNT: Final = re.compile(r"count\([-+.\d, ]+\)")
_HARMLESS: Final = (
    "_json.Scanner",
    "_queue.",
    "_thread.",
    "concurrent.futures.",
    "multiprocessing.",
    "pydantic_core._pydantic_core.Schema",  # follows from the type, which counts
    "pydantic.plugin._schema_validator.",
)
_BUILT_IN: Final = (
    BuiltinFunctionType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
)


def is_built_in(found: Any) -> bool:
    """Whether it is a function of compiled code, from C or from Cython."""
    return isinstance(found, _BUILT_IN) or type(found).__name__ == "cython_function_or_method"


def hashed(*texts: str) -> str:
    """The digest of texts, each with its length."""
    state = hashlib.blake2b(digest_size=32)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


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
    word, _, rest = edge.partition(" ")
    if role == "depends_on":
        return role, label
    if role == "decorator" and word != "global":
        return role, maker(found) if isinstance(found, FunctionType) else label
    code = isinstance(found, FunctionType) or wrapper_parts(found) is not None
    compiled = is_built_in(found)
    if role == "body" and word in ("default", "closure"):
        if word == "default":
            return "default", rest
        if not code and not isinstance(found, type):
            return "closure", rest
    elif word != "global" and not (code or compiled or isinstance(found, (type, ModuleType))):
        return role, label
    elif isinstance(found, type):
        return "class", found.__name__
    elif role in ("class", "global", "default", "closure") and word != "global":
        return role, label
    if isinstance(found, type):
        return "class", found.__name__
    if code or compiled or isinstance(found, ModuleType):
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
    if type(found).__name__ in ("MemorizedFunc", "NotMemorizedFunc"):  # joblib's
        return [("wrapped", found.func)]
    if type(found).__name__ == "PydanticDescriptorProxy":
        return [("wrapped", found.wrapped), ("settings", repr(found.decorator_info))]
    return None


_WRAPPERS: Final[list[tuple[type, tuple[str, ...]]]] = [
    (MethodType, ("__func__", "__self__")),
    (staticmethod, ("__func__",)),
    (classmethod, ("__func__",)),
    (property, ("fget", "fset", "fdel")),
    (functools.cached_property, ("func",)),
    (functools.singledispatchmethod, ("func", "dispatcher")),
    (types.DynamicClassAttribute, ("fget", "fset", "fdel")),
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


def is_class(found: Any) -> bool:
    """Whether it is a class; ``isinstance`` takes ``list[int]`` for one on Python 3.10."""
    return issubclass(type(found), type)


def harmless(found: Any) -> str | None:
    """What counts of an object that cannot be looked into and need not be, such as a lock."""
    kind = type(found)
    if is_built_in(found) or kind.__module__.partition(".")[0] in ("builtins", "collections"):
        return None
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__ == "itertools" and _COUNT.fullmatch(text := repr(found)):
        return text
    if name.startswith(_HARMLESS):
        return name
    if name.startswith("_io.") and found in (sys.__stdout__, sys.__stderr__, sys.__stdin__):
        return name
    if found is sys.stdout or found is sys.stderr or found is sys.stdin:
        return "stream"
    logging = sys.modules.get("logging")
    if logging is not None and isinstance(found, logging.Logger):
        return f"logger {found.name}"
    return None


def spelled(found: Any) -> str:
    """A name for code in a set, where places say nothing."""
    inner = innermost(found)
    name = f"{type(found).__name__} {getattr(inner, '__qualname__', '')}"
    if isinstance(inner, FunctionType) and "<" in name:
        name += f" {syntax_digest(inner.__code__) or code_facts(inner.__code__).digest}"
    return name


def is_patch(found: Any) -> bool:
    """Whether what stands in a module of a library is a function or class of the user."""
    if isinstance(found, FunctionType):
        made = is_library_module(str(found.__module__))
        return not made and library_place(found.__code__.co_filename) is None
    return is_class(found) and is_user_class(found)
