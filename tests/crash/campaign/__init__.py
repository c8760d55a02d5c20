"""Real processes, killed and stopped at random, and looked at from outside.

Kernels, their workers, supervisors of remote jobs, tasks, and a small scheduler that takes Slurm's
place die again and again; each round ends in quiet, and then ledger, journals, process table and
store must agree. ``python -m tests.crash.campaign --kills 200 --seed 7`` runs it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.crash.campaign.round import Outcome, Round

__all__ = ["campaign", "main", "table"]


def campaign(
    folder: Path, *, kills: int, seed: int, per_round: int = 60, slots: int = 2, pace: float = 0.25,
    patience: float = 120.0, say=None,
) -> Outcome:  # fmt: skip
    """Rounds until there were ``kills``; the folders of rounds without a violation are removed."""
    total = Outcome()
    number = 0
    while kills > 0:
        place = folder / f"round-{number}"
        place.mkdir(parents=True)
        name = f"{seed}.{number}"
        made = Round(
            place, seed=name, kills=min(kills, per_round), slots=slots, pace=pace, patience=patience
        )
        done = made.run()
        done.violations = [f"[seed {name}] {text}" for text in done.violations]
        total.add(done)
        kills -= min(kills, per_round)
        number += 1
        if not done.violations:
            shutil.rmtree(place)
        if say is not None:
            say(f"round {name}: {sum(done.kills.values())} faults, {done.seconds:.0f} s, "
                f"{done.executions} executions, {len(done.violations)} violations")  # fmt: skip
            for text in done.violations:
                say(f"  {text}")
    return total


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def table(outcome: Outcome) -> str:
    """The figures, a line each."""
    killed = {k: n for k, n in outcome.kills.items() if not k.startswith("stop ")}
    rows = [("kills", sum(killed.values()))]
    rows += [(f"  of {kind}", many) for kind, many in sorted(killed.items())]
    rows += [(kind, many) for kind, many in sorted(outcome.kills.items()) if kind not in killed]
    rows += [("dispatches", sum(outcome.dispatches.values()))]
    rows += [(f"  {status}", many) for status, many in sorted(outcome.dispatches.items())]
    rows += [("cancels acknowledged", outcome.cancels)]
    rows += [("  tasks that ran and were cancelled", outcome.stopped)]
    rows += [("executions", outcome.executions)]
    rows += [("  in jobs of the scheduler", outcome.remote)]
    rows += [("ends compared with the process table", outcome.looks)]
    lines = [f"{name:40} {number:>10}" for name, number in rows]
    for name, values in (
        ("restart until a kernel is open", outcome.restarts),
        ("kill until its dispatches are owned", outcome.adoptions),
    ):
        lines.append(
            f"{name:40} {percentile(values, 0.5):>8.2f} s p50, {percentile(values, 0.99):.2f} s p99"
        )
    lines.append(f"{'last fault until all has ended':40} {outcome.quiet:>8.1f} s at most")
    lines.append(f"{'violations':40} {len(outcome.violations):>10}")
    return "\n".join(lines)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.campaign", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--per-round", type=int, default=60)
    parser.add_argument("--slots", type=int, default=2, help="processes with a kernel")
    parser.add_argument("--pace", type=float, default=0.25, help="mean seconds between faults")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds for the end")
    parser.add_argument("--keep", type=Path, help="folder for the evidence of failing rounds")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="chelate-campaign-"))

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    outcome = campaign(
        folder, kills=given.kills, seed=given.seed, per_round=given.per_round, slots=given.slots,
        pace=given.pace, patience=given.patience, say=say,
    )  # fmt: skip
    say(table(outcome))
    if not outcome.violations:
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    say(
        f"Repeat with: python -m tests.crash.campaign --kills {given.kills} --seed {given.seed} "
        f"--per-round {given.per_round} --slots {given.slots} --pace {given.pace}. The evidence is "
        f"in {folder}."
    )
    return 1
