"""Calling hooks: one guarded call per implementation, and almost nothing when there is none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

from chelate.errors import RejectedError
from chelate.kernel.pool import Helpers
from chelate.model import Reason

if TYPE_CHECKING:
    import threading

    import pluggy

    from chelate.contracts.executor import Job, Observation
    from chelate.model import DispatchRecord, ExecutorRef, NodeRecord

__all__ = ["Hooks"]

_LOG = logging.getLogger("chelate.plugins")
_PATIENCE = 10.0  # seconds that a hook may take
_Call = tuple[object, Callable[..., Any], tuple[str, ...]]


class Hooks:
    """The hooks that observe and decide, over every enabled plugin.

    The first use imports all enabled plugins, since a policy that was never loaded would be no
    policy. ``failures`` holds sentences about hooks that have raised, by the plugin's description.
    """

    def __init__(
        self,
        manager: pluggy.PluginManager,
        lock: threading.RLock,
        load_all: Callable[[], None],
        describe: Callable[[object], str],
    ) -> None:
        self._manager = manager
        self._lock = lock
        self._load_all = load_all
        self._loaded = False
        self._describe = describe
        self._calls: dict[str, list[_Call]] = {}
        self._helpers = Helpers("chelate-hook")
        self._hung: list[object] = []  # plugins that are not called any more
        self.failures: dict[str, dict[str, None]] = {}

    def refresh(self) -> None:
        """Forget which plugin implements what; a plugin has come or gone."""
        self._calls = {}

    def implemented(self, hook: str) -> bool:
        """Whether any plugin implements ``hook`` (``"tasks_changed"``), so a caller can skip the
        work of preparing its arguments."""
        return bool(self._implementations(hook))

    def before_run(self, executor: ExecutorRef, jobs: Sequence[Job]) -> None:
        """Ask every policy about a batch.

        Raises:
            RejectedError: a policy refuses the batch; its message is for the user.
        """
        for call in self._implementations("before_run"):
            self._guarded("before_run", call, {"executor": executor, "jobs": jobs})

    def classify_failure(
        self, executor: ExecutorRef, observation: Observation, record: NodeRecord
    ) -> Reason | None:
        """The first plugin's answer that is a Reason, or None."""
        values = {"executor": executor, "observation": observation, "record": record}
        for call in self._implementations("classify_failure"):
            answer = self._guarded("classify_failure", call, values)
            if isinstance(answer, Reason):
                return answer
            if answer is not None:
                self._blame("classify_failure", call[0], f"returned {answer!r}, not a Reason")
        return None

    def tasks_changed(self, dispatch_id: str, changes: Sequence[NodeRecord]) -> None:
        """Tell observers, after the commit."""
        for call in self._implementations("tasks_changed"):
            values = {"dispatch_id": dispatch_id, "changes": changes}
            self._guarded("tasks_changed", call, values)

    def dispatch_changed(self, change: DispatchRecord) -> None:
        """Tell observers, after the commit."""
        for call in self._implementations("dispatch_changed"):
            self._guarded("dispatch_changed", call, {"change": change})

    def cancel_requested(self, dispatch_id: str, targets: Sequence[int] | None) -> None:
        """Tell observers, after the commit; ``targets`` is None for the whole dispatch."""
        for call in self._implementations("cancel_requested"):
            values = {"dispatch_id": dispatch_id, "targets": targets}
            self._guarded("cancel_requested", call, values)

    def _implementations(self, hook: str) -> list[_Call]:
        calls = self._calls.get(hook)
        if calls is not None:
            return calls
        with self._lock:
            if not self._loaded:
                self._load_all()
                self._loaded = True
            implementations = getattr(self._manager.hook, f"chelate_{hook}").get_hookimpls()
            # pluggy lists implementations last-called first.
            calls = [
                (impl.plugin, impl.function, impl.argnames) for impl in reversed(implementations)
            ]
            self._calls[hook] = calls
            return calls

    def _guarded(self, hook: str, call: _Call, values: dict[str, Any]) -> Any:
        plugin, function, names = call
        if any(plugin is other for other in self._hung):
            return None
        # In a thread of its own, which is left behind when it hangs: the kernel waits here.
        answer = self._helpers.submit(function, *[values[name] for name in names])
        if not wait([answer], _PATIENCE).done:
            self._hung.append(plugin)
            self._blame(
                hook,
                plugin,
                f"did not return within {_PATIENCE:g} s; no hook of this "
                "plugin is called again before a restart",
            )
            return None
        error = answer.exception()
        if error is None:
            return answer.result()
        if isinstance(error, RejectedError) and hook == "before_run":
            raise error
        self._blame(hook, plugin, f"raised {error!r}", error)
        return None

    def _blame(
        self, hook: str, plugin: object, what: str, error: BaseException | None = None
    ) -> None:
        sentence = f"chelate_{hook} {what}"
        owner = self._describe(plugin)
        known = self.failures.setdefault(owner, {})
        # The traceback once per kind of error; hooks run per batch and would flood the log.
        trace = error if sentence not in known and len(known) < 100 else None
        if len(known) < 100:
            known[sentence] = None
        _LOG.error("Plugin %s: %s", owner, sentence, exc_info=trace)
