"""Names of jobs, from which they can be found again, and the scripts that they run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from chelate.api import digest_bytes
from chelate.remote import Prepared, store_id

__all__ = ["array_name", "is_array", "job_name", "keys_of_script", "parse_name", "script_of"]

_NAME = re.compile(r"ct-([0-9a-f]{16})-(.+)")
_ARRAY = re.compile(r"array-[0-9a-f]{24}")
_ELEMENT = re.compile(r"^  (\d+)\) name=\S+ ;; # (\S+)$", re.MULTILINE)

_FIND = """\
folder=$root/jobs/$name
if ! [ -d "$folder" ]; then
  echo "chelate: $folder cannot be seen on $(hostname); root= must be on a shared file system." >&2
  exit 66
fi
"""
# A log file of an array is named by its index alone, so it is linked to where its job's is
# looked for; whatever is written to it later arrives there, too.
_LOG = """\
log=$root/logs/{name}-$SLURM_ARRAY_TASK_ID.log
ln -f -- "$log" "$folder/scheduler.log" && rm -f -- "$log"
"""


def job_name(store: str, key: str) -> str:
    """The name of the job that a host knows by this key: the same whoever asks."""
    return f"ct-{store_id(store)}-{key}"


def array_name(store: str, keys: Sequence[str]) -> str:
    """The name of an array of these jobs, in this order."""
    return f"ct-{store_id(store)}-array-{digest_bytes(' '.join(keys).encode())[:24]}"


def parse_name(name: str) -> tuple[str, str] | None:
    """Store id and key (or ``array-…``) of a job of ours; None for any other job."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], match[2])


def is_array(name: str) -> bool:
    """Whether the second part of a name is that of an array."""
    return _ARRAY.fullmatch(name) is not None


def script_of(jobs: Sequence[Prepared], root: str, name: str) -> bytes:
    """The script of a job, or of an array of several, whose elements run one job each.

    Args:
        jobs: prepared on the host, in the order of the array's indices.
        root: the host's root folder.
        name: the job's name.
    """
    lines = ["#!/bin/bash", f"root={shlex.quote(root)}"]
    if len(jobs) == 1:
        lines.append(f"name={jobs[0].id}")
        native, log = '"$SLURM_JOB_ID"', ""
    else:
        lines.append('case "$SLURM_ARRAY_TASK_ID" in')
        lines += [f"  {index}) name={job.id} ;; # {job.key}" for index, job in enumerate(jobs)]
        lines.append("esac")
        native, log = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"', _LOG.format(name=name)
    command = shlex.join(jobs[0].command[:-1])
    restarts = '"${SLURM_RESTART_COUNT:-0}"'
    return "\n".join(
        [*lines, f'{_FIND}{log}exec {command} "$folder" {native} {restarts}', ""]
    ).encode()


def keys_of_script(script: str) -> dict[str, str]:
    """Keys of jobs by array index, out of the script that Slurm keeps."""
    return dict(_ELEMENT.findall(script))
