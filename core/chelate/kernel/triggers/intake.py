"""A trigger on its way into the store: checked, given its baseline, turned into facts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chelate.contracts.trigger import BaseTrigger
from chelate.errors import ConfigError
from chelate.kernel.triggers.fires import Armed
from chelate.kernel.triggers.records import (
    ACTIVE,
    Definition,
    Progress,
    Secrets,
    TriggerClasses,
    fact,
    plain_cursor,
    state_fact,
)

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked trigger whose ``facts`` wait to be stored."""

    armed: Armed
    facts: Mapping[str, Any]


def prepare(
    trigger: BaseTrigger,
    dispatch_id: str,
    kernel_id: str,
    classes: TriggerClasses,
    secrets: Secrets,
    *,
    copy: bool,
) -> Prepared:
    """Check a trigger, make its first look, and say what to store.

    Args:
        trigger: not registered yet.
        dispatch_id: what it starts.
        kernel_id: the owner to be.
        copy: run an equal trigger, and leave this object alone.

    Raises:
        ConfigError: an option is wrong.
    """
    kind = type(trigger)
    if not kind.checks() and kind.observe is BaseTrigger.observe:
        raise ConfigError(
            f"{kind.__name__} implements neither observe() nor check(); a trigger needs one of "
            "them."
        )
    trigger.check_common()
    trigger.validate()
    options = trigger.options()
    hidden = trigger.hide(options)
    where, plugin = classes.note(kind)
    now = time.time()
    definition = Definition(
        trigger_id=str(uuid.uuid4()),
        dispatch_id=dispatch_id,
        kind=kind.name,
        where=where,
        plugin=plugin,
        options=options,
        max_concurrent=trigger.max_concurrent,
        overlap=trigger.overlap or ("queue" if trigger.max_concurrent else "allow"),
        created_at=now,
        secret=bool(hidden),
    )
    if hidden:
        secrets.write(definition.trigger_id, hidden)
    instance = definition.make(kind, secrets) if copy else trigger
    look = instance.check(None, now)
    cursor = plain_cursor(definition.kind, look)
    progress = Progress(pending=look.fires, next_fire=look.next_fire)
    key = definition.trigger_id
    facts = {
        fact("trigger", key): definition.to_json(),
        fact("trigger-state", key): state_fact(ACTIVE, kernel_id),
        fact("trigger-progress", key): progress.to_json(),
        fact("trigger-cursor", key): [cursor],
    }
    return Prepared(Armed(definition, progress, cursor, [], instance), facts)
