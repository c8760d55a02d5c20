"""What is stored of a trigger, under which names, and how its class is found again.

===========================  ====================================================================
``trigger:<id>``             what it is; never changes
``trigger-state:<id>``       state and owner; every write of a fire requires it to be unchanged
``trigger-cursor:<id>``      what its class has counted
``trigger-progress:<id>``    fires, what waits, the last error
``trigger-fires:<id>:<k>``   the k-th hundred fires as ``[number, time, dispatch id]``
===========================  ====================================================================
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chelate.contracts.trigger import BaseTrigger, Check
from chelate.errors import ConfigError, PluginContractError, PluginError, PluginNotFoundError

if TYPE_CHECKING:
    from chelate.kernel.plugins.registry import Plugins

__all__ = [
    "ACTIVE",
    "KEPT_CHUNKS",
    "PAUSED",
    "STOPPED",
    "Definition",
    "Progress",
    "Secrets",
    "TriggerClasses",
    "fact",
    "fire_id",
    "fires_fact",
    "plain_cursor",
    "state_fact",
]

ACTIVE = "active"
PAUSED = "paused"
STOPPED = "stopped"
_CHUNK = 100
KEPT_CHUNKS = 10


def fact(kind: str, trigger_id: str) -> str:
    """The name of a fact: ``kind`` is ``trigger``, ``trigger-state`` and so on."""
    return f"{kind}:{trigger_id}"


def fires_fact(trigger_id: str, number: int) -> str:
    """The name of the fact that holds fire ``number`` (from 1)."""
    return f"trigger-fires:{trigger_id}:{(number - 1) // _CHUNK:06d}"


def state_fact(state: str, owner: str | None) -> dict[str, Any]:
    """The value of ``trigger-state:<id>``."""
    return {"state": state, "owner": owner}


def fire_id(trigger_id: str, number: int) -> str:
    """The dispatch id of a fire: the same fire can never make two dispatches."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{trigger_id}:{number}"))


def plain_cursor(kind: str, look: Check) -> Any:
    """The cursor of a look as it comes back from the store.

    Raises:
        PluginContractError: the look is none, or its cursor is not plain JSON.
    """
    fires = getattr(look, "fires", None)
    if not isinstance(look, Check) or isinstance(fires, bool) or not isinstance(fires, int):
        raise PluginContractError(
            f"check() of trigger {kind} returned {look!r:.80}; it must return a Check with a whole "
            "number of fires."
        )
    try:
        return json.loads(json.dumps(look.cursor, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PluginContractError(
            f"The cursor of trigger {kind} is not plain JSON: {error}."
        ) from error


@dataclass(frozen=True, slots=True)
class Definition:
    """What a trigger is. ``where`` is ``module:qualname`` of its class."""

    trigger_id: str
    dispatch_id: str
    kind: str
    where: str
    plugin: bool
    options: dict[str, Any]
    max_concurrent: int | None
    overlap: str | None
    created_at: float
    secret: bool = False

    @property
    def limit(self) -> int | None:
        """At most so many runs at once; None for any number."""
        if self.max_concurrent is not None:
            return self.max_concurrent
        return 1 if self.overlap in ("skip", "queue") else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Definition:
        return cls(**data)

    def make(self, found: type[BaseTrigger], secrets: Secrets) -> BaseTrigger:
        """An equal trigger of the class.

        Raises:
            ConfigError: the class no longer takes these options, or the secrets are gone.
        """
        options = dict(self.options)
        if self.secret:
            options.update(secrets.read(self.trigger_id))
        try:
            made = found.from_dict(options)
        except TypeError as error:
            raise ConfigError(
                f"{found.__name__} does not take the stored options of this trigger any more "
                f"({error}); stop it and register a new one."
            ) from error
        made.lattice_dispatch_id = self.dispatch_id
        made.max_concurrent, made.overlap = self.max_concurrent, self.overlap
        return made


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a trigger has come.

    ``pending`` fires are counted and not yet started; ``running`` are ids of its dispatches that
    may still run, kept only where there is a limit; ``error`` is ``{"at", "state", "message"}``.
    """

    fires: int = 0
    pending: int = 0
    skipped: int = 0
    failures: int = 0
    last_fire: float | None = None
    next_fire: float | None = None
    running: tuple[str, ...] = ()
    error: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any] | None) -> Progress:
        data = dict(data or {})
        return cls(**{**data, "running": tuple(data.get("running", ()))})


@dataclass(slots=True)
class Secrets:
    """Options that must not be in the store, in files that only the user can read."""

    folder: Path

    def write(self, trigger_id: str, values: dict[str, Any]) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(self.folder / f"{trigger_id}.json", flags, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(values, file)

    def read(self, trigger_id: str) -> dict[str, Any]:
        path = self.folder / f"{trigger_id}.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The secret options of this trigger cannot be read from {path} ({error}); stop "
                "it and register it again."
            ) from error

    def forget(self, trigger_id: str) -> None:
        (self.folder / f"{trigger_id}.json").unlink(missing_ok=True)


@dataclass(slots=True)
class TriggerClasses:
    """From classes to names that survive a restart, and back."""

    plugins: Plugins
    _known: dict[str, type[BaseTrigger]] = field(default_factory=dict)

    def note(self, found: type[BaseTrigger]) -> tuple[str, bool]:
        """``module:qualname``, and whether a plugin provides the class under its name."""
        where = f"{found.__module__}:{found.__qualname__}"
        self._known[where] = found
        try:
            return where, self.plugins.trigger(found.name) is found
        except PluginError:
            return where, False

    def find(self, definition: Definition) -> type[BaseTrigger]:
        """The class of a stored trigger.

        Raises:
            PluginError: nothing provides it; the message says what to do.
        """
        if definition.plugin:
            return self.plugins.trigger(definition.kind)
        if definition.where in self._known:
            return self._known[definition.where]
        module, _, path = definition.where.partition(":")
        try:
            script = sys.modules["__main__"]
            if module == "__main__" and not hasattr(script, path.partition(".")[0]):
                raise LookupError("it was defined in a script, and that has ended")
            found: Any = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
            if not (isinstance(found, type) and issubclass(found, BaseTrigger)):
                raise LookupError(f"{definition.where} is no trigger class")
        except Exception as error:
            raise PluginNotFoundError(
                f"The trigger class {path} of module {module} was not found ({error}). Put it into "
                f"a module that Python {sys.version_info[0]}.{sys.version_info[1]} can import "
                "here, or publish it with an entry point, and this trigger goes on; or stop it "
                "with ct.stop_triggers and register it again."
            ) from error
        self._known[definition.where] = found
        return found
