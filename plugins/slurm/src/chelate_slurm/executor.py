"""The Slurm executor: tasks become jobs, equal tasks an array, and the controller is asked little.

One squeue per poll answers for all jobs; sacct is asked only when jobs have vanished from the
queue. A record left by a job's supervisor decides over whatever Slurm says of it.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

from chelate.api import (
    Capabilities,
    ConfigError,
    Executor,
    Job,
    JobHandle,
    Limits,
    Outcome,
    PollReport,
    Resources,
    RunOutcome,
)
from chelate.remote import (
    Environment,
    JobHost,
    LocalTransport,
    Prepared,
    Spool,
    Transport,
    key_on_host,
)
from chelate_slurm.controller import Controller
from chelate_slurm.lookup import Lookup
from chelate_slurm.naming import array_name, job_name, script_of
from chelate_slurm.options import NAMED, SbatchOptions
from chelate_slurm.submitting import Submitter
from chelate_slurm.watching import Watcher

__all__ = ["SlurmExecutor"]

_BEHAVIOUR = {
    "max_jobs": 8000,
    "poll_min": 10.0,
    "poll_max": 120.0,
    "find_grace": 30.0,
    "absent_grace": 300.0,
    "cancel_grace": 30.0,
    "gather": 1.0,
    "result_grace": 30.0,
    "unschedulable_after": 60.0,
}


class SlurmExecutor(Executor):
    """Runs tasks as jobs of a Slurm cluster.

    Options of sbatch have their own names, with ``_`` for ``-``; ``Resources`` of a task go before
    them. The table in the documentation lists all of them.

    Args:
        partition, account, qos, time, nodes, ntasks, ntasks_per_node, cpus_per_task, mem,
        mem_per_cpu, mem_per_gpu, gres, gpus, gpus_per_node, gpus_per_task, constraint, exclude,
        nodelist, reservation, exclusive, licenses, nice, priority, begin, hint, tmp, mail_type,
        mail_user, clusters: as for sbatch; ``time`` in minutes or as a text.
        options: further long options of sbatch by name.
        array: whether equal tasks become one array.
        array_throttle: how many elements of an array run at once.
        pack: how many equal tasks share one job, one after the other.
        requeue: whether Slurm may run a job again by itself.
        signal_lead: seconds before the time limit at which a task is stopped, so that it can be
            said why; default: 60 where the limit is 10 minutes or more.
        ssh: login node, a host or the options of ``chelate_ssh.Target``; default: this machine.
        slurm_bin: folder of Slurm's programs there.
        slurm_conf: value of ``SLURM_CONF`` there.
        root: folder for jobs and values on a file system that login node and nodes share.
        workdir: folder that tasks start in; default: a fresh one per job.
        python, conda, venv, modules, env_vars, prerun, postrun: what tasks find around them.
        cleanup: which job folders go away: ``"on_success"``, ``"always"`` or ``"never"``.
        results: where large results go that only later tasks of this executor take: ``"host"``
            leaves them below ``root`` until somebody needs them elsewhere, ``"store"`` brings
            them home when the task ends, and nothing depends on the cluster after that.
        max_jobs: the most jobs at one time.
        poll_min, poll_max: seconds between two looks.
        gather: seconds for which ready tasks wait for others to go with them.
        find_grace: seconds for which a lost submission may stay invisible.
        absent_grace: seconds after which a job that nobody knows counts as lost.
        cancel_grace: seconds after which a cancel is repeated with force.
        result_grace: seconds for which the result of an ended job may stay invisible.
        unschedulable_after: seconds for which a job may wait for what can never be.

    Raises:
        ConfigError: an option is not allowed, or excludes another.
    """

    name: ClassVar[str] = "slurm"
    capabilities = Capabilities(
        find=True,
        idempotent=True,
        logs=True,
        packing=True,
        cancel_task=True,
        claims=True,
        listing=True,
    )

    def __init__(
        self,
        *,
        partition: str | list[str] | None = None,
        account: str | None = None,
        qos: str | None = None,
        time: str | int | float | None = None,
        nodes: int | str | None = None,
        ntasks: int | None = None,
        ntasks_per_node: int | None = None,
        cpus_per_task: int | None = None,
        mem: str | int | None = None,
        mem_per_cpu: str | int | None = None,
        mem_per_gpu: str | int | None = None,
        gres: str | list[str] | None = None,
        gpus: str | int | None = None,
        gpus_per_node: str | int | None = None,
        gpus_per_task: str | int | None = None,
        constraint: str | None = None,
        exclude: str | list[str] | None = None,
        nodelist: str | list[str] | None = None,
        reservation: str | None = None,
        exclusive: bool | str | None = None,
        licenses: str | list[str] | None = None,
        nice: int | None = None,
        priority: str | int | None = None,
        begin: str | None = None,
        hint: str | None = None,
        tmp: str | int | None = None,
        mail_type: str | list[str] | None = None,
        mail_user: str | None = None,
        clusters: str | None = None,
        options: dict[str, Any] | None = None,
        array: bool = True,
        array_throttle: int | None = None,
        pack: int = 1,
        requeue: bool = False,
        signal_lead: int | None = None,
        ssh: str | dict[str, Any] | None = None,
        slurm_bin: str | None = None,
        slurm_conf: str | None = None,
        root: str = "~/.chelate",
        workdir: str | None = None,
        python: str | None = None,
        conda: str | None = None,
        venv: str | None = None,
        modules: list[str] | None = None,
        env_vars: dict[str, str] | None = None,
        prerun: str | list[str] | None = None,
        postrun: str | list[str] | None = None,
        cleanup: str = "on_success",
        results: str = "host",
        max_jobs: int = 8000,
        poll_min: float = 10.0,
        poll_max: float = 120.0,
        gather: float = 1.0,
        find_grace: float = 30.0,
        absent_grace: float = 300.0,
        cancel_grace: float = 30.0,
        result_grace: float = 30.0,
        unschedulable_after: float = 60.0,
    ) -> None:
        given = locals()
        self._sbatch = SbatchOptions(
            {name: given[name] for name in NAMED},
            {} if options is None else options,
            requeue=requeue,
            signal_lead=signal_lead,
        )
        for option in _BEHAVIOUR:
            _check_number(option, given[option], whole=option == "max_jobs")
        _check_number("pack", pack, whole=True)
        if array_throttle is not None:
            _check_number("array_throttle", array_throttle, whole=True)
        for option in ("slurm_bin", "slurm_conf"):
            _check_path(option, given[option])
        if isinstance(root, str) and ("%" in root or "\\" in root):
            raise ConfigError(
                f"root={root!r}: Slurm reads % and \\ in the names of log files as something "
                "else; choose a folder without them."
            )
        self._environment = Environment.of(
            {
                name: given[name]
                for name in ("python", "conda", "venv", "modules", "env_vars", "prerun", "postrun")
                if given[name] is not None
            }
        )
        self._transport = LocalTransport() if ssh is None else _ssh_transport(ssh)
        self._host = JobHost(
            self._transport,
            root=root,
            environment=self._environment,
            workdir=workdir,
            cleanup=cleanup,
            results=results,
        )
        self.capabilities = replace(self.capabilities, holds=self._host.holds)
        self._controller = Controller(self._transport, slurm_bin, slurm_conf, clusters)
        self._lookup = Lookup(self.name, self._host, self._controller)
        self._submitter = Submitter(
            self._host, self._controller, self._sbatch, array=array, throttle=array_throttle
        )
        self._watcher = Watcher(
            self._host,
            self._controller,
            result_grace=result_grace,
            hopeless_after=unschedulable_after,
        )
        self._root = root
        self._spool = Spool()
        self.limits = Limits(
            max_in_flight=max_jobs * pack,
            run_batch=1000,
            poll_batch=5000,
            poll_min=poll_min,
            poll_max=max(poll_min, poll_max),
            call_timeout=180.0,
            absent_grace=absent_grace,
            find_grace=find_grace,
            cancel_grace=cancel_grace,
            gather=gather,
            pack=pack,
        )

    async def open(self) -> None:
        """Reach the login node, its Slurm and its Python.

        Raises:
            ConfigError: Slurm's programs are not there.
            AuthenticationError, TransientError: the login node or the controller cannot be used.
        """
        await self._transport.open()
        config = await self._controller.config()
        self._submitter.learn(config)
        self._watcher.learn(config)

    async def close(self) -> None:
        """Let go of the connection and of fetched files; jobs go on."""
        await self._transport.close()
        self._spool.close()

    # -- starting and finding -----------------------------------------------------------------

    async def run(self, jobs: Sequence[Job]) -> AsyncIterator[RunOutcome]:
        """Bring the jobs to the shared file system, then submit equal ones as arrays."""
        async with aclosing(self._submitter.run(jobs)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def find(self, keys: Sequence[str]) -> Mapping[str, Sequence[JobHandle]]:
        """Jobs by their names in the queue, and by the claims they have made.

        Raises TransientError when the controller does not answer: then nothing is known.
        """
        return await self._lookup.find(keys)

    async def forbid(self, keys: Sequence[str]) -> Mapping[str, JobHandle]:
        """Take the claims of jobs, so that a copy still in the queue starts nothing."""
        return await self._lookup.forbid(keys)

    async def list_jobs(self, store: str) -> Sequence[JobHandle]:
        """Jobs of this store that wait or run."""
        return await self._lookup.list_jobs(store)

    # -- watching and ending ------------------------------------------------------------------

    async def poll(self, handles: Sequence[JobHandle]) -> PollReport:
        """One squeue for all jobs, one look at their folders, and sacct for what has vanished."""
        return await self._watcher.poll(handles)

    async def cancel(self, handles: Sequence[JobHandle], *, force: bool) -> None:
        """At most two scancel calls for any number of jobs; elements of arrays go singly."""
        await self._watcher.cancel(handles, force=force)

    async def cancel_tasks(self, handle: JobHandle, keys: Sequence[str], *, force: bool) -> None:
        """Stop some tasks of a pack; the others go on."""
        await self._host.stop_tasks(key_on_host(handle), keys, force=force)

    async def collect(self, handles: Sequence[JobHandle]) -> AsyncIterator[Outcome]:
        """Outcomes of ended jobs, in one stream."""
        async with aclosing(self._watcher.collect(handles, self._spool.folder())) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def fetch_held(self, handle: JobHandle, digest: str, target: Path) -> None:
        """A result that stayed below ``root``."""
        await self._host.fetch(key_on_host(handle), digest, target)

    async def missing_held(self, handle: JobHandle, digests: Sequence[str]) -> set[str]:
        """Which results are no longer below ``root``."""
        return await self._host.lacking(digests)

    async def logs(self, handle: JobHandle, stream: str, offset: int, limit: int) -> bytes:
        """Output of the task so far; of a negative offset, counted from the end."""
        return await self._host.logs(key_on_host(handle), stream, offset, limit)

    async def release(self, handles: Sequence[JobHandle]) -> None:
        """Remove the folders of jobs as ``cleanup`` says."""
        self._watcher.forget(handles)
        await self._host.release([key_on_host(handle) for handle in handles])

    # -- showing ------------------------------------------------------------------------------

    def script(self, resources: Resources | None = None, tasks: int = 1) -> str:
        """What would be submitted for so many equal tasks, as a shell command; nothing is sent.

        Raises:
            ConfigError: the resources do not go with the options.
        """
        root = self._root
        prepared = [
            Prepared(f"KEY-{index}", f"ID-{index}", f"{root}/jobs/ID-{index}", ("PYTHON", "AGENT"))
            for index in range(tasks)
        ]
        keys = [job.key for job in prepared]
        shown = [
            Prepared(job.key, job.id, job.folder, (*job.command, "supervise", job.folder))
            for job in prepared
        ]
        name = job_name("", keys[0]) if tasks == 1 else array_name("", keys)
        argv = self._submitter.argv(shown, name, root, resources or Resources())
        text = script_of(shown, root, name).decode()
        return f"sbatch {shlex.join(['--parsable', *argv])} <<'SCRIPT'\n{text}SCRIPT\n"


def _check_number(name: str, value: Any, *, whole: bool) -> None:
    number = isinstance(value, int) or (isinstance(value, float) and not whole)
    if isinstance(value, bool) or not number or not (1 if whole else 0) <= value < 1e9:
        wanted = "a whole number of at least 1" if whole else "seconds, 0 or more"
        raise ConfigError(f"{name}={value!r} of the Slurm executor must be {wanted}.")


def _check_path(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise ConfigError(f"{name}={value!r} of the Slurm executor must be an absolute path.")


def _ssh_transport(ssh: str | dict[str, Any]) -> Transport:
    options = {"host": ssh} if isinstance(ssh, str) else ssh
    if not isinstance(options, dict) or "host" not in options:
        raise ConfigError(
            "ssh= of the Slurm executor must be a host, or a dict of options with 'host'."
        )
    try:
        from chelate_ssh import SSHTransport, Target
    except ImportError as error:
        raise ConfigError(
            f"ssh= of the Slurm executor needs the SSH plugin ({error}). "
            "Install it: pip install chelate-ssh"
        ) from error
    known = [item.name for item in fields(Target)]
    if unknown := [name for name in options if name not in known]:
        raise ConfigError(
            f"ssh= of the Slurm executor: {', '.join(map(repr, unknown))} is no option; there are "
            f"{', '.join(known)}. Log in with a key or an agent."
        )
    return SSHTransport(Target(**options))
