"""One connection to one host: opened once for everybody, opened again when it was cut.

Lives in the loop of the hub (:mod:`chelate_ssh.hub`); nobody else touches it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh  # noqa: TID253 - this module is loaded with the first connection

from chelate.api import AuthenticationError, ChelateError, ConfigError
from chelate.remote import UnreachableError
from chelate_ssh.channels import ChannelGate
from chelate_ssh.credentials import Credentials, load_credentials
from chelate_ssh.hostkeys import HostKeyCheck, known_hosts_files
from chelate_ssh.target import Target, parse_jumps

__all__ = ["Connection"]

_UNANSWERED = 3  # questions without an answer until a connection counts as cut
_FIRST_WAIT, _LAST_WAIT = 0.5, 10.0  # seconds between attempts to reach a host
_SHORT = 1.0  # seconds of such a wait that a command waits itself
_FIRST_PAUSE, _LAST_PAUSE = 60.0, 3600.0  # seconds between logins that were refused


@dataclass(frozen=True, slots=True)
class _Pause:
    """No attempt before ``until``, unless the files that the failed one read have changed."""

    error: ChelateError
    until: float
    stamp: tuple[Any, ...] | None

    def lasts(self, stamp: Callable[[], tuple[Any, ...]]) -> bool:
        """Whether it is too early for another attempt."""
        if time.monotonic() >= self.until:
            return False
        return self.stamp is None or self.stamp == stamp()

    def again(self) -> ChelateError:
        left = max(0.1, self.until - time.monotonic())
        if isinstance(self.error, UnreachableError):
            # Asking earlier costs no login, and notices files that were mended.
            return UnreachableError(str(self.error), retry_after=min(left, _LAST_WAIT))
        return type(self.error)(str(self.error))


class Connection:
    """A connection that opens itself when it is needed.

    Args:
        target: the host and the way to it.
        other: gives the connection to another target, for a jump host.
    """

    def __init__(self, target: Target, other: Callable[[Target], Connection]) -> None:
        self.target = target
        self.gate = ChannelGate(target.max_channels)
        self.where = str(target)
        self.users: set[object] = set()
        self.opened = 0  # how many times a connection came about
        self._other = other
        self._via: Connection | None = None  # the jump host that is waited for
        self._ssh: asyncssh.SSHClientConnection | None = None
        self._opening: asyncio.Task[asyncssh.SSHClientConnection] | None = None
        self._pause: _Pause | None = None
        self._failures = 0

    async def ready(self) -> asyncssh.SSHClientConnection:
        """The open connection.

        Raises:
            UnreachableError: the host cannot be reached at present.
            AuthenticationError: it refuses the login, or its own key is not trusted; not tried
                again for a while.
            ConfigError: an option is wrong; not tried again either.
        """
        if self._ssh is not None and not self._ssh.is_closed():
            return self._ssh
        if self._opening is None:
            pause, rest = self._pause, 0.0
            if pause is not None and pause.lasts(self._stamp):
                rest = pause.until - time.monotonic()
                if pause.stamp is not None or rest > _SHORT:
                    raise pause.again()
            self._opening = asyncio.ensure_future(self._attempt(rest))
            self._opening.add_done_callback(self._opened)
        # Whoever gives up waiting leaves the attempt to the others.
        return await asyncio.shield(self._opening)

    def lost(self, ssh: asyncssh.SSHClientConnection) -> None:
        """A command found this connection dead."""
        if self._ssh is ssh:
            self._ssh = None
            ssh.abort()

    async def close(self) -> None:
        """Close it; what runs on the host goes on."""
        if self._opening is not None:
            self._opening.cancel()
            with suppress(asyncio.CancelledError, ChelateError):
                await self._opening
        if self._ssh is not None:
            ssh, self._ssh = self._ssh, None
            ssh.close()
            with suppress(asyncio.TimeoutError, OSError, asyncssh.Error):
                await asyncio.wait_for(ssh.wait_closed(), 2.0)
            ssh.abort()

    def _opened(self, task: asyncio.Task[asyncssh.SSHClientConnection]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # whoever waited has seen it

    async def _attempt(self, rest: float) -> asyncssh.SSHClientConnection:
        try:
            await asyncio.sleep(rest)
            self._ssh = await self._open()
        except UnreachableError as error:
            self._hold_off(error, _FIRST_WAIT, _LAST_WAIT, None)
            raise
        except ChelateError as error:
            if not self.opened:
                # Logins that fail again and again can lock an account.
                self._hold_off(error, _FIRST_PAUSE, _LAST_PAUSE, self._stamp())
                raise
            # Jobs may be running there: wait for somebody to mend it, and fail nothing.
            patient = UnreachableError(
                f"{error} The login is tried again within the hour, and at once when keys, known "
                "hosts or the SSH configuration have changed; running jobs go on."
            )
            self._hold_off(patient, _FIRST_PAUSE, _LAST_PAUSE, self._stamp())
            raise patient from error
        self._pause, self._failures = None, 0
        self.opened += 1
        return self._ssh

    def _hold_off(
        self, error: ChelateError, first: float, last: float, stamp: tuple[Any, ...] | None
    ) -> None:
        wait = min(last, first * 2 ** min(self._failures, 16))
        self._failures += 1
        self._pause = _Pause(error, time.monotonic() + wait, stamp)

    def _stamp(self) -> tuple[Any, ...]:
        """What changes when somebody mends keys, known hosts or the configuration."""
        names = ("identity_file", "certificate_file", "known_hosts", "config")
        paths = [Path(named) for name in names if (named := self.target.expanded(name)) is not None]
        with suppress(OSError):
            paths += sorted(Path("~/.ssh").expanduser().iterdir())
        stamp: list[Any] = [os.environ.get("SSH_AUTH_SOCK")]
        if self.target.passphrase_env is not None:
            stamp.append(hash(os.environ.get(self.target.passphrase_env)))
        for path in paths:
            with suppress(OSError):
                status = path.stat()
                stamp.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(stamp)

    # -- opening ------------------------------------------------------------------------------

    async def _open(self) -> asyncssh.SSHClientConnection:
        arguments, options = self._settings()
        self.where = f"{options.username}@{self.target.host}"
        where = f"Host {self.target.host} (user {options.username}, port {options.port})"
        files = known_hosts_files(
            self.target.expanded("known_hosts"),
            _listed(options, "UserKnownHostsFile"),
            _listed(options, "GlobalKnownHostsFile"),
        )
        name = options.host_key_alias or options.host
        check = HostKeyCheck(where, name, options.port, files)
        agent = options.config.get("IdentityAgent") or os.environ.get("SSH_AUTH_SOCK")
        configured = _listed(options, "IdentityFile") is not None
        credentials = load_credentials(self.target, configured, str(agent) if agent else None)
        arguments.update(credentials.arguments)
        arguments.update(
            known_hosts=check.known,
            server_host_key_algs=check.algorithms,
            client_factory=lambda: check,
        )
        tunnel = await self._tunnel(options)
        limit = self.target.connect_timeout
        try:
            return await asyncio.wait_for(asyncssh.connect(**arguments, tunnel=tunnel), limit)
        except asyncio.TimeoutError as error:
            raise UnreachableError(f"{where} did not answer within {limit:g} s.") from error
        except asyncssh.HostKeyNotVerifiable as error:
            raise check.complaint(error.reason) from error
        except asyncssh.KeyExchangeFailed as error:
            if "host key" in error.reason.lower():
                raise check.complaint(error.reason) from error
            raise ConfigError(f"{where} and this side share no method: {error.reason}.") from error
        except asyncssh.PermissionDenied as error:
            raise credentials.refusal(where) from error
        except (asyncssh.Error, OSError) as error:
            raise UnreachableError(_unreachable(where, options, tunnel, error)) from error
        except ValueError as error:
            raise _wrong(where, credentials, error) from error

    def _settings(self) -> tuple[dict[str, Any], asyncssh.SSHClientConnectionOptions]:
        """Arguments for connecting, and what the SSH configuration makes of them."""
        target = self.target
        arguments: dict[str, Any] = {
            "host": target.host,
            "password_auth": False,
            "kbdint_auth": False,
            "keepalive_interval": target.keepalive_interval,
            "keepalive_count_max": _UNANSWERED,
            "request_pty": False,
            "x11_forwarding": False,
            "agent_forwarding": False,
            "connect_timeout": None,
            "login_timeout": target.connect_timeout,
            "encoding": None,
        }
        if target.user is not None:
            arguments["username"] = target.user
        if target.port is not None:
            arguments["port"] = target.port
        config = target.expanded("config")
        arguments["config"] = () if config is None else [config]
        try:
            # No keys and no known hosts yet: only names, ports and files are looked at.
            options = asyncssh.SSHClientConnectionOptions(
                **arguments, client_keys=None, known_hosts=b"", agent_identities=None
            )
        except OSError as error:
            raise ConfigError(f"config={config!r} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise ConfigError(
                f"The SSH configuration for host {target.host} is wrong: {error}."
            ) from error
        return arguments, options

    async def _tunnel(
        self, options: asyncssh.SSHClientConnectionOptions
    ) -> asyncssh.SSHClientConnection | None:
        """The connection to the last jump host, each hop checked and timed as any host."""
        if self.target.proxy_jump is not None:
            hops = self.target.jumps()
        else:
            configured = options.tunnel
            if not isinstance(configured, str) or configured.lower() == "none":
                return None
            hops = parse_jumps(configured)
        if not hops:
            return None
        *before, (user, host, port) = hops
        hop = self.target.hop(user, host, port)
        if before:
            way = ",".join(_written(*entry) for entry in before)
            hop = self.target.hop(user, host, port).through(way)
        link = jump = self._other(hop)
        while link is not self and link._via is not None:
            link = link._via
        if link is self:
            raise ConfigError(
                f"The way to host {self.target.host} goes in a circle by way of {jump.target}; "
                "look at the ProxyJump lines of the SSH configuration."
            )
        self._via = jump
        try:
            return await jump.ready()
        finally:
            self._via = None


def _written(user: str | None, host: str, port: int | None) -> str:
    return (f"{user}@" if user else "") + host + (f":{port}" if port else "")


def _listed(options: asyncssh.SSHClientConnectionOptions, name: str) -> list[str] | None:
    """What the SSH configuration says of a setting that is a list; None when it is silent."""
    value: Any = options.config.get(name)
    if value is None:
        return None
    return [value] if isinstance(value, str) else [str(item) for item in _items(value)]


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _unreachable(
    where: str,
    options: asyncssh.SSHClientConnectionOptions,
    tunnel: asyncssh.SSHClientConnection | None,
    error: Exception,
) -> str:
    if isinstance(error, asyncssh.ChannelOpenError) and tunnel is not None:
        jump = tunnel.get_extra_info("host")
        return f"{where} cannot be reached through jump host {jump}: {error.reason}."
    if isinstance(error, asyncssh.Error):
        return (
            f"{where} closed the connection before the login was complete ({error.reason}). It may "
            "have too many logins at once (MaxStartups), or no SSH server listens there."
        )
    if isinstance(error, socket.gaierror):
        return (
            f"The name {options.host!r} of {where[0].lower()}{where[1:]} cannot be resolved "
            f"({error.strerror}); check the host option, the HostName line of the SSH "
            "configuration, and the network."
        )
    if isinstance(error, ConnectionRefusedError):
        return (
            f"{where} refuses connections: no SSH server listens at port {options.port}, or a "
            "firewall is in the way."
        )
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{where} cannot be reached: {reason or error}."


def _wrong(where: str, credentials: Credentials, error: ValueError) -> ChelateError:
    if isinstance(error, (asyncssh.KeyImportError, asyncssh.KeyEncryptionError)):
        if "assphrase" in str(error):
            return AuthenticationError(
                f"A key for {where} is protected by a passphrase ({error}). Load it into an agent "
                "(ssh-add), or name the key with identity_file= and the environment variable that "
                "holds its passphrase with passphrase_env=."
            )
        return ConfigError(f"A key or certificate for {where} cannot be used: {error}.")
    return ConfigError(f"The connection to {where} cannot be set up: {error}.")
