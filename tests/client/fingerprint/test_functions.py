# ruff: noqa: E501, PTH123 - texts of programs
"""Functions as they really arrive: wrapped, bound, without source, edited, pickled."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import sys
import threading
import time

import cloudpickle
import pytest

from chelate.client.fingerprint import compare_manifests, fingerprint_function, same
from chelate.errors import ConfigError
from chelate.values import File, fingerprint


def load(folder, text, name="sample"):
    """A module of that text, with a file of its own every time."""
    place = folder / f"v{len(list(folder.iterdir()))}"
    place.mkdir()
    (place / f"{name}.py").write_text(text)
    sys.modules.pop(name, None)
    sys.path.insert(0, str(place))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(place))


def reason(folder, before, after, name="task", **options):
    first = fingerprint_function(getattr(load(folder, before), name), **options)
    second = fingerprint_function(getattr(load(folder, after), name), **options)
    found = compare_manifests(first.manifest, second.manifest)
    assert same(first, second) == (found is None)
    return found


PAIRS = {
    "closure": (
        "def make(factor):\n    def task(x):\n        return x * factor\n    return task\ntask = make(2)\n",
        "make(2)",
        "make(3)",
        ("CLOSURE", "closure value factor changed: 2 → 3"),
    ),
    "closure function": (
        "def make(f):\n    def task(x):\n        return f(x)\n    return task\n"
        "def inc(x):\n    return x + 1\ntask = make(inc)\n",
        "x + 1",
        "x + 2",
        ("HELPER", "helper inc() changed"),
    ),
    "lambda": ("task = lambda x: x + 1\n", "x + 1", "x + 2", ("BODY", "body of the task changed")),
    "bound method": (
        "class A:\n    def __init__(self, k):\n        self.k = k\n    def run(self, x):\n"
        "        return x + self.k\ntask = A(1).run\n",
        "A(1)",
        "A(2)",
        "DECORATOR",
    ),
    "method of a bound method": (
        "class A:\n    k = 1\n    def run(self, x):\n        return x + self.k\ntask = A().run\n",
        "x + self",
        "x - self",
        "BODY",
    ),
    "class of a bound method": (
        "class A:\n    k = 1\n    def run(self, x):\n        return x + self.k\ntask = A().run\n",
        "k = 1",
        "k = 2",
        "DECORATOR",
    ),
    "partial": (
        "import functools\ndef f(a, b):\n    return a + b\ntask = functools.partial(f, b=1)\n",
        "b=1",
        "b=2",
        "DECORATOR",
    ),
    "callable instance": (
        "class A:\n    def __init__(self, k):\n        self.k = k\n    def __call__(self, x):\n"
        "        return x + self.k\ntask = A(1)\n",
        "x + self",
        "x - self",
        "CLASS",
    ),
    "callable decorator": (
        "import functools\nclass Deco:\n    def __init__(self, f):\n        self.f = f\n"
        "        functools.update_wrapper(self, f)\n    def __call__(self, x):\n"
        "        return self.f(x) + 1\n@Deco\ndef task(x):\n    return x\n",
        "self.f(x) + 1",
        "self.f(x) + 2",
        "DECORATOR",
    ),
    "super": (
        "class A:\n    def f(self):\n        return 1\nclass B(A):\n    def f(self):\n"
        "        return super().f() + 1\ndef task():\n    return B().f()\n",
        "return 1",
        "return 3",
        ("CLASS", "class A changed"),
    ),
    "library decorator with arguments": (
        "import tenacity\n@tenacity.retry(stop=tenacity.stop_after_attempt(3))\ndef task(x):\n"
        "    return x\n",
        "attempt(3)",
        "attempt(4)",
        "DECORATOR",
    ),
    "library decorator over a body": (
        "import tenacity\n@tenacity.retry(stop=tenacity.stop_after_attempt(3))\ndef task(x):\n"
        "    return x\n",
        "return x",
        "return x + 1",
        "BODY",
    ),
    "context manager": (
        "import contextlib\n@contextlib.contextmanager\ndef place():\n    yield 1\ndef task():\n"
        "    with place() as p:\n        return p\n",
        "yield 1",
        "yield 2",
        ("HELPER", "helper place() changed"),
    ),
    "generator": ("def task():\n    yield 1\n", "yield 1", "yield 2", "BODY"),
    "coroutine": (
        "async def task(x):\n    return await x\n",
        "async def task(x):\n    return await x",
        "def task(x):\n    return x",
        "BODY",
    ),
    "match": (
        "def task(x):\n    match x:\n        case [a, b]:\n            return a\n        case None:\n"
        "            return 1\n",
        "case None",
        "case True",
        "BODY",
    ),
    "instance in a list": (
        "class A:\n    def f(self):\n        return 1\nALL = [A()]\ndef task():\n"
        "    return [a.f() for a in ALL]\n",
        "return 1",
        "return 2",
        ("CLASS", "class A changed"),
    ),
    "class in a class body": (
        "class A:\n    class B:\n        k = 1\ndef task():\n    return A.B.k\n",
        "k = 1",
        "k = 2",
        "CLASS",
    ),
    "descriptor": (
        "class D:\n    def __get__(self, o, t):\n        return 1\nclass A:\n    d = D()\n"
        "def task():\n    return A().d\n",
        "return 1",
        "return 2",
        "CLASS",
    ),
    "metaclass": (
        "class M(type):\n    def f(cls):\n        return 1\nclass A(metaclass=M):\n    pass\n"
        "def task():\n    return A.f()\n",
        "return 1",
        "return 2",
        "CLASS",
    ),
    "dataclass factory": (
        "from dataclasses import dataclass, field\ndef one():\n    return [1]\n@dataclass\nclass A:\n"
        "    x: list = field(default_factory=one)\ndef task():\n    return A()\n",
        "[1]",
        "[2]",
        "CLASS",
    ),
    "pydantic field": (
        "import pydantic\nclass A(pydantic.BaseModel):\n    x: int = 1\ndef task():\n    return A()\n",
        "x: int = 1",
        "x: int = 2",
        ("CLASS", "class A changed"),
    ),
    "pydantic validator": (
        "import pydantic\nclass A(pydantic.BaseModel):\n    x: int = 1\n"
        "    @pydantic.field_validator('x')\n    @classmethod\n    def check(cls, v):\n"
        "        return v + 1\ndef task():\n    return A(x=1)\n",
        "v + 1",
        "v + 2",
        "CLASS",
    ),
    "attrs default": (
        "import attrs\n@attrs.define\nclass A:\n    x: int = 1\ndef task():\n    return A()\n",
        "x: int = 1",
        "x: int = 2",
        "CLASS",
    ),
    "function in a tuple of an instance": (
        "def f():\n    return 1\nclass A:\n    def __init__(self):\n        self.all = (f,)\nA_ = A()\n"
        "def task():\n    return A_.all[0]()\n",
        "return 1",
        "return 2",
        "GLOBAL",
    ),
    "whole module": (
        "import sample\nK = 1\ndef task():\n    return vars(sample)['K']\n",
        "K = 1",
        "K = 2",
        ("HELPER", "module sample changed"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_edit_is_seen(name, tmp_path):
    text, old, new, expected = PAIRS[name]
    if name.startswith(("pydantic", "attrs")):
        pytest.importorskip(name.split()[0], reason="no dependency of chelate")
    assert text.count(old) >= 1
    assert reason(tmp_path, text, text) is None
    assert reason(tmp_path, text, "# moved\n" + text) is None
    found = reason(tmp_path, text, text.replace(old, new))
    assert found is not None
    assert (found[0] if isinstance(expected, str) else found) == expected


TASK = (
    "K = 1\ndef helper(x):\n    return x + K\ndef task(x, verbose=False):\n    return helper(x)\n"
)


def test_without_source_bytecode_decides():
    spaces = []
    for text in (TASK, "\n\n# moved\n" + TASK, TASK.replace("x + K", "x - K")):
        space = {"__name__": "elsewhere"}
        exec(text, space)
        spaces.append(fingerprint_function(space["task"]))
    first, second, third = spaces
    assert first.ast is None
    assert same(first, second)
    assert not same(first, third)
    assert compare_manifests(first.manifest, third.manifest) == (
        "HELPER",
        "helper helper() changed",
    )


def test_without_source_another_python_is_the_reason(tmp_path):
    space = {"__name__": "elsewhere"}
    exec(TASK, space)
    here = fingerprint_function(space["task"]).manifest
    there = json.loads(json.dumps(here)) | {"tag": "cpython-39", "python": "3.9.1", "digest": ""}
    for component in there["components"]:
        component["code"] = component["code"][::-1]
    code, sentence = compare_manifests(there, here)
    assert code == "PYTHON"
    assert sentence.startswith("no source to compare; Python 3.9 → 3.")
    there["components"][-1]["ast"] = "0" * 64
    assert compare_manifests(there, here)[0] in ("GLOBAL", "DEFAULT")


def test_a_file_edited_after_its_import_is_not_believed(tmp_path):
    module = load(tmp_path, TASK)
    with open(module.__file__, "w") as stream:
        stream.write(TASK.replace("return helper(x)", "return helper(x + 1)"))
    edited = fingerprint_function(module.task)
    fresh = fingerprint_function(load(tmp_path, TASK).task)
    assert edited.ast is None
    assert same(edited, fresh)


def test_reload_after_an_edit(tmp_path):
    module = load(tmp_path, TASK)
    first = fingerprint_function(module.task)
    sys.path.insert(0, str(tmp_path / "v0"))
    try:
        with open(module.__file__, "w") as stream:
            stream.write("# a longer comment than before\n" + TASK.replace("x + K", "x * K"))
        module = importlib.reload(module)
    finally:
        sys.path.remove(str(tmp_path / "v0"))
    second = fingerprint_function(module.task)
    assert second.ast is not None
    assert compare_manifests(first.manifest, second.manifest)[1] == "helper helper() changed"


def test_pickled_by_value_and_back(tmp_path):
    module = load(tmp_path, TASK)
    first = fingerprint_function(module.task)
    cloudpickle.register_pickle_by_value(module)
    try:
        data = cloudpickle.dumps(module.task)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    again = fingerprint_function(cloudpickle.loads(data))
    assert same(first, again)
    assert again.ast == first.ast


def test_version_replaces_what_would_be_found(tmp_path):
    assert reason(tmp_path, TASK, TASK.replace("x + K", "x - K"), version="1") is None
    task = load(tmp_path, TASK).task
    first, second = (fingerprint_function(task, version=version) for version in ("2", "3"))
    assert not same(first, second)
    assert compare_manifests(first.manifest, second.manifest) == (
        "VERSION",
        "version changed: 2 → 3",
    )
    unstated = fingerprint_function(task)
    assert compare_manifests(unstated.manifest, second.manifest)[1] == "version changed: none → 3"


def test_depends_on_adds(tmp_path):
    path = tmp_path / "data.txt"
    folder = tmp_path / "modules"
    folder.mkdir()
    task = load(folder, TASK).task
    seen = []
    for text in ("one", "one", "two"):
        path.write_text(text)
        seen.append(fingerprint_function(task, depends_on=[File(path)]))
    assert same(seen[0], seen[1])
    assert not same(seen[1], seen[2])
    code, sentence = compare_manifests(seen[1].manifest, seen[2].manifest)
    assert (code, "data.txt" in sentence) == ("DEPENDS_ON", True)
    for before, after in (("R = 1", "R = 2"), ("def R(): return 1", "def R(): return 2")):
        found = []
        for text in (before, after):
            load(folder, text, "registry")
            found.append(fingerprint_function(task, depends_on=["registry"], version="1"))
        assert compare_manifests(found[0].manifest, found[1].manifest) == (
            "DEPENDS_ON",
            "dependency registry changed",
        )
    with pytest.raises(ConfigError, match="no_such_module"):
        fingerprint_function(task, depends_on=["no_such_module"])


def test_ignored_defaults_do_not_count(tmp_path):
    after = TASK.replace("verbose=False", "verbose=True")
    assert reason(tmp_path, TASK, after, ignore=["verbose"]) is None
    assert reason(tmp_path, TASK, after)[0] == "DEFAULT"
    with pytest.raises(ConfigError, match="loud"):
        fingerprint_function(load(tmp_path, TASK).task, ignore=["loud"])


def test_package_version(tmp_path, monkeypatch):
    from chelate.client.fingerprint import library

    task = load(tmp_path, "import numpy as np\ndef task(x):\n    return np.mean(x)\n").task
    first = fingerprint_function(task)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    library.distribution.cache_clear()
    try:
        second = fingerprint_function(task)
    finally:
        monkeypatch.undo()
        library.distribution.cache_clear()
    code, sentence = compare_manifests(first.manifest, second.manifest)
    assert code == "PACKAGE"
    assert sentence.startswith("package numpy changed: ")
    assert sentence.endswith(" → 99.0")


def test_secrets_are_masked_and_values_cut(tmp_path):
    text = "DB_PASSWORD = 'hunter2'\nCONF = {'token': 'abc'}\nLONG = 'x' * 500\n"
    text += "def task():\n    return DB_PASSWORD, CONF, LONG\n"
    manifest = fingerprint_function(load(tmp_path, text).task).manifest
    stored = json.dumps(manifest)
    assert "hunter2" not in stored
    assert b"hunter2".hex() not in stored
    assert "abc'" not in stored
    assert all(len(component["text"]) <= 60 for component in manifest["components"])


def test_what_is_not_tracked_is_listed(tmp_path):
    text = (
        "import threading\nLOCK = threading.Lock()\ndef task():\n    with LOCK:\n        return 1\n"
    )
    manifest = fingerprint_function(load(tmp_path, text).task).manifest
    assert manifest["not_tracked"] == ["LOCK (lock)"]
    assert reason(tmp_path, text, text) is None


def test_loggers_and_caches_do_not_disturb(tmp_path):
    text = (
        "import functools, logging\nLOG = logging.getLogger('sample')\n@functools.lru_cache\n"
        "def slow(x):\n    return x\n@functools.singledispatch\ndef show(x):\n    return 1\n"
        "def task(x):\n    LOG.info('x')\n    return slow(x), show(x)\n"
    )
    task = load(tmp_path, text).task
    first = fingerprint_function(task)
    task(1)
    logging.getLogger("sample.other").setLevel("DEBUG")
    assert fingerprint_function(task) == first


def test_electrons_count_by_their_function(tmp_path):
    text = (
        "class Electron:\n    def __init__(self, function):\n        self.function = function\n"
        "        self.calls = []\n    def __call__(self, *a):\n        return self.function(*a)\n"
        "@Electron\ndef helper(x):\n    return x + 1\n@Electron\ndef task(x):\n    return helper(x)\n"
    )
    module = load(tmp_path, text)
    assert same(fingerprint_function(module.task), fingerprint_function(module.task.function))
    module.helper.calls.append(threading.Lock())
    found = reason(tmp_path, text, text.replace("x + 1", "x + 2"))
    assert found == ("HELPER", "helper helper() changed")


def test_functions_inside_of_values_count_by_their_code(tmp_path):
    first, moved, other = (
        load(tmp_path, text).task for text in (TASK, "\n\n" + TASK, TASK.replace("x + K", "x - K"))
    )
    assert fingerprint([first]) == fingerprint([moved]) is not None
    assert fingerprint([first]) != fingerprint([other])
    assert fingerprint(functools.partial(first, 1)) != fingerprint(functools.partial(first, 2))


def test_long_chains_of_helpers(tmp_path):
    text = "def task():\n    return f0()\n" + "".join(
        f"def f{number}():\n    return f{number + 1}()\n" for number in range(1500)
    )
    text += "def f1500():\n    return 1\n"
    assert reason(tmp_path, text, text.replace("return 1\n", "return 2\n"))[0] == "HELPER"


def test_a_warm_fingerprint_takes_well_under_a_millisecond(tmp_path):
    text = (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 1\n"
        + TASK.replace("return helper(x)", "return helper(P(x).x)")
    )
    task = load(tmp_path, text).task
    fingerprint_function(task)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        fingerprint_function(task)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005
