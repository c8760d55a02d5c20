"""Electrons and lattices of every kind: ids, normal form of calls, options, sub-workflows."""

from __future__ import annotations

import functools
import json
import math
import operator
import pickle
import threading

import pytest

from chelate.bundle import Bundle
from chelate.client.build import build_in_worker, task_names, wait_for
from chelate.client.codec import pickle_lattice
from chelate.client.electron import Electron, electron
from chelate.client.lattice import Lattice, lattice
from chelate.errors import (
    BuildError,
    ConfigError,
    CycleError,
    ForeignPlaceholderError,
    GraphError,
    RedispatchError,
)
from chelate.graph import Kind
from chelate.model import ExecutorRef, Resources, Retry
from chelate.triggers import TimeTrigger


@electron
def task_0(a):
    return a


@electron
def task_1(a, b):
    return a + b


@electron
def shapes(a, b=2, /, c=3, *rest, d=4, e, **more):
    return a, b, c, rest, d, e, more


@electron
def pair(a, b=10):
    return a, b


class Ref:
    """What an executor object looks like from here."""

    def __init__(self, name, **options):
        self.name, self.options = name, options

    def ref(self):
        return ExecutorRef(self.name, self.options)


class Scaler:
    """Electrons on all kinds of methods."""

    def __init__(self, factor):
        self.factor = factor

    @electron
    def scale(self, value):
        return self.factor * value

    @staticmethod
    @electron
    def outer_static(value):
        return value + 1

    @electron
    @staticmethod
    def inner_static(value):
        return value + 2

    @classmethod
    @electron
    def made(cls, factor):
        return cls(factor).factor

    root = electron(math.sqrt)

    def __call__(self, value):
        return self.factor + value


def test_ids_of_the_example():
    @lattice
    def workflow(a, b):
        return task_1(task_0(a), b)

    graph = workflow.build_graph(1, 2)
    rows = [(node.id, node.name, node.kind) for node in graph.nodes]
    assert rows == [
        (0, "task_0", "task"),
        (1, ":parameter:a", "parameter"),
        (2, "task_1", "task"),
        (3, ":parameter:b", "parameter"),
    ]
    assert graph.nodes[2].args == [["n", 0], ["p", 3]]
    assert graph.result == ["n", 2]


def test_the_return_node_comes_last():
    @lattice
    def workflow():
        return [task_0(1), 2]

    graph = workflow.build_graph()
    assert [node.kind for node in graph.nodes] == ["task", "parameter", "return"]
    assert graph.result == ["n", 2]


def test_ids_follow_the_signature_and_not_the_call():
    @lattice
    def workflow(how):
        if how:
            task_1(b=1, a=2)
        else:
            task_1(2, 1)

    one, two = workflow.build_graph(True), workflow.build_graph(False)
    for left, right in zip(one.nodes, two.nodes, strict=True):
        assert (left.name, left.args, left.kwargs) == (right.name, right.args, right.kwargs)
        assert left.value == right.value


CALLS = [
    ((1,), {"e": 5}),
    ((1, 2), {"e": 5, "d": 6}),
    ((1,), {"c": 7, "e": 5}),
    ((1, 2, 3, 4, 5), {"e": 6, "z": 7, "y": 8}),
    ((1, 2), {"d": 1, "c": 2, "e": 3}),
]


@pytest.mark.parametrize(("args", "kwargs"), CALLS)
@pytest.mark.parametrize("outputs", [False, True])
def test_every_kind_of_parameter(run, args, kwargs, outputs):
    @lattice
    def workflow():
        wrap = task_0 if outputs else (lambda value: value)
        return shapes(*map(wrap, args), **{key: wrap(value) for key, value in kwargs.items()})

    assert run(workflow) == shapes.function(*args, **kwargs)


def test_parameters_in_signature_order_and_no_defaults():
    @lattice
    def workflow():
        shapes(1, e=5, d=6, z=7)

    names = [node.name for node in workflow.build_graph().nodes]
    assert names == ["shapes", ":parameter:a", ":parameter:d", ":parameter:e", ":parameter:z"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: task_1(1), "'task_1'.*task_1\\(a, b\\): missing.*'b'"),
        (lambda: task_1(1, 2, 3), "'task_1'.*too many"),
        (lambda: task_1(1, c=2), "'task_1'.*('b'|'c')"),
        (lambda: task_1(1, 2, c=2), "'task_1'.*unexpected.*'c'"),
        (lambda: task_1(1, a=2), "'task_1'.*multiple values.*'a'"),
        (lambda: shapes(1), "'shapes'.*'e'"),
        (lambda: shapes(b=1, e=1), "'shapes'.*'a'"),
        (lambda: electron(lattice(lambda x: x))(), "missing.*'x'"),
        (lambda: electron(functools.partial(task_1.function, 1))(2, 3), "'task_1'.*too many"),
        (lambda: electron(Scaler)(), "'Scaler'.*'factor'"),
        (lambda: Scaler(1).scale(), "'scale'.*'value'"),
    ],
)
def test_arguments_that_do_not_fit_fail_at_build(call, words):
    with pytest.raises(GraphError, match=words) as caught:
        lattice(call).build_graph()
    assert "test_calls.py:" in str(caught.value)


def test_inputs_that_do_not_fit_the_lattice():
    with pytest.raises(GraphError, match=r"input of the lattice 'body'.*'x'"):
        lattice(lambda x: x, name="body").build_graph()


def test_callables_of_every_kind(run):
    scaler = Scaler(3)

    @lattice
    def workflow(number):
        value = task_0(number)
        return [
            scaler.scale(value),
            Scaler.scale(scaler, value),
            scaler.outer_static(value),
            Scaler.inner_static(value),
            scaler.inner_static(value),
            Scaler.made(value),
            scaler.root(16),
            electron(lambda x: x + 1)(value),
            electron(functools.partial(pair.function, 1))(value),
            electron(functools.partial(pair.function, b=1))(value),
            electron(max)(value, 1),
            electron(max)([value, 9], key=operator.neg),
            electron(Scaler)(value).factor,
            electron(scaler)(value),
            electron(scaler.scale)(value),
            electron(str.upper)("a"),
            electron(dict)(a=value),
        ]

    assert run(workflow, 2) == [
        6, 6, 3, 4, 4, 2, 4.0, 3, (1, 2), (2, 1), 2, 2, 2, 5, 6, "A", {"a": 2},
    ]  # fmt: skip
    names = [node.name for node in workflow.build_graph(2).tasks()]
    assert names[7:12] == ["sqrt", "<lambda>", "pair", "pair", "max"]


class Study:
    """A lattice and a sub-workflow as methods."""

    def __init__(self, base):
        self.base = base

    @lattice(executor="dask")
    def flow(self, value):
        return self.inner(value) + self.base

    @electron
    @lattice
    def inner(self, value):
        return task_1(value, self.base)


def test_lattices_as_methods(run):
    study = Study(10)
    assert run(study.flow, 1) == 21
    assert study.flow(1) == 21
    assert Study.flow(study, 1) == 21
    assert study.flow.name == "flow"
    assert study.flow.metadata["executor"]["name"] == "dask"


def test_outside_a_lattice_everything_is_the_plain_function():
    scaler = Scaler(3)
    assert task_1(1, 2) == 3
    assert scaler.scale(2) == 6
    assert Scaler.made(2) == 2
    assert scaler.root(16) == 4
    assert electron(Scaler)(2).factor == 2
    assert lattice(lambda: task_1(1, 2))() == 3
    assert electron(lattice(lambda: task_1(1, 2)))() == 3
    assert wait_for(1, [2]) == 1
    assert task_1.__name__ == "task_1"
    assert task_1.__module__ == __name__
    assert repr(task_1) == "<electron task_1>"


def test_three_ways_to_decorate():
    assert isinstance(electron(lambda: 1), Electron)
    assert isinstance(electron()(lambda: 1), Electron)
    assert electron(task_0, executor="x", name="other").options.executor == ExecutorRef("x")
    assert task_0.options.executor is None
    assert isinstance(lattice()(lambda: 1), Lattice)
    with pytest.raises(AttributeError):
        task_0.executor = "x"


async def coroutine():
    return 1


def generator():
    yield 1


class AsyncCall:
    async def __call__(self):
        return 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: electron(coroutine), "asyncio.run"),
        (lambda: electron(functools.partial(coroutine)), "asyncio.run"),
        (lambda: electron(AsyncCall()), "asyncio.run"),
        (lambda: electron(generator), "Return a list"),
        (lambda: lattice(coroutine), "async.*never wait"),
        (lambda: lattice(generator), "generator"),
        (lambda: electron("slurm"), "needs a function"),
        (lambda: lattice(3), "needs a function"),
        (lambda: electron(classmethod(generator)), "above"),
        (lambda: lattice(lattice(lambda: 1)), "already"),
    ],
)
def test_what_cannot_be_a_task_is_refused_at_decoration(make, words):
    with pytest.raises(GraphError, match=words):
        make()


@pytest.mark.parametrize(
    "options",
    [
        {"executor": 3},
        {"executor": ""},
        {"executor": Ref},
        {"retries": -1},
        {"retries": "many"},
        {"timeout": "soon"},
        {"timeout": 0},
        {"resources": {"cpus": 1}},
        {"reuse": "never"},
        {"name": 3},
    ],
)
@pytest.mark.parametrize("decorator", [electron, lattice])
def test_options_of_the_wrong_kind(decorator, options):
    with pytest.raises(ConfigError):
        decorator(lambda: 1, **options)


def test_options_come_from_the_task_then_the_lattice_then_the_surrounding_dispatch():
    @electron(executor=Ref("slurm", host="h"), retries=2)
    def own():
        return 1

    @lattice(executor="dask", workflow_executor="cloud", timeout="1m", retries=Retry(5))
    def workflow():
        return [own(), task_0(1) + 1]

    graph = workflow.build(
        defaults={"reuse": False, "timeout": 5.0, "resources": {"cpus": 3}}
    ).graph
    policies = {node.name: graph.policies[node.policy] for node in graph.tasks()}
    own_policy = policies["own"]
    assert own_policy.executor == ExecutorRef("slurm", {"host": "h"})
    assert own_policy.retry.times == 2
    assert own_policy.timeout == 60
    assert own_policy.resources == Resources(cpus=3)
    assert own_policy.reuse is False
    assert policies["task_0"].executor == ExecutorRef("dask")
    assert policies["task_0"].retry.times == 5
    for name in ("task_0.__add__", ":return:"):
        assert policies[name].executor == ExecutorRef("cloud")
        assert policies[name].timeout is None
    assert len(graph.policies) == 3


def test_effective_options_are_json():
    @lattice(executor="dask", retries=1, resources=Resources(mem="1G"))
    def workflow():
        return 1

    effective = workflow.effective({"workflow_executor": ExecutorRef("w").to_json(), "timeout": 3})
    assert json.loads(json.dumps(effective)) == effective
    assert effective["executor"]["name"] == "dask"
    assert effective["workflow_executor"]["name"] == "w"
    assert effective["timeout"] == 3
    assert workflow.effective(effective) == effective
    assert workflow.metadata["workflow_executor"]["name"] == "local"
    with pytest.raises(ConfigError):
        workflow.effective({"executor": 3})


def test_a_build_changes_no_electron():
    before = dict(task_0.__dict__)

    @lattice(executor="dask")
    def workflow():
        return task_0(1)

    workflow.build_graph()
    assert task_0.__dict__ == before


def test_electrons_that_live_for_one_call_keep_their_functions(run):
    @lattice
    def workflow():
        return [electron(lambda value, add=add: value + add)(1) for add in range(300)]

    assert run(workflow) == list(range(1, 301))


# -- ordering -------------------------------------------------------------------------------------


def test_wait_for_adds_edges_and_returns_the_child():
    @lattice
    def workflow():
        one, two, three = task_0(1), task_0(2), task_0(3)
        assert wait_for(three, [one, two]) is three
        assert two.wait_for(one, one) is two
        wait_for(three, one[0])

    nodes = workflow.build_graph().nodes
    assert nodes[4].after == (0, 2)
    assert nodes[2].after == (0,)


def test_a_circle_is_named():
    @lattice
    def workflow():
        first = task_0(1)
        second = task_1(first, 1)
        wait_for(first, second)

    with pytest.raises(CycleError, match=r"task_0 \(0\).*task_1 \(2\)"):
        workflow.build_graph()
    with pytest.raises(CycleError, match="task_0"):
        lattice(lambda: (lambda task: task.wait_for(task))(task_0(1))).build_graph()


def test_waiting_for_a_later_task_is_no_circle():
    @lattice
    def workflow():
        first, second = task_0(1), task_0(2)
        first.wait_for(second)

    assert workflow.build_graph().order() == [2, 0]


@pytest.mark.parametrize("call", [lambda e: wait_for(e, 3), lambda e: wait_for(3, e)])
def test_wait_for_refuses_values(call):
    with pytest.raises(GraphError, match="wait_for was given a int"):
        lattice(lambda: call(task_0(1))).build_graph()


# -- sub-workflows --------------------------------------------------------------------------------


@electron
@lattice
def factorial(n):
    return task_0(1) if n <= 1 else electron(operator.mul)(n, factorial(n - 1))


@lattice
def adds(a, b=1):
    total = task_1(a, b)
    return {"total": total, "a": a}


def test_a_sub_workflow_is_one_node_built_from_real_values(run):
    @lattice
    def workflow(n):
        inner = electron(adds)(task_0(n), b=2)
        return factorial(inner["total"]), inner

    graph = workflow.build_graph(2)
    names = {node.name: node.kind for node in graph.nodes if node.kind == Kind.SUBLATTICE}
    assert names == {"adds": "sublattice", "factorial": "sublattice"}
    assert run(workflow, 2) == (24, {"total": 4, "a": 2})


def test_a_lattice_called_in_a_lattice_is_inlined_with_its_own_options(run):
    @lattice(executor="inner")
    def inner(value):
        return task_0(value)

    @lattice(executor="outer")
    def workflow():
        return task_0(inner(task_0(1)))

    graph = workflow.build_graph()
    where = [graph.policies[node.policy].executor.name for node in graph.tasks()]
    assert where == ["outer", "inner", "outer"]
    assert len(graph.functions) == 1
    assert run(workflow) == 1


def test_sub_workflows_inherit_what_they_do_not_say(run_all):
    @lattice
    def inner():
        return task_0(1)

    @lattice(executor="own")
    def other():
        return task_0(1)

    @lattice(executor="outer", workflow_executor="builder", retries=3)
    def workflow():
        return electron(inner)(), electron(other, executor="there")()

    bundle = workflow.build()
    graph = bundle.graph
    names = [graph.policies[node.policy].executor.name for node in graph.tasks()]
    assert names == ["builder", "there", "builder"]
    for node, expected in zip(graph.nodes, ["outer", "own"], strict=False):
        data = build_in_worker(bundle.blobs[graph.functions[node.function].digest], (), {})
        child = Bundle.from_bytes(data).graph
        policy = child.policies[child.nodes[0].policy]
        assert policy.executor.name == expected
        assert policy.retry.times == 3


def test_an_electron_given_to_a_sub_workflow_is_still_one():
    @lattice
    def inner(function):
        return function(1)

    @lattice
    def workflow():
        return electron(inner)(task_0)

    bundle = workflow.build()
    node, parameter = bundle.graph.nodes
    given = pickle.loads(bundle.blobs[parameter.value.digest])
    data = build_in_worker(bundle.blobs[bundle.graph.functions[node.function].digest], (given,), {})
    assert [node.name for node in Bundle.from_bytes(data).graph.tasks()] == ["task_0"]


def test_the_lattice_and_its_inputs_travel_with_the_bundle():
    @lattice
    def workflow(items):
        items.append(3)
        return task_0(items)

    bundle = workflow.build(([1],))
    again = pickle.loads(bundle.blobs[bundle.lattice])
    args, kwargs = pickle.loads(bundle.blobs[bundle.inputs])
    assert (args, kwargs) == (([1],), {})
    assert "items.append(3)" in again.workflow_function_string
    assert again.name == "workflow"
    assert again.build_graph(*args).to_json() == bundle.graph.to_json()


def test_triggers_stay_at_home():
    one, other = TimeTrigger(60), TimeTrigger(90)
    armed = lattice(lambda: 1, triggers=one)
    assert armed.triggers == (one,)
    assert pickle.loads(pickle_lattice(armed)).triggers == ()
    assert lattice(lambda: 1, triggers=[one, other]).triggers == (one, other)
    assert lattice(lambda: 1).triggers == ()


# -- replacements ---------------------------------------------------------------------------------


@lattice
def replaceable(a):
    return task_1(task_0(a), b=10)


def test_a_replacement_reaches_every_call_by_name(run_all):
    bundle = replaceable.build((1,), replacements={"task_1": lambda a, b: (b, a), "nobody": len})
    assert [node.name for node in bundle.graph.tasks()] == ["task_0", "task_1"]
    assert task_names(bundle.graph) == {"task_0", "task_1"}
    assert pickle.loads(run_all(bundle).result) == (10, 1)


def test_a_replacement_is_called_as_the_lattice_calls(run_all):
    @lattice
    def workflow():
        return task_1(b=1, a=2)

    bundle = workflow.build(replacements={"task_1": lambda b, a: (a, b)})
    assert pickle.loads(run_all(bundle).result) == (2, 1)


def test_a_replacement_that_does_not_fit():
    with pytest.raises(RedispatchError, match=r"'task_1'.*replaced.*missing.*'c'"):
        replaceable.build((1,), replacements={"task_1": lambda a, b, c: 1})
    with pytest.raises(RedispatchError, match="'task_0'"):
        replaceable.build((1,), replacements={"task_0": lambda: 1})


def test_a_replacement_keeps_the_options_that_it_does_not_say():
    @lattice
    def workflow():
        return electron(task_0.function, executor="slurm", retries=2)(1)

    graph = workflow.build(replacements={"task_0": electron(lambda a: a, retries=4)}).graph
    policy = graph.policies[graph.nodes[0].policy]
    assert policy.executor.name == "slurm"
    assert policy.retry.times == 4


def test_replacements_in_a_worker_and_of_sub_workflows(run_all):
    data = build_in_worker(
        pickle_lattice(replaceable),
        (1,),
        {},
        replacements={"task_0": pickle_lattice(electron(lambda a: a + 100))},
    )
    assert pickle.loads(run_all(Bundle.from_bytes(data)).result) == 111

    @lattice
    def workflow():
        return electron(adds)(1)

    bundle = workflow.build(replacements={"adds": lattice(lambda a, b=1: task_0("new"))})
    assert bundle.graph.nodes[0].kind == Kind.SUBLATTICE
    assert pickle.loads(run_all(bundle).result) == "new"
    bundle = workflow.build(replacements={"adds": lambda a: "plain"})
    assert bundle.graph.nodes[0].kind == Kind.TASK
    assert pickle.loads(run_all(bundle).result) == "plain"


# -- builds ---------------------------------------------------------------------------------------


def test_lines_of_calls():
    def helper(value):
        return task_0(value)

    @lattice
    def workflow():
        one = task_0(1)
        two = helper(one)
        return [two + 1, task_0(1)]

    first = workflow.workflow_function.__code__.co_firstlineno
    inside = helper.__code__.co_firstlineno + 1
    lines = [node.line for node in workflow.build_graph().tasks()]
    assert lines == [
        f"test_calls.py:{first + 2}", f"test_calls.py:{inside}", f"test_calls.py:{first + 4}",
        f"test_calls.py:{first + 4}", "",
    ]  # fmt: skip


def test_a_build_that_fails_leaves_no_trace():
    @lattice
    def broken():
        task_0(1)
        raise ValueError("no")

    with pytest.raises(BuildError, match="'broken'"):
        broken.build_graph()
    assert task_0(5) == 5

    @lattice
    def careful():
        with pytest.raises(GraphError):
            task_1(1)
        with pytest.raises(GraphError):
            bool(task_0(1))
        return task_0(2)

    assert [node.id for node in careful.build_graph().nodes] == [0, 1, 2, 3]


def test_errors_of_a_body_that_recurses_for_ever():
    @lattice
    def endless():
        return endless()

    with pytest.raises(BuildError, match="RecursionError"):
        endless.build_graph()


BARRIER = threading.Barrier(4)


def meet():
    BARRIER.wait(30)


def test_threads_build_independently():
    graphs = {}

    @lattice
    def workflow(count):
        meet()
        for _ in range(count):
            task_0(1)
        meet()

    def work(count):
        graphs[count] = workflow.build_graph(count)

    threads = [threading.Thread(target=work, args=(count,)) for count in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {count: len(graph.nodes) for count, graph in graphs.items()} == {1: 2, 2: 4, 3: 6, 4: 8}


def test_an_electron_called_in_another_thread_of_the_body_is_refused():
    found = []

    @lattice
    def workflow():
        value = task_0(1)

        def work():
            try:
                task_0(value)
            except ForeignPlaceholderError as error:
                found.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)

    workflow.build_graph()
    assert "same thread" in found[0]


def test_a_lattice_without_electrons(run):
    assert run(lattice(lambda: None)) is None
    assert run(lattice(lambda a, *b, **c: (a, b, c)), 1, 2, d=3) == (1, (2,), {"d": 3})
    assert lattice(lambda: [1]).build_graph().result[0] == "c"


def test_long_chains_need_no_recursion():
    @lattice
    def workflow(count):
        value = total = 0
        for _ in range(count):
            value = task_0(value)
            total = total + value
        return total

    graph = workflow.build_graph(10_000)
    assert len(graph.order()) == 20_000
    assert len(graph.to_json()) < 2_000_000


def test_the_functions_of_a_build_are_stored_once():
    @lattice
    def workflow():
        for number in range(100):
            task_0(number) + number

    graph = workflow.build_graph()
    assert [function.name for function in graph.functions] == ["task_0", "add"]
    assert len(graph.policies) == 1


def test_draw_asks_the_drawing_room(monkeypatch):
    import importlib
    from types import SimpleNamespace

    asked = []
    monkeypatch.setattr(
        importlib,
        "import_module",
        lambda name: SimpleNamespace(draw=lambda g: (name, len(g.nodes))),
    )
    asked.append(lattice(lambda n: task_0(n)).draw(1))
    assert asked == [("chelate.show.drawing", 2)]
