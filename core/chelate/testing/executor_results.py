"""Conformance of results: values, failures, output, and who opens what."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from chelate.bundle import Bundle
from chelate.client.codec import load_value, pickle_lattice
from chelate.client.lattice import Lattice
from chelate.contracts.executor import JobHandle, JobState, Outcome, Rejected, Task
from chelate.digest import digest_bytes
from chelate.errors import BlobMissingError
from chelate.model import Reason
from chelate.testing.executor_bench import Bench, value_of
from chelate.testing.executor_driven import ExecutorTests, driven
from chelate.testing.executor_tasks import divides, notes, witness

__all__ = ["ResultTests"]

LARGE = 5 << 20  # bytes


class ResultTests(ExecutorTests):
    """Part of the kit."""

    # -- values -------------------------------------------------------------------------------

    @driven()
    async def test_values_keep_their_types(self, bench: Bench) -> None:
        values: Any = (None, True, 2**70, 1.5, b"\0\xff", "größe ✓ 𝔘\n\0", [1, (2,)], {"a": {3}})
        assert await bench.value(lambda *args: args, *values) == values
        assert await bench.value(lambda a, *, b: [a, b], 1, b=(2,)) == [1, (2,)]
        assert await bench.value(lambda: None) is None

    @driven()
    async def test_a_large_value_both_ways(self, bench: Bench) -> None:
        data = bytes(range(256)) * (LARGE // 256)
        outcome = await bench.outcome(lambda given: given[::-1], data)
        assert value_of(outcome) == data[::-1]
        assert outcome.digest is not None, "the worker digests what it writes; pass that on"

    @driven("holds")
    async def test_a_large_result_stays_until_it_is_fetched(self, bench: Bench) -> None:
        def made() -> bytes:
            return bytes(range(256)) * (LARGE // 256)

        async def kept(task: Task) -> tuple[JobHandle, Outcome]:
            task.stay = True
            (handle,) = await bench.accepted(bench.pack([task]))
            outcome = (await bench.outcomes([handle]))[task.key]
            await bench.release([handle])
            return handle, outcome

        _, small = await kept(bench.task(len, b"12"))
        assert value_of(small) == 2, "small results come home"
        task = bench.task(made)
        handle, outcome = await kept(task)
        assert outcome.ok, outcome.error
        assert outcome.payload is None
        digest, size = outcome.digest or "", outcome.held or 0
        assert size > LARGE
        absent = "0" * 64
        assert await bench.executor.missing_held(handle, [digest, absent]) == {absent}

        later = bench.task(lambda data: data[:3], b"")  # it takes what nobody but the host has
        later.call["values"]["0"] = digest
        later.inputs = (later.inputs[0], digest)
        later.held = frozenset({digest})
        (second,) = await bench.accepted(bench.pack([later]))
        assert value_of((await bench.outcomes([second]))[later.key]) == b"\0\1\2"

        other = bench.make()
        await other.open()
        try:
            target = bench.folder / "fetched"
            for left in (None, size // 2, size):  # again and again, behind what came before
                if left is not None:
                    with target.open("r+b") as file:
                        file.truncate(left)
                await other.fetch_held(handle, digest, target)
                assert digest_bytes(target.read_bytes()) == digest
            with pytest.raises(BlobMissingError):
                await other.fetch_held(handle, absent, bench.folder / "absent")
        finally:
            await other.close()

    @driven("holds")
    async def test_a_task_whose_input_is_gone_is_refused(self, bench: Bench) -> None:
        task = bench.task(len, b"")
        gone = digest_bytes(b"what nobody has")
        task.call["values"]["0"] = gone
        task.inputs, task.held = (task.inputs[0], gone), frozenset({gone})
        (answer,) = await bench.run(bench.pack([task]))
        assert isinstance(answer, Rejected)
        assert answer.reason is Reason.RESULT_MISSING
        assert answer.gone == {gone}
        assert gone in answer.message

    @driven()
    async def test_the_function_may_be_a_closure(self, bench: Bench) -> None:
        base = [10, 20]

        class Adder:
            def add(self, value: int) -> list[int]:
                return [item + value for item in base]

        assert await bench.value(Adder().add, 1) == [11, 21]

    @driven("sublattice")
    async def test_a_sub_workflow_comes_back_as_a_bundle(self, bench: Bench) -> None:
        def flow(value: Any) -> Any:
            return value

        data = pickle_lattice(Lattice(flow))  # by value: the other side need not have this module
        outcome = await bench.outcome(data, 7, kind="sublattice", name="flow")
        assert outcome.ok, outcome.error
        assert outcome.graph
        payload = outcome.payload
        assert payload is not None
        bundle = Bundle.from_bytes(payload if isinstance(payload, bytes) else payload.read_bytes())
        assert bundle.graph is not None
        assert bundle.graph.name == "flow"

    @driven()
    async def test_many_jobs_at_once(self, bench: Bench) -> None:
        jobs = [bench.job(lambda a: a * 2, n) for n in range(self.many)]
        handles = await bench.accepted(*jobs)
        assert len({handle.key for handle in handles}) == self.many
        found = await bench.outcomes(handles)
        assert [value_of(found[job.key]) for job in jobs] == [n * 2 for n in range(self.many)]

    @driven()
    async def test_calls_at_the_same_time(self, bench: Bench) -> None:
        groups = [[bench.job(lambda a: a, (g, n)) for n in range(5)] for g in range(4)]

        async def through(group: list[Any]) -> list[Any]:
            handles = await bench.accepted(*group)
            await asyncio.gather(bench.look(handles), bench.look([]), bench.look(handles[:1]))
            found = await bench.outcomes(handles)
            return [value_of(found[job.key]) for job in group]

        answers = await asyncio.gather(*map(through, groups))
        assert answers == [[(g, n) for n in range(5)] for g in range(4)]

    # -- failures -----------------------------------------------------------------------------

    def failed(self, outcome: Outcome, *words: str) -> str:
        """The error's text, which has these words and the user's frames only."""
        assert outcome.ok is False
        assert outcome.payload is None
        assert isinstance(outcome.reason, Reason)
        text = outcome.error or ""
        for word in words:
            assert word in text, text
        assert "worker.py" not in text, "the frames of chelate are not the user's business"
        return text

    @driven()
    async def test_an_exception_comes_with_traceback_and_object(self, bench: Bench) -> None:
        outcome = await bench.outcome(divides(), 3)
        self.failed(outcome, "Traceback", "in outer", "in inner", "ZeroDivisionError")
        assert outcome.reason is Reason.USER_ERROR
        assert outcome.exception is not None
        assert type(load_value(outcome.exception)) is ZeroDivisionError

    @driven()
    async def test_an_exception_that_cannot_travel(self, bench: Bench) -> None:
        def fails() -> None:
            class OddError(Exception):
                def __init__(self, one: int, two: int) -> None:
                    import threading

                    super().__init__("odd ✗")
                    self.lock = threading.Lock()

            raise OddError(1, 2)

        outcome = await bench.outcome(fails)
        self.failed(outcome, "OddError", "odd ✗")

    @driven()
    async def test_a_result_that_cannot_be_pickled(self, bench: Bench) -> None:
        outcome = await bench.outcome(lambda: iter(n for n in [1]), name="makes_generators")
        self.failed(outcome, "makes_generators", "generator")
        assert outcome.reason is Reason.UNPICKLABLE

    @driven()
    async def test_a_library_that_is_missing(self, bench: Bench) -> None:
        outcome = await bench.outcome(b"cno_such_library_of_anyone\nfunction\n.", name="needs_it")
        self.failed(outcome, "no_such_library_of_anyone")
        assert outcome.reason is Reason.ENV_MISSING

    @driven()
    async def test_sys_exit_ends_only_the_task(self, bench: Bench) -> None:
        def leaves() -> None:
            import sys

            sys.exit(3)

        self.failed(await bench.outcome(leaves), "SystemExit")
        assert await bench.value(lambda: 1) == 1

    @driven()
    async def test_deep_recursion(self, bench: Bench) -> None:
        def dives(depth: int) -> int:
            return dives(depth + 1) + 1

        outcome = await bench.outcome(dives, 0)
        assert len(self.failed(outcome, "RecursionError")) < 1 << 20

    @driven("crash")
    async def test_a_task_that_takes_its_process_down(self, bench: Bench) -> None:
        def dies(how: str) -> None:
            import os

            if how == "exits":
                os._exit(7)
            os.abort()

        handles = [await bench.start(dies, how) for how in ("exits", "aborts")]
        seen = await bench.until(handles)
        found = await bench.collect(handles)
        for handle in handles:
            outcome, last = found.get(handle.key), seen[handle.key]
            reason = outcome.reason if outcome else last and last.reason
            text = (outcome.error if outcome else last and last.message) or ""
            assert reason is Reason.CRASHED, text
            assert len(text.split()) > 3, "say what happened in a sentence"
        assert await bench.value(lambda: 1) == 1

    # -- what else comes back -----------------------------------------------------------------

    @driven("output")
    async def test_output_of_the_task_and_its_children(self, bench: Bench) -> None:
        def speaks(fails: bool) -> None:
            import subprocess
            import sys

            sys.stdout.write("out größe\n")
            sys.stderr.write("err ✗\n")
            sys.stdout.flush()
            subprocess.run(["echo", "child"], check=True)
            if fails:
                raise ValueError("no")

        for fails in (False, True):
            outcome = await bench.outcome(speaks, fails)
            assert outcome.ok is not fails
            assert outcome.stdout.decode() == "out größe\nchild\n"
            assert "err ✗\n" in outcome.stderr.decode()

    @driven("output")
    async def test_output_of_each_task_is_its_own(self, bench: Bench) -> None:
        def says(number: int) -> None:
            import sys

            sys.stdout.write(f"I am {number}\n")

        handles = [await bench.start(says, number) for number in range(5)]
        found = await bench.outcomes(handles)
        texts = [found[handle.key].stdout.decode() for handle in handles]
        assert texts == [f"I am {number}\n" for number in range(5)]

    @driven()
    async def test_times_and_usage(self, bench: Bench) -> None:
        outcome = await bench.outcome(time.sleep, 0.2)
        assert outcome.started_at is not None
        assert outcome.ended_at is not None
        assert 0.15 <= outcome.ended_at - outcome.started_at < self.patience
        assert abs(outcome.ended_at - time.time()) < 86400
        if outcome.usage is not None:
            assert isinstance(json.loads(json.dumps(outcome.usage, allow_nan=False)), dict)

    @driven()
    async def test_a_task_knows_itself(self, bench: Bench) -> None:
        def asks() -> Any:
            import os
            import sys

            return os.environ["CHELATE_TASK_KEY"], sys.modules["_chelate_task_context"].current

        job = bench.job(asks, name="asks")
        (handle,) = await bench.accepted(job)
        key, context = value_of((await bench.outcomes([handle]))[job.key])
        task = job.tasks[0]
        assert key == task.key
        assert context["dispatch_id"] == context["root_dispatch_id"] == task.dispatch_id
        assert (context["node_id"], context["attempt"]) == (task.node_id, 1)
        assert context["name"] == "asks"

    @driven("shared_files")
    async def test_no_process_but_the_worker_unpickles(self, bench: Bench) -> None:
        ledger = bench.folder / "pids"

        def opens(value: Any) -> Any:
            import os

            descriptor = os.open(value.__reduce__()[1][0] + ".worker", os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, str(os.getpid()).encode())
            os.close(descriptor)
            return value

        handle = await bench.start(opens, witness(str(ledger)))
        outcome = (await bench.outcomes([handle]))[handle.key]
        assert outcome.ok, outcome.error
        assert set(ledger.read_text().split()) == {(bench.folder / "pids.worker").read_text()}

    @driven("shared_files")
    async def test_a_job_runs_once(self, bench: Bench) -> None:
        ledger = bench.folder / "ledger"
        handles = [await bench.start(notes(str(ledger)), n) for n in range(5)]
        await bench.outcomes(handles)
        assert sorted(ledger.read_text().split()) == [str(n) for n in range(5)]

    # -- collecting ---------------------------------------------------------------------------

    @driven()
    async def test_collect_repeats_until_release(self, bench: Bench) -> None:
        handle = await bench.start(lambda: "x" * 100_000)
        first = (await bench.outcomes([handle]))[handle.key]
        second = (await bench.collect([handle]))[handle.key]
        assert value_of(first) == value_of(second)
        assert await bench.collect([]) == {}
        await bench.release([handle])
        await bench.release([handle])
        await bench.release([])
        assert not any(item.ok for item in (await bench.collect([handle])).values())
        seen = (await bench.look([handle])).seen.get(handle.key)
        assert seen is None or seen.state not in (JobState.QUEUED, JobState.RUNNING)

    @driven()
    async def test_a_time_limit_that_is_kept(self, bench: Bench) -> None:
        assert await bench.value(lambda: 4, timeout=3600.0) == 4
