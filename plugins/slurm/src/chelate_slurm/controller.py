"""Slurm's programs on one host, each called through the transport with a clean environment."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

from chelate.api import ConfigError, TransientError
from chelate.remote import Completed, Transport, UnreachableError
from chelate_slurm.answers import (
    ACCOUNTING,
    QUEUE,
    Row,
    parse_accounting,
    parse_config,
    parse_queue,
)

__all__ = ["Controller"]

# Variables of a surrounding job or of the user's habits change what the programs do (SLURM_*,
# SBATCH_*, SQUEUE_*), and sbatch would hand everything on to the job; so only these pass.
_CALL = """\
printf '%s\\n' "$1"
path=$2 conf=$3
shift 3
for name in HOME USER LOGNAME SHELL LANG TMPDIR LD_LIBRARY_PATH SLURM_CONF_SERVER; do
  eval "value=\\${$name-}"
  [ -z "$value" ] || set -- "$name=$value" "$@"
done
[ -n "$conf" ] || conf=${SLURM_CONF-}
[ -z "$conf" ] || set -- "SLURM_CONF=$conf" "$@"
exec env -i PATH="${path:+$path:}$PATH" "$@"
"""
_ID = re.compile(r"\d+(_\d+)?")
_UNANSWERED = re.compile(r"contact|timed out|connect|communicat|refused|authenticat", re.IGNORECASE)
_QUERY = 45.0  # seconds for a question, and for a submission below
_SUBMIT = 90.0


class Controller:
    """Calls of sbatch, squeue, sacct, scancel and scontrol.

    Every method raises what :class:`Transport` raises; a program that answers with an error
    raises TransientError with its own words, since a question may be put again.

    Args:
        transport: the way to the login node.
        programs: folder of the programs there; None: they are on the PATH.
        conf: value of ``SLURM_CONF`` there; None: as it is.
        clusters: value of ``--clusters`` for all of them; None: the host's own.
    """

    def __init__(
        self, transport: Transport, programs: str | None, conf: str | None, clusters: str | None
    ) -> None:
        self.transport = transport
        self._programs = programs or ""
        self._conf = conf or ""
        self._clusters = [] if clusters is None else [f"--clusters={clusters}"]

    async def call(
        self, program: str, *arguments: str, stdin: bytes = b"", timeout: float = _QUERY
    ) -> Completed:
        """Run one program to its end.

        Raises:
            ConfigError: the program does not exist there.
        """
        # What a login shell prints first is not the answer.
        marker = f"chelate-{os.urandom(8).hex()}"
        argv = ["sh", "-c", _CALL, "sh", marker, self._programs, self._conf, program, *arguments]
        try:
            done = await self.transport.run(argv, stdin, timeout=timeout)
        except UnreachableError:
            raise
        except TransientError as error:
            host = self.transport.host
            raise TransientError(f"{program} on {host} gave no answer: {error}") from error
        if done.exit_status in (126, 127):
            where = f"in {self._programs} or " if self._programs else ""
            raise ConfigError(
                f"{program} was not found {where}on the PATH of {self.transport.host}; name the "
                "folder of Slurm's programs with slurm_bin=, or the login node with ssh=."
            )
        _, _, stdout = done.stdout.partition(f"{marker}\n".encode())
        return Completed(done.exit_status, stdout, done.stderr)

    async def ask(self, program: str, *arguments: str) -> str:
        """The output of a program that answers. Raises TransientError when it does not."""
        done = await self.call(program, *arguments)
        if done.exit_status != 0:
            words = done.stderr[-1000:].decode(errors="replace").strip() or "no words"
            raise TransientError(f"{program} on {self.transport.host} failed: {words}")
        return done.stdout.decode(errors="replace")

    async def submit(self, arguments: Sequence[str], script: bytes) -> Completed:
        """sbatch with the script on its standard input."""
        return await self.call(
            "sbatch", "--parsable", *self._clusters, *arguments, stdin=script, timeout=_SUBMIT
        )

    async def queue(self, ids: Collection[str]) -> dict[str, Row]:
        """What the controller knows of these jobs (whole arrays count once), ended ones too."""
        bases = _bases(ids)
        if not bases:
            return {}
        # One unknown job alone is an error, among several it is just left out.
        wanted = ",".join([*bases, bases[0]])
        return await self._rows(f"--jobs={wanted}")

    async def mine(self) -> dict[str, Row]:
        """All jobs of this user that the controller knows, ended ones too."""
        return await self._rows("--me")

    async def _rows(self, which: str) -> dict[str, Row]:
        options = ["--noheader", "--array", "--states=all", f"--format={QUEUE}"]
        return parse_queue(await self.ask("squeue", *self._clusters, which, *options))

    async def accounting(self, ids: Collection[str]) -> dict[str, Row]:
        """What the accounting knows of these jobs."""
        bases = _bases(ids)
        if not bases:
            return {}
        options = ["-n", "-P", "-X", "-S", "now-30days", "-o", ACCOUNTING]
        wanted = ",".join(bases)
        return parse_accounting(await self.ask("sacct", *self._clusters, "-j", wanted, *options))

    async def script(self, number: str) -> str:
        """The script that a job was submitted with; empty when Slurm has it no more."""
        done = await self.call("scontrol", *self._clusters, "write", "batch_script", number, "-")
        return done.stdout.decode(errors="replace") if done.exit_status == 0 else ""

    async def config(self) -> dict[str, str]:
        """The cluster's configuration."""
        return parse_config(await self.ask("scontrol", *self._clusters, "show", "config"))

    async def cancel(self, ids: Sequence[str], *, gentle: bool) -> None:
        """One scancel for all of them; it succeeds for jobs that are over, so look afterwards.

        ``gentle`` sends SIGTERM to every process of running jobs; otherwise Slurm takes pending
        jobs out of the queue and ends running ones for good.
        """
        ids = [number for number in ids if _ID.fullmatch(number)]
        if not ids:
            return
        how = ["--full", "--signal=TERM"] if gentle else []
        done = await self.call("scancel", *self._clusters, *how, *ids)
        words = done.stderr.decode(errors="replace").strip()
        # Jobs that are over by now make it fail as well, often without a word.
        if done.exit_status != 0 and _UNANSWERED.search(words):
            raise TransientError(f"scancel on {self.transport.host} failed: {words[-1000:]}")


def _bases(ids: Collection[str]) -> list[str]:
    """Ids of jobs and of whole arrays; what is no id of Slurm's is left out."""
    return sorted({number.partition("_")[0] for number in ids if _ID.fullmatch(number)}, key=int)
