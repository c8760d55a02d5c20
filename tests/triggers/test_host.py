"""What the kernel does for every trigger: overlap, errors, owners, stopping, history."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.triggers.own import BrokenTrigger, CountingTrigger

from chelate.api import BaseTrigger, Check

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def events(tmp_path: Path) -> Path:
    (tmp_path / "events").touch()
    return tmp_path / "events"


def happen(events: Path, times: int) -> None:
    with events.open("ab") as file:
        file.write(b"." * times)


def register(trigger: BaseTrigger, dispatch_id: str) -> BaseTrigger:
    trigger.lattice_dispatch_id = dispatch_id
    trigger.register()
    return trigger


def script(home: Path, code: str) -> str:
    """Run code in another process on the same home; what it printed."""
    begin = (
        "import chelate as ct, time\n"
        f"ct.configure(home={str(home)!r}, poll_interval=0.1, exit_wait=False)\n"
    )
    path = os.pathsep.join([str(ROOT / "core"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", begin + code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def gated(ct: Any, tmp_path: Path) -> Any:
    """A held dispatch whose runs last until ``open`` exists."""
    gate = tmp_path / "open"

    @ct.electron
    def wait_for_gate(gate: str) -> None:
        while not Path(gate).exists():
            time.sleep(0.05)

    @ct.lattice
    def lasting(gate: str) -> None:
        wait_for_gate(gate)

    return ct.dispatch(lasting, disable_run=True)(str(gate)), gate


def test_overlap_skip_drops_what_comes_meanwhile(
    ct: Any, gated: Any, events: Path, until: Any
) -> None:
    dispatch_id, gate = gated
    register(CountingTrigger(str(events), overlap="skip"), dispatch_id)
    row = lambda: ct.list_triggers()[0]  # noqa: E731
    happen(events, 1)
    until(lambda: row().fires == 1)
    happen(events, 3)
    until(lambda: row().skipped == 3)
    gate.touch()
    ct.get_result(dispatch_id, wait=True)
    happen(events, 1)
    until(lambda: row().fires == 2)
    assert (row().skipped, row().pending) == (3, 0)


def test_overlap_queue_keeps_what_comes_meanwhile(
    ct: Any, gated: Any, events: Path, until: Any
) -> None:
    dispatch_id, gate = gated
    register(CountingTrigger(str(events), max_concurrent=2), dispatch_id)
    row = lambda: ct.list_triggers()[0]  # noqa: E731
    happen(events, 5)
    until(lambda: (row().fires, row().pending) == (2, 3))
    time.sleep(1)
    assert (row().fires, row().pending, row().overlap) == (2, 3, "queue")
    ct.shutdown()  # what waits survives
    gate.touch()
    ct.get_result(dispatch_id, wait=True)
    until(lambda: (row().fires, row().pending) == (5, 0))


def test_overlap_allow_is_the_default(ct: Any, gated: Any, events: Path, until: Any) -> None:
    dispatch_id, gate = gated
    register(CountingTrigger(str(events)), dispatch_id)
    happen(events, 4)
    until(lambda: ct.list_triggers()[0].fires == 4)
    assert ct.list_triggers()[0].overlap == "allow"
    gate.touch()


def test_a_trigger_that_raises_shows_it_backs_off_and_goes_on(
    ct: Any, held: Any, tmp_path: Path, until: Any
) -> None:
    register(BrokenTrigger(str(tmp_path / "works"), max_concurrent=1), held())
    row = lambda: ct.list_triggers()[0]  # noqa: E731
    until(lambda: row().state == "failing")
    assert "the gauge does not answer" in row().last_error
    (tmp_path / "works").touch()
    until(lambda: row().state == "active" and row().fires)
    assert row().last_error is None


def test_observe_that_raises_is_run_again(ct: Any, held: Any, until: Any) -> None:
    tries: list[float] = []

    class Nervous(BaseTrigger):
        def observe(self) -> None:
            tries.append(time.monotonic())
            if len(tries) < 3:
                raise OSError("not yet")
            self.trigger()
            self.stop_flag.wait()

    register(Nervous(), held())
    until(lambda: ct.list_triggers()[0].fires == 1)
    assert tries[1] - tries[0] >= 0.9
    assert tries[2] - tries[1] >= 1.8


def test_whatever_a_trigger_raises_it_goes_on_and_so_do_the_others(
    ct: Any, held: Any, events: Path, until: Any
) -> None:
    left = {"check": 2, "observe": 1}

    class Exits(BaseTrigger):
        interval = 0.1

        def check(self, cursor: Any, now: float) -> Check:
            if threading.current_thread() is threading.main_thread():
                return Check(0, None)  # where it begins, at its registration
            left["check"] -= 1
            if left["check"] >= 0:
                raise SystemExit(3)
            return Check(int(left["check"] == -1), None)

        def stop(self) -> None:
            raise SystemExit(3)

    class Observes(BaseTrigger):
        def observe(self) -> None:
            left["observe"] -= 1
            if left["observe"] >= 0:
                raise KeyboardInterrupt
            self.trigger()
            self.stop_flag.wait()

        def stop(self) -> None:
            self.stop_flag.set()
            raise SystemExit(3)

    ids = [held() for _ in range(3)]
    register(Exits(), ids[0])
    register(Observes(), ids[1])
    register(CountingTrigger(str(events)), ids[2])
    until(lambda: [row.fires for row in ct.list_triggers() if row.dispatch_id != ids[2]] == [1, 1])
    ct.stop_triggers(ids[:2])
    happen(events, 1)
    until(lambda: [row.fires for row in ct.list_triggers() if row.dispatch_id == ids[2]] == [1])


def test_triggers_that_hang_keep_no_other_from_looking(
    ct: Any, held: Any, events: Path, until: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("chelate.kernel.triggers.threads._HANGS", 0.5)
    monkeypatch.setattr("chelate.kernel.triggers.threads._PATIENCE", 0.5)
    gate = threading.Event()

    class Hangs(BaseTrigger):
        def check(self, cursor: Any, now: float) -> Check:
            if threading.current_thread() is not threading.main_thread():
                gate.wait()
            return Check(0, None)

        def stop(self) -> None:
            gate.wait()

    try:
        hanging = [held() for _ in range(10)]
        for dispatch_id in hanging:
            register(Hangs(), dispatch_id)
        counting = held()
        register(CountingTrigger(str(events)), counting)
        happen(events, 2)
        until(
            lambda: [r.fires for r in ct.list_triggers() if r.dispatch_id == counting] == [2],
        )
        begin = time.monotonic()
        ct.stop_triggers(hanging[:2])
        assert time.monotonic() - begin < 8.0
    finally:
        gate.set()


def test_observe_that_returns_is_over(ct: Any, held: Any, until: Any) -> None:
    class Once(BaseTrigger):
        def observe(self) -> None:
            self.trigger()

    register(Once(), held())
    until(lambda: ct.list_triggers()[0].state == "stopped")
    assert ct.list_triggers()[0].fires == 1


def test_observe_that_does_not_block_goes_on(ct: Any, held: Any, until: Any) -> None:
    class Called(BaseTrigger):
        observe_blocks = False

        def observe(self) -> None:
            threading.Timer(0.5, self.trigger).start()

    trigger = register(Called(), held())
    until(lambda: ct.list_triggers()[0].fires == 1)
    assert ct.list_triggers()[0].state == "active"
    trigger.trigger()
    until(lambda: ct.list_triggers()[0].fires == 2)


def test_a_class_that_is_gone_after_a_restart_is_a_visible_state(
    ct: Any, held: Any, tmp_path: Path, until: Any
) -> None:
    dispatch_id = held()
    ct.shutdown()
    script(
        tmp_path / "home",
        "class Tide(ct.triggers.BaseTrigger):\n"
        "    def check(self, cursor, now):\n"
        "        return ct.triggers.Check(0, 1)\n"
        f"t = Tide({dispatch_id!r}); t.register()\n"
        "assert [r.state for r in ct.list_triggers()] == ['active']\n",
    )
    ct.dispatch(ct.lattice(lambda: None, name="wakes_the_kernel"))()
    row = until(lambda: [r for r in ct.list_triggers() if r.state == "class not found"])[0]
    assert "Tide" in row.last_error
    assert "can import" in row.last_error
    ct.stop_triggers(dispatch_id)
    assert ct.list_triggers()[0].state == "stopped"


def test_another_process_lists_pauses_and_stops(
    ct: Any, held: Any, events: Path, tmp_path: Path, until: Any
) -> None:
    dispatch_id = held()
    register(CountingTrigger(str(events)), dispatch_id)
    happen(events, 1)
    until(lambda: ct.list_triggers()[0].fires == 1)
    home = tmp_path / "home"
    said = script(home, f"print([r.state for r in ct.list_triggers({dispatch_id!r})])")
    assert said == "['active']\n"
    script(home, f"ct.pause_triggers({dispatch_id!r})")
    happen(events, 2)
    time.sleep(1)
    assert ct.list_triggers()[0].fires == 1
    ct.resume_triggers(dispatch_id)
    until(lambda: ct.list_triggers()[0].fires == 3)
    script(home, f"ct.stop_triggers({dispatch_id!r})")
    happen(events, 2)
    time.sleep(1)
    assert (ct.list_triggers()[0].fires, ct.list_triggers()[0].state) == (3, "stopped")


def test_the_next_kernel_takes_over_from_a_dead_one(
    ct: Any, held: Any, events: Path, tmp_path: Path, until: Any
) -> None:
    dispatch_id = held()
    script(
        tmp_path / "home",
        "from tests.triggers.own import CountingTrigger\n"
        "import os\n"
        f"t = CountingTrigger({str(events)!r}); t.lattice_dispatch_id = {dispatch_id!r}\n"
        "t.register(); os._exit(0)\n",
    )
    happen(events, 2)
    until(lambda: ct.list_triggers()[0].fires == 2)
    time.sleep(0.5)
    assert ct.list_triggers()[0].fires == 2


def test_two_kernels_fire_once(
    ct: Any, held: Any, events: Path, tmp_path: Path, until: Any
) -> None:
    register(CountingTrigger(str(events)), held())
    other = threading.Thread(
        target=script,
        args=(
            tmp_path / "home",
            "ct.dispatch(ct.lattice(lambda: None, name='x'))(); time.sleep(3)",
        ),
    )
    other.start()
    for _ in range(30):
        happen(events, 1)
        time.sleep(0.1)
    other.join()
    until(lambda: ct.list_triggers()[0].fires == 30)
    time.sleep(0.5)
    assert ct.list_triggers()[0].fires == 30


def test_a_script_with_a_busy_trigger_ends(tmp_path: Path) -> None:
    said = script(
        tmp_path / "home",
        "ct.configure(exit_wait=True)\n"
        "d = ct.dispatch(ct.lattice(lambda: 1, name='x'), disable_run=True)()\n"
        "ct.triggers.TimeTrigger(0.02, d).register()\n"
        "time.sleep(1)\nprint('over')\n",
    )
    assert said == "over\n"


def test_nothing_starts_after_stop_returned(ct: Any, held: Any) -> None:
    for _ in range(5):
        dispatch_id = held()
        register(ct.triggers.TimeTrigger(0.001), dispatch_id)
        time.sleep(0.3)
        ct.stop_triggers(dispatch_id)
        (row,) = ct.list_triggers(dispatch_id)
        runs = len(ct.list_dispatches(limit=10_000))
        assert row.fires > 1
        time.sleep(0.5)
        assert len(ct.list_dispatches(limit=10_000)) == runs
        assert ct.list_triggers(dispatch_id)[0].fires == row.fires


def test_a_trigger_that_was_stopped_starts_nothing_by_hand(ct: Any, held: Any) -> None:
    trigger = register(ct.triggers.TimeTrigger(3600), held())
    trigger.stop()
    trigger.trigger()
    assert ct.list_triggers()[0].fires == 0
    trigger.register()
    trigger.trigger()
    assert [row.fires for row in ct.list_triggers()] == [1, 0]


def test_registering_twice_is_registering_once(ct: Any, held: Any) -> None:
    trigger = register(ct.triggers.TimeTrigger(3600), held())
    trigger.register()
    assert len(ct.list_triggers()) == 1


def test_ids_that_have_no_triggers_are_named(ct: Any, held: Any) -> None:
    armed, bare = held(), held()
    register(ct.triggers.TimeTrigger(3600), armed)
    nobody = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(ct.errors.ConfigError, match=bare):
        ct.stop_triggers([armed, bare])
    with pytest.raises(ct.errors.DispatchNotFoundError, match=nobody):
        ct.stop_triggers([armed, nobody])
    with pytest.raises(ct.errors.InvalidDispatchIdError):
        ct.stop_triggers("not an id")
    assert ct.list_triggers()[0].state == "active", "all or nothing"
    with pytest.raises(ct.errors.DispatchNotFoundError):
        ct.triggers.TimeTrigger(1, nobody).register()


def test_what_is_no_trigger_is_refused(ct: Any) -> None:
    def attached() -> None: ...

    with pytest.raises(ct.errors.ConfigError, match="must be a trigger"):
        ct.dispatch(ct.lattice(attached, triggers="hourly"))()
    assert not ct.list_dispatches()


def test_several_triggers_of_one_lattice(ct: Any, events: Path, tmp_path: Path, until: Any) -> None:
    (tmp_path / "other").touch()

    def attached() -> int:
        return 3

    both = [CountingTrigger(str(events)), CountingTrigger(str(tmp_path / "other"))]
    dispatch_id = ct.dispatch(ct.lattice(attached, triggers=both))()
    happen(events, 1)
    happen(tmp_path / "other", 1)
    until(lambda: sum(row.fires for row in ct.list_triggers(dispatch_id)) == 2)
    ids = [run for row in ct.list_triggers() for run in row.dispatch_ids]
    assert len(ids) == len(set(ids)) == len(ct.list_dispatches()) == 2
    assert dispatch_id in ids
    assert {ct.get_result(run, wait=True).result for run in ids} == {3}


def test_the_history_is_bounded(ct: Any, held: Any, until: Any) -> None:
    class Flood(BaseTrigger):
        def check(self, cursor: Any, now: float) -> Check:
            return Check(0 if cursor != 0 else 1150, 0 if cursor is None else 1)

    register(Flood(), held())
    until(lambda: ct.list_triggers()[0].fires == 1150, 120)
    (row,) = ct.list_triggers()
    assert 900 <= len(row.dispatch_ids) <= 1000
    assert row.history[0]["number"] == 1150
    assert row.history[-1]["number"] == 1151 - len(row.history)


@pytest.mark.parametrize("wrong", [None, 3, Check("many", 1), Check(1, object())])  # type: ignore[arg-type]
def test_a_check_that_breaks_the_contract_says_so(ct: Any, held: Any, wrong: Any) -> None:
    class Wrong(BaseTrigger):
        def check(self, cursor: Any, now: float) -> Any:
            return wrong

    with pytest.raises(ct.errors.PluginContractError, match="Wrong"):
        register(Wrong(), held())


def test_options_must_be_json(ct: Any, held: Any) -> None:
    class Odd(BaseTrigger):
        def __init__(self, thing: Any) -> None:
            self.thing = thing

        def check(self, cursor: Any, now: float) -> Check:
            return Check(0, 1)

    with pytest.raises(ct.errors.ConfigError, match="Option thing="):
        register(Odd(object()), held())


def test_1000_clocks_cost_next_to_nothing(ct: Any, held: Any) -> None:
    dispatch_id = held()
    for _ in range(1000):
        register(ct.triggers.TimeTrigger(3600), dispatch_id)
    threads = threading.active_count()
    time.sleep(1)
    started, spent = time.monotonic(), time.process_time()
    time.sleep(5)
    share = (time.process_time() - spent) / (time.monotonic() - started)
    assert share < 0.05, f"{share:.1%} of a core"
    assert threads < 30
    ct.stop_triggers(dispatch_id)


def test_triggers_of_a_store_on_postgres(
    tmp_path: Path, events: Path, postgres_url: str, until: Any
) -> None:
    import chelate

    chelate.configure(home=tmp_path / "home", store=postgres_url, poll_interval=0.1)
    try:

        def attached() -> int:
            return 3

        trigger = CountingTrigger(str(events), max_concurrent=1)
        dispatch_id = chelate.dispatch(chelate.lattice(attached, triggers=trigger))()
        happen(events, 3)
        until(lambda: chelate.list_triggers()[0].fires == 3)
        chelate.shutdown()
        happen(events, 2)
        chelate.dispatch(chelate.lattice(lambda: None, name="wakes_the_kernel"))()
        until(lambda: chelate.list_triggers()[0].fires == 5)
        chelate.stop_triggers(dispatch_id)
        (row,) = chelate.list_triggers()
        assert (row.state, len(set(row.dispatch_ids))) == ("stopped", 5)
    finally:
        chelate.configure(home=None, store=None, poll_interval=None)
