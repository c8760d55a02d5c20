"""One build going on: the nodes that it has recorded so far."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from chelate.client.codec import ATOMS, pickle_function, pickle_lattice
from chelate.client.fingerprint import fingerprint_function, remembering
from chelate.client.frames import LineFinder, current_line
from chelate.client.options import Options
from chelate.client.placeholder import Placeholder, StarredPart, make_placeholder
from chelate.client.signature import Parameters
from chelate.client.values import Values
from chelate.errors import GraphError, RedispatchError
from chelate.graph import Function, Graph, Kind, Node, Reference
from chelate.model import Retry

if TYPE_CHECKING:
    from chelate.client.electron import Electron

__all__ = ["Build", "active_build", "is_placeholder"]

_thread = threading.local()


def active_build() -> Build | None:
    """The build going on in this thread, the innermost one."""
    return getattr(_thread, "build", None)


def is_placeholder(value: Any) -> bool:
    """Whether ``value`` itself stands for something that does not exist yet."""
    return type(value) is Placeholder or type(value) is StarredPart


class _Entry:
    """What all calls of one electron share."""

    __slots__ = (
        "function", "kind", "labels", "name", "parameters", "policy", "replaced",
    )  # fmt: skip

    def __init__(self, electron: Electron, name: str, replaced: bool) -> None:
        self.name = name
        self.replaced = replaced
        self.kind = Kind.TASK if electron.lattice is None else Kind.SUBLATTICE
        self.parameters = Parameters(electron.plain_function, electron.name)
        self.labels = [f":parameter:{label}" for label in self.parameters.names]
        self.function = self.policy = -1

    def bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self.replaced:
            return self.parameters.bind(args, kwargs)
        who = f"A call of {self.name!r}, which is to be replaced,"
        return self.parameters.bind(args, kwargs, RedispatchError, who)

    def label(self, position: int) -> str:
        if position < len(self.labels):
            return self.labels[position]
        return f":parameter:{self.parameters.rest}[{position - len(self.labels)}]"


class Build(Values):
    """Records what a lattice body does. Used by one thread, as ``with build.active(): …``.

    ``blobs`` are the bytes of every stored value by digest; ``replacements`` electrons to call
    instead, by task name.
    """

    def __init__(self, name: str, defaults: Options, replacements: Mapping[str, Electron]) -> None:
        super().__init__(Graph(name))
        self._nodes = self.graph.nodes
        self._replacements = replacements
        self._defaults = defaults
        self._entries: dict[int, _Entry] = {}
        self._operators: dict[int, tuple[int, int]] = {}
        self._labels: dict[int, str] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._functions: dict[tuple[str, str], int] = {}
        self._pickles: dict[int, bytes] = {}
        self._alive: list[Electron] = []  # so that no identity above is given away again
        self._policies: dict[str, int] = {}
        self._line = LineFinder()
        self._backwards = False  # somebody waits for a later node, so there may be a circle

    @contextmanager
    def active(self) -> Iterator[Build]:
        """Make this the build that electrons called in this thread belong to."""
        outer = active_build()
        _thread.build = self
        try:
            with remembering():
                yield self
        finally:
            _thread.build = outer

    @contextmanager
    def inlined(self, options: Options) -> Iterator[None]:
        """Let the options of a lattice that is called inside this one hold for its electrons."""
        saved = self._defaults, self._entries, self._operators
        if options != Options():
            self._defaults = options.over(self._defaults)
            self._entries, self._operators = {}, {}
        try:
            yield
        finally:
            self._defaults, self._entries, self._operators = saved

    # -- nodes --------------------------------------------------------------------------------

    def call(
        self, electron: Electron, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Placeholder:
        """Record a call of an electron, and a parameter node for each argument that is a value."""
        entry = self._entries.get(id(electron)) or self._enter(electron)
        parameters = entry.parameters
        if kwargs or not parameters.least <= len(args) <= parameters.most:
            args, kwargs = entry.bind(args, kwargs)
        nodes = self._nodes
        node_id = len(nodes)
        added: list[Node] = []
        references: list[Reference] = []
        for position, value in enumerate(args):
            kind = type(value)
            if kind is Placeholder:
                references.append(self.output(value))
            elif kind in ATOMS:
                added.append(
                    Node(
                        node_id + 1 + len(added),
                        entry.label(position),
                        Kind.PARAMETER,
                        value=self.keep_atom(value),
                    )
                )
                references.append(["p", node_id + len(added)])
            else:
                label = entry.label(position)
                references.append(self._argument(value, entry, label, node_id, added))
        named: dict[str, Reference] = {
            key: self._argument(value, entry, f":parameter:{key}", node_id, added)
            for key, value in kwargs.items()
        }
        line = self._line(sys._getframe(2))
        nodes.append(
            Node(
                node_id, entry.name, entry.kind, entry.function, references, named, (),
                entry.policy, line,
            )
        )  # fmt: skip
        nodes.extend(added)
        return make_placeholder(self, node_id)

    def _argument(
        self, value: Any, entry: _Entry, label: str, node_id: int, added: list[Node]
    ) -> Reference:
        what = f"The argument {label.rpartition(':')[2]!r} of {entry.name!r}"
        reference = self.structure(value, what, {})
        if reference is not None:
            return reference
        kept = self.keep(value, what, portable=entry.kind == Kind.SUBLATTICE)
        added.append(Node(node_id + 1 + len(added), label, Kind.PARAMETER, value=kept))
        return ["p", node_id + len(added)]

    def _enter(self, electron: Electron) -> _Entry:
        replacement = self._replacements.get(electron.name)
        target = electron if replacement is None else replacement
        self._alive += (electron, target)
        entry = _Entry(target, electron.name, replacement is not None)
        options = target.options.over(electron.options)
        lattice = target.lattice
        if lattice is None:
            options = options.over(self._defaults)
            data = self._pickles.get(id(target))
            if data is None:
                what = f"The function of {target.name!r}"
                data = self._pickles[id(target)] = pickle_function(target.function, what)
        else:
            options = options.over(self._workflow_options())
            data = pickle_lattice(lattice.inheriting(self._defaults))
        entry.function = self._function(
            data, target.name, entry.parameters.all_names(), target.plain_function, options
        )
        entry.policy = self._policy(options)
        self._entries[id(electron)] = entry
        return entry

    def operate(
        self,
        function: Callable[..., Any],
        label: str,
        operation: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Placeholder:
        """Record an operator node; ``function`` must be a constant of its module."""
        name = self._names.get((label, operation))
        if name is None:
            name = self._names[label, operation] = f"{label}.{operation}"
        indices = self._operators.get(id(function))
        if indices is None:
            indices = self._operators[id(function)] = (
                self._function(pickle_function(function), function.__name__.strip("_")),
                self._policy(self._workflow_options()),
            )
        references = [self.reference(value, "An operand of ", name) for value in args]
        named = {key: self.reference(kwargs[key], "An operand of ", name) for key in kwargs}
        node_id = len(self._nodes)
        line = self._line(sys._getframe(1))
        self._nodes.append(
            Node(
                node_id, name, Kind.OPERATOR, indices[0], references, named, (), indices[1], line,
            )
        )  # fmt: skip
        self._labels[node_id] = label
        return make_placeholder(self, node_id)

    def add_ordering(self, node_id: int, parents: Iterable[Any]) -> None:
        """Let a node wait for the nodes of ``parents``: placeholders, or iterables of them.

        Raises:
            GraphError: a parent that is no placeholder.
            ForeignPlaceholderError: a placeholder of another lattice.
        """
        node = self._nodes[node_id]
        found = dict.fromkeys((*node.after, *self._node_ids(parents)))
        self._backwards = self._backwards or any(parent >= node_id for parent in found)
        node.after = tuple(found)

    def _node_ids(self, parents: Iterable[Any]) -> Iterator[int]:
        for parent in parents:
            if type(parent) is Placeholder:
                yield self.output(parent)[1]
            elif isinstance(parent, (list, tuple, set, frozenset, Iterator)):
                yield from self._node_ids(parent)
            else:
                raise GraphError(
                    f"wait_for was given a {type(parent).__name__}; give it what electrons of "
                    f"this lattice returned, or a list of that ({current_line()})."
                )

    def finish(self, value: Any) -> Graph:
        """The graph of a lattice that returned ``value``.

        Raises:
            CycleError: wait_for has closed a circle.
            GraphError, SerializationError: the value cannot be returned.
        """
        what = f"The return value of the lattice {self.graph.name!r}"
        reference = self.reference(value, what)
        if reference[0] != "c" and (reference[0] != "n" or len(reference) > 2):
            node_id = len(self._nodes)
            policy = self._policy(self._workflow_options())
            self._nodes.append(
                Node(node_id, ":return:", Kind.RETURN, args=[reference], policy=policy)
            )
            reference = ["n", node_id]
        self.graph.result = reference
        if self._backwards:
            self.graph.order()
        return self.graph

    def label(self, node_id: int) -> str:
        """The task that a node's output goes back to."""
        return self._labels.get(node_id) or self._nodes[node_id].name

    def check_active(self) -> None:
        """Raises ForeignPlaceholderError unless this build is the one going on here."""
        if getattr(_thread, "build", None) is not self:
            raise self.foreign()

    # -- tables -------------------------------------------------------------------------------

    def _workflow_options(self) -> Options:
        said = self._defaults
        losses = said.retries and Retry(infrastructure=said.retries.infrastructure)
        return Options(executor=said.workflow_executor, retries=losses, reuse=said.reuse)

    def _function(
        self,
        data: bytes,
        name: str,
        parameters: tuple[str, ...] = (),
        live: Callable[..., Any] | None = None,
        options: Options | None = None,
    ) -> int:
        key = (self.store(data), name)
        index = self._functions.get(key)
        if index is not None:
            return index
        function = Function(key[0], name, parameters)
        if live is not None and options is not None:
            function = self._fingerprinted(function, live, options)
        index = self._functions[key] = len(self.graph.functions)
        self.graph.functions.append(function)
        return index

    def _fingerprinted(
        self, function: Function, live: Callable[..., Any], options: Options
    ) -> Function:
        taken = fingerprint_function(
            live,
            version=options.version,
            depends_on=options.depends_on or (),
            ignore=options.ignore or (),
        )
        manifest = json.dumps(taken.manifest, sort_keys=True, separators=(",", ":"))
        return replace(
            function,
            ast=taken.ast,
            code=taken.code,
            manifest=self.store(manifest.encode()),
            ignore=tuple(options.ignore or ()),
        )

    def _policy(self, options: Options) -> int:
        policy = options.policy()
        try:
            key = json.dumps(policy.to_json(), sort_keys=True)
        except (TypeError, ValueError) as error:
            raise GraphError(
                f"The options of executor {policy.executor.name!r} are not plain JSON data: "
                f"{error}."
            ) from error
        index = self._policies.get(key)
        if index is None:
            index = self._policies[key] = len(self.graph.policies)
            self.graph.policies.append(policy)
        return index
