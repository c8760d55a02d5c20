"""Everything a lattice body may do with an output: it works at run time or is refused at build."""

from __future__ import annotations

import copy
import math
import operator
import pickle
import sys
import warnings
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
import pytest

from chelate.client.electron import electron
from chelate.client.lattice import lattice
from chelate.errors import BuildError, ForeignPlaceholderError, GraphError

Point = namedtuple("Point", "x y")


@dataclass
class Box:
    """Something with fields and methods."""

    size: int
    inner: object = None

    def scaled(self, by=1, *, plus=0):
        return self.size * by + plus


class Row(list):
    """A container that is not built in."""


@electron
def same(value):
    return value


@electron
def number():
    return 7


@electron
def half():
    return 2.5


@electron
def pair():
    return (1, 2)


@electron
def several():
    return [1, 2, 3, 4, 5]


@electron
def nested():
    return ((1, 2), 3)


@electron
def table():
    return {"a": {"b": [10, 20, 30]}, 2: "two", (1, 2): "tuple", 2.5: "float", None: "none"}


@electron
def box():
    return Box(3, Box(4))


@electron
def text():
    return "a b"


@electron
def once():
    return iter([1, 2, 3])


@electron
def matrix():
    return np.array([[1, 2], [3, 4]])


@electron
def maker():
    return operator.itemgetter(1)


@electron
def kinds(*values, **named):
    return [type(value).__name__ for value in (*values, *named.values())]


def starred():
    first, *rest = several()
    return first, same(rest), rest


def starred_middle():
    a, *b, c = several()
    return [a, b, c]


def starred_copies():
    _, *rest = several()
    return [list(rest), [*rest], rest[:], copy.deepcopy(rest)]


def unpack_nested():
    (a, b), c = nested()
    return same(a) + b + c


def unpack_in_for():
    return [(a, b) for a, b in [pair(), pair()]]


def unpack_chain():
    a, b = chain([5], [6])
    c, d = chain(pair())
    return a, b, c, d


def augmented():
    total = 0
    for _ in range(3):
        total += number()
    total -= 1
    total *= 2
    return total


def augmented_list():
    items = several()
    items += (6,)
    return items


def in_sets():
    one, two = number(), half()
    assert one in {one, two}
    assert {one: 1}[one] == 1
    assert one in [one, two]
    return same({one, two}), same(frozenset([one]))


WORKS = [
    ("add", lambda: number() + 1, 8),
    ("add_reflected", lambda: 1 + number(), 8),
    ("add_both", lambda: number() + number(), 14),
    ("sub", lambda: (number() - 1, 1 - number()), (6, -6)),
    ("mul", lambda: (number() * 2, 2 * number()), (14, 14)),
    ("truediv", lambda: (number() / 2, 14 / number()), (3.5, 2.0)),
    ("floordiv", lambda: (number() // 2, 15 // number()), (3, 2)),
    ("mod", lambda: (number() % 4, 10 % number()), (3, 3)),
    ("pow", lambda: (number() ** 2, 2 ** number(), pow(number(), 2, 5)), (49, 128, 4)),
    ("matmul", lambda: (matrix() @ matrix())[0, 0].item(), 7),
    ("bits", lambda: (number() & 3, number() | 8, number() ^ 1), (3, 15, 6)),
    ("bits_reflected", lambda: (3 & number(), 8 | number(), 1 ^ number()), (3, 15, 6)),
    ("shifts", lambda: (number() << 1, number() >> 1, 1 << number(), 256 >> number()), (14, 3, 128, 2)),  # noqa: E501
    ("unary", lambda: (-number(), +number(), ~number(), abs(-number())), (-7, 7, -8, 7)),
    ("divmod", lambda: (divmod(number(), 4), divmod(15, number())), ((1, 3), (2, 1))),
    ("round", lambda: (round(half()), round(half(), 1)), (2, 2.5)),
    ("floor_ceil_trunc", lambda: (math.floor(half()), math.ceil(half()), math.trunc(half())), (2, 3, 2)),  # noqa: E501
    ("sum", lambda: sum([number(), number(), 1]), 15),
    ("augmented", augmented, 40),
    ("augmented_list", augmented_list, [1, 2, 3, 4, 5, 6]),
    ("numpy_left", lambda: (np.float64(2) * number()).item(), 14.0),
    ("numpy_array_left", lambda: (np.array([1, 2]) + number()).tolist(), [8, 9]),
    ("pandas_left", lambda: (pd.Series([1, 2]) * number()).tolist(), [7, 14]),
    ("item_str", lambda: table()["a"]["b"][1], 20),
    ("item_negative", lambda: several()[-1], 5),
    ("item_int_bool_none", lambda: (table()[2], several()[True], table()[None]), ("two", 2, "none")),  # noqa: E501
    ("item_tuple", lambda: table()[1, 2], "tuple"),
    ("item_float", lambda: table()[2.5], "float"),
    ("item_of_output", lambda: several()[pair()[1]], 3),
    ("item_tuple_of_output", lambda: matrix()[pair()[0], 0].item(), 3),
    ("item_surrogate", lambda: same({"\ud800": 1})["\ud800"], 1),
    ("slice", lambda: several()[1:3], [2, 3]),
    ("slice_of_output", lambda: several()[pair()[0] : -1], [2, 3, 4]),
    ("slice_in_tuple", lambda: matrix()[:, 1].tolist(), [2, 4]),
    ("attribute", lambda: box().inner.size, 4),
    ("attribute_argument", lambda: same(box().size), 3),
    ("method", lambda: box().scaled(2, plus=1), 7),
    ("method_of_part", lambda: table()["a"]["b"].index(20), 1),
    ("method_of_output_argument", lambda: box().scaled(number()), 21),
    ("method_chain", lambda: text().upper().split(), ["A", "B"]),
    ("method_keys", lambda: table().keys().__class__ and same(1), 1),
    ("call", lambda: maker()([1, 2]), 2),

    ("unpack_nested", unpack_nested, 6),
    ("unpack_in_for", unpack_in_for, [(1, 2), (1, 2)]),
    ("unpack_chain", unpack_chain, (5, 6, 1, 2)),
    ("starred", starred, (1, [2, 3, 4, 5], [2, 3, 4, 5])),
    ("starred_middle", starred_middle, [1, [2, 3, 4], 5]),
    ("starred_copies", starred_copies, [[2, 3, 4, 5]] * 4),
    ("sets", in_sets, ({7, 2.5}, frozenset([7]))),
    ("list", lambda: same([number(), 1]), [7, 1]),
    ("tuple", lambda: same((number(), 1)), (7, 1)),
    ("set", lambda: same({number(), 1}), {7, 1}),
    ("frozenset", lambda: same(frozenset({number(), 1})), frozenset({7, 1})),
    ("dict_values", lambda: same({"k": number(), 1: [half()]}), {"k": 7, 1: [2.5]}),
    ("dict_keys", lambda: same({number(): 1, (half(), 1): number()}), {7: 1, (2.5, 1): 7}),
    ("namedtuple", lambda: same(Point(number(), [half()])), Point(7, [2.5])),
    ("slice_argument", lambda: same(slice(number(), None)), slice(7, None)),
    ("types_with", lambda: kinds([number()], (number(),), {number()}, {1: number()}, n=Point(1, number())), ["list", "tuple", "set", "dict", "Point"]),  # noqa: E501
    ("types_without", lambda: kinds([1], (1,), {1}, {1: 1}, n=Point(1, 1)), ["list", "tuple", "set", "dict", "Point"]),  # noqa: E501
    ("types_odd", lambda: kinds(deque([1]), OrderedDict(a=1), Row([1]), defaultdict(int)), ["deque", "OrderedDict", "Row", "defaultdict"]),  # noqa: E501
    ("return_nothing", lambda: None, None),
    ("return_constant", lambda: {"a": [1, (2,)]}, {"a": [1, (2,)]}),
    ("return_output", lambda: number(), 7),
    ("return_part", lambda: pair()[1], 2),
    ("return_mixed", lambda: {"a": (number(), 1), "b": {half()}}, {"a": (7, 1), "b": {2.5}}),
    ("same_twice", lambda: kinds(*[number()] * 2), ["int", "int"]),
    ("deepcopy", lambda: copy.deepcopy([number()]), [7]),
    ("copy", lambda: copy.copy(number()), 7),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), [c[1:] for c in WORKS], ids=[c[0] for c in WORKS])
def test_it_works_with_types_kept(run, body, expected):
    found = run(lattice(body))
    assert found == expected
    assert type(found) is type(expected)


def _starred_item():
    _, *rest = several()
    return same(rest[0])


def _starred_cut():
    _, *rest = several()
    return same(rest[1:])


def _starred_sorted():
    _, *rest = several()
    return same(sorted(rest))


def _starred_loop():
    _, *rest = several()
    return [same(item) for item in rest]


def _starred_tuple():
    _, *rest = several()
    return same(tuple(rest))


def _starred_reversed():
    _, *rest = several()
    return same(rest[::-1])


def _starred_attribute():
    _, *rest = several()
    return rest[0].size + 1


def _starred_spread():
    _, *rest = several()
    return kinds(*rest)


def _loop():
    for item in several():
        same(item)


def _yield_from():
    def inner():
        yield from several()

    return list(inner())


def _with():
    with box():
        pass


def _set_item():
    value = table()
    value["a"] = 1


def _delete_item():
    value = table()
    del value["a"]


def _set_attribute():
    value = box()
    value.size = 1


def _delete_attribute():
    value = box()
    del value.size


def _branch():
    return same(1) if number() else same(2)


def _hidden_cell():
    value = number()
    return electron(lambda: value)()


def _hidden_default():
    value = number()
    return electron(lambda given=value: given)()


def _hidden_cycle():
    items = [number()]
    items.append(items)
    return same(items)


def _too_deep():
    items = [number()]
    for _ in range(5000):
        items = [items]
    return same(items)


REFUSED = [
    ("if", _branch, "truth value.*sub-workflow"),
    ("and", lambda: number() and 1, "truth value"),
    ("not", lambda: not number(), "truth value"),
    ("bool", lambda: bool(number()), "truth value"),
    ("while", lambda: [None for _ in [0] if number()], "truth value"),
    ("assert", lambda: all([number()]), "truth value"),
    ("int", lambda: int(number()), "converts to a number.*ct.electron"),
    ("float", lambda: float(number()), "converts to a number"),
    ("complex", lambda: complex(number()), "converts to a number"),
    ("index", lambda: [1, 2][number()], "converts to a number"),
    ("range", lambda: range(number()), "converts to a number"),
    ("math", lambda: math.sqrt(number()), "converts to a number"),
    ("len", lambda: len(pair()), "length"),
    ("in", lambda: 1 in pair(), "searches in"),
    ("in_list", lambda: number() in [1, 2], "compares"),
    ("eq", lambda: number() == 7, "compares"),
    ("eq_reflected", lambda: 7 == number(), "compares"),  # noqa: SIM300
    ("eq_other", lambda: number() == number(), "compares"),
    ("ne", lambda: number() != 7, "compares"),
    ("lt", lambda: number() < 7, "compares"),
    ("gt_reflected", lambda: 7 > number(), "compares"),  # noqa: SIM300
    ("le", lambda: number() <= 7, "compares"),
    ("ge", lambda: number() >= 7, "compares"),
    ("sorted", lambda: sorted([number(), number()]), "compares"),
    ("max", lambda: max(number(), 1), "compares"),
    ("str", lambda: str(number()), "formats as text"),
    ("f_string", lambda: f"{number()}", "formats as text"),
    ("f_string_spec", lambda: f"{number():>3}", "formats as text"),
    ("format", lambda: "{}".format(number()), "formats as text"),  # noqa: UP032
    ("percent_s", lambda: "%s" % number(), "formats as text"),  # noqa: UP031
    ("percent_d", lambda: "%d" % number(), "number|text"),  # noqa: UP031
    ("print", lambda: print(text()), "formats as text"),  # noqa: T201
    ("for", _loop, "loops over.*a, b = output"),
    ("comprehension", lambda: [same(item) for item in several()], "loops over"),
    ("list", lambda: list(several()), "loops over"),
    ("tuple", lambda: tuple(several()), "loops over"),
    ("set", lambda: set(several()), "loops over"),
    ("dict", lambda: dict(table()), "loops over"),
    ("sum", lambda: sum(several()), "loops over"),
    ("zip", lambda: list(zip(several(), several(), strict=True)), "loops over"),
    ("map", lambda: list(map(same, several())), "loops over"),
    ("enumerate", lambda: list(enumerate(several())), "loops over"),
    ("reversed", lambda: list(reversed(several())), "loops over"),
    ("spread", lambda: kinds(*several()), "loops over"),
    ("spread_list", lambda: [*several()], "loops over"),
    ("spread_named", lambda: kinds(**table()), "loops over"),
    ("spread_dict", lambda: {**table()}, "loops over"),
    ("yield_from", _yield_from, "loops over"),
    ("with", _with, "with"),
    ("set_item", _set_item, "changes"),
    ("delete_item", _delete_item, "changes"),
    ("set_attribute", _set_attribute, "changes"),
    ("delete_attribute", _delete_attribute, "changes"),
    ("starred_item", _starred_item, "starred"),
    ("starred_cut", _starred_cut, "starred"),
    ("starred_sorted", _starred_sorted, "starred"),
    ("starred_loop", _starred_loop, "starred"),
    ("starred_tuple", _starred_tuple, "starred"),
    ("starred_reversed", _starred_reversed, "starred"),
    ("starred_attribute", _starred_attribute, "starred"),
    ("starred_spread", _starred_spread, "starred"),
    ("in_dataclass", lambda: same(Box(number())), "argument 'value' of 'same'.*Box.*named tuple"),
    ("in_deque", lambda: same(deque([number()])), "deque"),
    ("in_ordered_dict", lambda: same(OrderedDict(a=number())), "OrderedDict"),
    ("in_list_subclass", lambda: same(Row([number()])), "Row"),
    ("in_array", lambda: same(np.array([number(), 1], dtype=object)), "ndarray"),
    ("in_cell", _hidden_cell, "function of '<lambda>'"),
    ("in_default", _hidden_default, "function of '<lambda>'"),
    ("in_itself", _hidden_cycle, "holds the output"),
    ("too_deep", _too_deep, "flat"),
    ("pickle", lambda: pickle.dumps(number()), "pickles"),
    ("electron_of_output", lambda: electron(maker())([1]), "marked as an electron"),
]


@pytest.mark.parametrize(("body", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_it_is_refused_with_a_sentence(body, words):
    with pytest.raises(GraphError, match=f"(?s){words}") as caught:
        lattice(body).build_graph()
    message = str(caught.value)
    assert message.endswith(".")
    assert "test_placeholders.py:" in message or "marked as an electron" in message


def test_an_await_is_refused():
    def body():
        number().__await__()

    with pytest.raises(GraphError, match="awaits"):
        lattice(body).build_graph()


def test_probing_libraries_find_nothing():
    def body():
        value = number()
        assert "number" in repr(value)
        assert f"{value!r}".startswith("<output of number")
        for name in ("__array__", "_repr_html_", "_ipython_display_", "__wrapped__", "__len2__"):
            assert not hasattr(value, name)
        return value

    lattice(body).build_graph()


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 300, 1000])
@pytest.mark.parametrize("star", [None, "first", "middle", "last"])
def test_the_number_of_targets_is_found(run, count, star):
    if star == "middle" and count < 3:
        count = 3
    targets = [f"t{index}" for index in range(count)]
    place = {"first": 0, "middle": count // 2, "last": count - 1}.get(star)
    if place is not None:
        place = min(place, 200)  # Python allows 255 targets before a starred one
        targets[place] = "*" + targets[place]
    names = ", ".join(f"t{index}" for index in range(count))
    scope = {"source": electron(list), "size": count}
    exec(
        f"def body():\n    {', '.join(targets)}, = source(range(size))\n    return [{names}]", scope
    )
    expected = list(range(count))
    if place is not None:
        expected[place] = [place]
    assert run(lattice(scope["body"])) == expected


def test_targets_are_found_while_a_debugger_traces(run):
    def tracer(frame, event, argument):
        frame.f_trace_opcodes = True
        return tracer

    def body():
        a, b = pair()
        c, *d = several()
        return a, b, c, d

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        assert run(lattice(body)) == (1, 2, 1, [2, 3, 4, 5])
    finally:
        sys.settrace(before)


def test_targets_are_found_after_the_interpreter_has_specialised(run):
    def body():
        for _ in range(200):
            a, b = (3, 4)
        for _ in range(200):
            a, b = pair()
        return a, b

    assert run(lattice(body)) == (1, 2)


@pytest.mark.parametrize("count", [2, 4])
def test_a_wrong_number_of_targets_fails_in_the_task(run, count):
    def too_few():
        a, b = several()
        return a, b

    def too_many():
        a, b, c, d = pair()
        return a, b, c, d

    with pytest.raises(RuntimeError, match="values to unpack"):
        run(lattice(too_few if count == 2 else too_many))


def test_items_and_attributes_cost_no_node_and_methods_cost_one():
    @lattice
    def body():
        value = box()
        same(value.inner.size)
        same(table()["a"]["b"][0])
        a, b = pair()
        same((a, b))
        return value.scaled(2)

    graph = body.build_graph()
    names = [node.name for node in graph.nodes]
    assert names == ["box", "same", "table", "same", "pair", "same", "box.scaled"]
    assert graph.nodes[1].args == [["n", 0, [["a", "inner"], ["a", "size"]]]]
    assert graph.nodes[3].args == [["n", 2, [["i", "a"], ["i", "b"], ["i", 0]]]]
    assert graph.nodes[5].args[0][1][1] == ["n", 4, [["u", 1, 2, None]]]
    assert graph.result == ["n", 6]


def test_names_of_nodes_never_hold_values():
    @lattice
    def body(secret):
        value = same(secret)
        value = value + secret
        value = value + secret
        return [value.count(secret), value[secret:secret], kinds(secret, key=secret)]

    graph = body.build_graph("hunter2")
    names = {node.name for node in graph.nodes}
    assert names == {
        "same", ":parameter:value", "same.__add__", "same.count", "kinds",
        ":parameter:values[0]", ":parameter:key", ":return:",
    }  # fmt: skip
    assert b"hunter2" not in graph.to_json()


def test_outputs_of_another_lattice_are_refused():
    kept = []

    @lattice
    def first():
        kept.append(number())

    @lattice
    def uses(how):
        return how(kept[0])

    first.build_graph()
    for how in (same, lambda x: x + 1, lambda x: x.a, lambda x: [x], lambda x: x[0], lambda x: x,
                lambda x: same([x]), lambda x: 1 + x, lambda x: x.wait_for(x)):  # fmt: skip
        with pytest.raises(ForeignPlaceholderError, match="'first'"):
            uses.build_graph(how)
    with pytest.raises(ForeignPlaceholderError):
        kept[0] + 1
    with pytest.raises(ForeignPlaceholderError):
        same(kept[0])
    with pytest.raises(ForeignPlaceholderError):
        str(kept[0])
    assert "number" in repr(kept[0])


def test_a_build_inside_a_build_does_not_see_its_outputs():
    @lattice
    def inner(value):
        return same(value)

    @lattice
    def outer():
        return len(inner.build_graph(number()).nodes)

    with pytest.raises(GraphError):
        outer.build_graph()


def test_what_a_later_change_of_an_argument_does(run):
    @lattice
    def body():
        items = [1]
        first = same(items)
        items.append(2)
        second = same(items)
        mixed = [number()]
        third = same(mixed)
        mixed.append(8)
        return first, second, third

    assert run(body) == ([1], [1, 2], [7])


def test_a_container_without_outputs_is_one_value():
    @lattice
    def body():
        items = list(range(1000))
        return same({"a": [items, (1, 2)], "b": number})

    assert [node.kind for node in body.build_graph().nodes] == ["task", "parameter"]


def test_containers_that_hold_themselves(run):
    @lattice
    def body():
        items = [1]
        items.append(items)
        fields = {}
        fields["me"] = fields
        return same(items), same(fields)

    items, fields = run(body)
    assert items[1] is items
    assert fields["me"] is fields


def test_containers_shared_many_times_do_not_explode():
    @lattice
    def body():
        items = []
        for _ in range(60):
            items = [items, items]
        return same(items)

    assert len(body.build_graph().nodes) == 2


def test_an_iterator_is_unpacked_once(run):
    @lattice
    def body():
        a, b, c = once()
        return [a, b, c]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert run(body) == [1, 2, 3]


def test_another_error_in_the_body_names_the_lattice_and_the_line():
    @lattice
    def broken():
        number()
        raise KeyError("left")

    with pytest.raises(
        BuildError, match=r"'broken'.*test_placeholders\.py:\d+: KeyError"
    ) as caught:
        broken.build_graph()
    assert isinstance(caught.value.__cause__, KeyError)
