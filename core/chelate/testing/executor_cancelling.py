"""Conformance of cancelling: at every moment, whole trees, and nobody else's job."""

from __future__ import annotations

from chelate.contracts.executor import Accepted, Deferred, JobState, Observation, Rejected
from chelate.testing.executor_bench import Bench, value_of
from chelate.testing.executor_driven import ExecutorTests, driven
from chelate.testing.executor_tasks import beats, notes, tree, waits

__all__ = ["CancellingTests"]

RUNNING = frozenset({JobState.RUNNING})


class CancellingTests(ExecutorTests):
    """Part of the kit."""

    async def gone(self, bench: Bench, seen: Observation | None, key: str) -> None:
        """A cancelled job is absent, killed, or ended without a value."""
        if seen is None or seen.state is JobState.KILLED:
            return
        outcome = (await bench.collect([bench.handles[key]])).get(key)
        assert outcome is None or not outcome.ok, "it ran to its end"

    async def stopped(self, bench: Bench, *keys: str) -> None:
        """Cancel jobs and see them gone."""
        seen = await bench.cancelled([bench.handles[key] for key in keys])
        for key in keys:
            await self.gone(bench, seen[key], key)

    @driven("shared_files")
    async def test_a_task_cancelled_before_it_is_sent(self, bench: Bench) -> None:
        ledger = bench.folder / "ledger"
        pulse = bench.folder / "pulse"
        job = bench.job(beats(str(pulse)), cancelled=lambda: True)
        other = bench.job(notes(str(ledger)), 1)
        for outcome in await bench.run(job, other):
            if outcome.key == job.key:
                assert isinstance(outcome, (Accepted, Deferred, Rejected))
                if isinstance(outcome, Accepted):
                    await self.stopped(bench, job.key)
        await bench.rests(pulse)
        assert value_of((await bench.outcomes([bench.handles[other.key]]))[other.key]) == 1

    @driven("queue", "shared_files")
    async def test_a_queued_job(self, bench: Bench) -> None:
        assert self.slots is not None, "set slots, or name 'queue' in cannot"
        go, ledger = bench.folder / "go", bench.folder / "ledger"
        running = [await bench.start(waits(str(go), 1)) for _ in range(self.slots)]
        queued = [await bench.start(notes(str(ledger)), n) for n in range(3)]
        report = await bench.look(queued)
        assert {seen.state for seen in report.seen.values()} <= {JobState.QUEUED}
        await self.stopped(bench, queued[0].key, queued[1].key)
        go.touch()
        found = await bench.outcomes([*running, queued[2]])
        assert value_of(found[queued[2].key]) == 2
        assert [value_of(found[handle.key]) for handle in running] == [1] * self.slots
        assert ledger.read_text() == "2\n"

    @driven("shared_files")
    async def test_a_running_job(self, bench: Bench) -> None:
        pulse = bench.folder / "pulse"
        handle = await bench.start(beats(str(pulse)))
        await bench.appears(pulse)
        await bench.until([handle], RUNNING)
        await self.stopped(bench, handle.key)
        await bench.rests(pulse)

    @driven("shared_files")
    async def test_right_after_it_was_accepted(self, bench: Bench) -> None:
        pulse = bench.folder / "pulse"
        for _ in range(3):
            handle = await bench.start(beats(str(pulse)))
            await self.stopped(bench, handle.key)
            await bench.rests(pulse, 0.2)

    @driven()
    async def test_a_job_that_has_ended_keeps_its_result(self, bench: Bench) -> None:
        handle = await bench.start(lambda: 9)
        await bench.until([handle])
        for force in (False, True):
            await bench.executor.cancel([handle], force=force)
        assert value_of((await bench.outcomes([handle]))[handle.key]) == 9

    @driven("shared_files")
    async def test_twice_and_nothing(self, bench: Bench) -> None:
        pulse = bench.folder / "pulse"
        handle = await bench.start(beats(str(pulse)))
        await bench.appears(pulse)
        await bench.executor.cancel([], force=False)
        for _ in range(3):
            await bench.executor.cancel([handle], force=False)
        await bench.until([handle])
        await bench.executor.cancel([handle], force=True)
        await bench.rests(pulse)

    @driven("shared_files")
    async def test_a_task_that_is_deaf_to_signals(self, bench: Bench) -> None:
        pulse = bench.folder / "pulse"
        handle = await bench.start(beats(str(pulse), stubborn=True))
        await bench.appears(pulse)
        await self.stopped(bench, handle.key)
        await bench.rests(pulse)

    @driven("shared_files")
    async def test_by_force_at_once(self, bench: Bench) -> None:
        pulse = bench.folder / "pulse"
        handle = await bench.start(beats(str(pulse), stubborn=True))
        await bench.appears(pulse)
        await bench.executor.cancel([handle], force=True)
        seen = await bench.until([handle])
        await self.gone(bench, seen[handle.key], handle.key)
        await bench.rests(pulse)

    @driven("trees", "shared_files")
    async def test_a_whole_tree_of_processes(self, bench: Bench) -> None:
        pulse = bench.folder / "pulse"
        handle = await bench.start(tree(str(pulse)))
        await bench.appears(pulse)
        await self.stopped(bench, handle.key)
        await bench.rests(pulse)

    @driven("shared_files")
    async def test_neighbours_are_untouched(self, bench: Bench) -> None:
        go = bench.folder / "go"
        pulses = [bench.folder / f"pulse-{number}" for number in range(3)]
        doomed = [await bench.start(beats(str(pulse))) for pulse in pulses[:1]]
        await bench.appears(pulses[0])
        others = [await bench.start(waits(str(go), number)) for number in range(4)]
        await self.stopped(bench, *(handle.key for handle in doomed))
        go.touch()
        found = await bench.outcomes(others)
        assert [value_of(found[handle.key]) for handle in others] == [0, 1, 2, 3]

    @driven("shared_files")
    async def test_many_in_one_call(self, bench: Bench) -> None:
        ledger, go = bench.folder / "ledger", bench.folder / "go"
        most = bench.executor.limits.max_in_flight
        handles = [await bench.start(waits(str(go))) for _ in range(min(most, 10))]
        last = bench.job(notes(str(ledger)), 1)
        await self.stopped(bench, *(handle.key for handle in handles))
        (handle,) = await bench.accepted(last)
        assert value_of((await bench.outcomes([handle]))[last.key]) == 1

    @driven("shared_files")
    async def test_a_task_may_clean_up_when_it_is_asked(self, bench: Bench) -> None:
        pulse, ledger = bench.folder / "pulse", bench.folder / "ledger"
        beat, note = beats(str(pulse)), notes(str(ledger))

        def tidy() -> None:
            try:
                beat()
            finally:
                note("tidied")

        handle = await bench.start(tidy)
        await bench.appears(pulse)
        await self.stopped(bench, handle.key)
        assert ledger.read_text() == "tidied\n"
