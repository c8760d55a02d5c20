"""What was found on a walk, in a form that is stored, and the one reason two of them differ."""

from __future__ import annotations

import re
import reprlib
from typing import Any, Final

__all__ = ["compare_manifests", "shown"]

_WIDTH: Final = 60
_SECRET: Final = re.compile(
    r"passw|pwd|secret|token|api_?key|access_?key|private_?key|credential|auth", re.IGNORECASE
)
_PLAIN: Final = (
    int,
    float,
    complex,
    bool,
    str,
    bytes,
    type(None),
    list,
    tuple,
    dict,
    set,
    frozenset,
)
_ORDER: Final = (
    ("body", "BODY"),
    ("default", "DEFAULT"),
    ("closure", "CLOSURE"),
    ("decorator", "DECORATOR"),
    ("helper", "HELPER"),
    ("class", "CLASS"),
    ("global", "GLOBAL"),
    ("package", "PACKAGE"),
)


class _Short(reprlib.Repr):
    """Numbers, texts and containers as they are; anything else, whose ``__repr__`` is free to
    name addresses, by its type."""

    def repr_instance(self, x: Any, level: int) -> str:
        if type(x) in _PLAIN:
            return super().repr_instance(x, level)
        return getattr(x, "__name__", type(x).__qualname__)


_SHORT: Final = _Short()


def shown(name: str, value: Any) -> str:
    """A value in at most 60 characters; masked when it, or its name, looks like a secret."""
    if type(value) not in _PLAIN:
        return type(value).__qualname__
    if _SECRET.search(name):
        return "***"
    text = _SHORT.repr(value)
    if type(value) in (dict, list, tuple, set, frozenset) and _SECRET.search(text):
        return "***"
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def compare_manifests(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str] | None:
    """The code and sentence of the one reason why two functions differ, or None if they do not.

    Codes in the order in which they win: VERSION, DEPENDS_ON, BODY, DEFAULT, CLOSURE, DECORATOR,
    HELPER, CLASS, GLOBAL, PACKAGE, PYTHON.
    """
    same_tag = old["tag"] == new["tag"]
    before, after = _keyed(old), _keyed(new)
    unknown = False
    changed: dict[str, list[tuple[dict[str, Any] | None, dict[str, Any] | None]]] = {}
    for key in [*before, *(key for key in after if key not in before)]:
        first, second = before.get(key), after.get(key)
        if first is not None and second is not None:
            if first["code"] == second["code"]:
                continue
            if first["ast"] is not None and second["ast"] is not None:
                if first["ast"] == second["ast"]:
                    continue
            elif not same_tag:
                unknown = True
                continue
        role = str((second or first or {})["role"])
        changed.setdefault(role, []).append((first, second))
    versioned = old.get("version") != new.get("version")
    if not versioned:
        for role, code in (("depends_on", "DEPENDS_ON"), *_ORDER):
            if role in changed:
                pairs = sorted(changed[role], key=lambda pair: pair[0] is None or pair[1] is None)
                return code, _sentence(role, *pairs[0])
        if unknown:
            return "PYTHON", (f"no source to compare; Python {_minor(old)} → {_minor(new)}")
    else:
        return "VERSION", f"version changed: {_stated(old)} → {_stated(new)}"
    for component in new["components"]:
        if component["kind"] == "unstable":
            return _unstable(component)
    if old["digest"] != new["digest"] and same_tag:
        return "BODY", "the way its parts are put together changed"
    return None


def _unstable(component: dict[str, Any]) -> tuple[str, str]:
    """Why a part of a function can be equal to nothing."""
    role = str(component["role"])
    code = dict(_ORDER).get(role, "DEPENDS_ON")
    return code, f"{_subject(component)} cannot be compared: {component['text']}"


def _keyed(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for component in manifest["components"]:
        key = f"{component['role']}|{component['label']}|{component['edge']}"
        # The task is the task under any name and decorator.
        key = "body" if component["role"] == "body" else key
        number = 1
        while (unique := f"{key}#{number}") in found:
            number += 1
        found[unique] = component
    return found


def _minor(manifest: dict[str, Any]) -> str:
    return ".".join(str(manifest["python"]).split(".")[:2])


def _stated(manifest: dict[str, Any]) -> str:
    return "none" if manifest.get("version") is None else str(manifest["version"])


def _sentence(role: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> str:
    subject = _subject(new or old or {})
    if old is None:
        return f"{subject} is new"
    if new is None:
        return f"{subject} is no longer used"
    if role in ("default", "closure", "global", "package") and old["text"] != new["text"]:
        return f"{subject} changed: {old['text'] or '?'} → {new['text'] or '?'}"
    return f"{subject} changed"


def _subject(component: dict[str, Any]) -> str:
    label, kind = component["label"], component["kind"]
    call = "" if kind in ("class", "module", "package") else "()"
    return {
        "body": "body of the task",
        "default": f"default of {label}",
        "closure": f"closure value {label}",
        "decorator": f"decorator {label}()",
        "helper": f"module {label}" if kind == "module" else f"helper {label}{call}",
        "class": f"class {label}",
        "global": f"global {label}",
        "package": f"package {label}",
        "depends_on": f"dependency {label}",
    }[component["role"]]
