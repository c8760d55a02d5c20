"""What Slurm's programs answer, read without a guess: submissions, queue rows, accounting rows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from chelate.api import Deferred, Reason, Rejected, Unknown
from chelate.remote import Completed

__all__ = [
    "ACCOUNTING",
    "QUEUE",
    "Row",
    "parse_accounting",
    "parse_config",
    "parse_queue",
    "submitted_id",
    "why_not_submitted",
]

QUEUE = "%i|%F|%T|%N|%r|%j"
ACCOUNTING = "JobID,State,ExitCode,NodeList"
_ID = re.compile(r"(\d+)(?:;([A-Za-z0-9_.-]+))?")
_LATER = 30.0  # seconds until a limit on submitted jobs is tried again


@dataclass(frozen=True, slots=True)
class Row:
    """One job, or one element of an array, as the controller or the accounting sees it.

    ``id`` is ``"5"`` or ``"5_3"``, ``state`` Slurm's own word without additions, ``node`` where it
    runs or ran, ``reason`` why it waits or ended, ``exit`` the accounting's ``"code:signal"``.
    """

    id: str
    state: str
    node: str = ""
    reason: str = ""
    name: str = ""
    exit: str = ""


def parse_queue(text: str) -> dict[str, Row]:
    """Rows of ``squeue --array --format=QUEUE`` by id; lines that are none are passed over."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        parts = line.split("|", 5)
        if len(parts) == 6 and re.fullmatch(r"\d+(_\d+)?", parts[0]):
            number, _, state, node, reason, name = parts
            rows[number] = Row(number, state.split()[0] if state else "", node, reason, name)
    return rows


def parse_accounting(text: str) -> dict[str, Row]:
    """Rows of ``sacct -n -P -X -o ACCOUNTING`` by id; of a job that ran twice, the last run."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) >= 4 and re.fullmatch(r"\d+(_\d+)?", parts[0]) and parts[1]:
            number, state, code, node = parts[:4]
            rows[number] = Row(number, state.split()[0], node, state, "", code)
    return rows


def parse_config(text: str) -> dict[str, str]:
    """The pairs of ``scontrol show config``."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs if _}


def submitted_id(stdout: str) -> tuple[str, str] | None:
    """Job id and cluster of ``sbatch --parsable``; site wrappers may print lines around it."""
    for line in reversed(stdout.splitlines()):
        if match := _ID.fullmatch(line.strip()):
            return match[1], match[2] or ""
    return None


# Sentences that leave open whether the controller has taken the job.
_OPEN = re.compile(
    r"timed out|zero bytes|message (?:receive|send)|unexpected message|transport endpoint"
    r"|connection (?:reset|closed|aborted)|incomplete|truncated|communication|interrupted",
    re.IGNORECASE,
)
# The controller, or the way there, refused before it took anything.
_LATER_WORDS = re.compile(
    r"unable to contact slurm controller|connect(?:ion)? (?:failure|refused)|no route to host"
    r"|temporarily un|try again|resource temporarily|standby|in shutdown|munge|authentication"
    r"|credential|too many (?:jobs|requests)|maximum number of jobs|unable to accept"
    r"|address already in use|could not establish a configuration source",
    re.IGNORECASE,
)
_SUBMIT_LIMIT = re.compile(r"(?:QOS|Assoc)\w*Submit\w*", re.IGNORECASE)
_POLICY = re.compile(r"(?:QOS|Assoc)\w*(?:Limit|Minutes)\w*|accounting/QOS policy", re.IGNORECASE)
_IMPOSSIBLE = re.compile(
    r"not available|cannot be satisfied|can not be satisfied|more processors|node count"
    r"|exceeds|too (?:many|large)|memory specification|requested time limit",
    re.IGNORECASE,
)


def why_not_submitted(key: str, done: Completed) -> Rejected | Deferred | Unknown:
    """What an answer of sbatch without a job id means; the sentence carries Slurm's own words."""
    text = _own_words(done.stderr)
    said = text or f"exit status {done.exit_status}, and no words"
    if done.exit_status == 0 or done.exit_status < 0 or not text:
        return Unknown(key, f"The answer of sbatch cannot be read: {said}")
    if _SUBMIT_LIMIT.search(text):
        message = f"Slurm takes no more jobs of yours at present: {text}"
        return Deferred(key, message, _LATER)
    if _POLICY.search(text):
        return Rejected(
            key,
            Reason.QUOTA,
            f"A limit of your account or QOS forbids this job: {text} Ask for less, or use "
            "another account= or qos=.",
        )
    if _OPEN.search(text):
        return Unknown(key, f"The answer of Slurm's controller is missing: {text}")
    if _LATER_WORDS.search(text):
        return Deferred(key, f"Slurm does not take jobs at present: {text}")
    if _IMPOSSIBLE.search(text):
        return Rejected(
            key,
            Reason.UNSCHEDULABLE,
            f"Slurm refused the job, which no node can ever run: {text} Ask for less, or for "
            "another partition=.",
        )
    return Rejected(
        key, Reason.INVALID_SPEC, f"Slurm refused the job: {text} Correct the executor's options."
    )


def _own_words(stderr: bytes) -> str:
    """The error output as one sentence, without the programs' names in front of each line."""
    lines = []
    for line in stderr.decode(errors="replace").splitlines():
        words = re.sub(r"^\s*(?:sbatch|slurm\w*): (?:error: |fatal: )?", "", line).strip()
        if words and not words.startswith('Try "sbatch'):
            lines.append(words.rstrip("."))
    return f"{'; '.join(_unique(lines))[-2000:]}." if lines else ""


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))
