"""Re-executing a dispatch by its id, with other inputs or other tasks, reusing what still holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from chelate.bundle import Bundle
from chelate.client.codec import load_value, pickle_function, pickle_lattice, pickle_portable
from chelate.client.electron import Electron
from chelate.client.fingerprint import fingerprint_function
from chelate.client.options import Options
from chelate.client.signature import Parameters
from chelate.client.snapshot import beside
from chelate.embedding import current
from chelate.errors import ChelateError, ConfigError, RedispatchError
from chelate.explaining import Explanation, is_unbuilt, plan_dispatch, stored_graph
from chelate.gateway import LocalGateway
from chelate.graph import Function, Graph, Kind, Node
from chelate.held import look_for_held
from chelate.model import Retry, TaskPolicy
from chelate.reasons import same_code

__all__ = ["Redispatch", "redispatch"]

_BUILD_NODE = -1


def redispatch(
    dispatch_id: str,
    replace_electrons: Mapping[str, Callable[..., Any]] | None = None,
    reuse_previous_results: bool = False,
    dispatcher_addr: str | None = None,
    *,
    audit: float = 0.0,
) -> Redispatch:
    """Re-execute a dispatch. The returned object is called with new inputs, or with none to
    repeat the old ones, and gives the new dispatch's id; its ``plan()`` says what would run.

    The *stored* workflow and task code are used, whatever the caller's files say now; neither
    they nor their environment are needed here.

    Args:
        dispatch_id: of any earlier dispatch, also a running or failed one.
        replace_electrons: task name → what to call instead, wherever that name occurs, also
            inside sub-workflows; stays with the new dispatch and those redispatched from it.
        reuse_previous_results: take over results whose code and inputs are equal; the default
            runs everything.
        audit: with reuse, this share (0 to 1) of the reusable tasks runs all the same and is
            compared; a difference marks the task as nondeterministic.

    Raises:
        InvalidDispatchIdError, DispatchNotFoundError: the id is wrong.
        RedispatchError: a replacement for a task that nobody has (the names that exist are
            listed), or that cannot be called or does not take the calls that are made. From the
            returned object: inputs that the lattice does not take.
        ConfigError: ``audit`` out of range, or without reuse; an option of the wrong type.
    """
    if dispatcher_addr is not None:
        raise ConfigError(
            f"dispatcher_addr={dispatcher_addr!r}: this version runs embedded, without a server."
        )
    number = isinstance(audit, (int, float)) and not isinstance(audit, bool)
    if not number or not 0.0 <= audit <= 1.0:
        raise ConfigError(f"audit={audit!r} must be a share from 0 to 1.")
    if not isinstance(reuse_previous_results, bool):
        raise ConfigError(
            f"reuse_previous_results={reuse_previous_results!r:.80} must be True or False."
        )
    if not isinstance(replace_electrons, (Mapping, type(None))):
        raise RedispatchError(
            f"replace_electrons={replace_electrons!r:.80} must be a dict: task name → electron."
        )
    for name, target in (replace_electrons or {}).items():
        if not isinstance(name, str):
            raise RedispatchError(
                f"replace_electrons names {name!r:.80}, which is no text; give the name of a task."
            )
        if not callable(target):
            raise RedispatchError(
                f"replace_electrons gives {target!r:.80} for {name!r}, which cannot be called; "
                "give an electron, a lattice or a function."
            )
    if audit and not reuse_previous_results:
        raise ConfigError("audit= compares reused results; pass reuse_previous_results=True too.")
    return Redispatch(current(), dispatch_id, replace_electrons, reuse_previous_results, audit)


class Redispatch:
    """What ``ct.redispatch(...)`` returns; see there."""

    def __init__(
        self,
        gateway: LocalGateway,
        dispatch_id: str,
        replace_electrons: Mapping[str, Callable[..., Any]] | None,
        reuse: bool,
        audit: float,
    ) -> None:
        self._gateway = gateway
        self._parent = gateway.record(dispatch_id)
        self._reuse = reuse
        self._audit = audit
        self._own = gateway.graph(self._parent)
        self._compared, self._graph = stored_graph(gateway, self._parent, self._own)
        self._replacements = {
            name: target if isinstance(target, Electron) else Electron(target)
            for name, target in (replace_electrons or {}).items()
        }
        self._called: dict[str, list[Function]] = {}  # by task name
        if self._replacements:
            self._check_replacements()

    def __call__(self, /, *args: Any, **kwargs: Any) -> str:
        """Dispatch; new inputs replace all the old ones. Returns the new dispatch's id."""
        bundle, options = self._prepare(args, kwargs)
        return self._gateway.accept(
            bundle, options=options, redispatched_from=self._parent.dispatch_id
        )

    def plan(self, /, *args: Any, **kwargs: Any) -> Explanation:
        """What would be reused, run, or decided on the way, and why; nothing is run.

        With new inputs the workflow's function runs once, in a process of its own, to give the
        graph; its tasks do not.
        """
        bundle, options = self._prepare(args, kwargs)
        graph = bundle.graph
        assert graph is not None
        if is_unbuilt(graph):
            from chelate.client.building import build_apart

            graph, built = build_apart(self._gateway.store, graph, bundle.blobs, options)
            bundle.blobs.update(built)
        return plan_dispatch(self._gateway, graph, options, bundle.blobs)

    # -- preparing ----------------------------------------------------------------------------

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Bundle, dict[str, Any]]:
        parent = self._parent
        if self._reuse:
            look_for_held(self._gateway, self._compared)
        options: dict[str, Any] = {
            "defaults": parent.options.get("defaults"),
            "signature": self._signature(),
            "python": parent.options.get("python"),
            "replacements": dict(parent.options.get("replacements") or {}),
            "replacement_prints": dict(parent.options.get("replacement_prints") or {}),
            "replaced": sorted(self._replacements),
            "reuse_from": self._compared if self._reuse else None,
            "audit": self._audit,
        }
        bundle = Bundle(None, {}, parent.lattice, parent.inputs)
        swaps: dict[str, tuple[Electron, Function]] = {}
        code = self._graph.code
        stored = self._gateway.store.read(code) if code and self._replacements else None
        for name, target in self._replacements.items():
            with beside(stored):
                function = _store_replacement(bundle, name, target)
                options["replacements"][name] = bundle.add(pickle_lattice(target))
            if not self._same(name, function):
                options["replacement_prints"][name] = function.ast or function.code
            swaps[name] = (target, function)
        if not (args or kwargs) and is_unbuilt(self._own):
            bundle.graph = self._own  # it never got, or has not yet got, a graph for its inputs
            return bundle, options
        if not (args or kwargs) and _by_name(self._graph, swaps):
            args, kwargs = self._inputs()
        if args or kwargs:
            self._check_inputs(args, kwargs)
            bundle.inputs = bundle.add(pickle_portable((args, kwargs), "The new input"))
            bundle.graph = self._build_graph(bundle, args, kwargs)
        else:
            bundle.graph = _swapped(self._graph, swaps) if swaps else self._graph
        return bundle, options

    def _check_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse inputs that the stored lattice does not take."""
        parent = self._parent
        if parent.lattice is None:
            raise RedispatchError(f"Dispatch {parent.dispatch_id} has no stored workflow to build.")
        if (stored := self._signature()) is not None:
            who = f"The new input of the lattice {parent.name!r} of dispatch {parent.dispatch_id}"
            Parameters.stored(stored, parent.name).bind(args, kwargs, RedispatchError, who)

    def _inputs(self) -> Any:
        """The parent's inputs, to build its workflow again."""
        try:
            return load_value(self._gateway.store.read(self._parent.inputs or ""))
        except ChelateError as error:
            raise RedispatchError(
                f"This replacement has the parameters in another order, so the workflow must be "
                f"built again, and the inputs of dispatch {self._parent.dispatch_id} cannot be "
                f"had. Give them anew, as in redispatch(…)(inputs). ({error})"
            ) from error

    def _signature(self) -> list[list[Any]] | None:
        """The parameters of the lattice; None when they were not stored."""
        record = self._parent
        while "signature" not in record.options and record.redispatched_from is not None:
            record = self._gateway.record(record.redispatched_from)
        signature: list[list[Any]] | None = record.options.get("signature")
        return signature

    def _build_graph(self, bundle: Bundle, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
        """A graph of one node, which builds the real one in a worker."""
        lattice = self._parent.lattice
        assert lattice is not None
        graph = Graph(self._parent.name, code=self._graph.code, metadata=self._graph.metadata)
        said = Options.from_json(self._parent.options.get("defaults"))
        losses = Retry(infrastructure=said.retries.infrastructure) if said.retries else None
        building = Options(said.workflow_executor, retries=losses)
        graph.policies.append(building.policy())
        graph.functions.append(Function(lattice, self._parent.name))
        graph.nodes.append(
            Node(
                _BUILD_NODE,
                ":build:",
                Kind.BUILD,
                0,
                [["c", bundle.add(pickle_portable(value, "A new input"))] for value in args],
                {
                    name: ["c", bundle.add(pickle_portable(value, f"The new input {name!r}"))]
                    for name, value in kwargs.items()
                },
                policy=0,
            )
        )
        return graph

    def _same(self, name: str, function: Function) -> bool:
        """Whether a replacement is what every task of that name calls anyway."""
        return name not in self._parent.options.get("replacement_prints", ()) and all(
            same_code(called, function) for called in self._called[name]
        )

    def _check_replacements(self) -> None:
        calls: dict[str, list[Node]] = {}
        for graph in _tree(self._gateway, self._compared, self._graph):
            for node in graph.nodes:
                if node.kind in (Kind.TASK, Kind.SUBLATTICE):
                    calls.setdefault(node.name, []).append(node)
                    called = self._called.setdefault(node.name, [])
                    if (function := graph.functions[node.function]) not in called:
                        called.append(function)
        for name, target in self._replacements.items():
            if name not in calls:
                known = ", ".join(sorted(calls)) or "none"
                raise RedispatchError(
                    f"replace_electrons names {name!r}, but dispatch {self._parent.dispatch_id} "
                    f"has no task of that name. Its tasks: {known}."
                )
            parameters = Parameters(target.plain_function, target.name)
            for node in calls[name]:
                who = f"A call of {name!r}, which is to be replaced,"
                parameters.bind(tuple(node.args), dict(node.kwargs), RedispatchError, who)


def _by_name(graph: Graph, swaps: Mapping[str, tuple[Electron, Function]]) -> bool:
    """Whether a replacement has the same parameters in another order. The graph does not say
    which of them a call gave by name, so only building it again does."""
    for node in graph.nodes:
        if node.name in swaps and node.kind in (Kind.TASK, Kind.SUBLATTICE):
            old = graph.functions[node.function].parameters[: len(node.args)]
            new = swaps[node.name][1].parameters
            if any(name in new and new.index(name) != place for place, name in enumerate(old)):
                return True
    return False


def _tree(gateway: LocalGateway, dispatch_id: str, graph: Graph) -> list[Graph]:
    """The graphs of a dispatch and of its sub-workflows, reused ones too, as far as built."""
    graphs = [graph]
    todo, seen = [dispatch_id], {dispatch_id}
    while todo:
        for row in gateway.nodes(todo.pop()).values():
            if row.child_id is not None and row.child_id not in seen:
                seen.add(row.child_id)
                try:
                    graphs.append(gateway.graph(gateway.record(row.child_id)))
                except ChelateError:
                    continue  # a damaged sub-workflow has no names to offer
                todo.append(row.child_id)
    return graphs


def _store_replacement(bundle: Bundle, name: str, target: Electron) -> Function:
    """The function that stands for a replaced task, its blobs kept in the bundle."""
    parameters = Parameters(target.plain_function, target.name)
    options: Options = target.options
    taken = fingerprint_function(
        target.plain_function,
        version=options.version,
        depends_on=options.depends_on or (),
        ignore=options.ignore or (),
    )
    manifest = json.dumps(taken.manifest, sort_keys=True, separators=(",", ":")).encode()
    if target.lattice is None:
        data = pickle_function(target.function, f"The replacement of {name!r}")
    else:
        data = pickle_lattice(target.lattice)
    return Function(
        bundle.add(data),
        target.name,
        parameters.all_names(),
        taken.ast,
        taken.code,
        bundle.add(manifest),
        tuple(options.ignore or ()),
    )


def _swapped(graph: Graph, swaps: Mapping[str, tuple[Electron, Function]]) -> Graph:
    """A copy of a graph in which tasks of these names call other functions."""
    copy = Graph.from_json(graph.to_json())
    places: dict[str, int] = {}
    for name, (_, function) in swaps.items():
        places[name] = len(copy.functions)
        copy.functions.append(function)
    for node in copy.nodes:
        if node.name not in swaps or node.kind not in (Kind.TASK, Kind.SUBLATTICE):
            continue
        target = swaps[node.name][0]
        node.function = places[node.name]
        node.kind = Kind.TASK if target.lattice is None else Kind.SUBLATTICE
        if target.options != Options():
            old = copy.policies[node.policy]
            said = target.options.policy()
            chosen = target.options
            policy = TaskPolicy(
                executor=said.executor if chosen.executor else old.executor,
                retry=said.retry if chosen.retries else old.retry,
                timeout=chosen.timeout if chosen.timeout is not None else old.timeout,
                resources=chosen.resources or old.resources,
                reuse=said.reuse if chosen.reuse is not None else old.reuse,
            )
            if policy not in copy.policies:
                copy.policies.append(policy)
            node.policy = copy.policies.index(policy)
    return copy
