"""A throw-away OpenSSH server for tests: a high port on loopback, with keys of its own.

Use the fixtures by importing them into a ``conftest.py``::

    from tests.services.sshd import sshd, sshd_session

or :func:`start` directly. Whoever runs the tests is the login user. Without an installed server the
tests are skipped, and fail when ``CHELATE_REQUIRE_SERVICES=1``.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

__all__ = [
    "Sshd",
    "children_of",
    "find_binary",
    "free_port",
    "require",
    "sshd",
    "sshd_session",
    "start",
]

_START = 20.0


def find_binary() -> str | None:
    """The path of ``sshd``."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A port nobody listens on, below the range that outgoing connections take theirs from.

    A random one, since other test processes look for ports at the same time.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("No port is free.")


def children_of(pid: int, name: str | None = None) -> list[int]:
    """Direct and indirect children of a process; with ``name``, down to the first of another."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text(errors="replace")
        except OSError:
            continue
        command = text[text.index("(") + 1 : text.rindex(")")]
        parent = int(text[text.rindex(")") + 2 :].split()[1])
        parents.setdefault(parent, []).append((int(folder.name), command))
    found: list[int] = []
    queue = [pid]
    while queue:
        for child, command in parents.get(queue.pop(), ()):
            if name is None or command == name:
                found.append(child)
                queue.append(child)
    return found


@dataclass
class Sshd:
    """One server and the files a client needs to reach it.

    ``options`` are lines of ``sshd_config`` that win over the defaults here; they take effect
    with the next :meth:`start`, as do the variables of ``environment`` that sessions get. The home
    folder of sessions is one of their own: start-up files of whoever runs the tests stay out.
    """

    binary: str
    folder: Path
    address: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def user(self) -> str:
        """The login user."""
        return pwd.getpwuid(os.geteuid()).pw_name

    @property
    def identity(self) -> Path:
        """The private key that may log in."""
        return self.folder / "id_ed25519"

    @property
    def home(self) -> Path:
        """The home folder of sessions."""
        return self.folder / "home"

    @property
    def host_key(self) -> Path:
        """The server's private host key."""
        return self.folder / "host_ed25519"

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file that names the server's present key."""
        return self.folder / "known_hosts"

    @property
    def log(self) -> Path:
        """What the server says, with one line per connection and per session."""
        return self.folder / "log"

    def new_key(self, path: Path, *arguments: str) -> Path:
        """Make a key pair; the private half's path."""
        for old in (path, path.with_name(f"{path.name}.pub")):
            old.unlink(missing_ok=True)
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", *arguments]
        subprocess.run([*words, "-f", str(path)], check=True, capture_output=True, timeout=60)
        return path

    def make(self) -> None:
        """Make the keys and files once."""
        self.home.mkdir()
        self.new_key(self.identity)
        shutil.copy(f"{self.identity}.pub", self.folder / "authorized_keys")
        self.change_host_key()

    def change_host_key(self, *, tell: bool = True) -> None:
        """A new host key, used from the next start on; known to clients when ``tell``."""
        self.new_key(self.host_key)
        if tell:
            kind, key = self.host_key.with_name("host_ed25519.pub").read_text().split()[:2]
            self.known_hosts.write_text(f"[{self.address}]:{self.port} {kind} {key}\n")

    def know(self, port: int, name: str = "127.0.0.1") -> None:
        """Let clients know this server's key under another address as well, such as a proxy's."""
        kind, key = self.host_key.with_name("host_ed25519.pub").read_text().split()[:2]
        with self.known_hosts.open("a") as file:
            file.write(f"[{name}]:{port} {kind} {key}\n")

    def start(self) -> None:
        """Start the server and wait until it listens."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where root's sshd locks itself in
        variables = {"HOME": str(self.home), **self.environment}
        lines = [
            *self.options,
            "SetEnv " + " ".join(f'"{name}={value}"' for name, value in variables.items()),
            f"Port {self.port}",
            f"ListenAddress {self.address}",
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "LogLevel VERBOSE",
            "PrintMotd no",
        ]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        command = [self.binary, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with socket.socket() as probe:
                probe.settimeout(1)
                if not probe.connect_ex((self.address, self.port)):
                    return
            time.sleep(0.02)
        raise RuntimeError(f"sshd did not start: {self.log.read_text()[-2000:]}")

    def connections(self) -> list[int]:
        """The server's own processes of all open connections."""
        return [] if self.process is None else children_of(self.process.pid, "sshd")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and to every connection; what they started is not hit."""
        assert self.process is not None
        for pid in [self.process.pid, *self.connections()]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self) -> None:
        """Say nothing more, and close nothing."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self.signal(signal.SIGCONT)

    def drop(self) -> None:
        """Kill every connection; the server goes on."""
        for pid in self.connections():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill the server and every connection."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    def restart(self) -> None:
        """Kill everything and start anew, with the present keys and options."""
        self.kill()
        self.start()

    def logged(self, pattern: str) -> int:
        """How many lines of the log match."""
        return len(re.findall(pattern, self.log.read_text(errors="replace"), re.MULTILINE))

    @property
    def accepted(self) -> int:
        """How many times somebody logged in."""
        return self.logged(r"^Accepted \S+ for ")

    @property
    def most_sessions(self) -> int:
        """The most sessions that were open at one time, over all connections."""
        most = now = 0
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("Starting session:"):
                now += 1
                most = max(most, now)
            elif line.startswith("Close session:"):
                now -= 1
        return most

    def client(self, **changes: object) -> dict[str, object]:
        """Options that reach this server, for an executor or a transport."""
        return {
            "host": self.address,
            "port": self.port,
            "user": self.user,
            "identity_file": str(self.identity),
            "known_hosts": str(self.known_hosts),
            "config": os.devnull,
            **changes,
        }


@contextmanager
def start(options: Sequence[str] = (), address: str = "127.0.0.1") -> Iterator[Sshd]:
    """A new server, which is gone with its keys at the end.

    Raises:
        RuntimeError: no server is installed, or it does not start.
    """
    binary = find_binary()
    if binary is None:
        raise RuntimeError("No OpenSSH server is installed.")
    folder = Path(tempfile.mkdtemp(prefix="sshd-"))
    server = Sshd(binary, folder, address, options=list(options))
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def require() -> None:
    """Skip, or fail where services are required, when no server is installed."""
    if find_binary() is None:
        if os.environ.get("CHELATE_REQUIRE_SERVICES") == "1":
            pytest.fail("No OpenSSH server is installed, and CHELATE_REQUIRE_SERVICES=1.")
        pytest.skip("no OpenSSH server is installed (on Debian: apt install openssh-server)")


@pytest.fixture(scope="session")
def sshd_session() -> Iterator[Sshd]:
    """One server for the whole session, for tests that leave it as it is."""
    require()
    with start() as server:
        yield server


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """A server for one test, which may stop, freeze and change it."""
    require()
    with start() as server:
        yield server
