"""Pickling: what travels, what does not and how that is said, and tasks without chelate."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest

from chelate.client.codec import load_value, pickle_function, pickle_lattice, pickle_value
from chelate.client.context import get_context
from chelate.client.electron import electron
from chelate.client.lattice import lattice
from chelate.errors import SerializationError, UserError

LOCK = threading.Lock()


class Stubborn:
    """Refuses to be pickled in words of its own."""

    def __reduce__(self):
        raise ValueError("not me")


@electron
def helper(value):
    return value + 1


@electron
def outer(value):
    return helper(value) * 2


@electron
def recursive(value):
    return 1 if value < 2 else value * recursive(value - 1)


@lattice
def flow(value):
    return helper(value)


@pytest.mark.parametrize("value", [1, 2.5, "a", b"b", None, True, 1j, [1, {"a": (2,)}], {3}])
def test_values_come_back(value):
    again = load_value(pickle_value(value))
    assert again == value
    assert type(again) is type(value)


def test_electrons_become_functions_for_tasks_and_stay_electrons_for_lattices():
    assert type(load_value(pickle_value(helper))) is type(helper.function)
    assert type(load_value(pickle_value([flow])[:])[0]) is type(helper.function)
    assert type(load_value(pickle_lattice(helper))) is type(helper)
    again = load_value(pickle_function(outer.function))
    assert again(2) == 6
    assert type(again.__globals__["helper"]) is type(helper.function)
    assert load_value(pickle_function(recursive))(5) == 120
    assert load_value(pickle_value({"f": recursive}))["f"](4) == 24
    again = load_value(pickle_lattice(flow))
    assert type(again.workflow_function.__globals__["helper"]) is type(helper)
    assert [node.name for node in again.build_graph(1).tasks()] == ["helper"]


@electron
def with_global():
    return LOCK


def test_what_cannot_be_pickled_is_named():
    local = threading.Lock()

    def with_cell():
        return local

    def with_default(a, lock=local):
        return lock

    cases = [
        (with_global, (), r"function of 'with_global'.*global variable 'LOCK'.*lock"),
        (electron(with_cell), (), r"function of 'with_cell'.*closure variable 'local'"),
        (electron(with_default), (1,), r"function of 'with_default'.*default number 1"),
        (helper, (local,), r"argument 'value' of 'helper'.*Open locks"),
        (helper, ([1, {"a": local}],), r"item 1 → item 'a'.*lock"),
        (helper, (Stubborn(),), r"ValueError: not me"),
        (helper, ((i for i in range(3)),), r"generator.*list of its items"),
    ]
    for task, args, words in cases:
        with pytest.raises(SerializationError, match=words) as caught:
            # The lattice itself must travel, so it may not hold what cannot.
            _build(task, args)
        assert str(caught.value).endswith(".")


def _build(task, args):
    from chelate.client.options import BUILTIN
    from chelate.client.recorder import Build

    with Build("body", BUILTIN, {}).active():
        task(*args)


def test_a_lattice_and_a_return_value_that_cannot_be_pickled():
    local = threading.Lock()
    with pytest.raises(SerializationError, match=r"Lattice '<lambda>'.*closure variable 'local'"):
        lattice(lambda: helper(local)).build_graph()
    with pytest.raises(SerializationError, match="return value of the lattice"):
        lattice(lambda: threading.Lock()).build_graph()
    with pytest.raises(SerializationError, match="input of the lattice"):
        lattice(lambda x: x).build_graph(local)


def test_values_nested_too_deeply():
    items = []
    for _ in range(100_000):
        items = [items]
    with pytest.raises(SerializationError, match="flat form"):
        pickle_value(items)


def test_bytes_that_cannot_be_loaded():
    with pytest.raises(SerializationError, match="ModuleNotFoundError"):
        load_value(b"cno_such_module_at_all\nthing\n.")


SCRIPT = """
    import dataclasses, operator, pickle, sys
    from chelate.client.electron import electron
    from chelate.client.lattice import lattice

    @electron
    def helper(value):
        return value + 1

    @electron
    def task(value):
        return helper(value), flow(value), Tool().run(value)

    @lattice
    def flow(value):
        return helper(value)

    class Tool:
        @electron
        def run(self, value):
            return helper(value)

    @dataclasses.dataclass
    class Config:
        callback: object

    @lattice
    def workflow():
        value = task(1)
        value = value[0] + 1
        value.bit_length()
        Tool().run(helper)
        electron(operator.add)(value, Config(helper))
        value, *rest = task(2)
        return [value, {1: rest}]

    bundle = workflow.build()
    functions = [f.digest for f in bundle.graph.functions]
    values = [n.value.digest for n in bundle.graph.nodes if n.value]
    values += bundle.graph.values
    with open(sys.argv[1], "wb") as file:
        pickle.dump(([bundle.blobs[d] for d in functions], [bundle.blobs[d] for d in values]), file)
"""

WORKER = """
    import pickle, sys
    sys.modules["chelate"] = None
    with open(sys.argv[1], "rb") as file:
        functions, values = pickle.load(file)
    functions = [pickle.loads(data) for data in functions]
    [pickle.loads(data) for data in values]
    print(functions[0](4))
"""


def test_tasks_need_no_chelate_where_they_run(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for name, source in (("make.py", SCRIPT), ("work.py", WORKER)):
        path = tmp_path / name
        path.write_text(textwrap.dedent(source))
        done = subprocess.run(
            [sys.executable, str(path), str(tmp_path / "data")],
            capture_output=True, text=True, timeout=120, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(5, 5, 5)"


def test_the_context_of_a_task(monkeypatch):
    with pytest.raises(UserError, match="outside a running task"):
        get_context()
    module = type(sys)("_chelate_task_context")
    module.current = {
        "dispatch_id": "d", "node_id": 3, "attempt": 2, "name": "helper", "root_dispatch_id": "r",
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "_chelate_task_context", module)
    context = get_context()
    assert (context.dispatch_id, context.node_id, context.task_id) == ("d", 3, 3)
    assert (context.attempt, context.name, context.root_dispatch_id) == (2, "helper", "r")
    assert pickle.loads(pickle.dumps(context)) == context
