"""Commands and bytes over one shared, bounded connection, whatever the host's shell is."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.services.sshd import Sshd
from tests.services.tcpproxy import TcpProxy

from chelate.api import ConfigError, ExecutorError, TransientError
from chelate.remote import UnreachableError
from chelate_ssh import SSHTransport, Target
from chelate_ssh.session import Session

from .kit import carry_out, target_of, with_transport

ECHO = "import os, sys; sys.stdout.buffer.write(os.fsencode('\\0'.join(sys.argv[1:])))"
NASTY = [
    "", " ", "\n", "\n\n", "a\nb", "'", '"', "\\", "\\n", "$HOME", "$(touch /tmp/x)", "`id`", "!!",
    "~", "*", "?", "{a,b}", ";", "&", "|", "<", ">", "#", "-n", "--", "=ls", "%1", "^", "\t", "é",
    "日本", "\x81\x88", "\r", "\x1b[0m", "a" * 5000, "'\"'\"'", "\\'", "${x}", "a=b", "\u2028",
    "|| true",
]  # fmt: skip


def returned(target: Target, words: list[str]) -> list[str]:
    text = carry_out(target, sys.executable, "-c", ECHO, "x", *words)
    return text.split("\0")[1:]


def test_arguments_arrive_as_they_are(sshd_session: Sshd) -> None:
    assert returned(target_of(sshd_session), NASTY) == NASTY


@pytest.mark.parametrize("shell", ["bash", "dash", "fish", "tcsh", "zsh"])
def test_any_login_shell_will_do(sshd: Sshd, shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    # The login shell passes the whole command on to this one, as its own.
    sshd.options.append(f'ForceCommand exec {path} -c "$SSH_ORIGINAL_COMMAND"')
    sshd.restart()
    assert returned(target_of(sshd), NASTY) == NASTY


def strings(count: int) -> list[str]:
    rng = random.Random(count)
    alphabet = [*"'\"\\$`!;&|<>(){}[]*?~#%^=-,. \t\n\rabcXYZ019", "é", "日", "\x7f", "\x85", "€"]
    return ["".join(rng.choices(alphabet, k=rng.randint(0, 40))) for _ in range(count)]


def test_random_arguments_arrive_as_they_are(sshd_session: Sshd) -> None:
    words = strings(400)
    assert returned(target_of(sshd_session), words) == words


@pytest.mark.large
def test_ten_thousand_random_arguments_arrive_as_they_are(sshd_session: Sshd) -> None:
    words = strings(10_000)
    for at in range(0, len(words), 1000):
        part = words[at : at + 1000]
        assert returned(target_of(sshd_session), part) == part


def test_what_start_up_files_print_is_no_answer(sshd: Sshd) -> None:
    (sshd.home / ".bashrc").write_text("echo Welcome; echo; echo 'chelate-x'; echo oops >&2\n")
    assert carry_out(target_of(sshd), "echo", "in") == "in\n"


@pytest.mark.parametrize("closed", [False, True])
def test_a_login_that_runs_no_commands_says_so(
    sshd: Sshd, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd.options.append("ForceCommand echo This account is closed.; exit 1")
    sshd.restart()
    if closed:  # before the command is written
        opened = Session._open

        async def slow(self: Session) -> bool:
            if answer := await opened(self):
                await self._channel.wait_closed()
            return answer

        monkeypatch.setattr(Session, "_open", slow)
    with pytest.raises(UnreachableError, match=r"did not start a command.*account is closed"):
        carry_out(target_of(sshd), "true")


def test_a_nul_in_an_argument_is_refused(sshd_session: Sshd) -> None:
    with pytest.raises(ConfigError, match="NUL"):
        carry_out(target_of(sshd_session), "echo", "a\0b")


def test_how_a_command_ended(sshd_session: Sshd) -> None:
    async def work(transport: SSHTransport) -> None:
        done = await transport.run(["sh", "-c", "echo out; echo bad >&2; exit 3"])
        assert (done.exit_status, done.stdout, done.stderr) == (3, b"out\n", b"bad\n")
        assert (await transport.run(["sh", "-c", "kill -9 $$"])).exit_status == -9
        assert (await transport.run(["no-such-command"])).exit_status == 127
        pieces = [piece async for piece in transport.stream(["echo", "out"])]
        assert b"".join(pieces) == b"out\n"
        with pytest.raises(ExecutorError, match="exit status 4: bad"):
            async for _ in transport.stream(["sh", "-c", "echo bad >&2; exit 4"]):
                pass

    with_transport(target_of(sshd_session), work)


def test_a_command_that_takes_too_long_is_given_up(sshd_session: Sshd) -> None:
    async def work(transport: SSHTransport) -> None:
        await transport.open()
        with pytest.raises(TransientError, match=r"within 0\.2 s") as given_up:
            await transport.run(["sleep", "30"], timeout=0.2)
        assert not isinstance(given_up.value, UnreachableError)
        assert (await transport.run(["echo", "in"])).stdout == b"in\n"

    with_transport(target_of(sshd_session), work)


def test_input_may_be_longer_than_memory_and_longer_than_wanted(sshd_session: Sshd) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(256):
            yield bytes(1 << 16)

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ValueError("the source broke")

    async def work(transport: SSHTransport) -> None:
        assert (await transport.run(["wc", "-c"], pieces())).stdout.strip() == b"16777216"
        assert (await transport.run(["head", "-c", "3"], pieces())).stdout == b"\0\0\0"
        assert (await transport.run(["head", "-c", "3"], bytes(1 << 24))).stdout == b"\0\0\0"
        with pytest.raises(ValueError, match="the source broke"):
            await transport.run(["cat"], broken())
        assert (await transport.run(["echo", "in"])).stdout == b"in\n"

    with_transport(target_of(sshd_session), work)


def test_everybody_shares_one_connection_and_eight_channels(sshd: Sshd) -> None:
    async def many(count: int) -> None:
        transports = [SSHTransport(target_of(sshd)) for _ in range(4)]
        answers = await asyncio.gather(
            *(
                transports[number % 4].run(["sh", "-c", f"sleep 0.05; echo {number}"])
                for number in range(count)
            )
        )
        assert [int(answer.stdout) for answer in answers] == list(range(count))
        for transport in transports:
            await transport.close()

    # In two lanes at once: each has a thread and a loop of its own.
    lanes = [threading.Thread(target=asyncio.run, args=(many(20),)) for _ in range(2)]
    with_transport(target_of(sshd), _held(lanes))
    assert sshd.accepted == 1
    assert sshd.most_sessions <= 8


def _held(lanes: list[threading.Thread]):
    async def work(transport: SSHTransport) -> None:
        await transport.open()
        for lane in lanes:
            lane.start()
        for lane in lanes:
            await asyncio.get_running_loop().run_in_executor(None, lane.join)

    return work


@pytest.mark.parametrize("most", [1, 2])
def test_a_host_that_allows_fewer_sessions_is_learned(sshd: Sshd, most: int) -> None:
    sshd.options.append(f"MaxSessions {most}")
    sshd.restart()

    async def work(transport: SSHTransport) -> None:
        answers = await asyncio.gather(
            *(transport.run(["sh", "-c", f"echo {number}"]) for number in range(30))
        )
        assert [int(answer.stdout) for answer in answers] == list(range(30))

    with_transport(target_of(sshd), work)
    assert sshd.accepted == 1
    assert sshd.most_sessions <= most


def test_a_cut_loses_the_answer_and_the_next_command_connects_again(sshd: Sshd) -> None:
    with TcpProxy((sshd.address, sshd.port)) as proxy:
        sshd.know(proxy.address[1])

        async def work(transport: SSHTransport) -> None:
            await transport.open()
            slow = asyncio.ensure_future(transport.run(["sh", "-c", "echo begun; sleep 30"]))
            while not sshd.logged("^Starting session"):
                await asyncio.sleep(0.02)
            proxy.cut()
            with pytest.raises(TransientError, match="answer is lost"):
                await slow
            assert (await transport.run(["echo", "in"])).stdout == b"in\n"
            stream = transport.stream(["cat", "/dev/zero"])
            await stream.__anext__()
            proxy.cut()
            with pytest.raises(TransientError, match="was cut"):
                async for _ in stream:
                    pass
            proxy.refuse()
            with pytest.raises(UnreachableError, match="refuses connections"):
                await transport.run(["true"])
            asked = -time.monotonic()
            for _ in range(6):
                with pytest.raises(UnreachableError):
                    await transport.run(["true"])
            assert asked + time.monotonic() > 1.0, "it was asked again and again at once"
            proxy.listen()
            while True:
                try:
                    assert (await transport.run(["echo", "in"])).stdout == b"in\n"
                    break
                except UnreachableError as error:
                    await asyncio.sleep(error.retry_after or 0.1)

        with_transport(target_of(sshd, port=proxy.address[1]), work)


def test_silence_is_noticed(sshd: Sshd) -> None:
    async def work(transport: SSHTransport) -> None:
        await transport.open()
        sshd.freeze()
        begun = time.monotonic()
        with pytest.raises(TransientError):
            await transport.run(["echo", "in"])
        assert time.monotonic() - begun < 10
        sshd.thaw()

    try:
        with_transport(target_of(sshd, keepalive_interval=0.5), work)
    finally:
        sshd.thaw()


def test_a_long_answer_takes_little_memory(sshd_session: Sshd, tmp_path: Path) -> None:
    async def work(transport: SSHTransport) -> int:
        size = 0
        async for piece in transport.stream(["head", "-c", "64000000", "/dev/zero"]):
            assert len(piece) <= 1 << 20
            size += len(piece)
        return size

    assert with_transport(target_of(sshd_session), work) == 64_000_000


def test_nothing_is_left_when_the_last_one_leaves(sshd: Sshd) -> None:
    assert carry_out(target_of(sshd), "echo", "in") == "in\n"
    deadline = time.monotonic() + 10
    while sshd.connections() or any(item.name == "chelate-ssh" for item in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_connections_end_quietly_with_the_interpreter() -> None:
    script = (
        "import asyncio, atexit, threading\n"
        "from chelate_ssh.hub import enter\n"
        "hub = enter()\n"
        "(thread,) = [item for item in threading.enumerate() if item.name == 'chelate-ssh']\n"
        "asyncio.run(hub.do(asyncio.to_thread(int)))\n"
        "atexit.register(thread.join, 20)\n"
        "atexit.register(hub.leave)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
