"""Runs the tasks of one job, one after the other, through the worker's Runner."""

import base64
import errno
import json
import mmap
import os
import re
import signal
import sys
import time
from typing import Any

from . import files

__all__ = ["main"]


def main(tools: str, folder: str, run: int, indices: "list[int]") -> int:
    """Run these tasks; each leaves a record. Exit status 78: this Python cannot."""
    spec = files.fresh_spec(folder)
    if spec is None:
        raise files.Refusal("SPEC", "{} holds no spec of a job.".format(folder))
    here = "{}.{}".format(*sys.version_info[:2])
    if here != spec["python"]:
        sys.stderr.write(
            "The task was made with Python {0}, and {1} is Python {2}; functions travel by value "
            "and need the same minor version. Point the executor at a Python {0}.\n".format(
                spec["python"], sys.executable, here
            )
        )
        return 78
    while tools in sys.path:  # its modules are not for users
        sys.path.remove(tools)
    sys.argv = ["chelate-worker"]
    # What multiprocessing spawns runs the main program's file again, and ours is no user's.
    vars(sys.modules["__main__"]).pop("__file__", None)
    _Child(tools, folder, run, spec).tasks(indices)
    return 0


class _Child:
    def __init__(self, tools: str, folder: str, run: int, spec: "dict[str, Any]") -> None:
        self.folder = folder
        self.run = run
        self.spec = spec
        self.root = os.path.dirname(os.path.dirname(folder))
        self.place = os.path.join(folder, "run-{}".format(run))
        self.home = os.getcwd()
        _lend_cloudpickle(os.path.join(tools, "lib"))
        # Modules of users import chelate; what they get is what sent them.
        sys.path.insert(0, os.path.join(tools, "own"))
        self.worker = _load_worker(os.path.join(tools, "worker.py"))
        self.context = type(sys)("_chelate_task_context")
        self.in_task = False
        self.stopping = self.finished = False
        self.pid = os.getpid()

    def tasks(self, indices: "list[int]") -> None:
        worker = self.worker
        signal.signal(signal.SIGTERM, self.terminate)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        worker._settle()
        runner = worker.Runner(self.read, self.place)
        refused = None
        if self.spec["code"] is not None:
            runner.code = self.spec["code"]
            path = files.blob_path(self.root, runner.code)
            try:
                worker.use_code(runner.code, path, os.path.join(self.root, "code"))
            except (OSError, ValueError) as error:
                refused = worker._no_code(error)
        for index in indices:
            if self.stopping:  # the task before has swallowed it
                os._exit(143)
            if os.path.exists(os.path.join(self.folder, "control", "cancel.{}".format(index))):
                continue  # the supervisor records it
            self.one(runner, index, refused)
        self.finished = True

    def read(self, digest: str) -> Any:
        path = files.blob_path(self.root, digest)
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def one(self, runner: Any, index: int, refused: Any) -> None:
        task = self.spec["tasks"][index]
        for number, name in ((1, "stdout"), (2, "stderr")):
            path = os.path.join(self.place, "{}.{}".format(name, index))
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, number)
            os.close(descriptor)
            stream = open(
                number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
            )
            setattr(sys, name, stream)
            setattr(sys, "__{}__".format(name), stream)
        started = time.time()
        mark = json.dumps({"index": index, "at": started}).encode()
        files.write_whole(os.path.join(self.place, "current"), mark, durable=False)
        os.environ["CHELATE_TASK_KEY"] = task["key"]
        self.context.current = task["context"]  # type: ignore[attr-defined]
        sys.modules["_chelate_task_context"] = self.context
        before = _usage()
        try:
            self.in_task = True
            if self.stopping:
                os._exit(143)
            result = refused or runner.run(task["call"])
            self.in_task = False
        except self.worker.Terminated:
            os._exit(143)
        if os.getpid() != self.pid:
            os._exit(0)  # the task forked, and the child came back here
        for name in ("stdout", "stderr"):
            try:
                getattr(sys, name).flush()
            except Exception:  # noqa: BLE001 - the task closed it, or put no stream there
                pass
        os.makedirs(self.home, exist_ok=True)  # the task may have removed it
        os.chdir(self.home)
        if signal.getsignal(signal.SIGTERM) != self.terminate:
            signal.signal(signal.SIGTERM, self.terminate)
        self.keep(index, task["key"], started, result, before)

    def keep(self, index: int, key: str, started: float, result: Any, before: Any) -> None:
        """Put the value among the host's values, then write the record that names it."""
        header, payload, exception = result
        document = {
            "job": self.spec["id"],
            "task": key,
            "index": index,
            "run": self.run,
            "ok": header["ok"],
            "started_at": started,
            "ended_at": time.time(),
            "usage": _used(before),
        }
        if header["ok"]:
            target = files.blob_path(self.root, header["digest"])
            try:
                os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
                if "path" in header:
                    size = os.path.getsize(header["path"])
                    _settle_file(header["path"], target)
                else:
                    size = len(payload)
                    files.write_whole(target, payload)
            except OSError as error:
                document["ok"] = False
                quota = error.errno in (errno.EDQUOT, errno.EFBIG)
                document["reason"] = "QUOTA" if quota else "DISK_FULL"
                document["error"] = "The result could not be written on the host: {}.".format(error)
            else:
                document["digest"] = header["digest"]
                document["size"] = size
                document["fingerprint"] = header.get("fingerprint")
                document["graph"] = bool(header.get("graph"))
        else:
            if header["reason"] == "TERMINATED":
                os._exit(143)  # who told it to stop knows why
            document["reason"] = header["reason"]
            document["error"] = header["error"]
            document["exception"] = base64.b64encode(exception).decode() if exception else None
        record = files.signed(files.key_of(self.root, self.spec["id"]), document)
        files.write_whole(files.record_path(self.folder, self.run, index), record)

    def terminate(self, number: int, frame: Any) -> None:
        self.stopping = True
        if self.finished:
            os._exit(0)  # nothing is left but threads of the user's that do not end
        if self.in_task:
            self.in_task = False
            raise self.worker.Terminated("The task was told to stop.")


def _settle_file(path: str, target: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(path, target)


def _load_worker(path: str) -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("_chelate_worker", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["_chelate_worker"] = module
    spec.loader.exec_module(module)
    return module


def _lend_cloudpickle(folder: str) -> None:
    """Ours, unless an installed one is as new; it comes last, or first to win over an old one."""
    from importlib.util import find_spec

    try:
        found = find_spec("cloudpickle")
    except (ImportError, ValueError):
        found = None
    if found is None:
        sys.path.append(folder)
        return
    with open(os.path.join(folder, "cloudpickle", "__init__.py"), encoding="utf-8") as file:
        ours = _version(file.read())
    assert found.origin is not None
    with open(found.origin, encoding="utf-8") as file:
        theirs = _version(file.read())
    sys.path.insert(0 if theirs < ours else len(sys.path), folder)


def _version(text: str) -> "tuple[int, ...]":
    found = re.search(r"^__version__ *= *['\"]([0-9.]+)", text, re.MULTILINE)
    return tuple(int(part) for part in found.group(1).split(".") if part) if found else ()


def _usage() -> "list[Any]":
    import resource

    return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]


def _used(before: "list[Any]") -> "dict[str, Any]":
    after = _usage()
    unit = 1024 if sys.platform == "darwin" else 1  # bytes there, KiB on Linux
    pairs = list(zip(before, after))
    return {
        "max_rss_kib": max(item.ru_maxrss for item in after) // unit,
        "cpu_user": sum(new.ru_utime - old.ru_utime for old, new in pairs),
        "cpu_system": sum(new.ru_stime - old.ru_stime for old, new in pairs),
    }
