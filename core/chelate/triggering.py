"""Registering, stopping and listing triggers: the door between users, lattices and the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from chelate.contracts.trigger import BaseTrigger
from chelate.embedding import current
from chelate.errors import ConfigError
from chelate.gateway import LocalGateway
from chelate.kernel.triggers.host import TriggerHost
from chelate.kernel.triggers.intake import Prepared
from chelate.kernel.triggers.records import (
    ACTIVE,
    PAUSED,
    STOPPED,
    Progress,
    Secrets,
    fact,
    state_fact,
)
from chelate.targets import check_dispatch_id

__all__ = [
    "TriggerRow",
    "dispatch_with",
    "fire",
    "list_triggers",
    "pause_triggers",
    "register",
    "resume_triggers",
    "stop_triggers",
]


@dataclass(frozen=True, slots=True)
class TriggerRow:
    """One trigger, as :func:`list_triggers` gives it. Times are UTC.

    ``state`` is ``active``; ``failing`` (its last look raised; it goes on, more slowly);
    ``class not found``; ``unowned`` (active, but no kernel runs at present); ``paused`` or
    ``stopped``. ``history`` has the last thousand fires as ``{"number", "time", "dispatch_id"}``,
    newest first, and ``dispatch_ids`` their ids alone. ``skipped`` counts fires that
    ``overlap="skip"`` dropped, ``pending`` those that wait for a run to end.
    """

    id: str
    kind: str
    dispatch_id: str
    state: str
    options: dict[str, Any]
    max_concurrent: int | None
    overlap: str
    fires: int
    pending: int
    skipped: int
    created: datetime
    last_fire: datetime | None
    next_fire: datetime | None
    last_error: str | None
    dispatch_ids: list[str]
    history: list[dict[str, Any]]


# -- starting ---------------------------------------------------------------------------------


def _gateway(address: str | None) -> LocalGateway:
    if address is not None:
        raise ConfigError(
            f"triggers_server_addr={address!r}: this version runs embedded, without a server; "
            "leave the address out."
        )
    return current()


def _gateway_of(trigger: BaseTrigger) -> LocalGateway:
    if not isinstance(trigger, BaseTrigger):
        raise ConfigError(
            f"{trigger!r:.80} is no trigger; write for example ct.triggers.TimeTrigger(60)."
        )
    return _gateway(trigger.triggers_server_addr or trigger.dispatcher_addr)


def register(trigger: BaseTrigger) -> None:
    """What ``trigger.register()`` does; see there."""
    gateway = _gateway_of(trigger)
    if trigger.lattice_dispatch_id is None:
        raise ConfigError(
            f"This {type(trigger).__name__} has no dispatch to start: set lattice_dispatch_id "
            "before it is registered, or attach it with @ct.lattice(triggers=…)."
        )
    dispatch_id = gateway.record(trigger.lattice_dispatch_id).dispatch_id
    if trigger._link is not None:
        known = gateway.store.get_fact(fact("trigger-state", trigger._link.trigger_id))
        if known is not None and known["state"] != STOPPED:
            return
    host = gateway.triggers
    with host.quiet:
        prepared = host.prepare(trigger, dispatch_id, copy=False)
        try:
            gateway.store.set_facts(prepared.facts)
        except BaseException:
            _drop(host, [prepared])
            raise
        host.arm(prepared)


def dispatch_with(
    gateway: LocalGateway, triggers: Sequence[BaseTrigger], accept: Any, dispatch_id: str
) -> str:
    """Store a held dispatch together with its triggers, and start them.

    Args:
        triggers: left as they are; equal ones are registered.
        accept: ``LocalGateway.accept`` with everything but ``facts``.
        dispatch_id: the id it will have.

    Raises:
        ConfigError: a trigger cannot be registered; then nothing is stored.
    """
    for trigger in triggers:
        _gateway_of(trigger)
    host = gateway.triggers
    ready: list[Prepared] = []
    with host.quiet:
        try:
            for trigger in triggers:
                ready.append(host.prepare(trigger, dispatch_id, copy=True))
            facts = {name: value for item in ready for name, value in item.facts.items()}
            accept(facts=facts)
        except BaseException:
            _drop(host, ready)
            raise
        for item in ready:
            host.arm(item)
    return dispatch_id


def _drop(host: TriggerHost, ready: Iterable[Prepared]) -> None:
    for item in ready:
        host.forget(item)


def fire(trigger: BaseTrigger) -> None:
    """What ``trigger.trigger()`` does for a trigger that is not registered."""
    gateway = _gateway_of(trigger)
    dispatch_id = gateway.record(trigger.lattice_dispatch_id).dispatch_id
    if not gateway.start_held(dispatch_id):
        trigger.new_dispatch_ids.append(gateway.repeat(dispatch_id))


# -- stopping and looking ---------------------------------------------------------------------


def stop_triggers(
    dispatch_ids: str | Iterable[str], triggers_server_addr: str | None = None
) -> None:
    """Stop all triggers of these dispatches for good. Once this has returned, nothing more is
    started by them, whichever process runs them; runs that have been started go on.

    Args:
        dispatch_ids: ids of dispatches, or of single triggers; one or several.
        triggers_server_addr: reserved for a server.

    Raises:
        InvalidDispatchIdError: what was given is no id, and no list of ids.
        DispatchNotFoundError: nothing has that id; then nothing is stopped.
        ConfigError: that dispatch has no triggers; then nothing is stopped.
    """
    _change(dispatch_ids, triggers_server_addr, (ACTIVE, PAUSED), STOPPED)


def pause_triggers(
    dispatch_ids: str | Iterable[str], triggers_server_addr: str | None = None
) -> None:
    """Let these triggers rest. What happens meanwhile counts when they are resumed, as if no
    kernel had run. Arguments and errors as :func:`stop_triggers`.

    Raises:
        ConfigError: all triggers of an id were stopped, which is for good.
    """
    _change(dispatch_ids, triggers_server_addr, (ACTIVE,), PAUSED)


def resume_triggers(
    dispatch_ids: str | Iterable[str], triggers_server_addr: str | None = None
) -> None:
    """Let paused triggers go on from where they were, in this process's kernel. Arguments and
    errors as :func:`stop_triggers`.

    Raises:
        ConfigError: all triggers of an id were stopped, which is for good.
    """
    _change(dispatch_ids, triggers_server_addr, (PAUSED,), ACTIVE)


def _change(
    ids: str | Iterable[str], address: str | None, before: tuple[str, ...], after: str
) -> None:
    gateway = _gateway(address)
    store = gateway.store
    several = isinstance(ids, Iterable) and not isinstance(ids, str)
    trigger_ids = _resolve(gateway, list(ids) if several else [ids], after)  # type: ignore[list-item]
    # A resumed trigger has no owner: the first kernel that looks takes it up.
    host = gateway.triggers if after == ACTIVE or gateway.started else None
    changes = {}
    for trigger_id in trigger_ids:
        name = fact("trigger-state", trigger_id)
        if (store.get_fact(name) or {}).get("state") in before:
            changes[name] = state_fact(after, None)
    if changes:
        store.set_facts(changes)
    if after == STOPPED:
        secrets = Secrets(gateway.settings.home / "triggers")
        for trigger_id in trigger_ids:
            secrets.forget(trigger_id)
    if host is not None:
        host.settle()


def _resolve(gateway: LocalGateway, ids: Sequence[str], after: str) -> list[str]:
    """Trigger ids of dispatches and triggers that are to be in the state ``after``."""
    definitions = dict(gateway.store.facts("trigger:"))
    states = dict(gateway.store.facts("trigger-state:"))
    found: list[str] = []
    for given in ids:
        wanted = check_dispatch_id(given)
        mine = [
            item["trigger_id"]
            for item in definitions.values()
            if wanted in (item["dispatch_id"], item["trigger_id"])
        ]
        if not mine:
            gateway.record(wanted)
            raise ConfigError(
                f"Dispatch {wanted} has no triggers; nothing was changed. ct.list_triggers() shows "
                "which there are."
            )
        if after != STOPPED and all(
            (states.get(fact("trigger-state", one)) or {}).get("state") == STOPPED for one in mine
        ):
            raise ConfigError(
                f"The triggers of {wanted} were stopped, which is for good; nothing was changed. "
                "Dispatch the lattice again to start new ones; pause_triggers is for a while."
            )
        found += mine
    return list(dict.fromkeys(found))


def list_triggers(
    dispatch_id: str | None = None,
    triggers_server_addr: str | None = None,
    *,
    include_stopped: bool = True,
) -> list[TriggerRow]:
    """The triggers of this home, newest first.

    Args:
        dispatch_id: only those of this dispatch, or the one trigger with this id.
        triggers_server_addr: reserved for a server.
        include_stopped: those that were stopped, too.
    """
    gateway = _gateway(triggers_server_addr)
    store = gateway.store
    wanted = None if dispatch_id is None else check_dispatch_id(dispatch_id)
    states = dict(store.facts("trigger-state:"))
    owners = {value["owner"] for value in states.values() if value["owner"]}
    alive = store.kernels_alive(owners) if owners else set()
    rows = []
    for _, data in store.facts("trigger:"):
        state = states.get(fact("trigger-state", data["trigger_id"]))
        if state is None or wanted not in (None, data["dispatch_id"], data["trigger_id"]):
            continue
        if include_stopped or state["state"] != STOPPED:
            rows.append(_row(gateway, data, state, state["owner"] in alive))
    return sorted(rows, key=lambda row: row.created, reverse=True)


def _row(
    gateway: LocalGateway, data: dict[str, Any], state: dict[str, Any], owned: bool
) -> TriggerRow:
    store, key = gateway.store, data["trigger_id"]
    progress = Progress.from_json(store.get_fact(fact("trigger-progress", key)))
    history = [
        {"number": number, "time": _moment(at), "dispatch_id": run}
        for _, chunk in store.facts(f"trigger-fires:{key}:")
        for number, at, run in chunk
    ]
    history.reverse()
    shown = state["state"]
    if shown == ACTIVE and progress.error is not None:
        shown = progress.error["state"]
    elif shown == ACTIVE and not owned:
        shown = "unowned"
    return TriggerRow(
        id=key,
        kind=data["kind"],
        dispatch_id=data["dispatch_id"],
        state=shown,
        options=data["options"],
        max_concurrent=data["max_concurrent"],
        overlap=data["overlap"],
        fires=progress.fires,
        pending=progress.pending,
        skipped=progress.skipped,
        created=_known(data["created_at"]),
        last_fire=_moment(progress.last_fire),
        next_fire=_moment(progress.next_fire) if state["state"] == ACTIVE else None,
        last_error=None if progress.error is None else progress.error["message"],
        dispatch_ids=[item["dispatch_id"] for item in history[:1000]],
        history=history[:1000],
    )


def _known(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else _known(seconds)
