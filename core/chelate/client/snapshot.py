"""Snapshots: the user's own modules as one archive that is stored with each dispatch.

Functions and classes of importable modules are pickled by name, so what runs later would be
whatever the files hold by then. A snapshot keeps the source that this process has loaded. It
holds Python files only; data files of packages are taken from where they are, if they are there.

The archive is a zip with fixed times and sorted names. Its first entry, stored plainly, is the
index ``{"format", "roots": [folder], "files": {name: [size, digest, original path or null]}}``.
Original paths only serve to see whether a live file still equals the stored one; no other host
needs them.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from chelate.client.fingerprint.library import is_library_file
from chelate.client.loaded import check_unchanged
from chelate.digest import digest_bytes
from chelate.errors import GraphError

__all__ = ["INDEX", "MOST_BYTES", "MOST_FILES", "Snapshots", "beside", "snapshot"]

INDEX = "chelate-snapshot.json"
MOST_FILES = 5_000
MOST_BYTES = 64 << 20
_FORMAT = 1
_APART = frozenset({"__main__", "__mp_main__", "chelate", "sitecustomize", "usercustomize"})
_SETTLED = 100_000_000  # nanoseconds after which a further change shows in a file's time


@cache
def _apart() -> frozenset[str]:
    """Packages that are nobody's workflow, wherever they are: chelate, its plugins, entry files."""
    return _APART.union(entry.module.partition(".")[0] for entry in entry_points(group="chelate"))


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """One file as it goes into the archive; ``fits`` when an import finds it at ``path``."""

    path: str
    fits: bool
    data: bytes
    digest: str


@dataclass(slots=True)
class _Loaded:
    """A loaded module of the user. A reload gives a module another ``spec``."""

    module: ModuleType
    spec: Any
    name: str  # in the archive
    file: str
    source: _Source | None


@dataclass(frozen=True, slots=True)
class _Listing:
    """What a folder held at ``mtime``: names of Python files and of folders."""

    mtime: int
    settled: bool
    files: tuple[str, ...]
    folders: tuple[str, ...]


class Snapshots:
    """Takes snapshots, and remembers what it has read."""

    def __init__(self, most_files: int = MOST_FILES, most_bytes: int = MOST_BYTES) -> None:
        self._most_files = most_files
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._seen: dict[str, ModuleType] = {}
        self._loaded: dict[str, _Loaded] = {}
        self._beside: dict[str, tuple[tuple[int, int, int], bool, _Source]] = {}
        self._listings: dict[str, _Listing] = {}
        self._last: tuple[dict[str, _Source], bytes | None] = ({}, None)

    def take(self) -> bytes | None:
        """The archive of the user's modules as this process has loaded them, and of the Python
        files beside them in their packages; None when there is none.

        Raises:
            GraphError: there is too much code, or a file was edited after it was imported.
        """
        with self._lock:
            self._look()
            files = {
                loaded.name: loaded.source
                for loaded in self._loaded.values()
                if loaded.source is not None
            }
            self._add_neighbours(files)
            if files != self._last[0]:
                self._check_size(files)
                self._last = files, _archive(files)
            return self._last[1] if files else None

    def differing(self, archive: bytes | None) -> list[ModuleType]:
        """Loaded modules of the user that an archive lacks, or has with other source.

        Raises:
            GraphError: as :meth:`take`.
        """
        stored = {} if archive is None else _index(archive)["files"]
        with self._lock:
            self._look()
            return [
                loaded.module
                for loaded in self._loaded.values()
                if loaded.source is not None
                and stored.get(loaded.name, [None, None])[1] != loaded.source.digest
            ]

    def _look(self) -> None:
        """Bring what is known of loaded modules up to date."""
        seen = self._seen
        for name, module in sys.modules.copy().items():
            if seen.get(name) is module:
                continue
            seen[name] = module
            self._loaded.pop(name, None)
            loaded = _as_loaded(name, module)
            if loaded is not None:
                self._loaded[name] = loaded
        for name, loaded in list(self._loaded.items()):
            if sys.modules.get(name) is not loaded.module:
                del self._loaded[name], seen[name]
                continue
            spec = getattr(loaded.module, "__spec__", None)
            if loaded.source is None or loaded.spec is not spec:
                loaded.source = _read_loaded(name, loaded)
                loaded.spec = spec

    # -- files beside loaded ones, which a task may import later ------------------------------

    def _add_neighbours(self, files: dict[str, _Source]) -> None:
        tops = {
            name: loaded
            for name, loaded in self._loaded.items()
            if "." not in name and loaded.name.endswith("/__init__.py")
        }
        for name, loaded in tops.items():
            self._add_folder(files, name, _folder(loaded.file), deep=True)
        folders = {
            (loaded.name.rpartition("/")[0], _folder(loaded.file))
            for name, loaded in self._loaded.items()
            if "." in name and name.partition(".")[0] not in tops
        }
        for prefix, folder in sorted(folders):
            self._add_folder(files, prefix, folder, deep=False)

    def _add_folder(
        self, files: dict[str, _Source], prefix: str, folder: str, *, deep: bool
    ) -> None:
        """Python files of a folder; with ``deep``, of those below it that hold some, too."""
        listing = self._listing(folder)
        if listing is None or not listing.files:
            return
        for file in listing.files:
            name = f"{prefix}/{file}"
            if name not in files and len(files) <= self._most_files:
                source = self._neighbour(f"{folder}/{file}")
                if source is not None:
                    files[name] = source
        for other in listing.folders if deep else ():
            self._add_folder(files, f"{prefix}/{other}", f"{folder}/{other}", deep=True)

    def _listing(self, folder: str) -> _Listing | None:
        known = self._listings.get(folder)
        try:
            mtime = os.stat(folder).st_mtime_ns  # noqa: PTH116
            if known is not None and known.settled and known.mtime == mtime:
                return known
            settled = time.time_ns() - mtime > _SETTLED
            files, folders = [], []
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.endswith(".py") and entry.is_file():
                        files.append(name)
                    elif not name.isidentifier() or name == "__pycache__":
                        continue
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(name)
        except OSError:
            self._listings.pop(folder, None)
            return None
        listing = _Listing(mtime, settled, tuple(sorted(files)), tuple(sorted(folders)))
        self._listings[folder] = listing
        return listing

    def _neighbour(self, path: str) -> _Source | None:
        known = self._beside.get(path)
        try:
            found = os.stat(path)  # noqa: PTH116
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if known is not None and known[1] and known[0] == stamp:
                return known[2]
            if found.st_size > self._most_bytes:
                raise self._too_much(path, 1, found.st_size)
            settled = time.time_ns() - found.st_mtime_ns > _SETTLED
            source = _source(path, True, Path(path).read_bytes())
        except OSError:
            return None
        if known is not None and known[2].digest == source.digest:
            source = known[2]
        self._beside[path] = stamp, settled, source
        return source

    # -- bounds -------------------------------------------------------------------------------

    def _check_size(self, files: dict[str, _Source]) -> None:
        size = sum(len(source.data) for source in files.values())
        if len(files) <= self._most_files and size <= self._most_bytes:
            return
        sizes: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for name, source in files.items():
            folder = source.path.rsplit("/", max(name.count("/"), 1))[0]
            sizes[folder] += len(source.data)
            counts[folder] += 1
        ranking = counts if len(files) > self._most_files else sizes
        raise self._too_much(max(ranking, key=ranking.__getitem__), len(files), size)

    def _too_much(self, where: str, count: int, size: int) -> GraphError:
        return GraphError(
            f"The workflow's own modules are too large to be stored with it: {count} files or "
            f"more of {size >> 20} MiB or more, where {self._most_files} files and "
            f"{self._most_bytes >> 20} MiB are allowed. Most are in {where}. Install what is there "
            "as a package (pip install, not editable), or move what is no code out of it."
        )


def _as_loaded(name: str, module: ModuleType) -> _Loaded | None:
    """What to keep of a module; None unless it is the user's own, with source."""
    top = name.partition(".")[0]
    if top in _APART or top.startswith("_chelate") or top in sys.stdlib_module_names:
        return None
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py") or is_library_file(file):
        return None
    if top in _apart():
        return None
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    path = name.replace(".", "/")
    path += "/__init__.py" if hasattr(module, "__path__") else ".py"
    file = os.path.abspath(file).replace(os.sep, "/")  # noqa: PTH100
    return _Loaded(module, None, path, file, None)


def _read_loaded(name: str, loaded: _Loaded) -> _Source | None:
    try:
        stamp = os.stat(loaded.file).st_mtime  # noqa: PTH116
        data = Path(loaded.file).read_bytes()
    except OSError:  # the source is gone, or was never a file
        return None
    check_unchanged(name, loaded.module, loaded.file, data, stamp)
    known = loaded.source
    source = _source(loaded.file, loaded.file.endswith("/" + loaded.name), data)
    return known if known is not None and known.digest == source.digest else source


def _source(path: str, fits: bool, data: bytes) -> _Source:
    return _Source(path, fits, data, digest_bytes(data))


def _folder(file: str) -> str:
    return file.rpartition("/")[0]


def _archive(files: dict[str, _Source]) -> bytes:
    import zipfile

    roots = {source.path[: -len(name) - 1] or "/" for name, source in files.items() if source.fits}
    index = {
        "format": _FORMAT,
        "roots": sorted(roots),
        "files": {
            name: [len(source.data), source.digest, source.path if source.fits else None]
            for name, source in sorted(files.items())
        },
    }

    def entries() -> Iterator[tuple[str, bytes, int]]:
        yield INDEX, json.dumps(index, separators=(",", ":")).encode(), zipfile.ZIP_STORED
        for name, source in sorted(files.items()):
            yield name, source.data, zipfile.ZIP_DEFLATED

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data, method in entries():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # the same bytes on every platform
            info.external_attr = 0o600 << 16
            info.compress_type = method
            archive.writestr(info, data)
    return buffer.getvalue()


def _index(archive: bytes) -> dict[str, Any]:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        index: dict[str, Any] = json.loads(opened.read(INDEX))
    return index


_snapshots = Snapshots()


def snapshot() -> bytes | None:
    """What :meth:`Snapshots.take` gives for this process; see there."""
    return _snapshots.take()


@contextmanager
def beside(archive: bytes | None) -> Iterator[None]:
    """Pickle what is to run beside stored code: what the archive lacks travels by value.

    A function that replaces another in a stored workflow is newer than the snapshot that its
    worker has, so its name alone would find nothing there, or something older.

    Raises:
        GraphError: as :meth:`Snapshots.take`.
    """
    known = cloudpickle.list_registry_pickle_by_value()
    modules = [m for m in _snapshots.differing(archive) if m.__name__ not in known]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
