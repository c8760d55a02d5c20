# ruff: noqa: E501 - texts of programs
# fmt: off
"""Arguments and results of many types: what is equal, what is not, and whose class changed."""

from __future__ import annotations

from tests.redispatch.kit import pair

TASKS = '''
import dataclasses, enum, datetime, decimal, pathlib, os, functools
@ct.electron
def show(x):
    return repr(x)
@ct.electron
def apply(x):
    return x.value()
@ct.electron
def call(f, x):
    return f(x)
@ct.electron
def length(x):
    return len(x)
'''
POINT = '''
@dataclasses.dataclass
class Point:
    x: int
    y: int = 0
    def value(self):
        return self.x + self.y
'''
PLAIN = '''
class Model:
    def __init__(self, k):
        self.k = k
    def value(self):
        return self.k + 1
    def __repr__(self):
        return f"Model({self.k})"
'''
SLOTS = PLAIN.replace("class Model:\n", "class Model:\n    __slots__ = ('k',)\n")


def wf(body: str, signature: str = "n=3") -> str:
    return f"\n@ct.lattice\ndef wf({signature}):\n    {body}\n"


VALUES = [
    pair("dataclass_same", TASKS + POINT + wf("return apply(Point(n))"), [("Point(n)", "Point(n, 0)")], "apply SAME"),
    pair("dataclass_field", TASKS + POINT + wf("return apply(Point(n))"), [("Point(n)", "Point(n, 1)")], "apply ARGUMENT argument x"),
    pair("dataclass_method", TASKS + POINT + wf("return apply(Point(n))"), [("self.x + self.y", "self.x - self.y + 1")],
         "apply CLASS_OF_ARGUMENT argument x: class Point changed"),
    pair("dataclass_comment", TASKS + POINT + wf("return apply(Point(n))"), [("    def value", "    # sums\n    def value")], "apply SAME"),
    pair("instance_method", TASKS + PLAIN + wf("return apply(Model(n))"), [("self.k + 1", "self.k + 2")], "apply CLASS_OF_ARGUMENT class Model changed"),
    pair("instance_field", TASKS + PLAIN + wf("return apply(Model(n))"), [("Model(n)", "Model(n + 1)")], "apply ARGUMENT"),
    pair("instance_slots", TASKS + SLOTS + wf("return apply(Model(n))"), [("self.k + 1", "self.k + 2")], "apply CLASS_OF_ARGUMENT"),
    pair("instance_helper", TASKS + "def bump(k):\n    return k + 1\n" + PLAIN.replace("self.k + 1", "bump(self.k)") + wf("return apply(Model(n))"),
         [("return k + 1", "return k + 5")], "apply CLASS_OF_ARGUMENT class Model"),
    pair("instance_base", TASKS + PLAIN + "class Child(Model):\n    pass\n" + wf("return apply(Child(n))"), [("self.k + 1", "self.k + 2")], "apply CLASS_OF_ARGUMENT class Child"),
    pair("instance_in_list", TASKS + PLAIN + "@ct.electron\ndef each(xs):\n    return [x.value() for x in xs]\n" + wf("return each([Model(n), 1][:1])"),
         [("self.k + 1", "self.k + 2")], "each CLASS_OF_ARGUMENT class Model"),
    pair("instance_in_dict", TASKS + PLAIN + "@ct.electron\ndef each(xs):\n    return [x.value() for x in xs.values()]\n" + wf("return each({'m': Model(n)})"),
         [("self.k + 1", "self.k + 2")], "each CLASS_OF_ARGUMENT class Model"),
    pair("instance_returned", TASKS + PLAIN + "@ct.electron\ndef make(k):\n    return Model(k)\n" + wf("return apply(make(n))"),
         [("self.k + 1", "self.k + 2")], "make CLASS class Model changed\n apply CLASS_OF_ARGUMENT class Model"),
    # No task's code names the class: the value alone brings it from task to task.
    pair("instance_passed_on", TASKS + PLAIN + "@ct.electron\ndef same(x):\n    return x\n" + wf("return apply(same(Model(n)))"),
         [("self.k + 1", "self.k + 2")], "same CLASS_OF_ARGUMENT class Model\n apply CLASS_OF_ARGUMENT class Model"),
    pair("instance_attribute", TASKS + PLAIN + "@ct.electron\ndef same(x):\n    return x\n" + wf("return show(same(Model(n)).k)"),
         [("self.k + 1", "self.k + 2")], "same CLASS_OF_ARGUMENT class Model\n show CLASS_OF_ARGUMENT"),
    pair("instance_other_class", TASKS + PLAIN + wf("return apply(Model(n))") + "class Other:\n    k = 1\n", [("    k = 1", "    k = 2")], "apply SAME"),
    pair("enum_method", TASKS + "class Color(enum.Enum):\n    RED = 1\n    def label(self):\n        return 'a'\n@ct.electron\ndef label(c):\n    return c.label()\n" + wf("return label(Color.RED)"),
         [("'a'", "'b'")], "label CLASS_OF_ARGUMENT class Color"),
    pair("enum_value", TASKS + "class Color(enum.Enum):\n    RED = 1\n    BLUE = 2\n" + wf("return show(Color.RED)"), [("Color.RED", "Color.BLUE")], "show ARGUMENT"),
    pair("namedtuple_method", TASKS + "from typing import NamedTuple\nclass P(NamedTuple):\n    k: int\n    def value(self):\n        return self.k\n" + wf("return apply(P(n))"),
         [("return self.k", "return self.k * 2")], "apply CLASS_OF_ARGUMENT class P"),
    pair("subclass_of_dict", TASKS + "class D(dict):\n    def value(self):\n        return 1\n" + wf("return apply(D(a=n))"), [("return 1", "return 2")], "apply CLASS_OF_ARGUMENT class D"),
    pair("class_argument", TASKS + PLAIN + wf("return call(len, [n])") , [("call(len, [n])", "call(sum, [n])")], "call ARGUMENT argument f"),
    pair("class_as_argument", TASKS + PLAIN + "@ct.electron\ndef make(kind, k):\n    return kind(k).value()\n" + wf("return make(Model, n)"),
         [("self.k + 1", "self.k + 2")], "make CLASS_OF_ARGUMENT argument kind: class Model changed"),
    pair("function_argument", TASKS + "def twice(x):\n    return 2 * x\n" + wf("return call(twice, n)"), [("return 2 * x", "return 3 * x")], "call ARGUMENT argument f: twice() changed"),
    pair("function_argument_same", TASKS + "def twice(x):\n    return 2 * x\n" + wf("return call(twice, n)"), [("def twice", "# x\ndef twice")], "call SAME"),
    pair("lambda_argument", TASKS + wf("return call(lambda x: x + 1, n)"), [("x + 1", "x + 2")], "call ARGUMENT"),
    pair("lambda_over_input", TASKS + wf("return call(lambda x: x + n, 1)"), [("n=3", "n=4")], "call ARGUMENT"),
    pair("lambda_over_same_input", TASKS + wf("return call(lambda x: x + n, 1)"), [("@ct.lattice", "\n# lattice\n@ct.lattice")], "call SAME"),
    pair("partial_over_input", TASKS + wf("return call(functools.partial(pow, n), 2)"), [("n=3", "n=4")], "call ARGUMENT"),
    pair("bound_method_argument", TASKS + PLAIN.replace("def value(self)", "def value(self, x=0)") + wf("return call(Model(n).value, 1)"), [("self.k + 1", "self.k + 2")], "call CLASS_OF_ARGUMENT"),
    pair("datetime_zone", TASKS + wf("return show(datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc))"), [("(2026, 1, 1, tz", "(2026, 1, 2, tz")], "show ARGUMENT"),
    pair("decimal_places", TASKS + wf("return show(decimal.Decimal('1.0'))"), [("'1.0'", "'1.00'")], "show ARGUMENT"),
    pair("path_text", TASKS + wf("return show(pathlib.PurePosixPath('/a'))"), [("'/a'", "'/b'")], "show ARGUMENT"),
    pair("range_for_list", TASKS + wf("return show(range(3))"), [("range(3)", "[0, 1, 2]")], "show ARGUMENT"),
    pair("set_of_texts", TASKS + wf("return length({'a', 'b', 'c', 'd'})"), [], "length SAME"),
    pair("set_inside", TASKS + "@ct.electron\ndef tag(n):\n    return {'s': frozenset(('x', 'y', 'z', str(n)))}\n" + wf("return length(tag(n))"), [("frozenset((", "frozenset(('x', ")], "tag BODY\n length SAME_VALUE"),
    pair("file_content", TASKS + "p = pathlib.Path(os.environ['PAIRS_FOLDER'], 'data.txt')\np.write_text('1')\n@ct.electron\ndef read(f):\n    return open(f).read()\n" + wf("return read(ct.File(str(p)))"),
         [("write_text('1')", "write_text('2')")], "read FILE content of"),
    pair("file_untouched", TASKS + "p = pathlib.Path(os.environ['PAIRS_FOLDER'], 'same.txt')\np.write_text('1')\n@ct.electron\ndef read(f):\n    return open(f).read()\n" + wf("return read(ct.File(str(p)))"),
         [], "read SAME"),
    pair("secret_argument", TASKS + "@ct.electron\ndef login(password):\n    return len(password)\n" + wf("return login('hunter2')"), [("hunter2", "hunter22")], "login ARGUMENT argument password has another value"),
    pair("secret_in_dict", TASKS + wf("return length({'api_key': 'abc'})"), [("'abc'", "'abd'")], "length ARGUMENT argument x has another value"),
    pair("unstable_argument", TASKS + "class Own:\n    def __fingerprint__(self):\n        return None\n    def __len__(self):\n        return 1\n" + wf("return length(Own())"), [],
         "length UNSTABLE_ARGUMENT argument x"),
    pair("unstable_result", TASKS + "class Own:\n    def __fingerprint__(self):\n        return None\n    def __len__(self):\n        return 1\n@ct.electron(reuse=False)\ndef make(n):\n    return Own()\n" + wf("return length(make(n))"), [],
         "make OPTED_OUT\n length UNSTABLE_ARGUMENT result of make() has no stable fingerprint"),
    pair("unstable_result_reused", TASKS + "class Own:\n    def __fingerprint__(self):\n        return None\n    def __len__(self):\n        return 1\n@ct.electron\ndef make(n):\n    return Own()\n" + wf("return length(make(n))"), [],
         "make SAME\n length SAME"),
    pair("own_fingerprint", TASKS + "class Own:\n    def __init__(self, k, note):\n        self.k, self.note = k, note\n    def __fingerprint__(self):\n        return self.k\n    def __len__(self):\n        return self.k\n" + wf("return length(Own(n, 'x'))"),
         [("'x'", "'y'")], "length SAME"),
    pair("task_argument", TASKS + "@ct.electron\ndef twice(x):\n    return 2 * x\n" + wf("return call(twice.function, n)"), [("2 * x", "3 * x")], "call ARGUMENT"),
    pair("large_value", TASKS + "@ct.electron\ndef make(n):\n    return bytes(200_000 + n)\n" + wf("return length(make(n))"), [("bytes(200_000 + n)", "b'\\0' * (200_000 + n)")],
         "make BODY\n length SAME_VALUE"),
    pair("none_result", TASKS + "@ct.electron\ndef nothing(n):\n    return None\n" + wf("return show(nothing(n))"), [("n=3", "n=4")], "nothing ARGUMENT\n show SAME_VALUE"),
]
LIBRARIES = [
    pair("numpy_value", TASKS + "import numpy as np\n@ct.electron\ndef add(a):\n    return float(a.sum())\n" + wf("return add(np.arange(4.0))"), [("arange(4.0)", "arange(5.0)")], "add ARGUMENT", pythons=False),
    pair("numpy_order", TASKS + "import numpy as np\n@ct.electron\ndef add(a):\n    return float(a.sum())\n" + wf("return add(np.arange(6.0).reshape(2, 3))"), [("reshape(2, 3)", "reshape(2, 3).copy(order='F')")], "add SAME", pythons=False),
    pair("numpy_transpose", TASKS + "import numpy as np\n@ct.electron\ndef first(a):\n    return float(a[0, 1])\n" + wf("return first(np.arange(4.0).reshape(2, 2))"), [("reshape(2, 2)", "reshape(2, 2).T")], "first ARGUMENT", pythons=False),
    pair("numpy_type", TASKS + "import numpy as np\n@ct.electron\ndef name(a):\n    return str(a.dtype)\n" + wf("return name(np.zeros(3))"), [("zeros(3)", "zeros(3, 'i8')")], "name ARGUMENT", pythons=False),
    pair("numpy_result", TASKS + "import numpy as np\n@ct.electron\ndef make(n):\n    return np.full(n, 2.0)\n@ct.electron\ndef add(a):\n    return float(a.sum())\n" + wf("return add(make(n))"), [("np.full(n, 2.0)", "np.ones(n) * 2")], "make BODY\n add SAME_VALUE", pythons=False),
    pair("pandas_column", TASKS + "import pandas as pd\n@ct.electron\ndef cols(d):\n    return list(d.columns)\n" + wf("return cols(pd.DataFrame({'a': [1], 'b': [2]}))"), [("'a': [1]", "'c': [1]")], "cols ARGUMENT", pythons=False),
    pair("pandas_result", TASKS + "import pandas as pd\n@ct.electron\ndef make(n):\n    return pd.DataFrame({'a': range(n)})\n@ct.electron\ndef add(d):\n    return int(d.a.sum())\n" + wf("return add(make(n))"), [("range(n)}", "list(range(n))}")], "make BODY\n add SAME_VALUE", pythons=False),
    pair("pydantic_field", TASKS + "import pydantic\nclass P(pydantic.BaseModel):\n    k: int = 1\n    def value(self):\n        return self.k\n" + wf("return apply(P(k=n))"), [("P(k=n)", "P(k=n + 1)")], "apply ARGUMENT", pythons=False),
    pair("pydantic_method", TASKS + "import pydantic\nclass P(pydantic.BaseModel):\n    k: int = 1\n    def value(self):\n        return self.k\n" + wf("return apply(P(k=n))"), [("return self.k", "return self.k + 1")], "apply CLASS_OF_ARGUMENT class P", pythons=False),
]
