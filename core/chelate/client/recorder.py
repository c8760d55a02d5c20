"""One build going on: the nodes recorded so far, and how values become references to them."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chelate.client.codec import (
    ATOMS,
    PROTOCOL,
    pickle_function,
    pickle_lattice,
    pickle_portable,
    pickle_value,
)
from chelate.client.frames import LineFinder, current_line
from chelate.client.options import Options
from chelate.client.placeholder import Placeholder, StarredPart, make_placeholder, state_of
from chelate.client.signature import Parameters
from chelate.digest import digest_bytes
from chelate.errors import ForeignPlaceholderError, GraphError, RedispatchError
from chelate.graph import Function, Graph, Kind, Node, Reference
from chelate.model import ValueRef

if TYPE_CHECKING:
    from chelate.client.electron import Electron

__all__ = ["Build", "active_build", "is_placeholder"]

_LARGE = 4096
_HEADS = {list: "l", tuple: "t", set: "s", frozenset: "f"}
_CONTAINERS = frozenset({*_HEADS, dict})

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
        "electron", "function", "kind", "labels", "name", "parameters", "policy", "replaced",
    )  # fmt: skip

    def __init__(self, electron: Electron, name: str, replaced: bool) -> None:
        self.electron = electron  # kept alive, since entries are found by its identity
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


class Build:
    """Records what a lattice body does. Used by one thread, as ``with build.active(): …``.

    ``blobs`` are the bytes of every stored value by digest; ``replacements`` electrons to call
    instead, by task name.
    """

    def __init__(self, name: str, defaults: Options, replacements: Mapping[str, Electron]) -> None:
        self.graph = Graph(name)
        self.blobs: dict[str, bytes] = {}
        self._nodes = self.graph.nodes
        self._replacements = replacements
        self._defaults = defaults
        self._entries: dict[int, _Entry] = {}
        self._operators: dict[int, tuple[int, int]] = {}
        self._labels: dict[int, str] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._functions: dict[tuple[str, str], int] = {}
        self._pickles: dict[int, bytes] = {}
        self._policies: dict[str, int] = {}
        self._large: dict[int, tuple[Any, ValueRef]] = {}
        self._line = LineFinder()
        self._backwards = False  # somebody waits for a later node, so there may be a circle

    @contextmanager
    def active(self) -> Iterator[Build]:
        """Make this the build that electrons called in this thread belong to."""
        outer = active_build()
        _thread.build = self
        try:
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
        position = 0
        for value in args:
            kind = type(value)
            if kind is Placeholder:
                references.append(self._output(value))
            elif kind in ATOMS:
                added.append(
                    Node(
                        node_id + 1 + len(added),
                        entry.label(position),
                        Kind.PARAMETER,
                        value=self._keep_atom(value),
                    )
                )
                references.append(["p", node_id + len(added)])
            else:
                label = entry.label(position)
                references.append(self._argument(value, entry, label, node_id, added))
            position += 1
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
        reference = self._structure(value, what, {})
        if reference is not None:
            return reference
        kept = self._keep(value, what, portable=entry.kind == Kind.SUBLATTICE)
        added.append(Node(node_id + 1 + len(added), label, Kind.PARAMETER, value=kept))
        return ["p", node_id + len(added)]

    def _enter(self, electron: Electron) -> _Entry:
        replacement = self._replacements.get(electron.name)
        target = electron if replacement is None else replacement
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
        entry.function = self._function(data, target.name, entry.parameters.all_names())
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
        name = self._names.setdefault((label, operation), f"{label}.{operation}")
        indices = self._operators.get(id(function))
        if indices is None:
            indices = self._operators[id(function)] = (
                self._function(pickle_function(function), function.__name__.strip("_")),
                self._policy(self._workflow_options()),
            )
        what = f"An operand of {name}"
        references = [self._reference(value, what) for value in args]
        named = {key: self._reference(value, what) for key, value in kwargs.items()}
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
                yield self._output(parent)[1]
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
        reference = self._reference(value, what)
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

    # -- tables -------------------------------------------------------------------------------

    def _workflow_options(self) -> Options:
        return Options(executor=self._defaults.workflow_executor, reuse=self._defaults.reuse)

    def _function(self, data: bytes, name: str, parameters: tuple[str, ...] = ()) -> int:
        key = (self._store(data), name)
        index = self._functions.get(key)
        if index is None:
            index = self._functions[key] = len(self.graph.functions)
            self.graph.functions.append(Function(key[0], name, parameters))
        return index

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

    # -- values -------------------------------------------------------------------------------

    def check_active(self) -> None:
        """Raises ForeignPlaceholderError unless this build is the one going on here."""
        if getattr(_thread, "build", None) is not self:
            raise self._foreign()

    def _foreign(self) -> ForeignPlaceholderError:
        line = current_line()
        return ForeignPlaceholderError(
            f"The output of a task of the lattice {self.graph.name!r} is used outside the run of "
            f"its function{f' ({line})' if line else ''}. Return it from that lattice, or call "
            f"that lattice inside this one and use what it returns."
        )

    def label(self, node_id: int) -> str:
        """The task that a node's output goes back to."""
        return self._labels.get(node_id) or self._nodes[node_id].name

    def holds(self, value: Any) -> bool:
        """Whether a value is, or is a container with, a placeholder."""
        return type(value) is slice and any(
            is_placeholder(part) for part in (value.start, value.stop, value.step)
        ) or self._structure(value, "The key", {}) is not None  # fmt: skip

    def constant(self, value: Any, what: str) -> str:
        """Store a value that is part of a reference, and return its digest."""
        kept = self._keep(value, what)
        return self.graph.values.setdefault(kept.digest, kept).digest

    def _store(self, data: bytes) -> str:
        digest = digest_bytes(data)
        self.blobs[digest] = data
        return digest

    def _keep_atom(self, value: Any) -> ValueRef:
        if type(value) in (str, bytes) and len(value) >= _LARGE:
            known = self._large.get(id(value))
            if known is None:
                data = pickle.dumps(value, PROTOCOL)
                known = self._large[id(value)] = (value, ValueRef(self._store(data), len(data)))
            return known[1]
        data = pickle.dumps(value, PROTOCOL)
        digest = digest_bytes(data)
        self.blobs[digest] = data
        return ValueRef(digest, len(data))

    def _keep(self, value: Any, what: str, portable: bool = False) -> ValueRef:
        """Store a value as it is now, so that later changes of it do not count."""
        kind = type(value)
        if kind in ATOMS:
            return self._keep_atom(value)
        if kind in _HEADS and ATOMS.issuperset(map(type, value)):
            data = pickle.dumps(value, PROTOCOL)  # far cheaper than setting up cloudpickle
        else:
            try:
                data = pickle_portable(value, what) if portable else pickle_value(value, what)
            except ForeignPlaceholderError:
                raise
            except GraphError as error:
                raise GraphError(
                    f"{what} is of type {kind.__name__} and holds the output of a task in a place "
                    f"where it cannot be filled in ({current_line()}). Pass the output as an "
                    f"argument of its own, or in a list, tuple, dict, set or named tuple."
                ) from error
        return ValueRef(self._store(data), len(data))

    def _output(self, placeholder: Placeholder) -> Reference:
        recorder, node_id, path = state_of(placeholder)
        if recorder is not self:
            raise recorder._foreign() if isinstance(recorder, Build) else self._foreign()
        return ["n", node_id, list(path)] if path else ["n", node_id]

    def _reference(self, value: Any, what: str) -> Reference:
        """The reference to a value of any kind; one without placeholders becomes a constant."""
        reference = self._structure(value, what, {})
        return ["c", self.constant(value, what)] if reference is None else reference

    def _structure(
        self, value: Any, what: str, known: dict[int, Reference | None]
    ) -> Reference | None:
        """The reference to a value that holds a placeholder; None for one that holds none."""
        kind = type(value)
        if kind in ATOMS:
            return None
        if kind is Placeholder:
            return self._output(value)
        if kind is StarredPart:
            value.refuse()
        if kind is slice:
            items: list[Any] = [value.start, value.stop, value.step]
        elif kind is dict:
            items = [part for pair in value.items() for part in pair]
        elif kind in _HEADS or (isinstance(value, tuple) and hasattr(kind, "_fields")):
            items = list(value)
        else:
            return None
        if id(value) in known or ATOMS.issuperset(map(type, items)):
            return known.get(id(value))
        if kind is list and type(items[0]) is StarredPart:
            return self._starred(items)
        known[id(value)] = None  # met again inside itself, it is no reason to take it apart
        try:
            parts = [self._structure(item, what, known) for item in items]
        except RecursionError:
            raise GraphError(f"{what} is nested too deeply; pass it in a flat form.") from None
        if not any(parts):
            return None
        filled = [
            ["c", self.constant(item, what)] if part is None else part
            for item, part in zip(items, parts, strict=True)
        ]
        reference: Reference
        if kind in _HEADS:
            reference = [_HEADS[kind], filled]
        elif kind is dict:
            reference = ["d", [list(pair) for pair in zip(filled[::2], filled[1::2], strict=True)]]
        elif kind is slice:
            reference = ["o", self.constant(slice, what), filled]
        else:
            reference = ["o", self.constant(kind._make, what), [["t", filled]]]
        known[id(value)] = reference
        return reference

    def _starred(self, items: list[Any]) -> Reference:
        whole = items[0].whole
        untouched = len(items) == StarredPart.PLACES and all(
            type(item) is StarredPart and item.whole is whole and item.place == place
            for place, item in enumerate(items)
        )
        return self._output(whole) if untouched else items[0].refuse()
