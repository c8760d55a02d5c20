"""What the executor makes of Slurm's answers, with a scripted controller and host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chelate.api import Deferred, JobHandle, JobState, Outcome, Reason, Rejected, TransientError
from chelate.remote import Completed, Sight, job_id, job_key, key_on_host
from chelate_slurm.answers import (
    Row,
    parse_accounting,
    parse_config,
    parse_queue,
    submitted_id,
    why_not_submitted,
)
from chelate_slurm.lookup import Lookup
from chelate_slurm.naming import job_name
from chelate_slurm.verdicts import ACTIVE, ENDED, verdict
from chelate_slurm.watching import Watcher


class FakeController:
    """Answers from a table of rows; ``broken`` programs do not answer."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.accounts: dict[str, Row] = {}
        self.broken: set[str] = set()
        self.asked: list[str] = []
        self.cancelled: list[tuple[bool, list[str]]] = []

    def _ask(self, program: str) -> None:
        self.asked.append(program)
        if program in self.broken:
            raise TransientError(f"{program} does not answer.")

    async def queue(self, ids: Any) -> dict[str, Row]:
        self._ask("squeue")
        return dict(self.rows)

    async def mine(self) -> dict[str, Row]:
        return await self.queue(())

    async def accounting(self, ids: Any) -> dict[str, Row]:
        self._ask("sacct")
        return dict(self.accounts)

    async def cancel(self, ids: Sequence[str], *, gentle: bool) -> None:
        self._ask("scancel")
        self.cancelled.append((gentle, list(ids)))


class FakeHost:
    """Shows what it is told to."""

    def __init__(self) -> None:
        self.sights: dict[str, Sight] = {}
        self.log = b""
        self.stopped: list[str] = []

    async def look(self, keys: Sequence[str]) -> dict[str, Sight]:
        return {key: self.sights.get(key) or Sight(key, known=True) for key in keys}

    async def stop(self, keys: Sequence[str], *, force: bool) -> None:
        self.stopped += keys

    async def logs(self, key: str, stream: str, offset: int, limit: int) -> bytes:
        return self.log if stream == "scheduler" else b""

    async def collect(
        self, handles: Sequence[JobHandle], spool: Path, ended: dict[str, str]
    ) -> AsyncIterator[Outcome]:
        for handle in handles:
            if handle.key == "pack":
                yield Outcome(handle.tasks[0], True, payload=b"")
                yield Outcome(handle.tasks[1], False, reason=Reason.NODE_FAIL, error="died")


class Scene:
    def __init__(self, accounting: bool = False, grace: float = 0.0) -> None:
        self.controller, self.host = FakeController(), FakeHost()
        self.watcher = Watcher(
            self.host,
            self.controller,
            result_grace=grace,
            hopeless_after=0.0,  # type: ignore[arg-type]
        )
        kind = "accounting_storage/slurmdbd" if accounting else "accounting_storage/none"
        self.watcher.learn({"AccountingStorageType": kind})
        self.handle = JobHandle("k", "slurm", "5", tasks=("k",))

    def row(self, state: str, reason: str = "None", number: str = "5") -> None:
        self.controller.rows[number] = Row(number, state, "n1", reason)

    def sight(self, **fields: Any) -> None:
        self.host.sights["k"] = Sight("k", known=True, **fields)

    def poll(self) -> Any:
        return asyncio.run(self.watcher.poll([self.handle]))

    def seen(self) -> Any:
        return self.poll().seen.get("k")


REASONS = {
    "TIMEOUT": Reason.TIMEOUT,
    "DEADLINE": Reason.TIMEOUT,
    "OUT_OF_MEMORY": Reason.OOM,
    "PREEMPTED": Reason.PREEMPTED,
    "NODE_FAIL": Reason.NODE_FAIL,
    "BOOT_FAIL": Reason.NODE_FAIL,
    "LAUNCH_FAILED": Reason.LAUNCH_FAIL,
    "RECONFIG_FAIL": Reason.LAUNCH_FAIL,
    "CANCELLED": Reason.CANCELLED_BY_BACKEND,
    "COMPLETED": Reason.RESULT_MISSING,
    "FAILED": Reason.CRASHED,
}


@pytest.mark.parametrize(("state", "reason"), sorted(REASONS.items()))
def test_a_job_that_left_no_record_has_the_reason_of_its_state(state, reason):
    scene = Scene()
    scene.sight(claimed=True, native="5")
    scene.row(state)
    scene.host.log = b"the last words\n"
    seen = scene.seen()
    assert (seen.state, seen.reason) == (JobState.ENDED, reason)
    assert "job 5" in seen.message
    assert "node n1" in seen.message
    assert seen.message.endswith("the last words")


def test_all_final_states_have_a_reason():
    assert set(REASONS) == ENDED
    assert not ENDED & ACTIVE


@pytest.mark.parametrize("state", [*sorted(ENDED), "RUNNING", "SOMETHING_NEW"])
def test_a_record_decides_over_every_state(state):
    scene = Scene()
    scene.sight(claimed=True, done=True, native="5")
    scene.row(state)
    assert scene.seen().state is JobState.ENDED


@pytest.mark.parametrize("state", ["UPDATE_DB", "REVOKED", "SOMETHING_NEW", "NF", ""])
@pytest.mark.parametrize("claimed", [True, False])
def test_an_unknown_state_ends_nothing(state, claimed):
    scene = Scene()
    scene.sight(claimed=claimed, native="5" if claimed else "")
    scene.row(state)
    for _ in range(3):
        assert scene.seen().state is (JobState.RUNNING if claimed else JobState.QUEUED)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (b"slurmstepd: error: Detected 1 oom-kill event(s) in StepId=5.batch.", Reason.OOM),
        (
            b"slurmstepd: error: Step 5.batch exceeded memory limit (9 > 1), being killed",
            Reason.OOM,
        ),
        (b"/bin/bash: line 9: exec: /opt/py/bin/python: not found", Reason.ENV_MISSING),
        (b"chelate: /home/me/x cannot be seen on n1; root= must be on ...", Reason.ENV_MISSING),
        (b"", Reason.LAUNCH_FAIL),
    ],
)
def test_the_log_tells_more_than_failed(log, reason):
    scene = Scene()
    scene.row("FAILED")
    scene.host.log = log
    assert scene.seen().reason is reason


def test_a_cancel_of_ours_is_the_users():
    row, log = Row("5", "CANCELLED"), "*** JOB 5 ON n1 CANCELLED AT x DUE TO TIME LIMIT ***"
    assert verdict(row, Sight("k"), "", asked=True).reason is Reason.CANCELLED_BY_USER
    sight = Sight("k", cancelled=True)
    assert verdict(row, sight, "", asked=False).reason is Reason.CANCELLED_BY_USER
    assert verdict(row, Sight("k"), log, asked=False).reason is Reason.TIMEOUT


def test_a_result_on_its_way_is_waited_for():
    scene = Scene(grace=60.0)
    scene.sight(claimed=True, native="5")
    scene.row("COMPLETED")
    assert scene.seen().state is JobState.RUNNING
    scene.sight(claimed=True, done=True, native="5")
    assert scene.seen().state is JobState.ENDED


def test_a_failed_query_changes_nothing():
    scene = Scene()
    scene.row("RUNNING")
    scene.controller.broken = {"squeue"}
    report = scene.poll()
    assert not report.covered
    assert not report.seen
    assert report.errors == ("squeue does not answer.",)
    scene.sight(claimed=True, done=True)
    assert scene.seen().state is JobState.ENDED


def test_accounting_is_asked_once_and_only_for_what_has_vanished():
    scene = Scene(accounting=True)
    scene.row("RUNNING")
    scene.poll()
    assert scene.controller.asked == ["squeue"]
    del scene.controller.rows["5"]
    scene.controller.accounts["5"] = Row("5", "OUT_OF_MEMORY", "n1")
    assert scene.seen().reason is Reason.OOM
    assert scene.controller.asked == ["squeue", "squeue", "sacct"]


def test_a_pending_element_that_was_cancelled_leaves_no_trace_in_the_queue():
    scene = Scene(accounting=True)
    scene.sight(cancelled=True, forbidden=True)
    scene.row("PENDING")
    assert scene.seen().state is JobState.QUEUED
    del scene.controller.rows["5"]
    seen = scene.seen()
    assert (seen.state, seen.reason) == (JobState.KILLED, Reason.CANCELLED_BY_USER)
    assert "sacct" not in scene.controller.asked
    scene.controller.broken = {"squeue"}
    assert not scene.poll().seen  # an answer that does not come shows nothing


def test_accounting_that_is_down_leaves_the_records_to_decide():
    scene = Scene(accounting=True)
    scene.controller.broken = {"sacct"}
    report = scene.poll()
    assert report.covered == {"k"}
    assert not report.seen
    assert "sacct" in report.errors[0]
    scene.sight(claimed=True, done=True)
    assert scene.seen().state is JobState.ENDED


def test_without_accounting_a_forgotten_job_lives_while_its_heart_beats():
    scene = Scene()
    scene.sight(claimed=True, native="5", heartbeat_age=5.0)
    assert scene.seen().state is JobState.RUNNING
    scene.sight(claimed=True, native="5", heartbeat_age=500.0)
    report = scene.poll()
    assert report.covered == {"k"}
    assert not report.seen
    assert scene.controller.asked.count("sacct") == 0


def test_a_requeued_job_has_begun_again():
    scene = Scene()
    scene.sight(claimed=True, native="5", run=0)
    scene.row("RUNNING")
    assert (scene.seen().state, scene.seen().run) == (JobState.RUNNING, 0)
    scene.row("PENDING", "BeginTime")
    assert (scene.seen().state, scene.seen().run) == (JobState.QUEUED, 1)
    scene.sight(claimed=True, native="5", run=1)
    scene.row("RUNNING")
    assert (scene.seen().state, scene.seen().run) == (JobState.RUNNING, 1)


def test_the_copy_that_holds_the_claim_is_the_job():
    scene = Scene()
    scene.sight(claimed=True, native="7")
    scene.row("FAILED")
    scene.row("RUNNING", number="7")
    assert scene.seen() is None  # nothing said: asked for the other one from now on
    assert scene.seen().state is JobState.RUNNING
    asyncio.run(scene.watcher.cancel([scene.handle], force=True))
    assert scene.controller.cancelled == [(False, ["7", "5"])]


def test_what_can_never_start_is_taken_out_of_the_queue():
    scene = Scene()
    scene.row("PENDING", "PartitionTimeLimit")
    assert scene.seen().state is JobState.QUEUED
    assert scene.controller.cancelled == [(False, ["5"])]
    scene.row("CANCELLED", "PartitionTimeLimit")
    seen = scene.seen()
    assert (seen.state, seen.reason) == (JobState.KILLED, Reason.UNSCHEDULABLE)
    assert "more time than the partition allows" in seen.message


MAY_START = (
    "Priority",
    "Resources",
    "ReqNodeNotAvail, UnavailableNodes:n2",
    "PartitionDown",
    "JobHeldUser",
    "QOSMaxJobsPerUserLimit",
)


@pytest.mark.parametrize("why", MAY_START)
def test_what_may_still_start_waits(why):
    scene = Scene()
    scene.row("PENDING", why)
    seen = scene.seen()
    assert (seen.state, seen.message) == (JobState.QUEUED, why)
    assert not scene.controller.cancelled


def test_a_cancel_is_asked_for_once():
    scene = Scene()
    scene.sight(claimed=True, native="5")
    scene.row("RUNNING")
    scene.poll()
    for force in (False, False, True, True):
        asyncio.run(scene.watcher.cancel([scene.handle], force=force))
    assert scene.controller.cancelled == [(True, ["5"]), (False, ["5"])]
    assert scene.host.stopped == ["k", "k"]


def test_a_cancel_that_did_not_arrive_is_asked_for_again():
    scene = Scene()
    scene.row("PENDING")
    scene.controller.broken = {"scancel"}
    with pytest.raises(TransientError):
        asyncio.run(scene.watcher.cancel([scene.handle], force=False))
    scene.controller.broken = set()
    asyncio.run(scene.watcher.cancel([scene.handle], force=False))
    assert scene.controller.cancelled == [(False, ["5"])]


def test_tasks_of_a_pack_that_ended_keep_their_results(tmp_path):
    scene = Scene()
    scene.handle = JobHandle("pack", "slurm", "5", tasks=("pack", "second"))
    name = key_on_host(scene.handle)
    scene.host.sights[name] = Sight(
        name, known=True, claimed=True, native="5", tasks=scene.handle.tasks
    )
    scene.row("PREEMPTED")
    assert scene.poll().seen["pack"].state is JobState.ENDED

    async def collected() -> list[Outcome]:
        return [one async for one in scene.watcher.collect([scene.handle], tmp_path)]

    first, second = asyncio.run(collected())
    assert first.ok
    assert second.reason is Reason.PREEMPTED


def test_the_pack_that_has_a_task_is_not_cancelled_with_it(tmp_path):
    scene = Scene()
    scene.row("PENDING")
    scene.row("RUNNING", number="6")
    scene.sight(claimed=True, native="6", tasks=("k", "other"), job=job_id("pack:1"))
    scene.poll()
    assert scene.seen().state is JobState.RUNNING
    asyncio.run(scene.watcher.cancel([scene.handle], force=True))
    assert scene.controller.cancelled == [(False, ["5"])]
    assert scene.host.stopped == ["k"]
    scene.row("NODE_FAIL", number="6")
    assert scene.seen().state is JobState.ENDED  # collect knows whether the task was over by then


def test_a_pack_in_the_queue_is_found_by_its_tasks():
    scene = Scene()
    tasks = ("d:1:1:r", "d:2:1:r", "d:3:1:r")
    pack = job_key(tasks)
    scene.controller.rows["5"] = Row("5", "PENDING", name=job_name("store", pack))
    scene.controller.rows["6"] = Row("6", "PENDING", name=job_name("store", tasks[1]))
    waiting = Sight(pack, known=True, tasks=tasks, job=job_id(pack))
    scene.host.sights[pack] = waiting
    lookup = Lookup("slurm", scene.host, scene.controller)  # type: ignore[arg-type]
    found = asyncio.run(lookup.find(tasks))
    assert {key: [one.native_id for one in found[key]] for key in tasks} == {
        tasks[0]: ["5"], tasks[1]: ["5", "6"], tasks[2]: ["5"],
    }  # fmt: skip
    assert found[tasks[2]][0].tasks == tasks
    listed = asyncio.run(lookup.list_jobs("store"))
    assert {handle.native_id: handle.tasks for handle in listed} == {"5": tasks, "6": (tasks[1],)}
    # The pack starts; the second task has started on its own, the third was forbidden to start.
    scene.host.sights[pack] = replace(waiting, claimed=True, native="5")
    for key, native, job in ((tasks[0], "5", pack), (tasks[1], "6", tasks[1])):
        scene.host.sights[key] = Sight(
            key, known=True, claimed=True, native=native, tasks=(key,), job=job_id(job)
        )
    scene.host.sights[tasks[2]] = Sight(tasks[2], forbidden=True)
    found = asyncio.run(lookup.find(tasks))
    assert {key: [one.native_id for one in handles] for key, handles in found.items()} == {
        tasks[0]: ["5"], tasks[1]: ["6"],
    }  # fmt: skip


def test_find_prefers_the_job_that_holds_the_claim():
    scene = Scene()
    name = job_name("store", "d:1:1:r")
    for number in ("5", "6"):
        scene.controller.rows[number] = Row(number, "RUNNING", name=name)
    scene.host.sights["d:1:1:r"] = Sight("d:1:1:r", known=True, claimed=True, native="6")
    lookup = Lookup("slurm", scene.host, scene.controller)  # type: ignore[arg-type]
    found = asyncio.run(lookup.find(["d:1:1:r", "d:2:1:r"]))
    assert [handle.native_id for handle in found["d:1:1:r"]] == ["6", "5"]
    assert "d:2:1:r" not in found
    scene.controller.broken = {"squeue"}
    with pytest.raises(TransientError):
        asyncio.run(lookup.find(["d:2:1:r"]))


# -- answers ---------------------------------------------------------------------------------------


def refused(*lines: str, status: int = 1) -> Any:
    return why_not_submitted("k", Completed(status, b"", "\n".join(lines).encode()))


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        ("Invalid partition name specified", Rejected, Reason.INVALID_SPEC),
        ("Invalid account or account/partition combination specified", Rejected,
         Reason.INVALID_SPEC),
        ("Invalid qos specification", Rejected, Reason.INVALID_SPEC),
        ("Requested node configuration is not available", Rejected, Reason.UNSCHEDULABLE),
        ("Memory specification can not be satisfied", Rejected, Reason.UNSCHEDULABLE),
        ("Invalid feature specification", Rejected, Reason.INVALID_SPEC),
        ("Unable to contact slurm controller (connect failure)", Deferred, None),
        ("Slurm temporarily unable to accept job, sleeping and retrying", Deferred, None),
    ],
)  # fmt: skip
def test_a_refusal_carries_slurms_own_sentence(line, kind, reason):
    answer = refused(f"sbatch: error: Batch job submission failed: {line}")
    assert isinstance(answer, kind)
    assert line in answer.message
    assert getattr(answer, "reason", None) is reason


def test_a_limit_on_submitted_jobs_is_no_failure():
    answer = refused(
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
        "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
        "(job submit limit, user's size and/or time limits)",
    )
    assert isinstance(answer, Deferred)
    other = refused(
        "sbatch: error: QOSMaxCpuPerJobLimit",
        "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
        "(job submit limit, user's size and/or time limits)",
    )
    assert (type(other), other.reason) == (Rejected, Reason.QUOTA)


@pytest.mark.parametrize(
    "answer",
    [
        refused("sbatch: error: Batch job submission failed: Socket timed out on send/recv"),
        refused("sbatch: error: Batch job submission failed: Zero Bytes were transmitted"),
        refused("", status=-9),
        refused("", status=0),
        refused("", status=1),
        refused("some words", status=0),
    ],
)
def test_an_answer_that_says_nothing_is_unknown(answer):
    assert type(answer).__name__ == "Unknown"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("12\n", ("12", "")),
        ("12;big\n", ("12", "big")),
        ("Welcome! 2048 nodes\n\n77\n", ("77", "")),
        ("77\nYour quota is 5 hours\n", ("77", "")),
        ("Submitted batch job 77\n", None),
        ("", None),
    ],
)
def test_the_id_is_found_among_a_sites_words(text, wanted):
    assert submitted_id(text) == wanted


def test_rows_are_read_and_noise_is_passed_over():
    rows = parse_queue(
        "Welcome\n7|7|RUNNING|n1|None|ct-x\n7_[3-5]|7|PENDING||Priority|a\n"
        "9_2|9|PENDING||ReqNodeNotAvail, UnavailableNodes:n[1,2]|b|c\n"
    )
    assert rows["7"].node == "n1"
    assert rows["9_2"] == Row(
        "9_2", "PENDING", "", "ReqNodeNotAvail, UnavailableNodes:n[1,2]", "b|c"
    )
    assert len(rows) == 2
    text = (
        "5|CANCELLED by 1000|0:15|n1\n6_1|NODE_FAIL|0:0|n2\n6_1|COMPLETED|0:0|n3\n5.batch|X|0:0|n"
    )
    accounts = parse_accounting(text)
    assert (accounts["5"].state, accounts["5"].reason) == ("CANCELLED", "CANCELLED by 1000")
    assert accounts["6_1"].state == "COMPLETED"
    assert len(accounts) == 2
    assert parse_config("MaxArraySize            = 1001\n\nx\n") == {"MaxArraySize": "1001"}


def test_a_cancelled_job_that_found_its_claim_taken_was_cancelled():
    scene = Scene()
    scene.sight(cancelled=True, forbidden=True)
    scene.row("FAILED", "NonZeroExitCode")
    assert scene.seen().reason is Reason.CANCELLED_BY_USER


def test_a_requeued_job_is_not_taken_for_its_first_end():
    scene = Scene(grace=60.0)
    scene.sight(claimed=True, native="5")
    scene.row("PREEMPTED")
    assert scene.seen().state is JobState.RUNNING
    scene.row("PENDING", "BeginTime")
    assert scene.seen().state is JobState.QUEUED
    assert scene.watcher._jobs["k"].ended_at == 0.0
