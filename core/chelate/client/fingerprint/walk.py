"""The walk from a live function over everything its result may depend on.

Objects are numbered in the order in which they are found, and every component holds its own
digests and the numbers it refers to; recursion and mutual recursion need nothing more.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import (
    CodeType,
    FunctionType,
    ModuleType,
)
from typing import Any, Final

from chelate.values import File, fingerprint
from chelate.values.encoding import class_name

from .bytecode import Import, code_facts
from .classes import class_parts, is_user_class
from .library import distribution, is_library_module, library_place
from .manifest import shown
from .parts import (
    BUILT_IN,
    ITEMS,
    classes_within,
    electron_function,
    innermost,
    instance_fields,
    is_installed,
    items_of,
    maker,
    role_and_label,
    wrapper_parts,
)
from .syntax import file_digests, syntax_digest

__all__ = ["Component", "Walk", "innermost", "is_walking", "walking"]

_LIMIT: Final = 20_000
_DEPTH: Final = 4
_UNSHARED: Final = frozenset(
    {int, float, complex, bool, str, bytes, type(None), tuple, frozenset, type(Ellipsis)}
)
_WALKING: ContextVar[bool] = ContextVar("walking", default=False)
_MISSING: Final = object()


@contextmanager
def walking() -> Iterator[None]:
    """While this holds, code inside of values is left to the walk."""
    token = _WALKING.set(True)
    try:
        yield
    finally:
        _WALKING.reset(token)


def is_walking() -> bool:
    """Whether a walk is under way in this thread."""
    return _WALKING.get()


@dataclass(slots=True)
class Component:
    """One thing that was found: its own digests (not those of what it refers to) and references."""

    role: str
    label: str
    edge: str
    kind: str = ""
    ast: str | None = None
    code: str = ""
    text: str = ""
    tracked: bool = True
    deep: int = 0
    references: list[tuple[str, int]] = field(default_factory=list)


def _hash(*texts: str) -> str:
    state = hashlib.blake2b(digest_size=32)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


class Walk:
    """One walk; :attr:`components` in the order found, the root first."""

    def __init__(self, ignore: frozenset[str] = frozenset()) -> None:
        self.components: list[Component] = []
        self._numbers: dict[object, int] = {}
        self._alive: list[Any] = []
        self._waiting: list[tuple[int, Any]] = []
        self._body: Any = None
        self._ignore = ignore

    def root(self, function: Any) -> None:
        """Walk from a task."""
        self._body = innermost(function)
        start = electron_function(function)
        name = getattr(self._body, "__name__", type(self._body).__name__)
        if start is self._body:
            self.visit(start, "body", name, "")
        else:
            made = isinstance(start, FunctionType)
            self.visit(start, "decorator", maker(start) if made else type(start).__name__, "")
        self.run()

    def run(self) -> None:
        """Examine everything found so far and what it leads to."""
        done = 0
        with walking():
            while done < len(self._waiting):
                number, found = self._waiting[done]
                done += 1
                self._examine(self.components[number], found)
        self._waiting.clear()

    def visit(self, found: Any, role: str, label: str, edge: str, deep: int = 0) -> int:
        """The number of an object, which is examined later if it is new."""
        found = electron_function(found)
        key = id(found)
        # Equal numbers and texts are one object by accident; each use of them stands for itself.
        shared = type(found) not in _UNSHARED
        known = self._numbers.get(key) if shared else None
        if known is not None:
            return known
        if found is self._body:
            role, label = "body", getattr(found, "__name__", label)
        component = Component(role, label, edge, deep=deep)
        number = self._add(key if shared else ("use", len(self.components)), component)
        self._alive.append(found)
        if number < _LIMIT:
            self._waiting.append((number, found))
        else:
            self._opaque(self.components[number], found)
        return number

    def _add(self, key: object, component: Component) -> int:
        number = len(self.components)
        self._numbers[key] = number
        self.components.append(component)
        return number

    def _refer(self, owner: Component, edge: str, found: Any, deep: int = 0) -> None:
        found = electron_function(found)
        role, label = role_and_label((owner.role, owner.label), edge, found)
        owner.references.append((edge, self.visit(found, role, label, edge, deep)))

    def _package(self, owner: Component, top: str) -> None:
        name, version = distribution(top)
        if name == "python":
            return
        key = ("package", name)
        number = self._numbers.get(key)
        if number is None:
            digest = _hash("package", name, version)
            package = Component("package", name, "", "package", digest, digest, version)
            number = self._add(key, package)
        owner.references.append(("package", number))

    def _leaf(self, component: Component, kind: str, *texts: str) -> None:
        component.kind = kind
        component.ast = component.code = _hash(kind, *texts)

    def _opaque(self, component: Component, found: Any) -> None:
        kind = type(found)
        self._leaf(component, "opaque", kind.__module__.partition(".")[0], kind.__qualname__)
        component.tracked, component.text = False, kind.__qualname__

    def _examine(self, component: Component, found: Any) -> None:
        kind = type(found)
        if kind is FunctionType:
            self._function(component, found)
        elif isinstance(found, type):
            self._class(component, found)
        elif isinstance(found, ModuleType):
            self._module(component, found)
        elif isinstance(found, BUILT_IN):
            self._built_in(component, found)
        else:
            parts = wrapper_parts(found)
            if parts is None:
                self._data(component, found)
                return
            self._leaf(component, "wrapper", kind.__name__, repr([edge for edge, _ in parts]))
            for edge, part in parts:
                self._refer(component, edge, part, 1)

    def _function(self, component: Component, function: FunctionType) -> None:
        code = function.__code__
        place = library_place(code.co_filename)
        made = code.co_filename.startswith("<") and is_library_module(str(function.__module__))
        if hasattr(function, "registry") and hasattr(function, "_clear_cache"):
            self._leaf(component, "wrapper", "singledispatch")
            for kind, implementation in sorted(
                function.registry.items(), key=lambda item: f"{item[0].__module__}.{item[0]}"
            ):
                self._refer(component, f"for {kind.__qualname__}", implementation)
            return
        if place is not None or made:
            module = str(function.__module__) if place is None else place[0]
            top = module.partition("/")[0].partition(".")[0]
            self._leaf(component, "library", "" if place and place[1] else module, code.co_name)
            if place is None or not place[1]:
                self._package(component, top)
            self._cells(component, function, deep=1)
        else:
            facts = code_facts(code)
            component.kind, component.ast = "function", syntax_digest(code)
            component.code = _hash(sys.implementation.cache_tag or "", facts.digest)
            self._defaults(component, function)
            self._cells(component, function, deep=1)
            self._globals(component, function, code)
        wrapped = getattr(function, "__wrapped__", _MISSING)
        if wrapped is not _MISSING:
            self._refer(component, "wrapped", wrapped)

    def _defaults(self, component: Component, function: FunctionType) -> None:
        code = function.__code__
        values = function.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
        given = {**dict(zip(names, values, strict=True)), **(function.__kwdefaults__ or {})}
        for name in sorted(given):
            if component.role != "body" or name not in self._ignore:
                self._refer(component, f"default {name}", given[name])

    def _cells(self, component: Component, function: FunctionType, deep: int) -> None:
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                content = cell.cell_contents
            except ValueError:  # a cell that is not filled yet
                continue
            self._refer(component, f"closure {name}", content, deep)

    def _globals(self, component: Component, function: FunctionType, code: CodeType) -> None:
        facts = code_facts(code)
        namespace = function.__globals__
        seen: set[str] = set()
        for chain in facts.chains:
            if chain[0] in namespace and not (chain[0][:2] == "__" == chain[0][-2:]):
                self._chain(component, namespace[chain[0]], chain, seen)
        for item in facts.imports:
            self._import(component, item, namespace, facts.names, seen)

    def _chain(
        self, component: Component, found: Any, chain: tuple[str, ...], seen: set[str]
    ) -> None:
        """Refer to the one object that ``helpers.norm`` names, not to all of ``helpers``."""
        used = 1
        while isinstance(found, ModuleType) and used < len(chain):
            if is_library_module(found.__name__):
                break
            following = getattr(found, chain[used], _MISSING)
            if following is _MISSING:
                break
            found, used = following, used + 1
        edge = "global " + ".".join(chain[:used])
        if edge not in seen:
            seen.add(edge)
            self._refer(component, edge, found)

    def _import(
        self,
        component: Component,
        item: Import,
        namespace: dict[str, Any],
        names: frozenset[str],
        seen: set[str],
    ) -> None:
        package = (
            namespace.get("__package__") or str(namespace.get("__name__", "")).rpartition(".")[0]
        )
        try:
            name = importlib.util.resolve_name("." * item.level + item.module, package)
        except ImportError:
            return
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names:
            return
        if is_installed(top):
            self._package(component, top)
            return
        try:
            module: Any = importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - the user's module may raise anything
            missing = Component("helper", name, f"import {name}", "opaque", tracked=False)
            missing.ast = missing.code = _hash("not importable", name)
            missing.text = f"cannot be imported: {error!r:.40}"
            number = self._numbers.get(("import", name))
            if number is None:
                number = self._add(("import", name), missing)
            component.references.append((f"import {name}", number))
            return
        wanted = [used for used in (item.names or sorted(names)) if hasattr(module, used)]
        own = [used for used in wanted if not (used[:2] == "__" == used[-2:])]
        if not own or "*" in item.names:
            self._chain(component, module, (name,), seen)
        for used in own:
            self._chain(component, module, (name, used), seen)

    def _class(self, component: Component, kind: type) -> None:
        if not is_user_class(kind):
            self._leaf(component, "library", class_name(kind))
            self._package(component, kind.__module__.partition(".")[0])
            return
        parts = class_parts(kind)
        self._leaf(component, "class", parts.text)
        for edge, member in parts.members:
            self._refer(component, edge, member)

    def _module(self, component: Component, module: ModuleType) -> None:
        name = module.__name__
        if is_library_module(name):
            self._leaf(component, "library", name)
            self._package(component, name.partition(".")[0])
            return
        component.kind = "module"
        file = getattr(module, "__file__", None)
        digests = file_digests(file) if file and file.endswith(".py") else None
        if digests is not None:
            component.ast = digests[0]
            component.code = _hash(sys.implementation.cache_tag or "", digests[1])
            return
        content = fingerprint(File(file)) if file else None
        self._leaf(component, "module", name, content or "")
        component.tracked = content is not None

    def _built_in(self, component: Component, found: Any) -> None:
        owner = getattr(found, "__self__", None)
        place = getattr(found, "__objclass__", None) or found
        module = str(getattr(place, "__module__", None) or "builtins")
        self._leaf(component, "library", module.partition(".")[0], found.__qualname__)
        if owner is not None and not isinstance(owner, (ModuleType, type)):
            self._refer(component, "self", owner)
        self._package(component, module.partition(".")[0]) if module != "builtins" else None

    def _data(self, component: Component, found: Any) -> None:
        kind = type(found)
        digest = fingerprint(found)
        component.kind = "value"
        component.text = shown(component.label, found)
        user = is_user_class(kind)
        if digest is not None:
            component.ast = component.code = _hash("value", digest)
            for number, used in enumerate(classes_within(found)):
                self._refer(component, f"class {number}", used)
            if not user:
                self._package(component, kind.__module__.partition(".")[0])
            return
        items = items_of(found)
        stdlib = kind.__module__.partition(".")[0] in sys.stdlib_module_names
        if items is None and (user or (component.deep and component.deep <= _DEPTH and not stdlib)):
            items = sorted(instance_fields(found).items())
            self._refer(component, "class", kind)
        if items is None or len(items) > ITEMS:
            self._opaque(component, found)
            return
        self._leaf(component, "object", kind.__qualname__, repr([name for name, _ in items]))
        deep = component.deep + 1 if component.deep and not user else component.deep
        for name, item in items:
            self._refer(component, name, item, deep)
