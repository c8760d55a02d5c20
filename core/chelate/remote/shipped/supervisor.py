"""Runs one job to its end and reports it, whatever happens to the task.

The supervisor claims the job, starts the child that runs the tasks, keeps the heartbeat, obeys
control files and signals, ends whole trees, and writes the last word. The child writes a record
for each task that it ran; the supervisor writes those of tasks that could not.
"""

import errno
import os
import select
import signal
import time
from typing import Any

from . import ends, files, packs, processes

__all__ = ["DUPLICATE", "Supervisor"]

DUPLICATE = 75
HEARTBEAT = 10.0  # seconds
LOOK = 0.5  # seconds between two looks at control files and deadlines
LINGER = 60.0  # seconds that threads of the last task may take to end
LATE = 2.0  # seconds by which a scheduler's signal may come after the child has died of it
POSTRUN = 300.0  # seconds that postrun may take
TAIL = 16 * 1024


class Supervisor:
    """One run of one job.

    Args:
        tools: folder of the shipped files.
        folder: directory of the job.
        native: the backend's id of the job; a later run with the same id may take over.
        run: how often the backend has restarted the job.
    """

    umask = 0o022  # what users have; files of the protocol are for nobody else

    def __init__(self, tools: str, folder: str, native: str, run: int) -> None:
        self.tools = tools
        self.folder = folder
        self.root = os.path.dirname(os.path.dirname(folder))
        self.id = os.path.basename(folder)
        self.native = native
        self.run = run
        self.spec = {}  # type: dict[str, Any]
        self.own = []  # type: list[int]  # indices of tasks that no other job has
        self.key = b""
        self.news = (-1, -1)
        self.child = self.usage = None  # type: Any
        self.status = None  # type: int | None
        self.signalled = 0
        self.why = ""  # why everything stops
        self.beat = 0.0
        self.gate = -1

    def main(self) -> int:
        spec = files.fresh_spec(self.folder)
        if spec is None:
            if files.claim_of(self.folder) is not None:
                return DUPLICATE  # a pack has the task
            raise files.Refusal("SPEC", "{} holds no spec of a job.".format(self.folder))
        if files.is_over(self.folder):
            return 0
        self.spec = spec
        self.key = files.key_of(self.root, self.id)
        self.news = os.pipe()
        for end in self.news:
            os.set_blocking(end, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, self.on_signal)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self.news[1])
        if not self.claim():
            return DUPLICATE
        if self.gate >= 0:
            select.select([self.gate], [], [], 10.0)
            os.close(self.gate)
        processes.subreaper()
        self.patiently(lambda: os.makedirs(self.path(), exist_ok=True))
        self.patiently(lambda: open(self.path("heartbeat"), "ab").close())
        try:
            self.tasks()
            processes.end(self.id, os.getpid())
            self.post()
        finally:
            processes.end(self.id, os.getpid())
            self.reap()
        if self.interrupted():
            return 128 + self.signalled
        said = (self.root, self.folder, self.key, self.run, self.own)
        self.patiently(lambda: files.write_done(*said))
        return 0

    def claim(self) -> bool:
        """Take the job, from an earlier run of the same backend's job if that is gone."""
        held = files.claim_of(self.folder)
        if held is not None and not (
            held["native"] == self.native and held["run"] < self.run and self.native
        ):
            return False
        claim = dict(processes.identity(), native=self.native, run=self.run, at=time.time())
        if not files.take_claim(self.folder, claim, 0 if held is None else self.run):
            return False
        self.patiently(lambda: self.own.extend(packs.take(self.root, self.id, self.spec, claim)))
        return True

    def path(self, *parts: str) -> str:
        return os.path.join(self.folder, "run-{}".format(self.run), *parts)

    # -- running the tasks --------------------------------------------------------------------

    def tasks(self) -> None:
        """Start the child until every task has a record; a task that kills it is passed over."""
        while not self.interrupted():
            for index in self.own:
                if self.why or os.path.exists(self.control("cancel.{}".format(index))):
                    self.record(index, *self.stopped())
            left = [index for index in self.own if not self.has_record(index)]
            if not left:
                return
            began = self.attempt(left)
            left = [index for index in self.own if not self.has_record(index)]
            if left and not began and not self.why:
                for index in left:
                    said = self.tail("script.err")
                    self.record(index, *ends.never_began(self.status or 0, said))

    def has_record(self, index: int) -> bool:
        return self.read_record(index) is not None

    def read_record(self, index: int) -> "dict[str, Any] | None":
        return files.read_signed(files.record_path(self.folder, self.run, index), self.key)

    def attempt(self, left: "list[int]") -> bool:
        """One life of the child. Whether it came as far as a task."""
        self.forget_current()
        before = processes.oom_kills()
        try:
            self.start(left)
        except OSError as error:
            with open(self.path("script.err"), "a", encoding="utf-8") as file:
                file.write("The job script cannot be started: {}.\n".format(error))
            self.status = 84 << 8
            return False
        timed_out = dropped = -1
        leaving = 0.0
        while self.status is None:
            self.wait()
            if leaving or self.has_record(left[-1]):
                leaving = leaving or time.monotonic()
                if time.monotonic() - leaving > LINGER:
                    break
            current, started = self.current()
            limit = self.spec["timeout"]
            if self.cancelled():
                break
            if current >= 0 and limit is not None and time.time() - started > limit:
                timed_out = current
                break
            if current >= 0 and os.path.exists(self.control("cancel.{}".format(current))):
                dropped = current
                break
        # A scheduler signals one process of its job after the other, the child perhaps first.
        late = time.monotonic() + (0.0 if self.native == self.id or self.status is None else LATE)
        while not (self.cancelled() or all(map(self.has_record, left)) or time.monotonic() > late):
            self.wait()
        self.stop()
        current, _ = self.current()
        oom = processes.oom_kills() > before
        if current >= 0 and not self.has_record(current):
            if self.why or dropped == current:
                self.record(current, *self.stopped())
            elif timed_out == current:
                text = "The task ran longer than its timeout of {:g} s.".format(limit)
                self.record(current, "TIMEOUT", text)
            else:
                self.record(current, *ends.died(self.status or 0, oom))
        return current >= 0

    def start(self, left: "list[int]") -> None:
        spec = self.spec
        environment = dict(os.environ)
        environment.update(spec["variables"])
        environment[processes.MARK] = self.id
        script = files.blob_path(self.root, spec["script"])
        indices = ",".join(map(str, left))
        command = [*spec["shell"], script, "run"]
        command += [os.path.join(self.tools, "__main__.py"), "child", self.folder]
        self.begin([*command, str(self.run), indices], environment)

    def begin(self, command: "list[str]", environment: "dict[str, str]") -> None:
        """Start a command of the user's in a session of its own."""
        import subprocess  # questions do without it, and come often

        out, err = (open(self.path("script." + name), "ab") for name in ("out", "err"))
        home = self.home()
        os.umask(self.umask)
        try:
            with out, err:
                self.child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=environment,
                    cwd=home,
                    start_new_session=True,
                )
        finally:
            os.umask(0o077)
        self.status = self.usage = None

    def home(self) -> str:
        """The folder that the job script starts in."""
        folder = os.path.expanduser(self.spec["workdir"] or os.path.join(self.folder, "work"))
        os.makedirs(folder, exist_ok=True)
        return folder

    def wait(self) -> None:
        """Wait for the child, a signal, or the next look; keep the heartbeat; adopt the dead."""
        ready, _, _ = select.select([self.news[0]], [], [], LOOK)
        if ready:
            try:
                os.read(self.news[0], 4096)
            except BlockingIOError:
                pass
        self.reap()
        now = time.monotonic()
        if now - self.beat >= HEARTBEAT:
            self.beat = now
            files.touch(self.path("heartbeat"))

    def reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.child is not None and pid == self.child.pid:
                self.status = status
                self.usage = usage
                self.child.returncode = status  # so that subprocess does not wait for it, too

    def current(self) -> "tuple[int, float]":
        """Which task the child is in, and since when; -1 before the first."""
        document = files.read_json(self.path("current"))
        return (document["index"], document["at"]) if document else (-1, 0.0)

    def forget_current(self) -> None:
        try:
            os.unlink(self.path("current"))
        except FileNotFoundError:
            pass

    # -- stopping -----------------------------------------------------------------------------

    def on_signal(self, number: int, frame: Any) -> None:
        self.signalled = number

    def control(self, name: str) -> str:
        return os.path.join(self.folder, "control", name)

    def cancelled(self) -> bool:
        if os.path.exists(self.control("cancel")):
            self.why = "CANCELLED_BY_USER"
        elif self.signalled and not self.why:
            self.why = "CANCELLED_BY_BACKEND"
        return bool(self.why)

    def interrupted(self) -> bool:
        """Whether a scheduler ended its job: it alone knows why, and may start the job again."""
        return (
            self.why == "CANCELLED_BY_BACKEND"
            and self.native != self.id
            and self.signalled != signal.SIGUSR2
        )

    def stopped(self) -> "tuple[str, str]":
        if self.why == "CANCELLED_BY_BACKEND":
            name = signal.Signals(self.signalled).name
            return self.why, "The job was told to stop by {}, not by chelate.".format(name)
        return "CANCELLED_BY_USER", "The task was cancelled."

    def stop(self) -> None:
        """End the child with its tree: asked first, forced after the grace."""
        deadline = time.monotonic() + self.spec["grace"]
        if self.status is None:
            processes.send(processes.members(self.id, os.getpid()), signal.SIGTERM)
            if not os.path.isdir("/proc/self") and self.child is not None:
                os.killpg(self.child.pid, signal.SIGTERM)
            while self.status is None and time.monotonic() < deadline:
                self.wait()
                if os.path.exists(self.control("force")):
                    break
        if self.status is None and self.child is not None:
            try:
                os.killpg(self.child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        processes.end(self.id, os.getpid())
        while self.status is None:
            self.wait()

    # -- what is told -------------------------------------------------------------------------

    def tail(self, name: str) -> str:
        try:
            with open(self.path(name), "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def record(self, index: int, reason: str, error: str) -> None:
        """Write how a task ended that could not say so itself; the first record stays."""
        if self.has_record(index) or self.interrupted():
            return
        current, started = self.current()
        usage = None
        if self.usage is not None and index == current:
            usage = {
                "max_rss_kib": self.usage.ru_maxrss,
                "cpu_user": self.usage.ru_utime,
                "cpu_system": self.usage.ru_stime,
            }
        document = {
            "job": self.id,
            "task": self.spec["tasks"][index]["key"],
            "index": index,
            "run": self.run,
            "ok": False,
            "reason": reason,
            "error": error,
            "started_at": started if index == current else None,
            "ended_at": time.time(),
            "usage": usage,
        }
        path = files.record_path(self.folder, self.run, index)
        self.patiently(lambda: files.write_whole(path, files.signed(self.key, document)))

    def patiently(self, write: Any) -> None:
        """Write; on a full disk for as long as it takes."""
        delay = 1.0
        while True:
            try:
                write()
                return
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            time.sleep(delay)
            delay = min(delay * 2, 60.0)
            files.touch(self.path("heartbeat"))

    def post(self) -> None:
        """Run postrun, after success and failure."""
        spec = self.spec
        if not spec["postrun"]:
            return
        records = [self.read_record(index) for index in self.own]
        status = 0 if all(record and record["ok"] for record in records) else 1
        environment = dict(os.environ, CHELATE_EXIT_STATUS=str(status))
        environment.update(spec["variables"])
        environment[processes.MARK] = self.id
        command = [*spec["shell"], files.blob_path(self.root, spec["script"]), "post"]
        try:
            self.begin(command, environment)
        except OSError as error:
            self.note("postrun cannot be started: {}.".format(error))
            return
        deadline = time.monotonic() + POSTRUN
        while self.status is None and time.monotonic() < deadline:
            self.wait()
            if os.path.exists(self.control("force")):
                break
        if self.status != 0:
            self.note("postrun did not succeed (wait status {}).".format(self.status))

    def note(self, text: str) -> None:
        files.append_log(self.folder, text)
