"""The trigger contract: something that watches the world and starts a workflow.

A trigger is bound to a dispatch. Its first fire starts that very dispatch when it is still
waiting, later fires redispatch it with its own inputs. Each fire is stored in one transaction
with the trigger's *cursor*, which says what has been counted, so that a restart neither skips
nor repeats one.

Two ways to write one:

* the durable way: implement :meth:`Trigger.check`, a short poll that the host calls every
  ``interval`` seconds without a thread of its own. It is given the stored cursor and returns how
  often to fire and the new cursor.
* the plain way: implement ``observe()`` and ``stop()`` and call ``self.trigger()`` (see
  ``chelate.triggers.BaseTrigger``); the host gives a blocking ``observe`` a thread.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["Check", "Trigger"]


@dataclass(frozen=True, slots=True)
class Check:
    """What a look at the world gave.

    ``fires`` workflows are to be started; ``cursor`` (JSON) replaces the stored one; ``due`` is
    the number of seconds until the next look (None: the trigger's ``interval``).
    """

    fires: int
    cursor: Any
    due: float | None = None


class Trigger(ABC):
    """Base of every trigger. Constructors store options, which must be plain JSON."""

    name: ClassVar[str]
    interval: float = 1.0

    def validate(self) -> None:
        """Check whatever can be known at registration.

        Raises:
            ConfigError: a sentence that names the option.
        """
        return None

    def check(self, cursor: Any, now: float) -> Check:
        """Look once. ``cursor`` is None the first time; ``now`` is seconds since the epoch.

        Blocking is allowed (it runs in a pool); raising shows the error and backs off.
        """
        return Check(0, cursor)
