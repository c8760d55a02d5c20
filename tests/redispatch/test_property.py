"""Random graphs, random edits: reuse gives what a full run gives, and runs the least.

The real machine and the real reuse decide; tasks are run in this process, in a random order of
those that are ready. The reference knows nothing of keys: it re-derives by itself what verifying
traces with early cut-off must run.
"""

from __future__ import annotations

import os
import pickle
import random
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chelate import values
from chelate.diff import ReuseIndex
from chelate.digest import digest_bytes
from chelate.graph import Function, Graph, Kind, Node
from chelate.kernel import events as ev
from chelate.kernel.reuse import Reuse
from chelate.kernel.states.machine import Machine
from chelate.model import DispatchRecord, ExecutorRef, NodeRecord, NodeStatus, TaskPolicy, ValueRef

LOCAL = ExecutorRef("local")
NAMES = ("f", "g", "h")


def ref_of(value: Any) -> ValueRef:
    data = pickle.dumps(value, 5)
    parts = values.parts(value)
    return ValueRef(digest_bytes(data), len(data), values.fingerprint(value), parts)


def call(version: int, arguments: list[Any]) -> Any:
    """What a task of that version gives; small numbers, so that equal results are frequent."""
    flat = [item for part in arguments for item in (part if isinstance(part, list) else [part])]
    total = sum(item[0] + item[1] if isinstance(item, tuple) else item for item in flat)
    small = (total * (1 + version) + version) % 5
    return (small, total % 3) if version == 3 else small


@st.composite
def programs(draw: Any) -> list[tuple[str, int, list[Any]]]:
    """Calls in order: name, version of the code, arguments (a number, an earlier call, one of the
    items of its result, or a list of earlier calls)."""
    calls: list[tuple[str, int, list[Any]]] = []
    for number in range(draw(st.integers(1, 9))):
        version = draw(st.integers(0, 3))
        arguments: list[Any] = []
        for _ in range(draw(st.integers(0, 2))):
            kind = draw(st.integers(0, 3)) if number else 0
            if kind == 0:
                arguments.append(("value", draw(st.integers(0, 3))))
            elif kind == 3:
                several = st.lists(st.integers(0, number - 1), min_size=1, max_size=3)
                arguments.append(("list", draw(several)))
            else:
                source = draw(st.integers(0, number - 1))
                item = draw(st.integers(0, 1)) if calls[source][1] == 3 and kind == 2 else None
                arguments.append(("call", source, item))
        calls.append((draw(st.sampled_from(NAMES)), version, arguments))
    return calls


@st.composite
def edited(draw: Any, calls: list[tuple[str, int, list[Any]]]) -> list[tuple[str, int, list[Any]]]:
    """The program after some edits: versions, names, numbers; calls added and removed."""
    changed = [(name, version, list(arguments)) for name, version, arguments in calls]
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(changed) - 1))
        name, version, arguments = changed[place]
        kind = draw(st.sampled_from(["version", "name", "value", "add", "drop", "swap"]))
        if kind == "version" and version != 3:
            changed[place] = (name, draw(st.integers(0, 2)), arguments)
        elif kind == "name":
            changed[place] = (draw(st.sampled_from(NAMES)), version, arguments)
        elif kind == "value" and arguments:
            arguments[0] = ("value", draw(st.integers(0, 3)))
        elif kind == "add":
            more = ("value", draw(st.integers(0, 3)))
            changed.append((draw(st.sampled_from(NAMES)), draw(st.integers(0, 3)), [more]))
        elif kind == "swap":
            arguments.reverse()
        elif kind == "drop" and len(changed) > 1:
            used = {item for _, _, args in changed for a in args for item in _sources(a)}
            if len(changed) - 1 not in used:
                changed.pop()
    return changed


def _sources(argument: tuple[Any, ...]) -> list[int]:
    if argument[0] == "value":
        return []
    return list(argument[1]) if argument[0] == "list" else [argument[1]]


def graph_of(calls: list[tuple[str, int, list[Any]]]) -> tuple[Graph, dict[int, int]]:
    graph = Graph("random", policies=[TaskPolicy(LOCAL)])
    functions: dict[int, int] = {}
    place: dict[int, int] = {}
    for number, (name, version, arguments) in enumerate(calls):
        if version not in functions:
            functions[version] = len(graph.functions)
            digest = digest_bytes(f"code {version}".encode())
            names = ("a", "b")
            graph.functions.append(Function(digest, name, names, digest, digest))
        node = Node(len(graph.nodes), name, Kind.TASK, functions[version], policy=0)
        place[number] = node.id
        graph.nodes.append(node)
        for argument in arguments:
            if argument[0] == "value":
                value = ref_of(argument[1])
                graph.nodes.append(Node(len(graph.nodes), ":p:", Kind.PARAMETER, value=value))
                node.args.append(["p", graph.nodes[-1].id])
            elif argument[0] == "list":
                node.args.append(["l", [["n", place[source]] for source in argument[1]]])
            elif argument[2] is None:
                node.args.append(["n", place[argument[1]]])
            else:
                node.args.append(["n", place[argument[1]], [["i", argument[2]]]])
    graph.result = ["n", place[len(calls) - 1]]
    return graph, place


def arguments_of(arguments: list[Any], results: dict[int, Any]) -> list[Any]:
    found: list[Any] = []
    for argument in arguments:
        if argument[0] == "value":
            found.append(argument[1])
        elif argument[0] == "list":
            found.append([results[source] for source in argument[1]])
        else:
            result = results[argument[1]]
            found.append(result if argument[2] is None else result[argument[2]])
    return found


def run(
    calls: list[tuple[str, int, list[Any]]], reuse: Reuse | None, dice: random.Random
) -> tuple[dict[int, Any], set[int], dict[int, NodeRecord], Graph]:
    """Results by call, the calls that ran, the rows, and the graph."""
    graph, place = graph_of(calls)
    number_of = {node_id: number for number, node_id in place.items()}
    machine = Machine("d", graph, ["local"], "t")
    machine.offered = None if reuse is None else []
    results: dict[int, Any] = {}
    ran: set[int] = set()
    machine.start()
    waiting: list[int] = []
    while True:
        while machine.offered:
            offered, machine.offered = machine.offered, []
            assert reuse is not None
            reused = reuse.decide(offered, machine.records)
            for event in reused:
                digests = {value: known for known, value in STORE.items()}
                results[number_of[event.node]] = pickle.loads(digests[event.output.digest])
            machine.handle(reused, 1.0)
        waiting += machine.take("local", 100)
        if not waiting:
            break
        node_id = waiting.pop(dice.randrange(len(waiting)))
        number = number_of[node_id]
        _, version, arguments = calls[number]
        results[number] = call(version, arguments_of(arguments, results))
        output = ref_of(results[number])
        STORE[pickle.dumps(results[number], 5)] = output.digest
        ran.add(number)
        attempt = machine.records[node_id].attempt
        machine.sent(node_id)
        machine.handle([ev.Accepted(node_id, attempt, {}), ev.Started(node_id, attempt, 1.0)], 1.0)
        machine.handle([ev.Ended(node_id, attempt, True, output=output)], 2.0)
    assert all(row.status is NodeStatus.COMPLETED for row in machine.records.values())
    return results, ran, dict(machine.records), graph


STORE: dict[bytes, str] = {}


def least(
    old: list[tuple[str, int, list[Any]]],
    before: dict[int, Any],
    new: list[tuple[str, int, list[Any]]],
    after: dict[int, Any],
) -> int:
    """How many calls verifying traces must run: those without a trace of their own."""
    traces = Counter(
        (version, repr(arguments_of(arguments, before))) for _, version, arguments in old
    )
    wanted = Counter(
        (version, repr(arguments_of(arguments, after))) for _, version, arguments in new
    )
    return sum((wanted - traces).values())


@settings(
    max_examples=int(os.environ.get("CHELATE_EXAMPLES", "400")),
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_reuse_equals_a_full_run_and_runs_the_least(data: Any) -> None:
    calls = data.draw(programs())
    dice = random.Random(data.draw(st.integers(0, 99)))
    results, _, rows, graph = run(calls, None, dice)
    origin = "old"
    for step in range(data.draw(st.integers(1, 3))):
        changed = data.draw(edited(calls))
        fresh, every, _, new_graph = run(changed, None, dice)
        assert every == set(range(len(changed)))
        index = ReuseIndex.of(origin, graph, rows, lambda digests: {})
        record = DispatchRecord(f"new {step}", "random", options={"reuse_from": origin})
        reuse = Reuse(None, record, new_graph, index)  # type: ignore[arg-type]
        again, ran, new_rows, _ = run(changed, reuse, dice)
        assert again == fresh
        assert len(ran) == least(calls, results, changed, fresh)
        origins = [row.reused_from for row in new_rows.values() if row.reused_from is not None]
        assert len(origins) == len(set(origins)), "one result was taken over twice"
        calls, results, rows, graph, origin = changed, fresh, new_rows, new_graph, f"new {step}"
