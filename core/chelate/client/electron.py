"""Electrons: plain functions that a lattice records as tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, overload

from chelate.client.lattice import Lattice
from chelate.client.options import Options
from chelate.client.recorder import active_build, is_placeholder
from chelate.client.signature import check_plain
from chelate.errors import ConfigError, ForeignPlaceholderError, GraphError
from chelate.model import ExecutorRef
from chelate.worker import GENERIC

__all__ = ["Electron", "electron"]


class Electron:
    """A task. Called inside a lattice it records a node and returns a placeholder; anywhere else
    it is the plain function.

    Attributes:
        name: the function's name, or what ``name=`` said.
        function: the plain function, or the :class:`Lattice` of a sub-workflow.
        options: what was said about this task itself.
    """

    name: str
    function: Callable[..., Any]
    options: Options
    _binds: bool

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        options: Options | None = None,
    ) -> None:
        static = isinstance(function, staticmethod)
        if isinstance(function, classmethod):
            raise GraphError("Write @classmethod above @ct.electron, not below it.")
        if is_placeholder(function):
            raise GraphError(
                "The output of a task cannot be marked as an electron: call it as it is, or call "
                "it inside an electron."
            )
        function = function.__func__ if isinstance(function, staticmethod) else function
        if not isinstance(function, Lattice):
            check_plain(function, "electron")
        # A class or an object keeps its attributes to itself.
        copied = ("__dict__",) if isinstance(function, FunctionType) else ()
        functools.update_wrapper(self, function, updated=copied)
        self.function = function
        self.name = name or _name_of(function)
        self.options = options or Options()
        # Only what Python itself binds to an instance is bound: functions, not classes, partials
        # or builtins.
        self._binds = not static and hasattr(type(function), "__get__")

    @property
    def lattice(self) -> Lattice | None:
        """The lattice, if this is a sub-workflow."""
        return self.function if isinstance(self.function, Lattice) else None

    @property
    def plain_function(self) -> Callable[..., Any]:
        """The function that the user wrote, of a sub-workflow its lattice's."""
        lattice = self.lattice
        return self.function if lattice is None else lattice.workflow_function

    @property
    def executor(self) -> ExecutorRef | None:
        """Where it runs, if it says so itself. To change it: ``ct.electron(f, executor=…)``."""
        return self.options.executor

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        build = active_build()
        if build is not None:
            return build.call(self, args, kwargs)
        for value in args:
            if is_placeholder(value):
                raise ForeignPlaceholderError(
                    f"The electron {self.name!r} was called outside a lattice with the output of "
                    f"a task that has not run; call it inside the lattice's function, in the same "
                    f"thread."
                )
        return self.function(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None or not self._binds else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<electron {self.name}>"

    def __chelate_plain__(self) -> Callable[..., Any]:
        return self.function

    def __chelate_state__(self) -> dict[str, Any]:
        if "registry" not in self.__dict__:
            return self.__dict__
        # Parts of a generic function only hold for the process that made it.
        return {key: value for key, value in self.__dict__.items() if key not in GENERIC}


def _name_of(function: Any) -> str:
    if isinstance(function, Lattice):
        return function.name
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "name" if isinstance(function, Electron) else "__name__", None)
    return name if isinstance(name, str) and name else type(function).__name__


@overload
def electron(
    function: Callable[..., Any],
    *,
    executor: Any = None,
    retries: Any = None,
    timeout: Any = None,
    resources: Any = None,
    reuse: Any = None,
    version: Any = None,
    depends_on: Any = None,
    ignore: Any = None,
    name: str | None = None,
) -> Electron: ...


@overload
def electron(
    function: None = None,
    *,
    executor: Any = None,
    retries: Any = None,
    timeout: Any = None,
    resources: Any = None,
    reuse: Any = None,
    version: Any = None,
    depends_on: Any = None,
    ignore: Any = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Electron]: ...


def electron(
    function: Callable[..., Any] | None = None,
    *,
    executor: Any = None,
    retries: Any = None,
    timeout: Any = None,
    resources: Any = None,
    reuse: Any = None,
    version: Any = None,
    depends_on: Any = None,
    ignore: Any = None,
    name: str | None = None,
) -> Any:
    """Mark a function as a task. Used bare, with parentheses, or called on any callable; on a
    lattice it makes a sub-workflow. What is not said is taken from the lattice.

    Args:
        function: a function, class, method, partial, builtin, callable object, lattice, or an
            electron whose options are to be changed in the copy that is returned.
        executor: where it runs; a name or an executor. Of a sub-workflow: where it is built.
        retries: how often to try again, a number or :class:`~chelate.model.Retry`.
        timeout: seconds or a text such as ``"2h"``. Of a sub-workflow: for building it, not for
            its tasks.
        resources: :class:`~chelate.model.Resources`.
        reuse: whether a redispatch may reuse the result; ``"always"`` even where in doubt.
        version: counts instead of the code when a redispatch looks for changes.
        depends_on: objects, modules or files that count as part of the code.
        ignore: names of parameters whose values do not count.
        name: instead of the function's own name.

    Raises:
        ConfigError: an option of the wrong type or out of range.
        GraphError: an async or generator function, or nothing callable.
    """
    options = Options.read(
        executor=executor,
        retries=retries,
        timeout=timeout,
        resources=resources,
        reuse=reuse,
        version=version,
        depends_on=depends_on,
        ignore=ignore,
    )
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"name={name!r} must be a text.")

    def decorate(function: Callable[..., Any]) -> Electron:
        if isinstance(function, Electron):
            changed = options.over(function.options)
            return Electron(function.function, name=name or function.name, options=changed)
        return Electron(function, name=name, options=options)

    return decorate if function is None else decorate(function)
