"""Pickles are opened by the client column and the worker, and by nobody else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.house.layout import imported_names, modules, tree

MODULES = modules()
MAY = ("client", "values", "worker")
LIBRARIES = {"_pickle", "cloudpickle", "copyreg", "dill", "joblib", "marshal", "pickle", "shelve"}
CALLS = {"__import__", "compile", "eval", "exec"}


def breaches(module: ast.Module, name: str) -> list[str]:
    found = [
        f"{name}:{line} imports {item}"
        for item, line, _ in imported_names(module, name)
        if item.split(".")[0] in LIBRARIES
    ]
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            found.append(f"{name}:{node.lineno} calls {node.func.id}")
    return found


@pytest.mark.parametrize(("name", "path"), MODULES.items(), ids=MODULES.keys())
def test_only_the_client_and_the_worker_open_values(name: str, path: Path) -> None:
    if name.removeprefix("chelate").lstrip(".").split(".")[0] not in MAY:
        assert not breaches(tree(path), name)


@pytest.mark.parametrize(
    "code", ["import pickle", "def f():\n    from cloudpickle import loads", "eval('1')"]
)
def test_the_guard_sees(code: str) -> None:
    assert breaches(ast.parse(code), "chelate.kernel.x")
