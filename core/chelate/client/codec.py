"""Pickling on the user's side: values, functions and lattices become bytes here and nowhere else.

Tasks travel without chelate: an electron or lattice that a function or value reaches becomes its
plain function, so that the worker's environment needs no chelate. A lattice that is built again
elsewhere keeps its electrons.
"""

from __future__ import annotations

import copyreg
import dis
import io
import pickle
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle

from chelate.client.frames import current_line
from chelate.errors import ForeignPlaceholderError, GraphError, SerializationError
from chelate.worker import PYTHON_MARK, other_python, reduce_wrapper

__all__ = [
    "ATOMS",
    "PROTOCOL",
    "load_value",
    "pickle_function",
    "pickle_lattice",
    "pickle_portable",
    "pickle_value",
]

PROTOCOL = 5
ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})
_DEPTH = 6
_WIDTH = 1000


class _LatticePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Electrons stay electrons; a lattice leaves its triggers at home."""

    def reducer_override(self, obj: Any) -> Any:
        state = getattr(type(obj), "__chelate_state__", None)
        if state is not None:
            return copyreg.__newobj__, (type(obj),), state(obj)  # type: ignore[attr-defined]
        return _reduce_module(obj) or reduce_wrapper(obj) or super().reducer_override(obj)


class _TaskPickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Electrons and lattices become their plain functions."""

    def reducer_override(self, obj: Any) -> Any:
        plain = getattr(type(obj), "__chelate_plain__", None)
        if plain is not None:
            # A reduction must be a call; the greatest of one thing is that thing.
            return max, ((plain(obj),),)
        return _reduce_module(obj) or reduce_wrapper(obj) or super().reducer_override(obj)


def _reduce_module(module: Any) -> Any:
    """By value, a module that came by value: its name may stand for another one here."""
    if type(module) is not ModuleType or sys.modules.get(module.__name__, module) is module:
        return None
    state = {key: value for key, value in vars(module).items() if key != "__builtins__"}
    return cloudpickle.cloudpickle.dynamic_subimport, (module.__name__, state)


def pickle_value(value: Any, what: str = "The value") -> bytes:
    """The pickle of an argument, constant or result; ``what`` begins the message of a failure.

    Raises:
        SerializationError: it cannot be pickled; names the part that is to blame.
        GraphError: a placeholder is hidden in it.
    """
    if type(value) in ATOMS:
        return pickle.dumps(value, PROTOCOL)
    return _dump(_TaskPickler, value, what)


def pickle_function(function: Any, what: str = "") -> bytes:
    """The pickle of a task's function, which a worker without chelate can load.

    Raises:
        SerializationError: it cannot be pickled; names the global, cell or default to blame.
        GraphError: a placeholder is hidden in it.
    """
    return _dump(_TaskPickler, function, what or f"The function {_name(function)!r}")


def pickle_portable(value: Any, what: str = "The value") -> bytes:
    """The pickle of a value that a lattice is given, in which electrons stay electrons.

    Raises:
        SerializationError, GraphError: as :func:`pickle_value`.
    """
    if type(value) in ATOMS:
        return pickle.dumps(value, PROTOCOL)
    return _dump(_LatticePickler, value, what)


def pickle_lattice(lattice: Any) -> bytes:
    """The pickle of a lattice (or of an electron that replaces another) to be used elsewhere.

    Raises:
        SerializationError, GraphError: as :func:`pickle_function`.
    """
    return _dump(_LatticePickler, lattice, f"The {type(lattice).__name__} {_name(lattice)!r}")


def load_value(data: bytes | memoryview) -> Any:
    """The value of a pickle.

    Raises:
        SerializationError: it cannot be loaded in this environment; the cause is attached.
    """
    other = other_python(data)
    if other is not None:
        here = "{}.{}".format(*sys.version_info)
        raise SerializationError(
            f"This holds code that was stored by Python {other} and cannot be loaded by Python "
            f"{here}. Use Python {other}, or dispatch the workflow again from its source with "
            "reuse_from=."
        )
    try:
        return pickle.loads(data)
    except Exception as error:
        raise SerializationError(
            f"A stored value cannot be loaded here ({type(error).__name__}: {error}); install in "
            f"this environment what the value's type needs."
        ) from error


def _dump(pickler: type[cloudpickle.Pickler], value: Any, what: str) -> bytes:
    try:
        return _attempt(pickler, value)
    except ForeignPlaceholderError:
        raise
    except GraphError as error:
        line = current_line()
        raise GraphError(
            f"{what} is of type {_type_name(value)} and holds the output of a task in a place "
            f"where it cannot be filled in{f' ({line})' if line else ''}. Pass the output to an "
            f"electron as an argument of its own, or in a list, tuple, dict, set or named tuple."
        ) from error
    except Exception as error:
        where, part, cause = _blame(pickler, value, error)
        named = f"its {where}, of type {_type_name(part)}," if where else "it"
        raise SerializationError(
            f"{what} cannot be pickled: {named} gives {type(cause).__name__}: {cause}. "
            f"{_advice(part, cause)}"
        ) from error


def _attempt(pickler: type[cloudpickle.Pickler], value: Any) -> bytes:
    buffer = io.BytesIO()
    pickler(buffer, protocol=PROTOCOL).dump(value)
    data = buffer.getvalue()
    return data if b"CodeType" not in data else data[:2] + PYTHON_MARK + data[2:]


def _advice(part: Any, cause: Exception) -> str:
    if "recursion" in str(cause).lower():
        return "It is nested too deeply; pass it in a flat form."
    if isinstance(part, Iterator):
        return "Pass a list of its items."
    return (
        "Open locks, files, connections and the like inside the electron, and pass plain data, "
        "such as a path, between electrons."
    )


def _blame(
    pickler: type[cloudpickle.Pickler], value: Any, error: Exception
) -> tuple[str, Any, Exception]:
    """The innermost part that fails by itself: the way to it, the part, and its error."""
    where: list[str] = []
    seen = {id(value)}
    for _ in range(_DEPTH):
        for name, part in _parts(value):
            if id(part) in seen:
                continue
            seen.add(id(part))
            try:
                _attempt(pickler, part)
            except Exception as found:  # noqa: BLE001  any failure marks the part
                where.append(name)
                value, error = part, found
                break
        else:
            break
    return " → ".join(where), value, error


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What the pickle of ``value`` is made of, as far as it can be named."""
    plain = getattr(type(value), "__chelate_plain__", None)
    value = value if plain is None else plain(value)
    if isinstance(value, FunctionType):
        code = value.__code__
        for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=False):
            try:
                yield f"closure variable {name!r}", cell.cell_contents
            except ValueError:  # an empty cell
                continue
        names = set(_global_names(code))
        for name in sorted(names & value.__globals__.keys()):
            yield f"global variable {name!r}", value.__globals__[name]
        for number, default in enumerate(value.__defaults__ or ()):
            yield f"default number {number + 1}", default
        for name, default in (value.__kwdefaults__ or {}).items():
            yield f"default of {name!r}", default
    elif isinstance(value, dict):
        for number, (key, item) in enumerate(value.items()):
            if number >= _WIDTH:
                return
            yield f"key {key!r:.80}", key
            yield f"item {key!r:.80}", item
    elif isinstance(value, (list, tuple, set, frozenset)):
        for number, item in enumerate(value):
            if number >= _WIDTH:
                return
            yield f"item {number}", item
    else:
        for name in ("__self__", "__func__", "func", "args", "keywords"):
            if type(value).__name__ in ("partial", "method") and hasattr(value, name):
                yield f"attribute {name!r}", getattr(value, name)
        fields = getattr(value, "__dict__", None)
        if isinstance(fields, dict):
            yield from ((f"attribute {name!r}", part) for name, part in fields.items())


def _global_names(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _name(thing: Any) -> str:
    name = getattr(thing, "name", None) or getattr(thing, "__name__", None)
    return name if isinstance(name, str) else type(thing).__name__


def _type_name(value: Any) -> str:
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
