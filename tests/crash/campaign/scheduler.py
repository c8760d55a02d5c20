"""A small scheduler that speaks as much of Slurm as the plugin asks for, and fails by its seed.

``python scheduler.py install SPOOL`` writes the programs into ``SPOOL/bin``; ``serve SPOOL`` is the
controller; anything else is one of the programs. The controller keeps each submission, and the
state of each job, in a file of its own, so that kill -9 loses nothing that was acknowledged; jobs
run beside it and outlive it. Only the standard library is used, since a program starts for every
question.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["Controller", "install"]

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "sacct")
MARK = "FAKE_SLURM_STEP"
OVER = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")
# As slurmstepd: not ended by the signals of a cancel, and the only one that knows the status.
STEP = """\
trap : TERM
/bin/bash "$1" >>"$2" 2>&1 </dev/null
echo $? >"$3.part" && mv "$3.part" "$3"
"""


def install(spool: Path, **config: Any) -> Path:
    """Write the programs; ``config`` may hold seed, slots, and chances of faults by name."""
    for name in ("bin", "submissions", "states", "ends", "scripts"):
        (spool / name).mkdir(parents=True, exist_ok=True)
    write_whole(spool / "config.json", config)
    for name in PROGRAMS:
        program = spool / "bin" / name
        command = f'exec {sys.executable} -ISE {Path(__file__).resolve()} {name} "{spool}" "$@"\n'
        program.write_text(f"#!/bin/sh\n{command}")
        program.chmod(0o755)
    return spool / "bin"


def write_whole(path: Path, document: Any) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(document))
    part.replace(path)


# -- the programs ---------------------------------------------------------------------------------

FAILED = {
    "sbatch": "sbatch: error: Batch job submission failed: {}",
    "squeue": "slurm_load_jobs error: {}",
    "scancel": "scancel: error: Kill job error on job id 0: {}",
    "scontrol": "slurm_load_ctl_conf error: {}",
    "sacct": "sacct: error: {}",
}
REFUSED = "Unable to contact slurm controller (connect failure)"
SILENT = "Zero Bytes were transmitted or received"
TIMED_OUT = "Socket timed out on send/recv operation"


def program(name: str, spool: str, arguments: list[str]) -> int:
    """Put one question to the controller, and say what it said."""
    request = {
        "program": name,
        "arguments": arguments,
        "script": sys.stdin.read() if name == "sbatch" else "",
        "environment": dict(os.environ),
    }
    os.chdir(spool)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(30)
        try:
            line.connect("socket")
        except OSError:
            sys.stderr.write(FAILED[name].format(REFUSED) + "\n")
            return 1
        try:
            line.sendall(json.dumps(request).encode())
            line.shutdown(socket.SHUT_WR)
            data = b""
            while piece := line.recv(1 << 16):
                data += piece
            answer = json.loads(data)
        except (OSError, ValueError):
            sys.stderr.write(FAILED[name].format(SILENT) + "\n")
            return 1
    sys.stdout.write(answer["out"])
    sys.stderr.write(answer["error"])
    return int(answer["status"])


# -- the controller -------------------------------------------------------------------------------


def steps() -> dict[str, set[int]]:
    """Living processes of every job on this machine, by the mark that they inherit."""
    found: dict[str, set[int]] = {}
    mark = f"{MARK}=".encode()
    for name in os.listdir("/proc"):  # noqa: PTH208 - many times a second
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123
                data = file.read()
            if mark not in data:
                continue
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                if file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X"):
                    continue
        except OSError:
            continue
        for item in data.split(b"\0"):
            if item.startswith(mark):
                found.setdefault(item[len(mark) :].decode(), set()).add(int(name))
    return found


def send(pids: set[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


class Controller:
    """One life of the controller over its spool."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.config: dict[str, Any] = json.loads((spool / "config.json").read_text())
        lives = len(list(spool.glob("life.*")))
        (spool / f"life.{lives}").touch()
        self.rng = random.Random(f"{self.config['seed']}:{lives}")
        self.submissions: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.late: list[tuple[float, dict[str, Any]]] = []
        self.looked = 0.0
        for path in (spool / "submissions").glob("*[0-9]"):
            self.admit(path.name, json.loads(path.read_text()))
        self.last = max(map(int, self.submissions), default=100)

    def chance(self, name: str) -> bool:
        """Whether this fault happens now; none does once the spool is calm."""
        drawn = self.rng.random()
        return drawn < self.config.get(name, 0.0) and not (self.spool / "calm").exists()

    def admit(self, base: str, submission: dict[str, Any]) -> None:
        """Take up a submission, with what has become of its jobs."""
        self.submissions[base] = submission
        for index in range(submission["count"]):
            name = f"{base}_{index}" if submission["array"] else base
            path = self.spool / "states" / name
            self.jobs[name] = {
                "base": base,
                "index": index,
                "state": "PENDING",
                "restarts": 0,
                "pid": 0,
                **(json.loads(path.read_text()) if path.exists() else {}),
            }

    def change(self, name: str, **news: Any) -> None:
        self.jobs[name].update(news)
        write_whole(self.spool / "states" / name, self.jobs[name])

    def serve(self) -> None:
        os.chdir(self.spool)
        Path("socket").unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as door:
            door.bind("socket")
            door.listen(64)
            while True:
                ready, _, _ = select.select([door], [], [], 0.05)
                if ready:
                    line, _ = door.accept()
                    with line:
                        self.converse(line)
                self.tick()

    def converse(self, line: socket.socket) -> None:
        line.settimeout(2)
        try:
            data = b""
            while piece := line.recv(1 << 16):
                data += piece
            request = json.loads(data)
            answer = self.answer(request)
            line.sendall(json.dumps(answer).encode())
        except (OSError, ValueError):
            return  # the program was killed meanwhile

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name, arguments = request["program"], request["arguments"]
        lost = {"status": 1, "out": "", "error": FAILED[name].format(TIMED_OUT) + "\n"}
        if self.chance(f"{name}_lost"):
            return lost
        if name == "sbatch":
            if self.chance("sbatch_late"):
                self.late.append((time.time() + self.rng.uniform(0.1, 1.5), request))
                return lost
            answer = {"status": 0, "out": f"{self.submit(request)}\n", "error": ""}
        else:
            status, out = getattr(self, name)(arguments)
            good = status == 0
            answer = {"status": status, "out": out if good else "", "error": "" if good else out}
        return lost if self.chance(f"{name}_answer_lost") else answer

    def submit(self, request: dict[str, Any]) -> str:
        options: dict[str, str] = {}
        for argument in request["arguments"]:
            option, _, value = argument.removeprefix("--").partition("=")
            options[option] = value
        self.last += 1
        base = str(self.last)
        (self.spool / "scripts" / base).write_text(request["script"])
        last = options.get("array", "0").partition("%")[0].rpartition("-")[2]
        now = time.time()
        submission = {
            "name": options["job-name"],
            "output": options["output"],
            "folder": options["chdir"],
            "requeue": "requeue" in options,
            "array": "array" in options,
            "count": int(last) + 1,
            "environment": request["environment"],
            "begin": now + (self.rng.uniform(0.0, 2.0) if self.chance("delay") else 0.0),
            "visible": now + (self.rng.uniform(0.0, 1.2) if self.chance("lag") else 0.0),
            "keep": self.rng.uniform(3.0, 30.0),
        }
        write_whole(self.spool / "submissions" / base, submission)
        self.admit(base, submission)
        return base

    def squeue(self, arguments: list[str]) -> tuple[int, str]:
        wanted = None
        for argument in arguments:
            if argument.startswith("--jobs="):
                wanted = argument.removeprefix("--jobs=").split(",")
        if wanted is not None and len(wanted) == 1 and wanted[0] not in self.submissions:
            return 1, "slurm_load_jobs error: Invalid job id specified\n"
        now = time.time()
        lines = []
        for name, job in self.jobs.items():
            submission = self.submissions[job["base"]]
            over = job["state"] in OVER and now > job["ended"] + submission["keep"]
            if over or now < submission["visible"] or (wanted and job["base"] not in wanted):
                continue
            dying = job.get("ending") and job["state"] == "RUNNING"
            state = "COMPLETING" if dying else job["state"]
            node = "node1" if job["pid"] else ""
            reason = "None" if job["state"] != "PENDING" else "Resources"
            lines.append(f"{name}|{job['base']}|{state}|{node}|{reason}|{submission['name']}\n")
        return 0, "".join(lines)

    def scancel(self, arguments: list[str]) -> tuple[int, str]:
        gentle = "--signal=TERM" in arguments
        names = [name for name in arguments if not name.startswith("-")]
        processes = steps()
        for name in names:
            job = self.jobs.get(name)
            if job is None or job["state"] in OVER:
                text = "scancel: error: Kill job error on job id {}: Invalid job id specified\n"
                return 1, text.format(name)
            if job["state"] == "PENDING":
                if not gentle:
                    self.change(name, state="CANCELLED", ended=time.time())
                continue
            pids = processes.get(self.mark(name), set())
            send(pids, signal.SIGCONT)
            send(pids, signal.SIGTERM)
            if not gentle:
                self.change(name, ending="CANCELLED", kill_at=time.time() + 1.0)
        return 0, ""

    def scontrol(self, arguments: list[str]) -> tuple[int, str]:
        if "config" in arguments:
            return 0, "AccountingStorageType   = accounting_storage/none\nMaxArraySize = 8\n"
        path = self.spool / "scripts" / arguments[-2]
        if path.exists():
            return 0, path.read_text()
        return 1, "job script retrieval failed: Invalid job id specified\n"

    def sacct(self, arguments: list[str]) -> tuple[int, str]:
        return 1, "Slurm accounting storage is disabled\n"

    # -- jobs -------------------------------------------------------------------------------------

    def mark(self, name: str) -> str:
        return f"{self.spool}:{name}:{self.jobs[name]['restarts']}"

    def end_file(self, name: str) -> Path:
        return self.spool / "ends" / f"{name}.{self.jobs[name]['restarts']}"

    def tick(self) -> None:
        now = time.time()
        for due, request in list(self.late):
            if due <= now:
                self.late.remove((due, request))
                self.submit(request)
        running = [name for name, job in self.jobs.items() if job["state"] == "RUNNING"]
        if running and (
            now - self.looked > 0.2 or any(self.end_file(name).exists() for name in running)
        ):
            self.looked = now
            processes = steps()
            for name in running:
                self.watch(name, processes.get(self.mark(name), set()), now)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            pass
        free = self.config["slots"] - sum(job["state"] == "RUNNING" for job in self.jobs.values())
        for name, job in self.jobs.items():
            if free <= 0:
                break
            if job["state"] == "PENDING" and self.submissions[job["base"]]["begin"] <= now:
                self.start(name, now)
                free -= 1

    def watch(self, name: str, pids: set[int], now: float) -> None:
        job = self.jobs[name]
        ended = self.end_file(name).exists()
        if ended or now > job.get("kill_at", now + 1):
            send(pids, signal.SIGKILL)  # what a job leaves behind on its node goes with it
        if job.get("fail_at") and now > job["fail_at"] and not ended and not job.get("ending"):
            send(pids, signal.SIGKILL)
            self.change(name, ending="REQUEUE", kill_at=now)
        if pids or now - job["began"] < 0.5:
            return
        if job.get("ending") == "CANCELLED":
            self.change(name, state="CANCELLED", ended=now)
        elif job.get("ending") == "REQUEUE" and not ended:
            self.change(
                name, state="PENDING", ending="", restarts=job["restarts"] + 1, kill_at=now + 1e9
            )
        elif ended:
            good = self.end_file(name).read_text().strip() == "0"
            self.change(name, state="COMPLETED" if good else "FAILED", ended=now)
        else:
            self.change(name, state="NODE_FAIL", ended=now)

    def start(self, name: str, now: float) -> None:
        job = self.jobs[name]
        submission = self.submissions[job["base"]]
        fails = submission["requeue"] and self.chance("requeue")
        fail_at = now + self.rng.uniform(0.2, 3.0) if fails else 0.0
        # Before the start: a job of which nobody knows whether it started must not start again.
        self.change(name, state="RUNNING", began=now, fail_at=fail_at)
        environment = {
            **submission["environment"],
            MARK: self.mark(name),
            "SLURM_JOB_ID": job["base"],
            "SLURM_RESTART_COUNT": str(job["restarts"]),
        }
        if submission["array"]:
            environment["SLURM_ARRAY_JOB_ID"] = job["base"]
            environment["SLURM_ARRAY_TASK_ID"] = str(job["index"])
        output = submission["output"].replace("%a", str(job["index"]))
        script = str(self.spool / "scripts" / job["base"])
        process = subprocess.Popen(
            ["/bin/sh", "-c", STEP, "step", script, output, str(self.end_file(name))],
            cwd=submission["folder"],
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        process.returncode = 0  # waited for with all the others
        self.change(name, pid=process.pid)


if __name__ == "__main__":
    verb, place, *rest = sys.argv[1:]
    if verb == "serve":
        Controller(Path(place)).serve()
    else:
        sys.exit(program(verb, place, rest))
