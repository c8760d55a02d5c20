"""The pure state machine: every move, and what must hold after any sequence of them."""

from __future__ import annotations

import copy
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernel.graphs import chain, graph_of, machine_of

from chelate.errors import ConfigError, MachineError
from chelate.kernel import events as ev
from chelate.kernel.states.machine import Machine
from chelate.kernel.states.transitions import BUG, LATE, TABLE
from chelate.model import FINAL, NodeRecord, NodeStatus, Reason, Retry, Status, ValueRef

S = NodeStatus
OUTPUT = ValueRef("a" * 64, 1)
HANDLE = {"v": 1, "key": "k", "executor": "fake", "native_id": "7", "data": {}, "tasks": []}
NOW = 1_000_000.0


def effects(machine):
    return machine.drain()[1]


def started(graph):
    machine = machine_of(graph)
    machine.start()
    return machine


def send(machine, limit=1000):
    """Take what is ready, as the engine does after its commit."""
    taken = machine.take("fake", limit)
    for node in taken:
        assert machine.sent(node)
    return taken


def done(node, attempt=1):
    return ev.Ended(node, attempt, True, output=OUTPUT)


def failed(node, attempt=1, reason=Reason.USER_ERROR):
    return ev.Ended(node, attempt, False, reason=reason, error="no")


def status(machine, node=0):
    return machine.records[node].status


def in_status(wanted, **policy):
    """A machine of one node (and one below it) in the wanted status."""
    machine = started(graph_of([[], [0]], **{"retry": Retry(times=1, delay=5.0), **policy}))
    if wanted is S.WAITING:
        return machine, 1
    if wanted is S.READY:
        return machine, 0
    send(machine)
    story = {
        S.SUBMITTING: [],
        S.SUBMITTED: [ev.Accepted(0, 1, HANDLE)],
        S.RUNNING: [ev.Accepted(0, 1, HANDLE), ev.Started(0, 1, NOW)],
        S.BACKOFF: [ev.Accepted(0, 1, HANDLE), failed(0)],
        S.EXPANDED: [ev.Accepted(0, 1, HANDLE), ev.Built(0, 1, "child")],
        S.CANCELLING: [ev.Accepted(0, 1, HANDLE), ev.Cancel((0,))],
        S.UNCERTAIN: [ev.Unanswerable(0, 1, "who knows")],
        S.COMPLETED: [done(0)],
        S.FAILED: [failed(0, reason=Reason.PLUGIN)],
        S.CANCELLED: [ev.Unsure(0, 1, "?"), ev.Cancel((0,)), ev.NotFound(0, 1, False)],
        S.SKIPPED: [failed(0, reason=Reason.PLUGIN)],
    }[wanted]
    machine.handle(story, NOW)
    return machine, 1 if wanted is S.SKIPPED else 0


EVENTS = [kind for kind in ev.Event.__args__ if kind is not ev.Cancel]


def test_the_table_decides_every_pair():
    assert set(TABLE) == {(status, event) for status in S for event in EVENTS}
    for entry in TABLE.values():
        assert entry in (LATE, BUG) or callable(getattr(Machine, entry))
    assert all(TABLE[final, event] == LATE for final in FINAL for event in EVENTS)


@pytest.mark.parametrize("wanted", list(S))
def test_every_status_can_be_reached_and_resumed(wanted):
    machine, node = in_status(wanted)
    assert status(machine, node) is wanted
    rows = [copy.deepcopy(row) for row in machine.records.values() if row.status is not S.WAITING]
    again = machine_of(machine.graph)
    again.resume(rows, NOW + 1)
    kept = {S.READY: S.READY}.get(wanted, wanted)
    assert status(again, node) is kept
    asked = {type(effect) for effect in effects(again)}
    assert asked == {
        S.SUBMITTING: {ev.LookUp},
        S.SUBMITTED: {ev.Watch},
        S.RUNNING: {ev.Watch},
        S.BACKOFF: {ev.StartTimer},
        S.CANCELLING: {ev.Watch, ev.CancelJob},
    }.get(wanted, set())


def test_a_chain_runs_in_order_and_every_key_is_its_own():
    machine = started(chain(3))
    keys = set()
    for node in range(3):
        assert send(machine) == [node]
        keys.add(machine.records[node].key)
        machine.handle([ev.Accepted(node, 1, HANDLE), ev.Started(node, 1, NOW), done(node)], NOW)
    assert machine.status is Status.COMPLETED
    assert len(keys) == 3


def test_capacity_is_respected():
    machine = started(graph_of([[]] * 10))
    assert len(machine.take("fake", 3)) == 3
    assert machine.counts[S.READY] == 7
    assert machine.take("other", 3) == []


def test_an_impossible_event_is_a_defect_with_a_story():
    machine = started(chain(2))
    with pytest.raises(MachineError, match=r"node 1 .* WAITING"):
        machine.handle([ev.Ended(1, 0, True)], NOW)
    with pytest.raises(MachineError, match="99"):
        machine.handle([done(99)], NOW)


def test_news_of_an_earlier_attempt_is_ignored():
    machine = started(graph_of([[]], retry=Retry(times=2, delay=0.0)))
    send(machine)
    machine.handle([failed(0)], NOW)
    send(machine)
    machine.handle([done(0, attempt=1)], NOW)
    assert status(machine) is S.SUBMITTING
    machine.handle([done(0, attempt=2)], NOW)
    assert status(machine) is S.COMPLETED


# -- retrying -------------------------------------------------------------------------------------


def fail_until_over(machine, reason, limit=20):
    for attempt in range(1, limit):
        if not send(machine):
            return attempt - 1
        machine.handle([failed(0, attempt, reason)], NOW)
    raise AssertionError("it never gave up")


def test_the_users_budget_counts_user_errors():
    machine = started(graph_of([[]], retry=Retry(times=2, delay=0.0)))
    assert fail_until_over(machine, Reason.USER_ERROR) == 3
    record = machine.records[0]
    assert record.status is S.FAILED
    assert record.reason == "USER_ERROR"
    assert [entry["attempt"] for entry in record.attempts] == [1, 2]


def test_losses_have_a_budget_of_their_own():
    machine = started(graph_of([[]], retry=Retry(times=1, delay=0.0, infrastructure=2)))
    for attempt, reason in enumerate([Reason.LOST, Reason.USER_ERROR, Reason.PREEMPTED], 1):
        send(machine)
        machine.handle([failed(0, attempt, reason)], NOW)
        assert status(machine) is S.READY
    send(machine)
    machine.handle([failed(0, 4, Reason.NODE_FAIL)], NOW)
    assert status(machine) is S.FAILED


def test_the_death_of_the_kernel_costs_no_retry():
    machine = started(graph_of([[]], retry=Retry(times=0, infrastructure=0)))
    for attempt in range(1, 6):
        send(machine)
        machine.handle([ev.Gone(0, attempt, Reason.LOST, "gone", counted=False)], NOW)
        assert status(machine) is S.READY


@pytest.mark.parametrize("reason", [Reason.UNPICKLABLE, Reason.ENV_MISSING, Reason.PRERUN])
def test_what_cannot_succeed_is_not_tried_again(reason):
    machine = started(graph_of([[]], retry=Retry(times=5, delay=0.0)))
    assert fail_until_over(machine, reason) == 1


def test_a_lost_submission_without_lookup_costs_the_infrastructure_budget():
    """A plugin whose run() always fails must not be asked for ever."""
    machine = started(graph_of([[]], retry=Retry(times=0, delay=0.0, infrastructure=3)))
    attempt = 0
    while send(machine):
        attempt += 1
        machine.handle([ev.Unsure(0, attempt, "run() broke"), ev.NotFound(0, attempt, False)], NOW)
    assert attempt == 4
    assert machine.records[0].error == "run() broke"
    assert machine.records[0].reason == "LOST"


def test_after_a_restart_an_unsent_attempt_costs_nothing():
    machine = machine_of(graph_of([[]], retry=Retry(times=0, delay=0.0, infrastructure=0)))
    machine.resume([NodeRecord(0, S.SUBMITTING, attempt=1, key="k", executor="fake")], NOW)
    machine.handle([ev.NotFound(0, 1, False)], NOW)
    assert status(machine) is S.READY
    send(machine)
    machine.handle([ev.Unsure(0, 2, "broke"), ev.NotFound(0, 2, False)], NOW)
    assert status(machine) is S.FAILED


def test_backoff_grows_and_ends_with_its_own_timer():
    machine = started(graph_of([[]], retry=Retry(times=3, delay=2.0, factor=3.0, max_delay=10.0)))
    waits = []
    for attempt in (1, 2, 3):
        send(machine)
        machine.drain()
        machine.handle([failed(0, attempt)], NOW)
        assert status(machine) is S.BACKOFF
        (timer,) = effects(machine)
        waits.append(timer.seconds)
        machine.handle([timer.event], NOW)
    assert waits == [2.0, 6.0, 10.0]


def test_a_stored_wait_survives_a_jump_of_the_clock():
    record = NodeRecord(0, S.BACKOFF, attempt=1, due=NOW + 1e9)
    machine = machine_of(graph_of([[]], retry=Retry(times=1, delay=5.0, max_delay=5.0)))
    machine.resume([record], NOW)
    assert effects(machine) == [ev.StartTimer(ev.Due(0, 1), 5.0)]


def test_a_new_attempt_shows_nothing_of_the_last_one():
    machine = started(graph_of([[]], retry=Retry(times=1, delay=0.0)))
    send(machine)
    ended = failed(0)
    ended.stdout, ended.exception, ended.usage = "b" * 64, "c" * 64, {"cpu": 1}
    machine.handle([ended], NOW)
    send(machine)
    record = machine.records[0]
    assert (record.stdout, record.exception, record.usage, record.error) == (None,) * 4


def test_deferral_costs_nothing():
    machine = started(graph_of([[]], retry=Retry(times=0)))
    for _ in range(10):
        send(machine)
        machine.handle([ev.Deferred(0, 1, "queue full")], NOW)
    assert status(machine) is S.READY
    assert machine.records[0].attempts == []


def test_resending_keeps_the_key():
    machine = started(graph_of([[]]))
    send(machine)
    key = machine.records[0].key
    machine.handle([ev.Unsure(0, 1, "lost"), ev.NotFound(0, 1, True)], NOW)
    assert ev.Run(0) in effects(machine)
    assert machine.sent(0)
    assert machine.records[0].key == key


# -- time limits ----------------------------------------------------------------------------------


def running(**policy):
    machine, _ = in_status(S.RUNNING, **policy)
    return machine


def test_a_task_over_its_limit_is_stopped_and_says_so():
    machine = running(timeout=3.0, retry=Retry())
    timer = next(e for e in effects(machine) if isinstance(e, ev.StartTimer))
    assert timer.seconds == 3.0
    machine.handle([timer.event], NOW)
    assert status(machine) is S.CANCELLING
    assert effects(machine) == [ev.CancelJob(0)]
    machine.handle([ev.Gone(0, 1, Reason.UNKNOWN, "killed")], NOW)
    assert machine.records[0].reason == "TIMEOUT"
    assert "3 s" in machine.records[0].error
    assert machine.status is Status.FAILED


def test_a_job_over_its_limit_that_its_backend_calls_cancelled_has_timed_out():
    machine = running(timeout=3.0, retry=Retry())
    machine.handle([ev.TimedOut(0, 1), failed(0, reason=Reason.CANCELLED_BY_USER)], NOW)
    assert machine.records[0].reason == "TIMEOUT"
    assert machine.status is Status.FAILED


@pytest.mark.parametrize("attempt_is_over", [False, True])
def test_a_stopped_task_that_reports_an_error_has_timed_out(attempt_is_over):
    machine = running(timeout=3.0, retry=Retry())
    machine.handle([ev.TimedOut(0, 1), failed(0)], NOW)
    assert machine.records[0].reason == "TIMEOUT"
    if attempt_is_over:
        machine.handle([ev.TimedOut(0, 1)], NOW)
        assert status(machine) is S.FAILED


def test_success_in_the_last_moment_counts():
    machine = running(timeout=3.0)
    machine.handle([ev.TimedOut(0, 1), done(0)], NOW)
    assert status(machine) is S.COMPLETED


def test_a_subworkflow_built_in_the_last_moment_goes_on():
    machine = running(timeout=3.0)
    machine.handle([ev.TimedOut(0, 1), ev.Built(0, 1, "child")], NOW)
    assert status(machine) is S.EXPANDED


# -- cancelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [s for s in S if s not in FINAL])
def test_cancel_reaches_every_status(wanted):
    machine, node = in_status(wanted)
    machine.drain()
    machine.handle([ev.Cancel(None), ev.Cancel(None)], NOW)
    at_once = {S.WAITING, S.READY, S.BACKOFF, S.UNCERTAIN}
    assert status(machine, node) is (S.CANCELLED if wanted in at_once else S.CANCELLING)
    asked = effects(machine)
    assert not any(isinstance(effect, ev.Run) for effect in asked)
    expected = {
        S.SUBMITTING: [ev.CancelJob(0)],
        S.SUBMITTED: [ev.CancelJob(0)],
        S.RUNNING: [ev.CancelJob(0)],
        S.EXPANDED: [ev.CancelChild(0, "child")],
    }.get(wanted, [])
    assert asked == expected
    assert send(machine) == []
    if wanted in (S.SUBMITTING, S.SUBMITTED, S.RUNNING, S.CANCELLING):
        machine.handle([ev.Gone(0, 1, Reason.UNKNOWN, "")], NOW)
    elif wanted is S.EXPANDED:
        machine.handle([ev.ChildEnded(0, "other", Status.FAILED)], NOW)
        assert status(machine) is S.CANCELLING
        machine.handle([ev.ChildEnded(0, "child", Status.CANCELLED)], NOW)
    assert machine.open == 0 or wanted is S.WAITING
    if machine.open == 0:
        assert machine.status is Status.CANCELLED


def cancelled_after_a_resend(*news):
    """An attempt that was sent, not found, sent again and cancelled, and what came then."""
    machine = started(graph_of([[]]))
    send(machine)
    machine.handle([ev.Unsure(0, 1, "lost"), ev.NotFound(0, 1, True, False)], NOW)
    machine.drain()
    machine.handle([ev.Cancel((0,))], NOW)
    assert status(machine) is S.CANCELLING, "the first request may still be on its way"
    assert not machine.sent(0)
    machine.handle(news, NOW)
    return machine


def test_a_cancel_of_what_was_sent_twice_waits_for_certainty():
    machine = cancelled_after_a_resend(ev.NotFound(0, 1, True, False))
    assert status(machine) is S.CANCELLING
    machine.handle([ev.NotFound(0, 1, True, True)], NOW)
    assert status(machine) is S.CANCELLED


def test_a_cancel_before_a_second_request_left_looks_for_the_first():
    machine = started(graph_of([[]]))
    send(machine)
    machine.handle([ev.Unsure(0, 1, "lost"), ev.NotFound(0, 1, True, True)], NOW)
    machine.drain()
    machine.handle([ev.Cancel(None)], NOW)
    assert effects(machine) == [ev.LookUp(0), ev.CancelJob(0)]
    assert not machine.sent(0)
    machine.handle([ev.NotFound(0, 1, True, True)], NOW)
    assert status(machine) is S.CANCELLED


def test_a_forbidden_attempt_is_cancelled():
    assert status(cancelled_after_a_resend(ev.Forbidden(0, 1))) is S.CANCELLED


def test_a_resend_put_off_keeps_its_key():
    machine = started(graph_of([[]]))
    send(machine)
    key = machine.records[0].key
    machine.handle([ev.Unsure(0, 1, "lost"), ev.NotFound(0, 1, True, False)], NOW)
    assert machine.sent(0)
    machine.handle([ev.Deferred(0, 1, "queue full")], NOW)
    assert machine.sent(0)
    assert (machine.records[0].key, machine.records[0].attempt) == (key, 1)


def test_what_a_cancel_waits_for_is_said():
    machine, _ = in_status(S.CANCELLING)
    machine.handle([ev.Stuck(0, 1, "asked 3 times", 3)], NOW)
    assert (machine.records[0].error, machine.records[0].cancel_tries) == ("asked 3 times", 3)
    machine.handle([ev.Gone(0, 1, Reason.UNKNOWN, "")], NOW)
    assert machine.records[0].error is None
    assert machine.records[0].cancel_tries == 3


def test_a_row_that_runs_without_a_handle_is_looked_up():
    machine, _ = in_status(S.RUNNING)
    row = copy.deepcopy(machine.records[0])
    row.handle = None
    again = machine_of(machine.graph)
    again.resume([row], NOW)
    assert effects(again) == [ev.LookUp(0)]
    again.handle([ev.Accepted(0, 1, HANDLE)], NOW)
    assert status(again) is S.SUBMITTED


@pytest.mark.parametrize("final", sorted(FINAL))
def test_cancelling_what_has_ended_changes_nothing(final):
    machine, node = in_status(final)
    machine.drain()
    before = copy.deepcopy(machine.records[node])
    machine.handle([ev.Cancel((node,))], NOW)
    assert machine.records[node] == before


def test_an_intent_that_never_left_is_cancelled_at_once():
    machine = started(graph_of([[]]))
    machine.take("fake", 1)
    machine.handle([ev.Cancel(None)], NOW)
    assert status(machine) is S.CANCELLED
    assert not machine.sent(0)


def test_a_cancel_waits_for_the_handle():
    machine, _ = in_status(S.SUBMITTING)
    machine.handle([ev.Cancel(None)], NOW)
    machine.drain()
    machine.handle([ev.Accepted(0, 1, HANDLE)], NOW)
    assert effects(machine) == [ev.CancelJob(0)]
    machine.handle([done(0)], NOW)
    assert status(machine) is S.CANCELLED
    assert machine.records[0].output is None


@pytest.mark.parametrize(
    "answer",
    [
        ev.NotFound(0, 1, False),
        ev.NotFound(0, 1, True),
        ev.Deferred(0, 1, ""),
        ev.Unanswerable(0, 1, ""),
        ev.Refused(0, 1, Reason.QUOTA, ""),
    ],
)
def test_a_cancelled_submission_ends_with_any_answer(answer):
    machine, _ = in_status(S.SUBMITTING)
    machine.handle([ev.Cancel(None), answer], NOW)
    assert status(machine) is S.CANCELLED


def test_cancel_takes_what_is_below_and_leaves_the_rest():
    machine = started(graph_of([[], [0], [1], [], [3]]))
    send(machine)
    machine.handle([ev.Cancel((0,))], NOW)
    assert [status(machine, n) for n in (1, 2)] == [S.CANCELLED, S.CANCELLED]
    machine.handle([done(3), ev.Gone(0, 1, Reason.UNKNOWN, "")], NOW)
    send(machine)
    machine.handle([done(4)], NOW)
    assert machine.counts == Counter({S.CANCELLED: 3, S.COMPLETED: 2})
    assert machine.status is Status.CANCELLED


def test_a_cancelled_subworkflow_is_asked_for_again_after_a_restart():
    """Its own job is long over; only the child's end may end it."""
    machine, _ = in_status(S.EXPANDED)
    machine.handle([ev.Cancel(None)], NOW)
    again = machine_of(machine.graph)
    again.resume(copy.deepcopy(list(machine.records.values())), NOW)
    assert effects(again) == [ev.CancelChild(0, "child")]


def test_recording_a_cancel_of_ten_thousand_running_tasks_is_quick():
    machine = started(graph_of([[]] * 10_000))
    for node in send(machine, 10_000):
        machine.handle([ev.Accepted(node, 1, HANDLE)], NOW)
    machine.drain()
    begin = time.perf_counter()
    machine.handle([ev.Cancel(None)], NOW)
    changed, asked = machine.drain()
    assert time.perf_counter() - begin < 1.0  # 200 ms on a machine of its own
    assert len(changed) == len(asked) == 10_000


# -- failing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stop", "end"), [("fail", S.SKIPPED), ("cancel", S.CANCELLED)])
def test_a_chain_of_ten_thousand_ends_without_recursion(stop, end):
    machine = started(chain(10_000))
    send(machine)
    machine.handle([failed(0) if stop == "fail" else ev.Cancel((0,))], NOW)
    machine.handle([ev.Gone(0, 1, Reason.UNKNOWN, "")], NOW)
    assert machine.open == 0
    assert machine.counts[end] >= 9_999
    assert "task_0 (0)" in machine.records[9_999].error


def test_a_failure_leaves_other_branches_running():
    machine = started(graph_of([[], [], [0], [1], [2, 3]]))
    send(machine)
    machine.handle([failed(0), done(1)], NOW)
    assert send(machine) == [3]
    assert status(machine, 2) is status(machine, 4) is S.SKIPPED
    machine.handle([done(3)], NOW)
    assert machine.status is Status.FAILED


def test_a_failed_subworkflow_shows_its_error():
    machine, _ = in_status(S.EXPANDED)
    machine.handle([ev.ChildEnded(0, "child", Status.FAILED, error="inner words")], NOW)
    assert machine.records[0].error == "inner words"
    assert machine.status is Status.FAILED


def test_a_skipped_chain_is_skipped_again_after_a_restart():
    """The commit held the failed row; those below it follow from it."""
    machine = machine_of(chain(3))
    machine.resume([NodeRecord(0, S.FAILED, attempt=1)], NOW)
    assert machine.counts == Counter({S.FAILED: 1, S.SKIPPED: 2})


# -- what must hold after anything ----------------------------------------------------------------


@st.composite
def graphs(draw):
    size = draw(st.integers(1, 8))
    return graph_of(
        [
            draw(st.lists(st.integers(0, node - 1), max_size=3, unique=True)) if node else []
            for node in range(size)
        ],
        retry=Retry(draw(st.integers(0, 2)), draw(st.sampled_from([0.0, 1.0])), infrastructure=1),
        timeout=draw(st.sampled_from([None, 5.0])),
    )


def an_event(draw, node, attempt):
    reason = st.sampled_from([Reason.USER_ERROR, Reason.LOST, Reason.PLUGIN, Reason.TIMEOUT])
    kind = draw(st.sampled_from(EVENTS))
    values = {
        ev.Accepted: lambda: (HANDLE,),
        ev.Refused: lambda: (draw(reason), "no"),
        ev.NotFound: lambda: (draw(st.booleans()), draw(st.booleans())),
        ev.Forbidden: tuple,
        ev.Stuck: lambda: ("no answer", 2),
        ev.Started: lambda: (NOW,),
        ev.Gone: lambda: (draw(reason), "gone", draw(st.booleans())),
        ev.TimedOut: tuple,
        ev.Due: tuple,
        ev.Built: lambda: ("child",),
    }
    if kind is ev.Ended:
        ok = draw(st.booleans())
        return kind(node, attempt, ok, OUTPUT if ok else None, None if ok else draw(reason))
    if kind is ev.ChildEnded:
        ends = [Status.COMPLETED, Status.FAILED, Status.CANCELLED]
        return kind(node, "child", draw(st.sampled_from(ends)), OUTPUT)
    if kind is ev.Reused:
        return kind(node, OUTPUT, ("other", 1))
    return kind(node, attempt, *values.get(kind, lambda: ("text",))())


def check(machine, ended, graph):
    recount = Counter(record.status for record in machine.records.values())
    assert {k: v for k, v in machine.counts.items() if v} == dict(recount)
    assert machine.open == sum(n for status, n in recount.items() if status not in FINAL)
    needs = graph.dependencies()
    for node, record in machine.records.items():
        if node in ended:
            assert record.status is ended[node], f"node {node} left {ended[node]}"
        if record.status in FINAL:
            ended[node] = record.status
        reused = record.reused_from is not None
        if record.status not in (S.WAITING, S.SKIPPED, S.CANCELLED) and not reused:
            for parent in needs[node]:
                assert machine.records[parent].status is S.COMPLETED
        if record.status is S.COMPLETED:
            assert record.output is not None
    for record in machine.records.values():
        spent = [entry for entry in record.attempts if entry.get("counted", True)]
        retry = machine.policy(record.node_id).retry
        assert len(spent) <= retry.times + retry.losses


@settings(max_examples=150, deadline=None)
@given(st.data(), graphs())
def test_random_walks_keep_the_books(data, graph):
    draw = data.draw
    machine = started(graph)
    ended, cancelled = {}, set()
    sent = set()
    for _ in range(draw(st.integers(1, 40))):
        action = draw(st.sampled_from(["event", "event", "event", "take", "cancel", "restart"]))
        if action == "take":
            machine.take("fake", draw(st.integers(0, 3)))
        elif action == "cancel":
            chosen = draw(st.none() | st.lists(st.sampled_from(sorted(machine.nodes)), max_size=2))
            machine.handle([ev.Cancel(None if chosen is None else tuple(chosen))], NOW)
            cancelled |= set(machine.nodes) if chosen is None else set(chosen)
        elif action == "restart":
            rows = [r for r in machine.records.values() if r.status is not S.WAITING]
            flag = machine.cancel_requested
            machine = machine_of(graph)
            machine.cancel_requested = flag
            machine.resume(copy.deepcopy(rows), NOW)
        else:
            node = draw(st.sampled_from(sorted(machine.nodes)))
            record = machine.records[node]
            event = an_event(draw, node, draw(st.sampled_from([record.attempt, 1])))
            if TABLE[record.status, type(event)] != BUG:
                machine.handle([event], NOW)
        check(machine, ended, graph)
        for effect in effects(machine):
            if isinstance(effect, ev.Run) and machine.sent(effect.node):
                assert effect.node not in cancelled, "sent after its cancel"
                key = machine.records[effect.node].key
                sent.add(key)
    assert machine.cancel_requested is False or not machine.ready.get("fake") or not send(machine)


@settings(max_examples=50, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_any_graph_completes_when_every_task_does(graph, random):
    machine = started(graph)
    flying = []
    while machine.open:
        flying += send(machine, random.randint(1, 4))
        random.shuffle(flying)
        machine.handle([done(flying.pop())], NOW)
    assert machine.status is Status.COMPLETED


def test_a_cancel_recorded_while_nobody_owned_the_dispatch_is_acted_on() -> None:
    machine = machine_of(chain(3))
    row = NodeRecord(0, S.RUNNING, attempt=1, key="k", executor="local", handle={"key": "k"})
    row.cancel_requested = True
    machine.resume([row], 1.0)
    assert machine.records[0].status is S.CANCELLING
    assert machine.records[0].cancel_requested
    assert [machine.records[i].status for i in (1, 2)] == [S.CANCELLED, S.CANCELLED]
    _, effects = machine.drain()
    assert {type(effect) for effect in effects} == {ev.Watch, ev.CancelJob}
    machine.handle([ev.Gone(0, 1, Reason.LOST, "gone", counted=False)], 2.0)
    assert machine.status is Status.CANCELLED


@pytest.mark.parametrize(
    ("name", "value"), [("delay", "1"), ("delay", float("inf")), ("max_delay", None), ("factor", 0)]
)
def test_a_wait_that_is_no_number_of_seconds_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"retries: {name}="):
        Retry(times=1, **{name: value})
