# ruff: noqa: E501 - texts of programs
"""A project, and edits of it: which of them count for the task ``job``, and for which reason.

Runs as a script too: it prints the fingerprints of every case as this Python sees them.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

MAIN = '''
import functools
import threading
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import helpers
import more.deep as deep
from helpers import normalise as norm

SCALE = 2
LIMITS = {"low": 0, "high": 10}
LOCK = threading.Lock()
UNUSED = 1
API_KEY = "k1"


def repeat(times):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            for _ in range(times):
                result = function(*args, **kwargs)
            return result

        return wrapper

    return decorate


def plain_decorator(function):
    return function


class Base:
    def offset(self):
        return 1


class Config(Base):
    """Settings."""

    step: int = 3

    def __init__(self, factor=2):
        self.factor = factor

    def apply(self, x):
        return x * self.factor + self.offset()

    @property
    def double(self):
        return self.factor * 2

    @staticmethod
    def half(x):
        return x / 2

    @classmethod
    def make(cls):
        return cls(4)


@dataclass
class Point:
    x: int
    y: int = 5

    def norm(self):
        return self.x + self.y


class Pair(NamedTuple):
    left: int
    right: int = 7


class Colour(Enum):
    RED = 1
    BLUE = 2


CONFIG = Config()


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


@functools.singledispatch
def show(value):
    return "any"


@show.register(int)
def show_int(value):
    return "int"


@functools.lru_cache(maxsize=8)
def cached(x):
    return x + 11


def outer(factor):
    def inner(x):
        return x * factor

    return inner


scaled = outer(3)
power = functools.partial(pow, exp=2)


def unused():
    return 1


HANDLERS = {"a": even, "b": lambda x: x + 21}


@repeat(times=2)
@plain_decorator
def job(a, b: int = 4, *, verbose=False) -> int:
    """Do the work."""
    # a comment
    total: int = a + b
    if a > 3 and b:
        total += norm(a) * SCALE
    for name in sorted(LIMITS):
        total += LIMITS[name]
    text = f"{total:>{b}} of {a!r}"
    import late
    from local_only import thing

    with LOCK:
        values = [i + helpers.shift(i) for i in range(10) if i % 2]
    try:
        point = Point(1).norm() + Pair(1).right + Colour.RED.value
    except ValueError as error:
        raise RuntimeError("no") from error
    total += CONFIG.apply(1) + Config.half(4) + deep.bottom(1) + late.later(2) + thing()
    run = lambda x: x - 31
    return total, text, values, point, even(3), show(1), cached(2), scaled(1), power(2), \\
        HANDLERS["a"](2), run(1), API_KEY
'''

HELPERS = '''
from more.deep import bottom

OFFSET = 100
TABLE = [1, 2, 3]


def normalise(x, amount=9):
    """Bring into shape."""
    return second(x) + amount


def second(x):
    return x + OFFSET


def shift(x):
    return x + len(TABLE)


def not_called(x):
    return x + 41
'''

DEEP = """
DEPTH = 61


def bottom(x):
    return x + DEPTH
"""

FILES = {
    "main.py": MAIN,
    "helpers.py": HELPERS,
    "more/__init__.py": "",
    "more/deep.py": DEEP,
    "late.py": "FACTOR = 51\n\n\ndef later(x):\n    return x * FACTOR\n\n\ndef other():\n    return 3\n",
    "local_only.py": "def thing():\n    return 71\n",
}


@dataclass(frozen=True)
class Edit:
    name: str
    file: str
    old: str
    new: str
    code: str | None
    sentence: str = ""


def cosmetic(name: str, file: str, old: str, new: str) -> Edit:
    return Edit(name, file, old, new, None)


M, H = "main.py", "helpers.py"
EDITS = [
    cosmetic("nothing", M, "SCALE = 2", "SCALE = 2"),
    cosmetic("comment", M, "# a comment", "# another comment\n    # of two lines"),
    cosmetic("docstring", M, '"""Do the work."""', '"""Do it otherwise."""'),
    cosmetic("docstring removed", M, '    """Do the work."""\n', ""),
    cosmetic("helper docstring", H, '"""Bring into shape."""', '"""Other."""'),
    cosmetic("class docstring", M, '"""Settings."""', '"""Options."""'),
    cosmetic("annotation of a parameter", M, "b: int = 4", "b: float = 4"),
    cosmetic(
        "annotation removed", M, "b: int = 4, *, verbose=False) -> int", "b=4, *, verbose=False)"
    ),
    cosmetic("annotation of a local", M, "total: int = a + b", "total = a + b"),
    cosmetic("blank lines before", M, "SCALE = 2", "\n\n\n\nSCALE = 2"),
    cosmetic(
        "broken over lines",
        M,
        "total: int = a + b",
        "total: int = (\n        a\n        + b\n    )",
    ),
    cosmetic("quotes", M, '"any"', "'any'"),
    cosmetic("pass added", M, "    with LOCK:\n", "    with LOCK:\n        pass\n"),
    cosmetic("unused function", M, "def unused():\n    return 1", "def unused():\n    return 2"),
    cosmetic("unused global", M, "UNUSED = 1", "UNUSED = 2"),
    cosmetic("unused helper", H, "x + 41", "x + 42"),
    cosmetic("unused import", M, "import threading", "import threading\nimport json"),
    cosmetic("unused function of a late module", "late.py", "return 3", "return 4"),
    cosmetic(
        "definitions moved",
        M,
        'SCALE = 2\nLIMITS = {"low": 0, "high": 10}\n',
        'LIMITS = {"low": 0, "high": 10}\nSCALE = 2\n',
    ),
    cosmetic("import spelled otherwise", M, "import more.deep as deep", "from more import deep"),
    cosmetic("hexadecimal", M, "range(10)", "range(0xa)"),
    cosmetic("lambda put in brackets", M, "run = lambda x: x - 31", "run = (lambda x: (x - 31))"),
    Edit("operator", M, "total: int = a + b", "total: int = a - b", "BODY", "body"),
    Edit("constant", M, "range(10)", "range(11)", "BODY"),
    Edit("float for int", M, "range(10)", "range(int(10.0))", "BODY"),
    Edit("true for one", M, "if a > 3 and b", "if a > True and b", "BODY"),
    Edit("comparison", M, "a > 3", "a >= 3", "BODY"),
    Edit("and, or", M, "a > 3 and b", "a > 3 or b", "BODY"),
    Edit(
        "order of statements",
        M,
        "total += CONFIG.apply(1) + Config",
        "total += Config.half(1) + Config",
        "BODY",
    ),
    Edit("conversion in a string", M, "{a!r}", "{a!s}", "BODY"),
    Edit("format in a string", M, "{total:>{b}}", "{total:<{b}}", "BODY"),
    Edit("text in a string", M, "of {a!r}", "off {a!r}", "BODY"),
    Edit("filter of a comprehension", M, "if i % 2]", "if i % 3]", "BODY"),
    Edit("lambda inside", M, "x - 31", "x - 32", "BODY"),
    Edit("exception caught", M, "except ValueError", "except KeyError", "BODY"),
    Edit("exception cause", M, "from error", "from None", "BODY"),
    Edit("other function called", M, "deep.bottom(1)", "helpers.shift(1)", "BODY"),
    Edit("parameter renamed", M, "*, verbose=False", "*, loud=False", "BODY"),
    Edit("keyword only", M, "b: int = 4, *, verbose", "b: int = 4, verbose", "BODY"),
    Edit("default", M, "b: int = 4", "b: int = 5", "DEFAULT", "default of b changed: 4 → 5"),
    Edit(
        "keyword default",
        M,
        "verbose=False",
        "verbose=True",
        "DEFAULT",
        "default of verbose changed: False → True",
    ),
    Edit("decorator argument", M, "@repeat(times=2)", "@repeat(times=3)", "DECORATOR"),
    Edit("decorator code", M, "range(times)", "range(times + 1)", "DECORATOR", "repeat"),
    Edit("decorator removed", M, "@repeat(times=2)\n", "", "DECORATOR"),
    cosmetic("decorator that does nothing", M, "@plain_decorator\n", ""),
    Edit(
        "helper",
        H,
        "second(x) + amount",
        "second(x) - amount",
        "HELPER",
        "helper normalise() changed",
    ),
    Edit("default of a helper", H, "amount=9", "amount=10", "HELPER", "helper normalise() changed"),
    Edit(
        "helper of a helper",
        H,
        "return x + OFFSET",
        "return x - OFFSET",
        "HELPER",
        "helper second() changed",
    ),
    Edit(
        "helper by attribute", H, "len(TABLE)", "len(TABLE) + 1", "HELPER", "helper shift() changed"
    ),
    Edit("other module", "more/deep.py", "x + DEPTH", "x * DEPTH", "HELPER", "bottom() changed"),
    Edit("mutual recursion", M, "n != 0 and even", "n != 2 and even", "HELPER", "odd() changed"),
    Edit("registered for a type", M, '"int"', '"integer"', "HELPER"),
    Edit("cached function", M, "x + 11", "x + 12", "HELPER"),
    Edit("cache size", M, "maxsize=8", "maxsize=16", "HELPER"),
    Edit("closure of a helper", M, "outer(3)", "outer(4)", "HELPER", "scaled() changed"),
    Edit("partial", M, "exp=2", "exp=3", "HELPER", "power() changed"),
    Edit("handler in a dict", M, "x + 21", "x + 22", "GLOBAL", "HANDLERS"),
    Edit("late module", "late.py", "x * FACTOR", "x + FACTOR", "HELPER", "later() changed"),
    Edit("late import of a name", "local_only.py", "71", "72", "HELPER", "thing() changed"),
    Edit("method", M, "x * self.factor +", "x + self.factor +", "CLASS", "class Config changed"),
    Edit(
        "method of a base",
        M,
        "        return 1\n\n\nclass Config",
        "        return 2\n\n\nclass Config",
        "CLASS",
        "class Base changed",
    ),
    Edit("property", M, "self.factor * 2", "self.factor * 3", "CLASS", "class Config changed"),
    Edit("static method", M, "x / 2", "x / 3", "CLASS", "class Config changed"),
    Edit("class method", M, "cls(4)", "cls(5)", "CLASS", "class Config changed"),
    Edit("class attribute", M, "step: int = 3", "step: int = 4", "CLASS", "class Config changed"),
    Edit("field default", M, "y: int = 5", "y: int = 6", "CLASS", "class Point changed"),
    Edit("field type", M, "    x: int\n", "    x: float\n", "CLASS", "class Point changed"),
    Edit("frozen dataclass", M, "@dataclass\n", "@dataclass(frozen=True)\n", "CLASS", "Point"),
    Edit("dataclass method", M, "self.x + self.y", "self.x - self.y", "CLASS", "Point"),
    Edit("named tuple", M, "right: int = 7", "right: int = 8", "CLASS", "class Pair changed"),
    Edit("enum", M, "RED = 1", "RED = 3", "CLASS", "class Colour changed"),
    Edit("global", M, "SCALE = 2", "SCALE = 3", "GLOBAL", "global SCALE changed: 2 → 3"),
    Edit(
        "type of a global", M, "SCALE = 2", "SCALE = 2.0", "GLOBAL", "global SCALE changed: 2 → 2.0"
    ),
    Edit("item of a global", M, '"high": 10', '"high": 11', "GLOBAL", "LIMITS"),
    Edit(
        "global of a helper",
        H,
        "OFFSET = 100",
        "OFFSET = 101",
        "GLOBAL",
        "global OFFSET changed: 100 → 101",
    ),
    Edit("list of a helper", H, "[1, 2, 3]", "[1, 2, 3, 4]", "GLOBAL", "TABLE"),
    Edit("global of another module", "more/deep.py", "DEPTH = 61", "DEPTH = 62", "GLOBAL", "DEPTH"),
    Edit("instance", M, "CONFIG = Config()", "CONFIG = Config(3)", "GLOBAL", "CONFIG"),
    Edit("secret", M, '"k1"', '"k2"', "GLOBAL", "global API_KEY changed"),
]


def write(folder: Path, edit: Edit | None) -> None:
    for name, text in FILES.items():
        if edit is not None and name == edit.file:
            assert text.count(edit.old) >= 1, edit.name
            text = text.replace(edit.old, edit.new, 1)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def load(folder: Path, name: str = "main"):
    for known in [*FILES, f"{name}.py"]:
        top = known.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        sys.modules.pop(top, None)
    sys.modules.pop("more", None)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        module = importlib.import_module(name)
        importlib.import_module("late"), importlib.import_module("local_only")
        return module
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes


def main() -> None:
    from chelate.client.fingerprint import fingerprint_function

    folder = Path(sys.argv[1])
    found = {}
    for number, edit in enumerate([None, *EDITS]):
        place = folder / str(number)
        if not place.exists():
            write(place, edit)
        taken = fingerprint_function(load(place).job)
        found[edit.name if edit else ""] = [taken.ast, taken.code, taken.manifest]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
