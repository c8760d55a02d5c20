"""Settings of one kernel or client: defaults, then a TOML file, then the environment, then code.

Every later source wins over the earlier ones, and a wrong value names the source it came from.
A :class:`Settings` object is passed to whoever needs it; nothing here is global.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from chelate.errors import ConfigError

__all__ = ["Settings", "default_home"]

PREFIX = "CHELATE_"
# Variables of the same prefix that are not settings of a kernel.
_OTHER_VARIABLES = frozenset({"CONFIG", "REQUIRE_SERVICES", "SERVER", "TOKEN"})
_FLAG_WORDS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def default_home(environ: Mapping[str, str] | None = None) -> Path:
    """The platform's folder for the user's data, with ``chelate`` below it."""
    environ = os.environ if environ is None else environ
    try:
        user = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    except RuntimeError as error:
        raise ConfigError(
            f"There is no home directory ({error}); say where chelate shall keep its data with "
            "CHELATE_HOME."
        ) from error
    if sys.platform == "darwin":
        return user / "Library" / "Application Support" / "chelate"
    if sys.platform == "win32":
        local = environ.get("LOCALAPPDATA")
        return (Path(local) if local else user / "AppData" / "Local") / "chelate"
    data = environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a relative path is invalid and is ignored.
    return (Path(data) if Path(data).is_absolute() else user / ".local" / "share") / "chelate"


def _whole(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError
        return value

    return check


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ValueError
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _flag_text(text: str) -> Any:
    return _FLAG_WORDS.get(text.lower(), text)


def _folder(value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise ValueError
    return Path(value).expanduser().absolute()


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value or value != value.strip():
        raise ValueError
    return value


def _url(value: Any) -> str | None:
    if value is None:
        return None
    scheme, separator, _ = _name(value).partition("://")
    if not scheme or not separator:
        raise ValueError
    return str(value)


def _one_of(*words: str, upper: bool = False) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        word = _name(value).upper() if upper else _name(value).lower()
        if word not in words:
            raise ValueError
        return word

    return check


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError
    return tuple(_name(item) for item in value)


def _optional_names(value: Any) -> tuple[str, ...] | None:
    return None if value is None else _names(value)


def _names_text(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _tables(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueError
    for name, options in value.items():
        _name(name)
        if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
            raise ValueError
    copy: dict[str, dict[str, Any]] = json.loads(json.dumps(value, default=dict, allow_nan=False))
    return copy


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one setting is checked, read from a variable, and described when it is wrong."""

    allowed: str
    check: Callable[[Any], Any]
    parse: Callable[[str], Any] = str


_RULES: dict[str, _Rule] = {
    "home": _Rule("a folder", _folder),
    "store": _Rule("a URL, such as postgresql://host/database", _url),
    "synchronous": _Rule("'normal' or 'full'", _one_of("normal", "full")),
    "default_executor": _Rule("the name of an executor", _name),
    "max_depth": _Rule("a whole number of at least 1", _whole(1), int),
    "exit_wait": _Rule("true or false", _flag, _flag_text),
    "infrastructure_retries": _Rule("a whole number of at least 0", _whole(0), int),
    "poll_interval": _Rule("a number of seconds above 0", _positive, float),
    "disable_plugins": _Rule("a list of names", _names, _names_text),
    "allow_plugins": _Rule("a list of names", _optional_names, _names_text),
    "log_level": _Rule(f"one of {', '.join(_LEVELS)}", _one_of(*_LEVELS, upper=True)),
    "progress": _Rule("'auto', 'on' or 'off'", _one_of("auto", "on", "off")),
    "executors": _Rule(
        "options as plain JSON by executor name, such as {'slurm': {'partition': 'long'}}",
        _tables,
        json.loads,
    ),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Values are checked however they arrive.

    Args:
        home: folder of the store and of everything else kept between runs; made absolute.
        store: URL of the result store; None is SQLite in ``home``.
        synchronous: ``"normal"`` survives the death of any process; ``"full"`` waits for the disk
            at every commit and survives a power cut as well.
        default_executor: name of the executor for tasks that name none.
        max_depth: how deeply sub-workflows may nest.
        exit_wait: wait at interpreter exit for what still runs; otherwise detach.
        infrastructure_retries: further attempts after a loss that was not the task's fault.
        poll_interval: seconds between looks for what other processes wrote to the store.
        disable_plugins: plugins, by their name or distribution, that are never loaded.
        allow_plugins: when not None, only these plugins are loaded, and the built-ins.
        log_level: least level of chelate's own log lines.
        progress: a progress line while waiting: ``"auto"`` only on a terminal.
        executors: default options by executor name.

    Raises:
        ConfigError: a value is not allowed.
    """

    home: Path = field(default_factory=default_home)
    store: str | None = None
    synchronous: str = "full"
    default_executor: str = "local"
    max_depth: int = 20
    exit_wait: bool = True
    infrastructure_retries: int = 3
    poll_interval: float = 0.5
    disable_plugins: tuple[str, ...] = ()
    allow_plugins: tuple[str, ...] | None = None
    log_level: str = "WARNING"
    progress: str = "auto"
    executors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            value = _checked(name, rule, getattr(self, name), f"setting {name}")
            object.__setattr__(self, name, value)

    @property
    def store_url(self) -> str:
        """``store``, or the SQLite file in ``home``."""
        return self.store or f"sqlite:///{(self.home / 'chelate.db').as_posix()}"

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Settings:
        """Defaults < file < environment < ``overrides``; ``executors`` add up option by option.

        The file is ``$CHELATE_CONFIG``, or ``config.toml`` in the home folder if there is one.
        An override that is None leaves the setting to the other sources.

        Raises:
            ConfigError: a wrong value, an unknown key or an unreadable file; the source is named.
        """
        environ = os.environ if environ is None else environ
        code = {
            key: _value(key, value, f"configure({key}=…)")
            for key, value in (overrides or {}).items()
            if value is not None
        }
        variables = _from_environ(environ)
        home = code.get("home") or variables.get("home") or default_home(environ)
        sources: tuple[dict[str, Any], ...] = (
            {"home": home},
            _from_file(environ, home),
            variables,
            code,
        )
        values: dict[str, Any] = {}
        executors: dict[str, dict[str, Any]] = {}
        for source in sources:
            values.update(source)
            for name, options in source.get("executors", {}).items():
                executors[name] = {**executors.get(name, {}), **options}
        return cls(**{**values, "executors": executors})

    def with_overrides(self, **overrides: Any) -> Settings:
        """A copy with some settings changed. Raises ConfigError as :meth:`load` does."""
        changes = {key: _value(key, value, f"setting {key}") for key, value in overrides.items()}
        return replace(self, **changes)

    def get(self, key: str) -> Any:
        """One setting by name; ``"executors.slurm.partition"`` reaches into tables.

        Raises:
            ConfigError: there is no such setting.
        """
        name, *path = key.split(".")
        _known(name, f"get_config({key!r})")
        value = getattr(self, name)
        for part in path:
            if not isinstance(value, Mapping) or part not in value:
                raise ConfigError(f"There is no setting {key!r}: {part!r} is not set.")
            value = value[part]
        return value

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return dict(json.loads(json.dumps(values, default=str)))


def _known(name: str, source: str) -> _Rule:
    rule = _RULES.get(name)
    if rule is None:
        close = get_close_matches(name, _RULES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_RULES)}."
        raise ConfigError(f"{source}: there is no setting {name!r}; {hint}")
    return rule


def _checked(name: str, rule: _Rule, value: Any, source: str) -> Any:
    try:
        return rule.check(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{source}: {value!r} is not allowed for {name!r}; it must be {rule.allowed}."
        ) from error


def _value(name: str, value: Any, source: str) -> Any:
    return _checked(name, _known(name, source), value, source)


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable[len(PREFIX) :] in _OTHER_VARIABLES:
            continue
        name = variable[len(PREFIX) :].lower()
        rule = _RULES.get(name)
        if rule is None:
            # Plugins and workers have variables of their own, so only a near miss is an error.
            if close := get_close_matches(name, _RULES, n=1, cutoff=0.85):
                raise ConfigError(
                    f"Environment variable {variable} is no setting; "
                    f"did you mean {PREFIX}{close[0].upper()}?"
                )
            continue
        if not text.strip():
            continue
        try:
            values[name] = rule.check(rule.parse(text.strip()))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"environment variable {variable}: {text!r} is not allowed for {name!r}; "
                f"it must be {rule.allowed}."
            ) from error
    return values


def _from_file(environ: Mapping[str, str], home: Path) -> dict[str, Any]:
    named = environ.get(f"{PREFIX}CONFIG", "").strip()
    path = _folder(named) if named else home / "config.toml"
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        document = toml.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if named:
            raise ConfigError(f"CHELATE_CONFIG names {path}, which does not exist.") from error
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from error
    if not named and "home" in document:
        raise ConfigError(
            f"{path}: 'home' cannot be set in the file that lies in the home folder; use "
            "CHELATE_HOME, or name another file with CHELATE_CONFIG."
        )
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key == "home" and isinstance(value, str):
            # Relative to the file, so that a configuration can travel with a project.
            value = path.parent / Path(value).expanduser()
        values[key] = _value(key, value, f"{path}, key {key!r}")
    return values
