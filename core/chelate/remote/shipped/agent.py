"""Answers questions about jobs on this host; started for each question, keeps nothing running.

It reads a request from standard input: its length in decimal and a line end, then JSON, then for
``put`` the bytes of values. It answers in frames behind a mark: a little-endian ``uint32`` with
the length of a JSON header, the header, and what the header says follows; the last frame has
``"end"``. Names that become paths are checked in ``files.py``.
"""

import errno
import hashlib
import json
import os
import signal
import struct
import sys
import time
from typing import Any

from . import cleaning, fetching, files, launching, packs, processes, supervisor

__all__ = ["main"]

MARK = b"\x1e\x1echelate 1\x1e\n"  # as in wire.py
CHUNK = 256 * 1024
CLAIMED = 5.0  # seconds to wait for a claim
CHECK = """\
import json, sys
try:
    from importlib.util import find_spec
    found = find_spec("cloudpickle") is not None
except ImportError:
    found = False
text = json.dumps({"python": "%d.%d.%d" % sys.version_info[:3], "executable": sys.executable,
                   "cloudpickle": found})
sys.stdout.write("\\x1e" + text + "\\n")
"""  # for any Python
KINDS = {errno.ENOSPC: "DISK_FULL", errno.EDQUOT: "QUOTA", errno.EFBIG: "QUOTA"}
TOOLS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main(arguments: "list[str]") -> int:
    """``VERB``; or ``supervise FOLDER [NATIVE [RUN]]`` and ``child FOLDER RUN INDICES``."""
    supervisor.Supervisor.umask = os.umask(0o077)
    verb = arguments[0]
    if verb == "supervise":
        folder = os.path.realpath(arguments[1])
        native = arguments[2] if len(arguments) > 2 else os.path.basename(folder)
        run = arguments[3] if len(arguments) > 3 else "0"
        job = supervisor.Supervisor(TOOLS, folder, native, int(run or 0))
        return launching.guarded(job)
    if verb == "child":
        from . import child  # its modules would make every question slower

        indices = [int(part) for part in arguments[3].split(",")]
        return child.main(TOOLS, arguments[1], int(arguments[2]), indices)
    source = sys.stdin.buffer
    out = sys.stdout.buffer
    request = json.loads(source.read(int(source.readline())).decode())
    out.write(MARK)
    try:
        if verb == "probe":
            answer = _probe(request)
        else:
            root = os.path.dirname(os.path.dirname(TOOLS))
            files.ensure_root(root)
            if verb in ("fetch", "value"):
                bring = fetching.fetch if verb == "fetch" else fetching.value
                bring(root, request, lambda head, body: _send(out, head, body))
                answer = {}
            elif verb == "put":
                answer = _put(root, request, source)
            else:
                answer = VERBS[verb](root, request)
    except files.Refusal as error:
        answer = {"error": error.kind, "message": str(error)}
    except OSError as error:
        kind = KINDS.get(error.errno or 0, "SYSTEM")
        text = {
            "DISK_FULL": "the disk is full ({}); make room there, or name another root=.",
            "QUOTA": "the quota is used up ({}); make room there, or name another root=.",
        }.get(kind, "{}.")
        answer = {"error": kind, "message": text.format(error)}
    _send(out, dict(answer, end=True), ())
    return 0


def _send(out: Any, head: "dict[str, Any]", body: Any) -> None:
    data = json.dumps(head).encode()
    out.write(struct.pack("<I", len(data)) + data)
    for piece in body:
        out.write(piece)
    out.flush()


def _probe(request: "dict[str, Any]") -> "dict[str, Any]":
    """What there is here, and which Python tasks would get."""
    import platform

    root = files.ensure_root(request["root"])
    script = request["script"].encode()
    digest = hashlib.blake2b(script, digest_size=32).hexdigest()
    path = files.blob_path(root, digest)
    if not files.touch(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        files.write_whole(path, script)
    space = os.statvfs(root)
    tools = os.path.join(root, "tools", os.path.basename(TOOLS))
    return {
        "root": root,
        "agent": [sys.executable, "-ES", os.path.join(tools, "__main__.py")],
        "secret": files.secret_of(root).hex(),
        "hostname": os.uname()[1],
        "boot": processes.boot_id(),
        "platform": "{}-{}".format(sys.platform, platform.machine()),
        "libc": " ".join(platform.libc_ver()),
        "cpus": _processors(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "free": space.f_bavail * space.f_frsize,
        "inodes": space.f_favail,
        "clock": time.time(),
        "lingers": _lingers(),
        "env": _environment([*request["shell"], path]),
    }


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _lingers() -> "bool | None":
    """False where the host ends all of a user's processes at the last logout (systemd-logind)."""
    try:
        with open("/etc/systemd/logind.conf") as file:
            lines = [line.strip().replace(" ", "").lower() for line in file]
    except OSError:
        return None
    return "killuserprocesses=yes" not in lines and "killuserprocesses=true" not in lines


def _environment(script: "list[str]") -> "dict[str, Any]":
    import subprocess

    try:
        done = subprocess.Popen(
            [*script, "check", "-c", CHECK],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return {"status": 82, "stderr": "{} cannot be started: {}.".format(script[0], error)}
    try:
        out, err = done.communicate(timeout=45)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, signal.SIGKILL)
        done.communicate()
        return {"status": -1, "stderr": "The environment was not ready within 45 s."}
    status = done.returncode
    answer = {"status": status, "stderr": err.decode("utf-8", "replace")[-4000:]}
    _, mark, text = out.decode("utf-8", "replace").rpartition("\x1e")
    if status == 0 and mark:
        try:
            answer.update(json.loads(text.splitlines()[0]))
        except (IndexError, TypeError, ValueError):
            pass  # some other program's output
    return answer


# -- bringing and starting --------------------------------------------------------------------


def _missing(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """Which values are not here; those that are count as used now."""
    lacking = [d for d in request["digests"] if not files.touch(files.blob_path(root, d))]
    return {"missing": lacking}


def _put(root: str, request: "dict[str, Any]", source: Any) -> "dict[str, Any]":
    """Take values and specs; start the jobs if asked to."""
    for digest, size in request["blobs"]:
        _take(files.blob_path(root, digest), digest, size, source)
    lacking = set()
    for spec in request["jobs"]:
        for digest in _needs(spec):
            if digest not in lacking and not files.touch(files.blob_path(root, digest)):
                lacking.add(digest)
    if lacking:
        return {"lacking": sorted(lacking)}
    for spec in request["jobs"]:
        folder = files.job_folder(root, spec["id"])
        os.makedirs(os.path.join(folder, "control"), exist_ok=True)
        path = os.path.join(folder, "spec.json")
        if not os.path.exists(path) and files.claim_of(folder) is None:
            note = files.marker(root, spec["store"], spec["id"])
            os.makedirs(os.path.dirname(note), exist_ok=True)
            open(note, "ab").close()
            # After a power cut nothing of the job runs, and it counts as never started.
            files.write_whole(path, json.dumps(spec).encode(), durable=False)
    if request["start"]:
        return _start(root, {"jobs": [spec["id"] for spec in request["jobs"]]})
    return {}


def _needs(spec: "dict[str, Any]") -> "list[str]":
    digests = [spec["script"]]
    if spec["code"] is not None:
        digests.append(spec["code"])
    for task in spec["tasks"]:
        digests += task["inputs"]
    return digests


def _take(path: str, digest: str, size: int, source: Any) -> None:
    """One value from the stream; it appears under its name only when it is right."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    state = hashlib.blake2b(digest_size=32)
    part = "{}.{}.part".format(path, os.getpid())
    try:
        with open(part, "wb") as file:
            while size:
                piece = source.read(min(CHUNK, size))
                if not piece:
                    raise OSError(errno.EPIPE, "the values were cut off on the way")
                size -= len(piece)
                state.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if state.hexdigest() != digest:
            raise OSError(errno.EIO, "a value was damaged on the way")
        os.rename(part, path)
    except OSError:
        os.unlink(part)
        raise


def _start(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """Start supervisors, and wait until each has claimed its job."""
    waiting = {}
    gate, _ = os.pipe()  # closed when the answer has been sent and this process ends
    for name in request["jobs"]:
        folder = files.job_folder(root, name)
        if files.claim_of(folder) is None and files.fresh_spec(folder) is not None:
            sys.stdout.flush()
            launching.detach(TOOLS, folder, gate)
            waiting[name] = folder
    deadline = time.monotonic() + CLAIMED
    while waiting and time.monotonic() < deadline:
        waiting = {name: path for name, path in waiting.items() if files.claim_of(path) is None}
        if waiting:
            time.sleep(0.005)
    return {"jobs": [cleaning.sight(root, name) for name in request["jobs"]]}


# -- looking and stopping ---------------------------------------------------------------------


def _look(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """All that is known of jobs. What a dead supervisor left is ended first."""
    grace = request.get("launch_grace")
    found = []
    for name in request["jobs"]:
        item = cleaning.sight(root, name)
        if item["alive"] is False and not item["done"] and not item["forbidden"]:
            processes.end(item["job"])
            cleaning.conclude(root, item["job"], item)
            item = cleaning.sight(root, name)
        waits = item["known"] and not item["claimed"] and not item["forbidden"]
        if waits and grace is not None and item["age"] > grace:
            item = cleaning.forbid(root, name)
        found.append(item)
    return {"jobs": found}


def _stop(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """Ask supervisors to end their jobs; with force, end everything now."""
    found = []
    for name in request["jobs"]:
        item = cleaning.sight(root, name)
        if item["done"] or not item["known"]:
            found.append(item)
            continue
        job, index = packs.carrier(root, name)
        folder = files.job_folder(root, job)
        control = os.path.join(folder, "control")
        os.makedirs(control, exist_ok=True)
        open(os.path.join(control, "cancel" if index is None else _only(index)), "ab").close()
        if index is not None:  # the others of its pack go on
            found.append(cleaning.sight(root, name))
            continue
        if not item["claimed"]:
            item = cleaning.forbid(root, name)
        if item["claimed"] and item["alive"]:
            if request["force"]:
                open(os.path.join(control, "force"), "ab").close()
                _force(folder, name, item)
            else:
                processes.send({item["pid"]}, signal.SIGTERM)
        found.append(cleaning.sight(root, name))
    return {"jobs": found}


def _only(index: int) -> str:
    return "cancel.{}".format(index)


def _force(folder: str, name: str, item: "dict[str, Any]") -> None:
    """Kill all but the supervisor, which then tells the end; kill it too if it does not."""
    deadline = time.monotonic() + 3.0
    processes.send({item["pid"]}, signal.SIGCONT)
    processes.send({item["pid"]}, signal.SIGTERM)
    while processes.is_alive(item) and time.monotonic() < deadline:
        processes.send(processes.members(name, item["pid"]), signal.SIGKILL)
        time.sleep(0.02)
    if processes.is_alive(item) and not files.is_over(folder):
        processes.send({item["pid"]}, signal.SIGKILL)
    processes.end(name)


def _stop_tasks(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """Ask the supervisor of a pack to end or pass over some tasks."""
    folder = files.job_folder(root, request["job"])
    spec = files.fresh_spec(folder)
    if spec is None:
        return {}
    wanted = set(request["tasks"])
    for index, task in enumerate(spec["tasks"]):
        if task["key"] in wanted:
            open(os.path.join(folder, "control", _only(index)), "ab").close()
    return {}


def _forbid(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """Take claims, of jobs that are not here as well."""
    return {"jobs": [cleaning.forbid(root, name) for name in request["jobs"]]}


def _listing(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """Jobs of a store that are claimed and not over."""
    folder = os.path.dirname(files.marker(root, request["store"], "0" * 40))
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        names = []
    found = [cleaning.sight(root, name) for name in names]
    return {
        "jobs": [
            item
            for item in found
            if item["claimed"] and not item["done"] and item["alive"] is not False
        ]
    }


VERBS = {
    "missing": _missing,
    "start": _start,
    "look": _look,
    "stop": _stop,
    "stop_tasks": _stop_tasks,
    "forbid": _forbid,
    "list": _listing,
    "logs": fetching.logs,
    "let_go": fetching.let_go,
    "release": cleaning.release,
    "sweep": cleaning.sweep,
}
