"""The trigger contract: something that watches the world and starts a workflow.

A trigger is bound to a dispatch. Its first fire starts that very dispatch when it is still
waiting, later fires redispatch it with its own inputs. Each fire is stored in one transaction
with the trigger's *cursor*, which says what has been counted, so that a restart neither skips
nor repeats one.

Two ways to write one:

* the durable way: implement :meth:`BaseTrigger.check`, a short look at the world that the kernel
  calls every ``interval`` seconds without a thread of its own. It is given the stored cursor and
  returns how often to fire and the new cursor.
* the plain way: implement ``observe()`` and ``stop()`` and call ``self.trigger()``. The kernel
  gives a blocking ``observe`` a thread.
"""

from __future__ import annotations

import importlib
import inspect
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from chelate.errors import ConfigError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from typing_extensions import Self

__all__ = ["OVERLAPS", "BaseTrigger", "Check", "TriggerLink"]

OVERLAPS = ("allow", "queue", "skip")
_COMMON = (
    "lattice_dispatch_id",
    "dispatcher_addr",
    "triggers_server_addr",
    "max_concurrent",
    "overlap",
)


@dataclass(frozen=True, slots=True)
class Check:
    """What a look at the world gave.

    ``fires`` workflows are to be started; ``cursor`` (JSON) replaces the stored one; ``due`` is
    the number of seconds until the next look (None: the trigger's ``interval``); ``next_fire``
    the moment of the next fire in seconds since the epoch, where it is known.
    """

    fires: int
    cursor: Any
    due: float | None = None
    next_fire: float | None = None


class TriggerLink(Protocol):
    """What a registered trigger reaches its kernel by."""

    trigger_id: str

    def fire(self, trigger: BaseTrigger) -> None:
        """Start or redispatch the workflow, together with ``trigger.cursor``."""

    def stop(self) -> None:
        """Stop the trigger for good."""

    def wake(self) -> None:
        """Call ``check`` soon."""


def _door() -> Any:
    # By name: the contracts are below the doors, and a trigger reaches up only when it is used.
    return importlib.import_module("chelate.triggering")


class BaseTrigger:
    """Base of every trigger. Constructors only store options, which must be plain JSON.

    ``name`` is the class's own name unless a subclass says otherwise; for a trigger from a
    package it equals the name of the entry point. Options are captured from the constructor
    call, so that an equal trigger can be made after a restart; an attribute of the same name
    that was assigned later wins.

    Args:
        lattice_dispatch_id: the dispatch to start and to redispatch.
        dispatcher_addr: reserved for a server.
        triggers_server_addr: reserved for a server.
        max_concurrent: at most so many runs of this trigger at once.
        overlap: what happens to a fire beyond that: ``"skip"`` drops it, ``"queue"`` keeps it
            until a run has ended, ``"allow"`` starts it at once. Default: ``"allow"``, or
            ``"queue"`` when ``max_concurrent`` is given; ``"skip"`` and ``"queue"`` alone mean
            one run at a time.

    Attributes:
        new_dispatch_ids: ids of the redispatches that this object has made, oldest first.
        observe_blocks: whether ``observe`` returns only when it is stopped.
        event_loop: the loop that runs ``observe`` where that is a coroutine function.
        use_internal_funcs: use the kernel of this process rather than a server.
        stop_flag: set by ``stop``; a blocking ``observe`` returns when it is set.
        cursor: a JSON value stored with each fire and given back after a restart; for triggers
            that implement ``observe``.
        interval: seconds between calls of ``check``.
    """

    name: ClassVar[str] = "BaseTrigger"
    quick: ClassVar[bool] = False  # check() neither waits nor does I/O
    interval: float = 1.0

    observe_blocks: bool = True
    event_loop: AbstractEventLoop | None = None
    use_internal_funcs: bool = True
    lattice_dispatch_id: str | None = None
    dispatcher_addr: str | None = None
    triggers_server_addr: str | None = None
    max_concurrent: int | None = None
    overlap: str | None = None
    cursor: Any = None
    new_dispatch_ids: list[str]
    stop_flag: threading.Event
    _link: TriggerLink | None = None
    _given: dict[str, Any]
    _woken: threading.Event

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        _show_signature(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self._given = _arguments(cls, self, args, kwargs)
        self.new_dispatch_ids = []
        self.stop_flag = threading.Event()
        self._woken = threading.Event()
        return self

    def __init__(
        self,
        lattice_dispatch_id: str | None = None,
        dispatcher_addr: str | None = None,
        triggers_server_addr: str | None = None,
        *,
        max_concurrent: int | None = None,
        overlap: str | None = None,
    ) -> None:
        self.lattice_dispatch_id = lattice_dispatch_id
        self.dispatcher_addr = dispatcher_addr
        self.triggers_server_addr = triggers_server_addr
        self.max_concurrent = max_concurrent
        self.overlap = overlap

    # -- for authors ----------------------------------------------------------------------------

    def validate(self) -> None:
        """Check whatever can be known at registration.

        Raises:
            ConfigError: a sentence that names the option.
        """
        return None

    def check(self, cursor: Any, now: float) -> Check:
        """Look once.

        Args:
            cursor: None at the first look, which is made at registration and sets the baseline;
                later what the last look returned, or what was stored last before a restart.
            now: seconds since the epoch.

        Blocking is allowed (it runs in a pool) unless ``quick`` is set; whatever it raises is
        shown as the trigger's error, and it is called again after a growing delay.
        """
        return Check(0, cursor)

    @classmethod
    def checks(cls) -> bool:
        """Whether this class is written the durable way."""
        return cls.check is not BaseTrigger.check

    def observe(self) -> Any:
        """Look and fire in this thread until :meth:`stop`; for triggers written the plain way the
        subclass's own.

        Needs no registration: it may be called in any process that has this home, and then
        nothing is remembered of it.

        Raises:
            ConfigError: the class implements neither ``check`` nor ``observe``, or an option is
                wrong.
            RuntimeError: no dispatch is connected.
        """
        if not self.checks():
            raise ConfigError(
                f"{type(self).__name__} implements neither observe() nor check(); a trigger needs "
                "one of them."
            )
        self.validate()
        self.stop_flag.clear()
        try:
            look = self.check(None, time.time())
            while not self.stop_flag.is_set():
                for _ in range(look.fires):
                    if not self.stop_flag.is_set():
                        self.trigger()
                self._woken.wait(self.interval if look.due is None else look.due)
                self._woken.clear()
                if not self.stop_flag.is_set():
                    look = self.check(look.cursor, time.time())
        finally:
            self.release()

    def release(self) -> None:
        """Let go of threads, files and connections; ``check`` may be called again afterwards."""
        return None

    def hide(self, options: dict[str, Any]) -> dict[str, Any]:
        """Take secrets out of ``options``; what is returned (by name, as it was) is kept in a file
        that only this user can read, and never in the store."""
        return {}

    def wake(self) -> None:
        """Have ``check`` called soon; may be called from any thread."""
        link = self._link
        if link is None:
            self._woken.set()
        else:
            link.wake()

    # -- for users ------------------------------------------------------------------------------

    def trigger(self) -> None:
        """Start the connected dispatch if it still waits; otherwise redispatch it with its inputs
        and append the new id to ``new_dispatch_ids``.

        Raises:
            RuntimeError: no dispatch is connected.
        """
        if self.lattice_dispatch_id is None:
            raise RuntimeError(
                f"This {type(self).__name__} has no dispatch to start: set lattice_dispatch_id, or "
                "attach it with @ct.lattice(triggers=…)."
            )
        if self._link is not None:
            self._link.fire(self)
        else:
            _door().fire(self)

    def register(self) -> None:
        """Store the trigger and start observing, in the kernel of this process and, when that is
        gone, in the next one on this home. Registering twice is registering once.

        Raises:
            ConfigError: an option is wrong, or no dispatch is connected.
            DispatchNotFoundError: there is no such dispatch.
        """
        _door().register(self)

    def stop(self) -> None:
        """Stop observing; of a registered trigger, for good."""
        self.stop_flag.set()
        self._woken.set()
        link = self._link
        if link is not None:
            link.stop()

    def to_dict(self) -> dict[str, Any]:
        """``name``, the constructor's options and those that all triggers have;
        :meth:`from_dict` is the inverse."""
        common = {key: getattr(self, key) for key in _COMMON}
        return {"name": self.name, **self.options(), **common}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """A trigger of this class with the options of :meth:`to_dict`."""
        options = {key: value for key, value in data.items() if key not in ("name", *_COMMON)}
        self = cls(**options)
        for key in _COMMON:
            if key in data:
                setattr(self, key, data[key])
        return self

    def options(self) -> dict[str, Any]:
        """The constructor's own options, as plain JSON.

        Raises:
            ConfigError: one of them is not a JSON value.
        """
        found: dict[str, Any] = {}
        for key, given in self._given.items():
            if key in _COMMON:
                continue
            for value in (vars(self).get(key, given), given):
                try:
                    found[key] = json.loads(json.dumps(value, allow_nan=False))
                    break
                except (TypeError, ValueError):
                    continue
            else:
                raise ConfigError(
                    f"Option {key}={given!r:.80} of {type(self).__name__} is not plain JSON, so it "
                    "cannot be stored; use strings, numbers, lists and dicts."
                )
        return found

    def check_common(self) -> None:
        """What holds for every trigger; called with :meth:`validate` at registration.

        Raises:
            ConfigError: ``max_concurrent`` or ``overlap`` is wrong.
        """
        most, overlap = self.max_concurrent, self.overlap
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise ConfigError(f"max_concurrent={most!r} must be a whole number of at least 1.")
        if overlap is not None and overlap not in OVERLAPS:
            words = ", ".join(repr(word) for word in OVERLAPS)
            raise ConfigError(f"overlap={overlap!r} must be one of {words}.")
        if overlap == "allow" and most is not None:
            raise ConfigError(
                f"overlap='allow' starts every run at once, against max_concurrent={most}; leave "
                "one of them out."
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self.lattice_dispatch_id or 'no dispatch yet'}>"


def _show_signature(cls: type[BaseTrigger]) -> None:
    """Let help() and editors see the constructor and not ``__new__``."""
    signature = inspect.signature(cls.__init__)
    shown = signature.replace(parameters=list(signature.parameters.values())[1:])
    cls.__signature__ = shown  # type: ignore[attr-defined]


_show_signature(BaseTrigger)


def _arguments(
    cls: type[BaseTrigger], self: BaseTrigger, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What the constructor is called with, by name, defaults included."""
    found: dict[str, Any] = {}
    bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
    bound.apply_defaults()
    for index, (name, value) in enumerate(bound.arguments.items()):
        kind = bound.signature.parameters[name].kind
        if index == 0 or kind is kind.VAR_POSITIONAL:
            continue
        if kind is kind.VAR_KEYWORD:
            found.update(value)
        else:
            found[name] = value
    return found
