"""Cuts, kills and loads: nothing is lost, nothing runs twice, nothing is left over."""

from __future__ import annotations

import contextlib
import random
import signal
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.services import netfault
from tests.services.sshd import Sshd
from tests.services.tcpproxy import TcpProxy

import chelate as ct
from chelate_ssh import SSHExecutor

from .flows import expected
from .kit import Program, marked, serving

large = pytest.mark.large


def made(server: Sshd, folder: Path, **changes: Any) -> dict[str, Any]:
    """Options for the whole life of a host that is this machine."""
    common = {"python": sys.executable, "root": str(folder / "root"), "poll_interval": 0.2}
    return server.client(**common, **changes)


def started(ledger: Path) -> list[str]:
    """Keys of the attempts that began, in their order."""
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return [line.partition(" ")[2] for line in lines if line.startswith("start ")]


def until(condition: Callable[[], bool], limit: float = 60.0) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def ran_once(ledger: Path, width: int) -> None:
    """Every attempt ran once and to its end, and every task had one attempt."""
    lines = Counter(ledger.read_text().splitlines())
    assert set(lines.values()) == {1}, [line for line, times in lines.items() if times > 1]
    nodes = Counter(tuple(key.split()[:2]) for key in started(ledger))
    assert set(nodes.values()) == {1}, "a task had more than one attempt"
    assert len(nodes) == width + (width + 1) // 2 + 1
    assert len(lines) == 2 * len(nodes)


@contextlib.contextmanager
def silenced(proxy: TcpProxy) -> Iterator[None]:
    proxy.hold()
    try:
        yield
    finally:
        proxy.let_go()


def cut_off(
    server: Sshd, folder: Path, width: int, seconds: float, pause: Any, **changes: Any
) -> None:
    """Run a workflow whose host cannot be heard for a while, with jobs in every phase."""
    ledger = folder / "ledger"
    program = Program(folder, made(server, folder, slots=width, **changes))
    with program.start("whole", str(ledger), str(width), "1.5") as process:
        try:
            until(lambda: len(started(ledger)) >= width // 2)
            with pause:
                time.sleep(seconds)  # the length of the cut, not a wait
            healed = time.monotonic()
            output = process.communicate(timeout=150)[0]
        finally:
            process.kill()
    assert output.split()[1:] == ["COMPLETED", str(expected(width))]
    assert time.monotonic() - healed < 20 + 3 * width
    ran_once(ledger, width)


def test_a_cut_of_seconds_loses_nothing(sshd: Sshd, tmp_path: Path) -> None:
    with TcpProxy((sshd.address, sshd.port)) as proxy:
        port = proxy.address[1]
        sshd.know(port)
        cut_off(sshd, tmp_path, 6, 5, silenced(proxy), port=port, keepalive_interval=1)
        assert proxy.accepted >= 2, "the cut was not noticed"


@large
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", range(3))
def test_a_minute_of_lost_packets_loses_nothing(sshd: Sshd, tmp_path: Path, number: int) -> None:
    netfault.require()
    cut_off(sshd, tmp_path, 20, 60, netfault.cut(sshd.port))


@large
@pytest.mark.timeout(600)
def test_a_frozen_server_loses_nothing(sshd: Sshd, tmp_path: Path) -> None:
    @contextlib.contextmanager
    def frozen() -> Iterator[None]:
        sshd.freeze()
        try:
            yield
        finally:
            sshd.thaw()

    cut_off(sshd, tmp_path, 12, 45, frozen())


def killed(server: Sshd, folder: Path, kills: int, width: int, seed: int) -> None:
    """kill -9 of the kernel at random moments; the next one takes up what the last one left."""
    rng = random.Random(seed)
    ledger = folder / "ledger"
    program = Program(folder, made(server, folder, slots=4), CHELATE_EXIT_WAIT="0")
    process = program.start("begin", str(ledger), str(width), "0.1")
    assert process.stdout is not None
    dispatch_id = process.stdout.readline().strip()
    try:
        for _ in range(kills):
            already = len(started(ledger))
            deadline = time.monotonic() + rng.choice([0.2, 1.0, 2.0, 4.0])
            wanted = already + rng.randint(1, 3)
            while time.monotonic() < deadline and len(started(ledger)) < wanted:
                time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            process = program.start("wait", dispatch_id)
        output = process.communicate(timeout=120 + 2 * width)[0]
    finally:
        process.kill()
        process.communicate()
    assert output.split() == ["COMPLETED", str(expected(width))]
    ran_once(ledger, width)
    until(lambda: not marked(f"CHELATE_TASK_KEY={dispatch_id}"), 10)
    until(lambda: not serving(folder / "root"), 10)


def test_a_kernel_that_is_killed_loses_nothing(sshd: Sshd, tmp_path: Path) -> None:
    killed(sshd, tmp_path, kills=4, width=8, seed=1)


@large
@pytest.mark.timeout(1800)
def test_a_kernel_that_is_killed_fifty_times_loses_nothing(sshd: Sshd, tmp_path: Path) -> None:
    killed(sshd, tmp_path, kills=50, width=60, seed=2)


def crowd(server: Sshd, folder: Path, width: int) -> None:
    """Many jobs at one time: one connection, and no more channels than allowed."""
    ledger = folder / "ledger"
    program = Program(folder, made(server, folder, slots=width))
    output = program.run("whole", str(ledger), str(width), "0.1", limit=120 + 4 * width)
    assert output.split()[1:] == ["COMPLETED", str(expected(width))]
    ran_once(ledger, width)
    assert server.accepted == 1


def test_a_crowd_uses_one_connection(sshd: Sshd, tmp_path: Path) -> None:
    sshd.options.append("MaxSessions 2")
    sshd.restart()
    crowd(sshd, tmp_path, 14)
    assert sshd.most_sessions <= 2


@large
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("most", [10, 2])
def test_two_hundred_jobs_use_one_connection(sshd: Sshd, tmp_path: Path, most: int) -> None:
    sshd.options.append(f"MaxSessions {most}")
    sshd.restart()
    crowd(sshd, tmp_path, 200)
    assert sshd.most_sessions <= min(most, 8)


def bulky(server: Sshd, folder: Path, size: int) -> None:
    """A long result that is cut in the middle is taken up there, in little memory."""
    with TcpProxy((server.address, server.port)) as proxy:
        server.know(proxy.address[1])
        proxy.cut_after = 500_000 + size // 2  # after the small one that warms up
        program = Program(folder, made(server, folder, port=proxy.address[1]))
        output = program.run("bulk", str(size), limit=600)
        assert proxy.accepted == 2
        assert proxy.bytes_down < 1.3 * size + 2_000_000
    status, grown = output.split()
    assert status == "COMPLETED"
    assert float(grown) < 64, f"the kernel grew by {grown} MiB"


def test_a_long_result_is_taken_up_where_it_was_cut(sshd: Sshd, tmp_path: Path) -> None:
    bulky(sshd, tmp_path, 32_000_000)


@large
@pytest.mark.timeout(1200)
def test_a_gigabyte_is_taken_up_where_it_was_cut(sshd: Sshd, tmp_path: Path) -> None:
    bulky(sshd, tmp_path, 1_000_000_000)


# -- strings that are not what they look like ----------------------------------------------------


ALPHABET = [*string.printable, *"'\"\\$`!;&|<>(){}[]*?~#\n" * 3, "é", "日", "\x7f", "\u2028", "€"]


def texts(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(ALPHABET, k=rng.randint(1, 30))) for _ in range(count)]


def paths(rng: random.Random, count: int) -> list[str]:
    kept = [sign for sign in ALPHABET if sign.isprintable() and sign != "/"]
    return ["x" + "".join(rng.choices(kept, k=12)) for _ in range(count)]


def carried(server: Sshd, folder: Path, variables: int, folders: int) -> None:
    rng = random.Random(variables)
    trap = folder / "trap"
    for number, name in enumerate(paths(rng, folders)):
        values = {f"V{index}": text for index, text in enumerate(texts(rng, variables))}
        values["TRAP"] = f"'; touch {trap}; $(touch {trap}) `touch {trap}`\ntouch {trap}\n"
        workdir = folder / f"{name} work"
        workdir.mkdir()
        executor = SSHExecutor(
            **{
                **made(server, folder, slots=2),
                "root": str(folder / f"{name} root"),
                "workdir": str(workdir),
                "env_vars": values,
                "prerun": f"printf %s {subprocess.list2cmdline(['in prerun'])} >&2",
            }
        )

        def look() -> tuple[dict[str, str], str]:
            import os

            found = {key: text for key, text in os.environ.items() if key[0] in "VT"}
            return found, os.getcwd()  # noqa: PTH109 - as it is

        look.__name__ = look.__qualname__ = texts(rng, 1)[0]
        electron = ct.electron(look, executor=executor)

        @ct.lattice
        def flow() -> object:
            return electron()  # noqa: B023 - built before the loop goes on

        result = ct.get_result(ct.dispatch(flow)(), wait=True, timeout=100)
        assert result.result is not None, result.error
        found, where = result.result
        assert {key: found.get(key) for key in values} == values, number
        assert where == str(workdir)
    assert not trap.exists()


@pytest.mark.usefixtures("kernel")
def test_strings_stay_strings(sshd_session: Sshd, tmp_path: Path) -> None:
    carried(sshd_session, tmp_path, variables=300, folders=2)


@large
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("kernel")
def test_ten_thousand_strings_stay_strings(sshd_session: Sshd, tmp_path: Path) -> None:
    carried(sshd_session, tmp_path, variables=250, folders=40)
