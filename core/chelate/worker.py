"""The worker: one file that runs tasks, needing the standard library and cloudpickle only.

It imports nothing of chelate, so it can be copied alone to any host. :class:`Runner` turns one
call into a result; started as a script, :class:`Server` reads batches of calls from one pipe and
writes each result to another.

Frames to the worker: two little-endian ``uint32`` (length of a JSON header, length of the raw
bytes behind it). The first header is
``{"path", "replace", "spool", "code": null or [digest, file of the stored modules]}``; the others
``{"python", "forget": [digest], "blobs": [[digest, size, keep]], "files": {digest: path},
"common": [[call, context, dispatch_id, name]], "tasks": [[sequence, key, index into common, args,
kwargs, values, node_id, attempt, folder]]}``. Frames from the worker: the
``RESULT`` struct, then meta (JSON), fingerprint, payload, exception, stdout and stderr.
"""

# Plain syntax and plain paths: this file also starts on hosts with an old Python, to say so there.
# What users' code raises is not the worker's to choose, so it catches everything.
# ruff: noqa: BLE001, PTH100, PTH103, PTH104, PTH108, PTH110, PTH112, PTH116, PTH118, PTH120
# ruff: noqa: PTH123, PTH208, PTH211, SIM115
from __future__ import annotations

import sys

# A script's own folder comes first on the path, where neighbours would shadow users' modules.
if __name__ == "__main__" and sys.path[:1] == [__file__.rpartition("/")[0]]:
    del sys.path[0]

import errno
import functools
import hashlib
import json
import mmap
import os
import pickle
import signal
import struct
import threading
import time
import traceback
import types
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

    Header = dict[str, Any]
    Result = tuple[Header, bytes, bytes]

__all__ = [
    "FILE", "FRAME", "GENERIC", "GRAPH", "MARK", "NEWS", "OK", "PYTHON_MARK", "RESULT", "Runner",
    "Server", "Terminated", "main", "other_python", "read_slice", "reduce_wrapper", "use_code",
]  # fmt: skip

FRAME = struct.Struct("<II")
# body length, sequence, flags, started, ended, digest, and the lengths of the six parts
RESULT = struct.Struct("<IQBdd64sIIIIII")
OK, GRAPH, FILE, NEWS = 1, 2, 4, 8  # flags; NEWS carries meta about the worker, not a result
# What runs now, for whoever finds the worker dead: sequence, started, log offsets, key.
MARK = struct.Struct("<QdQQ224s")
LARGE = 64 * 1024
KEPT_HEAD, KEPT_TAIL = 64 * 1024, 1024 * 1024
FIRST = 1  # logs begin with an empty line, so that no fresh file is at the same position
LOG_LIMIT = 8 * 1024 * 1024
TERM = int(signal.SIGTERM)
handler_of = getattr(sys.modules.get("_signal"), "getsignal", signal.getsignal)  # without enums
SMALL = frozenset((int, float, bool, type(None)))
ERROR_LIMIT = 256 * 1024
FUNCTIONS = 256


HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
_MISMATCH = (
    "%s was stored by Python %s, and this worker runs Python %s, which cannot load it. Point the "
    "executor at a Python %s, or dispatch the workflow again from its source with reuse_from=."
)


class Terminated(BaseException):
    """The worker was told to stop; raised in the task so that its clean-up code runs."""


class _Failure(Exception):
    """A task cannot be run for a reason that is not its own code's."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Sink:
    """Takes a pickle as it is made: hashes it, and moves to a file once it is large."""

    def __init__(self, spool: str | None) -> None:
        self.hash = hashlib.blake2b(digest_size=32)
        self.parts: list[bytes] = []
        self.size = 0
        self.spool = spool
        self.path: str | None = None
        self.file: BinaryIO | None = None

    def write(self, data: Any) -> int:
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        self.hash.update(data)
        self.size += size
        try:
            if self.file is not None:
                self.file.write(data)
            else:
                self.parts.append(bytes(data))
                if self.size >= LARGE and self.spool is not None:
                    name = f"{os.getpid()}-{time.monotonic_ns()}.part"
                    self.path = os.path.join(self.spool, name)
                    self.file = open(self.path, "wb")
                    self.file.write(b"".join(self.parts))
                    self.parts = []
        except OSError as error:
            raise self._no_room(error) from error
        return size

    def _no_room(self, error: OSError) -> _Failure:
        reason = "QUOTA" if error.errno in (errno.EDQUOT, errno.EFBIG) else "DISK_FULL"
        return _Failure(reason, f"The result could not be written to {self.spool}: {error}.")

    def close(self) -> bytes:
        try:
            if self.file is not None:
                self.file.close()
        except OSError as error:
            raise self._no_room(error) from error
        return b"".join(self.parts)

    def discard(self) -> None:
        if self.file is not None and self.path is not None:
            self.file.close()
            os.unlink(self.path)


class Runner:
    """Runs calls. ``read`` gives the bytes of a blob by digest; results of 64 KiB or more go to a
    file in ``spool`` when one is given.
    """

    def __init__(self, read: Callable[[str], Any], spool: str | None = None) -> None:
        self.read = read
        self.spool = spool
        self.code: str | None = None  # digest of the stored modules that this process runs
        self._functions: OrderedDict[str, Any] = OrderedDict()
        self._values_module: Any = None
        self._wants_parts = False
        self._looked = False

    def run(self, call: dict[str, Any]) -> Result:
        """Header, payload and pickled exception of one call; never raises for the task's faults.

        The header has ``ok``; then ``digest``, ``fingerprint``, ``graph`` and, when the payload
        is in a file, ``path``; or ``reason`` and ``error``.
        """
        name = call.get("name") or "task"
        stage = "prepare"
        try:
            kind = call["kind"]
            resolver = _Resolver(self.read, call.get("values") or {})
            self._wants_parts = bool(call.get("parts"))
            args = [resolver.resolve(reference) for reference in call["args"]]
            kwargs = {key: resolver.resolve(ref) for key, ref in call["kwargs"].items()}
            if kind == "sublattice" or kind == "build":
                stage = "build"
                return self._build(call, args, kwargs, name)
            if kind == "return":
                value = args[0]
            else:
                function = self._function(call["function"])
                stage = "call"
                value = function(*args, **kwargs)
            stage = "result"
            return self._success(value, name)
        except _Failure as error:
            return {"ok": False, "reason": error.reason, "error": str(error)}, b"", b""
        except Terminated as error:
            return {"ok": False, "reason": "TERMINATED", "error": _text(error)}, b"", b""
        except BaseException as error:  # SystemExit and the like end the task, not the worker
            return _user_failure(error, stage, name, call.get("python"))

    def _function(self, digest: str) -> Any:
        if digest not in self._functions:  # no try, which would show in tracebacks of loading
            self._functions[digest] = _load(self.read(digest))
            if len(self._functions) > FUNCTIONS:
                self._functions.popitem(last=False)
        self._functions.move_to_end(digest)
        return self._functions[digest]

    def _build(self, call: dict[str, Any], args: Any, kwargs: Any, name: str) -> Result:
        try:
            from chelate.client.build import build_in_worker
        except ImportError as error:
            raise _Failure(
                "ENV_MISSING",
                f"Building the workflow {name!r} needs chelate in the worker's environment "
                f"({error}); install it there: pip install chelate.",
            ) from error
        replacements = call.get("replacements") or {}
        data = build_in_worker(
            bytes(self.read(call["function"])),
            args,
            kwargs,
            defaults=call.get("defaults"),
            replacements={key: bytes(self.read(digest)) for key, digest in replacements.items()},
            code=self.code,
        )
        sink = _Sink(self.spool)
        sink.write(data)
        payload = sink.close()
        header: Header = {"ok": True, "graph": True, "digest": sink.hash.hexdigest()}
        if sink.path is not None:
            header["path"] = sink.path
        return header, payload, b""

    def _success(self, value: Any, name: str) -> Result:
        fingerprint = self._fingerprint_of(value)
        if type(value) in SMALL:
            payload = pickle.dumps(value, 5)
            digest = hashlib.blake2b(payload, digest_size=32).hexdigest()
            return {"ok": True, "digest": digest, "fingerprint": fingerprint}, payload, b""
        sink = _Sink(self.spool)
        try:
            pickle.Pickler(sink, 5).dump(value)
        except _Failure:
            sink.discard()
            raise
        except Exception as first:
            sink.discard()
            sink = _Sink(self.spool)
            try:
                _by_value(value, sink)
            except Exception as error:
                sink.discard()
                if isinstance(error, _Failure):
                    raise
                cause = first if isinstance(error, ImportError) else error
                raise _Failure(
                    "UNPICKLABLE",
                    f"Task {name!r} returned a value of type {_type_name(value)}, which cannot be "
                    f"pickled ({type(cause).__name__}: {cause}); "
                    "return plain data, or a path to a file that holds it.",
                ) from error
        payload = sink.close()
        header: Header = {"ok": True, "digest": sink.hash.hexdigest(), "fingerprint": fingerprint}
        if sink.path is not None:
            header["path"] = sink.path
        return header, payload, b""

    def _fingerprint_of(self, value: Any) -> str | None:
        """A fingerprint only ever saves work, so no failure in taking one may cost a result."""
        try:
            # What the task has registered there holds; else a copy that imports nothing else.
            module = sys.modules.get("chelate.values") or self._values()
            if module is None:
                return None
            whole, parts = module.describe(value)
            if self._wants_parts and whole is not None:
                parts.update(module.parts(value) or {})
            return f"{whole or ''} {json.dumps(parts)}" if parts else whole
        except Exception:
            return None

    def _values(self) -> Any:
        if not self._looked:
            self._looked = True
            folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "values")
            path = os.path.join(folder, "__init__.py")
            if os.path.exists(path):
                from importlib.util import module_from_spec, spec_from_file_location

                spec = spec_from_file_location(
                    "_chelate_values", path, submodule_search_locations=[folder]
                )
                assert spec is not None
                assert spec.loader is not None
                module = module_from_spec(spec)
                sys.modules["_chelate_values"] = module
                spec.loader.exec_module(module)
                self._values_module = module
        return self._values_module


class _Resolver:
    """Turns the references of one call into values, one object per node."""

    def __init__(self, read: Callable[[str], Any], values: dict[str, str]) -> None:
        self.read = read
        self.values = values
        self.nodes: dict[int, Any] = {}
        self.unpacked: dict[tuple[int, int, int | None], list[Any]] = {}

    def resolve(self, reference: list[Any]) -> Any:
        """The value of a reference; nesting of any depth, without recursion."""
        head = reference[0]
        if head in ("p", "n", "c"):
            return self._leaf(reference)
        done: list[Any] = []
        work: list[Any] = [reference]
        while work:
            item = work.pop()
            if type(item) is tuple:
                head, count, extra = item
                parts = done[len(done) - count :]
                del done[len(done) - count :]
                done.append(_rebuild(head, parts, extra))
                continue
            head = item[0]
            if head in ("p", "n", "c"):
                done.append(self._leaf(item))
                continue
            extra = None
            if head == "d":
                children = [part for pair in item[1] for part in pair]
            elif head == "o":
                children = item[2]
                extra = _load(self.read(item[1]))
            else:
                children = item[1]
            work.append((head, len(children), extra))
            work.extend(reversed(children))
        return done[0]

    def _leaf(self, reference: list[Any]) -> Any:
        if reference[0] == "c":
            return _load(self.read(reference[1]))
        node = reference[1]
        if node not in self.nodes:
            self.nodes[node] = _load(self.read(self.values[str(node)]))
        value = self.nodes[node]
        if len(reference) > 2:
            for step in reference[2]:
                value = self._step(value, step)
        return value

    def _step(self, value: Any, step: list[Any]) -> Any:
        kind = step[0]
        if kind == "i":
            return value[step[1]]
        if kind == "c":
            return value[pickle.loads(self.read(step[1]))]
        if kind == "a":
            return getattr(value, step[1])
        _, index, count, star = step
        # Every target of one unpacking must see one iteration: an iterator gives its items once.
        slot = (id(value), count, star)
        items = self.unpacked.get(slot)
        if items is None:
            items = list(value if star is not None else islice(value, count + 1))
            least = count if star is None else count - 1
            if len(items) < least:
                raise ValueError(
                    f"not enough values to unpack (expected {'' if star is None else 'at least '}"
                    f"{least}, got {len(items)})"
                )
            if star is None and len(items) > count:
                raise ValueError(f"too many values to unpack (expected {count})")
            self.unpacked[slot] = items
            self.nodes.setdefault(-1 - len(self.unpacked), value)  # keeps id(value) taken
        if star is None or index < star:
            return items[index]
        after = count - star - 1
        return items[star : len(items) - after] if index == star else items[index - count]


def _rebuild(head: str, parts: list[Any], extra: Any) -> Any:
    if head == "l":
        return parts
    if head == "t":
        return tuple(parts)
    if head == "d":
        return dict(zip(parts[::2], parts[1::2]))  # noqa: B905 (strict= needs Python 3.10)
    if head == "s":
        return set(parts)
    if head == "f":
        return frozenset(parts)
    if head == "o":
        return extra(*parts)
    raise _Failure("INVALID_SPEC", f"The call holds a reference of unknown kind {head!r}.")


# What a pickle with code in it begins with: a text that is thrown away again. Another Python would
# not refuse such code but crash on it.
PYTHON_MARK = b"\x8c%cpy%b0" % (2 + len(HERE), HERE.encode())


def other_python(data: Any) -> str | None:
    """The Python that made the code in a pickle, if that is another one than this."""
    end = 4 + data[3] if len(data) > 6 and data[2:3] == b"\x8c" and data[4:6] == b"py" else 0
    made = bytes(data[6:end]).decode() if end and data[end : end + 1] == b"0" else HERE
    return None if made == HERE else made


def _load(data: Any) -> Any:
    made = other_python(data)
    if made is not None:
        raise _Failure("ENV_MISMATCH", _MISMATCH % ("The code of this task", made, HERE, made))
    return pickle.loads(data)


def _by_value(value: Any, file: Any) -> None:
    """Pickle what refers to code that nobody can import."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            return reduce_wrapper(obj) or super().reducer_override(obj)

    Pickler(file, protocol=5).dump(value)


GENERIC = ("register", "dispatch", "registry", "_clear_cache")  # of functools.singledispatch
_GENERIC_CODE = functools.singledispatch(lambda value: None).__code__  # type: ignore[attr-defined]


def reduce_wrapper(obj: Any) -> Any:
    """How wrappers of :mod:`functools` travel by value, which pickle by name or not at all: a
    cache of results and a generic function, unless their name finds them, and the like in a class.
    None for anything else. Caches arrive empty.
    """
    kind = type(obj)
    if kind is functools._lru_cache_wrapper and not _has_name(obj):
        told = obj.cache_parameters()
        given = (obj.__wrapped__, told["maxsize"], told["typed"], functools._CacheInfo)
        return kind, given, dict(vars(obj))
    if kind is types.FunctionType and obj.__code__ is _GENERIC_CODE and not _has_name(obj):
        cases = [case for case in obj.registry.items() if case[1] is not obj.__wrapped__]
        more = {key: item for key, item in vars(obj).items() if key not in GENERIC}
        # A lambda travels by value itself; a function of this module would have to be found.
        settle = lambda made, state: (  # noqa: E731
            made.__dict__.update(state[1]) or [made.register(*case) for case in state[0]]
        )
        return functools.singledispatch, (obj.__wrapped__,), (cases, more), None, None, settle
    if isinstance(obj, (functools.cached_property, functools.singledispatchmethod)):
        local = ("lock", "_method_cache")
        return kind, (obj.func,), {k: part for k, part in vars(obj).items() if k not in local}
    return None


def _has_name(obj: Any) -> bool:
    """Whether pickle's way of naming ``obj`` finds it in any process."""
    module = getattr(obj, "__module__", None)
    if not isinstance(module, str) or module in ("__main__", "__mp_main__"):
        return False
    cloudpickle = sys.modules.get("cloudpickle")
    for name in cloudpickle.list_registry_pickle_by_value() if cloudpickle else ():
        if module == name or module.startswith(f"{name}."):
            return False
    found = sys.modules.get(module)
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else _dotted(kind)


def _dotted(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    """The traceback as text, without the frames of the worker and of chelate itself."""
    hidden = getattr(sys.modules.get("chelate"), "__path__", None)
    folders = tuple(os.path.join(folder, "") for folder in hidden or ())
    try:
        top = traceback.TracebackException.from_exception(error)
        todo = [top]
        seen = set()
        while todo:
            part = todo.pop()
            if id(part) in seen:
                continue
            seen.add(id(part))
            kept = [
                frame
                for frame in part.stack
                if frame.filename != __file__ and not frame.filename.startswith(folders or "\0")
            ]
            part.stack = traceback.StackSummary.from_list(kept)
            linked = [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
            todo.extend(item for item in linked if item is not None)
        text = "".join(top.format())
    except Exception as broken:  # a user's __str__ may raise anything
        text = f"{type(error).__name__} (its text cannot be shown: {type(broken)!r})\n"
    if len(text) > ERROR_LIMIT:
        text = text[: ERROR_LIMIT // 2] + "\n[... cut ...]\n" + text[-ERROR_LIMIT // 2 :]
    return text


def _user_failure(error: BaseException, stage: str, name: str, made: str | None) -> Result:
    reason = "USER_ERROR"
    text = _text(error)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stored = ".".join((made or here).split(".")[:2])
    if stage == "build":
        stage = "prepare" if type(error).__name__ == "SerializationError" else "call"
    if stage == "prepare" and stored != here:
        reason = "ENV_MISMATCH"
        text = _MISMATCH % (f"Task {name!r}", stored, here, stored) + f"\n{text}"
        return {"ok": False, "reason": reason, "error": text}, b"", _exception(error)
    if stage == "prepare":
        what = f"The function or an input of task {name!r} could not be loaded."
        if isinstance(error, ImportError):
            reason = "ENV_MISSING"
            what += " Install what is missing where the worker runs."
        text = what + "\n" + text
    return {"ok": False, "reason": reason, "error": text}, b"", _exception(error)


def _exception(error: BaseException) -> bytes:
    """The pickled exception if it survives the round trip, else nothing."""
    try:
        try:
            data = pickle.dumps(error, 5)
        except Exception:
            import cloudpickle

            data = cloudpickle.dumps(error, protocol=5)
        same = type(pickle.loads(data)).__qualname__ == type(error).__qualname__
        return data if same and len(data) <= KEPT_TAIL else b""
    except Exception:
        return b""


class Server:
    """Serves batches from a pipe. File descriptors are those given to :func:`main`."""

    def __init__(self, tasks: int, results: int, control: int, mark: str) -> None:
        for descriptor in (tasks, results, control):
            os.set_inheritable(descriptor, False)
        self.stream = open(tasks, "rb", buffering=1 << 16)
        self.results = results
        self.control = open(control, "rb", buffering=0)
        with open(mark, "r+b") as file:
            self.mark = mmap.mmap(file.fileno(), MARK.size)
        self.pid, self.parent = os.getpid(), os.getppid()
        self.blobs: dict[str, bytes] = {}
        self.passing: dict[str, bytes] = {}
        self.files: dict[str, str] = {}
        # Orders "start the next task" against "take that task back", so that exactly one holds.
        self.lock = threading.Lock()
        self.current = 0
        self.finished = 0
        self.dropped: set[int] = set()
        self.stopping = False
        self.in_task = False
        self.idle = True
        self.home = os.open(".", os.O_RDONLY)
        self.context = types.ModuleType("_chelate_task_context")
        self.streams = [_Stream(1, "stdout"), _Stream(2, "stderr")]
        self.runner = Runner(self.read)
        self.refused: Result | None = None  # what every task gets when none can run here

    def read(self, digest: str) -> Any:
        data = self.blobs.get(digest)
        if data is None:
            data = self.passing.get(digest)
        if data is not None:
            return data
        with open(self.files[digest], "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def serve(self) -> None:
        """Run until the task pipe ends."""
        signal.signal(signal.SIGTERM, self.terminate)
        os.register_at_fork(after_in_child=self.forked)
        threading.Thread(target=self.watch, name="chelate-control", daemon=True).start()
        hello = self.frame()
        if hello is None:
            return
        sys.path[:] = hello[0]["path"] + ([] if hello[0]["replace"] else sys.path)
        self.runner.spool = hello[0]["spool"]
        if hello[0].get("code"):
            self.runner.code, archive = hello[0]["code"]
            try:
                use_code(self.runner.code, archive, hello[0]["spool"])
            except (OSError, ValueError) as error:
                self.refused = _no_code(error)
        self.say({"ready": self.pid})
        while True:
            self.mark[:8] = b"\0" * 8
            frame = self.frame()
            if frame is None:
                return
            header, body = frame
            for digest in header["forget"]:
                self.blobs.pop(digest, None)
            offset = 0
            for digest, size, keep in header["blobs"]:
                (self.blobs if keep else self.passing)[digest] = body[offset : offset + size]
                offset += size
            self.files = header["files"]
            wanted = header.get("python")
            common = header["common"]
            for task in header["tasks"]:
                self.one(wanted, common[task[2]], task)
            self.passing.clear()

    def frame(self) -> tuple[Header, bytes] | None:
        self.idle = True
        head = self.stream.read(FRAME.size)
        self.idle = False
        if len(head) < FRAME.size:
            return None
        size, extra = FRAME.unpack(head)
        header, body = self.stream.read(size), self.stream.read(extra)
        return (json.loads(header), body) if len(body) == extra else None

    def one(self, wanted: str | None, common: list[Any], task: list[Any]) -> None:
        sequence, key, _, args, kwargs, values, node, attempt, folder = task
        head, told, dispatch, name = common
        call = {**head, "args": args, "kwargs": kwargs, "values": values}
        out, err = self.streams
        started = time.time()
        with self.lock:
            if sequence in self.dropped:
                self.dropped.discard(sequence)
                return
            if self.stopping or os.getppid() != self.parent:
                os._exit(0)  # without its kernel a task that has not begun is not wanted
            self.current = sequence
            self.mark[:] = MARK.pack(sequence, started, out.size, err.size, key.encode())
        os.environ["CHELATE_TASK_KEY"] = key
        self.context.current = {  # type: ignore[attr-defined]
            **told,
            "dispatch_id": dispatch,
            "node_id": node,
            "attempt": attempt,
            "name": name,
        }
        sys.modules["_chelate_task_context"] = self.context
        try:
            self.in_task = True
            if self.stopping:
                os._exit(0)
            here = f"{sys.version_info[0]}.{sys.version_info[1]}"
            if wanted is not None and wanted != here:
                result = _refusal(wanted, here)
            else:
                result = self.refused or self.enter(folder) or self.runner.run(call)
            self.in_task = False
        except Terminated as error:
            result = {"ok": False, "reason": "TERMINATED", "error": _text(error)}, b"", b""
        finally:
            self.in_task = False
        if os.getpid() != self.pid:
            os._exit(0)  # the task forked, and the child came back here
        os.fchdir(self.home)
        if handler_of(TERM) != self.terminate:
            signal.signal(signal.SIGTERM, self.terminate)
        self.send(sequence, started, result, out.taken(), err.taken())
        out.trim()
        err.trim()

    def enter(self, folder: str | None) -> Result | None:
        if folder is None:
            return None
        try:
            os.makedirs(folder, exist_ok=True)
            os.chdir(folder)
        except OSError as error:
            text = f"The task's folder {folder} cannot be used: {error}."
            return {"ok": False, "reason": "INVALID_SPEC", "error": text}, b"", b""
        return None

    def send(self, sequence: int, started: float, result: Result, out: bytes, err: bytes) -> None:
        header, payload, exception = result
        flags = 0
        meta = b""
        if header["ok"]:
            flags = OK | (GRAPH if header.get("graph") else 0)
            if "path" in header:
                flags |= FILE
                payload = header["path"].encode()
        else:
            meta = json.dumps({"reason": header["reason"], "error": header["error"]}).encode()
        fingerprint = (header.get("fingerprint") or "").encode()
        parts = (meta, fingerprint, payload, exception, out, err)
        sizes = tuple(map(len, parts))
        digest = header.get("digest", "").encode()
        head = RESULT.pack(sum(sizes), sequence, flags, started, time.time(), digest, *sizes)
        with self.lock:
            self.write(head + b"".join(parts))
            self.finished = sequence
            if self.stopping:
                os._exit(0)

    def say(self, news: Header) -> None:
        """Tell the parent something; the caller holds the lock where order matters."""
        meta = json.dumps(news).encode()
        self.write(RESULT.pack(len(meta), 0, NEWS, 0, 0, b"", len(meta), 0, 0, 0, 0, 0) + meta)

    def write(self, data: bytes) -> None:
        sent = os.write(self.results, data)
        while sent < len(data):
            sent += os.write(self.results, memoryview(data)[sent:])

    def watch(self) -> None:
        """Thread: take tasks back when told to; leave with the kernel when it dies."""
        buffer = b""
        while True:
            try:
                data = self.control.read(65536)
            except OSError:
                data = b""
            if not data:
                # The guardian ends whole trees at once; this is for when it was killed too.
                time.sleep(3)
                os.killpg(0, signal.SIGKILL)
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                order = json.loads(line)
                with self.lock:
                    ahead = [number for number in order["take"] if number > self.current]
                    self.dropped.update(ahead)
                    runs = self.current if self.current > self.finished else 0
                    held = order["hold"] and runs in order["take"] and runs > 0
                    if held:
                        self.stopping = True
                    self.say({"asked": order["take"], "taken": ahead, "held": runs if held else 0})

    def terminate(self, number: int, frame: types.FrameType | None) -> None:
        """SIGTERM: let the task unwind, then go."""
        self.stopping = True
        if self.in_task:
            self.in_task = False
            raise Terminated("The task was told to stop.")
        if self.idle:
            os._exit(0)

    def forked(self) -> None:
        """In a child that a task forked: the pipes and the signal are not the child's."""
        if signal.getsignal(signal.SIGTERM) == self.terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.results >= 0:
            os.close(self.results)
            self.results = -1  # a child of this child must not close what took its number


class _Stream:
    """One of the worker's output streams: a log file whose new part belongs to the task."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor = descriptor
        self.name = name
        self.saved = os.dup(descriptor)
        os.write(descriptor, b"\n" * FIRST)
        self.size = os.lseek(self.saved, 0, os.SEEK_END)
        self.writer = self.open()

    def open(self) -> Any:
        writer = open(
            self.descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace",
            closefd=False,
        )  # fmt: skip
        setattr(sys, self.name, writer)
        setattr(sys, f"__{self.name}__", writer)
        return writer

    def taken(self) -> bytes:
        """What was written since the last call; the middle of a very long text is left out."""
        try:
            current = getattr(sys, self.name)
            current.flush()
        except Exception:
            current = None  # the task closed it, or put something there that is no stream
        if current is not self.writer:
            if self.writer.closed:
                self.writer = self.open()
            else:
                self.writer.flush()
                setattr(sys, self.name, self.writer)
        self.size, start = os.lseek(self.saved, 0, os.SEEK_END), self.size
        try:
            # Both descriptors share one position unless the task put something else in place.
            ours = os.lseek(self.descriptor, 0, os.SEEK_CUR) == self.size
        except OSError:
            ours = False
        if not ours:
            os.dup2(self.saved, self.descriptor)
        return read_slice(self.saved, start, self.size) if self.size > start else b""

    def trim(self) -> None:
        if self.size > LOG_LIMIT:
            os.ftruncate(self.saved, FIRST)
            self.size = FIRST


def read_slice(descriptor: int, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end`` of a log; of a long one the first 64 KiB and the last MiB."""
    if end - start <= KEPT_HEAD + KEPT_TAIL:
        return os.pread(descriptor, end - start, start)
    cut = end - start - KEPT_HEAD - KEPT_TAIL
    head = os.pread(descriptor, KEPT_HEAD, start)
    tail = os.pread(descriptor, KEPT_TAIL, end - KEPT_TAIL)
    return head + b"\n[chelate: %d bytes of output are left out here]\n" % cut + tail


def use_code(digest: str, archive: str, spool: str) -> None:
    """Make imports of the user's modules give the stored code; call it before any of them.

    While the live files equal the stored ones nothing is done, so that data files beside them are
    found. Else the archive is unpacked once below ``spool`` and comes first on the path.

    Raises:
        OSError: the archive cannot be read or unpacked.
        ValueError: it is damaged.
    """
    with open(archive, "rb") as file:
        data = file.read()
    if hashlib.blake2b(data, digest_size=32).hexdigest() != digest:
        raise ValueError(f"the file {archive} is damaged")
    # The index is the first entry and stored plainly, so most workers never load zipfile.
    size, name, extra = struct.unpack_from("<IHH", data, 22)
    start = 30 + name + extra
    index = json.loads(data[start : start + size])
    if _is_live(index):
        return
    target = os.path.join(spool, f"code-{digest}")
    if not os.path.isdir(target):
        _unpack(archive, index["files"], target)
    sys.path.insert(0, target)


def _is_live(index: Header) -> bool:
    path = {os.path.realpath(entry) for entry in sys.path}
    if not path.issuperset(os.path.realpath(root) for root in index["roots"]):
        return False
    for size, digest, original in index["files"].values():
        try:
            if original is None or os.stat(original).st_size != size:
                return False
            with open(original, "rb") as file:
                if hashlib.blake2b(file.read(), digest_size=32).hexdigest() != digest:
                    return False
        except OSError:
            return False
    return True


def _unpack(archive: str, files: dict[str, Any], target: str) -> None:
    import shutil
    import zipfile

    temporary = f"{target}.{os.getpid()}"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(temporary, files)
    # What is not code of the user is not stored; lend it from beside the code, if that is here.
    folders = {}
    for name, (_, _, original) in files.items():
        if original is not None:
            folders[name.rpartition("/")[0]] = os.path.dirname(original)
    for folder, original in folders.items():
        if os.path.isdir(original):
            _lend(original, os.path.join(temporary, folder), packaged=folder != "")
    try:
        os.rename(temporary, target)
    except OSError:  # another worker was first
        shutil.rmtree(temporary)
        if not os.path.isdir(target):
            raise


def _lend(original: str, folder: str, *, packaged: bool) -> None:
    """Links to data files and, in a package, to folders of them."""
    with os.scandir(original) as entries:
        for entry in entries:
            if entry.is_dir():
                data = packaged and os.access(entry.path, os.R_OK) and entry.name != "__pycache__"
                data = data and not any(n.endswith(".py") for n in os.listdir(entry.path))
            else:
                data = not entry.name.endswith((".py", ".pyc"))
            here = os.path.join(folder, entry.name)
            if data and not os.path.lexists(here):
                os.symlink(entry.path, here)


def _no_code(error: Exception) -> Result:
    text = (
        "The stored code of the workflow's own modules cannot be used here "
        f"({type(error).__name__}: {error}); dispatch the workflow again from its source."
    )
    return {"ok": False, "reason": "ENV_MISSING", "error": text}, b"", b""


def _refusal(wanted: str, here: str) -> Result:
    text = (
        f"The task was made with Python {wanted} and this worker runs Python {here}; "
        f"point the executor at a Python {wanted}."
    )
    return {"ok": False, "reason": "ENV_MISMATCH", "error": text}, b"", b""


def _settle() -> None:
    """Adopt orphaned grandchildren, so that they can be found, and flush C output by line."""
    import ctypes

    libc = ctypes.CDLL(None)
    if sys.platform == "linux":
        set_child_subreaper = 36
        libc.prctl(set_child_subreaper, 1, 0, 0, 0)
        line_buffered = 1
        for name in ("stdout", "stderr"):
            libc.setvbuf(ctypes.c_void_p.in_dll(libc, name), None, line_buffered, 0)


def main(arguments: list[str]) -> int:
    """``worker.py TASKS RESULTS CONTROL MARK``: three pipe ends and the path of the mark."""
    server = Server(int(arguments[0]), int(arguments[1]), int(arguments[2]), arguments[3])
    sys.argv = ["chelate-worker"]
    _settle()
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
