"""What a task finds around it on the host: interpreter, modules, variables, hooks."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chelate.api import ConfigError

__all__ = ["Environment"]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/@=:~-]*")

# The exit statuses by which the script tells the supervisor what went wrong.
_HEAD = """\
fail() {
  printf '%s\\n' "$2" >&2
  exit "$1"
}
"""
_MODULES = """\
command -v module >/dev/null 2>&1 || fail 81 "The command 'module' does not exist on this host."
module load $modules || fail 81 "These modules could not be loaded: $modules"
"""
_CONDA = """\
case $conda in
  */*) prefix=$conda ;;
  *)
    prefix=
    base=$(conda info --base 2>/dev/null)
    for base in "$base" "$HOME/miniconda3" "$HOME/miniforge3" "$HOME/mambaforge" \\
      "$HOME/anaconda3" "$HOME/.conda" /opt/conda /opt/miniconda3 /opt/miniforge3; do
      [ -n "$base" ] || continue
      if [ -x "$base/envs/$conda/bin/python" ]; then prefix=$base/envs/$conda; break; fi
      if [ "$conda" = base ] && [ -x "$base/bin/python" ]; then prefix=$base; break; fi
    done
    [ -n "$prefix" ] || fail 82 "There is no conda environment named $conda on this host."
    ;;
esac
[ -x "$prefix/bin/python" ] || fail 82 "There is no bin/python in the conda environment $prefix."
export CONDA_PREFIX="$prefix" CONDA_DEFAULT_ENV="$conda" PATH="$prefix/bin:$PATH"
for hook in "$prefix"/etc/conda/activate.d/*.sh; do
  if [ -r "$hook" ]; then . "$hook"; fi
done
"""
_VENV = """\
[ -x "$venv/bin/python" ] || fail 82 "There is no bin/python in the virtual environment $venv."
export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
unset PYTHONHOME
"""
_TAIL = """\
mode=$1
shift
if [ "$mode" = run ] && [ -n "$prerun" ]; then
  trap 'fail 83 "The prerun left its shell (exit or set -e) with exit status $?."' EXIT
  # What it sources must not take our arguments for its own. Arrays are bash's, as a prerun is.
  eval 'chelate_arguments=("$@")'
  set --
  eval "$prerun"
  status=$?
  trap - EXIT
  eval 'set -- "${chelate_arguments[@]}"'
  [ $status -eq 0 ] || fail 83 "The prerun ended with exit status $status."
fi
if [ "$mode" = post ]; then
  eval "$postrun"
  exit $?
fi
"""
_ONE = 'if command -v "$pythons" >/dev/null 2>&1; then exec "$pythons" "$@"; fi\n'
_FIRST = """\
for python in $pythons; do
  # A version manager may have a shim for a version that it does not have.
  if "$python" -ESc '' >/dev/null 2>&1 </dev/null; then exec "$python" "$@"; fi
done
"""
_NONE = 'fail 84 "There is no interpreter on this host named: $pythons"\n'


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and how tasks run on a host; at most one of ``python``, ``conda`` and ``venv``.

    Args:
        python: interpreter, by name or absolute path. Default: the first of ``python3.<minor>``
            (the minor version of this Python), ``python3`` and ``python``.
        conda: name or absolute prefix of a conda environment; nothing is activated unless asked.
        venv: absolute path (or below ``~/``) of a virtual environment.
        modules: what ``module load`` is given, in this order.
        env_vars: variables set before anything else.
        prerun: shell commands before each job, in the shell that then starts Python, so what
            they load and export lasts. The last exit status counts; ``set -e`` for all.
        postrun: shell commands after each job, successful or not, with ``CHELATE_EXIT_STATUS``
            (0: every task succeeded).

    Raises:
        ConfigError: a value cannot be meant.
    """

    python: str | None = None
    conda: str | None = None
    venv: str | None = None
    modules: Sequence[str] = ()
    env_vars: Mapping[str, str] = field(default_factory=dict)
    prerun: str = ""
    postrun: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.modules, str):
            raise ConfigError(f"modules={self.modules!r} must be a list of names.")
        for name in ("prerun", "postrun"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, "\n".join(map(str, value)))
        given = [name for name in ("python", "conda", "venv") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other; keep one of them.")
        for name in (*given, "prerun", "postrun"):
            _check_text(name, getattr(self, name))
        for name in given:
            value = getattr(self, name)
            if not value.strip() or value.startswith("-") or "\n" in value:
                raise ConfigError(f"{name}={value!r} is no name and no path.")
        if self.venv is not None and not self.venv.startswith(("/", "~/")):
            raise ConfigError(f"venv={self.venv!r} must be an absolute path, or one below ~/.")
        for module in self.modules:
            if not isinstance(module, str) or not _MODULE.fullmatch(module):
                raise ConfigError(f"modules: {module!r} is not the name of a module.")
        if not isinstance(self.env_vars, Mapping):
            raise ConfigError(f"env_vars={self.env_vars!r} must be a dict of texts.")
        for name, value in self.env_vars.items():
            if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
                raise ConfigError(f"env_vars: {name!r} is not the name of a variable.")
            _check_text(f"env_vars[{name!r}]", value)

    @classmethod
    def of(cls, value: Environment | Mapping[str, Any] | None) -> Environment:
        """From an executor's option: None, a mapping of the arguments, or an instance."""
        if isinstance(value, Environment):
            return value
        try:
            return cls(**(value or {}))
        except TypeError as error:
            raise ConfigError(f"An environment does not know that option: {error}.") from error

    def to_json(self) -> dict[str, Any]:
        """Only what was given."""
        data: dict[str, Any] = {}
        for name in ("python", "conda", "venv", "prerun", "postrun"):
            if getattr(self, name):
                data[name] = getattr(self, name)
        if self.modules:
            data["modules"] = list(self.modules)
        if self.env_vars:
            data["env_vars"] = dict(self.env_vars)
        return data

    @property
    def candidates(self) -> tuple[str, ...]:
        """Interpreters that may be asked about the host, best first; absolute, ``~/`` or names."""
        own = f"python3.{sys.version_info[1]}"
        first = self.python
        if self.venv is not None:
            first = f"{self.venv}/bin/python"
        elif self.conda is not None and "/" in self.conda:
            first = f"{self.conda}/bin/python"
        usual = (own, "python3", "python", "/usr/bin/python3", "/usr/libexec/platform-python")
        return usual if first is None else (first, *usual)

    @property
    def describes(self) -> str:
        """For sentences: which interpreter is meant."""
        for name in ("python", "conda", "venv"):
            if getattr(self, name) is not None:
                return f"{name}={getattr(self, name)}"
        return "the default python"

    @property
    def shell(self) -> tuple[str, ...]:
        """What runs :meth:`script`: a login shell only where the settings may need one."""
        return ("bash", "-l") if self.modules or self.conda or self.prerun else ("sh",)

    def script(self) -> bytes:
        """The job script ``SCRIPT run|post|check [argument …]``; only quoted values differ.

        ``run`` does prerun and replaces itself by the interpreter with the arguments; ``check``
        does so without prerun; ``post`` does postrun. It exits 81 when a module, 82 when a
        conda or virtual environment, 84 when the interpreter is missing, 83 when prerun failed.
        """
        parts = [_HEAD]
        parts += [f"export {name}={shlex.quote(value)}\n" for name, value in self.env_vars.items()]
        if self.modules:
            parts.append(f"modules={shlex.quote(' '.join(self.modules))}\n{_MODULES}")
        for name, text in (("conda", _CONDA), ("venv", _VENV)):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={_path(value)}\n{text}")
        parts.append(f"prerun={shlex.quote(self.prerun)}\npostrun={shlex.quote(self.postrun)}\n")
        if self.python is not None:
            parts.append(f"pythons={_path(self.python)}\n{_TAIL}{_ONE}{_NONE}")
        elif self.conda or self.venv:
            parts.append(f"pythons=python\n{_TAIL}{_ONE}{_NONE}")
        else:
            own = f"python3.{sys.version_info[1]}"
            parts.append(f"pythons='{own} python3 python'\n{_TAIL}{_FIRST}{_NONE}")
        return "".join(parts).encode()


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{name}={value!r} must be a text without NUL characters.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name}={value!r} cannot be written as UTF-8.") from error


def _path(value: str) -> str:
    """Quoted for the shell, with a leading ``~/`` left to mean the home folder of the host."""
    return '"$HOME"' + shlex.quote(value[1:]) if value.startswith("~/") else shlex.quote(value)
