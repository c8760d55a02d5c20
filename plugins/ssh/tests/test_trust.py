"""Who is trusted, who is let in, and the one sentence for each way in which that can fail."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.services.sshd import Sshd, start

from chelate.api import AuthenticationError, ConfigError, TransientError
from chelate.remote import UnreachableError
from chelate_ssh import SSHTransport

from .kit import carry_out, run_agent, target_of, with_transport


@contextmanager
def a_hop(server: Sshd) -> Iterator[Sshd]:
    """Another server, for jumping: it lets the same key in, and has another host key."""
    with start() as hop:
        shutil.copy(f"{server.identity}.pub", hop.folder / "authorized_keys")
        with server.known_hosts.open("a") as file:
            file.write(hop.known_hosts.read_text())
        yield hop


def accept(sentence: str) -> None:
    """Do what the sentence tells people to do."""
    command = sentence[sentence.index("ssh-keygen") :] if "-R" in sentence else ""
    command = command or sentence[sentence.index("echo '") :]
    subprocess.run(command, shell=True, check=True, capture_output=True, timeout=30)


def test_an_unknown_host_key_is_refused_with_the_command_that_accepts_it(
    sshd: Sshd, tmp_path: Path
) -> None:
    target = target_of(sshd, known_hosts=str(tmp_path / "own hosts"))
    with pytest.raises(AuthenticationError) as refused:
        carry_out(target, "true")
    sentence = str(refused.value)
    shown = subprocess.run(
        ["ssh-keygen", "-lf", f"{sshd.host_key}.pub"], capture_output=True, text=True, timeout=30
    ).stdout.split()[1]
    assert shown in sentence
    assert "not known" in sentence
    assert sshd.accepted == 0
    accept(sentence)
    assert carry_out(target, "echo", "in") == "in\n"


def test_a_changed_host_key_is_refused_with_the_command_that_accepts_it(sshd: Sshd) -> None:
    target = target_of(sshd)
    assert carry_out(target, "echo", "in") == "in\n"
    sshd.change_host_key(tell=False)
    sshd.restart()
    before = sshd.accepted
    with pytest.raises(AuthenticationError, match=r"has changed.*listening in") as refused:
        carry_out(target, "true")
    assert sshd.accepted == before
    accept(str(refused.value))
    assert carry_out(target, "echo", "in") == "in\n"


def test_a_key_of_another_kind_than_the_known_one_is_refused(sshd: Sshd) -> None:
    sshd.new_key(sshd.host_key, "-t", "rsa", "-b", "2048")
    sshd.restart()
    with pytest.raises(AuthenticationError, match=r"has changed.*ssh-rsa"):
        carry_out(target_of(sshd), "true")
    assert sshd.accepted == 0


def test_no_configuration_switches_the_check_off(sshd: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile none\n"
        "  GlobalKnownHostsFile none\n"
    )
    with pytest.raises(AuthenticationError, match="not known"):
        carry_out(target_of(sshd, known_hosts=None, config=str(config)), "true")
    assert sshd.accepted == 0


def test_a_key_that_the_host_does_not_know_is_offered_once(sshd: Sshd, tmp_path: Path) -> None:
    stranger = sshd.new_key(tmp_path / "stranger")
    target = target_of(sshd, identity_file=str(stranger))

    async def work(transport: SSHTransport) -> None:
        for _ in range(5):
            with pytest.raises(AuthenticationError, match=r"refuses the login.*stranger"):
                await transport.run(["true"])
        # Mending it is noticed at once.
        shutil.copy(sshd.identity, stranger)
        assert (await transport.run(["echo", "in"])).stdout == b"in\n"

    with_transport(target, work)
    assert sshd.logged(r"^Connection from .*") == 3  # one was the fixture's own look
    assert sshd.accepted == 1


def test_a_login_that_was_good_is_waited_for(sshd: Sshd) -> None:
    async def work(transport: SSHTransport) -> None:
        await transport.open()
        keys = sshd.folder / "authorized_keys"
        known = keys.read_text()
        keys.write_text("")
        sshd.drop()
        with pytest.raises(TransientError):  # finds out that the connection is gone
            await transport.run(["sleep", "30"])
        for _ in range(5):
            with pytest.raises(UnreachableError) as refused:
                await transport.run(["true"])
        assert "refuses the login" in str(refused.value)
        assert refused.value.retry_after is not None
        assert 1 < refused.value.retry_after <= 10  # soon: mending must be noticed
        keys.write_text(known)
        os.utime(sshd.identity)  # as adding a key to the files would
        assert (await transport.run(["echo", "in"])).stdout == b"in\n"

    with_transport(target_of(sshd), work)
    assert sshd.logged(r"^Connection from .*") == 4


def test_a_protected_key(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "correct horse"
    key = tmp_path / "protected"
    shutil.copy(sshd.identity, key)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", secret, "-f", str(key)], check=True, capture_output=True
    )
    with pytest.raises(AuthenticationError, match=r"protected by a passphrase.*ssh-add"):
        carry_out(target_of(sshd, identity_file=str(key)), "true")
    named = target_of(sshd, identity_file=str(key), passphrase_env="MY_KEY")
    with pytest.raises(AuthenticationError, match="MY_KEY, which shall hold"):
        carry_out(named, "true")
    monkeypatch.setenv("MY_KEY", "wrong")
    with pytest.raises(AuthenticationError, match="does not open") as refused:
        carry_out(named, "true")
    assert "wrong" not in str(refused.value)
    monkeypatch.setenv("MY_KEY", secret)
    assert carry_out(named, "echo", "in") == "in\n"


def test_an_agent_serves(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, where = run_agent(tmp_path, sshd.identity)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
        assert carry_out(target_of(sshd, identity_file=None), "echo", "in") == "in\n"
        # A protected key that the agent has needs no passphrase here.
        key = tmp_path / "protected"
        shutil.copy(sshd.identity, key)
        shutil.copy(f"{sshd.identity}.pub", f"{key}.pub")
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "x", "-f", str(key)], check=True)
        assert carry_out(target_of(sshd, identity_file=str(key)), "echo", "in") == "in\n"
    finally:
        process.kill()
        process.wait()


def test_a_certificate_serves(sshd: Sshd, tmp_path: Path) -> None:
    authority = sshd.new_key(tmp_path / "authority")
    (sshd.folder / "authorized_keys").write_text("")
    sshd.options.append(f"TrustedUserCAKeys {authority}.pub")
    sshd.restart()
    key = sshd.new_key(tmp_path / "mine")

    def sign(validity: str) -> None:
        subprocess.run(
            f"ssh-keygen -q -s {authority} -I me -n {sshd.user} -V {validity} {key}.pub",
            shell=True,
            check=True,
            timeout=30,
        )

    certified = target_of(
        sshd, identity_file=str(key), certificate_file=str(tmp_path / "mine-cert.pub")
    )
    sign("-2h:-1h")
    with pytest.raises(AuthenticationError, match="may have expired"):
        carry_out(certified, "true")
    sign("-1h:+1h")
    assert carry_out(certified, "echo", "in") == "in\n"


def test_the_configuration_of_ssh_is_enough(sshd: Sshd, tmp_path: Path) -> None:
    config = Path(os.environ["HOME"]) / ".ssh" / "config"
    included = tmp_path / "more"
    included.write_text(f"Host far\n  Port {sshd.port}\n  IdentityFile {sshd.identity}\n")
    config.write_text(
        f"Include {included}\n"
        f"Host far\n  HostName {sshd.address}\n  User {sshd.user}\n"
        f"  UserKnownHostsFile {sshd.known_hosts}\n"
    )
    target = target_of(
        sshd, host="far", port=None, user=None, identity_file=None, known_hosts=None, config=None
    )
    assert carry_out(target, "echo", "in") == "in\n"


@pytest.mark.parametrize("by", ["option", "configuration"])
def test_two_jumps_are_each_checked(sshd: Sshd, tmp_path: Path, by: str) -> None:
    with a_hop(sshd) as first, a_hop(sshd) as second:
        way = f"{sshd.user}@127.0.0.1:{first.port},{sshd.user}@127.0.0.1:{second.port}"
        changes: dict[str, Any] = {"proxy_jump": way}
        if by == "configuration":
            config = tmp_path / "config"
            config.write_text(f"Host far\n  HostName 127.0.0.1\n  ProxyJump {way}\n")
            changes = {"config": str(config), "host": "far"}
        target = target_of(sshd, **changes)
        assert carry_out(target, "echo", "in") == "in\n"
        assert (first.accepted, second.accepted, sshd.accepted) == (1, 1, 1)
        # A hop that nobody knows is not gone through.
        first.change_host_key()
        first.restart()
        with pytest.raises(AuthenticationError, match=rf"port {first.port}.*has changed"):
            carry_out(target, "true")
        assert sshd.accepted == 1


def test_a_host_behind_a_jump_that_does_not_answer(sshd: Sshd) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        target = target_of(
            sshd, port=port, connect_timeout=1.5, proxy_jump=f"{sshd.user}@127.0.0.1:{sshd.port}"
        )
        begun = time.monotonic()
        with pytest.raises(UnreachableError, match=r"did not answer within 1\.5 s"):
            carry_out(target, "true")
        assert time.monotonic() - begun < 20
    with pytest.raises(UnreachableError, match="through jump host"):
        carry_out(target, "true")


def test_jumps_in_a_circle_are_found(sshd: Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(ConfigError, match="goes in a circle"):
        carry_out(target_of(sshd, host="a", config=str(config)), "true")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"port": 1}, "refuses connections.*port 1"),
        ({"host": "no-such-host.invalid"}, "no-such-host.invalid.*cannot be resolved"),
    ],
)
def test_a_host_that_is_not_there(sshd_session: Sshd, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UnreachableError, match=says):
        carry_out(target_of(sshd_session, **changes), "true")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"identity_file": "/no/such/key"}, "cannot be read"),
        ({"identity_file": "/etc/hostname"}, "is no private key"),
        ({"certificate_file": "/no/such/certificate"}, "cannot be read"),
        ({"config": "/no/such/config"}, "cannot be read"),
        ({"known_hosts": "/etc"}, "cannot be read"),
    ],
)
def test_a_file_that_is_none(sshd_session: Sshd, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        carry_out(target_of(sshd_session, **changes), "true")


def test_a_server_that_is_none(sshd_session: Sshd) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UnreachableError, match=r"did not answer within 1 s"):
            carry_out(
                target_of(sshd_session, port=silent.getsockname()[1], connect_timeout=1), "true"
            )
