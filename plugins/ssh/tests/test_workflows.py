"""What a user writes, by name and by instance, and what they are told when a host is unfit."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.services.sshd import Sshd

from .kit import Program, marked


@pytest.fixture
def options(sshd_session: Sshd, tmp_path: Path) -> dict[str, Any]:
    return sshd_session.client(
        python=sys.executable, root=str(tmp_path / "root"), poll_interval=0.2, slots=4
    )


@pytest.mark.parametrize("name", ["redispatch", "many"])
def test_the_workflows_of_the_guides(options: dict[str, Any], tmp_path: Path, name: str) -> None:
    Program(tmp_path, options).run(name)


def test_cancelled_means_gone(options: dict[str, Any], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    Program(tmp_path, {**options, "grace": 1.0}).run("cancel", str(marker))
    left = [path for path in Path("/proc").glob("[0-9]*/fd/3") if _leads_to(path, marker)]
    assert not left, "something that ignores SIGTERM outlived its cancel"


def _leads_to(link: Path, target: Path) -> bool:
    try:
        return os.readlink(link) == str(target)  # noqa: PTH115 - a link that may vanish
    except OSError:
        return False


def test_a_host_in_the_configuration_file(options: dict[str, Any], tmp_path: Path) -> None:
    program = Program(tmp_path, {})
    home = tmp_path / "chelate"
    home.mkdir()
    lines = [f"{name} = {value!r}" for name, value in options.items()]
    (home / "config.toml").write_text("\n".join(["[executors.ssh]", *lines]) + "\n")
    assert program.run("one").startswith("COMPLETED|7|")


def refused(program: Program) -> str:
    """How the one task of a workflow failed: reason and sentence."""
    begun = time.monotonic()
    status, _, said = program.run("one").partition("|")
    assert status == "FAILED", said
    assert time.monotonic() - begun < 40
    return said


def test_without_a_host_the_user_is_told_how_to_name_one(tmp_path: Path) -> None:
    assert "executors.ssh" in refused(Program(tmp_path, {}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"known_hosts": "/dev/null"}, "is not known"),
        ({"identity_file": "/no/such/key"}, "cannot be read"),
        ({"python": "/no/such/python"}, "/no/such/python"),
        ({"venv": "/no/such/venv"}, "/no/such/venv"),
        ({"conda": "no-such-environment"}, "no-such-environment"),
        ({"prerun": "echo no licence >&2; exit 3"}, "no licence"),
        ({"root": "/proc/nowhere"}, "/proc/nowhere"),
        ({"password": "hunter2"}, "passphrase_env="),
        ({"colour": "red"}, "colour"),
    ],
)
def test_one_sentence_for_what_cannot_work(
    options: dict[str, Any], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    if {"venv", "conda"} & changes.keys():
        options.pop("python")
    said = refused(Program(tmp_path, {**options, **changes}))
    assert says in said
    assert "hunter2" not in said
    assert "Traceback" not in said


def test_another_python_is_refused_before_anything_is_sent(
    options: dict[str, Any], tmp_path: Path
) -> None:
    other = next(
        (
            found
            for minor in range(6, 20)
            if minor != sys.version_info[1] and (found := shutil.which(f"python3.{minor}"))
        ),
        None,
    )
    if other is None:
        pytest.skip("there is only one Python here")
    said = refused(Program(tmp_path, {**options, "python": other}))
    assert said.startswith("None|ENV_MISMATCH") or "ENV_MISMATCH" in said
    assert f"3.{sys.version_info[1]}" in said


def test_a_key_that_is_not_let_in(sshd: Sshd, tmp_path: Path) -> None:
    stranger = sshd.new_key(tmp_path / "stranger")
    said = refused(Program(tmp_path, sshd.client(identity_file=str(stranger))))
    assert "refuses the login" in said
    assert sshd.logged(r"^Connection from .*") == 2  # one was the fixture's own look


def test_a_host_that_is_away_is_waited_for(sshd: Sshd, tmp_path: Path) -> None:
    program = Program(tmp_path, sshd.client(python=sys.executable, root=str(tmp_path / "root")))
    sshd.kill()
    with program.start("one") as process:
        try:
            with socket.socket() as waiting:
                waiting.settimeout(60)
                waiting.bind((sshd.address, sshd.port))
                waiting.listen()
                waiting.accept()[0].close()  # it has been asked once, in vain
            sshd.start()
            output = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert output.startswith("COMPLETED|7|")


def test_no_secret_is_written_anywhere(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "correct-horse-battery"
    key = tmp_path / "protected"
    sshd.new_key(key)
    import subprocess

    subprocess.run(["ssh-keygen", "-q", "-p", "-N", secret, "-f", str(key)], check=True)
    with (sshd.folder / "authorized_keys").open("a") as file:
        file.write(Path(f"{key}.pub").read_text())
    root = tmp_path / "root"
    program = Program(
        tmp_path,
        sshd.client(
            identity_file=str(key), passphrase_env="MY_KEY", python=sys.executable, root=str(root)
        ),
        MY_KEY=secret,
        CHELATE_LOG_LEVEL="DEBUG",
    )
    assert program.run("one").startswith("COMPLETED|7|")
    for folder in (tmp_path / "chelate", root, sshd.home):
        for path in folder.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path
    assert secret not in sshd.log.read_text()
    assert not marked("chelate_ssh_never")
