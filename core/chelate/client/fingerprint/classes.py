"""What counts of a class: its name, bases, and every attribute that somebody wrote.

Methods that dataclasses, attrs, named tuples, enums and pydantic generate are left out; the fields
they are generated from are in.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import inspect
import re
import sys
import types
from types import FunctionType, GetSetDescriptorType, MappingProxyType, MemberDescriptorType
from typing import Any, Final

from .library import is_library_file, is_library_module

__all__ = ["ClassParts", "class_parts", "is_user_class"]

_BOOKKEEPING: Final = frozenset({
    "__abstractmethods__", "__annotate__", "__annotate_func__", "__annotations__",
    "__annotations_cache__", "__classcell__", "__classdictcell__", "__dict__", "__doc__",
    "__firstlineno__", "__hash__", "__match_args__", "__module__", "__orig_bases__",
    "__parameters__", "__qualname__", "__slots__", "__static_attributes__", "__type_params__",
    "__weakref__", "_abc_impl"
})  # fmt: skip
# What is made for classes of one kind, by what their class has.
_MADE: Final = {
    "__dataclass_fields__": frozenset({"__dataclass_fields__", "__dataclass_params__"}),
    "__attrs_attrs__": frozenset(
        {"__attrs_attrs__", "__attrs_base_of_slotted__", "__attrs_own_setattr__", "__attrs_props__"}
    ),
    "__pydantic_fields__": frozenset(
        {
            "__class_vars__",
            "__fields__",
            "__fields_set__",
            "__private_attributes__",
            "__signature__",
            "model_computed_fields",
            "model_fields",
        }
    ),
    "_field_defaults": frozenset({"_field_defaults", "_fields"}),
    "__total__": frozenset(
        {"__mutable_keys__", "__optional_keys__", "__readonly_keys__", "__required_keys__"}
    ),
    "__protocol_attrs__": frozenset({"__non_callable_proto_members__", "__protocol_attrs__"}),
}
_HEAP: Final = 1 << 9
_SUNDER: Final = re.compile(r"_+[a-z0-9_]*_+")
_SETTINGS: Final = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")
_FIELD: Final = ("init", "repr", "hash", "compare", "kw_only")
_ATTRIBUTE: Final = (
    "name", "init", "kw_only", "repr", "eq", "eq_key", "order", "order_key", "hash", "alias",
    "type", "metadata", "default", "converter", "validator", "on_setattr"
)  # fmt: skip
# Methods that dataclasses make of a text.
_GENERATED: Final = frozenset({
    "__new__", "__init__", "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__",
    "__setattr__", "__delattr__", "__replace__", "__getstate__", "__setstate__"
})  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class ClassParts:
    """``text`` counts as it is; ``members`` are objects to be visited, by what they are there."""

    text: str
    members: list[tuple[str, Any]]


def is_user_class(kind: type) -> bool:
    """Whether a class was written by the user."""
    module = kind.__module__
    if module == "types":  # where dataclasses and types make classes of nobody's
        return getattr(types, kind.__name__, None) is not kind and bool(kind.__flags__ & _HEAP)
    return not is_library_module(module) and module != "builtins"


def class_parts(kind: type) -> ClassParts:
    """What counts of a user's class."""
    own = kind.__dict__
    lines = [kind.__name__, *(base.__name__ for base in kind.__bases__)]
    members: list[tuple[str, Any]] = [
        (f"base {number}", base) for number, base in enumerate(kind.__bases__) if base is not object
    ]
    if type(kind) is not type and is_user_class(type(kind)):
        members.append(("metaclass", type(kind)))
    if "__orig_bases__" in own:
        members.append(("type arguments", own["__orig_bases__"]))
    generated = _fields(kind, lines, members)
    if generated or _annotations_are_read(kind):
        members.append(("annotations", inspect.get_annotations(kind)))
    slots = own.get("__slots__")
    if slots is not None:
        lines.append(f"slots {sorted((slots,) if isinstance(slots, str) else slots)}")
    lines.append(f"matched by {own.get('__match_args__')}")
    if own.get("__hash__", kind) is None:
        lines.append("unhashable")
    made = [names for mark, names in _MADE.items() if mark in own]
    for name in sorted(own.keys() - _BOOKKEEPING.union(*made)):
        if name.startswith("__pydantic_"):
            continue
        if not _is_generated(kind, name, own[name], generated):
            members.append((name, own[name]))
        elif "__attrs_attrs__" in own and name not in ("__replace__", "__setstate__"):
            lines.append(name)  # whether it is ordered, frozen and so on
    written_hash = own.get("__hash__")
    if isinstance(written_hash, FunctionType) and not _is_made(written_hash):
        members.append(("__hash__", written_hash))
    if "_abc_impl" in own:
        alive = [reference() for reference in abc._get_dump(kind)[0]]  # type: ignore[attr-defined]
        known = [virtual for virtual in alive if virtual is not None]
        members.append(("registered", sorted(known, key=lambda item: item.__qualname__)))
    return ClassParts("\n".join(lines), members)


def _annotations_are_read(kind: type) -> bool:
    """Whether a class has typing or an installed package above it, which may read them."""
    above = {base.__module__ for base in (*kind.__mro__, type(kind))}
    return "typing" in above or any(
        module.partition(".")[0] not in sys.stdlib_module_names and is_library_module(module)
        for module in above
    )


def _fields(kind: type, lines: list[str], members: list[tuple[str, Any]]) -> bool:
    """Describe the fields of a class that was generated from them, if it was."""
    own = kind.__dict__
    if "__dataclass_fields__" in own:
        settings = own["__dataclass_params__"]
        lines.append(f"dataclass {[getattr(settings, name, None) for name in _SETTINGS]}")
        for field in own["__dataclass_fields__"].values():
            marks = [getattr(field, name, None) for name in _FIELD]
            marks = [mark if isinstance(mark, bool) else None for mark in marks]
            given = [
                None if value is dataclasses.MISSING else [value]
                for value in (field.default, field.default_factory)
            ]
            described = [field.name, marks, field.type, dict(field.metadata), given]
            members.append((f"field {field.name}", described))
    elif "__attrs_attrs__" in own:
        for field in own["__attrs_attrs__"]:
            described = [getattr(field, name, None) for name in _ATTRIBUTE]
            members.append((f"field {field.name}", [_plain(item) for item in described]))
    elif issubclass(kind, tuple) and "_fields" in own:
        lines.append(f"fields {own['_fields']}")
        members.append(("defaults", dict(own.get("_field_defaults", {}))))
    elif issubclass(kind, enum.Enum):
        lines.append(f"{own.get('_boundary_')}")
        for name, member in kind.__members__.items():
            lines.append(name)
            members.append((f"member {name}", member.value))
    elif isinstance(own.get("__pydantic_fields__"), dict):
        members += [(f"field {name}", item) for name, item in own["__pydantic_fields__"].items()]
        members.append(("private", dict(own.get("__private_attributes__") or {})))
        decorators = own.get("__pydantic_decorators__")
        for group in getattr(decorators, "__dataclass_fields__", ()):
            for name, decorator in (getattr(decorators, group, None) or {}).items():
                members.append((f"{group} {name}", getattr(decorator, "info", None)))
    else:
        return False
    return True


def _plain(item: Any) -> Any:
    """A part of the description of a field of attrs, with what is in it."""
    if type(item).__name__ == "Factory":
        return ["factory", item.factory, item.takes_self]
    return dict(item) if isinstance(item, MappingProxyType) else item


def _is_generated(kind: type, name: str, member: Any, generated: bool) -> bool:
    if isinstance(member, (MemberDescriptorType, GetSetDescriptorType)):
        return True
    if issubclass(kind, enum.Enum):
        if name in kind.__members__ or (_SUNDER.fullmatch(name) and not _is_written(member)):
            return True
        return type(member).__module__ == "enum" and getattr(member, "fget", None) is None
    inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    if isinstance(inner, FunctionType) and inner.__module__ == "typing":
        return True  # what a protocol is given
    if not generated:
        return False
    if type(member).__name__ == "_tuplegetter":
        return True
    if isinstance(inner, FunctionType):
        library = is_library_file(inner.__code__.co_filename)
        return _is_made(inner) or (library and name[:1] == "_")
    # The class attribute of a field is its default, which is among the fields.
    return name in (kind.__dict__.get("__dataclass_fields__") or ())


def _is_written(member: Any) -> bool:
    inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    inner = inner.fget if isinstance(inner, property) else inner
    return isinstance(inner, FunctionType) and not _is_made(inner)


def _is_made(function: FunctionType) -> bool:
    """Whether a method comes from a library or was made from a text by one."""
    inner = getattr(function, "__wrapped__", None)
    if isinstance(inner, FunctionType) and inner is not function:
        return _is_made(inner)
    filename = function.__code__.co_filename
    if filename == "<string>":
        return function.__name__ in _GENERATED
    if filename.startswith(("<attrs", "<namedtuple")):
        return True
    return is_library_file(filename) and function.__name__[:1] == "_"
