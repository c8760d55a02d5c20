"""Whether a module in memory is still what its file says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import CodeType, FunctionType, ModuleType
from typing import Any

from chelate.errors import GraphError

__all__ = ["check_unchanged"]

_STARTED = time.time()  # an older file has not been edited since it was imported, but for moments


def check_unchanged(name: str, module: ModuleType, file: str, data: bytes, edited: float) -> None:
    """Compare the functions in memory with the file, when it was edited since chelate was imported.

    What runs must be what was fingerprinted, and that is what is in memory.

    Args:
        name, module: the loaded module.
        file, data, edited: its file, the bytes there, and seconds since the epoch of the last edit.

    Raises:
        GraphError: the file holds other code than the process.
    """
    # Other loaders, such as pytest's for tests, rewrite what they load.
    spec = getattr(module, "__spec__", None)
    if edited < _STARTED or type(getattr(spec, "loader", None)) is not SourceFileLoader:
        return
    try:
        written = {_shape(code) for code in _codes(compile(data, file, "exec", dont_inherit=True))}
        same = all(_shape(code) in written for code in _live(module, name, file))
    except (SyntaxError, ValueError):
        same = False
    if not same:
        raise GraphError(
            f"The file {file} was edited after this process had imported {name}, so its tasks "
            f"would run other code than you have here. Call importlib.reload on {name}, or start "
            "Python anew, and dispatch again."
        )


def _live(module: ModuleType, name: str, file: str) -> Iterator[CodeType]:
    """Code of the functions and methods that the module's own file has made."""
    todo: list[Any] = list(vars(module).values())
    seen: set[int] = set()
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        plain = getattr(type(thing), "__chelate_plain__", None)
        if plain is not None:
            thing = plain(thing)
        if isinstance(thing, (staticmethod, classmethod)):
            thing = thing.__func__
        if isinstance(thing, property):
            todo += [thing.fget, thing.fset, thing.fdel]
        elif isinstance(thing, FunctionType):
            if thing.__code__.co_filename == file:
                yield thing.__code__
            todo.append(getattr(thing, "__wrapped__", None))
        elif isinstance(thing, type) and thing.__module__ == name:
            todo += vars(thing).values()


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _shape(code: CodeType) -> tuple[Any, ...]:
    """A code object without its place in the file."""
    constants = tuple(
        _shape(constant) if isinstance(constant, CodeType) else (type(constant), repr(constant))
        for constant in code.co_consts
    )
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_name, code.co_argcount, code.co_flags, code.co_code, constants, names
