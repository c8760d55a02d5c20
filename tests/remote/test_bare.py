"""A host with a bare Python runs modules that import chelate, and builds sub-workflows."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

MODULE = """
import chelate as ct


def helper(x):
    return x + 1


@ct.electron(resources=ct.Resources(cpus=1))
def inner(x):
    return helper(x)


@ct.electron
@ct.lattice
def sub(x):
    return inner(inner(x))


@ct.electron
def top(x):
    import importlib.util
    assert importlib.util.find_spec("sqlmodel") is None, "this Python is not bare"
    return helper(x) * 10


@ct.lattice(triggers=None)
def flow(x):
    return sub(top(x))
"""
SCRIPT = """
import sys

import chelate as ct
import flows
from tests.remote.box import Box

from chelate import embedding

if __name__ == "__main__":
    home, root, python = sys.argv[1:]
    ct.configure(home=home, progress="off")
    embedding.current().plugins.register_class(Box)
    box = Box(root=root, environment={"python": python})
    flow = ct.lattice(flows.flow.workflow_function, executor=box, workflow_executor=box)
    first = ct.dispatch(flow)(1)
    result = ct.get_result(first, wait=True)
    print(result.status, result.result, result.error or "")
    again = ct.redispatch(first, reuse_previous_results=True)(1)
    value = ct.get_result(again, wait=True).result
    print(value, *{str(row.decision) for row in ct.explain(again).rows})
"""


def test_modules_that_import_chelate_run_where_nothing_is_installed(tmp_path):
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    (tmp_path / "flows.py").write_text(MODULE)
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "script.py", tmp_path / "home", tmp_path / "root", bare / "bin/python"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "core")))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0].strip() == "COMPLETED 22", ran.stdout
    assert ran.stdout.splitlines()[1] == "22 REUSE", ran.stdout
