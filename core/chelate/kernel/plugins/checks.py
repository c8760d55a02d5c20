"""What a plugin must keep to, checked while it loads; every breach is a TypeError that says how."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

from chelate.api import API
from chelate.contracts import hookspecs

__all__ = ["REGISTRATION", "check_classes", "check_functions", "contract"]

# What a plugin may provide, and the hook that says so.
REGISTRATION = {
    "executor": "chelate_register_executors",
    "store": "chelate_register_stores",
    "trigger": "chelate_register_triggers",
}
_CONTRACTS = {
    "executor": ("chelate.contracts.executor", "Executor"),
    "store": ("chelate.contracts.store", "ResultStore"),
    "trigger": ("chelate.contracts.trigger", "BaseTrigger"),
}


def contract(kind: str) -> type[Any]:
    """The base class of everything of that kind."""
    module, name = _CONTRACTS[kind]
    return cast("type[Any]", getattr(importlib.import_module(module), name))


def check_functions(plugin: object) -> None:
    """What pluggy lets through and the contract does not.

    Default values: pluggy 1.6 ignores them and 1.7 fills them in, so they would mean two things.
    """
    for name in hookspecs.__all__:
        function = getattr(plugin, name, None)
        options = getattr(function, "chelate_impl", None)
        if options is None:
            continue
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{name} is a coroutine function; hooks are plain functions")
        if options.get("wrapper") or options.get("hookwrapper"):
            raise TypeError(f"{name} is a wrapper; hooks of chelate cannot be wrapped")
        for parameter in inspect.signature(
            cast("Callable[..., Any]", function)
        ).parameters.values():
            if parameter.default is not parameter.empty:
                raise TypeError(f"{name}: argument {parameter.name!r} has a default value")


def check_classes(kind: str, answer: object) -> dict[tuple[str, str], type[Any]]:
    """The classes a registration hook returned, by kind and name.

    Raises:
        TypeError: what was returned breaks the contract; the message says how.
    """
    base, hook = contract(kind), REGISTRATION[kind]
    if not isinstance(answer, Sequence) or isinstance(answer, (str, bytes)):
        raise TypeError(f"{hook} must return a list of classes, not {answer!r}")
    return {(kind, name): found for found in answer for name in _names(kind, base, hook, found)}


def _names(kind: str, base: type[Any], hook: str, found: object) -> Sequence[str]:
    if not isinstance(found, type) or not issubclass(found, base):
        raise TypeError(f"{hook} returned {found!r}, which is no subclass of {base.__name__}")
    label = f"{found.__module__}.{found.__qualname__}"
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise TypeError(f"{label} lacks the methods {lacking}")
    version = getattr(found, "api_version", API)
    if not (isinstance(version, tuple) and len(version) == 2):
        raise TypeError(f"{label}.api_version must be (major, minor), not {version!r}")
    if version[0] != API[0] or version > API:
        raise TypeError(
            f"{label} is written for version {version[0]}.{version[1]} of chelate.api, and "
            f"this is {API[0]}.{API[1]}; install a release of the plugin that fits"
        )
    names: object = (
        getattr(found, "schemes", ()) if kind == "store" else (getattr(found, "name", None),)
    )
    attribute = "schemes" if kind == "store" else "name"
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise TypeError(f"{label}.schemes must be a tuple of at least one URL scheme")
    for name in names:
        if not isinstance(name, str) or name.split() != [name]:
            raise TypeError(
                f"{label}.{attribute} must be set, to a word without spaces; it is {name!r}"
            )
    return names
