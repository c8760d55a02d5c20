"""What a user writes, by name and by instance, and what they are told when a host is unfit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.services.sshd import Sshd

import chelate as ct
from chelate_ssh import SSHExecutor

from .kit import Program


@pytest.fixture
def options(sshd_session: Sshd, tmp_path: Path) -> dict[str, Any]:
    return sshd_session.client(
        python=sys.executable, root=str(tmp_path / "root"), poll_interval=0.2, slots=4
    )


def test_the_workflows_of_the_guides(options: dict[str, Any], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    Program(tmp_path, {**options, "grace": 1.0}).run("guides", str(marker))
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


def failures(executors: dict[str, SSHExecutor]) -> dict[str, str]:
    """Reason and sentence of one task per executor, all in one workflow, by name of the task."""

    def task() -> int:
        return 7

    electrons = {
        name: ct.electron(
            task, executor=executor, resources=ct.Resources(cpus=2 if "many" in name else 1)
        )
        for name, executor in executors.items()
    }

    @ct.lattice
    def flow() -> list[int]:
        return [electron() for electron in electrons.values()]

    dispatch_id = ct.dispatch(flow)()
    result = ct.get_result(dispatch_id, wait=True, timeout=100)
    found = {}
    for number, name in enumerate(electrons):
        node = result.get_node_result(number)
        found[name] = f"{node['status']} {node['reason']}: {node['error']}"
    return found


BAD = {
    "no key": ({"identity_file": "/no/such/key"}, "INVALID_SPEC", "cannot be read"),
    "no python": ({"python": "/no/such/python"}, "ENV_MISSING", "/no/such/python"),
    "not python": ({"python": "/bin/true"}, "ENV_MISSING", "no Python interpreter"),
    "no venv": ({"venv": "/no/such/venv"}, "ENV_MISSING", "/no/such/venv"),
    "no conda": ({"conda": "no-such-env"}, "ENV_MISSING", "no-such-env"),
    "prerun": ({"prerun": "echo no licence >&2; exit 3"}, "PRERUN", "no licence"),
    "root": ({"root": "/proc/nowhere"}, "INVALID_SPEC", "/proc/nowhere"),
    "no host": ({"host": None}, "", "executors.ssh"),
    "too many processors": ({"slots": 1}, "UNSCHEDULABLE", "cpus=2"),
}


@pytest.mark.usefixtures("kernel")
def test_one_sentence_for_what_cannot_work(
    options: dict[str, Any],
) -> None:
    executors = {"good": SSHExecutor(**options)}
    for name, (changes, _, _) in BAD.items():
        made = {**options, **changes}
        if {"venv", "conda"} & changes.keys():
            made["python"] = None
        executors[name] = SSHExecutor(**made)
    other = other_python()
    if other is not None:
        executors["other python"] = SSHExecutor(**{**options, "python": other})
    said = failures(executors)
    assert said.pop("good").startswith("COMPLETED")
    if other is not None:
        sentence = said.pop("other python")
        assert "ENV_MISMATCH" in sentence
        assert f"3.{sys.version_info[1]}" in sentence
    for name, sentence in said.items():
        _, reason, words = BAD[name]
        assert sentence.startswith(f"FAILED {reason}"), (name, sentence)
        assert words in sentence, (name, sentence)
        assert "Traceback" not in sentence, (name, sentence)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("says", ["refuses the login", "is not known: ssh-ed25519"])
def test_without_trust_no_task_fails(
    sshd: Sshd, options: dict[str, Any], tmp_path: Path, says: str
) -> None:
    stranger = sshd.client(known_hosts="/dev/null")
    if says == "refuses the login":
        stranger = sshd.client(identity_file=str(sshd.new_key(tmp_path / "stranger")))
    deadline = time.monotonic() + 60
    while not sshd.logged(r"^Connection from .*"):  # the fixture's own look
        assert time.monotonic() < deadline
        time.sleep(0.02)
    executor = SSHExecutor(**{**options, **stranger})
    electron = ct.electron(lambda x: x, executor=executor)
    dispatch_id = ct.dispatch(ct.lattice(lambda: [electron(x) for x in range(5)]))()
    while says not in str(ct.get_result(dispatch_id).get_node_result(0)["error"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ct.get_result(dispatch_id).status == "RUNNING"
    # It is tried once, however many ask.
    assert sshd.logged(r"^Connection from .*") == 2
    ct.cancel(dispatch_id, wait=True, timeout=60)
    assert ct.get_result(dispatch_id).status == "CANCELLED"


def other_python() -> str | None:
    """An interpreter of another minor version, where there is one."""
    for minor in range(6, 20):
        path = shutil.which(f"python3.{minor}")
        if minor != sys.version_info[1] and path is not None:
            works = subprocess.run([path, "-c", ""], capture_output=True, timeout=60)
            if not works.returncode:
                return path
    return None


@pytest.mark.usefixtures("kernel")
def test_several_hosts_share_the_work(
    sshd_session: Sshd, sshd: Sshd, options: dict[str, Any], tmp_path: Path
) -> None:
    (sshd.folder / "authorized_keys").write_text(Path(f"{sshd_session.identity}.pub").read_text())
    known = tmp_path / "known_hosts"
    known.write_text(sshd.known_hosts.read_text() + sshd_session.known_hosts.read_text())
    options.pop("host"), options.pop("port")
    hosts = [f"127.0.0.1:{server.port}" for server in (sshd, sshd_session)]
    executor = SSHExecutor(hosts=hosts, **{**options, "known_hosts": str(known), "slots": 1})

    @ct.electron(executor=executor)
    def where(_: int) -> str:
        import os

        return os.environ["SSH_CONNECTION"].split()[3]

    @ct.lattice
    def flow() -> list[str]:
        return [where(number) for number in range(4)]

    result = ct.get_result(ct.dispatch(flow)(), wait=True, timeout=100)
    assert result.result is not None, result.error
    assert set(result.result) == {str(sshd.port), str(sshd_session.port)}


@pytest.mark.usefixtures("kernel")
def test_a_host_that_is_away_is_waited_for_and_the_task_says_so(sshd: Sshd, tmp_path: Path) -> None:
    sshd.kill()
    executor = SSHExecutor(**sshd.client(python=sys.executable, root=str(tmp_path / "root")))

    @ct.electron(executor=executor)
    def task() -> int:
        return 7

    @ct.lattice
    def flow() -> int:
        return task()

    dispatch_id = ct.dispatch(flow)()
    deadline = time.monotonic() + 60
    while "refuses connections" not in str(ct.get_result(dispatch_id).get_node_result(0)["error"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sshd.start()
    result = ct.get_result(dispatch_id, wait=True, timeout=100)
    assert result.result == 7
    assert result.get_node_result(0)["error"] is None


def test_no_secret_is_written_anywhere(sshd: Sshd, tmp_path: Path) -> None:
    secret = "correct-horse-battery"
    key = sshd.new_key(tmp_path / "protected")
    (sshd.folder / "authorized_keys").write_text(Path(f"{key}.pub").read_text())
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", secret, "-f", str(key)], check=True)
    root = tmp_path / "root"
    reach = sshd.client(identity_file=str(key), passphrase_env="MY_KEY", root=str(root))
    program = Program(
        tmp_path, {**reach, "python": sys.executable, "cleanup": "never"}, MY_KEY=secret
    )
    assert program.run("one").startswith("COMPLETED|7|")
    for folder in (tmp_path / "chelate", root, sshd.folder):
        for path in folder.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path
