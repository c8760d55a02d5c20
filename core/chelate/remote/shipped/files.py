"""The root folder on a host: paths, files that are whole or absent, claims and signatures."""

import errno
import hashlib
import hmac
import json
import os
import re
import stat
import time
from typing import Any

__all__ = [
    "Refusal", "append_log", "blob_path", "claim_of", "ensure_root", "fresh_spec", "is_over",
    "job_folder", "key_of", "marker", "pin_path", "read_json", "read_signed", "record_path",
    "secret_of", "signed", "take_claim", "touch", "write_done", "write_whole",
]  # fmt: skip

_ID = re.compile(r"[0-9a-f]{40}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_STORE = re.compile(r"[0-9a-f]{16}\Z")
_CLAIM = re.compile(r"claim\.([0-9]{1,6})\Z")
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


class Refusal(Exception):
    """A request cannot be fulfilled; ``kind`` is one of CONFIG, SPEC, DISK_FULL, QUOTA."""

    def __init__(self, kind: str, message: str) -> None:
        Exception.__init__(self, message)
        self.kind = kind


def ensure_root(root: str) -> str:
    """The root as an absolute path, made if need be, and ours alone to write."""
    path = os.path.expanduser(root)
    if not os.path.isabs(path):
        raise Refusal("CONFIG", "the home folder for root={} is not known there.".format(root))
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        about = os.stat(path)
        for name in ("jobs", "cas", "stores", "code", "tools", "held"):
            os.makedirs(os.path.join(path, name), mode=0o700, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = "the root folder {} cannot be made or written: {}. Name another: root=..."
        raise Refusal("CONFIG", text.format(path, error.strerror))
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        text = (
            "the root folder {} belongs to or can be written by other users, who could replace "
            "code and results; name a private one: root=..., or take the rights away: chmod go-w."
        )
        raise Refusal("CONFIG", text.format(path))
    return os.path.realpath(path)


def secret_of(root: str) -> bytes:
    """The secret from which the keys of jobs are derived; made on first use, never readable
    by others."""
    path = os.path.join(root, "secret")
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            part = "{}.{}.part".format(path, os.getpid())
            write_whole(part, os.urandom(32))
            try:
                os.link(part, path)  # who comes second takes the first one's
            except OSError as error:
                if error.errno in NO_LINKS:
                    os.rename(part, path)
                    continue
            os.unlink(part)
            continue
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(file.fileno())
            data = file.read()
        if about.st_uid == os.geteuid() and not about.st_mode & 0o077 and len(data) == 32:
            return data
        break
    raise Refusal("CONFIG", "the file {} is damaged or open to others; remove it.".format(path))


def key_of(root: str, identifier: str) -> bytes:
    """The key that signs a job's records."""
    return hmac.new(secret_of(root), identifier.encode(), hashlib.sha256).digest()


def job_folder(root: str, identifier: str) -> str:
    """The directory of a job. Raises Refusal for what is no id."""
    if not _ID.match(identifier):
        raise Refusal("SPEC", "{!r} is not the name of a job.".format(identifier))
    return os.path.join(root, "jobs", identifier)


def blob_path(root: str, digest: str) -> str:
    """The file of a value. Raises Refusal for what is no digest."""
    if not _DIGEST.match(digest):
        raise Refusal("SPEC", "{!r} is not a digest.".format(digest))
    return os.path.join(root, "cas", digest[:2], digest)


def pin_path(root: str, digest: str, name: str) -> str:
    """The empty file that says: this job's result was not fetched."""
    if not _DIGEST.match(digest) or not _ID.match(name):
        raise Refusal("SPEC", "{!r} is not the result of a job.".format(digest))
    return os.path.join(root, "held", "{}.{}".format(digest, name))


def marker(root: str, store: str, identifier: str) -> str:
    """The empty file that says: this job of this store is not over."""
    if not _STORE.match(store) or not _ID.match(identifier):
        raise Refusal("SPEC", "{!r} is not the id of a store.".format(store))
    return os.path.join(root, "stores", store, identifier)


def record_path(folder: str, run: int, index: int) -> str:
    """The file that says how a task ended."""
    return os.path.join(folder, "run-{}".format(run), "record.{}".format(index))


def write_whole(path: str, data: bytes, durable: bool = True) -> None:
    """Write so that a reader sees all of it or nothing; if ``durable``, even after a power cut."""
    part = "{}.{}.part".format(path, os.getpid())
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.rename(part, path)
    except OSError:
        os.unlink(part)
        raise
    if not durable:
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # no such thing on this file system
            raise
    finally:
        os.close(folder)


def read_json(path: str) -> "dict[str, Any] | None":
    """A JSON object; None when there is none."""
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read().decode())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def touch(path: str) -> bool:
    """Mark a file as used now; False when it is not there."""
    try:
        os.utime(path, None)
    except FileNotFoundError:
        return False
    except OSError:
        return os.path.exists(path)
    return True


def signed(key: bytes, document: "dict[str, Any]") -> bytes:
    """A record with its signature in the first line."""
    body = json.dumps(document, sort_keys=True)
    mac = hmac.new(key, body.encode(), hashlib.sha256).hexdigest()
    return "{}\n{}".format(mac, body).encode()


def read_signed(path: str, key: bytes) -> "dict[str, Any] | None":
    """The record if it is there and carries this signature."""
    try:
        with open(path, "rb") as file:
            mac, _, body = file.read().partition(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    wanted = hmac.new(key, body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(mac, wanted.encode()):
        return None
    document = json.loads(body.decode())
    return document if isinstance(document, dict) else None


def fresh_spec(folder: str) -> "dict[str, Any] | None":
    """The spec of a job; None when it is absent, or was not written by us alone."""
    path = os.path.join(folder, "spec.json")
    try:
        about = os.lstat(path)
    except OSError:
        return None
    if about.st_uid != os.geteuid() or about.st_mode & 0o077 or not stat.S_ISREG(about.st_mode):
        return None
    return read_json(path)


def is_over(folder: str) -> bool:
    """Whether the last word has been said."""
    return os.path.exists(os.path.join(folder, "done"))


def write_done(root: str, folder: str, key: bytes, run: int, tasks: "list[int]") -> None:
    """The last word: only now the job is over. ``tasks`` are the indices of those it had."""
    name = os.path.basename(folder)
    document = {"job": name, "run": run, "tasks": tasks}
    write_whole(os.path.join(folder, "done"), signed(key, document))
    spec = fresh_spec(folder)
    if spec is not None:
        try:
            os.unlink(marker(root, spec["store"], name))
        except FileNotFoundError:
            pass


def claim_of(folder: str) -> "dict[str, Any] | None":
    """The claim that holds: of the latest run."""
    try:
        names = os.listdir(folder)  # a listing refreshes what NFS remembers of the folder
    except OSError:
        return None
    runs = [int(match.group(1)) for match in map(_CLAIM.match, names) if match]
    return read_json(os.path.join(folder, "claim.{}".format(max(runs)))) if runs else None


def take_claim(folder: str, claim: "dict[str, Any]", number: int = 0) -> bool:
    """Take a claim; False when somebody has it. The first is 0, whichever run it is of; a later
    run of a job that has one takes that of its own number.

    The file is linked into place and only the count of links decides: over NFS a repeated LINK
    can report that the winner's own name exists.
    """
    target = os.path.join(folder, "claim.{}".format(number))
    own = os.path.join(folder, "claiming.{}.{}".format(os.uname()[1], os.getpid()))
    data = json.dumps(claim).encode()
    write_whole(own, data)
    try:
        try:
            os.link(own, target)
        except OSError as error:
            if error.errno in NO_LINKS:
                return _take_by_creation(target, data)
        return os.stat(own).st_nlink == 2
    finally:
        os.unlink(own)


def _take_by_creation(target: str, data: bytes) -> bool:
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return True


def append_log(folder: str, text: str) -> None:
    """Add a line to the supervisor's log."""
    with open(os.path.join(folder, "supervisor.log"), "a", encoding="utf-8") as file:
        file.write("{} {}\n".format(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text))
