"""The guide for authors: its snippets run, and its tables say what there is."""

from __future__ import annotations

import re
from pathlib import Path

from tests.house.layout import ROOT

from chelate.api import Executor, JobState, TaskExecutor, TaskRun
from chelate.testing.executor_bench import Bench
from chelate.testing.executor_driven import ABILITIES
from chelate.testing.executor_tasks import beats

GUIDE = (ROOT / "docs/plugins/writing-an-executor.md").read_text(encoding="utf-8")


def snippets() -> dict[str, object]:
    """Everything that the guide's code defines, run from top to bottom."""
    names: dict[str, object] = {"__name__": "guide"}
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", GUIDE, re.M | re.DOTALL)):
        exec(compile(code, f"guide snippet {number}", "exec"), names)
    return names


def test_the_snippets_define_executors() -> None:
    found = snippets()
    kinds = {
        name
        for name, item in found.items()
        if isinstance(item, type) and issubclass(item, Executor)
    }
    assert kinds >= {"HereExecutor", "CarefulExecutor", "FarExecutor"}
    assert (
        len(re.search(r"## Twenty lines.*?```python\n(.*?)```", GUIDE, re.DOTALL)[1].splitlines())
        <= 25
    )


def test_the_twenty_lines_run_and_cancel_a_task(tmp_path: Path) -> None:
    kind = snippets()["HereExecutor"]
    bench = Bench(lambda: kind(str(tmp_path / "root")), tmp_path, 60.0)

    async def scenario() -> None:
        assert await bench.value(lambda a: a + 1, 1) == 2
        pulse = tmp_path / "pulse"
        handle = await bench.start(beats(str(pulse)))
        await bench.appears(pulse)
        seen = (await bench.cancelled([handle]))[handle.key]
        assert seen is None or seen.state in (JobState.ENDED, JobState.KILLED)
        await bench.rests(pulse)
        found = await bench.collect([handle])
        assert not any(outcome.ok for outcome in found.values())

    bench.drive(scenario())


def test_a_lost_answer_as_the_guide_injects_it(tmp_path: Path) -> None:
    snippets()["test_a_lost_answer"](tmp_path)


def test_the_words_of_the_kit_are_all_explained() -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+) \|", GUIDE.partition("## Testing it")[2], re.M)
    assert {word for row in rows for word in re.findall(r"`(\w+)`", row)} == set(ABILITIES)


def test_what_a_task_offers_is_explained() -> None:
    table = GUIDE.partition("| `task.` | |")[2].partition("\n\n")[0]
    words = set(re.findall(r"`(\w+)`", re.sub(r"(?m)^(\|[^|]*\|).*$", r"\1", table)))
    assert words <= set(dir(TaskRun))
    for name in ("root", "environment", "honours", "threads"):
        assert f"| `{name}` |" in GUIDE
        assert hasattr(TaskExecutor, name)
