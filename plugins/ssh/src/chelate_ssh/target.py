"""Which host, as whom, and how to get there: everything that decides which connection serves."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from chelate.api import ConfigError

__all__ = ["CHANNELS", "Target"]

CHANNELS = 8  # OpenSSH allows ten sessions per connection; two are left for others
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_JUMP = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[^\]\s]+\]|[^:@\s]+)(?::(?P<port>\d+))?")


@dataclass(frozen=True, slots=True)
class Target:
    """One way to one host. Equal targets of one process share one connection.

    Args:
        host: a name, an address, or a ``Host`` of the SSH configuration.
        user: the login name; default: the configuration's, or the name of who runs this.
        port: the port; default: the configuration's, or 22.
        identity_file: a private key; default: the configuration's, the agent's and the usual files.
        certificate_file: a certificate that goes with the key.
        known_hosts: a file of host keys; default: the configuration's, or ``~/.ssh/known_hosts``.
        config: an SSH configuration file; default: ``~/.ssh/config`` if there is one.
        proxy_jump: hosts to go through, ``"user@host:port,…"``; default: the configuration's;
            ``"none"`` goes straight.
        passphrase_env: the name of an environment variable that holds the key's passphrase.
        connect_timeout: seconds for reaching the host and logging in, for each hop.
        keepalive_interval: seconds of silence after which the host is asked whether it is there;
            after three unanswered questions the connection counts as cut.
        max_channels: the most commands at one time.

    Raises:
        ConfigError: a value cannot be meant.
    """

    host: str
    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    certificate_file: str | None = None
    known_hosts: str | None = None
    config: str | None = None
    proxy_jump: str | None = None
    passphrase_env: str | None = None
    connect_timeout: float = 15.0
    keepalive_interval: float = 10.0
    max_channels: int = CHANNELS

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("connect_timeout", "keepalive_interval"):
                good = _is_number(value) and 0 < value < 1e6
                wanted = "a number of seconds above 0"
            elif item.name == "max_channels":
                good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
                wanted = "a whole number of at least 1"
            elif item.name == "port":
                good = value is None or (type(value) is int and 0 < value < 65536)
                wanted = "a whole number from 1 to 65535"
            else:
                good = (value is None and item.name != "host") or _is_plain(value)
                wanted = "a text without control characters"
            if not good:
                raise ConfigError(f"{item.name}={value!r} is not allowed; it must be {wanted}.")
        for name in ("host", "user"):
            value = getattr(self, name)
            if value is not None and (value.startswith("-") or re.search(r"\s", value)):
                raise ConfigError(f"{name}={value!r} is not the name of a {name}.")
        if self.host.count("@"):
            user, _, host = self.host.rpartition("@")
            raise ConfigError(
                f"host={self.host!r} holds a login name; write host={host!r}, user={user!r}."
            )
        if self.passphrase_env is not None and not _VARIABLE.fullmatch(self.passphrase_env):
            raise ConfigError(
                "passphrase_env= takes the name of an environment variable, such as "
                "'MY_KEY_PASSPHRASE', and never the passphrase itself."
            )
        self.jumps()

    def jumps(self) -> tuple[tuple[str | None, str, int | None], ...]:
        """The hops of ``proxy_jump`` as (user, host, port).

        Raises:
            ConfigError: it cannot be read.
        """
        if self.proxy_jump is None or self.proxy_jump.lower() == "none":
            return ()
        return parse_jumps(self.proxy_jump)

    def hop(self, user: str | None, host: str, port: int | None) -> Target:
        """The same way of reaching hosts, to another host."""
        return replace(self, host=host.strip("[]"), user=user, port=port, proxy_jump=None)

    def through(self, proxy_jump: str) -> Target:
        """The same host, by way of others."""
        return replace(self, proxy_jump=proxy_jump)

    def expanded(self, name: str) -> str | None:
        """A path option with ``~`` written out."""
        value: Any = getattr(self, name)
        return None if value is None else str(Path(value).expanduser())

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}" + (f":{self.port}" if self.port else "")


def parse_jumps(text: str) -> tuple[tuple[str | None, str, int | None], ...]:
    """``"user@host:port,…"`` as (user, host, port) of each hop, the first one first.

    Raises:
        ConfigError: it cannot be read.
    """
    hops = []
    for part in text.split(","):
        match = _JUMP.fullmatch(part.strip().removeprefix("ssh://"))
        if match is None:
            raise ConfigError(
                f"proxy_jump={text!r} cannot be read; write 'user@host:port', and several with "
                "commas between them."
            )
        hops.append((match["user"], match["host"], int(match["port"]) if match["port"] else None))
    return tuple(hops)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()
