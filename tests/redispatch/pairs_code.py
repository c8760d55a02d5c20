# ruff: noqa: E501 - texts of programs
# fmt: off
"""Edits of code: what a task reaches counts, and nothing else does."""

from __future__ import annotations

from tests.redispatch.kit import Pair, pair

BASE = '''
from .helpers import normalise
from . import helpers
import functools

FACTOR = 2
TABLE = {"low": 0, "high": 10}
UNUSED = 1
API_TOKEN = "old-secret-value"

@ct.electron
def load(n):
    """Some numbers."""
    return list(range(n))

@ct.electron
def scale(xs, k=FACTOR):
    return [x * FACTOR + TABLE["low"] for x in xs]

@ct.electron
def norm(xs):
    return [normalise(x) for x in xs]

@ct.electron
def total(xs):
    return sum(xs)

@ct.lattice
def wf(n=4):
    return total(norm(scale(load(n))))
'''
HELPERS = '''
DEPTH = 3

def inner(x):
    return x + 1

def normalise(x):
    return inner(x) - 1

def unrelated(x):
    return x
'''
FILES = {"main": BASE, "helpers": HELPERS}
ALL_SAME = "load SAME\n scale SAME\n norm SAME\n total SAME"

CODE = [
    pair("nothing", FILES, [], ALL_SAME),
    pair("comments", FILES, [("return sum(xs)", "# adds\n    return sum(xs)  # all")], ALL_SAME),
    pair("docstring", FILES, [('"""Some numbers."""', '"""Other words."""')], ALL_SAME),
    pair("docstring_removed", FILES, [('    """Some numbers."""\n', "")], ALL_SAME),
    pair("annotations", FILES, [("def total(xs)", "def total(xs: list) -> int")], ALL_SAME),
    pair("layout", FILES, [("return sum(xs)", "return (\n        sum(\n xs))")], ALL_SAME),
    pair("moved", FILES, [("FACTOR = 2", "\n" * 40 + "FACTOR = 2")], ALL_SAME),
    pair("unused_global", FILES, [("UNUSED = 1", "UNUSED = 2")], ALL_SAME),
    pair("unused_helper", FILES, [("helpers", "return x\n", "return x * 3\n")], ALL_SAME),
    pair("helper_comment", FILES, [("helpers", "return x + 1", "return x + 1  # one")], ALL_SAME),
    pair("lattice_comment", FILES, [("    return total(norm", "    # chain\n    return total(norm")], ALL_SAME),
    pair("lattice_locals", FILES, [("    return total(norm(scale(load(n))))", "    a = load(n)\n    b = scale(a)\n    return total(norm(b))")], ALL_SAME),
    pair("body", FILES, [("return sum(xs)", "return sum(xs) + 1")],
         "load SAME\n scale SAME\n norm SAME\n total BODY body of the task changed"),
    pair("body_first", FILES, [("list(range(n))", "list(range(n + 1))")],
         "load BODY\n scale UPSTREAM argument xs changed: result of load() has another value\n norm UPSTREAM result of scale()\n total UPSTREAM result of norm()"),
    pair("body_equal_output", FILES, [("list(range(n))", "[i for i in range(n)]")],
         "load BODY\n scale SAME_VALUE same value although load() ran again\n norm SAME\n total SAME"),
    pair("helper", FILES, [("helpers", "inner(x) - 1", "inner(x) - 2")],
         "load SAME\n scale SAME\n norm HELPER helper normalise() changed\n total UPSTREAM result of norm()"),
    pair("helper_of_helper", FILES, [("helpers", "return x + 1", "return x + 2")],
         "load SAME\n scale SAME\n norm HELPER helper inner() changed\n total UPSTREAM result of norm()"),
    pair("helper_equal_output", FILES, [("helpers", "return x + 1", "return 1 + x")],
         "load SAME\n scale SAME\n norm HELPER helper inner() changed\n total SAME_VALUE although norm() ran again"),
    pair("global_value", FILES, [("FACTOR = 2", "FACTOR = 3"), ("k=FACTOR", "k=2")],
         "load SAME\n scale GLOBAL global FACTOR changed: 2 → 3\n norm UPSTREAM\n total UPSTREAM"),
    pair("global_dict", FILES, [('"low": 0', '"low": 5')],
         "load SAME\n scale GLOBAL global TABLE changed\n norm UPSTREAM\n total UPSTREAM"),
    pair("secret_global", {**FILES, "main": BASE.replace("return sum(xs)", "return sum(xs) + len(API_TOKEN)")},
         [("old-secret-value", "new-secret-values")],
         "load SAME\n scale SAME\n norm SAME\n total GLOBAL global API_TOKEN changed"),
    pair("default", {"main": "@ct.electron\ndef f(x, k=2):\n    return x * k\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n"},
         [("k=2", "k=5")], "f DEFAULT default of k changed: 2 → 5"),
    pair("keyword_default", "@ct.electron\ndef f(x, *, k=2):\n    return x * k\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("k=2", "k=5")], "f DEFAULT default of k changed: 2 → 5"),
    pair("closure_value", "def make(k):\n    @ct.electron\n    def f(x):\n        return x * k\n    return f\nf = make(2)\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("make(2)", "make(3)")], "f CLOSURE closure value k changed: 2 → 3"),
    pair("closure_function", "def twice(x):\n    return 2 * x\ndef make(g):\n    @ct.electron\n    def f(x):\n        return g(x)\n    return f\nf = make(twice)\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("return 2 * x", "return 3 * x")], "f HELPER helper twice() changed"),
    pair("decorator_body", "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def w(*a):\n        return g(*a) + 1\n    return w\n@ct.electron\n@deco\ndef f(x):\n    return x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("g(*a) + 1", "g(*a) + 2")], "f DECORATOR decorator deco() changed"),
    pair("decorator_argument", "import functools\ndef times(n):\n    def deco(g):\n        @functools.wraps(g)\n        def w(*a):\n            return g(*a) * n\n        return w\n    return deco\n@ct.electron\n@times(2)\ndef f(x):\n    return x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("@times(2)", "@times(4)")], "f DECORATOR decorator times"),
    pair("decorated_body", "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def w(*a):\n        return g(*a) + 1\n    return w\n@ct.electron\n@deco\ndef f(x):\n    return x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("    return x\n\n@ct", "    return x * 2\n\n@ct")], "f BODY"),
    pair("partial_argument", "import functools\ndef power(x, k):\n    return x ** k\nf = ct.electron(functools.partial(power, k=2), name='f')\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("k=2", "k=3")], "f DECORATOR"),
    pair("partial_body", "import functools\ndef power(x, k):\n    return x ** k\nf = ct.electron(functools.partial(power, k=2), name='f')\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("x ** k", "x ** k + 1")], "f BODY"),
    pair("lambda_body", "f = ct.electron(lambda x: x + 1, name='f')\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("x + 1", "x + 2")], "f BODY"),
    pair("lambda_same", "f = ct.electron(lambda x: x + 1, name='f')\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("f = ct", "\n\n\nf = ct")], "f SAME"),
    pair("nested_function", "@ct.electron\ndef f(x):\n    def g(y):\n        return y + 1\n    return g(x)\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("y + 1", "y + 2")], "f BODY"),
    pair("class_used", "class Tool:\n    def run(self, x):\n        return x + 1\n@ct.electron\ndef f(x):\n    return Tool().run(x)\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("x + 1", "x + 2")], "f CLASS class Tool changed"),
    pair("base_class", "class Base:\n    def run(self, x):\n        return x + 1\nclass Tool(Base):\n    pass\n@ct.electron\ndef f(x):\n    return Tool().run(x)\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("x + 1", "x + 2")], "f CLASS"),
    pair("dataclass_default", "import dataclasses\n@dataclasses.dataclass\nclass P:\n    k: int = 2\n@ct.electron\ndef f(x):\n    return P().k * x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("k: int = 2", "k: int = 4")], "f CLASS class P changed"),
    pair("enum_member", "import enum\nclass Mode(enum.Enum):\n    A = 1\n    B = 2\n@ct.electron\ndef f(x):\n    return Mode.A.value + x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("A = 1", "A = 7")], "f CLASS class Mode"),
    pair("method_task", "class Model:\n    k = 2\n    @ct.electron\n    def fit(self, x):\n        return self.k * x\nm = Model()\n\n@ct.lattice\ndef wf(x=3):\n    return m.fit(x)\n",
         [("return self.k * x", "return self.k * x + 1")], "fit BODY"),
    pair("method_task_attribute", "class Model:\n    k = 2\n    @ct.electron\n    def fit(self, x):\n        return self.k * x\nm = Model()\n\n@ct.lattice\ndef wf(x=3):\n    return m.fit(x)\n",
         [("k = 2", "k = 3")], "fit CLASS_OF_ARGUMENT class Model"),
    pair("module_attribute", {"main": "from . import helpers\n@ct.electron\ndef f(x):\n    return x + helpers.DEPTH\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", "helpers": HELPERS},
         [("helpers", "DEPTH = 3", "DEPTH = 4")], "f GLOBAL DEPTH changed: 3 → 4"),
    pair("module_elsewhere", {"main": "from . import helpers\n@ct.electron\ndef f(x):\n    return x + helpers.DEPTH\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", "helpers": HELPERS},
         [("helpers", "inner(x) - 1", "inner(x) - 2")], "f SAME"),
    pair("local_import", {"main": "@ct.electron\ndef f(x):\n    from .helpers import normalise\n    return normalise(x)\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", "helpers": HELPERS},
         [("helpers", "inner(x) - 1", "inner(x) - 2")], "f HELPER helper normalise() changed"),
    pair("recursion", "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - 1)\n@ct.electron\ndef f(x):\n    return even(x)\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("return n != 0 and even(n - 1)", "return n > 0 and even(n - 1)")], "f HELPER helper odd() changed"),
    pair("callable_instance", "class Add:\n    def __init__(self, k):\n        self.k = k\n    def __call__(self, x):\n        return x + self.k\nf = ct.electron(Add(2), name='f')\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("Add(2)", "Add(3)")], "f "  "BODY"),
    pair("callable_instance_code", "class Add:\n    def __init__(self, k):\n        self.k = k\n    def __call__(self, x):\n        return x + self.k\nf = ct.electron(Add(2), name='f')\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("x + self.k", "x - self.k")], "f CLASS"),
    pair("renamed_task", FILES, [("def total", "def add_up"), ("total(norm", "add_up(norm")],
         "load SAME\n scale SAME\n norm SAME\n add_up SAME"),
    pair("renamed_and_edited", FILES, [("def total", "def add_up"), ("total(norm", "add_up(norm"), ("return sum(xs)", "return sum(xs) * 2")],
         "load SAME\n scale SAME\n norm SAME\n add_up NEW_TASK no task add_up"),
    pair("renamed_helper", {"main": BASE.replace("normalise", "inner"), "helpers": HELPERS}, [("from .helpers import inner", "from .helpers import inner as helper_inner"), ("[inner(x)", "[helper_inner(x)")],
         "load SAME\n scale SAME\n norm BODY\n total SAME_VALUE"),
    pair("task_moved_to_module", FILES, {"main": BASE.replace("@ct.electron\ndef total(xs):\n    return sum(xs)\n", "from .helpers import total\n"), "helpers": "import chelate as ct\n" + HELPERS + "\n@ct.electron\ndef total(xs):\n    return sum(xs)\n"}, ALL_SAME),
    pair("version_same", "@ct.electron(version='1')\ndef f(x):\n    return x + 1\n\nRESULT = 4\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("x + 1", "1 + x")], "f SAME"),
    pair("version_changed", "@ct.electron(version='1')\ndef f(x):\n    return x + 1\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("version='1'", "version='2'")], "f VERSION version changed: 1 → 2"),
    pair("depends_on_function", "def table():\n    return 1\n@ct.electron(depends_on=[table])\ndef f(x):\n    return getattr(__import__('depends_on_function.main').main, 'tab' + 'le')() + x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("return 1", "return 2")], "f DEPENDS_ON dependency table changed"),
    pair("depends_on_file", "from pathlib import Path\nimport os\np = Path(os.environ['PAIRS_FOLDER'], 'depends.txt')\np.write_text('one')\n@ct.electron(depends_on=[ct.File(str(p))])\ndef f(x):\n    return x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("'one'", "'two'")], "f DEPENDS_ON depends.txt"),
    pair("ignored_argument", "@ct.electron(ignore=['verbose'])\ndef f(x, verbose):\n    return x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x, 1)\n",
         [("f(x, 1)", "f(x, 2)")], "f SAME"),
    pair("ignored_default", "@ct.electron(ignore=['verbose'])\ndef f(x, verbose=0):\n    return x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("verbose=0", "verbose=1")], "f SAME"),
    pair("opted_out", "@ct.electron(reuse=False)\ndef f(x):\n    return x + 1\n@ct.electron\ndef g(x):\n    return x * 2\n\n@ct.lattice\ndef wf(x=3):\n    return g(f(x))\n",
         [], "f OPTED_OUT reuse=False\n g SAME_VALUE although f() ran again"),
    pair("opted_out_random", "import uuid\n@ct.electron(reuse=False)\ndef f(x):\n    return uuid.uuid4().hex\n@ct.electron\ndef g(x):\n    return len(x)\n\n@ct.lattice\ndef wf(x=3):\n    return g(f(x))\n",
         [], "f OPTED_OUT\n g UPSTREAM result of f()"),
    pair("reuse_always", "@ct.electron(reuse='always')\ndef f(x):\n    return x + 1\n\nRESULT = 4\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("x + 1", "x + 2"), ("wf(x=3)", "wf(x=9)")], "f ALWAYS"),
    pair("reuse_always_below", "@ct.electron\ndef f(x):\n    return x\n@ct.electron(reuse='always')\ndef g(x):\n    return x + 1\n\nRESULT = 4\n@ct.lattice\ndef wf(x=3):\n    return g(f(x))\n",
         [("    return x\n", "    return x * 5\n")], "f BODY\n g ALWAYS"),
    pair("lattice_reuse_off", "@ct.electron\ndef f(x):\n    return x\n\n@ct.lattice(reuse=False)\ndef wf(x=3):\n    return f(x)\n",
         [], "f OPTED_OUT"),
    pair("resources_changed", "@ct.electron\ndef f(x):\n    return x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("@ct.electron\n", "@ct.electron(resources=ct.Resources(cpus=2), retries=3, timeout=60)\n")], "f SAME"),
    pair("executor_changed", "@ct.electron\ndef f(x):\n    return x\n\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n",
         [("@ct.electron\n", "@ct.electron(executor=ct.LocalExecutor(workers=1))\n")], "f SAME"),
]

CALLED = "def h(x):\n    return x + 1\n"
KINDS = "import collections, dataclasses, functools, importlib, inspect, itertools, sys, types, typing, weakref\n"


def held(name: str, given: str, use: str, code: str = "GLOBAL", old: str = "x + 1", new: str = "x + 2") -> Pair:
    """A task that uses a global ``G`` that holds something somehow."""
    text = f"{KINDS}{CALLED}{given}\n@ct.electron\ndef f(x):\n    return {use}\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n"
    return pair(f"held_{name}", text, [(old, new)], f"f {code}")


CODE += [
    held("deque", "G = collections.deque([h])", "G[0](x)"),
    held("ordered_dict", "G = collections.OrderedDict(a=h)", "G['a'](x)"),
    held("default_factory", "G = collections.defaultdict(lambda: h(1))", "G[x]", "HELPER helper h() changed"),
    held("named_tuple", "G = collections.namedtuple('P', 'a')(h)", "G.a(x)"),
    held("namespace", "G = types.SimpleNamespace(a=h)", "G.a(x)"),
    held("proxy", "G = types.MappingProxyType({1: h})", "G[1](x)"),
    held("key", "G = {h: 1}", "[k(x) for k in G]"),
    held("late", "G = [*range(3000), h]", "G[-1](x)"),
    held("deep", "G = [[[[[[[h]]]]]]]", "G[0][0][0][0][0][0][0](x)"),
    held("subclass", "class D(dict):\n    pass\nG = D(a=h)", "G['a'](x)"),
    held("instance_in_deque", "class D:\n    def q(self):\n        return 5\nG = collections.deque([D()])", "G[0].q() + x", "CLASS class D changed", "return 5", "return 6"),
    held("count", "G = itertools.count(1)", "x + next(itertools.islice(iter([1]), 1)) if G else x", "GLOBAL", "count(1)", "count(2)"),
    held("attribute", "h.k = 5", "h.k + x", "HELPER helper h() changed", "h.k = 5", "h.k = 6"),
    held("marked", "def mark(k):\n    def deco(g):\n        g.k = k\n        return g\n    return deco\n@mark(5)\ndef j(x):\n    return x", "j.k + x", "HELPER helper j() changed", "mark(5)", "mark(6)"),
    held("metadata", "@dataclasses.dataclass\nclass P:\n    x: int = dataclasses.field(default=1, metadata={'k': 5})", "dataclasses.fields(P)[0].metadata['k'] + x", "CLASS class P changed", "'k': 5", "'k': 6"),
    held("hints", "def j(x: int):\n    return x", "str(typing.get_type_hints(j))", "HELPER helper j() changed", "x: int", "x: str"),
    held("hints_not_read", "def j(x: int):\n    return x", "j(x)", "SAME", "x: int", "x: str"),
    held("docstring_read", "def j(x):\n    'one'", "j.__doc__", "HELPER helper j() changed", "'one'", "'two'"),
    held("name_read", "def one(x):\n    return x\nG = [one]", "G[0].__name__", "GLOBAL", "one", "two"),
    held("enum_property", "import enum\nclass E(enum.Enum):\n    X = 1\n    @types.DynamicClassAttribute\n    def q(self):\n        return 5", "E.X.q + x", "CLASS class E changed", "return 5", "return 6"),
    held("virtual", "import abc\nclass I(abc.ABC):\n    pass\nclass A:\n    pass\nI.register(A)", "isinstance(A(), I)", "CLASS", "I.register(A)", ""),
    held("shared", "a = []\nG = [a, a]", "G[0].append(x) or G", "GLOBAL", "[a, a]", "[a, []]"),
    held("iterator_unused", "G = iter([1, 2])", "x", "SAME", "iter([1, 2])", "iter([1, 3])"),
    pair("held_iterator_used", {"main": "from . import helpers\n@ct.electron\ndef f(x):\n    return x if helpers.G else 0\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", "helpers": "G = (i for i in [1, 2])\n"}, [], "f GLOBAL global helpers.G cannot be compared: an iterator"),
    pair("held_globals", {"main": "from . import helpers\n@ct.electron\ndef f(x):\n    return helpers.k(x)\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", "helpers": CALLED + "def k(x):\n    return globals()['h'](x)\n"}, [("helpers", "x + 1", "x + 2")], "f HELPER helper h() changed"),
    pair("held_eval", {"main": "from . import helpers\n@ct.electron\ndef f(x):\n    return helpers.k(x)\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", "helpers": CALLED + "def k(x):\n    return eval('h(1)') + x\n"}, [("helpers", "x + 1", "x + 2")], "f HELPER helper h() changed"),
    pair("named_import", {"main": "import importlib\n@ct.electron\ndef f(x):\n    return importlib.import_module('named_import.helpers').h(x)\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", "helpers": CALLED}, [("helpers", "x + 1", "x + 2")], "f HELPER helper h() changed"),
    pair("late_package", {"main": "@ct.electron\ndef f(x):\n    from . import helpers\n    return helpers.h(x)\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", "helpers": "from .more import inner\ndef h(x):\n    return inner(x)\n", "more": "def inner(x):\n    return x + 1\n"}, [("more", "x + 1", "x + 2")], "f HELPER"),
    pair("other_quote", "from shlex import quote\n@ct.electron\ndef f(x):\n    return quote(str(x))\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", [("from shlex", "from urllib.parse")], "f HELPER helper quote() changed"),
]
CODE += [
    pair("random_functions", "from random import choice, random\n@ct.electron\ndef f(x):\n    return choice([x]) + int(random())\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", [], "f SAME"),
    pair("decorator_helper", "import functools\ndef log(x):\n    return x\ndef deco(g):\n    @functools.wraps(g)\n    def w(*a):\n        return log(g(*a))\n    return w\n@ct.electron\n@deco\ndef f(x):\n    return x + 1\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", [("    return x\ndef", "    return -x\ndef")], "f HELPER helper log() changed"),
    pair("decorator_global", "import functools\nN = 3\ndef deco(g):\n    @functools.wraps(g)\n    def w(*a):\n        return g(*a) * N\n    return w\n@ct.electron\n@deco\ndef f(x):\n    return x + 1\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", [("N = 3", "N = 4")], "f GLOBAL global N changed: 3 → 4"),
    pair("decorator_added", "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def w(*a):\n        return g(*a) * 2\n    return w\n@ct.electron\ndef f(x):\n    return x + 1\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", [("@ct.electron\n", "@ct.electron\n@deco\n")], "f DECORATOR decorator deco() is new"),
    pair("exception_base", "class E(Exception):\n    pass\n@ct.electron\ndef f(x):\n    try:\n        raise E\n    except ValueError:\n        return x\n    except Exception:\n        return -x\n@ct.lattice\ndef wf(x=3):\n    return f(x)\n", [("E(Exception)", "E(ValueError)")], "f CLASS class E changed"),
]
