"""Lattices: functions that compose electrons, from which a graph is built."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any, overload

from chelate.bundle import Bundle
from chelate.client.build import active_build, build_bundle
from chelate.client.options import BUILTIN, Options
from chelate.client.signature import check_plain
from chelate.errors import ConfigError, GraphError
from chelate.graph import Graph

__all__ = ["Lattice", "lattice"]


class Lattice:
    """A workflow. Called, it runs its function as it stands; inside another lattice that puts its
    electrons into the graph of the other.

    Attributes:
        name: the function's name, or what ``name=`` said.
        workflow_function: the plain function.
        options: what was said about the lattice itself.
        inherited: defaults that a surrounding dispatch gave along.
        triggers: what starts dispatches of this lattice; does not travel with it.
    """

    name: str
    workflow_function: Callable[..., Any]
    options: Options
    inherited: Options
    triggers: tuple[Any, ...]
    _source: str | None

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        options: Options | None = None,
        triggers: tuple[Any, ...] = (),
    ) -> None:
        check_plain(function, "lattice")
        # A class or an object keeps its attributes to itself.
        copied = ("__dict__",) if isinstance(function, FunctionType) else ()
        functools.update_wrapper(self, function, updated=copied)
        self.workflow_function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.options = options or Options()
        self.inherited = Options()
        self.triggers = triggers
        self._source = None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        build = active_build()
        if build is None:
            return self.workflow_function(*args, **kwargs)
        with build.inlined(self.options):
            return self.workflow_function(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Lattice:
        if instance is None or not isinstance(self.workflow_function, FunctionType):
            return self
        bound = MethodType(self.workflow_function, instance)
        return Lattice(bound, name=self.name, options=self.options, triggers=self.triggers)

    def __repr__(self) -> str:
        return f"<lattice {self.name}>"

    @property
    def workflow_function_string(self) -> str:
        """The source text, or ``""`` where there is none, as at a prompt."""
        if self._source is None:
            try:
                self._source = inspect.getsource(self.workflow_function)
            except (OSError, TypeError):
                self._source = ""
        return self._source

    @property
    def metadata(self) -> dict[str, Any]:
        """:meth:`effective` without defaults of a surrounding dispatch."""
        return self.effective()

    def effective(self, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The options that hold, as JSON: the lattice's own, then inherited ones, then chelate's.

        Keys are ``executor``, ``workflow_executor`` and, where somebody said them, ``retries``,
        ``timeout`` (seconds), ``resources`` and ``reuse``.

        Raises:
            ConfigError: ``defaults`` was not made by this method.
        """
        return self.effective_options(defaults).to_json()

    def effective_options(self, defaults: Mapping[str, Any] | None = None) -> Options:
        """:meth:`effective` before it becomes JSON."""
        given = Options.from_json(defaults)
        return self.options.over(self.inherited).over(given).over(BUILTIN)

    def inheriting(self, defaults: Options) -> Lattice:
        """A copy that takes from ``defaults`` what it does not say itself."""
        copy = Lattice.__new__(Lattice)
        copy.__dict__.update(self.__dict__)
        copy.inherited = self.inherited.over(defaults)
        return copy

    def build(
        self,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
        replacements: Mapping[str, Any] | None = None,
    ) -> Bundle:
        """Run the function once with placeholders for outputs; the graph and every blob it names.

        Args:
            args, kwargs: the lattice's inputs.
            defaults: a surrounding dispatch's options, as :meth:`effective` gives them.
            replacements: task name → electron, lattice or function to call instead.

        Raises:
            GraphError: inputs that do not fit, or something that a graph cannot hold.
            BuildError: the function raised; the cause is attached.
            SerializationError: a function or value cannot be pickled.
            RedispatchError: a replacement does not fit a call.
        """
        return build_bundle(self, tuple(args), dict(kwargs or {}), defaults, replacements)

    def build_graph(self, /, *args: Any, **kwargs: Any) -> Graph:
        """The graph for these inputs; raises what :meth:`build` raises."""
        graph = self.build(args, kwargs).graph
        assert graph is not None
        return graph

    def draw(self, /, *args: Any, **kwargs: Any) -> Any:
        """A picture of the graph for these inputs; raises what :meth:`build` raises."""
        drawing = importlib.import_module("chelate.show.drawing")
        return drawing.draw(self.build_graph(*args, **kwargs))

    def __chelate_plain__(self) -> Callable[..., Any]:
        return self.workflow_function

    def __chelate_state__(self) -> dict[str, Any]:
        source = self.workflow_function_string
        return {**self.__dict__, "triggers": (), "_source": source}


@overload
def lattice(
    function: Callable[..., Any],
    *,
    executor: Any = None,
    workflow_executor: Any = None,
    retries: Any = None,
    timeout: Any = None,
    resources: Any = None,
    reuse: Any = None,
    triggers: Any = None,
    name: str | None = None,
) -> Lattice: ...


@overload
def lattice(
    function: None = None,
    *,
    executor: Any = None,
    workflow_executor: Any = None,
    retries: Any = None,
    timeout: Any = None,
    resources: Any = None,
    reuse: Any = None,
    triggers: Any = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Lattice]: ...


def lattice(
    function: Callable[..., Any] | None = None,
    *,
    executor: Any = None,
    workflow_executor: Any = None,
    retries: Any = None,
    timeout: Any = None,
    resources: Any = None,
    reuse: Any = None,
    triggers: Any = None,
    name: str | None = None,
) -> Any:
    """Mark a function as a workflow. Used bare, with parentheses, or called on a function.

    Args:
        function: what composes electrons.
        executor: where its electrons run that do not say so themselves; a name or an executor.
        workflow_executor: where sub-workflows are built and values are put together; chelate must
            be installed there.
        retries: a number or :class:`~chelate.model.Retry`, the default of its electrons.
        timeout: seconds or a text such as ``"2h"``, the default of its electrons.
        resources: :class:`~chelate.model.Resources`, the default of its electrons.
        reuse: whether a redispatch may reuse results, the default of its electrons.
        triggers: one trigger, or a list of them.
        name: instead of the function's own name.

    Raises:
        ConfigError: an option of the wrong type or out of range, or what is no trigger.
        GraphError: an async or generator function, or no function at all.
    """
    options = Options.read(
        executor=executor,
        workflow_executor=workflow_executor,
        retries=retries,
        timeout=timeout,
        resources=resources,
        reuse=reuse,
    )
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"name={name!r} must be a text.")
    armed = () if triggers is None else _read_triggers(triggers)

    def decorate(function: Callable[..., Any]) -> Lattice:
        if isinstance(function, Lattice):
            raise GraphError(f"{function!r} is a lattice already; decorate its function once.")
        return Lattice(function, name=name, options=options, triggers=armed)

    return decorate if function is None else decorate(function)


def _read_triggers(given: Any) -> tuple[Any, ...]:
    from chelate.contracts.trigger import BaseTrigger

    triggers = tuple(given) if isinstance(given, (list, tuple, set, frozenset)) else (given,)
    for trigger in triggers:
        if not isinstance(trigger, BaseTrigger):
            hint = f"{trigger.__name__}(…)" if isinstance(trigger, type) else "TimeTrigger(60)"
            raise ConfigError(
                f"triggers={given!r:.80} must be a trigger or a list of them, for example {hint}."
            )
    return triggers
