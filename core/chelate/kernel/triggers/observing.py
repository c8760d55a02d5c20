"""Triggers that observe by themselves: each blocking ``observe`` has a thread, and a guard."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable

from chelate.contracts.trigger import BaseTrigger
from chelate.kernel.triggers.fires import Armed, Firing

__all__ = ["Observing"]


class Observing:
    """Runs ``observe`` of one trigger, again after a delay when it raises.

    ``ended`` is called when a blocking ``observe`` returned although nobody had stopped it.
    """

    def __init__(self, firing: Firing, armed: Armed, ended: Callable[[Armed], None]) -> None:
        self._firing = firing
        self._armed = armed
        self._ended = ended

    def start(self) -> None:
        """Start the thread."""
        name = f"chelate-observe-{self._armed.definition.kind}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        armed, instance = self._armed, self._armed.instance
        assert instance is not None
        while not armed.closed:
            try:
                _observe(instance)
                if not armed.closed and instance.observe_blocks:
                    self._ended(armed)
                return
            except BaseException as error:  # noqa: BLE001 - shown as the trigger's error
                if not armed.closed:
                    instance.stop_flag.wait(self._firing.failed(armed, error))


def _observe(instance: BaseTrigger) -> None:
    if not inspect.iscoroutinefunction(instance.observe):
        instance.observe()
        return
    loop = asyncio.new_event_loop()
    instance.event_loop = loop
    try:
        loop.run_until_complete(instance.observe())
    finally:
        instance.event_loop = None
        loop.close()
