"""Run the quickstart or the tests from a fresh clone with nothing but Python and pip.

    python run.py quickstart
    python run.py tests [pytest options]   in three processes (many wait); -n 0 for one
    python run.py python [arguments]     that Python, with linter and type checker

The first use makes a virtual environment in ``.run/`` and installs chelate into it, editable;
tests get the plugins too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
COMMANDS = {
    "quickstart": ("examples", ["examples/quickstart.py"]),
    "tests": ("test", ["-m", "pytest", "-n", "3", "--no-loadscope-reorder"]),
    "python": ("dev", []),
}
WITH_PLUGINS = ("test", "dev")


def interpreter(folder: Path) -> Path:
    """The Python of a virtual environment."""
    if os.name == "nt":
        return folder / "Scripts" / "python.exe"
    return folder / "bin" / "python"


def create(folder: Path) -> None:
    """Make an empty virtual environment, on systems without ensurepip too."""
    shutil.rmtree(folder, ignore_errors=True)
    print(f"Creating a virtual environment in {folder} …", flush=True)
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(folder)
    bootstrap = [str(interpreter(folder)), "-m", "ensurepip", "--default-pip"]
    if subprocess.run(bootstrap, capture_output=True).returncode:
        # Debian keeps ensurepip in a package of its own; the pip at hand can serve instead.
        pip = [sys.executable, "-m", "pip", "--python", str(interpreter(folder))]
        subprocess.run([*pip, "install", "-q", "pip"], check=True)


def prepare(extra: str) -> Path:
    """A virtual environment with chelate and ``extra`` installed; its Python."""
    folder = ROOT / ".run" / f"py{sys.version_info[0]}.{sys.version_info[1]}"
    python = interpreter(folder)
    plugins = sorted(ROOT.glob("plugins/*/pyproject.toml")) if extra in WITH_PLUGINS else []
    told = b"".join(path.read_bytes() for path in (ROOT / "pyproject.toml", *plugins))
    wanted = hashlib.sha256(told + str(ROOT).encode()).hexdigest()
    stamp = folder / f"installed-{extra}"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    if not python.exists():
        create(folder)
    print(f"Installing chelate[{extra}] …", flush=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    own = [option for path in plugins for option in ("-e", str(path.parent))]
    subprocess.run([*pip, "-e", f"{ROOT}[{extra}]", *own], check=True)
    stamp.write_text(wanted)
    return python


def main(arguments: list[str]) -> int:
    """Run one command; the exit code is the command's own."""
    if sys.version_info < (3, 10):  # noqa: UP036 - this file also runs on what the user has
        print(f"chelate needs Python 3.10 or newer; this is {sys.version.split()[0]}.")
        return 2
    if not arguments or arguments[0] not in COMMANDS:
        print((__doc__ or "").strip())
        return 2
    extra, command = COMMANDS[arguments[0]]
    try:
        python = prepare(extra)
    except subprocess.CalledProcessError as error:
        print(f"Installing failed (exit code {error.returncode}); pip says why above.")
        return 1
    return subprocess.run([str(python), *command, *arguments[1:]], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
