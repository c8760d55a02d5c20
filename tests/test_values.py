# ruff: noqa: DTZ001, E501, PTH123, RUF012, SIM115 - values of every kind, also doubtful ones
"""Fingerprints of values: what must differ, what must agree, everywhere and always."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import json
import math
import os
import pathlib
import queue
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
import uuid
import zoneinfo
from typing import Any, NamedTuple

import attrs
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chelate import values
from chelate.digest import is_digest
from chelate.values import File, combine, explain_unstable, fingerprint, part_key, parts, register

OTHERS = [path for path in os.environ.get("CHELATE_TEST_PYTHONS", "").split(os.pathsep) if path]


@dataclasses.dataclass
class Point:
    x: int = 1
    y: Any = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: int = 1


@attrs.define
class Attrs:
    x: int = 1


class Pair(NamedTuple):
    x: int = 1
    y: int = 2


class OtherPair(NamedTuple):
    x: int = 1
    y: int = 2


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Plain:
    def __init__(self, **fields):
        self.__dict__.update(fields)

    @functools.cached_property
    def size(self):
        return len(self.__dict__)


class Hidden:
    __slots__ = ("__secret", "shown")

    def __init__(self, secret, shown):
        self.__secret, self.shown = secret, shown


class Reduced:
    def __init__(self, items):
        self.items = items

    def __reduce__(self):
        return Reduced, (set(self.items),)


class Ticking:
    def __reduce__(self):
        return Ticking, (), {"now": time.perf_counter_ns()}


class Own:
    def __init__(self, shown, hidden):
        self.shown, self.hidden = shown, hidden

    def __fingerprint__(self):
        return self.shown


class Dictish(dict):
    pass


class Number(int):
    pass


def _cycle(length):
    first: list = []
    last = first
    for _ in range(length - 1):
        last.append([])
        last = last[0]
    last.append(first)
    return first


def _nested(levels, inner=None):
    value = inner
    for _ in range(levels):
        value = [value]
    return value


def _frame(**changes):
    return pd.DataFrame({"a": [1, 2], "b": ["x", "y"]} | changes)


def _read_only_attributes(frame, **attributes):
    frame.attrs.update(attributes)
    return frame


STRUCT = np.dtype([("a", "i1"), ("b", "f8")], align=True)


def _padded(byte):
    raw = np.full(32, byte, np.uint8).view(STRUCT)
    raw["a"], raw["b"] = 1, 2.0
    return raw


DIFFERENT = [
    (np.dtype("f8", metadata={"unit": "m"}), np.dtype("f8", metadata={"unit": "s"})),
    (np.zeros(2, np.dtype("f8", metadata={"unit": "m"})), np.zeros(2)),
    (1, "1"),
    (1, 1.0),
    (1, True),
    (0, False),
    (0, None),
    (0.0, -0.0),
    (1.0, 1 + 0j),
    (2**63, -(2**63)),
    (2**64, 2.0**64),
    (10**30, 10**30 + 1),
    (b"a", "a"),
    (b"a", bytearray(b"a")),
    (b"a", memoryview(b"a")),
    ("", b""),
    ("", None),
    ("a" * 30, "a" * 31),
    ("a" * 99, b"a" * 99),
    ("\ud83d\ude00", "😀"),
    ("é", "e\u0301"),
    ([], ()),
    ([], {}),
    (set(), frozenset()),
    ([1, 2], (1, 2)),
    ([1, 2], [2, 1]),
    ([1, 2], [1.0, 2.0]),
    ([1, 2], [1, True]),
    ([1, 2], np.array([1, 2])),
    ([[1], 2], [1, [2]]),
    ([[1, 2]], [1, 2]),
    (["ab", "c"], ["a", "bc"]),
    (["a", ""], ["", "a"]),
    ([b"ab", b"c"], [b"a", b"bc"]),
    ({1: "a"}, {"1": "a"}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({"a": 1}, {"a": 2}),
    ({"a": {}}, {"a": []}),
    ({"a", "b"}, ["a", "b"]),
    ({1, 2}, frozenset({1, 2})),
    ({1}, {1.0}),
    (range(3), [0, 1, 2]),
    (range(3), range(0, 3, 2)),
    (slice(1, 2), slice(1, 3)),
    (math.inf, -math.inf),
    (math.nan, math.inf),
    (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    (decimal.Decimal(1), 1),
    (fractions.Fraction(1, 2), 0.5),
    (datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1)),
    (datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)),
    (datetime.datetime(2026, 1, 1, fold=0), datetime.datetime(2026, 1, 1, fold=1)),
    (
        datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.timezone.utc),
        datetime.datetime(2026, 1, 1, 13, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
    ),
    (datetime.timedelta(1), datetime.timedelta(2)),
    (datetime.time(1), datetime.time(2)),
    (zoneinfo.ZoneInfo("UTC"), zoneinfo.ZoneInfo("Europe/Vienna")),
    (uuid.UUID(int=1), uuid.UUID(int=2)),
    (uuid.UUID(int=1), 1),
    (pathlib.PurePosixPath("a"), "a"),
    (pathlib.Path("a"), pathlib.Path("b")),
    (re.compile("a"), re.compile("a", re.IGNORECASE)),
    (Colour.RED, Colour.BLUE),
    (Colour.RED, 1),
    (Point(), Point(2)),
    (Point(), Slotted()),
    (Slotted(1), Slotted(2)),
    (Attrs(1), Attrs(2)),
    (Attrs(1), Slotted(1)),
    (Pair(), (1, 2)),
    (Pair(), OtherPair()),
    (Plain(a=1), Plain(a=2)),
    (Plain(a=1), Plain(b=1)),
    (Plain(a=1), types.SimpleNamespace(a=1)),
    (Plain(a=1), {"a": 1}),
    (Hidden(1, 2), Hidden(2, 2)),
    (Hidden(1, 2), Hidden(1, 3)),
    (Reduced([1]), Reduced([2])),
    (Own(1, 2), Own(2, 2)),
    (Own(1, 2), 1),
    (Dictish(a=1), {"a": 1}),
    (Number(1), 1),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.deque([1]), [1]),
    (collections.deque([1]), collections.deque([1], maxlen=3)),
    (collections.defaultdict(int), collections.defaultdict(list)),
    (collections.Counter("a"), {"a": 1}),
    (ValueError("a"), ValueError("b")),
    (ValueError("a"), TypeError("a")),
    (array.array("i", [1]), array.array("l", [1])),
    (random.Random(1), random.Random(2)),
    (functools.partial(int, base=2), functools.partial(int, base=3)),
    (len, sum),
    (int, float),
    (..., None),
    (np.zeros(4), np.zeros((2, 2))),
    (np.zeros(8, "f4"), np.zeros(4, "f8")),
    (np.zeros(2, "i8"), np.zeros(2, "f8")),
    (np.arange(4).reshape(2, 2), np.arange(4).reshape(2, 2).T),
    (np.float64(1), 1.0),
    (np.float64(1), np.float32(1)),
    (np.int64(1), 1),
    (np.bool_(True), True),
    (np.array(1), np.int64(1)),
    (np.array([1], "<i4"), np.array([1], ">i4")),
    (np.array(["a"]), np.array([b"a"])),
    (np.array([1, "a"], object), np.array([1, "b"], object)),
    (np.array(["a", "bc"], object), np.array(["ab", "c"], object)),
    (np.array([1], "M8[s]"), np.array([1], "M8[ms]")),
    (np.array([1], "M8[s]"), np.array([1], "m8[s]")),
    (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),
    (np.ma.array([1, 2]), np.array([1, 2])),
    (np.dtype("i4"), np.dtype("i8")),
    (np.random.default_rng(1), np.random.default_rng(2)),
    (np.zeros(0), np.zeros((0, 2))),
    (np.zeros((0, 2)), np.zeros((0, 3))),
    (np.add, np.subtract),
    (_frame(), _frame(a=[1, 3])),
    (_frame(), _frame(a=[1.0, 2.0])),
    (_frame(), _frame(b=["x", "z"])),
    (_frame(), _frame().rename(columns={"a": "c"})),
    (_frame(), _frame()[["b", "a"]]),
    (_frame(), _frame().set_index("a")),
    (_frame(), _read_only_attributes(_frame(), unit="m")),
    (_frame(), _frame(b=pd.Categorical(["x", "y"]))),
    (_frame(), _frame().iloc[::-1]),
    (pd.Series([1], name="a"), pd.Series([1], name="b")),
    (pd.Series([1]), pd.Index([1])),
    (pd.Series([1, None], dtype="Int64"), pd.Series([1, 0], dtype="Int64")),
    (pd.Categorical(["a"], ["a", "b"]), pd.Categorical(["a"], ["a", "c"])),
    (pd.Categorical(["a"], ordered=True), pd.Categorical(["a"], ordered=False)),
    (pd.to_datetime(["2026"]), pd.to_datetime(["2026"]).tz_localize("UTC")),
    (pd.Timestamp("2026"), datetime.datetime(2026, 1, 1)),
    (pd.NaT, None),
    (pd.NA, None),
    (pd.MultiIndex.from_tuples([(1, 2)]), pd.MultiIndex.from_tuples([(1, 3)])),
    (_cycle(1), _cycle(2)),
    (_nested(70, 1), _nested(70, 2)),
]
EQUAL = [
    (lambda: math.nan, lambda: -math.nan),
    (lambda: [1.0, math.nan], lambda: [1.0, float("-nan")]),
    (lambda: {"a", "b", "c"}, lambda: {"c", "b", "a"}),
    (lambda: {1, "a", None, 2.5}, lambda: {2.5, None, "a", 1}),
    (lambda: {(1, "a"), (2, "b")}, lambda: {(2, "b"), (1, "a")}),
    (lambda: {"x": frozenset("abc")}, lambda: {"x": frozenset("cba")}),
    (lambda: Point(1, {"b", "a"}), lambda: Point(1, {"a", "b"})),
    (lambda: Plain(a=1, b=2), lambda: Plain(b=2, a=1)),
    (lambda: Reduced("abc"), lambda: Reduced("cba")),
    (lambda: Own(1, 2), lambda: Own(1, 3)),
    (lambda: [Point()] * 2, lambda: [Point(), Point()]),
    (lambda: np.arange(6.0).reshape(2, 3), lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    (lambda: np.arange(10)[::2], lambda: np.array([0, 2, 4, 6, 8])),
    (lambda: _padded(0), lambda: _padded(255)),
    (lambda: np.ma.array([1, 2], mask=[0, 1]), lambda: np.ma.array([1, 3], mask=[0, 1])),
    (lambda: np.random.default_rng(5), lambda: np.random.default_rng(5)),
    (lambda: _frame(), lambda: _frame().copy()),
    (lambda: _frame(), lambda: pd.concat([_frame()])),
    (
        lambda: pd.Series([1, None], dtype="Int64"),
        lambda: pd.array([1, None], "Int64").copy() and pd.Series([1, None], dtype="Int64"),
    ),
    (lambda: re.compile("a+"), lambda: re.compile("a+")),
    (lambda: random.Random(3), lambda: random.Random(3)),
    (lambda: _cycle(2), lambda: _cycle(2)),
    (lambda: _nested(10_000), lambda: _nested(10_000)),
    (
        lambda: collections.deque([1, 2], 5),
        lambda: collections.deque([0, 1, 2], 2) and collections.deque([1, 2], 5),
    ),
]


@pytest.mark.parametrize(("first", "second"), DIFFERENT, ids=lambda value: type(value).__name__)
def test_different_values_differ(first, second):
    assert is_digest(fingerprint(first)), explain_unstable(first)
    assert is_digest(fingerprint(second)), explain_unstable(second)
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint([first]) != fingerprint([second])
    assert fingerprint({"k": (first, 1)}) != fingerprint({"k": (second, 1)})


def test_no_two_of_all_values_share_a_fingerprint():
    known: dict[str, Any] = {}
    for value in [value for pair in DIFFERENT for value in pair]:
        digest = fingerprint(value)
        other = known.setdefault(digest, value)
        assert type(other) is type(value)
        shown = [re.sub(" at 0x[0-9a-f]+", "", ascii(item))[:200] for item in (other, value)]
        assert shown[0] == shown[1]


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_equal_values_agree(first, second):
    assert fingerprint(first()) == fingerprint(second()) is not None


def _generator():
    yield 1


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (_generator, "iterator"),
        (threading.Lock, "lock"),
        (lambda: iter([1]), "iterator"),
        (lambda: map(str, []), "iterator"),
        (lambda: socket.socket(), "socket"),
        (lambda: open(os.devnull), "iterator"),
        (Ticking, "pickled differently"),
        (queue.Queue, "lock"),
        (lambda: File("no such file"), "no such file"),
        (lambda: Own(threading.Lock(), 1), "lock"),
        (lambda: Own(None, 1), "no stable"),
    ],
)
def test_what_has_no_stable_fingerprint_says_why(make, word):
    value = make()
    assert fingerprint(value) is None
    assert fingerprint([1, value]) is None
    sentence = explain_unstable({"job": [1, value]})
    assert sentence is not None
    assert sentence.startswith("value['job'][1]")
    assert word in sentence
    if hasattr(value, "close"):
        value.close()


def _deep_cycle(levels):
    inner: list = []
    outer = _nested(levels, inner)
    inner.append(outer)
    return outer


def test_a_field_is_named_in_the_explanation():
    assert explain_unstable(Point(y=[threading.Lock()])).startswith("value.y[0]: ")
    assert explain_unstable(Point()) is None


PARTS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.integers(-(2**70), 2**70),
        st.complex_numbers(),
        st.text(min_size=25, max_size=40),
    ),
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.dictionaries(st.text(), inner),
        st.frozensets(st.one_of(st.integers(), st.text())),
        st.sets(st.binary()),
    ),
)


@given(st.lists(PARTS, max_size=12))
@settings(deadline=None, max_examples=150)
def test_combining_parts_gives_the_fingerprint_of_the_container(items):
    found = [fingerprint(item) for item in items]
    assert combine("l", found) == fingerprint(items)
    assert combine("t", found) == fingerprint(tuple(items))
    keys = [f"key {number}" for number in range(len(items))]
    alternating = [
        part for key, part in zip(keys, found, strict=True) for part in (fingerprint(key), part)
    ]
    assert combine("d", alternating) == fingerprint(dict(zip(keys, items, strict=True)))


@given(
    st.one_of(
        st.sets(st.integers()),
        st.sets(st.text()),
        st.sets(st.floats(allow_nan=False)),
        st.sets(st.integers(-(2**70), 2**70)),
        st.sets(st.one_of(st.binary(), st.text(), st.tuples(st.integers(), st.text()), st.none())),
    )
)
@settings(deadline=None, max_examples=150)
def test_combining_parts_gives_the_fingerprint_of_the_set(items):
    found = [fingerprint(item) for item in items]
    assert combine("s", found + found[:1]) == fingerprint(items)
    assert combine("f", list(reversed(found))) == fingerprint(frozenset(items))


@pytest.mark.parametrize("kind", ["l", "t", "d", "s", "f"])
def test_combining_a_few_large_parts(kind):
    array_, frame, text = np.arange(9), _frame(), "long " * 20
    found = [fingerprint(item) for item in ("a", array_, text, frame)]
    real = {
        "l": ["a", array_, text, frame],
        "t": ("a", array_, text, frame),
        "d": {"a": array_, text: frame},
        "s": {"a", text},
        "f": frozenset({"a", text}),
    }[kind]
    assert combine(kind, found[::2] if kind in "sf" else found) == fingerprint(real)


def test_combine_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="kind 'x'"):
        combine("x", [])
    with pytest.raises(ValueError, match="1 parts"):
        combine("d", [fingerprint(1)])
    with pytest.raises(ValueError, match="no fingerprint"):
        combine("l", ["00" * 32])


def test_parts_of_a_result():
    value = {"mean": 1.5, 3: [1], ("a",): 2, "lock": threading.Lock()}
    assert parts(value) == {'"mean"': fingerprint(1.5), "3": fingerprint([1])}
    assert parts((1, "a")) == {"0": fingerprint(1), "1": fingerprint("a")}
    assert parts(list(range(65))) is None
    assert parts("ab") is None
    assert part_key(True) is None


def test_shared_parts_cost_once_and_depth_is_no_limit():
    value: Any = ["something longer than thirty characters"]
    for _ in range(300):
        value = [value, value]
    assert is_digest(fingerprint(value))
    linked: Any = None
    for number in range(10_000):
        linked = Point(number, linked)
    assert is_digest(fingerprint(linked))


def test_a_cycle_may_be_deep():
    assert fingerprint(_deep_cycle(200)) == fingerprint(_deep_cycle(200)) is not None
    assert fingerprint(_deep_cycle(200)) != fingerprint(_deep_cycle(201))
    assert "too deeply" in str(explain_unstable(_nested(50_000)))


def test_a_level_more_is_another_value():
    assert fingerprint(_nested(5000)) != fingerprint(_nested(5001))
    assert fingerprint(_nested(70, 1)) != fingerprint(_nested(70, 2))


def test_a_cached_property_is_not_part_of_a_value():
    value = Plain(a=1)
    before = fingerprint(value)
    assert value.size == 1
    assert fingerprint(value) == before


def test_registered_classes_count_by_what_the_function_returns():
    class Foreign:
        def __init__(self, number):
            self.number, self.lock = number, threading.Lock()

    assert fingerprint(Foreign(1)) is None
    register(Foreign, lambda value: value.number)
    assert fingerprint(Foreign(1)) == fingerprint(Foreign(1)) != fingerprint(Foreign(2))
    with pytest.raises(ValueError, match="fixed"):
        register(int, str)


def test_pydantic_models_count_with_the_fields_that_were_set():
    pydantic = pytest.importorskip("pydantic", reason="pydantic is no dependency")

    class Model(pydantic.BaseModel):
        a: int = 1
        b: set[str] = set()

    assert fingerprint(Model()) != fingerprint(Model(a=1))
    assert fingerprint(Model(b={"x", "y"})) == fingerprint(Model(b={"y", "x"})) is not None


def test_file_counts_by_content(tmp_path):
    path, twin = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("one")
    twin.write_text("one")
    first = fingerprint(File(path))
    assert first == fingerprint(File(str(twin)))
    assert os.fspath(File(path)) == str(path)
    assert first != fingerprint(pathlib.Path(path))
    assert fingerprint(pathlib.Path(path)) != fingerprint(pathlib.Path(twin))


def test_file_written_within_the_resolution_of_the_clock_is_read_again(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = fingerprint(File(path))
    status = path.stat()
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(File(path)) != first


def test_file_left_alone_is_read_once(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    past = time.time_ns() - 60 * 10**9
    os.utime(path, ns=(past, past))
    first = fingerprint(File(path))
    while time.time_ns() - path.stat().st_ctime_ns <= 2 * 10**9:
        assert fingerprint(File(path)) == first
    fingerprint(File(path))
    path.chmod(0o000)
    try:
        assert fingerprint(File(path)) in (first, None)
    finally:
        path.chmod(0o600)


GOLDEN = "016f40afa4d2e9cb55d3e46275ab8ee0c36811221d0c76a76580e07355db2de5"

SCRIPT = """
import datetime, decimal, enum, json, pathlib, re, sys, uuid, dataclasses, collections, random, fractions
sys.path.insert(0, sys.argv[1])
sys.modules["chelate"] = None  # alone, also where chelate is installed
import values
@dataclasses.dataclass
class Point:
    x: int
    y: object
class Plain:
    def __init__(self, **fields): self.__dict__.update(fields)
class Colour(enum.IntEnum):
    RED = 1
items = [None, True, 5, 2**80, 1.5, float("nan"), 1j, "é" * 50, b"x" * 99, [1, 2, 3], [1.5], ["a", "b"],
    ("a", 1), {"a": {"b": {1, 2, "c"}}}, frozenset("abcdef"), Point(1, {"z", "y"}), Plain(b={3, "q"}, a=1),
    Colour.RED, datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), decimal.Decimal("1.50"),
    pathlib.PurePosixPath("a/b"), pathlib.Path("a"), re.compile("a", re.I), uuid.UUID(int=3), range(4),
    collections.deque([1]), collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]),
    collections.Counter("abca"), ValueError("x", {1, "y"}), random.Random(1), fractions.Fraction(1, 3),
    dict.fromkeys("zyx"), {("a", 1): {"b"}}, collections.ChainMap({"a": 1}), int, len, slice(1), [[]] * 3]
print(json.dumps([values.fingerprint(item) for item in items]))
"""


def _elsewhere(python, folder, seed):
    done = subprocess.run(
        [python, "-c", SCRIPT, str(folder)],
        capture_output=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": ""},
    )
    return json.loads(done.stdout)


def test_a_copy_alone_agrees_over_processes_hash_seeds_and_pythons(tmp_path):
    shutil.copytree(pathlib.Path(values.__file__).parent, tmp_path / "values")
    expected = _elsewhere(sys.executable, tmp_path, 0)
    assert all(map(is_digest, expected))
    assert len(set(expected)) == len(expected)
    for seed in (1, 2, 3):
        assert _elsewhere(sys.executable, tmp_path, seed) == expected
    for python in OTHERS:
        assert _elsewhere(python, tmp_path, 1) == expected
    # The encoding is stored, so it must not drift from one release to the next either.
    assert fingerprint(expected) == GOLDEN
