"""What every trigger must do, as tests that an author of a trigger runs on their own::

    class TestTides(TriggerConformance):
        @pytest.fixture
        def make_trigger(self, gauge):
            return lambda: TideTrigger(gauge.path)

        @pytest.fixture
        def cause(self, gauge):
            return lambda n: [gauge.rise() for _ in range(n)]

``make_trigger()`` gives a new trigger without a dispatch, set up to fire once per event;
``cause(n)`` makes n events happen. Workflows run in a home of the test's own.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chelate.contracts.trigger import BaseTrigger
from chelate.errors import ConfigError

__all__ = ["Cause", "MakeTrigger", "TriggerConformance"]

MakeTrigger = Callable[[], BaseTrigger]
Cause = Callable[[int], Any]


class TriggerConformance:
    """Subclass it, and provide the fixtures ``make_trigger`` and ``cause``.

    Attributes:
        by_itself: it fires without a cause, as a clock does; then counts are lower bounds.
        counts_while_down: what happens while no kernel runs, or while it is paused, is counted
            afterwards.
        stands_alone: ``observe()`` works in the user's own thread, too.
        patience: seconds to wait for what must come.
        quiet: seconds after which what has not come will not come.
    """

    by_itself = False
    counts_while_down = True
    stands_alone = True
    patience = 60.0
    quiet = 1.5

    @pytest.fixture
    def ct(self, tmp_path: Path) -> Iterator[Any]:
        """``chelate``, with a home of its own."""
        chelate = importlib.import_module("chelate")
        chelate.configure(home=tmp_path / "home", poll_interval=0.1, progress="off")
        yield chelate
        chelate.configure(home=None, poll_interval=None, progress=None)

    # -- tools ----------------------------------------------------------------------------------

    def held(self, ct: Any) -> str:
        """A dispatch that waits for a trigger."""

        def conformance(value: int) -> int:
            return value

        dispatch_id: str = ct.dispatch(ct.lattice(conformance), disable_run=True)(7)
        return dispatch_id

    def registered(self, ct: Any, trigger: BaseTrigger) -> Any:
        """Register a trigger on a new dispatch; the dispatch's id."""
        trigger.lattice_dispatch_id = self.held(ct)
        trigger.register()
        self.begun(trigger)
        return trigger.lattice_dispatch_id

    def begun(self, trigger: BaseTrigger) -> None:
        """Wait until it looks: a plain trigger's baseline is what its ``observe`` finds."""
        if not type(trigger).checks():
            time.sleep(self.quiet)

    def row(self, ct: Any, dispatch_id: str) -> Any:
        """The one trigger of a dispatch."""
        (row,) = ct.list_triggers(dispatch_id)
        return row

    def fired(self, ct: Any, dispatch_id: str, times: int) -> Any:
        """Wait for so many fires; the row."""
        deadline = time.monotonic() + self.patience
        while (row := self.row(ct, dispatch_id)).fires < times:
            assert time.monotonic() < deadline, f"{row.fires} of {times} fires: {row}"
            time.sleep(0.05)
        if not self.by_itself:
            self.rests(ct, dispatch_id, times)
        return self.row(ct, dispatch_id)

    def rests(self, ct: Any, dispatch_id: str, fires: int) -> None:
        """Nothing more fires."""
        time.sleep(self.quiet)
        row = self.row(ct, dispatch_id)
        assert row.fires == fires, row
        assert len(set(row.dispatch_ids)) == fires
        assert {run.dispatch_id for run in ct.list_dispatches()} >= set(row.dispatch_ids)

    # -- the object -----------------------------------------------------------------------------

    def test_it_is_made_without_side_effects(self, make_trigger: MakeTrigger) -> None:
        before = threading.active_count()
        trigger = make_trigger()
        assert threading.active_count() == before
        assert trigger.new_dispatch_ids == []
        assert trigger.lattice_dispatch_id is None
        assert not trigger.stop_flag.is_set()

    def test_it_is_regenerated_from_its_dictionary(self, make_trigger: MakeTrigger) -> None:
        trigger = make_trigger()
        described = trigger.to_dict()
        assert described["name"] == type(trigger).name
        assert json.loads(json.dumps(described)) == described
        assert type(trigger).from_dict(described).to_dict() == described

    def test_it_needs_a_dispatch(self, ct: Any, make_trigger: MakeTrigger) -> None:
        with pytest.raises(RuntimeError, match="no dispatch"):
            make_trigger().trigger()
        with pytest.raises(ConfigError, match="no dispatch"):
            make_trigger().register()

    # -- firing ---------------------------------------------------------------------------------

    def test_the_first_fire_starts_the_dispatch_and_later_ones_repeat_it(
        self, ct: Any, make_trigger: MakeTrigger, cause: Cause
    ) -> None:
        trigger = make_trigger()
        dispatch_id = self.registered(ct, trigger)
        assert ct.get_result(dispatch_id).status == "NEW_OBJ"
        cause(1)
        self.fired(ct, dispatch_id, 1)
        assert ct.get_result(dispatch_id, timeout=self.patience).result == 7
        cause(2)
        row = self.fired(ct, dispatch_id, 3)
        assert row.dispatch_ids[-1] == dispatch_id
        assert [fire["number"] for fire in row.history] == list(range(row.fires, 0, -1))
        for run in row.dispatch_ids[:2]:
            result = ct.get_result(run, timeout=self.patience)
            assert (result.result, result.redispatched_from in (None, dispatch_id)) == (7, True)
        assert set(trigger.new_dispatch_ids) <= {run.dispatch_id for run in ct.list_dispatches()}
        assert len(trigger.new_dispatch_ids) >= 2

    def test_a_burst_is_counted_exactly(
        self, ct: Any, make_trigger: MakeTrigger, cause: Cause
    ) -> None:
        dispatch_id = self.registered(ct, make_trigger())
        cause(20)
        self.fired(ct, dispatch_id, 2 if self.by_itself else 20)

    def test_one_object_serves_several_dispatches_of_a_lattice(
        self, ct: Any, make_trigger: MakeTrigger, cause: Cause
    ) -> None:
        trigger = make_trigger()
        before = trigger.to_dict()

        def attached(value: int) -> int:
            return value

        lattice = ct.lattice(attached, triggers=[trigger])
        ids = [ct.dispatch(lattice)(value) for value in (1, 2)]
        assert trigger.to_dict() == before
        self.begun(trigger)
        cause(1)
        for value, dispatch_id in enumerate(ids, 1):
            self.fired(ct, dispatch_id, 1)
            assert ct.get_result(dispatch_id, timeout=self.patience).result == value

    def test_it_observes_alone(self, ct: Any, make_trigger: MakeTrigger, cause: Cause) -> None:
        if not self.stands_alone:
            return
        trigger = make_trigger()
        trigger.lattice_dispatch_id = self.held(ct)
        thread = threading.Thread(target=trigger.observe)
        thread.start()
        try:
            time.sleep(self.quiet)  # its baseline is what it finds
            cause(2)
            deadline = time.monotonic() + self.patience
            while not trigger.new_dispatch_ids and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            trigger.stop()
            thread.join(self.patience)
        assert not thread.is_alive()
        assert trigger.new_dispatch_ids, "observe() in a thread of one's own fired nothing"
        assert ct.get_result(trigger.lattice_dispatch_id, timeout=self.patience).result == 7
        assert not ct.list_triggers()

    # -- stopping -------------------------------------------------------------------------------

    @pytest.mark.parametrize("own", [True, False])
    def test_stop_is_final(
        self, ct: Any, make_trigger: MakeTrigger, cause: Cause, own: bool
    ) -> None:
        trigger = make_trigger()
        dispatch_id = self.registered(ct, trigger)
        cause(1)
        self.fired(ct, dispatch_id, 1)
        if own:
            trigger.stop()
        else:
            ct.stop_triggers(dispatch_id)
        fires = self.row(ct, dispatch_id).fires
        cause(2)
        self.rests(ct, dispatch_id, fires)
        ct.shutdown()
        ct.get_result(dispatch_id, timeout=self.patience)
        self.rests(ct, dispatch_id, fires)
        assert self.row(ct, dispatch_id).state == "stopped"
        ct.stop_triggers([dispatch_id])
        assert trigger.stop_flag.is_set()

    def test_it_rests_while_paused(self, ct: Any, make_trigger: MakeTrigger, cause: Cause) -> None:
        dispatch_id = self.registered(ct, make_trigger())
        cause(1)
        self.fired(ct, dispatch_id, 1)
        ct.pause_triggers(dispatch_id)
        fires = self.row(ct, dispatch_id).fires
        cause(3)
        self.rests(ct, dispatch_id, fires)
        assert self.row(ct, dispatch_id).state == "paused"
        ct.resume_triggers(dispatch_id)
        if self.counts_while_down and not self.by_itself:
            fires += 3
        time.sleep(self.quiet)
        cause(1)
        self.fired(ct, dispatch_id, fires + 1)

    def test_a_restart_neither_skips_nor_repeats(
        self, ct: Any, make_trigger: MakeTrigger, cause: Cause
    ) -> None:
        dispatch_id = self.registered(ct, make_trigger())
        cause(2)
        fires = self.fired(ct, dispatch_id, 2).fires
        for _ in range(2):
            ct.shutdown()
            if self.counts_while_down:
                cause(2)
                fires += 1 if self.by_itself else 2
            ct.dispatch(ct.lattice(lambda: None, name="wakes_the_kernel"))()
            fires = self.fired(ct, dispatch_id, fires).fires
        assert self.row(ct, dispatch_id).state == "active"
