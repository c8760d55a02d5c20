"""Redispatch, plan, audit and explain in one process, and what is refused with which words."""

from __future__ import annotations

import sqlite3
import time
import uuid
from html.parser import HTMLParser

import pytest

import chelate as ct
from chelate.embedding import current
from chelate.errors import (
    BuildError,
    ConfigError,
    DispatchNotFoundError,
    InvalidDispatchIdError,
    RedispatchError,
    StoreError,
)
from chelate.explaining import Explanation

LONG = 120


def ledger(folder):
    """A task that notes each of its runs, and the notes."""

    def note(x):
        (folder / uuid.uuid4().hex).write_text(str(x))
        return x + 1

    return note, lambda: len(list(folder.iterdir()))


def finished(dispatch_id):
    result = ct.get_result(dispatch_id, wait=True, timeout=LONG)
    assert result.status == "COMPLETED", result.error
    return result


def codes(dispatch_id):
    return [(row.name, row.code) for row in ct.explain(dispatch_id)]


@pytest.fixture
def noting(home, tmp_path):
    """A workflow of two noting tasks, how often they ran, and a finished dispatch of it."""
    note, runs = ledger(tmp_path)
    first = ct.electron(note, name="first")
    second = ct.electron(note, name="second")

    @ct.lattice
    def workflow(n):
        return second(first(n))

    dispatch_id = ct.dispatch(workflow)(1)
    finished(dispatch_id)
    assert runs() == 2
    return workflow, runs, dispatch_id


def test_a_plan_runs_nothing_and_stores_nothing(noting, untouched):
    workflow, runs, dispatch_id = noting
    untouched(dispatch_id)
    count = len(ct.list_dispatches(limit=1000))
    again = ct.redispatch(dispatch_id, reuse_previous_results=True)
    assert again.plan().counts == {"REUSE": 2, "RUN": 0, "OPEN": 0}
    assert again.plan(5).counts == {"REUSE": 0, "RUN": 1, "OPEN": 1}
    assert ct.dispatch(workflow, reuse_from=dispatch_id).plan(1).counts["REUSE"] == 2
    assert ct.redispatch(dispatch_id).plan().counts == {"REUSE": 0, "RUN": 2, "OPEN": 0}
    assert runs() == 2
    assert len(ct.list_dispatches(limit=1000)) == count


def test_a_reused_node_points_at_the_first_execution_and_copies_nothing(noting):
    _, runs, dispatch_id = noting
    earlier = dispatch_id
    for _ in range(3):
        earlier = ct.redispatch(earlier, reuse_previous_results=True)()
        result = finished(earlier)
        node = result.get_node_result(0)
        assert node["reused_from"] == (dispatch_id, 0)
        assert node["start_time"] == node["end_time"]
    assert runs() == 2
    store = current().store
    first, last = store.nodes(dispatch_id), store.nodes(earlier)
    assert [row.output for row in first] == [row.output for row in last]


def test_latest_is_the_newest_of_that_name(noting):
    workflow, runs, dispatch_id = noting
    finished(ct.dispatch(workflow)(7))
    assert runs() == 4
    assert ct.dispatch(workflow, reuse_from="latest").plan(7).counts["REUSE"] == 2
    assert ct.dispatch(workflow, reuse_from=dispatch_id).plan(7).counts["REUSE"] == 0


def test_latest_of_nothing_runs_everything(home):
    @ct.electron
    def f(x):
        return x

    @ct.lattice
    def never_dispatched_before(x):
        return f(x)

    dispatch_id = ct.dispatch(never_dispatched_before, reuse_from="latest")(1)
    assert finished(dispatch_id).result == 1
    assert codes(dispatch_id) == [("f", "REUSE_OFF")]


# -- audit ----------------------------------------------------------------------------


def test_a_full_audit_runs_all_and_finds_equal_values(noting):
    _, runs, dispatch_id = noting
    again = ct.redispatch(dispatch_id, reuse_previous_results=True, audit=1.0)()
    finished(again)
    assert runs() == 4
    assert codes(again) == [("first", "AUDIT_SAME"), ("second", "AUDIT_SAME")]
    assert "nondeterministic" not in str(ct.explain(again))


def test_an_audit_marks_a_random_task_for_good(home):
    @ct.electron
    def draw(n):
        return uuid.uuid4().hex

    @ct.electron
    def width(text):
        return len(text)

    @ct.lattice
    def workflow(n):
        return width(draw(n))

    first = ct.dispatch(workflow)(1)
    finished(first)
    again = ct.redispatch(first, reuse_previous_results=True, audit=1.0)()
    finished(again)
    assert codes(again) == [("draw", "AUDIT_DIFFERENT"), ("width", "UPSTREAM")]
    later = ct.dispatch(workflow, reuse_from=again)(1)
    finished(later)
    for dispatch_id in (again, later):
        assert f"draw is nondeterministic: an audit in dispatch {again}" in " ".join(
            str(ct.explain(dispatch_id)).split()
        )
    assert any("draw is nondeterministic" in note for note in ct.redispatch(later).plan().notes)


def test_an_audit_draws_about_its_share(home):
    @ct.electron
    def f(x):
        return x

    @ct.lattice
    def workflow():
        return [f(i) for i in range(200)]

    first = ct.dispatch(workflow)()
    finished(first)
    again = ct.redispatch(first, reuse_previous_results=True, audit=0.25)()
    finished(again)
    audited = sum(code == "AUDIT_SAME" for _, code in codes(again))
    assert 20 <= audited <= 85


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_from_0_to_1(noting, share):
    with pytest.raises(ConfigError, match="must be a share from 0 to 1"):
        ct.redispatch(noting[2], reuse_previous_results=True, audit=share)


def test_an_audit_needs_reuse(noting):
    with pytest.raises(ConfigError, match="reuse_previous_results=True"):
        ct.redispatch(noting[2], audit=0.5)


# -- showing ----------------------------------------------------------------------------


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)


def test_reasons_are_short_masked_and_escaped(home):
    @ct.electron
    def f(text, password, settings):
        return len(text)

    @ct.lattice
    def workflow(text, password, settings):
        return f(text, password, settings)

    first = ct.dispatch(workflow)("<b>" + "x" * 500, "hunter2", {"api_key": "abc"})
    finished(first)
    again = ct.redispatch(first, reuse_previous_results=True)
    plan = again.plan("<i>" + "y" * 500, "hunter2", {"api_key": "abc"})
    sentence = plan["f"].sentence
    assert sentence.startswith("argument text changed: '<b>")
    assert len(sentence) < 170
    assert all(len(line) <= 100 for line in str(plan).splitlines())
    parser = Text()
    parser.feed(plan._repr_html_())
    assert parser.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    same = "<b>" + "x" * 500
    for changed in (again.plan(same, "secret9", {"api_key": "abc"}),
                    again.plan(same, "hunter2", {"api_key": "abd"})):  # fmt: skip
        assert changed["f"].code == "ARGUMENT"
        shown = f"{changed} {changed._repr_html_()} {changed.json()}"
        for secret in ("hunter2", "secret9", "abc'", "abd'"):
            assert secret not in shown


def test_every_node_has_one_reason_also_without_reuse_and_while_running(home, tmp_path):
    gate = tmp_path / "gate"

    @ct.electron
    def wait(x):
        while not gate.exists():
            time.sleep(0.02)
        return x

    @ct.electron
    def after(x):
        return x

    @ct.electron
    @ct.lattice
    def inner(x):
        return after(x)

    @ct.lattice
    def workflow(x):
        return inner(wait(x)) + 1

    running = ct.dispatch(workflow)(1)
    try:
        told = ct.explain(running)
        assert [row.decision for row in told][1:] == ["OPEN", "OPEN"]
        started = time.monotonic()
        child = ct.redispatch(running, reuse_previous_results=True)()
        assert time.monotonic() - started < 10
        assert not ct.get_result(running).status.final
    finally:
        gate.touch()
    assert finished(child).result == 2
    assert finished(running).result == 2
    assert {row.code for row in ct.explain(running)} == {"REUSE_OFF"}
    assert codes(child)[:2] == [("wait", "PARENT_UNFINISHED"), ("inner", "PARENT_UNFINISHED")]


# -- bad input ----------------------------------------------------------------------------


def test_ids(home):
    with pytest.raises(InvalidDispatchIdError):
        ct.redispatch("no id")
    with pytest.raises(DispatchNotFoundError):
        ct.redispatch(str(uuid.uuid4()))
    with pytest.raises(DispatchNotFoundError):
        ct.explain(str(uuid.uuid4()))


def test_replacements_that_cannot_be(noting, untouched):
    dispatch_id = untouched(noting[2])
    with pytest.raises(RedispatchError, match=r"no task of that name. Its tasks: first, second"):
        ct.redispatch(dispatch_id, {"third": lambda x: x})
    for wrong in (lambda: 0, lambda x, y: 0, lambda *, x: 0):
        with pytest.raises(RedispatchError, match="A call of 'first', which is to be replaced"):
            ct.redispatch(dispatch_id, {"first": wrong})
    for fits in (lambda *xs: 0, lambda x, y=1, **more: 0):
        assert ct.redispatch(dispatch_id, {"first": fits}).plan()["first"].code == "REUSE_OFF"
    assert noting[1]() == 2


def test_a_replacement_takes_named_arguments_by_name(home):
    @ct.electron
    def minus(a, b):
        return a - b

    @ct.lattice
    def workflow(n):
        return minus(n, 1) * 100 + minus(b=1, a=n)

    first = ct.dispatch(workflow)(5)
    assert finished(first).result == 404
    again = ct.redispatch(first, {"minus": lambda b, a: a - b}, True)()
    assert finished(again).result == -400 + 4


def test_inputs_that_do_not_fit_are_refused_at_once(noting, untouched):
    dispatch_id = untouched(noting[2])
    count = len(ct.list_dispatches(limit=1000))
    again = ct.redispatch(dispatch_id, reuse_previous_results=True)
    later = ct.redispatch(again())  # the signature goes with it
    for submit in (again, again.plan, later, later.plan):
        for args, kwargs, words in (
            ((1, 2, 3), {}, "too many positional arguments"),
            ((), {"m": 1}, "'n'|'m'"),
            ((1,), {"n": 2}, "multiple values for argument 'n'"),
        ):
            with pytest.raises(RedispatchError, match=rf"'workflow'.*workflow\(n\): .*{words}"):
                submit(*args, **kwargs)
    assert len(ct.list_dispatches(limit=1000)) == count + 1
    assert noting[1]() == 2


def damage(home, digest, data):
    store = current().store
    path = store.path(digest)
    if path is not None:
        path.chmod(0o600)
        path.unlink() if data is None else path.write_bytes(data)
    else:
        base = sqlite3.connect(home / "chelate.db")
        if data is None:
            base.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
        else:
            base.execute("UPDATE blobs SET data = ? WHERE digest = ?", (data, digest))
        base.commit()
        base.close()
    from chelate import embedding

    embedding.shutdown()  # what is remembered of small values would hide the damage


@pytest.mark.parametrize("data", [None, b"x"], ids=["gone", "damaged"])
def test_a_parent_without_its_graph(noting, home, untouched, data):
    workflow, _, dispatch_id = noting
    untouched(dispatch_id)
    finished(ct.dispatch(workflow)(2))
    damage(home, current().record(dispatch_id).graph, data)
    with pytest.raises(StoreError):
        ct.redispatch(dispatch_id)
    again = ct.dispatch(workflow, reuse_from=dispatch_id)
    assert again.plan(3)["first"].code == "PARENT_DAMAGED"
    finished(child := again(3))
    assert codes(child)[0] == ("first", "PARENT_DAMAGED")


@pytest.mark.parametrize("data", [None, b"x"], ids=["gone", "damaged"])
def test_a_parent_without_its_lattice(noting, home, untouched, data):
    _, runs, dispatch_id = noting
    untouched(dispatch_id)
    damage(home, current().record(dispatch_id).lattice, data)
    again = ct.redispatch(dispatch_id, reuse_previous_results=True)
    assert again.plan().counts["REUSE"] == 2
    assert finished(again()).result == 3
    with pytest.raises((StoreError, BuildError)):
        again.plan(5)
    result = ct.get_result(again(5), wait=True, timeout=LONG)
    assert result.status == "FAILED"
    assert "stored value" in result.error
    assert runs() == 2


def test_a_lattice_that_the_worker_cannot_load(home, untouched):
    class Unloadable:
        def __reduce__(self):
            return __import__, ("a_module_that_nobody_has",)

    needs = Unloadable()

    @ct.electron
    def f(x):
        return x

    @ct.lattice
    def workflow(x, more=needs):
        return f(x)

    dispatch_id = ct.dispatch(workflow)(1)
    finished(dispatch_id)
    untouched(dispatch_id)
    result = ct.get_result(ct.redispatch(dispatch_id)(2), wait=True, timeout=LONG)
    assert result.status == "FAILED"
    assert "a_module_that_nobody_has" in result.error
    with pytest.raises(BuildError, match="a_module_that_nobody_has"):
        ct.redispatch(dispatch_id).plan(2)


def test_no_server_and_no_wrong_address(noting):
    with pytest.raises(ConfigError):
        ct.redispatch(noting[2], dispatcher_addr=3)  # type: ignore[arg-type]


def test_ids_stay_whole_where_lines_are_folded():
    name = "cb02fe7c-8de8-54ec-aa83-2237e5cdca53"
    for before in range(60, 100):
        note = f"{'x' * before} {name}."
        assert f"{name}." in str(Explanation("workflow", [], [note]))
