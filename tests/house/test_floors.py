"""A module imports only from lower floors; the two columns meet only at the doors.

To add a module: put it, or its package, into FLOORS on the lowest floor that works. Modules of
one declared package may import each other (without circles); anything else on one floor may not.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.house.layout import Import, imported_names, modules, own_imports, tree

FLOORS = {
    "errors": 0,
    "digest": 0,
    "worker": 0,
    "values.*": 1,
    "model": 1,
    "settings": 1,
    "graph": 2,
    "bundle": 3,
    "diff": 3,
    "contracts.*": 4,
    "reasons": 4,
    "targets": 4,
    "api": 5,
    "client.*": 6,
    "kernel.*": 6,
    "store.*": 6,
    "executors.*": 6,
    "triggers.*": 6,
    "remote.*": 6,
    "show.*": 7,
    "testing.*": 8,
    "gateway": 8,
    "embedding": 9,
    "held": 9,
    "result": 10,
    "checking.*": 11,
    "configuration": 11,
    "explaining": 11,
    "server": 11,
    "triggering": 11,
    "dispatching": 12,
    "redispatching": 12,
    "": 13,  # chelate/__init__.py
    "cli.*": 14,
    "__main__": 15,
}
CLIENT = ("client",)
KERNEL = ("kernel", "store", "executors", "triggers", "remote")
# Built-ins and what plugins share, which import what a plugin may import.
OUTSIDERS = ("executors", "store", "triggers", "remote")
PURE = {"chelate.errors", "chelate.graph", "chelate.model"}
IMPURE = {
    "asyncio", "datetime", "io", "logging", "os", "pathlib", "random", "secrets", "socket",
    "sqlite3", "subprocess", "sys", "threading", "time", "uuid",
}  # fmt: skip


def place(module: str) -> tuple[str, int] | None:
    """The row of the table and the floor of a module."""
    name = module.removeprefix("chelate").lstrip(".")
    if name in FLOORS:
        return name, FLOORS[name]
    package = f"{name.split('.')[0]}.*"
    return (package, FLOORS[package]) if package in FLOORS else None


def room(module: str) -> str:
    return module.removeprefix("chelate").lstrip(".").split(".")[0]


def complaint(edge: Import) -> str | None:
    """What is wrong with an import, or None."""
    low, high = place(edge.imported), place(edge.importer)
    if low is None or high is None:
        return None  # test_every_module_has_a_floor says so
    here = f"{edge.importer}:{edge.line} imports {edge.imported}"
    rooms = room(edge.importer), room(edge.imported)
    if edge.importer == "chelate.worker":
        if not edge.inside:
            return f"{here}: the worker is copied alone to other hosts, so only inside a function"
        return f"{here}: the worker may not use the kernel" if rooms[1] in KERNEL else None
    if {*rooms} & {*CLIENT} and {*rooms} & {*KERNEL}:
        return f"{here}: client and kernel column meet only at the doors"
    if rooms[0] in KERNEL and rooms[1] == "values":
        return f"{here}: the kernel never opens a value"
    if edge.imported == "chelate.worker" and rooms[0] == "executors":
        return None  # the local pool is the other end of the worker's own protocol
    if rooms[0] in OUTSIDERS and rooms[0] != rooms[1] and edge.imported != "chelate.api":
        return f"{here}: built-ins import only chelate.api, as plugins do"
    if low[0] == high[0]:
        return None if low[0].endswith(".*") else f"{here}: both are on one floor"
    if low[1] >= high[1]:
        return f"{here}: floor {low[1]} is not below floor {high[1]}"
    return None


def circles(edges: list[Import]) -> list[str]:
    """Circles of module-level imports, each as one sentence."""
    graph: dict[str, set[str]] = {}
    for edge in edges:
        if not edge.inside:
            graph.setdefault(edge.importer, set()).add(edge.imported)
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" → ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_every_module_has_a_floor() -> None:
    lost = [name for name in modules() if place(name) is None]
    assert not lost, (
        f"{', '.join(lost)}: no floor is declared; add the module to FLOORS in {__file__}, on the "
        "lowest floor that works."
    )


def test_imports_go_down() -> None:
    problems = [text for edge in own_imports(modules()) if (text := complaint(edge))]
    assert not problems, "\n".join(problems)


def test_no_circles() -> None:
    assert not circles(own_imports(modules()))


def test_the_machine_is_pure() -> None:
    found = modules()
    edges = own_imports(found)
    pending, seen = ["chelate.kernel.states.machine"], set()
    while pending:  # the machine, and the parts of it that lie in files of their own
        name = pending.pop()
        if name in seen or name not in found:
            continue
        seen.add(name)
        own = {edge.imported for edge in edges if edge.importer == name} - PURE
        outside = {item for item in own if room(item) != "kernel"}
        assert not outside, f"{name} may import only {sorted(PURE)}, not {sorted(outside)}"
        roots = {item.split(".")[0] for item, _, _ in imported_names(tree(found[name]), name)}
        assert not roots & IMPURE, f"{name} is pure: no clock, no I/O, no logging, no threads"
        pending += own


@pytest.mark.parametrize(
    ("importer", "imported", "inside"),
    [
        ("chelate.model", "chelate.graph", False),
        ("chelate.graph", "chelate.kernel.engine", True),
        ("chelate.client.trace", "chelate.kernel.engine", True),
        ("chelate.store.sql", "chelate.client.trace", False),
        ("chelate.kernel.engine", "chelate.values", True),
        ("chelate.worker", "chelate.values", False),
        ("chelate.worker", "chelate.kernel.engine", True),
        ("chelate.executors.local", "chelate.model", False),
        ("chelate.kernel.engine", "chelate.store.sql", True),
        ("chelate.model", "chelate.settings", False),
        ("chelate.client.trace", "chelate.gateway", True),
    ],
)
def test_the_guard_sees(importer: str, imported: str, inside: bool) -> None:
    assert complaint(Import(importer, imported, 1, inside))


@pytest.mark.parametrize(
    ("importer", "imported", "inside"),
    [
        ("chelate.worker", "chelate.client.trace", True),
        ("chelate.executors.local", "chelate.api", False),
        ("chelate.kernel.engine", "chelate.kernel.states.machine", False),
        ("chelate.gateway", "chelate.kernel.engine", True),
        ("chelate.gateway", "chelate.client.trace", False),
    ],
)
def test_the_guard_allows(importer: str, imported: str, inside: bool) -> None:
    assert complaint(Import(importer, imported, 1, inside)) is None


def test_the_reader_of_imports_sees_all_forms(tmp_path: Path) -> None:
    package = tmp_path / "chelate"
    (package / "kernel").mkdir(parents=True)
    (package / "kernel" / "__init__.py").write_text("")
    (package / "model.py").write_text("")
    (package / "kernel" / "a.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import chelate.model\n"
        "from . import b\n"
        "def f():\n    from chelate.model import Status\n"
        "class C:\n    def m(self):\n        import chelate.kernel.b\n"
    )
    (package / "kernel" / "b.py").write_text(
        "try:\n    from ..model import x\nfinally:\n    pass\n"
    )
    edges = own_imports(modules(package))
    assert [(e.importer[8:], e.imported[8:], e.line, e.inside) for e in edges] == [
        ("kernel.a", "kernel.b", 4, False),
        ("kernel.a", "model", 6, True),
        ("kernel.a", "kernel.b", 9, True),
        ("kernel.b", "model", 2, False),
    ]
    assert circles([Import("a", "b", 1, False), Import("b", "a", 1, False)]) == ["a → b → a"]
