# ruff: noqa: E501 - texts of programs
# fmt: off
"""Edits of the workflow: calls that come, go, move and swap, and arguments put together anew."""

from __future__ import annotations

from tests.redispatch.kit import pair

TASKS = '''
@ct.electron
def load(n):
    return list(range(n))
@ct.electron
def square(x):
    return x * x
@ct.electron
def add(a, b):
    return a + b
@ct.electron
def sub(a, b):
    return a - b
@ct.electron
def total(xs):
    return sum(xs)
@ct.electron
def pairs(n):
    return n, n + 1
@ct.electron
def two(n):
    return n % 10, 7
@ct.electron
def table(n):
    return {"a": n, "b": 5, "c": [1, n]}
@ct.electron
def kind(x):
    return type(x).__name__
'''


def wf(body: str, signature: str = "n=3") -> str:
    return f"\n@ct.lattice\ndef wf({signature}):\n    {body}\n"


def of(first: str, second: str, expected: str, name: str, signature: str = "n=3", later: str = "", **more):
    return pair(name, TASKS + wf(first, signature), TASKS + wf(second, later or signature), expected, **more)


SQUARES = "return total([square(i) for i in range({0})])"

SHAPE = [
    of(SQUARES.format(3), SQUARES.format(5), "square SAME\n square SAME\n square SAME\n square EXTRA_CALL one more call of square()\n square EXTRA_CALL\n total ARGUMENT argument xs holds 5 results of square() instead of 3", "loop_grows"),
    of(SQUARES.format(5), SQUARES.format(3), "square SAME\n square SAME\n square SAME\n total ARGUMENT", "loop_shrinks"),
    of("return total([square(i) for i in (1, 2, 3)])", "return total([square(i) for i in (3, 1, 2)])",
       "square SAME\n square SAME\n square SAME\n total ARGUMENT argument xs is put together differently", "loop_reordered"),
    of("return total([square(i) for i in (1, 2, 3)])", "return total([square(i) for i in (1, 9, 3)])",
       "square SAME\n square ARGUMENT argument x changed: 2 → 9\n square SAME\n total UPSTREAM argument xs changed: result of square()", "loop_value"),
    of("return total([square(i) for i in (1, 2, 3)])", "return total([square(i) for i in (0, 1, 2, 3)])",
       "square EXTRA_CALL\n square SAME\n square SAME\n square SAME\n total ARGUMENT 4 results", "loop_prepended"),
    of("return add(square(n), n)", "return add(square(add(n, 1)), n)",
       "add ARGUMENT\n square ARGUMENT argument x now comes from add()\n add UPSTREAM", "task_inserted"),
    of("return add(square(square(n)), n)", "return add(square(n), n)", "square SAME\n add ARGUMENT argument a comes from another call of square()", "task_removed"),
    of("return add(square(n), 1)", "return add(1, square(n))", "square SAME\n add ARGUMENT", "arguments_swapped"),
    of("return sub(square(n), square(n + 1))", "return sub(square(n + 1), square(n))", "square SAME\n square SAME\n sub ARGUMENT", "results_swapped"),
    of("return add(n, 2)", "return add(b=2, a=n)", "add SAME", "keywords_for_positions"),
    of("return add(a=n, b=2)", "return add(b=2, a=n)", "add SAME", "keywords_reordered"),
    of("return total([square(n), square(n)])", "return total([square(n), square(n), square(n)])",
       "square SAME\n square SAME\n square EXTRA_CALL\n total ARGUMENT", "duplicate_more"),
    of("return add(n, 2)", "return add(n, 4)", "add ARGUMENT argument b changed: 2 → 4", "literal_changed"),
    of("return add(n, 2)", "return add(n, 2.0)", "add ARGUMENT argument b changed: 2 → 2.0", "literal_type"),
    of("return add(n, 1)", "return add(n, True)", "add ARGUMENT argument b changed: 1 → True", "literal_bool"),
    of("return kind([1, 2])", "return kind((1, 2))", "kind ARGUMENT argument x changed: [1, 2] → (1, 2)", "tuple_for_list"),
    of("return kind([square(n), 2])", "return kind((square(n), 2))", "square SAME\n kind ARGUMENT argument x is put together differently", "tuple_for_list_of_results"),
    of("return kind({1: n})", "return kind({'1': n})", "kind ARGUMENT", "key_type"),
    of("return kind({'a': 1, 'b': 2})", "return kind({'b': 2, 'a': 1})", "kind ARGUMENT", "dict_order"),
    of("return kind({'a', 'b', 'c'})", "return kind({'c', 'b', 'a'})", "kind SAME", "set_order"),
    of("return kind(frozenset({'x', 'y', 'z'}))", "return kind(frozenset(('z', 'y', 'x')))", "kind SAME", "frozenset_order"),
    of("return kind(b'a')", "return kind('a')", "kind ARGUMENT", "bytes_text"),
    of("return kind(0.0)", "return kind(-0.0)", "kind ARGUMENT", "negative_zero"),
    of("return kind(float('nan'))", "return kind(float('nan'))", "kind SAME", "nan"),
    of("return kind([1] * 1000)", "return kind([1] * 999 + [2])", "kind ARGUMENT", "long_list"),
    of("return add(n, 2)", "return add(n, 2)", "add ARGUMENT argument a changed: 3 → 4", "input_changed", later="n=4"),
    of("return add(square(n), load(n)[1])", "return add(square(n), load(n)[2])", "square SAME\n load SAME\n add ARGUMENT", "item_changed"),
    of("return add(table(n)['b'], 1)", "return add(table(n + 1)['b'], 1)", "table ARGUMENT\n add SAME_VALUE although table() ran again", "item_equal"),
    of("return total(table(n)['c'])", "return total(table(n + 1)['c'])", "table ARGUMENT\n total UPSTREAM", "item_path_changed"),
    of("return add(table(n)['c'][0], 1)", "return add(table(n + 1)['c'][0], 1)", "table ARGUMENT\n add UPSTREAM", "deep_item"),
    of("a, b = two(n)\n    return add(square(a), square(b))", "a, b = two(n)\n    return add(square(a), square(b))",
       "two ARGUMENT\n square UPSTREAM\n square SAME_VALUE although two() ran again\n add UPSTREAM", "unpacked_one_changed", later="n=5"),
    of("a, b = two(n)\n    return add(square(a), square(b))", "a, b = two(n)\n    return add(square(a), square(b))",
       "two ARGUMENT\n square SAME_VALUE\n square SAME_VALUE\n add SAME", "unpacked_none_changed", later="n=13"),
    of("a, *b = load(n)\n    return add(a, total(b))", "a, *b = load(n + 1)\n    return add(a, total(b))",
       "load ARGUMENT\n total UPSTREAM\n add UPSTREAM", "starred"),
    of("return (square(n) + 1) * 2", "return (square(n) + 1) * 3", "square SAME", "operator_operand"),
    of("return add(square(n) + 1, 0)", "return add(square(n) - 1, 0)", "square SAME\n add ARGUMENT", "operator_kind"),
    of("return add(square(n) * 2, 1)", "return add(2 * square(n), 1)", "square SAME\n add SAME_VALUE", "operator_reflected"),
    of("return [square(n), n]", "return {'r': square(n)}", "square SAME", "returned_shape"),
    of("return square(n)", "return 5", "", "constant_result"),
    of("return square(n)", "return add(square(n), 1)", "square SAME\n add NEW_TASK the earlier dispatch had no task add", "new_task"),
    of("a = square(n)\n    b = load(2)\n    return a", "a = square(n)\n    b = load(2)\n    ct.wait(a, b)\n    return a", "square SAME\n load SAME", "ordering_added"),
    of("return add(square(n), 1) if n > 5 else sub(square(n), 1)", "return add(square(n), 1) if n > 5 else sub(square(n), 1)",
       "square ARGUMENT\n add NEW_TASK", "branch", later="n=8"),
    of("return add(total(load(n)), square(n))", "return add(square(n), total(load(n)))", "square SAME\n load SAME\n total SAME\n add ARGUMENT", "statements_reordered"),
    # Covalent gives 2: a task that gains an input from an existing task keeps its old result.
    of("a = square(n)\n    b = add(2, 0)\n    return b", "a = square(n)\n    b = add(2, a)\n    return b",
       "square SAME\n add ARGUMENT argument b now comes from square()", "input_gained"),
    of("a = square(n)\n    return add(2, a)", "a = square(n)\n    return add(2, 9)", "square SAME\n add SAME", "input_became_equal_literal"),
    of("return add(square(2), square(3))", "return add(square(2), 9)", "square SAME\n add SAME", "result_became_literal"),
    pair("default_given", "@ct.electron\ndef f(x, k=2):\n    return x * k\n" + wf("return f(n)"), "@ct.electron\ndef f(x, k=2):\n    return x * k\n" + wf("return f(n, 2)"), "f ARGUMENT_NEW argument k is new"),
    pair("default_no_longer_given", "@ct.electron\ndef f(x, k=2):\n    return x * k\n" + wf("return f(n, 3)"), "@ct.electron\ndef f(x, k=2):\n    return x * k\n" + wf("return f(n)"), "f ARGUMENT_REMOVED argument k is no longer given"),
    pair("var_arguments", "@ct.electron\ndef f(*xs):\n    return sum(xs)\n" + wf("return f(n, 1)"), "@ct.electron\ndef f(*xs):\n    return sum(xs)\n" + wf("return f(n, 1, 2)"), "f ARGUMENT_NEW"),
    pair("var_keywords", "@ct.electron\ndef f(**ks):\n    return sum(ks.values())\n" + wf("return f(a=n, b=1)"), "@ct.electron\ndef f(**ks):\n    return sum(ks.values())\n" + wf("return f(a=n, b=2)"), "f ARGUMENT argument b changed: 1 → 2"),
    pair("parameter_renamed", "@ct.electron\ndef f(x):\n    return x + 1\n" + wf("return f(n)"), "@ct.electron\ndef f(y):\n    return y + 1\n" + wf("return f(n)"), "f BODY"),
    pair("parameters_swapped", "@ct.electron\ndef f(a, b):\n    return a - b\n" + wf("return f(n, 1)"), "@ct.electron\ndef f(b, a):\n    return a - b\n" + wf("return f(n, 1)"), "f BODY"),
    pair("same_names", "def make(k):\n    @ct.electron\n    def f(x):\n        return x + k\n    return f\none, two = make(1), make(2)\n" + wf("return one(n) * 100 + two(n)"),
         "def make(k):\n    @ct.electron\n    def f(x):\n        return x + k\n    return f\none, two = make(1), make(3)\n" + wf("return one(n) * 100 + two(n)"),
         "f SAME\n f CLOSURE closure value k changed: 2 → 3"),
    pair("same_names_swapped", "def make(k):\n    @ct.electron\n    def f(x):\n        return x + k\n    return f\none, two = make(1), make(2)\n" + wf("return one(n) * 100 + two(n)"),
         "def make(k):\n    @ct.electron\n    def f(x):\n        return x + k\n    return f\none, two = make(2), make(1)\n" + wf("return one(n) * 100 + two(n)"),
         "f SAME\n f SAME"),
    pair("random_twice", "import uuid\n@ct.electron\ndef sample(n):\n    return uuid.uuid4().hex\n@ct.electron\ndef differ(a, b):\n    return a != b\nRESULT = True\n" + wf("return differ(sample(n), sample(n))"),
         [], "sample SAME\n sample SAME\n differ SAME"),
    pair("random_third", "import uuid\n@ct.electron\ndef sample(n):\n    return uuid.uuid4().hex\n@ct.electron\ndef count(*xs):\n    return len(set(xs))\nRESULT = 3\n" + wf("return count(sample(n), sample(n))"),
         [("sample(n), sample(n)", "sample(n), sample(n), sample(n)")], "sample SAME\n sample SAME\n sample EXTRA_CALL\n count ARGUMENT_NEW"),
    pair("lattice_closure", TASKS + "K = 2\n" + wf("return add(n, K)"), TASKS + "K = 3\n" + wf("return add(n, K)"), "add ARGUMENT argument b changed: 2 → 3"),
    pair("lattice_renamed", TASKS + wf("return add(n, 1)"), TASKS + "\n@ct.lattice\ndef other(n=3):\n    return add(n, 1)\nwf = other\n", "add SAME"),
    # Sub-workflows.
    pair("sub_unchanged", TASKS + "@ct.electron\n@ct.lattice\ndef inner(n):\n    return square(add(n, 1))\n" + wf("return square(inner(n))"),
         [], "inner SAME\n square SAME"),
    pair("sub_task_changed", TASKS + "@ct.electron\n@ct.lattice\ndef inner(n):\n    return square(add(n, 1))\n" + wf("return kind(inner(n))"),
         [("return x * x", "return x * x + 1")], "inner HELPER square\n inner.add SAME\n inner.square BODY\n kind UPSTREAM result of inner()"),
    pair("sub_equal_output", TASKS + "@ct.electron\n@ct.lattice\ndef inner(n):\n    return square(add(n, 1))\n" + wf("return kind(inner(n))"),
         [("return x * x", "return x ** 2")], "inner HELPER\n inner.add SAME\n inner.square BODY\n kind SAME_VALUE although inner() ran again"),
    pair("sub_input_changed", TASKS + "@ct.electron\n@ct.lattice\ndef inner(n):\n    return square(add(n, 1)) + square(5)\n" + wf("return inner(n)"),
         [("def wf(n=3)", "def wf(n=4)")], "inner ARGUMENT argument n changed: 3 → 4\n inner.add ARGUMENT argument a changed: 3 → 4\n inner.square UPSTREAM\n inner.square SAME"),
    pair("sub_of_sub", TASKS + "@ct.electron\n@ct.lattice\ndef deep(n):\n    return square(n)\n@ct.electron\n@ct.lattice\ndef inner(n):\n    return add(deep(n), deep(2))\n" + wf("return inner(n)"),
         [("def wf(n=3)", "def wf(n=4)")], "inner ARGUMENT\n inner.deep ARGUMENT\n inner.deep.square ARGUMENT\n inner.deep SAME\n inner.add UPSTREAM"),
    pair("sub_upstream", TASKS + "@ct.electron\n@ct.lattice\ndef inner(xs):\n    return total([square(x) for x in xs])\n" + wf("return inner(load(n))"),
         [("list(range(n))", "list(range(n + 1))")], "load BODY\n inner UPSTREAM\n inner.square SAME\n inner.square SAME\n inner.square SAME\n inner.square EXTRA_CALL\n inner.total ARGUMENT 4 results"),
    pair("sub_cutoff", TASKS + "@ct.electron\n@ct.lattice\ndef inner(xs):\n    return total(xs)\n" + wf("return inner(load(n))"),
         [("list(range(n))", "[*range(n)]")], "load BODY\n inner SAME_VALUE although load() ran again"),
    pair("sub_inlined", TASKS + "@ct.lattice\ndef inner(n):\n    return square(n)\n" + wf("return add(inner(n), 1)"),
         [("return add(inner(n), 1)", "return add(inner(n), 2)")], "square SAME\n add ARGUMENT"),
    pair("sub_became_task", TASKS + "@ct.electron\n@ct.lattice\ndef inner(n):\n    return square(n)\n" + wf("return inner(n)"),
         [("@ct.electron\n@ct.lattice\ndef inner(n):\n    return square(n)", "@ct.electron\ndef inner(n):\n    return n * n")], "inner BODY"),
    pair("sub_two_calls_swapped", TASKS + "@ct.electron\n@ct.lattice\ndef inner(n):\n    return square(n)\n" + wf("return sub(inner(2), inner(n))"),
         [("sub(inner(2), inner(n))", "sub(inner(n), inner(2))")], "inner SAME\n inner SAME\n sub ARGUMENT"),
]
