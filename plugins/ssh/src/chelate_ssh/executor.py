"""The SSH executor: tasks on one or several hosts, detached from the connection and the kernel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from chelate.api import ChelateError, ConfigError, parse_memory
from chelate.remote import DirectExecutor, Environment, HostSlots, JobHost
from chelate_ssh.target import CHANNELS, Target
from chelate_ssh.transport import SSHTransport

__all__ = ["SSHExecutor"]

_ADDRESS = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>[^@:\s]+)(?::(?P<port>\d{1,5}))?")
_OF_TARGET = frozenset(item.name for item in fields(Target))
_OF_HOST = _OF_TARGET | {"slots", "mem", "gpus"}


class SSHExecutor(DirectExecutor):
    """Runs tasks on hosts that SSH reaches; each needs OpenSSH's server and Python, no more.

    Named without options (``executor="ssh"``) it takes them from the setting ``executors.ssh``.
    Everything about the connection that is not given here comes from ``~/.ssh/config``.

    Args:
        host: a name, address or ``Host`` of the SSH configuration, or ``"user@name:port"``.
        hosts: several of them, used side by side, least loaded first; an entry is a text as for
            ``host`` or a mapping with ``host`` and any of the options up to ``gpus``.
        user: the login name.
        port: the port.
        identity_file: private key; the only one offered when given.
        certificate_file: certificate that goes with the key.
        known_hosts: file of host keys, instead of ``~/.ssh/known_hosts``. Keys are always checked.
        config: SSH configuration file, instead of ``~/.ssh/config``.
        proxy_jump: hosts to go through, ``"user@host:port,…"``; ``"none"``: straight.
        passphrase_env: name of the environment variable that holds the key's passphrase.
        connect_timeout: seconds for reaching a host and logging in, for each hop.
        keepalive_interval: seconds between questions to a silent host; three without an answer
            end the connection, and a new one is made.
        max_channels: the most commands at one time on a host's connection.
        slots: processors that tasks may use per host at one time; default: all of them.
        mem: memory that tasks may ask for per host, ``"16G"`` or MiB; default: all of it.
        gpus: accelerators per host, given out by number in ``CUDA_VISIBLE_DEVICES``.
        root: folder on the host for jobs and values.
        workdir: folder that tasks start in; default: a fresh one per job, removed with it.
        python, conda, venv: the interpreter of tasks, at most one of the three; its minor version
            must be this process's.
        modules: what ``module load`` is given.
        env_vars: variables that tasks get.
        prerun: shell commands before each job, in the shell that then starts Python.
        postrun: shell commands after each job, with ``CHELATE_EXIT_STATUS``.
        cleanup: which job folders are removed: ``"on_success"``, ``"always"`` or ``"never"``.
        keep: seconds after which what is left of finished jobs, and unused values, are removed.
        results: where large results go that only later tasks on the same host take: ``"host"``
            leaves them there until somebody needs them elsewhere, ``"store"`` brings them home
            when the task ends, and nothing depends on the host after that. With several hosts,
            always ``"store"``.
        grace: seconds between SIGTERM and SIGKILL when a task is stopped.
        poll_interval: the least number of seconds between looks at running jobs.
        password, passphrase: refused; options are stored, and secrets must not be.

    Raises:
        ConfigError: an option cannot be meant.
    """

    name = "ssh"

    def __init__(
        self,
        host: str | None = None,
        *,
        hosts: Sequence[str | Mapping[str, Any]] | None = None,
        user: str | None = None,
        port: int | None = None,
        identity_file: str | None = None,
        certificate_file: str | None = None,
        known_hosts: str | None = None,
        config: str | None = None,
        proxy_jump: str | None = None,
        passphrase_env: str | None = None,
        connect_timeout: float = 15.0,
        keepalive_interval: float = 10.0,
        max_channels: int = CHANNELS,
        slots: int | None = None,
        mem: str | int | None = None,
        gpus: int = 0,
        root: str = "~/.chelate",
        workdir: str | None = None,
        python: str | None = None,
        conda: str | None = None,
        venv: str | None = None,
        modules: Sequence[str] = (),
        env_vars: Mapping[str, str] | None = None,
        prerun: str | Sequence[str] = "",
        postrun: str | Sequence[str] = "",
        cleanup: str = "on_success",
        keep: float = 7 * 86400.0,
        results: str = "host",
        grace: float = 10.0,
        poll_interval: float = 0.5,
        password: None = None,
        passphrase: None = None,
    ) -> None:
        if password is not None or passphrase is not None:
            raise ConfigError(
                "Executor 'ssh' takes no password and no passphrase: options are stored with "
                "every task. Use a key (ssh-keygen, ssh-copy-id) and an agent (ssh-add), or name "
                "the environment variable that holds the key's passphrase with passphrase_env=."
            )
        if host is not None and hosts is not None:
            raise ConfigError("host= and hosts= exclude each other; put all hosts into hosts=.")
        for name, value in (("keep", keep), ("grace", grace), ("poll_interval", poll_interval)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ConfigError(f"{name}={value!r} must be a number of seconds above 0.")
        if not isinstance(root, str):
            raise ConfigError(f"root={root!r} must be an absolute path, or one below ~/.")
        common: dict[str, Any] = {
            "user": user,
            "port": port,
            "identity_file": identity_file,
            "certificate_file": certificate_file,
            "known_hosts": known_hosts,
            "config": config,
            "proxy_jump": proxy_jump,
            "passphrase_env": passphrase_env,
            "connect_timeout": connect_timeout,
            "keepalive_interval": keepalive_interval,
            "max_channels": max_channels,
            "slots": slots,
            "mem": mem,
            "gpus": gpus,
        }
        prerun, postrun = _lines("prerun", prerun), _lines("postrun", postrun)
        environment = Environment(
            python=python,
            conda=conda,
            venv=venv,
            modules=tuple(modules) if isinstance(modules, list) else modules,
            env_vars=_mapping("env_vars", env_vars),
            prerun=prerun,
            postrun=postrun,
        )
        self._places = _places([host] if hosts is None else hosts, common)
        self._made = [
            HostSlots(
                JobHost(
                    SSHTransport(target),
                    root=root,
                    environment=environment,
                    workdir=workdir,
                    grace=float(grace),
                    cleanup=cleanup,
                    keep=float(keep),
                    results=results,
                ),
                **room,
            )
            for target, room in self._places
        ]
        self.limits = replace(
            self.limits,
            poll_min=float(poll_interval),
            poll_max=max(float(poll_interval), self.limits.poll_max),
            cancel_grace=float(grace) + 5.0,
        )

    def hosts(self) -> Sequence[HostSlots]:
        """The hosts of the options. Raises ConfigError without any."""
        if not self._made:
            raise ConfigError(
                "Executor 'ssh' has no host. Give it one: SSHExecutor(host='name'), or for all of "
                'them, in config.toml: [executors.ssh] with the line host = "name", or in the '
                'environment: CHELATE_EXECUTORS=\'{"ssh": {"host": "name"}}\'.'
            )
        return self._made

    async def open(self) -> None:
        """Check the options, and learn how much fits on each host that can be reached."""
        for item in self._all():
            if item.slots is None:
                try:
                    item.slots = (await item.host.probe()).cpus
                except ChelateError:
                    continue  # the first job meets the same trouble, and says so
        await super().open()


def _places(
    hosts: Sequence[str | Mapping[str, Any] | None], common: Mapping[str, Any]
) -> list[tuple[Target, dict[str, Any]]]:
    if isinstance(hosts, (str, Mapping)) or not isinstance(hosts, Sequence):
        raise ConfigError(f"hosts={hosts!r} must be a list; for one host, use host=.")
    places = []
    for entry in hosts:
        if entry is None:  # no host yet: the other options are checked all the same
            _place({**common, "host": "unknown"})
            continue
        own = dict(entry) if isinstance(entry, Mapping) else {"host": entry}
        if unknown := own.keys() - _OF_HOST:
            raise ConfigError(
                f"hosts: {sorted(map(str, unknown))} cannot be set for one host; there are "
                f"{', '.join(sorted(_OF_HOST))}."
            )
        places.append(_place({**common, **_address(own.pop("host", None)), **own}))
    return places


def _place(options: dict[str, Any]) -> tuple[Target, dict[str, Any]]:
    room: dict[str, Any] = {name: options.pop(name) for name in ("slots", "mem", "gpus")}
    for name, least in (("slots", 1), ("gpus", 0)):
        value = room[name]
        if value is None and name == "slots":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}.")
    if room["mem"] is not None:
        room["mem"] = parse_memory(room["mem"])
    return Target(**options), room


def _address(host: Any) -> dict[str, Any]:
    """``"user@host:port"`` taken apart; anything else is left to be checked."""
    match = _ADDRESS.fullmatch(host) if isinstance(host, str) else None
    if match is None:
        return {"host": host}
    found: dict[str, Any] = {"host": match["host"]}
    if match["user"] is not None:
        found["user"] = match["user"]
    if match["port"] is not None:
        found["port"] = int(match["port"])
    return found


def _lines(name: str, value: Any) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ConfigError(f"{name}={value!r} must be shell commands: a text, or a list of lines.")
    return value


def _mapping(name: str, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}={value!r} must be a mapping from names to texts.")
    return dict(value)
