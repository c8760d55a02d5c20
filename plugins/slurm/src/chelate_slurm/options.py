"""Slurm's options: checked offline, and turned into arguments of ``sbatch``.

Names are those of sbatch(1) with ``_`` for ``-``. Nothing here touches the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from chelate.api import ConfigError, Resources, parse_memory

__all__ = ["NAMED", "SbatchOptions", "minutes_of"]

_TEXT = re.compile(r"[^\0-\x1f\x7f]+")
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_CLOCK = re.compile(r"(?:(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?|(\d+)(?::(\d+)(?::(\d+))?)?)")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_GPU = re.compile(r"[A-Za-z0-9_.-]+")


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("a text")
    if not _TEXT.fullmatch(str(value)):
        raise ValueError("a text of one line")
    return str(value)


def _names(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return _text(value)


def _count(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number of at least 1")
    return str(value)


def _whole(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a whole number")
    return str(value)


def _nodes(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"\d+-\d+|\d+", value):
        return value
    return _count(value)


def _memory(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"0|\d+[KMGT]?", value, re.IGNORECASE):
        return value  # as Slurm reads it; 0 is all there is
    return f"{parse_memory(value)}M"


def _time(value: Any) -> str:
    minutes = minutes_of(value)
    return "UNLIMITED" if minutes is None else _clock(minutes * 60.0)


def minutes_of(value: Any) -> float | None:
    """A time limit in minutes, None for no limit.

    A number is minutes, as for sbatch; texts are ``"MM"``, ``"MM:SS"``, ``"HH:MM:SS"``,
    ``"D-HH"``, ``"D-HH:MM"``, ``"D-HH:MM:SS"``, ``"90m"``, ``"2h"``, ``"1d"`` or ``"UNLIMITED"``.

    Raises:
        ValueError: none of these; the message says what is allowed.
    """
    allowed = "a time limit: minutes, 'HH:MM:SS', 'D-HH:MM:SS', '90m', '2h' or 'UNLIMITED'"
    seconds = 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(allowed)
    if isinstance(value, (int, float)):
        seconds = value * 60.0
    elif value.upper() in ("UNLIMITED", "INFINITE"):
        return None
    elif span := _SPAN.fullmatch(value.strip()):
        seconds = float(span[1]) * _SECONDS[span[2].lower()]
    elif clock := _CLOCK.fullmatch(value.strip()):
        days, hours, minutes, rest, first, second, third = (
            int(part or 0) for part in clock.groups()
        )
        if clock[1] is not None:
            seconds = ((days * 24 + hours) * 60 + minutes) * 60.0 + rest
        elif clock[7] is not None:
            seconds = (first * 60 + second) * 60.0 + third
        else:
            seconds = first * 60.0 + second
    if not 0 < seconds < 1e9:
        raise ValueError(allowed)
    return seconds / 60.0


def _clock(seconds: float) -> str:
    whole = int(seconds) + (seconds > int(seconds))
    days, rest = divmod(whole, 86400)
    return f"{days}-{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


# Options with a name of their own, in the order of the documentation.
NAMED: dict[str, Callable[[Any], str]] = {
    "partition": _names,
    "account": _text,
    "qos": _text,
    "time": _time,
    "nodes": _nodes,
    "ntasks": _count,
    "ntasks_per_node": _count,
    "cpus_per_task": _count,
    "mem": _memory,
    "mem_per_cpu": _memory,
    "mem_per_gpu": _memory,
    "gres": _names,
    "gpus": _text,
    "gpus_per_node": _text,
    "gpus_per_task": _text,
    "constraint": _text,
    "exclude": _names,
    "nodelist": _names,
    "reservation": _text,
    "exclusive": _text,
    "licenses": _names,
    "nice": _whole,
    "priority": _text,
    "begin": _text,
    "hint": _text,
    "tmp": _memory,
    "mail_type": _names,
    "mail_user": _text,
    "clusters": _text,
}
_MEMORY = ("mem", "mem_per_cpu", "mem_per_gpu")
_GPUS = ("gpus", "gpus_per_node", "gpus_per_task", "mem_per_gpu")

# What the executor needs for itself, and what to use instead.
_MANAGED = {
    "array": "equal tasks become an array by themselves; array=False turns that off, and "
    "array_throttle= limits how many run at once",
    "chdir": "workdir= is the folder that tasks start in",
    "comment": "metadata of a task belongs into its arguments",
    "error": "results carry the task's own output",
    "export": "env_vars= sets variables, and env -i keeps all others out",
    "export-file": "env_vars= sets variables",
    "get-user-env": "modules=, conda=, venv= or prerun= prepare the environment",
    "help": "see the table of options",
    "ignore-pbs": "there is no script of yours that could hold such lines",
    "input": "tasks take their input as arguments",
    "job-name": "names are made from the task's key, so that a lost answer can be looked up",
    "no-requeue": "requeue=False is the default",
    "open-mode": "results carry the task's own output",
    "output": "results carry the task's own output",
    "parsable": "it is always set",
    "quiet": "there is nothing to keep quiet",
    "requeue": "write requeue=True",
    "signal": "signal_lead= says how long before its time limit a task is warned",
    "test-only": "SlurmExecutor(...).script() shows what would be submitted",
    "usage": "see the table of options",
    "verbose": "SlurmExecutor(...).script() shows what is submitted",
    "version": "see 'sbatch --version' on the login node",
    "wait": "the kernel waits",
    "wrap": "the task is what runs",
}


class SbatchOptions:
    """Options of every job of one executor.

    Args:
        named: options by their names in ``NAMED``; None leaves one out.
        others: any further long option of sbatch, ``{"wckey": "x", "contiguous": True}``.
        requeue: whether Slurm may run a job again by itself.
        signal_lead: seconds before the time limit at which tasks are warned.

    Raises:
        ConfigError: a value is not allowed, options exclude each other, or one of ``others`` is
            managed by the executor.
    """

    def __init__(
        self,
        named: Mapping[str, Any],
        others: Mapping[str, Any],
        *,
        requeue: bool = False,
        signal_lead: int | None = None,
    ) -> None:
        self._values: dict[str, str] = {}
        for name, value in named.items():
            if value is None or value is False:
                continue
            if name == "exclusive" and value is True:
                self._values[name] = ""
                continue
            try:
                self._values[name] = NAMED[name](value)
            except ValueError as error:
                raise ConfigError(
                    f"{name}={value!r} of the Slurm executor must be {error}."
                ) from error
        given = [name for name in _MEMORY if name in self._values]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other; keep one of them.")
        for name, flag in (("requeue", requeue),):
            if not isinstance(flag, bool):
                raise ConfigError(f"{name}={flag!r} of the Slurm executor must be True or False.")
        if signal_lead is not None and (
            isinstance(signal_lead, bool) or not isinstance(signal_lead, int) or signal_lead < 0
        ):
            raise ConfigError(f"signal_lead={signal_lead!r} must be whole seconds, 0 or more.")
        self._requeue = requeue
        self._lead = signal_lead
        self._others = _checked_others(others)

    def argv(self, wants: Resources) -> list[str]:
        """Arguments for a job that asks for ``wants``, which goes before the executor's options.

        Raises:
            ConfigError: the task and the executor ask for different accelerators in ways that
                cannot be told apart.
        """
        values = dict(self._values)
        if wants.cpus > 1:
            values["cpus_per_task"] = str(wants.cpus)
        if wants.mem is not None:
            for name in _MEMORY:
                values.pop(name, None)
            values["mem"] = f"{wants.mem}M"
        if wants.gpu_type is not None and (not wants.gpus or not _GPU.fullmatch(wants.gpu_type)):
            raise ConfigError(
                f"Resources(gpu_type={wants.gpu_type!r}) needs gpus= as well and must be a name "
                "that the cluster knows, as 'sinfo -o %G' shows them."
            )
        if wants.gpus:
            if "gpu" in values.get("gres", ""):
                raise ConfigError(
                    f"Resources(gpus={wants.gpus}) of the task and gres={values['gres']!r} of the "
                    "executor both ask for GPUs; keep one of them."
                )
            for name in _GPUS:
                values.pop(name, None)
            kind = f"{wants.gpu_type}:" if wants.gpu_type else ""
            values["gpus"] = f"{kind}{wants.gpus}"
        if wants.disk is not None:
            values["tmp"] = f"{wants.disk}M"
        if wants.time is not None:
            values["time"] = _clock(float(wants.time))
        if wants.nodes > 1:
            values["nodes"] = str(wants.nodes)
        if wants.exclusive:
            values["exclusive"] = values.get("exclusive", "")
        argv = [_argument(name.replace("_", "-"), value) for name, value in values.items()]
        argv.append("--requeue" if self._requeue else "--no-requeue")
        argv += self._warning(values.get("time"))
        return [*argv, *self._others]

    def _warning(self, limit: str | None) -> list[str]:
        """Have the supervisor told before Slurm ends the job, so that it can say why."""
        minutes = minutes_of(limit) if limit else None
        if minutes is None:
            return []
        # Slurm may warn half a minute too early, which a short task would miss in the end.
        usual = 60 if minutes >= 10 else 0
        lead = min(usual if self._lead is None else self._lead, int(minutes * 60 / 2))
        return [f"--signal=B:USR2@{lead}"] if lead else []


def _argument(name: str, value: str) -> str:
    return f"--{name}={value}" if value else f"--{name}"


def _checked_others(others: Mapping[str, Any]) -> list[str]:
    if not isinstance(others, Mapping):
        raise ConfigError(f"options={others!r} must be a dict, such as {{'wckey': 'project'}}.")
    argv: list[str] = []
    for given, value in others.items():
        if not isinstance(given, str) or not _NAME.fullmatch(given):
            raise ConfigError(
                f"options: {given!r} is not the name of an option; write the long name without "
                "dashes in front, such as 'wckey'."
            )
        name = given.replace("_", "-")
        if name in _MANAGED:
            raise ConfigError(f"options: {given!r} is set by the executor: {_MANAGED[name]}.")
        if name.replace("-", "_") in NAMED:
            raise ConfigError(
                f"options: {given!r} has a name of its own; write "
                f"{name.replace('-', '_')}={value!r}."
            )
        known = (*_MANAGED, *(other.replace("_", "-") for other in NAMED))
        if short := [other for other in known if other.startswith(name)]:
            # sbatch would take it for the whole name, and so change what is managed.
            raise ConfigError(
                f"options: {given!r} is short for {short[0]!r}; write the names of options in full."
            )
        if value is None or value is False:
            continue
        try:
            argv.append(_argument(name, "" if value is True else _names(value)))
        except ValueError as error:
            raise ConfigError(f"options[{given!r}]={value!r} must be {error}.") from error
    return argv
