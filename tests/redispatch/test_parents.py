"""Redispatch of dispatches in every state, and options that cannot be meant."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from tests.redispatch.test_pythons import OTHERS
from tests.redispatch.test_redispatch import damage, finished

import chelate as ct
from chelate.client.codec import load_value, pickle_function
from chelate.embedding import current
from chelate.errors import (
    BuildError,
    ConfigError,
    DispatchNotFoundError,
    InvalidDispatchIdError,
    RedispatchError,
    SerializationError,
)
from chelate.worker import PYTHON_MARK, Runner

LONG = 120
CORE = Path(__file__).resolve().parents[2] / "core"


@ct.electron
def minus(a, b):
    return a - b


@ct.electron
def one(x):
    return x + 1


@ct.electron
@ct.lattice
def inner(x):
    return one(x)


@pytest.fixture
def flow(home, tmp_path):
    """A workflow that waits for a file while it is built with 7, and does not like 9."""
    gate = tmp_path / "gate"

    @ct.lattice
    def gated(a):
        while a == 7 and not gate.exists():
            time.sleep(0.02)
        if a == 9:
            raise ValueError("no nine")
        return one(minus(a, 1))

    dispatch_id = ct.dispatch(gated)(1)
    finished(dispatch_id)
    yield gated, dispatch_id, gate
    gate.touch()


# -- parents ------------------------------------------------------------------------------


def test_a_parent_that_failed_in_building(flow):
    workflow, first, _ = flow
    failed = ct.redispatch(first)(9)
    result = ct.get_result(failed, wait=True, timeout=LONG)
    assert result.status == "FAILED"
    assert "ValueError: no nine" in result.error
    assert "could not be loaded" not in result.error
    told = ct.explain(failed)
    assert len(told) == 0
    assert "could not be built" in str(told)
    # What it came from is reused instead.
    for again in (
        ct.redispatch(failed, reuse_previous_results=True),
        ct.dispatch(workflow, reuse_from=failed),
        ct.dispatch(workflow, reuse_from="latest"),
    ):
        assert again.plan(1).counts == {"REUSE": 2, "RUN": 0, "OPEN": 0}
        assert finished(again(1)).result == 1
    with pytest.raises(BuildError, match=r"raised while its graph was built.*no nine"):
        ct.redispatch(failed).plan()
    repeated = ct.get_result(ct.redispatch(failed)(), wait=True, timeout=LONG)
    assert "no nine" in repeated.error


def test_a_parent_that_is_being_built_and_is_then_cancelled(flow):
    workflow, first, gate = flow
    building = ct.redispatch(first)(7)
    started = time.monotonic()
    assert "is being built" in str(ct.explain(building))
    assert ct.dispatch(workflow, reuse_from=building).plan(1).counts["REUSE"] == 2
    again = ct.redispatch(building, reuse_previous_results=True)
    assert again.plan(1).counts["REUSE"] == 2
    assert again(1) != building
    assert time.monotonic() - started < 30
    assert not ct.get_result(building).status.final
    ct.cancel(building, wait=True)
    assert ct.get_result(building).status == "CANCELLED"
    assert finished(ct.redispatch(building, reuse_previous_results=True)(1)).result == 1
    gate.touch()
    assert finished(ct.redispatch(building)()).result == 7


def test_a_parent_without_its_inputs(flow, home, untouched):
    _, first, _ = flow
    untouched(first)
    damage(home, current().record(first).inputs, None)
    again = ct.redispatch(first, reuse_previous_results=True)
    assert again.plan().counts["REUSE"] == 2
    assert finished(again()).result == 1
    # Which arguments go by name is only known when the workflow is built again.
    swapped = ct.redispatch(first, {"minus": lambda b, a: a - b})
    with pytest.raises(RedispatchError, match=r"inputs of dispatch .* Give them anew"):
        swapped()
    assert finished(swapped(4)).status == "COMPLETED"


def test_ids_that_mean_nothing(flow):
    workflow, first, _ = flow
    for wrong in (first[:8], "Latest", "", 5):
        with pytest.raises(InvalidDispatchIdError):
            ct.dispatch(workflow, reuse_from=wrong)
        with pytest.raises(InvalidDispatchIdError):
            ct.explain(wrong)
    with pytest.raises(DispatchNotFoundError):
        ct.dispatch(workflow, reuse_from=str(uuid.uuid4()))


# -- options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"replace_electrons": {"one": 5}}, RedispatchError, "gives 5 for 'one'"),
        ({"replace_electrons": {"one": None}}, RedispatchError, "gives None for 'one'"),
        ({"replace_electrons": {1: one}}, RedispatchError, "names 1, which is no text"),
        ({"replace_electrons": ["one"]}, RedispatchError, "must be a dict"),
        ({"reuse_previous_results": "x"}, ConfigError, "must be True or False"),
        ({"reuse_previous_results": True, "audit": True}, ConfigError, "from 0 to 1"),
        ({"reuse_previous_results": True, "audit": float("nan")}, ConfigError, "from 0 to 1"),
        ({"reuse_previous_results": True, "audit": "0.5"}, ConfigError, "from 0 to 1"),
    ],
)
def test_options_that_cannot_be_meant(flow, untouched, options, error, words):
    with pytest.raises(error, match=words):
        ct.redispatch(untouched(flow[1]), **options)


def test_triggers_that_are_none():
    for wrong in (5, [ct.triggers.TimeTrigger], "daily"):
        with pytest.raises(ConfigError, match=r"must be a trigger or a list of them"):
            ct.lattice(triggers=wrong)


def test_stopped_triggers_do_not_come_back(home):
    @ct.lattice(triggers=ct.triggers.TimeTrigger(3600))
    def hourly():
        return 1

    dispatch_id = ct.dispatch(hourly)()
    ct.pause_triggers(dispatch_id)
    ct.resume_triggers(dispatch_id)
    ct.stop_triggers(dispatch_id)
    ct.stop_triggers(dispatch_id)
    for change in (ct.resume_triggers, ct.pause_triggers):
        with pytest.raises(ConfigError, match="stopped, which is for good"):
            change(dispatch_id)
        for wrong in (None, 5, [None]):
            with pytest.raises(InvalidDispatchIdError):
                change(wrong)
    ct.cancel(dispatch_id)


# -- replacements ---------------------------------------------------------------------------


def test_an_equal_replacement_changes_nothing(home):
    @ct.lattice
    def workflow(n):
        return inner(one(n))

    first = ct.dispatch(workflow)(1)
    finished(first)
    again = ct.redispatch(first, {"one": lambda x: x + 1}, True)
    plan = again.plan()
    assert plan.counts == {"REUSE": 2, "RUN": 0, "OPEN": 0}
    assert plan.notes == []
    finished(second := again())
    assert ct.explain(second).counts["REUSE"] == 2
    # A sub-workflow that was taken over from another dispatch still has its tasks.
    third = ct.redispatch(second, {"one": lambda x: x * 10}, True)
    assert any("sub-workflow" in note for note in third.plan().notes)
    result = finished(third())
    assert result.result == 100
    assert result.get_node_result("inner")["sublattice_result"].dispatch_id in " ".join(
        str(ct.explain(result.dispatch_id)).split()
    )


def test_open_tasks_name_what_they_wait_for_in_the_order_of_the_call(home):
    @ct.electron
    def total(*parts):
        return sum(parts)

    @ct.electron
    def left(x):
        return x

    @ct.electron
    def right(x):
        return x

    @ct.lattice
    def workflow(n):
        first, second = left(n), right(n)
        return total(total(second, first), one(first))

    first = ct.dispatch(workflow)(1)
    finished(first)
    plan = ct.redispatch(first, reuse_previous_results=True).plan(2)
    told = {row.sentence for row in plan if row.decision == "OPEN"}
    assert told == {
        "decided when right and left finish",
        "decided when left finishes",
        "decided when total and one finish",
    }


# -- other Pythons ----------------------------------------------------------------------------

MAKE = """
import chelate as ct
@ct.electron
def half(x):
    return x / 2
@ct.lattice
def workflow(x):
    return half(x)
result = ct.dispatch_sync(workflow)(8)
assert result.error is None, result.error
print(result.dispatch_id)
"""
AGAIN = """
import sys, chelate as ct
again = ct.redispatch(sys.argv[1], reuse_previous_results=True)
print(again.plan().counts["REUSE"], ct.get_result(again(), wait=True).result)
try:
    again.plan(5)
except ct.errors.BuildError as error:
    print(error)
print(" ".join(ct.get_result(again(5), wait=True).error.split()))
"""


def test_code_of_another_python_is_not_loaded():
    data = pickle_function(lambda x: x).replace(PYTHON_MARK, b"\x8c\x05py3.80")
    assert data[:9] == b"\x80\x05\x8c\x05py3.8"
    with pytest.raises(SerializationError, match=r"stored by Python 3\.8"):
        load_value(data)
    blobs = {"f": data}
    call = {"kind": "task", "name": "t", "function": "f", "args": [], "kwargs": {}, "values": {}}
    header, _, _ = Runner(blobs.__getitem__).run(call)
    assert header["reason"] == "ENV_MISMATCH"
    assert "stored by Python 3.8, and this worker runs Python" in header["error"]
    for value in ("py3.80", b"CodeType", "py"):
        assert load_value(pickle_function(value)) == value


NONE = pytest.mark.skip(reason="CHELATE_TEST_PYTHONS names no other Python to try")


@pytest.mark.parametrize("other", OTHERS or [pytest.param("", marks=NONE)])
def test_stored_code_on_another_python_is_refused_with_a_sentence(tmp_path, other):
    here = "{}.{}".format(*sys.version_info)
    empty = tmp_path / "empty"
    empty.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CHELATE_")}
    environment = {**kept, "CHELATE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(CORE)}

    def run(python, text, *arguments):
        script = tmp_path / "script.py"
        script.write_text(text)
        done = subprocess.run(
            [python, str(script), *arguments], env=environment, cwd=empty, capture_output=True,
            text=True, timeout=LONG, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    (dispatch_id,) = run(sys.executable, MAKE)
    reused, planned, ran = run(other, AGAIN, dispatch_id)
    assert reused == "1 4.0"
    for text in (planned, ran):
        assert f"stored by Python {here}" in text
        assert "reuse_from=" in text
        assert "SIG" not in text
