"""Plugins of one kernel: found by name, loaded when first needed, each inside a guard.

A broken plugin never breaks anything but itself. It is recorded with its distribution, version
and error, and the error is raised when somebody asks for the name it should provide.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from chelate.contracts import hookspecs
from chelate.errors import ConfigError, PluginConflictError, PluginLoadError, PluginNotFoundError
from chelate.kernel.plugins.checks import REGISTRATION, check_classes, check_functions, contract
from chelate.kernel.plugins.discovery import Entry, PluginFailure, installed_entries
from chelate.kernel.plugins.hooks import Hooks

if TYPE_CHECKING:
    from chelate.contracts.executor import Executor
    from chelate.contracts.store import ResultStore
    from chelate.contracts.trigger import BaseTrigger

__all__ = ["KNOWN_PLUGINS", "PluginRow", "Plugins"]

# What to install for a name that nobody provides: (kind, name) → distribution.
KNOWN_PLUGINS = {
    ("executor", "awsbatch"): "chelate-awsbatch",
    ("executor", "braket"): "chelate-braket",
    ("executor", "dask"): "chelate-dask",
    ("executor", "slurm"): "chelate-slurm",
    ("executor", "ssh"): "chelate-ssh",
}

_SCRIPT = "this process"
_Anything = TypeVar("_Anything")


@dataclass(frozen=True, slots=True)
class PluginRow:
    """One line of ``chelate plugins``. ``status`` is ok, failed, conflict or disabled."""

    name: str
    kind: str
    distribution: str
    version: str
    status: str
    error: str


@dataclass(slots=True)
class _Plugin:
    """One plugin object and how far it got. ``classes`` is None until they were asked for."""

    entry: Entry
    plugin: object = None
    registered: bool = False
    classes: dict[tuple[str, str], type[Any]] | None = None
    failure: PluginFailure | None = None
    cause: BaseException | None = field(default=None, repr=False)


class Plugins:
    """The plugins that one kernel or gateway sees.

    Args:
        disable: names of plugins, or of their distributions, that are never loaded.
        allow: when not None, only these names and distributions are loaded, and the built-ins.
    """

    def __init__(self, *, disable: Iterable[str] = (), allow: Iterable[str] | None = None) -> None:
        self._disable = frozenset(disable)
        self._allow = None if allow is None else frozenset(allow)
        self._lock = threading.RLock()
        self._manager = pluggy.PluginManager("chelate")
        self._manager.add_hookspecs(hookspecs)
        self._entries: list[Entry] | None = None
        self._unreadable: list[PluginFailure] = []
        self._plugins: dict[tuple[str, str], _Plugin] = {}  # by distribution and value
        self._scripts: dict[str, _Plugin] = {}
        self.hooks = Hooks(self._manager, self._lock, self._load_all, self._describe)

    # -- looking up -----------------------------------------------------------------------------

    def executor(self, name: str) -> type[Executor]:
        """The executor class of that name.

        Raises:
            PluginNotFoundError: nobody provides it; the message says what to install.
            PluginConflictError: two distributions provide it; the message names both.
            PluginLoadError: its plugin is broken; distribution, version and error are named.
        """
        return self._find("executor", name)

    def executor_with(self, name: str, options: Mapping[str, Any]) -> Callable[[], Executor]:
        """What makes an executor of that name with these options.

        Raises:
            ConfigError: its class does not take them, as that of another version might.

        Raises also as :meth:`executor` does.
        """
        made_by = self.executor(name)
        try:
            made_by.__new__(made_by, **options)  # binds the options, runs no constructor
        except TypeError as error:
            with self._lock:
                whose = [f"{e.distribution} {e.version}" for e in self._named(name)] or [_SCRIPT]
            text = f"Options of executor {name!r} ({whose[0]}): {error}."
            raise ConfigError(text) from error
        return partial(made_by, **options)

    def trigger(self, name: str) -> type[BaseTrigger]:
        """The trigger class of that name; raises as :meth:`executor` does."""
        return self._find("trigger", name)

    def store(self, scheme: str) -> type[ResultStore]:
        """The result store for a URL scheme (``postgresql+psycopg`` counts as ``postgresql``).

        Raises as :meth:`executor` does.
        """
        return self._find("store", scheme.partition("+")[0].lower())

    def _find(self, kind: str, name: str) -> type[Any]:
        with self._lock:
            entries = self._named(name)
            if not entries and not any(
                (kind, name) in (script.classes or {}) for script in self._scripts.values()
            ):
                self._rescan()
                entries = self._named(name)
            found = {
                script.entry.distribution: script.classes[kind, name]
                for script in self._scripts.values()
                if script.classes and (kind, name) in script.classes
            }
            providers = {entry.distribution for entry in entries} | found.keys()
            if len(providers) > 1:
                raise PluginConflictError(_conflict(kind, name, providers))
            for entry in entries:
                classes = self._classes(self._load(entry))
                if (kind, name) in classes:
                    return classes[kind, name]
                others = ", ".join(f"{k} {n!r}" for k, n in sorted(classes)) or "nothing"
                raise PluginNotFoundError(
                    f"There is no {kind} named {name!r}: {entry.distribution} {entry.version} "
                    f"has an entry point of that name, but its plugin provides {others}."
                )
            if found:
                return next(iter(found.values()))
            raise PluginNotFoundError(self._missing(kind, name))

    def _missing(self, kind: str, name: str) -> str:
        if any(entry.name == name for entry in self._entries or ()):
            return (
                f"The plugin for {kind} {name!r} is installed but switched off; take it out of "
                "disable_plugins, or add it to allow_plugins."
            )
        if distribution := KNOWN_PLUGINS.get((kind, name)):
            return f"No {kind} named {name!r} is installed. Try: pip install {distribution}"
        names = sorted({entry.name for entry in self._entries or () if self._enabled(entry)})
        known = [known_name for known_kind, known_name in KNOWN_PLUGINS if known_kind == kind]
        hint = ""
        if close := get_close_matches(name, [*names, *known], n=1):
            install = KNOWN_PLUGINS.get((kind, close[0]))
            tail = f" (pip install {install})" if install and close[0] not in names else ""
            hint = f" Did you mean {close[0]!r}{tail}?"
        there = sorted({row.name for row in self.report() if row.kind == kind})
        return (
            f"No {kind} is named {name!r}.{hint} There are: {', '.join(there) or 'none'}. If a "
            f"package provides it, install it: pip install chelate-{name}, or its own name."
        )

    # -- finding and loading --------------------------------------------------------------------

    def _rescan(self) -> None:
        importlib.invalidate_caches()
        self._entries, self._unreadable = installed_entries()

    def _enabled(self, entry: Entry) -> bool:
        names = {entry.name, entry.distribution}
        if names & self._disable:
            return False
        return self._allow is None or entry.distribution == "chelate" or bool(names & self._allow)

    def _named(self, name: str) -> list[Entry]:
        if self._entries is None:
            self._rescan()
        return [
            entry for entry in self._entries or () if entry.name == name and self._enabled(entry)
        ]

    def _load_all(self) -> None:
        """Import every enabled plugin, so that its hooks are heard; failures stay recorded."""
        with self._lock:
            if self._entries is None:
                self._rescan()
            for entry in self._entries or ():
                if self._enabled(entry):
                    self._load(entry)

    def _load(self, entry: Entry) -> _Plugin:
        known = self._plugins.get((entry.distribution, entry.value))
        if known is not None:
            return known
        record = _Plugin(entry)
        self._plugins[entry.distribution, entry.value] = record
        if self._guarded(record, "import", lambda: self._import(record)):
            self._guarded(record, "register", lambda: self._register(record))
        return record

    def _import(self, record: _Plugin) -> object:
        record.plugin = record.entry.load()
        return True

    def _guarded(
        self, record: _Plugin, stage: str, step: Callable[[], _Anything]
    ) -> _Anything | None:
        try:
            return step()
        except BaseException as error:
            self._forget(record)
            main = threading.current_thread() is threading.main_thread()
            if main and isinstance(error, KeyboardInterrupt):
                # The user's interrupt is not the plugin's fault: it may be loaded again later.
                self._plugins.pop((record.entry.distribution, record.entry.value), None)
                raise
            record.failure, record.cause = record.entry.failure(stage, error), error
            return None

    def _forget(self, record: _Plugin) -> None:
        if record.registered:
            self._manager.unregister(record.plugin)
            record.registered = False
            self.hooks.refresh()

    def _register(self, record: _Plugin) -> object:
        plugin = record.plugin
        if self._manager.is_registered(plugin):
            return True
        check_functions(plugin)
        try:
            self._manager.register(plugin, f"{record.entry.distribution}:{record.entry.value}")
        finally:
            # pluggy 1.6 keeps a plugin that failed validation; the guard must take it out again.
            record.registered = self._manager.is_registered(plugin)
        callers = self._manager.get_hookcallers(plugin) or []
        for caller in callers:
            optional = all(
                impl.optionalhook for impl in caller.get_hookimpls() if impl.plugin is plugin
            )
            if caller.spec is None and not optional:
                close = get_close_matches(caller.name, hookspecs.__all__, n=1)
                hint = f" Did you mean {close[0]}?" if close else ""
                raise LookupError(f"there is no hook named {caller.name}.{hint}")
        if not callers:
            raise LookupError(
                "it implements no hook; mark its chelate_… functions with chelate.api.hookimpl"
            )
        self.hooks.refresh()
        return True

    def _classes(self, record: _Plugin) -> dict[tuple[str, str], type[Any]]:
        if record.failure is None and record.classes is None:
            record.classes = self._guarded(record, "provide", lambda: self._provided(record))
        if record.failure is not None or record.classes is None:
            failure = record.failure or record.entry.failure("provide", LookupError("no answer"))
            raise PluginLoadError(
                f"The plugin {failure.name!r} of {failure.distribution} {failure.version} broke "
                f"at stage {failure.stage!r}: {failure.error}"
            ) from record.cause
        return record.classes

    def _provided(self, record: _Plugin) -> dict[tuple[str, str], type[Any]]:
        provided: dict[tuple[str, str], type[Any]] = {}
        for kind, hook in REGISTRATION.items():
            for impl in getattr(self._manager.hook, hook).get_hookimpls():
                if impl.plugin is record.plugin:
                    provided.update(check_classes(kind, impl.function()))
        return provided

    # -- plugins without a distribution ----------------------------------------------------------

    def register(self, plugin: object, name: str) -> None:
        """Add a module or object with hooks, for scripts and tests; its errors raise at once.

        Raises:
            PluginLoadError: it breaks the contract of a hook.
        """
        with self._lock:
            record = _Plugin(Entry(name, name, f"{name} ({_SCRIPT})", ""), plugin)
            self._guarded(record, "register", lambda: self._register(record))
            self._classes(record)
            self._scripts[name] = record

    def register_class(self, provided: type[Any]) -> None:
        """Add one executor, trigger or store class that a script defines.

        A class that a plugin provides already is left as it is; one of the same module and
        name as before, as a notebook makes when a cell runs again, takes the older one's place.

        Raises:
            PluginLoadError: the class breaks its contract.
            PluginConflictError: a plugin provides another class of that name.
        """
        label = f"{provided.__module__}.{provided.__qualname__}"
        record = _Plugin(Entry(label, label, f"{label} ({_SCRIPT})", ""), provided)
        with self._lock:
            record.classes = self._guarded(record, "provide", lambda: _script_class(provided))
            for kind, name in self._classes(record):
                for entry in self._named(name):
                    known = self._classes(self._load(entry)).get((kind, name))
                    if known is provided:
                        return
                    if known is not None:
                        raise PluginConflictError(
                            _conflict(kind, name, {entry.distribution, record.entry.distribution})
                        )
            self._scripts[label] = record

    # -- reporting -------------------------------------------------------------------------------

    def report(self) -> list[PluginRow]:
        """What ``chelate plugins`` shows: everything installed, loaded for the occasion."""
        with self._lock:
            self._rescan()
            rows = [
                PluginRow(f.name, "", f.distribution, f.version, "failed", f.error)
                for f in self._unreadable
            ]
            rows += [self._row(entry) for entry in self._entries or ()]
            for script in self._scripts.values():
                rows += [
                    PluginRow(name, kind, script.entry.distribution, "", "ok", "")
                    for kind, name in script.classes or {}
                ]
        return sorted(rows, key=lambda row: (row.name, row.distribution))

    def _row(self, entry: Entry) -> PluginRow:
        kind, status, error = "", "ok", ""
        if not self._enabled(entry):
            status = "disabled"
        else:
            rivals = {other.distribution for other in self._named(entry.name)}
            record = self._load(entry)
            try:
                classes = self._classes(record)
                kind = ", ".join(k for k in REGISTRATION if (k, entry.name) in classes) or "hooks"
                if len(rivals) > 1:
                    status, error = "conflict", _conflict("name", entry.name, rivals)
            except PluginLoadError:
                status = "failed"
                error = record.failure.error if record.failure else ""
            if status == "ok" and (
                troubles := self.hooks.failures.get(self._describe(record.plugin))
            ):
                error = "; ".join(troubles)
        return PluginRow(entry.name, kind, entry.distribution, entry.version, status, error)

    def _describe(self, plugin: object) -> str:
        for record in [*self._plugins.values(), *self._scripts.values()]:
            if record.plugin is plugin:
                entry = record.entry
                return f"{entry.name!r} of {entry.distribution} {entry.version}".rstrip()
        return repr(plugin)


def _conflict(kind: str, name: str, distributions: Iterable[str]) -> str:
    rivals = " and ".join(sorted(distributions))
    return (
        f"The {kind} {name!r} is provided by {rivals}. Uninstall one of them, or name it in "
        "disable_plugins (CHELATE_DISABLE_PLUGINS)."
    )


def _script_class(provided: type[Any]) -> dict[tuple[str, str], type[Any]]:
    for kind in REGISTRATION:
        if isinstance(provided, type) and issubclass(provided, contract(kind)):
            return check_classes(kind, [provided])
    raise TypeError("it is no Executor, BaseTrigger or ResultStore")
