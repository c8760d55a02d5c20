"""What a function imports in its body, and by names that stand there as texts."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from chelate.values import File, fingerprint

from .bytecode import CodeFacts, Import
from .parts import hashed, is_installed, is_patch

if TYPE_CHECKING:
    from .walk import Component, Walk

__all__ = ["MACHINERY", "follow_imports"]

# What the interpreter puts into a module.
MACHINERY: Final = frozenset({
    "__annotations__", "__builtins__", "__cached__", "__conditional_annotations__", "__debug__",
    "__doc__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__",
})  # fmt: skip
_DOTTED: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_LOOKUPS: Final = frozenset({"__dict__", "dir", "getattr", "vars"})


def follow_imports(
    walk: Walk,
    component: Component,
    namespace: dict[str, Any],
    facts: CodeFacts,
    seen: set[str],
) -> None:
    """Let a function depend on what it imports when it runs."""
    for item in facts.imports:
        _import(walk, component, item, namespace, facts.names, seen)
    if not facts.names.isdisjoint(("import_module", "__import__", "modules")) or any(
        namespace.get(chain[0]) is importlib.import_module for chain in facts.chains
    ):
        _by_text(walk, component, namespace, facts, seen)


def _by_text(
    walk: Walk,
    component: Component,
    namespace: dict[str, Any],
    facts: CodeFacts,
    seen: set[str],
) -> None:
    """Follow modules whose names stand in the code as texts."""
    known = False
    for text in sorted(facts.strings):
        if text in sys.modules or (_DOTTED.fullmatch(text) and _is_there(text)):
            known = True
            _import(walk, component, Import(text, 0, ()), namespace, facts.names, seen)
    if not known and not walk.declared and facts.names & {"import_module", "__import__"}:
        why = "the name of a module it imports is computed; state it with depends_on"
        walk.unstable(component, why)


def _import(
    walk: Walk,
    component: Component,
    item: Import,
    namespace: dict[str, Any],
    names: frozenset[str],
    seen: set[str],
) -> None:
    package = namespace.get("__package__") or str(namespace.get("__name__", "")).rpartition(".")[0]
    try:
        name = importlib.util.resolve_name("." * item.level + item.module, package)
    except ImportError:
        return
    top = name.partition(".")[0]
    loaded = vars(sys.modules[name]) if name in sys.modules else {}
    if is_installed(top):
        for used in sorted(loaded.keys() & {*item.names, *names}):
            if is_patch(loaded[used]):
                walk.chain(component, loaded[used], (f"{name}.{used}",), seen)
    if top in sys.stdlib_module_names:
        return
    if is_installed(top):
        walk.package(component, top)
        return
    try:
        module: Any = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - the user's module may raise anything
        missing = Component("helper", name, f"import {name}", "opaque", tracked=False)
        missing.ast = missing.code = hashed("not importable", name, _content(name))
        missing.text = f"cannot be imported: {error!r:.40}"
        number = walk.numbers.get(("import", name))
        if number is None:
            number = walk.add(("import", name), missing)
        component.references.append((f"import {name}", number))
        return
    for used in item.names:
        if not hasattr(module, used) and _is_there(f"{name}.{used}"):
            importlib.import_module(f"{name}.{used}")
    wanted = [used for used in (item.names or sorted(names)) if hasattr(module, used)]
    own = [used for used in wanted if not (used[:2] == "__" == used[-2:])]
    if not own or "*" in item.names or not names.isdisjoint(_LOOKUPS):
        walk.chain(component, module, (name,), seen)
    for used in own:
        walk.chain(component, module, (name, used), seen)
    while not item.names and "." in name:  # the outermost package is what it binds
        name = name.rpartition(".")[0]
        above = sys.modules[name]
        for used in sorted(names & vars(above).keys() - MACHINERY):
            if not isinstance(vars(above)[used], ModuleType):
                walk.chain(component, above, (name, used), seen)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _content(name: str) -> str:
    """The digest of a module's file that cannot be imported."""
    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # noqa: BLE001 - the user's package may raise anything
        return ""
    origin = spec.origin if spec is not None else None
    return (fingerprint(File(origin)) if origin else None) or ""
