"""Keys, certificates and the agent: what is offered to a host, and what to say when it is refused.

A passphrase is read from the environment variable that an option names, used, and kept nowhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh  # noqa: TID253 - this module is loaded with the first connection

from chelate.api import AuthenticationError, ConfigError
from chelate_ssh.target import Target

__all__ = ["Credentials", "load_credentials"]


@dataclass(slots=True)
class Credentials:
    """Arguments for :func:`asyncssh.connect`, and what they were made from, for sentences."""

    arguments: dict[str, Any] = field(default_factory=dict)
    offered: list[str] = field(default_factory=list)

    def refusal(self, where: str) -> AuthenticationError:
        """The host took none of what was offered."""
        offered = ", ".join(self.offered) or "no key"
        certificate = ""
        if any(entry.startswith("certificate") for entry in self.offered):
            certificate = (
                " A certificate may have expired: ssh-keygen -Lf shows until when it is valid."
            )
        return AuthenticationError(
            f"{where} refuses the login (offered: {offered}). Check the "
            "user and identity_file options, add the key to the host's authorized_keys "
            f"(ssh-copy-id), or load it into the agent (ssh-add).{certificate}"
        )


def load_credentials(target: Target, configured: bool, agent: str | None) -> Credentials:
    """The keys to offer.

    ``configured``: the SSH configuration names key files for this host. ``agent``: the socket of
    the agent, if there is one. A key that an option names is the only one offered: hosts count
    refused keys, and an agent full of others could use up what they allow.

    Raises:
        ConfigError: a named file is missing or is no key.
        AuthenticationError: a key is protected by a passphrase that nobody can give.
    """
    found = Credentials()
    path = target.expanded("identity_file")
    if path is None:
        found.offered.append(
            "the keys of the SSH configuration" if configured else "the usual keys"
        )
    else:
        key = _private_key(path, target.passphrase_env, agent)
        if key is not None:
            found.arguments.update(client_keys=[key], agent_path=None)
            found.offered.append(f"key {path}")
        else:
            public = Path(f"{path}.pub")
            if public.exists():
                found.arguments["agent_identities"] = [str(public)]
            found.offered.append(f"key {path}, as far as the agent has it")
    certificate = target.expanded("certificate_file")
    if certificate is not None:
        try:
            asyncssh.read_certificate(certificate)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"certificate_file={certificate!r} cannot be read: {error}."
            ) from error
        found.arguments["client_certs"] = [certificate]
        found.offered.append(f"certificate {certificate}")
    if path is None and target.passphrase_env is not None:
        found.arguments["passphrase"] = _passphrase(target.passphrase_env)
    if path is None:
        found.offered.append("the agent's keys" if agent else "no agent")
    return found


def _passphrase(variable: str) -> str:
    text = os.environ.get(variable)
    if not text:
        raise AuthenticationError(
            f"The environment variable {variable}, which shall hold a key's passphrase "
            "(passphrase_env=), is not set where chelate runs."
        )
    return text


def _private_key(path: str, variable: str | None, agent: str | None) -> asyncssh.SSHKey | None:
    """The key, or None when only the agent can use it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"identity_file={path!r} cannot be read ({error.strerror}); name a private key file."
        ) from error
    try:
        return asyncssh.import_private_key(data)
    except asyncssh.KeyImportError as error:
        if "assphrase" not in str(error):
            raise ConfigError(f"identity_file={path!r} is no private key: {error}.") from error
    except asyncssh.KeyEncryptionError:
        pass  # a protected key, in the older formats
    if variable is None:
        if agent:
            return None
        raise AuthenticationError(
            f"The key {path} is protected by a passphrase. Load it into an agent (ssh-add {path}), "
            "or name the environment variable that holds the passphrase with passphrase_env=."
        )
    try:
        return asyncssh.import_private_key(data, _passphrase(variable))
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise AuthenticationError(
            f"The passphrase in the environment variable {variable} does not open {path}."
        ) from error
