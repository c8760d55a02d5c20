# ruff: noqa: E501 - texts of programs
"""What a task ``task`` reaches in unusual ways: a program, an edit, and whether it counts.

``parts`` are modules: the text up to a line ``=== name`` is ``sample``, what follows is ``name``.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

__all__ = ["COSMETIC", "ROWS", "RUNS", "Row"]


@dataclass(frozen=True)
class Row:
    name: str
    text: str
    old: str
    new: str
    tree: bool = True  # whether syntax trees tell

    def modules(self, edited: bool) -> dict[str, str]:
        text = textwrap.dedent(self.text).lstrip("\n")
        assert self.old in text, self.name
        text = text.replace(self.old, self.new) if edited else text
        first, *others = text.split("=== ")
        found = {"sample": first}
        for other in others:
            name, _, body = other.partition("\n")
            found[name.strip()] = body
        return found


F = "def f(x):\n    return x + 1\ndef g(x):\n    return x\nclass A:\n    def m(self):\n        return 1\n    def __call__(self, x):\n        return x\n"


def held(name: str, definition: str, old: str = "x + 1", new: str = "x + 2", head: str = "") -> Row:
    """A global ``G`` that holds something somehow."""
    return Row(name, f"{head}\n{F}{definition}\ndef task():\n    return G\n", old, new)


def value(name: str, first: str, second: str, head: str = "") -> Row:
    return Row(
        name,
        f"{head}\nG = {first}\ndef task():\n    return G\n",
        f"G = {first}\n",
        f"G = {second}\n",
    )


C = "import collections, functools, types, weakref, enum, itertools, threading, logging, re, contextvars, operator\n"
NP = "import numpy as np\n"
PD = "import pandas as pd\n"
PY = "import pydantic\nfrom typing import Annotated\n"
AT = "import attrs\n"
DC = "import dataclasses\nfrom dataclasses import dataclass, field\n"
TY = "import typing\nfrom typing import *\n"

ROWS = [
    held("deque", "G = collections.deque([f])", head=C),
    held("deque, length", "G = collections.deque([1], maxlen=3)", "maxlen=3", "maxlen=4", head=C),
    held("ordered dict", "G = collections.OrderedDict(a=f)", head=C),
    held("default factory", "G = collections.defaultdict(f)", head=C),
    held("default factory, other", "G = collections.defaultdict(list)", "(list)", "(set)", head=C),
    held("named tuple", "P = collections.namedtuple('P', 'a')\nG = P(f)", head=C),
    held("simple namespace", "G = types.SimpleNamespace(a=f)", head=C),
    held("mapping proxy", "G = types.MappingProxyType({'a': f})", head=C),
    held("subclass of dict", "class D(dict):\n    pass\nG = D(a=f)"),
    held("subclass of list", "class D(list):\n    pass\nG = D([f])"),
    held(
        "method of a subclass of list",
        "class D(list):\n    def q(self):\n        return 5\nG = D([1])",
        "return 5",
        "return 6",
    ),
    held("numpy vectorize", "G = np.vectorize(f)", head=NP),
    held("numpy frompyfunc", "G = np.frompyfunc(f, 1, 1)", head=NP),
    held("object array", "G = np.array([f, g], dtype=object)", head=NP),
    held(
        "object array of instances",
        "G = np.array([A()], dtype=object)",
        "return 1",
        "return 3",
        head=NP,
    ),
    held("chain map", "G = collections.ChainMap({'a': 1}, {'b': f})", head=C),
    held("key", "G = {f: 1}"),
    held("key of instances", "G = {A(): 1}", "return 1", "return 3"),
    held("key in a tuple", "G = {('a', f): 1}"),
    held("set of functions", "G = {f, g}"),
    held("set of lambdas", "G = {lambda x: x + 3,\n lambda x: x + 4}", "x + 3", "x + 5"),
    held("frozen set of classes", "G = frozenset({A})", "return 1", "return 3"),
    held("set of instances", "G = {A()}", "return 1", "return 3"),
    held("after thousands", "G = [*range(5000), f]"),
    held(
        "after thousands of keys",
        "G = {**{i: i for i in range(3000)}, 'a': A()}",
        "return 1",
        "return 3",
    ),
    held("very deep", "G = [[[[[[[[[f]]]]]]]]]"),
    held(
        "very deep in dicts", "G = {1: {1: {1: {1: {1: {1: (1, [A()])}}}}}}", "return 1", "return 3"
    ),
    held(
        "deep in instances",
        "class B:\n    def __init__(self, i):\n        self.i = i\nG = B(B(B(B(B(B([f]))))))",
    ),
    held("partial in a list", "G = [functools.partial(f, 1)]", head=C),
    held("partial, its argument", "G = [functools.partial(f, 1)]", "(f, 1)", "(f, 2)", head=C),
    held("bound method in a dict", "G = {1: A().m}", "return 1", "return 3"),
    held("static method in a list", "G = [staticmethod(f)]"),
    held("cached function in a tuple", "G = (functools.lru_cache(f),)", head=C),
    held("weak reference", "G = weakref.ref(f)", head=C),
    held("lambda in a dict", "G = {'a': lambda x: x * 3}", "x * 3", "x * 4"),
    held("lambda in nested dicts", "G = {'a': {'b': [lambda x: x * 3]}}", "x * 3", "x * 4"),
    held("code object", "G = f.__code__"),
    held("property object", "G = property(f)"),
    held("item getter", "G = operator.itemgetter(1)", "getter(1)", "getter(2)", head=C),
    held("method caller", "G = operator.methodcaller('a')", "('a')", "('b')", head=C),
    Row(
        "module in a dict",
        "import other\nG = {'a': other}\ndef task():\n    return G['a'].K\n=== other\nK = 1\n",
        "K = 1",
        "K = 2",
    ),
    held(
        "builtin method of an instance of the user",
        "class D(dict):\n    def q(self):\n        return 5\nG = D().get",
        "return 5",
        "return 6",
    ),
    held(
        "class method of a built-in",
        "class D(dict):\n    def q(self):\n        return 5\nG = D.fromkeys",
        "return 5",
        "return 6",
    ),
    held(
        "exception",
        "class E(Exception):\n    def q(self):\n        return 5\nG = E(1)",
        "return 5",
        "return 6",
    ),
    held("exception, its argument", "G = [ValueError(1)]", "Error(1)", "Error(2)"),
    held(
        "context variable",
        "G = contextvars.ContextVar('v', default=1)",
        "default=1",
        "default=2",
        head=C,
    ),
    held("itertools count", "G = itertools.count(1)", "count(1)", "count(2)", head=C),
    held("compiled regex", "G = re.compile('a')", "('a')", "('b')", head=C),
    held("flags of a regex", "G = [re.compile('a')]", "('a')", "('a', re.I)", head=C),
    held("semaphore", "G = threading.Semaphore(1)", "(1)", "(2)", head=C),
    held("name of a logger", "G = logging.getLogger('a')", "('a')", "('b')", head=C),
    held("shared identity", "a = []\nG = [a, a]", "[a, a]", "[a, []]"),
    held("shared instance", "a = A()\nG = {1: a, 2: a}", "2: a", "2: A()"),
    held("callable instance as a helper", "G = A()", "return x\n", "return x * 2\n"),
    held(
        "enum with a method",
        "class E(enum.Enum):\n    X = 1\n    def q(self):\n        return 5\nG = E.X",
        "return 5",
        "return 6",
        head=C,
    ),
    held(
        "enum in a list",
        "class E(enum.Enum):\n    X = 1\n    Y = 2\nG = [E.X]",
        "Y = 2",
        "Y = 3",
        head=C,
    ),
    held(
        "property of an enum",
        "class E(enum.Enum):\n    X = 1\n    @types.DynamicClassAttribute\n    def q(self):\n        return 5\nG = E",
        "return 5",
        "return 6",
        head=C,
    ),
    held(
        "missing of an enum",
        "class E(enum.Enum):\n    X = 1\n    @classmethod\n    def _missing_(cls, v):\n        return cls.X if v == 5 else None\nG = E",
        "v == 5",
        "v == 6",
        head=C,
    ),
    held(
        "alias in an enum",
        "class E(enum.Enum):\n    X = 1\n    Y = 1\nG = E",
        "Y = 1",
        "Y = 2",
        head=C,
    ),
    held(
        "iterator of a registry",
        "REG = []\ndef reg(f):\n    REG.append(f)\n    return f\n@reg\ndef one(x):\n    return x * 7\nG = REG",
        "x * 7",
        "x * 8",
    ),
    held(
        "registry by name",
        "REG = {}\ndef reg(n):\n    def deco(f):\n        REG[n] = f\n        return f\n    return deco\n@reg('a')\ndef one(x):\n    return x * 7\nG = REG",
        "x * 7",
        "x * 8",
    ),
    held(
        "registry by name, name",
        "REG = {}\ndef reg(n):\n    def deco(f):\n        REG[n] = f\n        return f\n    return deco\n@reg('a')\ndef one(x):\n    return x * 7\nG = REG",
        "@reg('a')",
        "@reg('b')",
    ),
    held(
        "registry by init_subclass",
        "class Base:\n    all = {}\n    def __init_subclass__(cls, key=None):\n        Base.all[key] = cls\nclass Sub(Base, key='a'):\n    def q(self):\n        return 5\nG = Base",
        "return 5",
        "return 6",
    ),
    held(
        "registry by metaclass",
        "class M(type):\n    def __init__(cls, *a):\n        cls.made = 3\nclass Sub(metaclass=M):\n    pass\nG = Sub",
        "made = 3",
        "made = 4",
    ),
    held(
        "new of a metaclass",
        "class M(type):\n    def __new__(m, n, b, d):\n        d['made'] = 3\n        return type.__new__(m, n, b, d)\nclass Sub(metaclass=M):\n    pass\nG = Sub",
        "= 3",
        "= 4",
    ),
    held(
        "call of a metaclass",
        "class M(type):\n    def __call__(cls):\n        return 3\nclass Sub(metaclass=M):\n    pass\nG = Sub",
        "return 3",
        "return 4",
    ),
    held(
        "registered with an abstract class",
        "import abc\nclass I(abc.ABC):\n    pass\nI.register(A)\nG = I",
        "I.register(A)",
        "pass",
    ),
    held(
        "set_name of a descriptor",
        "class D:\n    def __set_name__(self, o, n):\n        self.n = n\n    def __get__(self, o, t):\n        return self.n\nclass B:\n    one = D()\nG = B",
        "one = D()",
        "two = D()",
    ),
    held(
        "descriptor from a factory",
        "def typed(k):\n    class D:\n        def __get__(self, o, t):\n            return k\n    return D()\nclass B:\n    one = typed(3)\nG = B",
        "typed(3)",
        "typed(4)",
    ),
    held(
        "cached property",
        "class B:\n    @functools.cached_property\n    def q(self):\n        return 5\nG = B()",
        "return 5",
        "return 6",
        head=C,
    ),
    held(
        "setter",
        "class B:\n    @property\n    def q(self):\n        return 5\n    @q.setter\n    def q(self, v):\n        self.w = 7\nG = B()",
        "self.w = 7",
        "self.w = 8",
    ),
    held(
        "slots",
        "class B:\n    __slots__ = ('a',)\n    def __init__(self):\n        self.a = 3\nG = [B()]",
        "self.a = 3",
        "self.a = 4",
    ),
    held("names of slots", "class B:\n    __slots__ = ('a',)\nG = B", "('a',)", "('a', 'b')"),
    held(
        "mangled slots",
        "class B:\n    __slots__ = ('__a',)\n    def __init__(self):\n        self.__a = 3\nG = B()",
        "self.__a = 3",
        "self.__a = 4",
    ),
    held("function as a class attribute", "class B:\n    q = f\nG = B"),
    held(
        "list of functions as a class attribute",
        "class B:\n    q = collections.deque([f])\nG = B()",
        head=C,
    ),
    held("_fields of a plain class", "class B:\n    _fields = ['a']\nG = B", "['a']", "['b']"),
    held(
        "model_fields of a plain class",
        "class B:\n    model_fields = ['a']\nG = B",
        "['a']",
        "['b']",
    ),
    held("match_args", "class B:\n    __match_args__ = ('a',)\nG = B", "('a',)", "('b',)"),
    held(
        "class_getitem",
        "class B:\n    def __class_getitem__(cls, k):\n        return 5\nG = B",
        "return 5",
        "return 6",
    ),
    held("base order", "class B:\n    m = 2\nclass D(A, B):\n    pass\nG = D", "(A, B)", "(B, A)"),
    held(
        "argument of a generic base",
        "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass B(Generic[T]):\n    pass\nclass D(B[int]):\n    pass\nG = D",
        "B[int]",
        "B[str]",
    ),
    held(
        "hash", "class B:\n    def __hash__(self):\n        return 5\nG = B", "return 5", "return 6"
    ),
    held(
        "dunder constant of a dataclass",
        "@dataclass\nclass B:\n    x: int = 1\n    __version__ = 1\nG = B",
        "__version__ = 1",
        "__version__ = 2",
        head=DC,
    ),
    held(
        "library function in a dataclass",
        "import math, statistics\n@dataclass\nclass B:\n    x: int = 1\n    q = statistics.mean\nG = B",
        "q = statistics.mean",
        "q = statistics.median",
        head=DC,
    ),
    held(
        "metadata of a field",
        "@dataclass\nclass B:\n    x: int = field(default=1, metadata={'a': 1})\nG = B",
        "{'a': 1}",
        "{'a': 2}",
        head=DC,
    ),
    held(
        "function in metadata of a field",
        "@dataclass\nclass B:\n    x: int = field(default=1, metadata={'a': f})\nG = B",
        head=DC,
    ),
    held(
        "default factory of a field",
        "@dataclass\nclass B:\n    x: list = field(default_factory=lambda: [3])\nG = B",
        "[3]",
        "[4]",
        head=DC,
    ),
    held(
        "other default factory",
        "@dataclass\nclass B:\n    x: list = field(default_factory=list)\nG = B",
        "=list",
        "=set",
        head=DC,
    ),
    held(
        "order of a dataclass",
        "@dataclass\nclass B:\n    x: int = 1\nG = B",
        "@dataclass\n",
        "@dataclass(order=True)\n",
        head=DC,
    ),
    held(
        "eq of a dataclass",
        "@dataclass\nclass B:\n    x: int = 1\nG = B",
        "@dataclass\n",
        "@dataclass(eq=False)\n",
        head=DC,
    ),
    held(
        "compare of a field",
        "@dataclass\nclass B:\n    x: int = field(default=1, compare=True)\nG = B",
        "compare=True",
        "compare=False",
        head=DC,
    ),
    held(
        "keyword-only dataclass",
        "@dataclass\nclass B:\n    x: int = 1\nG = B",
        "@dataclass\n",
        "@dataclass(kw_only=True)\n",
        head=DC,
    ),
    held(
        "post init",
        "@dataclass\nclass B:\n    x: int = 1\n    def __post_init__(self):\n        self.x += 3\nG = B",
        "+= 3",
        "+= 4",
        head=DC,
    ),
    held(
        "class variable of a dataclass",
        "from typing import ClassVar\n@dataclass\nclass B:\n    x: int = 1\n    k: ClassVar[int] = 3\nG = B",
        "= 3",
        "= 4",
        head=DC,
    ),
    held(
        "default of a named tuple",
        "class P(NamedTuple):\n    a: int = 3\nG = P",
        "= 3",
        "= 4",
        head=TY,
    ),
    held(
        "method of a named tuple",
        "class P(NamedTuple):\n    a: int = 3\n    def q(self):\n        return 5\nG = P()",
        "return 5",
        "return 6",
        head=TY,
    ),
    held(
        "type of a named tuple",
        "class P(NamedTuple):\n    a: int = 3\nG = P",
        "a: int",
        "a: float",
        head=TY,
    ),
    held("typed dict", "class P(TypedDict):\n    a: int\nG = P", "a: int", "a: float", head=TY),
    held(
        "total of a typed dict",
        "class P(TypedDict, total=False):\n    a: int\nG = P",
        "total=False",
        "total=True",
        head=TY,
    ),
    held(
        "alias of a type",
        "V = Annotated[int, 3]\n@dataclass\nclass B:\n    x: V = 1\nG = B",
        "int, 3",
        "int, 4",
        head=TY + DC,
    ),
    held("type alias as a value", "G = Union[int, str]", "[int, str]", "[int, float]", head=TY),
    held("builtin alias as a value", "G = [list[int]]", "[int]", "[str]", head=TY),
    held("attribute of a function", "f.k = 5\nG = f", "f.k = 5", "f.k = 6"),
    held(
        "attribute of a function, by a decorator",
        "def mark(k):\n    def deco(h):\n        h.k = k\n        return h\n    return deco\n@mark(5)\ndef h(x):\n    return x\nG = h",
        "@mark(5)",
        "@mark(6)",
    ),
    held("function as an attribute of a function", "g.k = [f]\nG = g"),
    held(
        "attribute of a cached function",
        "@functools.lru_cache\ndef h(x):\n    return x\nh.k = 5\nG = h",
        "h.k = 5",
        "h.k = 6",
        head=C,
    ),
    held(
        "registered for a method",
        "class B:\n    @functools.singledispatchmethod\n    def q(self, v):\n        return 1\n    @q.register\n    def _(self, v: int):\n        return 22\nG = B()",
        "return 22",
        "return 23",
        head=C,
    ),
    held(
        "registered by annotation",
        "@functools.singledispatch\ndef h(v):\n    return 1\n@h.register\ndef _(v: int):\n    return 2\nG = h",
        "v: int",
        "v: str",
        head=C,
    ),
    held(
        "closure over a container",
        "def make():\n    t = collections.deque([f])\n    def h():\n        return t[0]\n    return h\nG = make()",
        head=C,
    ),
    held(
        "closures in a loop", "G = [lambda x, i=i: x + i for i in range(3)]", "range(3)", "range(4)"
    ),
    held(
        "closure over a loop's variable",
        "fs = []\nfor i in range(3):\n    fs.append(lambda x: x + i)\nG = fs",
        "range(3)",
        "range(4)",
    ),
    held(
        "nonlocal counter",
        "def make():\n    n = 5\n    def h():\n        nonlocal n\n        n += 1\n        return n\n    return h\nG = make()",
        "n = 5",
        "n = 6",
    ),
    held(
        "default that is a container",
        "def h(x, t=collections.deque([f])):\n    return t\nG = h",
        head=C,
    ),
    held(
        "keyword default that is a container",
        "def h(*, t=types.SimpleNamespace(a=f)):\n    return t\nG = h",
        head=C,
    ),
    held(
        "stateful decorator",
        "class Deco:\n    def __init__(self, f, n):\n        self.f, self.n = f, n\n    def __call__(self, x):\n        return self.f(x) * self.n\nG = Deco(f, 3)",
        "(f, 3)",
        "(f, 4)",
    ),
    held(
        "wrapped chain",
        "def deco(h):\n    @functools.wraps(h)\n    def w(*a):\n        return h(*a)\n    return w\n@deco\n@deco\n@deco\ndef h(x):\n    return x * 9\nG = h",
        "x * 9",
        "x * 8",
        head=C,
    ),
    held("generator helper", "def h():\n    yield 5\nG = h", "yield 5", "yield 6"),
    held("async helper", "async def h():\n    return 5\nG = h", "return 5", "return 6"),
    held("walrus", "def h(x):\n    return [y for i in x if (y := i + 5)]\nG = h", "i + 5", "i + 6"),
    held("star arguments", "def h(*a, **k):\n    return a\nG = h", "*a, **k", "*a, b=1, **k"),
    held(
        "global statement",
        "N = 5\ndef h():\n    global N\n    N += 1\n    return N\nG = h",
        "N = 5",
        "N = 6",
    ),
    held(
        "redefined function",
        "def h():\n    return 5\ndef h():\n    return 7\nG = h",
        "return 7",
        "return 8",
    ),
    held(
        "conditional definition",
        "if len('a') == 1:\n    def h():\n        return 5\nelse:\n    def h():\n        return 6\nG = h",
        "== 1",
        "== 2",
    ),
    held(
        "definition in try",
        "try:\n    import no_such_module\nexcept ImportError:\n    def h():\n        return 5\nG = h",
        "return 5",
        "return 6",
    ),
    held(
        "user class in a frame's attributes",
        "G = pd.DataFrame({'a': [1]})\nG.attrs['k'] = 5",
        "= 5",
        "= 6",
        head=PD,
    ),
    Row(
        "module constant by name",
        "from config import RATE\ndef task():\n    return RATE\n=== config\nRATE = 1\n",
        "RATE = 1",
        "RATE = 2",
    ),
    Row(
        "star import",
        "from config import *\ndef task():\n    return rate(1)\n=== config\ndef rate(x):\n    return x + 1\n",
        "x + 1",
        "x + 2",
    ),
    Row(
        "getattr of a module",
        "import config\ndef task():\n    return getattr(config, 'RATE')\n=== config\nRATE = 1\n",
        "RATE = 1",
        "RATE = 2",
    ),
    Row(
        "getattr of a module's import",
        "import config\ndef task():\n    return getattr(config, 'rate')()\n=== config\nfrom third import rate\n=== third\ndef rate():\n    return 5\n",
        "return 5",
        "return 6",
    ),
    Row(
        "module handed over, helper elsewhere",
        "import config\ndef task():\n    return vars(config)['rate']()\n=== config\nimport third\ndef rate():\n    return third.inner()\n=== third\ndef inner():\n    return 5\n",
        "return 5",
        "return 6",
    ),
    Row(
        "globals by name",
        "def rate():\n    return 5\ndef task():\n    return globals()['rate']()\n",
        "return 5",
        "return 6",
    ),
    Row(
        "eval of a literal",
        "def rate():\n    return 5\ndef task():\n    return eval('rate() + 1')\n",
        "return 5",
        "return 6",
    ),
    Row(
        "exec of a literal",
        "def rate():\n    return 5\ndef task():\n    space = dict(globals())\n    exec('v = rate() + 1', space)\n    return space['v']\n",
        "return 5",
        "return 6",
    ),
    Row(
        "eval of a global",
        "RULE = 'rate() + 1'\ndef rate():\n    return 5\ndef task():\n    return eval(RULE)\n",
        "return 5",
        "return 6",
    ),
    Row(
        "import_module of a literal",
        "import importlib\ndef task():\n    return importlib.import_module('config').rate()\n=== config\ndef rate():\n    return 5\n",
        "return 5",
        "return 6",
    ),
    Row(
        "import_module by name",
        "from importlib import import_module as load\ndef task():\n    return load('config').rate()\n=== config\ndef rate():\n    return 5\n",
        "return 5",
        "return 6",
    ),
    Row(
        "__import__ of a literal",
        "def task():\n    return __import__('config').rate()\n=== config\ndef rate():\n    return 5\n",
        "return 5",
        "return 6",
    ),
    Row(
        "sys.modules",
        "import sys, config\ndef task():\n    return sys.modules['config'].rate()\n=== config\ndef rate():\n    return 5\n",
        "return 5",
        "return 6",
    ),
    Row(
        "module __getattr__",
        "import config\ndef task():\n    return config.RATE\n=== config\ndef __getattr__(name):\n    return {'RATE': 5}[name]\n",
        "5}",
        "6}",
    ),
    Row(
        "patch of another module",
        "import config\nimport patches\ndef task():\n    return config.rate()\n=== config\ndef rate():\n    return 5\n=== patches\nimport config\ndef better():\n    return 7\nconfig.rate = better\n",
        "return 7",
        "return 8",
    ),
    Row(
        "patch of a library",
        "import json\nimport patches\ndef task():\n    return json.shout()\n=== patches\nimport json\ndef better():\n    return 7\njson.shout = better\n",
        "return 7",
        "return 8",
    ),
    Row(
        "late import of a package's own function",
        "def task():\n    import config.sub\n    return config.rate()\n=== config.__init__\ndef rate():\n    return 5\n=== config.sub\n",
        "return 5",
        "return 6",
    ),
    Row(
        "late relative import",
        "import config.main\ntask = config.main.task\n=== config.__init__\n=== config.main\ndef task():\n    from . import other\n    return other.rate()\n=== config.other\ndef rate():\n    return 5\n",
        "return 5",
        "return 6",
    ),
    Row(
        "same name from another module",
        "from json import loads\ndef task(x):\n    return loads(x)\n",
        "from json",
        "from pickle",
    ),
    Row(
        "same name from another module of Python",
        "from statistics import mean as h\ndef task(x):\n    return h(x)\n",
        "mean",
        "fmean",
    ),
    Row(
        "same name of Python modules",
        "from shlex import quote\ndef task(x):\n    return quote(x)\n",
        "from shlex",
        "from urllib.parse",
    ),
    Row(
        "version of the module",
        "__version__ = '1'\ndef task():\n    return __version__\n",
        "'1'",
        "'2'",
    ),
    Row(
        "docstring that is read",
        "def task():\n    'one'\n    return task.__doc__\n",
        "'one'",
        "'two'",
    ),
    Row(
        "docstring of a helper that is read",
        "def h():\n    'one'\ndef task():\n    return getattr(h, '__doc__')\n",
        "'one'",
        "'two'",
    ),
    Row(
        "docstring of a class that is read",
        "import inspect\nclass A:\n    'one'\ndef task():\n    return inspect.getdoc(A)\n",
        "'one'",
        "'two'",
    ),
    Row("docstring of the module", "'one'\ndef task():\n    return __doc__\n", "'one'", "'two'"),
    Row(
        "name that is read",
        "def one():\n    return 1\nG = [one]\ndef task():\n    return G[0].__name__\n",
        "one",
        "two",
    ),
    Row(
        "source that is read",
        "import inspect\ndef task():\n    # one\n    return inspect.getsource(task)\n",
        "# one",
        "# two",
    ),
    Row(
        "subclasses",
        "class A:\n    pass\nclass B(A):\n    def q(self):\n        return 5\ndef task():\n    return [k().q() for k in A.__subclasses__()]\n",
        "return 5",
        "return 6",
    ),
    Row(
        "annotations that are read",
        "def h(x: int):\n    return x\ndef task():\n    return h.__annotations__\n",
        "x: int",
        "x: str",
    ),
    Row(
        "type hints",
        "import typing\ndef h(x: int):\n    return x\ndef task():\n    return typing.get_type_hints(h)\n",
        "x: int",
        "x: str",
    ),
    Row(
        "type hints as text",
        "from __future__ import annotations\nfrom typing import get_type_hints as hints, Annotated\nV = Annotated[int, 1]\ndef h(x: V):\n    return x\ndef task():\n    return hints(h, include_extras=True)\n",
        "int, 1",
        "int, 2",
    ),
    Row(
        "return annotation that is read",
        "import inspect\ndef h() -> int:\n    return 1\ndef task():\n    return inspect.signature(h)\n",
        "-> int",
        "-> str",
    ),
    Row(
        "annotations of a class that are read",
        "class A:\n    x: int\ndef task():\n    return A.__annotations__\n",
        "x: int",
        "x: str",
    ),
    Row(
        "annotations inside the body that are read",
        "def task():\n    def h(x: int):\n        return x\n    return h.__annotations__\n",
        "x: int",
        "x: str",
        tree=False,
    ),
    Row(
        "annotations read by a decorator",
        "def check(h):\n    kinds = h.__annotations__\n    def w(x):\n        return kinds['x'](h(x))\n    return w\n@check\ndef task(x: int):\n    return x\n",
        "x: int",
        "x: str",
    ),
    Row(
        "annotations read by a decorator elsewhere",
        "from config import check\n@check\ndef task(x: int):\n    return x\n=== config\ndef check(h):\n    def w(x):\n        return getattr(h, '__annotations__')['x'](h(x))\n    return w\n",
        "x: int",
        "x: str",
    ),
    Row(
        "pydantic validate_call",
        PY + "@pydantic.validate_call\ndef task(x: int):\n    return x\n",
        "x: int",
        "x: str",
    ),
    Row(
        "pydantic validate_call of a helper",
        PY
        + "@pydantic.validate_call\ndef h(x: Annotated[int, pydantic.Field(gt=1)]):\n    return x\ndef task():\n    return h(3)\n",
        "gt=1",
        "gt=2",
    ),
    Row(
        "pydantic validate_call, body",
        PY
        + "@pydantic.validate_call\ndef h(x: int):\n    return x\ndef task():\n    return h(3)\n",
        "return x",
        "return -x",
    ),
    Row(
        "pydantic alias",
        PY
        + "class M(pydantic.BaseModel):\n    x: int = pydantic.Field(1, alias='a')\ndef task():\n    return M()\n",
        "'a'",
        "'b'",
    ),
    Row(
        "pydantic constraint",
        PY
        + "class M(pydantic.BaseModel):\n    x: int = pydantic.Field(5, gt=1)\ndef task():\n    return M()\n",
        "gt=1",
        "gt=2",
    ),
    Row(
        "pydantic configuration",
        PY
        + "class M(pydantic.BaseModel):\n    model_config = pydantic.ConfigDict(extra='allow')\n    x: int = 1\ndef task():\n    return M()\n",
        "allow",
        "forbid",
    ),
    Row(
        "pydantic mode of a validator",
        PY
        + "class M(pydantic.BaseModel):\n    x: int = 1\n    @pydantic.field_validator('x', mode='before')\n    @classmethod\n    def c(cls, v):\n        return v\ndef task():\n    return M()\n",
        "before",
        "after",
    ),
    Row(
        "pydantic validated field",
        PY
        + "class M(pydantic.BaseModel):\n    x: int = 1\n    y: int = 1\n    @pydantic.field_validator('x')\n    @classmethod\n    def c(cls, v):\n        return v + 1\ndef task():\n    return M()\n",
        "validator('x')",
        "validator('y')",
    ),
    Row(
        "pydantic annotated validator",
        PY
        + "def c(v):\n    return v + 3\nclass M(pydantic.BaseModel):\n    x: Annotated[int, pydantic.AfterValidator(c)] = 1\ndef task():\n    return M(x=1)\n",
        "v + 3",
        "v + 4",
    ),
    Row(
        "pydantic model validator",
        PY
        + "class M(pydantic.BaseModel):\n    x: int = 1\n    @pydantic.model_validator(mode='after')\n    def c(self):\n        self.x += 3\n        return self\ndef task():\n    return M()\n",
        "+= 3",
        "+= 4",
    ),
    Row(
        "pydantic computed field",
        PY
        + "class M(pydantic.BaseModel):\n    x: int = 1\n    @pydantic.computed_field\n    @property\n    def c(self) -> int:\n        return self.x + 3\ndef task():\n    return M()\n",
        "+ 3",
        "+ 4",
    ),
    Row(
        "pydantic private attribute",
        PY
        + "class M(pydantic.BaseModel):\n    x: int = 1\n    _k: int = 3\ndef task():\n    return M()._k\n",
        "= 3",
        "= 4",
    ),
    Row(
        "pydantic nested model",
        PY
        + "class N(pydantic.BaseModel):\n    y: int = 3\nclass M(pydantic.BaseModel):\n    x: list[N] = []\ndef task():\n    return M(x=[{}])\n",
        "y: int = 3",
        "y: int = 4",
    ),
    Row(
        "pydantic type adapter",
        PY
        + "T = pydantic.TypeAdapter(Annotated[int, pydantic.Field(gt=1)])\ndef task():\n    return T.validate_python(5)\n",
        "gt=1",
        "gt=2",
    ),
    Row(
        "pydantic dataclass",
        PY
        + "@pydantic.dataclasses.dataclass\nclass M:\n    x: Annotated[int, pydantic.Field(gt=1)] = 5\ndef task():\n    return M()\n".replace(
            "pydantic.dataclasses", "pd.dataclasses"
        )
        .replace("@pd", "import pydantic.dataclasses as pdd\n@pdd")
        .replace("pdd.dataclasses", "pdd"),
        "gt=1",
        "gt=2",
    ),
    Row(
        "attrs validator",
        AT
        + "def c(i, a, v):\n    assert v > 3\n@attrs.define\nclass M:\n    x: int = attrs.field(default=5, validator=c)\ndef task():\n    return M()\n",
        "v > 3",
        "v > 4",
    ),
    Row(
        "attrs validator of the library",
        AT
        + "@attrs.define\nclass M:\n    x: int = attrs.field(default=5, validator=attrs.validators.gt(3))\ndef task():\n    return M()\n",
        "gt(3)",
        "gt(4)",
    ),
    Row(
        "attrs converter",
        AT
        + "@attrs.define\nclass M:\n    x: int = attrs.field(default=5, converter=lambda v: v + 3)\ndef task():\n    return M()\n",
        "v + 3",
        "v + 4",
    ),
    Row(
        "attrs factory",
        AT
        + "@attrs.define\nclass M:\n    x: list = attrs.field(factory=lambda: [3])\ndef task():\n    return M()\n",
        "[3]",
        "[4]",
    ),
    Row(
        "attrs metadata",
        AT
        + "@attrs.define\nclass M:\n    x: int = attrs.field(default=5, metadata={'a': 1})\ndef task():\n    return M()\n",
        "'a': 1",
        "'a': 2",
    ),
    Row(
        "attrs alias",
        AT
        + "@attrs.define\nclass M:\n    x: int = attrs.field(default=5, alias='a')\ndef task():\n    return M()\n",
        "'a'",
        "'b'",
    ),
    Row(
        "attrs frozen",
        AT + "@attrs.define\nclass M:\n    x: int = 5\ndef task():\n    return M()\n",
        "define\n",
        "frozen\n",
    ),
    Row(
        "attrs order",
        AT + "@attrs.define\nclass M:\n    x: int = 5\ndef task():\n    return M()\n",
        "define\n",
        "define(order=True)\n",
    ),
    Row(
        "attrs eq of a field",
        AT
        + "@attrs.define\nclass M:\n    x: int = attrs.field(default=5, eq=True)\ndef task():\n    return M()\n",
        "eq=True",
        "eq=False",
    ),
    Row(
        "tenacity wait",
        "import tenacity\n@tenacity.retry(wait=tenacity.wait_fixed(3))\ndef task(x):\n    return x\n",
        "fixed(3)",
        "fixed(4)",
    ),
    Row(
        "tenacity predicate",
        "import tenacity\ndef p(r):\n    return r == 3\n@tenacity.retry(retry=tenacity.retry_if_result(p))\ndef task(x):\n    return x\n",
        "r == 3",
        "r == 4",
    ),
    value("one and true", "1", "True"),
    value("one and 1.0", "1", "1.0"),
    value("zeros", "0.0", "-0.0"),
    value("text and bytes", "'a'", "b'a'"),
    value("order of a dict", "{1: 1, 2: 2}", "{2: 2, 1: 1}"),
    value("list and tuple", "[[1]]", "[(1,)]"),
    value("set and frozenset", "{1}", "frozenset({1})"),
    value("none and false", "None", "False"),
    value("ellipsis", "...", "NotImplemented"),
    value("complex", "1j", "-1j"),
    value("range", "range(3)", "range(4)"),
    value("slice", "slice(1)", "slice(2)"),
    value("bytearray", "bytearray(b'a')", "b'a'"),
    value("memoryview", "memoryview(b'a')", "memoryview(b'b')"),
    value(
        "types of an array.array", "array.array('i', [1])", "array.array('l', [1])", "import array"
    ),
    value(
        "time zone",
        "d.datetime(2020, 1, 1)",
        "d.datetime(2020, 1, 1, tzinfo=d.timezone.utc)",
        "import datetime as d",
    ),
    value(
        "zone by name",
        "zoneinfo.ZoneInfo('UTC')",
        "zoneinfo.ZoneInfo('Europe/Berlin')",
        "import zoneinfo",
    ),
    value("decimal places", "Decimal('1.0')", "Decimal('1.00')", "from decimal import Decimal"),
    value("fraction", "Fraction(1, 2)", "Fraction(1, 3)", "from fractions import Fraction"),
    value("path", "Path('a')", "Path('b')", "from pathlib import Path"),
    value("kind of a path", "PurePosixPath('a')", "PureWindowsPath('a')", "from pathlib import *"),
    value("uuid", "uuid.UUID(int=1)", "uuid.UUID(int=2)", "import uuid"),
    value("counter", "Counter('aab')", "Counter('abb')", "from collections import Counter"),
    value("template", "string.Template('a')", "string.Template('b')", "import string"),
    value("random state", "random.Random(1)", "random.Random(2)", "import random"),
    value("numpy dtype", "np.array([1], 'i4')", "np.array([1], 'i8')", NP),
    value("numpy scalar", "np.int32(1)", "np.int64(1)", NP),
    value("numpy scalar in a list", "[np.float32(1)]", "[1.0]", NP),
    value("numpy shape", "np.zeros((2, 3))", "np.zeros((3, 2))", NP),
    value("numpy structured", "np.zeros(1, [('a', 'i4')])", "np.zeros(1, [('b', 'i4')])", NP),
    value("numpy mask", "np.ma.array([1, 2], mask=[0, 1])", "np.ma.array([1, 2], mask=[1, 0])", NP),
    value("numpy byte order", "np.array([1], '<i4')", "np.array([1], '>i4')", NP),
    value("numpy datetime unit", "np.array(['2020'], 'M8[D]')", "np.array(['2020'], 'M8[s]')", NP),
    value("numpy polynomial", "np.poly1d([1, 2])", "np.poly1d([1, 3])", NP),
    value("numpy generator", "np.random.default_rng(1)", "np.random.default_rng(2)", NP),
    value(
        "name of an index",
        "pd.DataFrame({'a': [1]}, pd.Index([1], name='i'))",
        "pd.DataFrame({'a': [1]}, pd.Index([1], name='j'))",
        PD,
    ),
    value(
        "categories",
        "pd.Series(['a'], dtype=pd.CategoricalDtype(['a']))",
        "pd.Series(['a'], dtype=pd.CategoricalDtype(['a', 'b']))",
        PD,
    ),
    value("type of a column", "pd.DataFrame({'a': [1]})", "pd.DataFrame({'a': [1.0]})", PD),
    value("frame and series in a dict", "{'a': pd.Series([1])}", "{'a': pd.Series([2])}", PD),
    value("categorical type", "pd.CategoricalDtype(['a'])", "pd.CategoricalDtype(['b'])", PD),
    value("timestamp", "pd.Timestamp('2020-01-01')", "pd.Timestamp('2020-01-01', tz='UTC')", PD),
    value(
        "length of a user's deque",
        "[UserList([1])]",
        "[UserList([2])]",
        "from collections import UserList",
    ),
    value("argument of a generic alias", "[dict[str, int]]", "[dict[str, str]]"),
    value("lock to nothing", "threading.Lock()", "None", "import threading"),
    value("operator", "operator.add", "operator.sub", "import operator"),
    value("built-in", "[sum]", "[max]"),
    value("numpy function", "[np.mean]", "[np.median]", NP),
    value("numpy ufunc", "np.add", "np.subtract", NP),
    value("struct", "struct.Struct('i')", "struct.Struct('l')", "import struct"),
    value("warning filter class", "[UserWarning]", "[FutureWarning]"),
    value("bound built-in", "'a'.join", "'b'.join"),
]

# Edits that change nothing.
COSMETIC = [
    held(
        "annotation of a function in a deque",
        "def h(x: int):\n    return x\nG = collections.deque([h])",
        "x: int",
        "x: str",
        head=C,
    ),
    held(
        "comment in a class in a named tuple",
        "P = collections.namedtuple('P', 'a')\nG = P(A())",
        "        return 1",
        "        # one\n        return 1",
        head=C,
    ),
    held("order of a set", "G = {'b', 'a', 'c'}", "{'b', 'a', 'c'}", "{'c', 'b', 'a'}"),
    held("set of functions, order", "G = {f, g, A}", "{f, g, A}", "{A, g, f}"),
    held(
        "docstring in a registry",
        "def h(x):\n    'one'\n    return x\nG = types.SimpleNamespace(a=h)",
        "'one'",
        "'two'",
        head=C,
    ),
    held(
        "definitions in another order",
        "def p():\n    return 1\ndef q():\n    return 2\nG = [p, q]",
        "def p():\n    return 1\ndef q():\n    return 2\n",
        "def q():\n    return 2\ndef p():\n    return 1\n",
    ),
    held(
        "lock beside",
        "L = threading.Lock()\nG = [threading.RLock(), threading.Event(), threading.Condition()]",
        "L = ",
        "M = ",
        head=C,
    ),
    held("logger beside", "G = {'log': logging.getLogger('a')}", "def g(x)", "def g(y)", head=C),
    held("unused function", "G = [f]", "return x\n", "return -x\n"),
    held(
        "instance with a lock",
        "class B:\n    def __init__(self):\n        self.lock = threading.Lock()\n        self.log = logging.getLogger('a')\n        self.local = threading.local()\nG = B()",
        "# ",
        "# ",
        head=C + "# a\n",
    ),
    held(
        "executor",
        "from concurrent.futures import ThreadPoolExecutor\nG = ThreadPoolExecutor(2)",
        "# ",
        "# ",
        head=C + "# a\n",
    ),
    held(
        "standard stream", "import sys\nG = [sys.stdout, sys.stderr]", "# ", "# ", head=C + "# a\n"
    ),
    held("weak dictionary", "G = weakref.WeakValueDictionary()", "# ", "# ", head=C + "# a\n"),
    held(
        "annotation of a field that nobody reads",
        "class B:\n    x: int = 1\nG = B",
        "x: int",
        "x: float",
    ),
    held(
        "vectorized twice",
        "G = [np.vectorize(f), np.sin, np.float32, np.random.default_rng(1)]",
        "# ",
        "# ",
        head=NP + "# a\n",
    ),
    held(
        "frames",
        "G = {'a': pd.DataFrame({'a': ['x']}), 'b': pd.Series([1.0])}",
        "# ",
        "# ",
        head=PD + "# a\n",
    ),
    held(
        "generic classes",
        "T = TypeVar('T')\nclass B(Generic[T]):\n    pass\nclass P(Protocol):\n    def q(self) -> int: ...\nclass N(NamedTuple):\n    a: 'int'\nclass D(TypedDict):\n    a: Optional[int]\nG = [B, P, N, D, Union[int, 'B'], Callable[[int], str], Literal['a'], Any]",
        "# ",
        "# ",
        head=TY + "# a\n",
    ),
    held(
        "path and friends",
        "import pathlib, datetime, decimal, uuid, zoneinfo, string, random, argparse\nG = [pathlib.Path('a'), datetime.date(2020, 1, 1), zoneinfo.ZoneInfo('UTC'), string.Template('a'), random.Random(3), argparse.Namespace(a=1)]",
        "# ",
        "# ",
        head="# a\n",
    ),
    held(
        "handler and formatter",
        "G = logging.Formatter('%(message)s')",
        "# ",
        "# ",
        head=C + "# a\n",
    ),
    held("many", "G = {i: (i, str(i)) for i in range(20000)}", "# ", "# ", head="# a\n"),
    held(
        "cycle",
        "G = [f]\nG.append(G)\nclass B:\n    def __init__(self):\n        self.me = self\nH = B()\nG.append(H)",
        "# ",
        "# ",
        head="# a\n",
    ),
    held(
        "attribute by another library",
        "import contextlib\n@contextlib.contextmanager\ndef h():\n    yield 1\nG = h",
        "# ",
        "# ",
        head="# a\n",
    ),
    Row(
        "unrelated function of a late package",
        "def task():\n    import config.sub\n    return config.rate()\n=== config.__init__\ndef rate():\n    return 5\ndef other():\n    return 1\n=== config.sub\n",
        "return 1",
        "return 2",
    ),
    Row(
        "comment in a whole module",
        "import config\ndef task():\n    return vars(config)\n=== config\nK = 1\n# one\n",
        "# one",
        "# two",
    ),
    Row(
        "pydantic model",
        PY
        + "class M(pydantic.BaseModel):\n    'one'\n    x: int = pydantic.Field(1, gt=0, alias='a')\n    y: 'list[str] | None' = None\n    @pydantic.field_validator('x')\n    @classmethod\n    def c(cls, v):\n        # two\n        return v\nG = [M(a=1), pydantic.TypeAdapter(list[M])]\ndef task():\n    return M(), G\n",
        "# two",
        "# three",
    ),
    Row(
        "attrs class",
        AT
        + "@attrs.define\nclass M:\n    x: int = attrs.field(default=5, validator=attrs.validators.instance_of(int), converter=int)\n    # one\nG = [M()]\ndef task():\n    return M(), G\n",
        "# one",
        "# two",
    ),
    Row(
        "pydantic validate_call",
        PY + "@pydantic.validate_call\ndef task(x: int):\n    # one\n    return x\n",
        "# one",
        "# two",
    ),
    Row(
        "tenacity",
        "import tenacity\n@tenacity.retry(stop=tenacity.stop_after_attempt(3))\ndef task(x):\n    # one\n    return x\n",
        "# one",
        "# two",
    ),
    Row(
        "renamed helper",
        "def one():\n    return 1\nG = {'a': one}\ndef task():\n    return G\n",
        "one",
        "two",
    ),
    Row(
        "type name in a message",
        "def task(x: int):\n    raise ValueError(type(x).__name__)\n",
        "x: int",
        "x: str",
    ),
    Row(
        "logger in the body",
        "import logging\ndef task():\n    logging.getLogger(__name__).info('a')  # one\n",
        "# one",
        "# two",
    ),
]

# What cannot be followed runs, and says so.
RUNS = [
    held("generator", "G = (i for i in [1])", "# ", "# ", head="# a\n"),
    held("open file", "G = open(__file__)", "# ", "# ", head="# a\n"),
    held("iterator in a list", "G = [iter([1, 2])]", "# ", "# ", head="# a\n"),
    held("chained iterators", "G = itertools.chain([1], [2])", "# ", "# ", head=C + "# a\n"),
    held(
        "generator in a closure",
        "def make():\n    n = (i for i in [1])\n    def h():\n        return next(n)\n    return h\nG = make()",
        "# ",
        "# ",
        head="# a\n",
    ),
    held(
        "socket",
        "import socket\nclass B:\n    s = socket.socket()\n    s.close()\nG = B",
        "# ",
        "# ",
        head="# a\n",
    ),
    held("connection", "import sqlite3\nG = sqlite3.connect(':memory:')", "# ", "# ", head="# a\n"),
    Row(
        "computed module",
        "import importlib\ndef task(name):\n    return importlib.import_module('plug' + name)\n# a\n",
        "# a",
        "# b",
    ),
]

ROWS += [
    held(
        "attribute of a subclass of ndarray",
        "class Q(np.ndarray):\n    pass\nG = np.zeros(3).view(Q)\nG.unit = 'm'",
        "= 'm'",
        "= 'km'",
        head=NP,
    ),
    held(
        "method of a subclass of a masked array",
        "class Q(np.ma.MaskedArray):\n    def q(self):\n        return 5\nG = np.ma.array([1]).view(Q)",
        "return 5",
        "return 6",
        head=NP,
    ),
    held(
        "attribute of a masked array",
        "G = np.ma.array([1])\nG.unit = 'm'",
        "= 'm'",
        "= 'km'",
        head=NP,
    ),
    held(
        "metadata of a subclass of a frame",
        "class Q(pd.DataFrame):\n    _metadata = ['unit']\nG = Q({'a': [1]})\nG.unit = 'm'",
        "= 'm'",
        "= 'km'",
        head=PD,
    ),
    held(
        "metadata of a subclass of a series",
        "class Q(pd.Series):\n    _metadata = ['_unit']\nG = Q([1])\nG._unit = 'm'",
        "= 'm'",
        "= 'km'",
        head=PD,
    ),
    held(
        "flags of a frame",
        "G = pd.DataFrame({'a': [1]})\nG.flags.allows_duplicate_labels = True",
        "= True",
        "= False",
        head=PD,
    ),
    held(
        "method of a seeded generator", "import random\nG = random.Random(3).random", "(3)", "(4)"
    ),
    held(
        "method of a seeded numpy state", "G = np.random.RandomState(3).rand", "(3)", "(4)", head=NP
    ),
    value("compiled function", "[np.random.normal]", "[np.random.uniform]", NP),
    value(
        "compiled function of pandas",
        "{infer_dtype: 1}",
        "{is_string_dtype: 1}",
        "from pandas.api.types import infer_dtype, is_string_dtype",
    ),
    Row(
        "base of an exception",
        "class E(Exception):\n    pass\ndef task():\n    raise E\n",
        "(Exception)",
        "(ValueError)",
    ),
]
COSMETIC += [
    Row(
        "functions that share a random state",
        "import random\nfrom random import choice, gauss\nrandom.random()\nG = [random.uniform]\ndef task():\n    return choice, gauss(), G  # one\n",
        "# one",
        "# two",
    ),
    Row(
        "numpy functions that share a random state",
        "import numpy as np\nfrom numpy.random import normal\nnp.random.random()\nG = {'a': np.random.rand, 'b': np.random.mtrand._rand}\ndef task():\n    return normal(), G  # one\n",
        "# one",
        "# two",
    ),
    Row(
        "compiled functions",
        "from pandas.api.types import infer_dtype\nG = {infer_dtype}\ndef task(x):\n    return infer_dtype(x), G  # one\n",
        "# one",
        "# two",
    ),
    held(
        "accessors of a series", "G = pd.Series(['a'])\nG.str.len()", "# ", "# ", head=PD + "# a\n"
    ),
]
