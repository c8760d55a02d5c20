"""What the wait status of a job's child says of the task that it was in, or never came to."""

import os
import signal

__all__ = ["died", "never_began"]

# What the exit statuses of the job script mean.
SCRIPT = {78: "ENV_MISMATCH", 81: "ENV_MISSING", 82: "ENV_MISSING", 83: "PRERUN", 84: "ENV_MISSING"}
NO_PYTHON = (0, 125, 126, 127)  # it cannot be started, or does not do what an interpreter does


def died(status: int, oom: bool) -> "tuple[str, str]":
    """Reason and sentence for a child that ended in the middle of a task."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and oom:
            return "OOM", "The task used more memory than it may, and was killed for it."
        name = signal.Signals(number).name if number < 32 else str(number)
        return "CRASHED", "The task's process was ended by {}.".format(name)
    text = "The task's process ended with exit status {} and left no result."
    return "CRASHED", text.format(os.WEXITSTATUS(status))


def never_began(status: int, said: str) -> "tuple[str, str]":
    """Reason and sentence for a child that came to no task; ``said`` is what its script wrote."""
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
    reason, what = SCRIPT.get(code, "LAUNCH_FAIL"), "The task's environment cannot be used."
    if code in NO_PYTHON:
        reason, what = "ENV_MISSING", "What is started for the task is no Python interpreter."
    elif code not in SCRIPT:
        what = "The task's process ended before the task could start."
    elif reason == "PRERUN":
        what = "The prerun failed before the task could start."
    return reason, "{}\n{}".format(what, said).strip()
