"""The worker's Runner: references, results and failures of one call."""

from __future__ import annotations

import collections
import operator
import pickle
from pathlib import Path

import cloudpickle
import pytest

from chelate.digest import digest_bytes
from chelate.worker import Runner

Pair = collections.namedtuple("Pair", "left right")


class Box:
    def __init__(self, content):
        self.content = content


class Bench:
    """Blobs by digest and a runner over them."""

    def __init__(self, spool=None):
        self.blobs = {}
        self.runner = Runner(self.blobs.__getitem__, spool)

    def put(self, value):
        data = cloudpickle.dumps(value)
        digest = digest_bytes(data)
        self.blobs[digest] = data
        return digest

    def run(self, function, *args, kind="task", nodes=(), **kwargs):
        return self.runner.run(
            {
                "kind": kind,
                "function": None if function is None else self.put(function),
                "args": list(args),
                "kwargs": kwargs,
                "values": {str(node): self.put(value) for node, value in dict(nodes).items()},
                "name": "work",
            }
        )

    def value(self, *args, **kwargs):
        header, payload, _ = self.run(*args, **kwargs)
        assert header["ok"], header["error"]
        assert header["digest"] == digest_bytes(payload)
        return pickle.loads(payload)


@pytest.fixture
def bench():
    return Bench()


def constants(bench, *values):
    return [["c", bench.put(value)] for value in values]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda b: ["p", 0], 5),
        (lambda b: ["n", 1, []], {"a": [10, 20]}),
        (lambda b: ["n", 1], {"a": [10, 20]}),
        (lambda b: ["n", 1, [["i", "a"], ["i", 1]]], 20),
        (lambda b: ["n", 2, [["c", b.put((1, 2))]]], "tuple key"),
        (lambda b: ["n", 3, [["a", "content"]]], "inside"),
        (lambda b: ["n", 4, [["u", 1, 3, None]]], 2),
        (lambda b: ["n", 5, [["u", 0, 3, 1]]], 0),
        (lambda b: ["n", 5, [["u", 1, 3, 1]]], [1, 2, 3]),
        (lambda b: ["n", 5, [["u", 2, 3, 1]]], 4),
        (lambda b: ["c", b.put("constant")], "constant"),
        (lambda b: ["l", [["p", 0], *constants(b, 1)]], [5, 1]),
        (lambda b: ["t", [["p", 0], *constants(b, 1)]], (5, 1)),
        (lambda b: ["s", [["p", 0], *constants(b, 1)]], {5, 1}),
        (lambda b: ["f", [["p", 0]]], frozenset({5})),
        (lambda b: ["d", [[*constants(b, "k"), ["p", 0]], [["p", 0], ["l", []]]]], {"k": 5, 5: []}),
        (lambda b: ["o", b.put(Pair), [["p", 0], ["t", []]]], Pair(5, ())),
    ],
)
def test_every_kind_of_reference(bench, make, expected):
    nodes = {
        0: 5,
        1: {"a": [10, 20]},
        2: {(1, 2): "tuple key"},
        3: Box("inside"),
        4: (1, 2, 3),
        5: range(5),
    }
    reference = make(bench)
    result = bench.value(lambda value: value, reference, nodes=nodes)
    assert result == expected
    assert type(result) is type(expected)
    assert bench.value(lambda *, key: key, nodes=nodes, key=reference) == expected


def test_targets_of_one_unpacking_share_the_iteration(bench):
    refs = [["n", 0, [["u", index, 2, None]]] for index in range(2)]
    assert bench.value(lambda *args: args, *refs, nodes={0: iter("xy")}) == ("x", "y")


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (["u", 0, 2, None], "too many values to unpack (expected 2)"),
        (["u", 0, 4, None], "not enough values to unpack (expected 4, got 3)"),
        (["u", 0, 5, 1], "expected at least 4, got 3"),
        (["i", 7], "IndexError"),
        (["a", "nothing"], "AttributeError"),
    ],
)
def test_a_path_that_leads_nowhere_is_the_users_error(bench, step, words):
    header, _, _ = bench.run(lambda value: value, ["n", 0, [step]], nodes={0: [1, 2, 3]})
    assert header["reason"] == "USER_ERROR"
    assert words in header["error"]


def test_nesting_deeper_than_the_recursion_limit(bench):
    reference = ["p", 0]
    for _ in range(5000):
        reference = ["l", [reference]]

    def depth(value):
        count = 0
        while isinstance(value, list):
            value, count = value[0], count + 1
        return count, value

    assert bench.value(depth, reference, nodes={0: "leaf"}) == (5000, "leaf")


def test_one_node_used_twice_is_one_object(bench):
    assert bench.value(lambda a, b: a is b[0], ["p", 0], ["l", [["p", 0]]], nodes={0: [1]})


def test_operator_and_return(bench):
    assert bench.value(operator.add, ["p", 0], ["p", 1], kind="operator", nodes={0: 1, 1: 2}) == 3
    assert bench.value(None, ["t", [["p", 0]]], kind="return", nodes={0: 1}) == (1,)


def test_large_result_goes_to_a_file(tmp_path):
    bench = Bench(str(tmp_path))
    header, payload, _ = bench.run(lambda: b"x" * 200_000)
    data = Path(header["path"]).read_bytes()
    assert payload == b""
    assert header["digest"] == digest_bytes(data)
    assert pickle.loads(data) == b"x" * 200_000


def test_result_that_only_cloudpickle_takes(bench):
    assert bench.value(lambda: lambda x: x + 1)(1) == 2


def test_unpicklable_result_names_task_and_type(tmp_path):
    bench = Bench(str(tmp_path))
    header, _, _ = bench.run(lambda: [b"x" * 100_000, (n for n in ())])
    assert header["reason"] == "UNPICKLABLE"
    assert "'work'" in header["error"]
    assert "type list" in header["error"]
    assert "generator" in header["error"]
    assert list(tmp_path.iterdir()) == []


def test_exception_keeps_the_users_frames_and_its_cause(bench):
    def fails():
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("bad input") from error

    header, _, exception = bench.run(fails)
    assert header["reason"] == "USER_ERROR"
    assert "in fails" in header["error"]
    assert "KeyError: 'missing'" in header["error"]
    assert "direct cause" in header["error"]
    assert header["error"].rstrip().endswith("ValueError: bad input")
    assert "chelate/worker.py" not in header["error"]
    error = pickle.loads(exception)
    assert (type(error), error.args) == (ValueError, ("bad input",))


def test_exception_that_does_not_survive_pickling_keeps_its_text(bench):
    def fails():
        class Awkward(Exception):
            def __init__(self, one, two):
                super().__init__(f"{one} and {two}")

        raise Awkward("this", "that")

    header, _, exception = bench.run(fails)
    assert "this and that" in header["error"]
    assert exception == b""


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_no_exception_ends_the_worker(bench, kind):
    def leave():
        raise kind(3)

    header, _, _ = bench.run(leave)
    assert not header["ok"]
    assert header["reason"] == "USER_ERROR"
    assert kind.__name__ in header["error"]


def test_missing_module_is_an_environment_failure(bench):
    bench.blobs["gone"] = b"\x80\x04cno_such_module_here\nthing\n."
    call = {"kind": "task", "function": "gone", "args": [], "kwargs": {}, "values": {}, "name": "w"}
    header, _, _ = bench.runner.run(call)
    assert header["reason"] == "ENV_MISSING"
    assert "no_such_module_here" in header["error"]


def test_functions_are_unpickled_once(bench):
    def count():
        count.calls = getattr(count, "calls", 0) + 1
        return count.calls

    call = {"kind": "task", "function": bench.put(count), "args": [], "kwargs": {}, "values": {}}
    results = [pickle.loads(bench.runner.run(call)[1]) for _ in range(3)]
    assert results == [1, 2, 3]
