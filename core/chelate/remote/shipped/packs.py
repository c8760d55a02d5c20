"""Which job holds the claim of a task that may travel in a pack.

A pack's supervisor claims each of its tasks in a directory named by the task's key, as if the task
were a job of its own; the claim names the pack. So a task that is sent again alone, or in other
company, runs once, and can be looked up and forbidden by its own key.
"""

import os
import shutil
from typing import Any

from . import files

__all__ = ["carrier", "carrier_by", "let_go", "own", "take"]


def carrier(root: str, name: str) -> "tuple[str, int | None]":
    """The job that has the task, and which of its tasks that is; a job has itself, whole."""
    return carrier_by(root, name, files.claim_of(files.job_folder(root, name)))


def carrier_by(root: str, name: str, claim: "dict[str, Any] | None") -> "tuple[str, int | None]":
    """The same, by the claim of the task or job."""
    pack = claim.get("pack") if claim is not None else None
    spec = files.fresh_spec(files.job_folder(root, pack)) if pack else None
    for index, task in enumerate(spec["tasks"] if spec is not None else ()):
        if task["id"] == name:
            return str(pack), index
    return name, None


def take(root: str, job: str, spec: "dict[str, Any]", claim: "dict[str, Any]") -> "list[int]":
    """Claim every task of a job that nobody has; the indices of those that are the job's."""
    for task in spec["tasks"] if len(spec["tasks"]) > 1 else ():
        folder = files.job_folder(root, task["id"])
        os.makedirs(folder, exist_ok=True)
        if files.claim_of(folder) is None:
            files.take_claim(folder, dict(claim, pack=job))
    return own(root, job, spec)


def own(root: str, job: str, spec: "dict[str, Any]") -> "list[int]":
    """The indices of the tasks that a job has, once it has claimed them."""
    if len(spec["tasks"]) == 1:
        return [0]
    claims = [files.claim_of(files.job_folder(root, task["id"])) for task in spec["tasks"]]
    return [i for i, held in enumerate(claims) if held is not None and held.get("pack") == job]


def let_go(root: str, job: str, spec: "dict[str, Any]") -> None:
    """Remove the claims of a job whose spec is gone, so that it cannot start any more."""
    for index in own(root, job, spec) if len(spec["tasks"]) > 1 else ():
        folder = files.job_folder(root, spec["tasks"][index]["id"])
        shutil.rmtree(folder, ignore_errors=True)
