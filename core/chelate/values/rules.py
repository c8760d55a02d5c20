"""Which type is encoded how: everything but exact scalars, exact containers and arrays."""

from __future__ import annotations

import collections
import contextvars
import copy
import copyreg
import dataclasses
import datetime as dates
import decimal
import enum
import fractions
import functools
import pathlib
import random
import re
import struct
import sys
import typing
import uuid
import weakref
from collections.abc import Callable, Iterator
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, Final

from .arrays import LIBRARIES
from .code import code_of
from .encoding import Chunk, Encoder, Unstable, class_name
from .files import File

__all__ = ["FOUND", "HOOKS", "encode"]

# Flags of classes: made at run time, and whether code may change them (that in C may not be).
_HEAP: Final = 1 << 9
_CHANGEABLE: Final = 1 << 9 | 1 << 8
_BEHIND: Final = ("bound", "constraints", "supertype", "value")  # what a named type hint stands for
_WRITTEN: Final = frozenset({"__dict__", "__slots__", "__weakref__"})
Rule = Callable[[Encoder, Any], "list[Chunk]"]
HOOKS: dict[type, Callable[[Any], Any]] = {}
# Classes whose instances no hook and no library answers for; emptied when a hook is added.
FOUND: weakref.WeakKeyDictionary[type, Rule] = weakref.WeakKeyDictionary()
_LAYOUTS: weakref.WeakKeyDictionary[type, tuple[tuple[str, ...], frozenset[str]]] = (
    weakref.WeakKeyDictionary()
)
_CHECKED: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def encode(encoder: Encoder, value: Any) -> list[Chunk]:
    """The rule for anything but exact scalars and exact containers."""
    kind = type(value)
    if encoder.follow is not None:
        found = encoder.follow(value, encoder.unordered > 0)
        if found is not None:
            return encoder.record("part", found)
        if kind in _LIVE:
            return _LIVE[kind](encoder, value)
    rule = _EXACT.get(kind) or FOUND.get(kind)
    if rule is not None:
        return rule(encoder, value)
    if not issubclass(kind, type) and (
        kind.__module__ == "typing" or typing.get_origin(value) is not None
    ):
        return _hint(encoder, value, kind)
    named = _named(encoder, value)
    if named is not None:
        return named
    for base in kind.__mro__:
        if base in HOOKS:
            return _answer(encoder, value, HOOKS[base])
    if hasattr(kind, "__fingerprint__"):
        return _answer(encoder, value, kind.__fingerprint__)
    package = kind.__module__.partition(".")[0]
    for name, library_rule in LIBRARIES.items():
        module = sys.modules.get(name)
        if module is not None:
            chunks = library_rule(encoder, module, value, package)
            if chunks is not None:
                return chunks
    for base, rule in _BASES:
        if isinstance(value, base):
            return rule(encoder, value)
    for base in _PLAIN:
        if isinstance(value, base):
            return _subclass(encoder, value, base)
    if isinstance(value, Iterator) and not (encoder.follow is not None and _is_plain(kind)):
        raise Unstable(f"an iterator ({class_name(kind)}) can be read only once")
    FOUND[kind] = _instance
    return _instance(encoder, value)


def _answer(encoder: Encoder, value: Any, function: Callable[[Any], Any]) -> list[Chunk]:
    try:
        answer = function(value)
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
        raise Unstable(f"the fingerprint of a {class_name(type(value))} raised {raised}") from error
    if answer is None:
        raise Unstable(f"a {class_name(type(value))} says it has no stable fingerprint")
    if isinstance(value, File):
        return encoder.record("file", answer)
    own = class_name(type(value)) if encoder.follow is None else encoder.class_of(value)
    return encoder.record("own", own, answer)


def _hint(encoder: Encoder, value: Any, kind: type) -> list[Chunk]:
    """A type hint, by what it is made of; those made of nothing else by name."""
    origin = typing.get_origin(value)
    if origin is not None:
        more = (typing.get_args(value), getattr(value, "__metadata__", ()))
        return encoder.record("hint", _hint_name(origin) or origin, *more)
    behind = [getattr(value, f"__{part}__", None) for part in _BEHIND]
    if behind == [None] * len(behind):
        return encoder.record("name", f"typing:{_hint_name(value)}")
    return encoder.record("hint", _hint_name(value), *behind)


def _hint_name(value: Any) -> str | None:
    """The name of what typing has as a class in one Python and as an object in another."""
    if "typing" not in (value.__module__, type(value).__module__):
        return None
    names = (getattr(value, name, None) for name in ("__forward_arg__", "_name", "__name__"))
    return next(filter(None, names), None) or str(value)


def _named(encoder: Encoder, value: Any) -> list[Chunk] | None:
    """Functions, classes and modules of Python itself count by name; others need a hook."""
    if isinstance(value, BuiltinFunctionType) and not isinstance(value.__self__, ModuleType | None):
        return encoder.record("method", value.__self__, value.__name__)
    if isinstance(value, MethodType):
        return encoder.record("method", value.__self__, value.__func__)
    if isinstance(value, ModuleType):
        module, name = value.__name__, ""
    elif isinstance(value, type | FunctionType | BuiltinFunctionType) or (
        type(value) in (type(str.join), type(object.__init__))
        or type(value).__name__ == "cython_function_or_method"
    ):
        owner = getattr(value, "__objclass__", None)
        module = getattr(owner or value, "__module__", None) or "builtins"
        name = value.__qualname__
    else:
        return None
    if module.partition(".")[0] in sys.stdlib_module_names:
        return encoder.record("name", f"{module.partition('.')[0]}:{name}")
    if any(base in HOOKS for base in type(value).__mro__):
        return None
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    if "site-packages" in file or "dist-packages" in file:
        return encoder.record("name", f"{module}:{name}")
    digest = code_of(value)
    if digest is None:
        raise Unstable(f"{module}.{name} is code, which is fingerprinted only where its source is")
    kind = "class" if isinstance(value, type) else "function" if name else "module"
    encoder.code[f"{kind} {module}:{name}"] = digest
    return encoder.record("own", class_name(type(value)), digest)


def _subclass(encoder: Encoder, value: Any, base: type) -> list[Chunk]:
    """An instance of a subclass of a built-in: the built-in's content and the fields added."""
    fields = _fields(value)
    if isinstance(value, collections.defaultdict):
        fields["default_factory"] = value.default_factory
    return encoder.fields("subclass", type(value), fields, _PLAIN[base](value))


def _layout(kind: type) -> tuple[tuple[str, ...], frozenset[str]]:
    """The names of a class's slots, and of its cached properties, which follow from the rest."""
    known = _LAYOUTS.get(kind)
    if known is not None:
        return known
    names: list[str] = []
    cached: set[str] = set()
    for owner in kind.__mro__:
        slots = owner.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{owner.__name__.lstrip('_')}{name}"
            if name not in ("__dict__", "__weakref__"):
                names.append(name)
        for name, member in owner.__dict__.items():
            if isinstance(member, functools.cached_property):
                cached.add(name)
    _LAYOUTS[kind] = tuple(names), frozenset(cached)
    return _LAYOUTS[kind]


def _fields(value: Any) -> dict[str, Any]:
    slots, cached = _layout(type(value))
    found = dict(getattr(value, "__dict__", ()))
    for name in slots:
        if hasattr(value, name):
            found[name] = getattr(value, name)
    for name in cached:
        found.pop(name, None)
    return found


def _instance(encoder: Encoder, value: Any) -> list[Chunk]:
    kind = type(value)
    attributes = getattr(kind, "__attrs_attrs__", None)
    if attributes is not None:
        names = [attribute.name for attribute in attributes]
        fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
        return encoder.fields("instance", kind, fields)
    if dataclasses.is_dataclass(value):
        return encoder.fields("instance", kind, _fields(value))
    if hasattr(kind, "__pydantic_validator__"):
        fields = _fields(value)
        hidden = [
            fields.pop(f"__pydantic_{name}__", None) for name in ("fields_set", "extra", "private")
        ]
        return encoder.fields("pydantic", kind, fields, *hidden)
    return _reduced(encoder, value, kind)


def _is_plain(kind: type) -> bool:
    """Whether instances of a class hold nothing but fields, as those of no class in C need do."""
    for base in kind.__mro__[:-1]:
        if base.__flags__ & _CHANGEABLE != _HEAP:
            return False
        if base.__bases__ == (object,) and base.__dict__.keys().isdisjoint(_WRITTEN):
            return False
    return True


def _reduced(encoder: Encoder, value: Any, kind: type) -> list[Chunk]:
    """The parts by which the object is pickled, encoded by the usual rules."""
    if encoder.follow is not None and _is_plain(kind):
        return encoder.fields("instance", kind, _fields(value))  # it is never pickled
    try:
        custom = copyreg.dispatch_table.get(kind)
        parts = custom(value) if custom is not None else value.__reduce_ex__(4)
    except Exception as error:
        raise Unstable(f"a {class_name(kind)} cannot be taken apart: {error}") from error
    if isinstance(parts, str):
        return encoder.record("global", class_name(kind), parts)
    call, arguments, state, items, pairs = (*parts, None, None, None)[:5]
    own_state = getattr(kind, "__getstate__", None)
    if (
        getattr(call, "__name__", "") == "__newobj__"
        and arguments == (kind,)
        and own_state is getattr(object, "__getstate__", None)
        and items is None
        and pairs is None
    ):
        return encoder.fields("instance", kind, _fields(value))
    if kind not in _CHECKED:
        _CHECKED[kind] = ""  # the check itself comes back here
        try:
            _CHECKED[kind] = _check(encoder, value, kind)
        except Unstable:
            del _CHECKED[kind]  # a part is to blame, so the class is still to be checked
            raise
    if _CHECKED[kind]:
        raise Unstable(_CHECKED[kind])
    head = [encoder.class_of(kind), f"{call.__module__}:{getattr(call, '__qualname__', '')}"]
    plain = [class_name(item) if item is kind else item for item in arguments]
    content = [None if part is None else list(part) for part in (items, pairs)]
    return encoder.record("reduced", head, plain, state, *content)


def _check(encoder: Encoder, value: Any, kind: type) -> str:
    """Why two equal objects of a class would differ, or nothing; asked once per class."""
    try:
        twin = copy.deepcopy(value)
        first, second = (Encoder(encode, encoder.follow).run(item) for item in (value, twin))
        if first == second:
            return ""
    except Unstable:
        raise  # a part is to blame, and it is named
    except Exception as error:  # noqa: BLE001 - whatever the class's own code raises
        return f"a {class_name(kind)} cannot be copied: {error}"
    return f"a {class_name(kind)} and its copy are pickled differently; give it __fingerprint__()"


def _current(variable: contextvars.ContextVar[Any]) -> list[Any]:
    try:
        return [variable.get()]
    except LookupError:
        return []


def _date(encoder: Encoder, value: Any) -> list[Chunk]:
    zone = getattr(value, "tzinfo", None)
    naive = value.replace(tzinfo=None) if zone is not None else value
    fold = getattr(value, "fold", 0)
    return encoder.record(type(value).__name__, naive.isoformat(), fold, zone)


# What can be looked into, but not be pickled.
_LIVE: Final[dict[type, Rule]] = {
    weakref.ref: lambda encoder, value: encoder.record("weak", value()),
    contextvars.ContextVar: lambda encoder, value: encoder.record(
        "variable", value.name, *_current(value)
    ),
}
_EXACT: Final[dict[type, Rule]] = {
    memoryview: lambda encoder, value: encoder.record(
        "memory", value.format, value.shape, value.tobytes()
    ),
    decimal.Decimal: lambda encoder, value: encoder.record("decimal", str(value)),
    fractions.Fraction: lambda encoder, value: encoder.record(
        "fraction", value.numerator, value.denominator
    ),
    dates.datetime: _date,
    dates.date: _date,
    dates.time: _date,
    dates.timedelta: lambda encoder, value: encoder.record(
        "delta", value.days, value.seconds, value.microseconds
    ),
    dates.timezone: lambda encoder, value: encoder.record(
        "zone", value.utcoffset(None), value.tzname(None)
    ),
    uuid.UUID: lambda encoder, value: encoder.record("uuid", value.bytes),
    range: lambda encoder, value: encoder.record("range", value.start, value.stop, value.step),
    slice: lambda encoder, value: encoder.record("slice", value.start, value.stop, value.step),
    struct.Struct: lambda encoder, value: encoder.record("layout", value.format),
    re.Pattern: lambda encoder, value: encoder.record("pattern", value.pattern, value.flags),
    MappingProxyType: lambda encoder, value: encoder.record("proxy", dict(value)),
    SimpleNamespace: lambda encoder, value: encoder.fields(
        "namespace", SimpleNamespace, value.__dict__
    ),
    # The functions of the module draw from one instance, whose state nobody has chosen.
    random.Random: lambda encoder, value: (
        encoder.record("random", "global")
        if value is getattr(random, "_inst", None)
        else _instance(encoder, value)
    ),
    functools.partial: lambda encoder, value: encoder.record(
        "partial", value.func, value.args, dict(sorted(value.keywords.items())), _fields(value)
    ),
}
_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    dict: lambda value: dict(dict.items(value)),
    list: lambda value: list(list.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    str: lambda value: "".join(str.__iter__(value)),
    bytes: lambda value: bytes(memoryview(value)),
    bytearray: lambda value: bytearray(memoryview(value)),
    int: int.__int__,
    float: float.__float__,
    complex: lambda value: complex(value.real, value.imag),
}
_BASES: Final[list[tuple[type, Rule]]] = [
    (
        enum.Enum,
        lambda encoder, value: encoder.record(
            "enum", encoder.class_of(value), value.name, value.value
        ),
    ),
    (
        BaseException,
        lambda encoder, value: encoder.fields("exception", type(value), _fields(value), value.args),
    ),
    (
        pathlib.PurePath,
        lambda encoder, value: encoder.record("path", type(value).__name__, str(value)),
    ),
]
