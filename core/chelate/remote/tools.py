"""What is copied to a host: the agent, the worker, and what modules of users import of chelate.

Nothing has to be installed there. A module that says ``import chelate as ct`` gets the client's
half of the package, with pluggy and cloudpickle, and the packages of the installed executors.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import chelate.api
from chelate.api import ConfigError, digest_bytes

__all__ = ["NO_AGENT", "NO_ROOT", "UNFIT", "Tools", "probe_command", "tools"]

# What a module of a user may need of chelate: to make tasks and workflows, and to build one.
_ROOMS = ("", "client", "client/fingerprint", "contracts", "remote", "triggers", "values")

NO_AGENT = 94
NO_ROOT = 95  # the root cannot be written to; the last line of the error output says why
UNFIT = (96, 97)  # no interpreter at all; only too old ones

# Runs on any Python, to say in words that it is too old. The folder is run as a program.
_MAIN = """\
import sys
if sys.version_info < (3, 6):
    sys.stderr.write("chelate needs Python 3.6 or later, and this is Python %d.%d.\\n"
                     % sys.version_info[:2])
    sys.exit(78)
sys.dont_write_bytecode = False
from _chelate_host.agent import main
sys.exit(main(sys.argv[1:]))
"""

# Any Python reads it. Writes the tools beside their final place and renames them, so that they
# are whole or absent, and goes on as the agent.
_BEGIN = """\
import os, sys
root, digest, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
if sys.version_info < (3, 6):
    sys.stdout.write("chelate:%d.%d\\n" % sys.version_info[:2])
    sys.exit(97)
if root[:1] == "~":
    root = os.path.expanduser(root)
tools = os.path.join(root, "tools", digest)
if size == 0 and not os.path.isdir(tools):
    sys.exit(94)
if size:
    import hashlib, json, shutil, zlib
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            sys.exit("The tools were cut off.")
        data += piece
    if hashlib.blake2b(data, digest_size=32).hexdigest() != digest:
        sys.exit("The tools were damaged on the way.")
    os.umask(0o077)
    part = "%s.%d" % (tools, os.getpid())
    try:
        for name, text in json.loads(zlib.decompress(data).decode()).items():
            path = os.path.join(part, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        sys.stderr.write("\\n%s" % error)
        sys.exit(95)
    try:
        os.rename(part, tools)
    except OSError:
        shutil.rmtree(part)
        if not os.path.isdir(tools):
            raise
sys.path.insert(0, tools)
from _chelate_host.agent import main
sys.exit(main(["probe"]))
"""

# Arguments: root, digest of the tools, their size (0: do not install), program, interpreters.
_FIND = """\
root=$1 digest=$2 size=$3 begin=$4
shift 4
status=96
for python in "$@"; do
  case $python in "~/"*) python=$HOME/${python#??} ;; esac
  python=$(command -v "$python" 2>/dev/null) || continue
  # The shim of a version manager may have no such version, and a wrong name is any program.
  said=$("$python" -ES -c 'print("che" + "late")' 2>/dev/null </dev/null | head -c 4096)
  case $said in *chelate*) ;; *) continue ;; esac
  "$python" -ES -c "$begin" "$root" "$digest" "$size"
  code=$?
  [ $code -eq 97 ] || exit $code
  status=97
done
exit $status
"""


@dataclass(frozen=True, slots=True)
class Tools:
    """The files as one compressed text; ``digest`` names their folder on the host."""

    digest: str
    data: bytes


def _plugins() -> list[EntryPoint]:
    return [e for e in entry_points(group="chelate") if not e.module.startswith("chelate.")]


def _folder_of(package: str) -> Path | None:
    spec = find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@cache
def tools() -> Tools:
    """What is shipped, made once per process.

    Raises:
        ConfigError: cloudpickle's files cannot be read here.
    """
    chelate_folder = Path(chelate.api.__file__).parent
    files = {"__main__.py": _MAIN}
    folders = {"_chelate_host": Path(__file__).parent / "shipped"}
    folders["values"] = chelate_folder / "values"
    for room in _ROOMS:
        folders[f"own/chelate/{room}".rstrip("/")] = chelate_folder / room
    for package in ("cloudpickle", "pluggy"):
        folder = _folder_of(package)
        if folder is None:
            raise ConfigError(f"{package} is not installed here; reinstall chelate.")
        folders[f"lib/{package}"] = folder
    for package in sorted({entry.module.partition(".")[0] for entry in _plugins()}):
        folder = _folder_of(package)
        if folder is not None:
            folders[f"own/{package}"] = folder
    for name, folder in folders.items():
        for path in sorted(folder.glob("*.py")):
            files[f"{name}/{path.name}"] = path.read_text(encoding="utf-8")
    files["worker.py"] = files["own/chelate/worker.py"]
    data = zlib.compress(json.dumps(files, sort_keys=True).encode(), 9)
    return Tools(digest_bytes(data), data)


def probe_command(
    root: str, candidates: Sequence[str], request: Mapping[str, Any], *, install: bool
) -> tuple[list[str], bytes]:
    """The command that finds an interpreter and asks the agent, and what it reads.

    It exits with NO_AGENT when the agent is not there and may not be installed, with NO_ROOT when
    it cannot be, 97 when every interpreter is too old and 96 when there is none.
    """
    shipped = tools()
    size = len(shipped.data) if install else 0
    command = ["sh", "-c", _FIND, "chelate", root, shipped.digest, str(size), _BEGIN]
    body = json.dumps(request).encode()
    stdin = b"%d\n%b" % (len(body), body)
    return [*command, *candidates], (shipped.data if install else b"") + stdin
