"""Starting a supervisor so that nothing of the caller holds on to it."""

import os
import sys

from .supervisor import Supervisor

__all__ = ["detach", "guarded"]


def detach(tools: str, folder: str, gate: int) -> None:
    """Run the supervisor of a job in a process that nothing here holds on to.

    It claims the job at once and begins when the pipe ``gate`` is closed, so that the first of
    many jobs do not take the processors from the claims of the others.
    """
    if os.fork():
        os.wait()
        return
    # From here on nothing may return into the caller's code.
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDWR)
        log = os.open(
            os.path.join(folder, "supervisor.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(gate, 3)
        os.closerange(4, 1024)
        job = Supervisor(tools, folder, os.path.basename(folder), 0)
        job.gate = 3
        status = guarded(job)
    except BaseException:  # noqa: BLE001
        status = 70
    os._exit(status)


def guarded(supervisor: Supervisor) -> int:
    """Run to the end; what goes wrong in here is written down."""
    try:
        return supervisor.main()
    except BaseException as error:  # noqa: BLE001 - nobody else would tell
        import traceback

        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        try:
            supervisor.note(text)
        except OSError:
            sys.stderr.write(text)
        return 70
