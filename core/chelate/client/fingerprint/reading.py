"""What counts only where code reads it: docstrings, names, annotations, sources, subclasses."""

from __future__ import annotations

import ast
import inspect
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

from .bytecode import all_codes, code_facts, nested_codes

if TYPE_CHECKING:
    from .walk import Component, Walk

__all__ = ["Readings"]

_READERS: Final = {
    "docstring": {"__doc__", "getdoc"},
    "source": {"getsource", "getsourcelines", "findsource", "getcomments"},
    "subclasses": {"__subclasses__"},
    "annotations": {
        "Signature",
        "TypeAdapter",
        "__annotations__",
        "beartype",
        "create_model",
        "get_annotations",
        "get_type_hints",
        "getfullargspec",
        "signature",
        "typechecked",
        "validate_arguments",
        "validate_call",
    },
}
_NAMES: Final = {"__name__", "__qualname__"}


class Readings:
    """What the code of one walk reads of the functions and classes it reaches.

    ``code`` are the user's functions and classes, ``attributes`` the wrappers of libraries,
    ``names`` those of the functions of libraries.
    """

    def __init__(self, walk: Walk) -> None:
        self.code: list[tuple[Component, Any]] = []
        self.attributes: list[tuple[Component, Any]] = []
        self.names: set[str] = set()
        self._walk = walk
        self._done: set[tuple[int, str]] = set()

    def apply(self) -> bool:
        """Add what is read, as far as is known by now; whether anything was added."""
        before = len(self._done)
        names = set(self.names)
        attributes: set[str] = set()
        for _, found in self.code:
            if isinstance(found, FunctionType):
                facts = code_facts(found.__code__)
                names |= facts.names | facts.strings
                attributes |= facts.attributes | facts.strings
        wanted = {kind for kind, readers in _READERS.items() if names & readers}
        wanted |= {"name"} if attributes & _NAMES else set()
        for component, found in list(self.code):
            for kind in sorted(wanted | ({"annotations"} if component.outside else set())):
                if self._is_new(component, kind):
                    self._add(kind, component, found, everywhere=kind in wanted)
        for component, found in list(self.attributes):
            own = getattr(found, "__dict__", {})
            for name in sorted((own.keys() & attributes) - {"__wrapped__", *_NAMES, "__doc__"}):
                if self._is_new(component, f"attribute {name}"):
                    self._walk.refer(component, f"attribute {name}", own[name])
        return len(self._done) > before

    def _is_new(self, component: Component, kind: str) -> bool:
        key = id(component), kind
        new = key not in self._done
        self._done.add(key)
        return new

    def _add(self, kind: str, component: Component, found: Any, *, everywhere: bool) -> None:
        refer = self._walk.refer
        if kind == "subclasses":
            if isinstance(found, type):
                below: list[type] = type.__subclasses__(found)
                for kind_below in sorted(below, key=lambda item: item.__qualname__):
                    refer(component, "subclass", kind_below)
        elif kind == "annotations":
            hints = dict(inspect.get_annotations(found))
            refer(component, kind, hints)
            names = vars(sys.modules.get(found.__module__, object))
            names = getattr(found, "__globals__", names)
            for name in sorted({name for hint in hints.values() for name in _names_in(hint)}):
                if name in names:
                    refer(component, f"annotation {name}", names[name])
            if everywhere and isinstance(found, FunctionType) and any(nested_codes(found.__code__)):
                component.ast = None  # the trees leave out the annotations inside
        else:
            refer(component, kind, _text(kind, found))


def _names_in(hint: Any) -> list[str]:
    try:
        tree = ast.parse(hint, mode="eval") if isinstance(hint, str) else None
    except SyntaxError:
        return []
    return [] if tree is None else [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]


def _text(kind: str, found: Any) -> Any:
    """The docstrings, the names or the source of a function or class."""
    if kind == "name":
        return [found.__name__, found.__qualname__]
    if kind == "docstring":
        codes = list(all_codes(found.__code__)) if isinstance(found, FunctionType) else []
        inside = [code.co_consts[:1] for code in codes[1:]]
        module = sys.modules.get(found.__module__)
        return [
            found.__doc__,
            [first[0] for first in inside if first and isinstance(first[0], str)],
            getattr(module, "__doc__", None),
        ]
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):
        return None
