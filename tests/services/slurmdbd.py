"""Accounting for a throw-away Slurm cluster: slurmdbd with a private MariaDB, both on loopback.

Used by ``tests.services.slurm.start(accounting=True)``. Packages: ``slurmdbd`` and
``mariadb-server``. The database is never a root process: root starts it as ``nobody``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.services.slurm import SlurmCluster

__all__ = ["begin", "missing", "settings"]

_PROGRAMS = ("slurmdbd", "sacctmgr", "sacct", "mariadbd", "mariadb-install-db")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def missing() -> list[str]:
    """Programs that this machine lacks."""
    return [name for name in _PROGRAMS if not shutil.which(name, path=_PATH)]


def settings(port: int, folder: Path) -> dict[str, str]:
    """Lines of ``slurm.conf`` for a slurmdbd at this port, for a cluster in this folder."""
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "127.0.0.1",
        "AccountingStoragePort": str(port),
        "AccountingStoragePass": f"{folder}/munge.socket",  # that is how Slurm wants it
    }


def begin(cluster: SlurmCluster, port: int, database_port: int) -> None:
    """Start both daemons, after munge and before the controller. Raises RuntimeError."""
    password = secrets.token_hex(16)
    _start_database(cluster, database_port, password)
    conf = cluster.folder / "slurmdbd.conf"
    values = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={cluster.folder}/munge.socket",
        "DbdHost": "localhost",
        "DbdAddr": "127.0.0.1",
        "DbdPort": str(port),
        "SlurmUser": _user(),
        "LogFile": f"{cluster.folder}/slurmdbd.log",
        "PidFile": f"{cluster.folder}/slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "127.0.0.1",
        "StoragePort": str(database_port),
        "StorageUser": "slurm",
        "StoragePass": password,
        "StorageLoc": "slurm",
    }
    conf.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
    conf.chmod(0o600)
    cluster.start_accounting()
    cluster.run("sacctmgr", "-i", "add", "cluster", "test")


def _user() -> str:
    done = subprocess.run(["id", "-un"], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def _start_database(cluster: SlurmCluster, port: int, password: str) -> None:
    folder = cluster.folder / "database"
    folder.mkdir()
    owner = _user()
    if os.geteuid() == 0:
        owner = "nobody"
        cluster.folder.chmod(0o711)
        shutil.chown(folder, owner)
    begins = folder / "begin.sql"
    begins.write_text(
        "CREATE DATABASE slurm;\n"
        f"CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        "GRANT ALL ON slurm.* TO slurm@'127.0.0.1';\n"
    )
    common = ["--no-defaults", f"--user={owner}", f"--datadir={folder}/data"]
    common.append(f"--tmpdir={folder}")
    install = shutil.which("mariadb-install-db", path=_PATH) or "mariadb-install-db"
    done = subprocess.run(
        [install, *common, "--skip-test-db", "--auth-root-authentication-method=normal"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise RuntimeError(f"mariadb-install-db failed: {done.stdout[-2000:]}")
    cluster.launch(
        "database", "mariadbd", *common, "--bind-address=127.0.0.1", f"--port={port}",
        f"--socket={folder}/socket", f"--pid-file={folder}/pid", f"--init-file={begins}",
        "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0",
        "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900",
    )  # fmt: skip
    cluster.wait(lambda: Path(f"{folder}/socket").exists(), "a start of the database", 60)
