"""What is known of a job from its directory; taking claims; removing what is over."""

import os
import re
import time
from typing import Any

from . import files, packs, processes

__all__ = ["conclude", "forbid", "release", "sight", "sweep"]

NOBODY = "forbidden"
STALE = 3600.0  # seconds; half-written files older than this are nobody's any more


def sight(root: str, name: str) -> "dict[str, Any]":
    """The facts about one job, or the job that has a task, in the fields of ``Sight``."""
    claim = files.claim_of(files.job_folder(root, name))
    job, index = packs.carrier_by(root, name, claim)
    if index is not None:
        claim = files.claim_of(files.job_folder(root, job))
    item = _sight(root, job, claim)
    if index is not None:
        path = os.path.join(files.job_folder(root, job), "control", "cancel.{}".format(index))
        item["cancelled"] = item["cancelled"] or os.path.exists(path)
    return dict(item, id=name, job=job)


def _sight(root: str, name: str, claim: "dict[str, Any] | None") -> "dict[str, Any]":
    folder = files.job_folder(root, name)
    spec = files.fresh_spec(folder)
    item = {
        "known": spec is not None,
        "claimed": False,
        "forbidden": False,
        "alive": None,
        "done": files.is_over(folder),
        "cancelled": os.path.exists(os.path.join(folder, "control", "cancel")),
    }  # type: dict[str, Any]
    now = time.time()
    if spec is not None:
        item["key"] = spec["key"]
        item["tasks"] = [task["key"] for task in spec["tasks"]]
        item["age"] = now - os.path.getmtime(os.path.join(folder, "spec.json"))
    if claim is None:
        return item
    if claim["native"] == NOBODY:
        item["forbidden"] = True
        item["log"] = _end_of(os.path.join(folder, "supervisor.log"))
        return item
    item["claimed"] = True
    for field in ("native", "run", "host", "pid", "start_ticks", "boot_id"):
        item[field] = claim[field]
    item["started_at"] = claim["at"]
    if item["done"]:
        item["alive"] = False
        return item
    item["alive"] = processes.is_alive(claim)
    item["rebooted"] = claim["host"] == os.uname()[1] and claim["boot_id"] != processes.boot_id()
    beat = os.path.join(folder, "run-{}".format(claim["run"]), "heartbeat")
    try:
        item["heartbeat_age"] = max(0.0, now - os.path.getmtime(beat))
    except OSError:
        pass
    if item["alive"] is False:
        item["done"] = files.is_over(folder)  # it may have ended between the two looks
        item["log"] = _end_of(os.path.join(folder, "supervisor.log"))
    return item


def _end_of(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 4096))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""


def conclude(root: str, name: str, item: "dict[str, Any]") -> None:
    """Say in place of a dead supervisor that the job is over, if any task of it has a record."""
    folder = files.job_folder(root, name)
    key = files.key_of(root, name)
    spec = files.fresh_spec(folder)
    tasks = packs.own(root, name, spec) if spec is not None else []
    paths = [files.record_path(folder, item["run"], index) for index in tasks]
    if any(files.read_signed(path, key) is not None for path in paths):
        files.write_done(root, folder, key, item["run"], tasks)


def forbid(root: str, name: str) -> "dict[str, Any]":
    """Take the claim of a job for nobody, unless somebody has it."""
    folder = files.job_folder(root, name)
    os.makedirs(folder, exist_ok=True)
    if files.claim_of(folder) is None:
        claim = dict(processes.identity(), native=NOBODY, run=0, at=time.time())
        files.take_claim(folder, claim)
    return sight(root, name)


def release(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """Remove directories of jobs that are over, as the policy says."""
    for name in request["jobs"]:
        policy = request["cleanup"]
        if policy == "always" or (policy == "on_success" and _succeeded(root, name)):
            _remove(root, name)
    return {}


def _succeeded(root: str, name: str) -> bool:
    folder = files.job_folder(root, name)
    key = files.key_of(root, name)
    done = files.read_signed(os.path.join(folder, "done"), key)
    if done is None:
        return False
    records = (
        files.read_signed(files.record_path(folder, done["run"], index), key)
        for index in done["tasks"]
    )
    return all(record is not None and record["ok"] for record in records)


def _remove(root: str, name: str) -> bool:
    """Remove one job's directory unless it may still run. Only what has the name of a job."""
    folder = files.job_folder(root, name)
    if os.path.islink(folder) or not os.path.isdir(folder):
        return False
    claim = files.claim_of(folder)
    if claim is not None and claim.get("pack"):
        over = not os.path.isdir(files.job_folder(root, claim["pack"]))  # it goes with its pack
    else:
        over = files.is_over(folder) or (claim is not None and claim["native"] == NOBODY)
    if not over and (claim is None or claim.get("pack") or processes.is_alive(claim) is not False):
        return False
    spec = files.fresh_spec(folder)
    if spec is not None:
        try:
            os.unlink(files.marker(root, spec["store"], name))
        except FileNotFoundError:
            pass
    # What makes a job startable goes first: a claim must not go while there is a spec.
    try:
        os.unlink(os.path.join(folder, "spec.json"))
    except FileNotFoundError:
        pass
    if spec is not None:
        packs.let_go(root, name, spec)
    _clear(folder)
    return True


def _clear(folder: str) -> None:
    import shutil  # questions do without it, and come often

    shutil.rmtree(folder, ignore_errors=True)


def sweep(root: str, request: "dict[str, Any]") -> "dict[str, Any]":
    """Remove what nobody has used for ``keep`` seconds: jobs that are over, values, old tools;
    and after ``hold`` seconds values that nobody has fetched."""
    before = time.time() - request["keep"]
    longer = min(before, time.time() - request["hold"])
    held = _held(root, longer)
    removed = 0
    for name in os.listdir(os.path.join(root, "jobs")):
        folder = os.path.join(root, "jobs", name)
        if re.match(r"[0-9a-f]{40}\Z", name) and os.path.getmtime(folder) < before:
            forbid(root, name)  # what was never started will not be
            removed += _remove(root, name)
    for prefix in os.listdir(os.path.join(root, "cas")):
        for name in os.listdir(os.path.join(root, "cas", prefix)):
            path = os.path.join(root, "cas", prefix, name)
            half = name.endswith(".part") and os.path.getmtime(path) < time.time() - STALE
            limit = longer if name in held else before
            whole = re.match(r"[0-9a-f]{64}\Z", name) and os.path.getmtime(path) < limit
            if half or (whole and not _is_needed(root)):
                try:
                    os.unlink(path)
                    removed += 1
                except OSError:
                    pass
    for kind, pattern, kept in (
        ("tools", r"[0-9a-f]{64}(\.[0-9]+)?\Z", request["tools"]),
        ("code", r"code-[0-9a-f]{64}(\.[0-9]+)?\Z", ""),
    ):
        for name in os.listdir(os.path.join(root, kind)):
            path = os.path.join(root, kind, name)
            if re.match(pattern, name) and name != kept and os.path.getmtime(path) < before:
                _clear(path)
                removed += 1
    return {"removed": removed}


def _held(root: str, before: float) -> "set[str]":
    """Values that stay here for somebody. What was not used since ``before`` has no claim."""
    found = set()
    for name in os.listdir(os.path.join(root, "held")):
        digest = name.partition(".")[0]
        try:
            fresh = os.path.getmtime(files.blob_path(root, digest)) >= before
        except FileNotFoundError:
            fresh = False
        if fresh:
            found.add(digest)
            continue
        try:
            os.unlink(os.path.join(root, "held", name))
        except FileNotFoundError:
            pass  # fetched meanwhile, or another sweep was first
    return found


def _is_needed(root: str) -> bool:
    """Whether any job that is not over may still read old values."""
    for store in os.listdir(os.path.join(root, "stores")):
        if os.listdir(os.path.join(root, "stores", store)):
            return True
    return False
