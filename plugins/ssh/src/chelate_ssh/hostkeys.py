"""Which host keys are trusted, and what to tell people about one that is not.

Keys are always checked: there is no option, in the executor or in an SSH configuration, that
switches it off.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import asyncssh  # noqa: TID253 - this module is loaded with the first connection
from asyncssh.public_key import (  # noqa: TID253
    get_default_certificate_algs,
    get_default_public_key_algs,
)

from chelate.api import AuthenticationError, ConfigError

__all__ = ["HostKeyCheck", "known_hosts_files"]

_USER = "~/.ssh/known_hosts"
_SYSTEM = "/etc/ssh/ssh_known_hosts"


def known_hosts_files(
    option: str | None, user: Sequence[str] | None, system: Sequence[str] | None
) -> list[str]:
    """The files to read: the option's alone, else the configuration's, else the usual ones.

    ``user`` and ``system`` are what the SSH configuration names; None: nothing. A configuration
    that names no file on purpose (``none``) trusts what is left, never everything.
    """
    if option is not None:
        return [option]
    files = [_USER] if user is None else [*user]
    files += [_SYSTEM] if system is None else [*system]
    return [str(Path(name).expanduser()) for name in files] or [_SYSTEM]


class HostKeyCheck(asyncssh.SSHClient):
    """Loads the known keys of one host, and remembers the one that was refused.

    Args:
        name: what the files call the host: its alias, or the name or address it is reached by.
        port: its port.
        files: known_hosts files; the first is the one to add keys to.

    Raises:
        ConfigError: a file cannot be read.
    """

    def __init__(self, where: str, name: str, port: int, files: Sequence[str]) -> None:
        self._where = where
        self._file = files[0]
        self._label = name if port == 22 else f"[{name}]:{port}"
        self.refused: asyncssh.SSHKey | None = None
        self.authority = False
        self.known = asyncssh.SSHKnownHosts()
        for path in files:
            if not os.path.exists(path):  # noqa: PTH110 - a folder in the way is an error below
                continue
            try:
                self.known.load(Path(path).read_text(encoding="utf-8", errors="surrogateescape"))
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"The known_hosts file {path} cannot be read: {error}."
                ) from error
        keys, authorities = self.known.match(name, "", None if port == 22 else port)[:2]
        self.has_key = bool(keys or authorities)
        # Kinds of known keys first, so that they are asked for; then the others, so that a host
        # with a new kind of key is seen to have changed.
        known = [kind for key in keys for kind in key.sig_algorithms]
        plain, certified = get_default_public_key_algs(), get_default_certificate_algs()
        first = [kind for kind in plain if kind in known]
        ordered = [*first, *(kind for kind in plain if kind not in known)]
        kinds = [*certified, *ordered] if authorities or not keys else [*ordered, *certified]
        self.algorithms = [kind.decode("ascii") for kind in kinds]

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        """Refuse, and remember what was offered: every trusted key is in the files."""
        self.refused = key
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Refuse, and remember the authority that signed the host's certificate."""
        self.refused, self.authority = key, True
        return False

    def complaint(self, reason: str) -> AuthenticationError:
        """A sentence on why the host was not trusted, with the command that would change it."""
        file = shlex.quote(self._file)
        if self.refused is None:
            if "revoked" in reason or self.has_key:
                return AuthenticationError(
                    f"The host key of {self._where} does not agree with {self._file} ({reason}). "
                    "Nothing was sent. Ask the host's administrator; if the key was replaced, "
                    f"forget the old one with: ssh-keygen -R {shlex.quote(self._label)} -f {file}"
                )
            return AuthenticationError(
                f"The host key of {self._where} cannot be checked ({reason}). Nothing was sent."
            )
        key = self.refused
        line = key.export_public_key().decode("ascii").split()[:2]
        mark = "@cert-authority " if self.authority else ""
        accept = f"echo {shlex.quote(f'{mark}{self._label} {line[0]} {line[1]}')} >> {file}"
        shown = f"{line[0]} {key.get_fingerprint()}"
        if self.has_key:
            return AuthenticationError(
                f"The host key of {self._where} has changed: it is now {shown}, and {self._file} "
                "names another. Somebody may be listening in, or the host was set up anew. Nothing "
                "was sent. If its administrator confirms the new fingerprint: "
                f"ssh-keygen -R {shlex.quote(self._label)} -f {file} && {accept}"
            )
        kind = "key of the authority that signed the host key" if self.authority else "host key"
        return AuthenticationError(
            f"The {kind} of {self._where} is not known: {shown}. Nothing was sent. Compare it "
            f"with what the host's administrator says; if it is the same, accept it with: {accept}"
        )
