"""Times: the grid, what was missed, cron, time zones."""

from __future__ import annotations

import itertools
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from chelate.triggers import TimeTrigger

START = 1_700_000_000.0


def moment(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def test_the_first_fire_comes_after_one_gap() -> None:
    trigger = TimeTrigger(10)
    look = trigger.check(None, START)
    assert (look.fires, look.due, look.next_fire) == (0, 10, START + 10)
    look = trigger.check(look.cursor, START + 9.5)
    assert (look.fires, look.due) == (0, 0.5)
    look = trigger.check(look.cursor, START + 10)
    assert (look.fires, look.next_fire) == (1, START + 20)


def test_a_late_fire_does_not_move_the_grid() -> None:
    trigger = TimeTrigger(10)
    cursor = trigger.check(None, START).cursor
    look = trigger.check(cursor, START + 13)
    assert (look.fires, look.next_fire, look.due) == (1, START + 20, 7)


@pytest.mark.parametrize("missed", [1, 2, 1000, 10**7])
def test_any_number_of_missed_fires_makes_one(missed: int) -> None:
    trigger = TimeTrigger(10)
    cursor = trigger.check(None, START).cursor
    look = trigger.check(cursor, START + 10 * missed + 3)
    assert (look.fires, look.next_fire) == (1, START + 10 * (missed + 1))
    assert trigger.check(look.cursor, START + 10 * missed + 4).fires == 0


def test_a_clock_that_is_set_back_does_not_silence_it() -> None:
    trigger = TimeTrigger(10)
    cursor = trigger.check(None, START).cursor
    assert trigger.check(cursor, START - 86_400).due == 10


def test_cron_in_utc_and_elsewhere() -> None:
    trigger = TimeTrigger(cron="30 6 * * mon-fri")
    look = trigger.check(None, moment("2024-03-01T12:00:00"))  # a Friday
    assert look.next_fire == moment("2024-03-04T06:30:00")
    trigger = TimeTrigger(cron="30 6 * * *", timezone="America/New_York")
    look = trigger.check(None, moment("2024-03-09T12:00:00", "America/New_York"))
    assert look.next_fire == moment("2024-03-10T06:30:00", "America/New_York")  # summer begins
    missed = trigger.check(look.cursor, moment("2024-03-13T12:00:00", "America/New_York"))
    assert missed.fires == 1
    assert missed.next_fire == moment("2024-03-14T06:30:00", "America/New_York")


def test_cron_moves_on_through_the_repeated_hour() -> None:
    trigger = TimeTrigger(cron="*/10 * * * *", timezone="Europe/Berlin")
    now = datetime(2024, 10, 27, 0, 0, tzinfo=timezone.utc).timestamp()  # 02:00, the first time
    cursor = trigger.check(None, now).cursor
    seen = []
    for _ in range(18):
        seen.append(cursor)
        look = trigger.check(cursor, cursor)
        assert look.fires == 1
        cursor = look.cursor
    assert all(later > earlier for earlier, later in itertools.pairwise(seen))
    assert len({stamp // 600 for stamp in seen}) == 18


def test_cron_with_seconds() -> None:
    look = TimeTrigger(cron="* * * * * */20").check(None, START)
    assert 0 < look.next_fire - START <= 20


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        (TimeTrigger(-1), "time_gap=-1"),
        (TimeTrigger(0), "time_gap=0"),
        (TimeTrigger(float("inf")), "above 0"),
        (TimeTrigger(float("nan")), "above 0"),
        (TimeTrigger("5"), "time_gap='5'"),  # type: ignore[arg-type]
        (TimeTrigger(True), "time_gap=True"),
        (TimeTrigger(), "either time_gap= or cron="),
        (TimeTrigger(5, cron="* * * * *"), "either time_gap= or cron="),
        (TimeTrigger(cron="61 * * * *"), "cron='61"),
        (TimeTrigger(cron="every day"), "cron='every day'"),
        (TimeTrigger(cron="0 0 30 2 *"), "cron='0 0 30 2"),
        (TimeTrigger(cron="* * * * *", timezone="Moon/Base"), "timezone='Moon/Base'"),
    ],
)
def test_bad_input_is_refused_at_registration(
    ct: Any, held: Any, trigger: TimeTrigger, words: str
) -> None:
    trigger.lattice_dispatch_id = held()
    with pytest.raises(ct.errors.ConfigError) as caught:
        trigger.register()
    assert words in str(caught.value)
    assert not ct.list_triggers()

    def attached() -> None: ...

    before = len(ct.list_dispatches())
    with pytest.raises(ct.errors.ConfigError):
        ct.dispatch(ct.lattice(attached, triggers=trigger))()
    assert len(ct.list_dispatches()) == before


def test_the_next_fire_is_shown(ct: Any, held: Any) -> None:
    ct.triggers.TimeTrigger(3600, held()).register()
    (row,) = ct.list_triggers()
    assert row.next_fire is not None
    assert 3500 < (row.next_fire - row.created).total_seconds() < 3601
    assert row.last_fire is None
