"""Snapshots of the user's modules: what is in them, when they change, and what they cost."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import zipfile

import pytest

from chelate.client.codec import pickle_function
from chelate.client.lattice import lattice
from chelate.client.snapshot import INDEX, Snapshots, beside, snapshot
from chelate.errors import GraphError

LONG_AGO = 1_600_000_000


class Project:
    """A folder on the path. Files are old unless said otherwise, as most of a user's are."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, name, text, *, age=LONG_AGO):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if age is not None:
            os.utime(path, (age, age))
        importlib.invalidate_caches()
        return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    before = dict(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Project(tmp_path)
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def contents(archive):
    """Texts by name, without the index and the modules that pytest has loaded."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        names = [name for name in opened.namelist() if name.startswith("mine")]
        return {name: opened.read(name).decode() for name in names}


def output(script):
    """What a new process with this one's path prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-B", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def index(archive):
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.namelist()[0] == INDEX
        return json.loads(opened.read(INDEX))


def test_loaded_modules_and_what_lies_beside_them_in_their_package(project):
    project.write("mine_alone.py", "a = 1")
    project.write("mine_unloaded.py", "")
    project.write("mine/__init__.py", "")
    project.write("mine/used.py", "b = 2")
    project.write("mine/lazy.py", "c = 3")
    project.write("mine/deep/__init__.py", "")
    project.write("mine/deep/lazy.py", "d = 4")
    project.write("mine/data.csv", "1,2")
    project.write("mine/__pycache__/old.py", "")
    importlib.import_module("mine_alone")
    importlib.import_module("mine.used")
    archive = Snapshots().take()
    assert contents(archive) == {
        "mine_alone.py": "a = 1",
        "mine/__init__.py": "",
        "mine/used.py": "b = 2",
        "mine/lazy.py": "c = 3",
        "mine/deep/__init__.py": "",
        "mine/deep/lazy.py": "d = 4",
    }
    assert index(archive)["files"]["mine/used.py"][2] == str(project.folder / "mine/used.py")
    assert str(project.folder) in index(archive)["roots"]


def test_libraries_chelate_and_main_stay_out(project):
    import numpy  # noqa: F401

    project.write("mine.py", "")
    importlib.import_module("mine")
    names = {
        name.partition("/")[0].removesuffix(".py") for name in index(Snapshots().take())["files"]
    }
    assert "mine" in names
    assert not names & {"numpy", "pytest", "_pytest", "json", "chelate", "__main__", "cloudpickle"}


def test_namespace_packages_and_modules_under_another_name(project):
    project.write("mine/part/module.py", "a = 1")
    project.write("mine/part/beside.py", "b = 2")
    file = project.write("elsewhere/odd name.py", "c = 3")
    importlib.import_module("mine.part.module")
    spec = importlib.util.spec_from_file_location("mine_odd", file)
    sys.modules["mine_odd"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["mine_odd"])
    archive = Snapshots().take()
    assert contents(archive) == {
        "mine/part/module.py": "a = 1",
        "mine/part/beside.py": "b = 2",
        "mine_odd.py": "c = 3",
    }
    assert index(archive)["files"]["mine_odd.py"][2] is None


def test_equal_modules_give_equal_bytes(project):
    for name in ("b", "a"):
        project.write(f"mine/{name}.py", name)
    project.write("mine/__init__.py", "")
    importlib.import_module("mine")
    first = Snapshots().take()
    os.utime(project.folder / "mine/a.py", (LONG_AGO + 5, LONG_AGO + 5))
    assert Snapshots().take() == first


def test_what_is_loaded_counts_until_it_is_reloaded(project):
    file = project.write("mine.py", "def f(): return 1")
    module = importlib.import_module("mine")
    snapshots = Snapshots()
    first = snapshots.take()
    file.write_text("def f(): return 2")
    assert snapshots.take() is first
    importlib.reload(module)
    assert contents(snapshots.take()) == {"mine.py": "def f(): return 2"}
    del sys.modules["mine"]
    assert contents(snapshots.take()) == {}


def test_changes_beside_loaded_modules_are_seen_at_once(project):
    project.write("mine/__init__.py", "")
    lazy = project.write("mine/lazy.py", "a = 1")
    importlib.import_module("mine")
    snapshots = Snapshots()
    for number in range(2, 6):
        snapshots.take()
        lazy.write_text(f"a = {number}")
        assert contents(snapshots.take())["mine/lazy.py"] == f"a = {number}"
        project.write(f"mine/new{number}.py", "", age=None)
        assert f"mine/new{number}.py" in contents(snapshots.take())
    lazy.unlink()
    assert "mine/lazy.py" not in contents(snapshots.take())


@pytest.mark.parametrize(
    "after",
    ["def f(): return 2", "def g(): return 1", "class C:\n def f(self): return 4", "def f(:"],
)
def test_a_file_edited_after_its_import_is_named(project, after):
    file = project.write("mine.py", "def f(): return 1\nclass C:\n def f(self): return 3")
    importlib.import_module("mine")
    file.write_text(after)
    with pytest.raises(GraphError, match=r"mine\.py was edited after .* importlib\.reload"):
        Snapshots().take()
    importlib.reload(sys.modules["mine"]) if after[-1] != ":" else file.write_text("")


def test_new_files_and_moved_lines_are_no_edits(project):
    text = (
        "import functools, dataclasses\n"
        "@dataclasses.dataclass\nclass D:\n x: int = 1\n @property\n def p(self): return {1, 'a'}\n"
        "@functools.lru_cache\ndef f(a, *b): return [lambda: (a, c) for c in b]\n"
    )
    file = project.write("mine.py", text, age=None)
    importlib.import_module("mine")
    file.write_text("# a remark\n\n" + text)
    assert "a remark" in contents(Snapshots().take())["mine.py"]


@pytest.mark.parametrize("bound", ["most_files=15", "most_bytes=5000", "most_bytes=100"])
def test_too_much_code_is_refused_with_its_folder(project, bound):
    project.write("mine/__init__.py", "")
    for number in range(20):
        project.write(f"mine/many/m{number}.py", "x = 1\n" * 100)
    project.write("mine_small.py", "")
    script = (
        "import mine, mine_small, chelate.client.snapshot as s, chelate.errors\n"
        f"try: s.Snapshots({bound}).take()\nexcept chelate.errors.GraphError as e: print(e)"
    )
    printed = output(script)
    assert f"Most are in {project.folder}/mine" in printed
    assert "pip install" in printed


REPEATED = """
import importlib, time
from chelate.client.snapshot import Snapshots
for number in range(1, 100, 2):
    importlib.import_module(f"mine.m{number}")
snapshots = Snapshots()
first = snapshots.take()
times = []
for _ in range(200):
    start = time.process_time()
    assert snapshots.take() is first
    times.append(time.process_time() - start)
print(min(times))
"""


def test_a_repeated_snapshot_of_a_hundred_files_takes_less_than_a_millisecond(project):
    project.write("mine/__init__.py", "")
    for number in range(100):
        project.write(f"mine/m{number}.py", f"x = {number}")
    for folder in (project.folder, project.folder / "mine"):
        os.utime(folder, (LONG_AGO, LONG_AGO))
    # In a process of its own: here the tests' own modules are the user's, too.
    assert float(output(REPEATED)) < 0.001


def test_threads_may_take_snapshots_at_once(project):
    project.write("mine.py", "")
    importlib.import_module("mine")
    snapshots, found = Snapshots(), []
    threads = [threading.Thread(target=lambda: found.append(snapshots.take())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(archive) for archive in found}) == 1


def test_what_a_stored_archive_lacks_is_pickled_by_value(project):
    file = project.write("mine.py", "def helper(): return 1\ndef f(): return helper()")
    project.write("mine_same.py", "def f(): return 3")
    importlib.import_module("mine_same")
    module = importlib.import_module("mine")
    stored = snapshot()
    by_name = pickle_function(module.f)
    with beside(stored):
        assert pickle_function(module.f) == by_name
    file.write_text("def helper(): return 2\ndef f(): return helper()")
    importlib.reload(module)
    for archive in (stored, None):
        with beside(archive):
            data = pickle_function(module.f)
            same = pickle_function(sys.modules["mine_same"].f)
        assert (len(same) > 200) == (archive is None)
        file.write_text("def helper(): return 4")
        del sys.modules["mine"]
        assert pickle.loads(data)() == 2
        sys.modules["mine"] = module
    assert pickle_function(module.f) == by_name


def test_a_bundle_carries_the_snapshot(project):
    project.write("mine.py", "a = 1")

    @lattice
    def workflow():
        importlib.import_module("mine")
        return 1

    bundle = workflow.build()
    assert contents(bundle.blobs[bundle.graph.code]) == {"mine.py": "a = 1"}
