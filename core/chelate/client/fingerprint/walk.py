"""The walk from a live function over everything its result may depend on.

Objects are numbered in the order in which they are found, and every component holds its own
digests and the numbers it refers to; recursion and mutual recursion need nothing more.
"""

from __future__ import annotations

import builtins
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from chelate.values import File, fingerprint
from chelate.values.encoding import class_name

from .bytecode import code_facts
from .classes import class_parts, is_user_class
from .data import Reader
from .imports import MACHINERY, follow_imports
from .library import distribution, is_library_module, library_place
from .manifest import shown
from .parts import (
    electron_function,
    hashed,
    innermost,
    is_built_in,
    is_class,
    is_patch,
    maker,
    role_and_label,
    wrapper_parts,
)
from .reading import Readings
from .syntax import file_digests, syntax_digest

__all__ = ["Component", "Walk", "innermost", "is_walking", "walking"]

_LIMIT: Final = 20_000
_UNSHARED: Final = frozenset(
    {int, float, complex, bool, str, bytes, type(None), tuple, frozenset, type(Ellipsis)}
)
_WALKING: ContextVar[bool] = ContextVar("walking", default=False)
_MISSING: Final = object()
_CACHED: Final = type(functools.lru_cache(len))
_WRAPPING: Final = frozenset({"__wrapped__", *functools.WRAPPER_ASSIGNMENTS})


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
    outside: bool = False  # whether an installed package got hold of it, which may read it
    lenient: bool = False  # whether its text counts anyway, so that it need not be followed
    references: list[tuple[str, int]] = field(default_factory=list)


class Walk:
    """One walk; :attr:`components` in the order found, the root first.

    ``declared`` says that somebody has stated what cannot be seen.
    """

    def __init__(self, ignore: frozenset[str] = frozenset(), *, declared: bool = False) -> None:
        self.components: list[Component] = []
        self.readings = Readings(self)
        self.declared = declared
        self.numbers: dict[object, int] = {}
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
            while done < len(self._waiting) or self.readings.apply():
                for number, found in self._waiting[done:]:
                    done += 1
                    self._examine(self.components[number], found)
        self._waiting.clear()

    def visit(self, found: Any, role: str, label: str, edge: str) -> int:
        """The number of an object, which is examined later if it is new."""
        found = electron_function(found)
        key = id(found)
        # Equal numbers and texts are one object by accident; each use of them stands for itself.
        shared = type(found) not in _UNSHARED
        known = self.numbers.get(key) if shared else None
        if known is not None:
            return known
        if found is self._body:
            role, label = "body", getattr(found, "__name__", label)
        component = Component(role, label, edge)
        number = self.add(key if shared else ("use", len(self.components)), component)
        self._alive.append(found)
        if number < _LIMIT:
            self._waiting.append((number, found))
        else:
            self.unstable(component, f"the task reaches more than {_LIMIT:,} parts")
        return number

    def add(self, key: object, component: Component) -> int:
        number = len(self.components)
        self.numbers[key] = number
        self.components.append(component)
        return number

    def refer(self, owner: Component, edge: str, found: Any, *, outside: bool = False) -> Component:
        """Let ``owner`` depend on ``found``."""
        found = electron_function(found)
        role, label = role_and_label((owner.role, owner.label), edge, found)
        number = self.visit(found, role, label, edge)
        owner.references.append((edge, number))
        self.components[number].outside |= outside
        return self.components[number]

    def unstable(self, component: Component, why: str) -> None:
        """Let nothing be equal to a component, because of what is in it."""
        component.kind = "unstable"
        component.ast, component.code = None, ""
        component.tracked, component.text = False, why

    def package(self, owner: Component, top: str) -> None:
        name, version = distribution(top)
        if name == "python":
            return
        key = ("package", name)
        number = self.numbers.get(key)
        if number is None:
            digest = hashed("package", name, version)
            package = Component("package", name, "", "package", digest, digest, version)
            number = self.add(key, package)
        owner.references.append(("package", number))

    def _leaf(self, component: Component, kind: str, *texts: str) -> None:
        component.kind = kind
        component.ast = component.code = hashed(kind, *texts)

    def _examine(self, component: Component, found: Any) -> None:
        kind = type(found)
        if kind is FunctionType:
            self._function(component, found)
        elif is_class(found):
            self._class(component, found)
        elif isinstance(found, ModuleType):
            self._module(component, found)
        elif is_built_in(found):
            self._built_in(component, found)
        else:
            parts = wrapper_parts(found)
            if parts is None:
                self._data(component, found)
                return
            self._leaf(component, "wrapper", kind.__name__, repr([edge for edge, _ in parts]))
            for edge, part in parts:
                self.refer(component, edge, part)
            self._attributes(component, found)

    def _function(self, component: Component, function: FunctionType) -> None:
        code = function.__code__
        place = library_place(code.co_filename)
        made = code.co_filename.startswith("<") and is_library_module(str(function.__module__))
        if hasattr(function, "registry") and hasattr(function, "_clear_cache"):
            self._leaf(component, "wrapper", "singledispatch")
            for kind, implementation in sorted(
                function.registry.items(), key=lambda item: f"{item[0].__module__}.{item[0]}"
            ):
                self.refer(component, f"for {kind.__qualname__}", implementation)
            return
        if place is not None or made:
            module = str(function.__module__) if place is None else place[0]
            top = module.partition("/")[0].partition(".")[0]
            own = place is not None and place[1]
            name = code.co_name if function.__closure__ else function.__qualname__
            self._leaf(component, "library", str(function.__module__) if own else module, name)
            component.outside = not own and top != "chelate"
            self.readings.names.add(function.__name__)
            if not own:
                self.package(component, top)
            self._cells(component, function)
            self.readings.attributes.append((component, function))
        else:
            facts = code_facts(code)
            component.kind, component.ast = "function", syntax_digest(code)
            component.code = hashed(sys.implementation.cache_tag or "", facts.digest)
            self._defaults(component, function)
            self._cells(component, function)
            self._globals(component, function, code)
            self._attributes(component, function)
            self.readings.code.append((component, function))
        outside = component.kind == "library" and component.outside
        wrapped = getattr(function, "__wrapped__", _MISSING)
        if wrapped is not _MISSING:
            self.refer(component, "wrapped", wrapped, outside=outside)

    def _attributes(self, component: Component, found: Any) -> None:
        """Follow what has been set on a function."""
        function = isinstance(found, (FunctionType, functools.partial, _CACHED))
        given = vars(found) if function else {}
        for name in sorted(given.keys() - _WRAPPING):
            self.refer(component, f"attribute {name}", given[name])

    def _defaults(self, component: Component, function: FunctionType) -> None:
        code = function.__code__
        values = function.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
        given = {**dict(zip(names, values, strict=True)), **(function.__kwdefaults__ or {})}
        for name in sorted(given):
            if component.role != "body" or name not in self._ignore:
                self.refer(component, f"default {name}", given[name])

    def _cells(self, component: Component, function: FunctionType) -> None:
        outside = component.kind == "library" and component.outside
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                content = cell.cell_contents
            except ValueError:  # a cell that is not filled yet
                continue
            self.refer(component, f"closure {name}", content, outside=outside)

    def _globals(self, component: Component, function: FunctionType, code: CodeType) -> None:
        facts = code_facts(code)
        namespace = function.__globals__
        seen: set[str] = set()
        for chain in facts.chains:
            if chain[0] in namespace and chain[0] not in MACHINERY:
                self.chain(component, namespace[chain[0]], chain, seen)
            elif is_patch(vars(builtins).get(chain[0])):
                self.chain(component, vars(builtins)[chain[0]], chain, seen)
        follow_imports(self, component, namespace, facts, seen)
        own = sys.modules.get(str(namespace.get("__name__")))
        looked_up = "modules" in facts.attributes and "__name__" in facts.names
        if (facts.computed or looked_up) and own is not None and vars(own) is namespace:
            self.chain(component, own, ("globals()",), seen)

    def chain(
        self, component: Component, found: Any, chain: tuple[str, ...], seen: set[str]
    ) -> None:
        """Refer to the one object that ``helpers.norm`` names, not to all of ``helpers``."""
        used = 1
        while isinstance(found, ModuleType) and used < len(chain):
            if is_library_module(found.__name__):
                inner: Any = found
                for name in chain[used:]:
                    inner = vars(inner).get(name) if isinstance(inner, ModuleType) else inner
                if not is_patch(inner):
                    break
                following = vars(found)[chain[used]]
            else:
                following = getattr(found, chain[used], _MISSING)
                if following is _MISSING:
                    break
            found, used = following, used + 1
        edge = "global " + ".".join(chain[:used])
        if edge not in seen:
            seen.add(edge)
            self.refer(component, edge, found)

    def _class(self, component: Component, kind: type) -> None:
        if not is_user_class(kind):
            self._leaf(component, "library", class_name(kind))
            self.package(component, kind.__module__.partition(".")[0])
            return
        parts = class_parts(kind)
        self._leaf(component, "class", parts.text)
        for edge, member in parts.members:
            self.refer(component, edge, member)
        self.readings.code.append((component, kind))

    def _module(self, component: Component, module: ModuleType) -> None:
        name = module.__name__
        if is_library_module(name):
            self._leaf(component, "library", name)
            self.package(component, name.partition(".")[0])
            return
        component.kind = "module"
        file = getattr(module, "__file__", None)
        digests = file_digests(file) if file and file.endswith(".py") else None
        if digests is not None:
            component.ast = digests[0]
            component.code = hashed(sys.implementation.cache_tag or "", digests[1])
        else:
            content = fingerprint(File(file)) if file else None
            self._leaf(component, "module", name, content or "")
            component.tracked = content is not None
        for used in sorted(vars(module).keys() - MACHINERY):
            self.refer(component, f"member {used}", vars(module)[used]).lenient = True

    def _built_in(self, component: Component, found: Any) -> None:
        owner = getattr(found, "__self__", None)
        place = getattr(found, "__objclass__", None) or found
        module = str(getattr(place, "__module__", None) or "builtins")
        self._leaf(component, "library", module.partition(".")[0], found.__qualname__)
        if owner is not None and not isinstance(owner, ModuleType):
            self.refer(component, "self", owner)
        self.package(component, module.partition(".")[0]) if module != "builtins" else None

    def _data(self, component: Component, found: Any) -> None:
        reader = Reader(found)
        component.kind = "value"
        component.text = shown(component.label, found)
        digest = reader.read()
        if digest is None:
            if component.lenient:
                self._leaf(component, "opaque", class_name(type(found)))
                component.tracked, component.text = False, type(found).__qualname__
            else:
                self.unstable(component, reader.why)
            return
        component.ast = component.code = hashed("value", digest)
        if reader.opaque:
            component.tracked, component.text = False, type(found).__qualname__
        component.outside |= reader.outside
        for edge, part in reader.parts():
            self.refer(component, edge, part, outside=component.outside)
        for top in sorted(reader.packages):
            self.package(component, top)
