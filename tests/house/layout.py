"""Where things are, and what each module imports; shared by the house's guards."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "chelate"


@dataclass(frozen=True)
class Import:
    """One import of a module of chelate by another. ``inside`` a function, or at module level."""

    importer: str
    imported: str
    line: int
    inside: bool


def modules(root: Path = CORE, package: str = "chelate") -> dict[str, Path]:
    """Every module by dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join((package, *parts))] = path
    return found


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def imported_names(
    node: ast.AST, package: str, inside: bool = False
) -> list[tuple[str, int, bool]]:
    """Dotted names that are imported, with line and place; imports for type checkers are left out.

    ``from a import b`` gives ``a.b``: whether b is a module is for the caller to find out.
    """
    found: list[tuple[str, int, bool]] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in child.orelse:
                found += imported_names(ast.Module([other], []), package, inside)
        elif isinstance(child, ast.Import):
            found += [(alias.name, child.lineno, inside) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parents = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*parents, *filter(None, [child.module])])
            found += [(f"{base}.{alias.name}", child.lineno, inside) for alias in child.names]
        else:
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            found += imported_names(child, package, inside or function)
    return found


def own_imports(found: dict[str, Path]) -> list[Import]:
    """Every import of one of the modules by another."""
    result = []
    for importer, path in found.items():
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        for name, line, inside in imported_names(tree(path), package):
            target = name
            while target and target not in found:
                target = target.rpartition(".")[0]
            if target and target != importer:
                result.append(Import(importer, target, line, inside))
    return list(dict.fromkeys(result))
