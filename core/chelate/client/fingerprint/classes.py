"""What counts of a class: its name, bases, and every attribute that somebody wrote.

Methods that dataclasses, attrs, named tuples, enums and pydantic generate are left out; the fields
they are generated from are in.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import re
import typing
from collections.abc import Iterator
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final

from .library import is_library_file, is_library_module

__all__ = ["ClassParts", "class_parts", "is_user_class"]

_BOOKKEEPING: Final = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__attrs_attrs__",
        "__attrs_base_of_slotted__",
        "__attrs_own_setattr__",
        "__attrs_props__",
        "__class_getitem__",
        "__class_vars__",
        "__classcell__",
        "__classdictcell__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__dict__",
        "__doc__",
        "__fields__",
        "__fields_set__",
        "__firstlineno__",
        "__hash__",
        "__match_args__",
        "__module__",
        "__new_member__",
        "__non_callable_proto_members__",
        "__orig_bases__",
        "__parameters__",
        "__private_attributes__",
        "__protocol_attrs__",
        "__qualname__",
        "__signature__",
        "__slots__",
        "__static_attributes__",
        "__type_params__",
        "__weakref__",
        "_abc_impl",
        "_all_bits_",
        "_boundary_",
        "_field_defaults",
        "_fields",
        "_flag_mask_",
        "_hashable_values_",
        "_inverted_",
        "_member_map_",
        "_member_names_",
        "_member_type_",
        "_new_member_",
        "_singles_mask_",
        "_sort_order_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_use_args_",
        "_value2member_map_",
        "_value_repr_",
        "model_computed_fields",
        "model_fields",
    }
)
_SETTINGS: Final = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")
_FIELD: Final = ("init", "repr", "hash", "compare", "kw_only")
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclasses.dataclass(frozen=True, slots=True)
class ClassParts:
    """``text`` counts as it is; ``members`` are objects to be visited, by what they are there."""

    text: str
    members: list[tuple[str, Any]]


def is_user_class(kind: type) -> bool:
    """Whether a class was written by the user."""
    return not is_library_module(kind.__module__) and kind.__module__ != "builtins"


def class_parts(kind: type) -> ClassParts:
    """What counts of a user's class."""
    lines = [kind.__name__]
    members: list[tuple[str, Any]] = [
        (f"base {number}", base) for number, base in enumerate(kind.__bases__) if base is not object
    ]
    if type(kind) is not type and is_user_class(type(kind)):
        members.append(("metaclass", type(kind)))
    generated = _fields(kind, lines, members)
    # Text for `from __future__ import annotations`, objects without: both as they stand.
    if dataclasses.is_dataclass(kind) or generated or _reads_annotations(kind):
        annotations = inspect.get_annotations(kind)
        for name, annotation in annotations.items():
            lines.append(f"{name}: {_annotation(annotation)}")
            members.extend((f"type of {name}", item) for item in _user_types(annotation))
    slots = kind.__dict__.get("__slots__")
    if slots is not None:
        lines.append(f"slots {sorted((slots,) if isinstance(slots, str) else slots)}")
    if kind.__dict__.get("__hash__", kind) is None:
        lines.append("unhashable")
    for name in sorted(kind.__dict__):
        if name in _BOOKKEEPING or name.startswith("__pydantic_"):
            continue
        member = kind.__dict__[name]
        if not _is_generated(kind, name, member, generated):
            members.append((name, member))
    written_hash = kind.__dict__.get("__hash__")
    if isinstance(written_hash, FunctionType) and not _is_made(written_hash):
        members.append(("__hash__", written_hash))
    return ClassParts("\n".join(lines), members)


def _reads_annotations(kind: type) -> bool:
    return any(base.__module__ == "typing" for base in kind.__mro__)


def _fields(kind: type, lines: list[str], members: list[tuple[str, Any]]) -> bool:
    """Describe the fields of a class that was generated from them, if it was."""
    if "__dataclass_fields__" in kind.__dict__:
        settings = kind.__dict__["__dataclass_params__"]
        lines.append(f"dataclass {[getattr(settings, name, None) for name in _SETTINGS]}")
        for field in kind.__dict__["__dataclass_fields__"].values():
            marks = [getattr(field, name, None) for name in _FIELD]
            marks = [mark if isinstance(mark, bool) else None for mark in marks]
            lines.append(f"{field.name} {marks} {_annotation(field.type)}")
            _default(field, dataclasses.MISSING, ("default", "default_factory"), members)
        return True
    if "__attrs_attrs__" in kind.__dict__:
        for field in kind.__dict__["__attrs_attrs__"]:
            lines.append(f"{field.name} {field.init} {field.kw_only} {_annotation(field.type)}")
            _default(field, None, ("default", "converter", "validator"), members)
        return True
    if issubclass(kind, tuple) and "_fields" in kind.__dict__:
        lines.append(f"fields {kind.__dict__['_fields']}")
        members.append(("defaults", dict(kind.__dict__.get("_field_defaults", {}))))
        return True
    if issubclass(kind, enum.Enum):
        for name, member in kind.__members__.items():
            lines.append(name)
            members.append((f"member {name}", member.value))
        return True
    fields = kind.__dict__.get("__pydantic_fields__")
    if isinstance(fields, dict):
        for name, field in fields.items():
            required, metadata = field.is_required(), _ADDRESS.sub("", repr(field.metadata))
            lines.append(f"{name} {required} {_annotation(field.annotation)} {metadata}")
            if not required and field.default_factory is None:
                members.append((f"default of {name}", field.default))
            if field.default_factory is not None:
                members.append((f"default_factory of {name}", field.default_factory))
        return True
    return False


def _default(
    field: Any, missing: object, names: tuple[str, ...], members: list[tuple[str, Any]]
) -> None:
    for name in names:
        value = getattr(field, name, missing)
        if value is missing or type(value).__name__ == "_Nothing":
            continue
        members.append((f"{name} of {field.name}", value))


def _is_generated(kind: type, name: str, member: Any, generated: bool) -> bool:
    if isinstance(member, (MemberDescriptorType, GetSetDescriptorType)):
        return True
    if issubclass(kind, enum.Enum):
        if name in kind.__members__ or (name.startswith("_") and not _is_written(member)):
            return True
        return type(member).__module__ == "enum"
    if not generated:
        return False
    if type(member).__name__ == "_tuplegetter":
        return True
    inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    if isinstance(inner, functools.cached_property):
        return False
    if isinstance(inner, FunctionType):
        return _is_made(inner)
    fields = kind.__dict__.get("__dataclass_fields__") or ()
    # The class attribute of a field is its default, which is among the fields.
    return name in fields or (name.startswith("__") and not _is_written(member))


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
        return function.__name__.startswith("__")
    return filename.startswith(("<attrs", "<namedtuple")) or is_library_file(filename)


def _annotation(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__
    return _ADDRESS.sub("", repr(annotation))


def _user_types(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        if is_user_class(annotation):
            yield annotation
        return
    for item in typing.get_args(annotation):
        yield from _user_types(item)
