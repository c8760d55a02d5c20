"""Fitting a call to a function's parameters, so that equal calls look equal in a graph."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from chelate.client.frames import current_line
from chelate.errors import GraphError, UserError

__all__ = ["Parameters", "check_plain"]

_UNLIMITED = 1 << 62


def check_plain(function: Any, word: str) -> None:
    """Refuse what cannot be an electron or a lattice (``word`` says which).

    Raises:
        GraphError: not callable, a coroutine function, or a generator function.
    """
    if not callable(function):
        raise GraphError(
            f"ct.{word} needs a function, a class or another callable; it was given "
            f"{type(function).__name__}. Options go by name, as in @ct.{word}(executor=…)."
        )
    # partial, bound method and callable instance hide the function whose kind counts.
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    call = inner if inspect.isroutine(inner) or isinstance(inner, type) else type(inner).__call__
    name = getattr(inner, "__name__", type(inner).__name__)
    for candidate in (inner, call):
        if inspect.iscoroutinefunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise GraphError(
                f"{name!r} is an async function, and a {word} is called like any other function. "
                + (
                    f"Write a plain function that calls asyncio.run({name}(…))."
                    if word == "electron"
                    else "Write it with def: the calls in it only record tasks, and never wait."
                )
            )
        if inspect.isgeneratorfunction(candidate):
            raise GraphError(
                f"{name!r} is a generator function, and what it yields one by one cannot be sent "
                f"elsewhere. Return a list of the items instead."
            )


class Parameters:
    """A function's parameters. ``least`` and ``most`` bound the positional arguments of a call
    that needs no further look; ``names`` belong to the leading positional ones.
    """

    __slots__ = ("_by_name", "_signature", "least", "most", "names", "rest", "title")

    def __init__(self, function: Callable[..., Any], title: str) -> None:
        self.title = title
        self.rest = "args"
        self._by_name: dict[str, int] = {}
        try:
            self._signature: inspect.Signature | None = inspect.signature(function)
        except (ValueError, TypeError):  # builtins such as max tell nothing
            self._signature = None
            self.names: tuple[str, ...] = ()
            self.least, self.most = 0, _UNLIMITED
            return
        parameters = self._signature.parameters.values()
        leading = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.names = tuple(p.name for p in leading)
        self.least = sum(p.default is p.empty for p in leading)
        self.most = len(leading)
        for number, p in enumerate(leading):
            if p.kind == p.POSITIONAL_OR_KEYWORD:
                self._by_name[p.name] = number
        for p in parameters:
            if p.kind == p.VAR_POSITIONAL:
                self.rest, self.most = p.name, _UNLIMITED
            elif p.kind == p.KEYWORD_ONLY and p.default is p.empty:
                self.least = _UNLIMITED

    @classmethod
    def stored(cls, data: list[list[Any]], title: str) -> Parameters:
        """The inverse of :meth:`to_json`; defaults have no values."""

        def stand_in() -> None:
            """Lends the signature a callable."""

        kinds = {kind.name: kind for kind in inspect._ParameterKind}
        stand_in.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name, kinds[kind], default=None if optional else inspect.Parameter.empty
                )
                for name, kind, optional in data
            ]
        )
        return cls(stand_in, title)

    def to_json(self) -> list[list[Any]] | None:
        """``[[name, kind, whether it has a default], …]``; None when nothing is known."""
        if self._signature is None:
            return None
        given = self._signature.parameters.values()
        return [[p.name, p.kind.name, p.default is not p.empty] for p in given]

    def all_names(self) -> tuple[str, ...]:
        """Every parameter in order; ``*args`` and ``**kwargs`` with their stars."""
        if self._signature is None:
            return ()
        one, two = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        stars: dict[Any, str] = {one: "*", two: "**"}
        given = self._signature.parameters.values()
        return tuple(stars.get(p.kind, "") + p.name for p in given)

    def bind(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        error: type[UserError] = GraphError,
        who: str = "",
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call in one form: by position where possible, the rest in signature order.

        Raises:
            GraphError, or ``error``: an argument is missing, too many, unknown or given twice.
        """
        if self._signature is None:
            return args, kwargs
        if self.least != _UNLIMITED and len(args) <= self.most:
            # Keywords that continue the positional arguments without a gap: the common case.
            names = self._by_name
            end = len(args) + len(kwargs)
            if self.least <= end <= len(self.names) and all(
                len(args) <= names.get(name, -1) < end for name in kwargs
            ):
                return (*args, *(kwargs[name] for name in self.names[len(args) : end])), {}
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as problem:
            line = current_line()
            raise error(
                f"{who or f'The call of {self.title!r}'} does not fit "
                f"{self.title}{self._shown()}: {problem}{f' ({line})' if line else ''}."
            ) from None
        return bound.args, bound.kwargs

    def _shown(self) -> str:
        assert self._signature is not None
        bare = [
            p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else ...)
            for p in self._signature.parameters.values()
        ]
        shown = str(inspect.Signature(bare))
        return shown.replace("Ellipsis", "…").replace("=...", "=…")
