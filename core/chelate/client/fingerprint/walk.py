"""The walk from a live function over everything its result may depend on.

Objects are numbered in the order in which they are found, and every component holds its own
digests and the numbers it refers to; recursion and mutual recursion need nothing more.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from chelate.values import File, fingerprint
from chelate.values.encoding import class_name

from .bytecode import CodeFacts, Import, code_facts
from .classes import class_parts, is_user_class
from .data import Reader
from .library import distribution, is_library_module, library_place
from .manifest import shown
from .parts import (
    BUILT_IN,
    electron_function,
    innermost,
    is_class,
    is_installed,
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
_DOTTED: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_LOOKUPS: Final = frozenset({"getattr", "vars", "dir", "__dict__"})
_WRAPPING: Final = frozenset({"__wrapped__", *functools.WRAPPER_ASSIGNMENTS, "attrname", "func"})
# What the interpreter puts into a module.
_MACHINERY: Final = frozenset(
    """__name__ __file__ __package__ __spec__ __loader__ __builtins__ __path__ __cached__ __debug__
    __annotations__ __doc__ __conditional_annotations__""".split()
)


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


def _hash(*texts: str) -> str:
    state = hashlib.blake2b(digest_size=32)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


class Walk:
    """One walk; :attr:`components` in the order found, the root first.

    ``declared`` says that somebody has stated what cannot be seen.
    """

    def __init__(self, ignore: frozenset[str] = frozenset(), *, declared: bool = False) -> None:
        self.components: list[Component] = []
        self.readings = Readings(self)
        self._declared = declared
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
        known = self._numbers.get(key) if shared else None
        if known is not None:
            return known
        if found is self._body:
            role, label = "body", getattr(found, "__name__", label)
        component = Component(role, label, edge)
        number = self._add(key if shared else ("use", len(self.components)), component)
        self._alive.append(found)
        if number < _LIMIT:
            self._waiting.append((number, found))
        else:
            self.unstable(component, f"the task reaches more than {_LIMIT:,} parts")
        return number

    def _add(self, key: object, component: Component) -> int:
        number = len(self.components)
        self._numbers[key] = number
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
        number = self._numbers.get(key)
        if number is None:
            digest = _hash("package", name, version)
            package = Component("package", name, "", "package", digest, digest, version)
            number = self._add(key, package)
        owner.references.append(("package", number))

    def _leaf(self, component: Component, kind: str, *texts: str) -> None:
        component.kind = kind
        component.ast = component.code = _hash(kind, *texts)

    def _examine(self, component: Component, found: Any) -> None:
        kind = type(found)
        if kind is FunctionType:
            self._function(component, found)
        elif is_class(found):
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
            component.code = _hash(sys.implementation.cache_tag or "", facts.digest)
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
        given = getattr(found, "__dict__", {})
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
            if chain[0] in namespace and chain[0] not in _MACHINERY:
                self._chain(component, namespace[chain[0]], chain, seen)
        for item in facts.imports:
            self._import(component, item, namespace, facts.names, seen)
        own = sys.modules.get(str(namespace.get("__name__")))
        if facts.computed and own is not None and vars(own) is namespace:
            self._chain(component, own, ("globals()",), seen)
        if not facts.names.isdisjoint(("import_module", "__import__", "modules")) or any(
            namespace.get(chain[0]) is importlib.import_module for chain in facts.chains
        ):
            self._imported_by_text(component, facts, namespace, seen)

    def _chain(
        self, component: Component, found: Any, chain: tuple[str, ...], seen: set[str]
    ) -> None:
        """Refer to the one object that ``helpers.norm`` names, not to all of ``helpers``."""
        used = 1
        while isinstance(found, ModuleType) and used < len(chain):
            if is_library_module(found.__name__):
                following = vars(found).get(chain[used], _MISSING)
                if not _is_patch(found, following):
                    break
            else:
                following = getattr(found, chain[used], _MISSING)
                if following is _MISSING:
                    break
            found, used = following, used + 1
        edge = "global " + ".".join(chain[:used])
        if edge not in seen:
            seen.add(edge)
            self.refer(component, edge, found)

    def _imported_by_text(
        self, component: Component, facts: CodeFacts, namespace: dict[str, Any], seen: set[str]
    ) -> None:
        """Follow modules whose names stand in the code as texts."""
        known = False
        for text in sorted(facts.strings):
            if text in sys.modules or (_DOTTED.fullmatch(text) and _is_there(text)):
                known = True
                self._import(component, Import(text, 0, ()), namespace, facts.names, seen)
        if not known and not self._declared and facts.names & {"import_module", "__import__"}:
            why = "the name of a module it imports is computed; state it with depends_on"
            self.unstable(component, why)

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
            self.package(component, top)
            return
        try:
            module: Any = importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - the user's module may raise anything
            missing = Component("helper", name, f"import {name}", "opaque", tracked=False)
            missing.ast = missing.code = _hash("not importable", name, _content(name))
            missing.text = f"cannot be imported: {error!r:.40}"
            number = self._numbers.get(("import", name))
            if number is None:
                number = self._add(("import", name), missing)
            component.references.append((f"import {name}", number))
            return
        for used in item.names:
            if not hasattr(module, used) and _is_there(f"{name}.{used}"):
                importlib.import_module(f"{name}.{used}")
        wanted = [used for used in (item.names or sorted(names)) if hasattr(module, used)]
        own = [used for used in wanted if not (used[:2] == "__" == used[-2:])]
        if not own or "*" in item.names or not names.isdisjoint(_LOOKUPS):
            self._chain(component, module, (name,), seen)
        for used in own:
            self._chain(component, module, (name, used), seen)
        while not item.names and "." in name:  # the outermost package is what it binds
            name = name.rpartition(".")[0]
            above = sys.modules[name]
            for used in sorted(names & vars(above).keys() - _MACHINERY):
                if not isinstance(vars(above)[used], ModuleType):
                    self._chain(component, above, (name, used), seen)

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
            component.code = _hash(sys.implementation.cache_tag or "", digests[1])
        else:
            content = fingerprint(File(file)) if file else None
            self._leaf(component, "module", name, content or "")
            component.tracked = content is not None
        for used in sorted(vars(module).keys() - _MACHINERY):
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
        component.ast = component.code = _hash("value", digest)
        if reader.opaque:
            component.tracked, component.text = False, type(found).__qualname__
        component.outside |= reader.outside
        for edge, part in reader.parts():
            self.refer(component, edge, part, outside=component.outside)
        for top in sorted(reader.packages):
            self.package(component, top)


def _is_patch(module: ModuleType, found: Any) -> bool:
    """Whether the user has put a function or class into a module of a library."""
    if isinstance(found, FunctionType):
        return library_place(found.__code__.co_filename) is None and not is_library_module(
            str(found.__module__)
        )
    return is_class(found) and is_user_class(found)


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
