"""A throw-away Slurm cluster for tests: munge, one controller and a few nodes on loopback.

Use the fixture by importing it into a ``conftest.py``::

    from tests.services.slurm import slurm_cluster

or :func:`start` directly. Everything is Debian's own packages; without them the tests are skipped,
and fail when ``CHELATE_REQUIRE_SERVICES=1``. Daemons that ``start`` began are ended by it, with the
jobs they run; no other process is touched.

Partitions: ``debug`` (default), ``low`` (its jobs are cancelled when ``debug`` needs the room),
``requeue`` (its jobs are requeued then), ``small`` (``n1`` alone), and ``closed``, where jobs stay
pending.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.services import slurmdbd

__all__ = ["PROGRAMS", "SlurmCluster", "is_installed", "slurm_cluster", "start"]

PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")
_DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def is_installed() -> bool:
    """Whether this machine has everything a cluster needs."""
    return all(shutil.which(name, path=_PATH) for name in _DAEMONS)


def _which(program: str) -> str:
    found = shutil.which(program, path=_PATH)
    if found is None:
        raise RuntimeError(f"{program} is not installed.")
    return found


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Look again and again until the condition holds. Raises RuntimeError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not happen within {seconds:g} s.")
        time.sleep(0.05)


@dataclass
class SlurmCluster:
    """A running cluster. ``programs`` holds wrappers that count every call."""

    folder: Path
    nodes: tuple[str, ...]
    has_cgroups: bool = False
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        """The configuration file, for ``SLURM_CONF``."""
        return self.folder / "slurm.conf"

    @property
    def programs(self) -> Path:
        """A folder with the client programs, each noting its calls."""
        return self.folder / "bin"

    def run(self, program: str, *arguments: str, check: bool = True) -> str:
        """Output of one client program, uncounted. Raises RuntimeError when it fails."""
        done = subprocess.run(
            [_which(program), *arguments],
            env={**os.environ, "SLURM_CONF": str(self.conf)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        if check and done.returncode:
            raise RuntimeError(f"{program} failed ({done.returncode}): {done.stdout[-2000:]}")
        return done.stdout

    # -- counting -----------------------------------------------------------------------------

    def calls(self) -> Counter[str]:
        """How often each wrapped program was called since :meth:`forget_calls`."""
        try:
            return Counter((self.folder / "calls").read_text().split())
        except FileNotFoundError:
            return Counter()

    def forget_calls(self) -> None:
        """Count from nothing."""
        (self.folder / "calls").unlink(missing_ok=True)

    def write_program(self, name: str, body: str) -> None:
        """Put a shell script in the place of one wrapper."""
        path = self.programs / name
        fresh = path.with_suffix(".new")
        fresh.write_text(f"#!/bin/sh\n{body}\n")
        fresh.chmod(0o755)
        fresh.replace(path)

    def write_wrappers(self) -> None:
        """The wrappers as they are at the start."""
        self.programs.mkdir(exist_ok=True)
        for name in PROGRAMS:
            log = f'echo {name} >>"{self.folder}/calls"'
            self.write_program(name, f'{log}\nexec {shutil.which(name, path=_PATH)} "$@"')

    # -- jobs ---------------------------------------------------------------------------------

    def jobs(self) -> dict[str, str]:
        """State of every job that the controller knows, by job id (array elements singly)."""
        rows = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T")
        return dict(row.split() for row in rows.splitlines())

    def active(self) -> set[str]:
        """Ids of jobs that are not over."""
        live = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED")
        return {job for job, state in self.jobs().items() if state in live}

    def clear(self) -> None:
        """End every job, and see it gone."""
        if active := self.active():
            self.run("scancel", *sorted({job.partition("_")[0] for job in active}))
            wait_until(lambda: not self.active(), "the end of all jobs")

    # -- daemons ------------------------------------------------------------------------------

    def launch(self, key: str, *argv: str) -> None:
        """Begin a daemon, which ends with the cluster."""
        # Held open by the child alone: a pipe would fill, and pytest's own streams would leak.
        with (self.folder / f"{key}.out").open("ab") as log:
            self.daemons[key] = subprocess.Popen(
                # Gone with the tests, also when those are killed.
                ["setpriv", "--pdeathsig", "KILL", "--", _which(argv[0]), *argv[1:]],
                cwd=self.folder,
                env={**os.environ, "SLURM_CONF": str(self.conf), "PATH": _PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _end(self, key: str, number: int = signal.SIGTERM) -> None:
        daemon = self.daemons.pop(key, None)
        if daemon is None:
            return
        for one in (signal.SIGCONT, number):
            daemon.send_signal(one)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(20)

    def start_munge(self) -> None:
        """The daemon that signs every message."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(stat.S_IRUSR)
        path = self.folder / "munge"
        self.launch(
            "munge", "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={path}.socket", f"--pid-file={path}.pid", f"--seed-file={path}.seed",
            f"--log-file={path}.log",
        )  # fmt: skip
        wait_until(lambda: Path(f"{path}.socket").exists(), "a start of munged", 20)

    def start_accounting(self) -> None:
        """slurmdbd, on the database that is there already."""
        self.launch("accounting", "slurmdbd", "-D")

        self.wait(
            lambda: "ControlHost" in self.run("sacctmgr", "show", "cluster", check=False),
            "an answer of slurmdbd",
            90,
        )

    def stop_accounting(self) -> None:
        """slurmdbd is gone, as after a crash."""
        self._end("accounting", signal.SIGKILL)

    @staticmethod
    def wait(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        """Look again and again until the condition holds. Raises RuntimeError."""
        wait_until(condition, what, seconds)

    def start_controller(self) -> None:
        """Begin or resume; pending jobs and job records are as they were."""
        self.launch("controller", "slurmctld", "-D", "-i")
        wait_until(lambda: "is UP" in self.run("scontrol", "ping", check=False), "an answer of it")

    def freeze(self) -> None:
        """The controller neither answers nor refuses, until :meth:`thaw`."""
        self.daemons["controller"].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """The controller goes on, with all that was sent to it in the meantime."""
        self.daemons["controller"].send_signal(signal.SIGCONT)

    def start_node(self, node: str) -> None:
        """A node's daemon."""
        (self.folder / "spool" / node).mkdir(parents=True, exist_ok=True)
        self.launch(node, "slurmd", "-D", "-N", node)

    def crash_node(self, node: str) -> None:
        """A node loses power: its daemon and every process of its jobs are gone."""
        self._end(node, signal.SIGKILL)
        for pid in self._steps(node):
            _kill_tree(pid)

    def _steps(self, node: str = "") -> list[int]:
        """Processes that watch over a job here, of one node or of all."""
        found: list[int] = []
        for status in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                variables = status.read_bytes().split(b"\0")
                name = (status.parent / "comm").read_text().strip()
                mine = f"SLURM_CONF={self.conf}".encode() in variables
                if not mine or name != "slurmstepd":
                    continue
                # A step is called "slurmstepd: [5.batch]", and has a socket in its node's folder.
                title = (status.parent / "cmdline").read_text()
                job = title.partition("[")[2].partition(".")[0]
                if not node or any((self.folder / "spool" / node).glob(f"{node}_{job}.*")):
                    found.append(int(status.parent.name))
        return found

    def wait_for_nodes(self) -> None:
        """Until every node takes jobs."""
        count = len(self.nodes)

        def ready() -> bool:
            states = self.run("sinfo", "-h", "-N", "-p", "debug", "-o", "%T", check=False).split()
            return len(states) == count and set(states) <= {"idle", "mixed", "allocated"}

        wait_until(ready, "the readiness of all nodes")

    def stop(self) -> None:
        """End everything that was started here."""
        for node in self.nodes:
            self._end(node, signal.SIGKILL)
        for pid in self._steps():
            _kill_tree(pid)
        for key in ("controller", "accounting", "database", "munge"):
            self._end(key)


def _kill_tree(pid: int) -> None:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    todo = [pid]
    for one in todo:
        todo.extend(children.get(one, ()))
    for one in reversed(todo):
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _can_limit_memory() -> bool:
    """Whether the first version of memory control groups is here and may be written to."""
    root = Path("/sys/fs/cgroup/memory")
    probe = root / f"probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return (root / "memory.limit_in_bytes").exists()


def _configure(cluster: SlurmCluster, processors: int, settings: dict[str, str]) -> None:
    folder, name = cluster.folder, socket.gethostname().partition(".")[0]
    user = subprocess.run(["id", "-un"], stdout=subprocess.PIPE, text=True, check=True)
    ports = _free_ports(1 + len(cluster.nodes))
    values = {
        "ClusterName": "test",
        "SlurmctldHost": f"{name}(127.0.0.1)",
        "SlurmctldPort": str(ports[0]),
        "SlurmUser": user.stdout.strip(),
        "SlurmdUser": user.stdout.strip(),
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # The life of a credential is also how long a requeued job waits; stock: 120 s.
        "AuthInfo": f"socket={folder}/munge.socket,cred_expire=5",
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        "StateSaveLocation": f"{folder}/state",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log",
        "SlurmdSpoolDir": f"{folder}/spool/%n",
        "SlurmdPidFile": f"{folder}/slurmd.%n.pid",
        "SlurmdLogFile": f"{folder}/slurmd.%n.log",
        "MpiDefault": "none",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/cgroup" if cluster.has_cgroups else "task/none",
        "SlurmdParameters": "config_overrides",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "GresTypes": "gpu",
        "DefMemPerCPU": "400",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "1",
        "SlurmdTimeout": "6",  # stock: 300, as KillWait 30, BatchStartTimeout 10, MessageTimeout 10
        "KillWait": "2",
        "BatchStartTimeout": "10",
        "MessageTimeout": "5",
        "MinJobAge": "300",
        "ReturnToService": "2",
        "CompleteWait": "0",
        "EpilogMsgTime": "1",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": (
            "batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1"
        ),
        "PriorityType": "priority/basic",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "MaxArraySize": "1001",
        "MaxJobCount": "20000",
    }
    if not cluster.has_cgroups:
        values["JobAcctGatherParams"] = "OverMemoryKill"
    lines = [f"{key}={value}" for key, value in {**values, **settings}.items()]
    for node, port in zip(cluster.nodes, ports[1:], strict=True):
        lines.append(
            f"NodeName={node} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={processors} RealMemory=64000 Gres=gpu:2 State=UNKNOWN"
        )
    everywhere = ",".join(cluster.nodes)
    lines += [
        f"PartitionName=DEFAULT Nodes={everywhere} MaxTime=1-00:00:00 DefaultTime=60 State=UP",
        "PartitionName=debug Default=YES PriorityTier=10 PreemptMode=OFF",
        "PartitionName=low PriorityTier=1 PreemptMode=CANCEL",
        "PartitionName=requeue PriorityTier=1 PreemptMode=REQUEUE",
        f"PartitionName=small Nodes={cluster.nodes[0]} PriorityTier=10 PreemptMode=OFF",
        "PartitionName=closed State=DOWN",
    ]
    cluster.conf.write_text("\n".join(lines) + "\n")
    # slurmd warns that these are no devices, and counts them all the same.
    for number in range(2):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    (folder / "cgroup.conf").write_text(
        "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n"
        "ConstrainRAMSpace=yes\nConstrainSwapSpace=no\n"
    )


@contextmanager
def start(
    *,
    nodes: int = 2,
    processors: int = 32,
    settings: dict[str, str] | None = None,
    accounting: bool = False,
) -> Iterator[SlurmCluster]:
    """A new cluster, which is gone with its jobs at the end.

    Args:
        nodes: how many; they are called ``n1``, ``n2``, ….
        processors: how many each claims to have.
        settings: lines of ``slurm.conf`` that differ.
        accounting: whether with slurmdbd and a database; see :mod:`tests.services.slurmdbd`.

    Raises:
        RuntimeError: Slurm is not installed, or does not start.
    """
    if not is_installed():
        raise RuntimeError("Slurm is not installed.")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path must be short
    names = tuple(f"n{number + 1}" for number in range(nodes))
    cluster = SlurmCluster(folder, names, _can_limit_memory())
    try:
        for name in ("state", "spool"):
            (folder / name).mkdir()
        ports = _free_ports(2)
        more = slurmdbd.settings(ports[0], folder) if accounting else {}
        _configure(cluster, processors, {**more, **(settings or {})})
        cluster.write_wrappers()
        cluster.start_munge()
        if accounting:
            slurmdbd.begin(cluster, *ports)
        cluster.start_controller()
        for name in names:
            cluster.start_node(name)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """One cluster for the whole session."""
    if not is_installed():
        hint = "Slurm is not installed (on Debian: apt install slurm-wlm munge)"
        if os.environ.get("CHELATE_REQUIRE_SERVICES") == "1":
            pytest.fail(f"{hint}, and CHELATE_REQUIRE_SERVICES=1.")
        pytest.skip(hint)
    with start() as cluster:
        yield cluster
