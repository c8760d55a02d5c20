"""A stored dispatch runs the code it was made with; a new one runs what the process has loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

FILES = {
    "shop/__init__.py": "",
    "shop/prices.py": "def price():\n    return 1\n",
    "shop/later.py": "def extra():\n    return 10\n",
    "shop/models.py": """
        import dataclasses, threading

        LOCK = threading.Lock()

        @dataclasses.dataclass
        class Order:
            count: int

            def total(self):
                with LOCK:
                    return self.count * 100
    """,
    "flow.py": """
        import chelate as ct
        from shop import models, prices

        @ct.electron
        def order(count):
            return models.Order(count)

        @ct.electron
        def total(order, _):
            from shop import later
            return order.total() + prices.price() + later.extra()

        @ct.electron
        @ct.lattice
        def inner(count):
            return total(order(count), 0)

        @ct.lattice
        def workflow(count):
            return [order(count), total(order(count), 0), inner(count)]
    """,
}
RUN = "value = ct.get_result(dispatch_id, wait=True); assert not value.error, value.error\n"
FRESH = "import flow; dispatch_id = ct.dispatch(flow.workflow)({count})\n" + RUN
SHOW = "print(json.dumps([dispatch_id, value.result[0].count, *value.result[1:]]))\n"


class Project:
    def __init__(self, folder):
        self.folder = folder / "project"
        for name, text in FILES.items():
            self.write(name, text)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("CHELATE_")}
        path = [str(self.folder), *filter(None, sys.path)]
        self.environment = {
            **kept,
            "CHELATE_HOME": str(folder / "home"),
            "PYTHONPATH": os.pathsep.join(path),
        }

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def edit(self, name, old, new):
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def python(self, script):
        """What a script prints as JSON."""
        run = subprocess.run(
            [sys.executable, "-c", "import json, chelate as ct\n" + textwrap.dedent(script)],
            env=self.environment, cwd=self.folder.parent, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        return json.loads(run.stdout.splitlines()[-1])

    def again(self, dispatch_id, *inputs):
        """What two tasks gave, for each inputs; the process never imports the user's modules."""
        return self.python(
            f"""
            found = []
            for inputs in {inputs!r}:
                dispatch_id = ct.redispatch({dispatch_id!r})(*inputs)
                value = ct.get_result(dispatch_id, wait=True)
                assert not value.error, value.error
                found.append([value.get_node_result(n)["output"] for n in ("total", "inner")])
            print(json.dumps(found))
            """
        )


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def edited(project):
    project.edit("shop/prices.py", "return 1", "return 2")
    project.edit("shop/models.py", "* 100", "* 1000")
    project.edit("shop/later.py", "return 10", "return 20")


def partly_gone(project):
    project.edit("shop/models.py", "class Order", "class Other")
    (project.folder / "shop/prices.py").unlink()


def gone(project):
    shutil.rmtree(project.folder)


@pytest.mark.parametrize("change", [edited, partly_gone, gone])
def test_a_stored_dispatch_runs_its_own_code(project, change):
    dispatch_id, *found = project.python(FRESH.format(count=3) + SHOW)
    assert found == [3, 311, 311]
    change(project)
    assert project.again(dispatch_id, (), (4,)) == [[311, 311], [411, 411]]


def test_a_new_process_runs_the_new_code_and_the_old_dispatch_the_old(project):
    old, *_ = project.python(FRESH.format(count=1) + SHOW)
    project.edit("shop/prices.py", "return 1", "return 5")
    new, *found = project.python(FRESH.format(count=1) + SHOW)
    assert found == [1, 115, 115]
    assert project.again(old, ()) == [[111, 111]]
    assert project.again(new, ()) == [[115, 115]]


def test_reload_in_one_process_reaches_living_workers(project):
    found = project.python(
        FRESH.format(count=1)
        + """
import importlib, pathlib, sys
found = [value.result[1:]]
first = dispatch_id
path = pathlib.Path(sys.modules["shop.prices"].__file__)
path.write_text("def price():\\n    return 2\\n")
"""
        + FRESH.format(count=1)
        + """
found.append(value.result[1:])
importlib.reload(sys.modules["shop.prices"])
"""
        + FRESH.format(count=1)
        + "found.append(value.result[1:])\n"
        + "dispatch_id = ct.redispatch(first)()\n"
        + RUN
        + "found.append(value.result[1:])\nprint(json.dumps(found))\n"
    )
    loaded, reloaded = [111, 111], [112, 112]
    assert found == [loaded, loaded, reloaded, loaded]


def test_instances_are_of_the_users_class_here_and_in_later_processes(project):
    check = """
from shop.models import Order
node = value.get_node_result(0)["output"]
same = [type(item) is Order and item == Order(3) for item in (node, value.result[0])]
print(json.dumps([dispatch_id, same, node.total()]))
"""
    dispatch_id, *found = project.python(FRESH.format(count=3) + check)
    assert found == [[True, True], 300]
    project.edit("shop/models.py", "* 100", "* 1000")
    _, *found = project.python(f"dispatch_id = {dispatch_id!r}\n" + RUN + check)
    assert found == [[True, True], 3000]


def test_new_tasks_in_the_place_of_stored_ones(project):
    dispatch_id, *_ = project.python(FRESH.format(count=1) + SHOW)
    project.edit("shop/prices.py", "return 1", "return 7")
    project.write(
        "newer.py", "from shop import prices\ndef total(order, _):\n    return prices.price()\n"
    )
    found = project.python(
        f"import newer\ndispatch_id = ct.redispatch({dispatch_id!r}, "
        "replace_electrons={'total': newer.total})()\n"
        + RUN
        + "print(json.dumps(value.result[1:]))"
    )
    assert found == [7, 7]


def test_code_that_is_lost_is_said_so(project):
    script = FRESH.format(count=1) + "print(json.dumps([dispatch_id]))"
    (dispatch_id,) = project.python(script)
    found = project.python(
        f"""
        from chelate.embedding import current
        from chelate.errors import BlobMissingError
        store = current().store
        code = current().graph(store.dispatch({dispatch_id!r})).code
        read = type(store).read
        def without(self, digest):
            if digest == code:
                raise BlobMissingError(f"Value {{digest[:12]}} is not in the store.")
            return read(self, digest)
        type(store).read = without
        type(store).path = lambda self, digest: None
        new = ct.redispatch({dispatch_id!r})()
        result = ct.get_result(new, wait=True)
        print(json.dumps([result.status, result.get_node_result("order")["reason"], result.error]))
        """
    )
    assert found[:2] == ["FAILED", "ENV_MISSING"]
    assert "stored code of task 'order'" in found[2]


WRAPPED = """
import functools
import chelate as ct

@functools.lru_cache(maxsize=None)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

@functools.cache
def twice(x):
    return 2 * x

class Box:
    def __init__(self, x):
        self.x = x
    @functools.cached_property
    def double(self):
        return twice(self.x)
    @functools.lru_cache(maxsize=8)
    def plus(self, y):
        return self.x + y
    @functools.singledispatchmethod
    def kind(self, value):
        return "other"
    @kind.register
    def _(self, value: int):
        return "int"

@functools.singledispatch
def flat(x):
    return [x]
@flat.register
def _(x: list):
    return [z for y in x for z in flat(y)]
@flat.register(tuple)
def _(x):
    return flat(list(x))

@ct.electron
def numbers(n):
    return fib(n), twice(n), flat([1, (2, [n])])
@ct.electron
def box(n):
    return Box(n)
@ct.electron
def look(found):
    return found.double, found.plus(2), found.kind(1), found.kind("x")
@ct.electron
@functools.lru_cache
def cached(n):
    return fib(n)
@ct.electron
@functools.singledispatch
def name(x):
    return "other"
@name.register
def _(x: int):
    return "int"
@ct.electron
def call(function, x):
    return function(x)

@ct.lattice
def workflow(n):
    return numbers(n), look(box(n)), cached(n), name(n), call(fib, n), call(flat, [n])

result = ct.dispatch_sync(workflow)(4)
assert result.error is None, result.error
print(result.result)
again = ct.dispatch(workflow, reuse_from=result.dispatch_id)
print(*{row.decision for row in again.plan(4)})
new = ct.get_result(ct.redispatch(result.dispatch_id)(5), wait=True)
assert new.error is None, new.error
print(new.result[2])
"""


def test_caches_and_generic_functions_of_a_script_travel(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WRAPPED)
    project = Project(tmp_path)
    run = subprocess.run(
        [sys.executable, str(script)], env=project.environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    values = ((3, 8, [1, 2, 4]), (8, 6, "int", "other"), 3, "int", 3, [4])
    assert run.stdout.splitlines() == [str(values), "REUSE", "5"]
