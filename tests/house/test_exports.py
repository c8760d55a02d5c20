"""`__all__` of every module is sorted, exact and documented."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import pytest
from tests.house.layout import CORE, modules, tree

MODULES = modules()


def natural(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, each by name (as ruff sorts them)."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def exported(module: ast.Module) -> list[str] | None:
    for node in module.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return list(ast.literal_eval(node.value))
    return None


def bound(module: ast.Module) -> dict[str, ast.AST]:
    """Names that the module binds at its top level, imports included."""
    names: dict[str, ast.AST] = {}
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                names[(alias.asname or alias.name).split(".")[0]] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for item in ast.walk(target):
                    if isinstance(item, ast.Name):
                        names[item.id] = node
        elif isinstance(node, (ast.If, ast.Try)):
            names.update(bound(ast.Module(list(node.body), [])))
    return names


@pytest.mark.parametrize(("name", "path"), MODULES.items(), ids=MODULES.keys())
def test_exports(name: str, path: Path) -> None:
    module = tree(path)
    listed, names = exported(module), bound(module)
    documented = ast.get_docstring(module) is not None
    if listed is None:
        # A package marker with nothing in it, or a script, has nothing to export.
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in module.body)
        return
    assert documented, f"{name} has no docstring"
    assert listed == sorted(listed, key=natural), f"__all__ of {name} is not sorted"
    assert len(listed) == len(set(listed))
    if "__getattr__" not in names:
        missing = [item for item in listed if item not in names and not hasattr(builtins, item)]
        assert not missing, f"{name} exports {missing}, which it does not have"
    for item in listed:
        node = names.get(item)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            assert ast.get_docstring(node), f"{name}.{item} has no docstring"
    if name in ("chelate", "chelate.api"):
        return
    public = {
        item
        for item, node in names.items()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not item.startswith("_")
    }
    assert public <= set(listed), f"{name}: export {sorted(public - set(listed))}, or begin with _"


def test_the_package_is_typed() -> None:
    assert (CORE / "py.typed").exists()
