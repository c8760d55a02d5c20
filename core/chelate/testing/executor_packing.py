"""Conformance of packs: several tasks in one job, each of which still runs once."""

from __future__ import annotations

from chelate.contracts.executor import Accepted, JobHandle, JobState
from chelate.testing.executor_bench import FINAL_STATES, Bench, value_of
from chelate.testing.executor_driven import ExecutorTests, driven
from chelate.testing.executor_tasks import beats, notes, waits

__all__ = ["PackingTests"]

RUNNING = frozenset({JobState.RUNNING})


async def _run(bench: Bench, *tasks: object) -> list[JobHandle]:
    outcomes = await bench.run(bench.pack(list(tasks)))  # type: ignore[arg-type]
    handles = [outcome.handle for outcome in outcomes if isinstance(outcome, Accepted)]
    await bench.until(handles, FINAL_STATES)
    return handles


class PackingTests(ExecutorTests):
    """Part of the kit."""

    @driven("packing")
    async def test_tasks_of_a_pack_end_each_in_its_way(self, bench: Bench) -> None:
        def work(number: int) -> int:
            if number == 1:
                raise ValueError("the second fails")
            return number

        tasks = [bench.task(work, number) for number in range(3)]
        (handle,) = await bench.accepted(bench.pack(tasks))
        assert set(handle.tasks) == {task.key for task in tasks}
        found = await bench.outcomes([handle])
        assert set(found) == {task.key for task in tasks}
        assert value_of(found[tasks[0].key]) == 0
        assert "the second fails" in (found[tasks[1].key].error or "")
        assert value_of(found[tasks[2].key]) == 2

    @driven("cancel_task", "shared_files")
    async def test_one_task_of_a_pack_is_cancelled(self, bench: Bench) -> None:
        go, pulse = bench.folder / "go", bench.folder / "pulse"
        tasks = [bench.task(beats(str(pulse))), bench.task(waits(str(go), 2))]
        (handle,) = await bench.accepted(bench.pack(tasks))
        await bench.appears(pulse)
        await bench.executor.cancel_tasks(handle, [tasks[0].key], force=True)
        go.touch()
        found = await bench.outcomes([handle])
        assert not found[tasks[0].key].ok
        assert value_of(found[tasks[1].key]) == 2
        await bench.rests(pulse)

    @driven("packing", "find", "shared_files")
    async def test_each_task_of_a_pack_is_found(self, bench: Bench) -> None:
        go = bench.folder / "go"
        tasks = [bench.task(waits(str(go), number)) for number in range(3)]
        (handle,) = await bench.accepted(bench.pack(tasks))
        await bench.until([handle], RUNNING)
        stranger = bench.task(len).key
        found = await bench.executor.find([tasks[2].key, stranger, tasks[0].key])
        assert not found.get(stranger)
        for task in (tasks[0], tasks[2]):
            (one,) = found[task.key]
            assert (one.native_id, one.tasks) == (handle.native_id, handle.tasks)
        go.touch()
        ended = await bench.outcomes([found[tasks[2].key][0]])
        assert [value_of(ended[task.key]) for task in tasks] == [0, 1, 2]

    @driven("packing", "idempotent", "find", "shared_files")
    async def test_a_task_sent_again_in_other_company_runs_once(self, bench: Bench) -> None:
        """After a lost answer the kernel sends a task again, with whom it waits for then."""
        ledger = bench.folder / "ledger"
        first, second, third = (bench.task(notes(str(ledger)), number) for number in range(3))
        (pack,) = await _run(bench, first, second)
        alone = await _run(bench, second)
        (other,) = await _run(bench, first, third)
        assert other.native_id != pack.native_id
        assert sorted(ledger.read_text().split()) == ["0", "1", "2"]
        found = await bench.executor.find([first.key, second.key, third.key])
        carriers = [found[task.key][0].native_id for task in (first, third)]
        assert carriers == [pack.native_id, other.native_id]
        told = await bench.collect([other])
        assert value_of(told[third.key]) == 2
        assert first.key not in told or told[first.key].ok
        for handle in alone:  # whoever is asked for it, it is the one that ran
            told = await bench.collect([handle])
            assert second.key not in told or value_of(told[second.key]) == 1
        told = await bench.collect([pack])
        assert [value_of(told[task.key]) for task in (first, second)] == [0, 1]
        await bench.rests(ledger)

    @driven("packing", "idempotent", "shared_files")
    async def test_a_pack_leaves_out_what_runs_elsewhere(self, bench: Bench) -> None:
        go, ledger = bench.folder / "go", bench.folder / "ledger"
        busy, fresh = bench.task(waits(str(go), 1)), bench.task(notes(str(ledger)), 2)
        (alone,) = await bench.accepted(bench.pack([busy]))
        await bench.until([alone], RUNNING)
        (pack,) = await _run(bench, busy, fresh)
        told = await bench.collect([pack])
        assert busy.key not in told
        assert value_of(told[fresh.key]) == 2
        go.touch()
        assert value_of((await bench.outcomes([alone]))[busy.key]) == 1
        assert ledger.read_text() == "2\n"

    @driven("packing", "claims", "shared_files")
    async def test_a_forbidden_task_is_left_out_of_its_pack(self, bench: Bench) -> None:
        ledger = bench.folder / "ledger"
        tasks = [bench.task(notes(str(ledger)), number) for number in range(3)]
        assert await bench.executor.forbid([tasks[1].key]) == {}
        (handle,) = await _run(bench, *tasks)
        told = await bench.collect([handle])
        assert {key for key, outcome in told.items() if outcome.ok} == {tasks[0].key, tasks[2].key}
        assert sorted(ledger.read_text().split()) == ["0", "2"]
        held = await bench.executor.forbid([task.key for task in tasks])
        assert set(held) == {tasks[0].key, tasks[2].key}
        assert held[tasks[2].key].native_id == handle.native_id
