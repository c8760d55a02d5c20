"""The reference, attribute by attribute."""

from __future__ import annotations

import inspect
import threading
from pathlib import Path
from typing import Any

import pytest

import chelate
from chelate.kernel.plugins.registry import Plugins

COMMON = ["lattice_dispatch_id", "dispatcher_addr", "triggers_server_addr"]
TABLE = ["db_path", "table_name", "poll_interval", "where_clauses", "trigger_after_n"]
SIGNATURES = {
    "BaseTrigger": ([], {}),
    "DatabaseTrigger": (TABLE, {"poll_interval": 1, "where_clauses": None, "trigger_after_n": 1}),
    "DirTrigger": (
        ["dir_path", "event_names", "batch_size", "recursive"],
        {"batch_size": 1, "recursive": False},
    ),
    "SQLiteTrigger": (TABLE, {"poll_interval": 1, "where_clauses": None, "trigger_after_n": 1}),
    "TimeTrigger": (["time_gap"], {}),
}
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "BaseTrigger": (),
    "DatabaseTrigger": ("sqlite:////x.db", "jobs"),
    "DirTrigger": ("/data", ["created"]),
    "SQLiteTrigger": ("/x.db", "jobs"),
    "TimeTrigger": (5,),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters(name: str) -> None:
    own, defaults = SIGNATURES[name]
    parameters = inspect.signature(getattr(chelate.triggers, name)).parameters
    positional = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == own + COMMON
    for parameter in COMMON:
        assert parameters[parameter].default is None
    for parameter, default in defaults.items():
        assert parameters[parameter].default == default


@pytest.mark.parametrize("name", SIGNATURES)
def test_attributes_and_methods(name: str) -> None:
    kind = getattr(chelate.triggers, name)
    given = EXAMPLES[name]
    trigger = kind(*given, lattice_dispatch_id="d", dispatcher_addr="a", triggers_server_addr="t")
    assert issubclass(kind, chelate.triggers.BaseTrigger)
    for parameter, value in zip(SIGNATURES[name][0], given, strict=False):
        assert getattr(trigger, parameter) == value
    assert trigger.lattice_dispatch_id == "d"
    assert trigger.dispatcher_addr == "a"
    assert trigger.triggers_server_addr == "t"
    assert trigger.new_dispatch_ids == []
    assert trigger.observe_blocks is True
    assert trigger.event_loop is None
    assert trigger.use_internal_funcs is True
    assert isinstance(trigger.stop_flag, threading.Event)
    for method in ("observe", "register", "stop", "trigger", "to_dict"):
        assert callable(getattr(trigger, method))
    described = trigger.to_dict()
    assert described["name"] == name
    assert described["lattice_dispatch_id"] == "d"
    trigger.stop()
    assert trigger.stop_flag.is_set()


def test_attributes_assigned_later_hold(ct: Any, held: Any) -> None:
    trigger = ct.triggers.TimeTrigger(5)
    trigger.lattice_dispatch_id = held()
    trigger.time_gap = 3600
    trigger.max_concurrent = 2
    trigger.register()
    (row,) = ct.list_triggers()
    assert (row.options["time_gap"], row.max_concurrent, row.overlap) == (3600, 2, "queue")
    assert row.kind == "TimeTrigger"


def test_a_trigger_without_a_dispatch_says_so(ct: Any) -> None:
    with pytest.raises(RuntimeError, match="lattice_dispatch_id"):
        ct.triggers.BaseTrigger().trigger()
    with pytest.raises(RuntimeError, match="lattice_dispatch_id"):
        ct.triggers.TimeTrigger(1).trigger()


def test_a_trigger_fires_by_hand(ct: Any, held: Any) -> None:
    dispatch_id = held()
    trigger = ct.triggers.BaseTrigger(dispatch_id)
    trigger.trigger()
    assert ct.get_result(dispatch_id, wait=True).result == 7
    assert trigger.new_dispatch_ids == []
    trigger.trigger()
    (new,) = trigger.new_dispatch_ids
    result = ct.get_result(new, wait=True)
    assert (result.result, result.redispatched_from) == (7, dispatch_id)


def test_a_base_trigger_cannot_be_registered(ct: Any, held: Any) -> None:
    with pytest.raises(ct.errors.ConfigError, match=r"neither observe\(\) nor check\(\)"):
        ct.triggers.BaseTrigger(held()).register()
    with pytest.raises(ct.errors.ConfigError, match=r"neither observe\(\) nor check\(\)"):
        ct.triggers.BaseTrigger(held()).observe()


def test_addresses_of_servers_are_refused_not_ignored(ct: Any, held: Any) -> None:
    for option in ("dispatcher_addr", "triggers_server_addr"):
        trigger = ct.triggers.TimeTrigger(1, held(), **{option: "http://localhost:1"})
        with pytest.raises(ct.errors.ConfigError, match="http://localhost:1"):
            trigger.register()


def test_built_in_triggers_come_through_the_hook() -> None:
    plugins = Plugins()
    for name in ("DatabaseTrigger", "DirTrigger", "SQLiteTrigger", "TimeTrigger"):
        assert plugins.trigger(name) is getattr(chelate.triggers, name)


def test_the_names_are_public(tmp_path: Path) -> None:
    for name in ("list_triggers", "pause_triggers", "resume_triggers", "stop_triggers"):
        assert callable(getattr(chelate, name))
    first = next(iter(inspect.signature(chelate.stop_triggers).parameters.items()))
    assert first[0] == "dispatch_ids"
    assert (
        inspect.signature(chelate.stop_triggers).parameters["triggers_server_addr"].default is None
    )
