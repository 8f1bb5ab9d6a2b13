"""What must be true after any kill, and when the run has ended. The same for every store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instants import JOURNAL, steps_on_disk

from headway.checkpoint import Checkpoint, CheckpointStore, Retention, verify
from headway.checkpoint.retention import expendable
from headway.journal import read, read_events, scan, timeline
from headway.lock import holder
from toy import assert_same_state, final_state

SAME = ("loss", "learning_rate", "grad_norm", "weight", "rows", "tokens", "also")
"""What a step's journal line says that must not depend on interruptions."""


@dataclass
class Outcome:
    """What many kills did."""

    kills: int = 0
    runs: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    """Where the kills hit."""
    verified: int = 0
    """Committed checkpoints that were read and hashed after the kills."""
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing promised was broken."""
        return not (self.lost or self.corrupt or self.unclean or self.different)

    def cells(self, fault: str, where: str) -> tuple[object, ...]:
        """A line of the crash table."""
        hits = ", ".join(f"{n} {place}" for place, n in self.hits.most_common())
        place = f"{where}: {hits}" if hits else where
        harm = (self.lost, self.corrupt, self.different)
        return (fault, place, self.runs, self.kills, *map(len, harm))


def judge_kill(run: Path, policy: Retention, outcome: Outcome) -> None:
    """Every committed checkpoint is whole, and none is gone that was promised to stay."""
    store = CheckpointStore(run, attempt="oracle")
    on_disk = steps_on_disk(run)
    listed = {c.step: c for c in store.checkpoints()}
    for step in on_disk:
        problems = verify(listed[step]) if step in listed else ["no readable manifest"]
        outcome.verified += 1
        if problems:
            outcome.corrupt.append(f"{run}: step {step}: {problems[0]}")
    if store.quarantine.exists():
        outcome.corrupt.append(f"{run}: a kill made {sorted(store.quarantine.iterdir())}")
    promised = {e["step"] for e in read_events(run / JOURNAL, {"save"})}
    scores = {e["step"]: e["metrics"]["loss"] for e in read_events(run / JOURNAL, {"evaluation"})}
    gone = promised - set(on_disk)
    if unwanted := gone - set(expendable(promised | set(on_disk), scores, policy)):
        outcome.lost.append(f"{run}: acknowledged, wanted and gone: {sorted(unwanted)}")
    if scan(run / JOURNAL).damaged_lines:
        outcome.unclean.append(f"{run}: the journal has a damaged line")
    if (run / "lock").exists() and holder(run / "lock"):
        outcome.unclean.append(f"{run}: the dead still hold the lock")


def judge_resume(run: Path, before: list[int], outcome: Outcome) -> None:
    """The attempt that followed continued from the newest checkpoint there was."""
    told = read_events(run / JOURNAL, {"opening", "attempt"})
    newest = max(before, default=0)
    if not told or told[-1]["event"] == "opening":
        return  # killed before it had restored anything
    if told[-1]["restored_step"] < newest:
        outcome.lost.append(f"{run}: step {newest} was there, {told[-1]['restored_step']} used")


def judge_end(run: Path, whole: Path, outcome: Outcome) -> None:
    """The ended run is, bit for bit, the one that nothing interrupted; its journal tells it once.

    Compares model, optimizer and counters of the newest checkpoint; loss, rate and gradient norm of
    every step; every evaluation.
    """
    try:
        assert_same_state(final_state(run), final_state(whole))
    except (AssertionError, IndexError) as error:
        outcome.different.append(f"{run}: {error}")
    mine, other = read(run / JOURNAL), read(whole / JOURNAL)
    if facts(timeline(mine), SAME) != facts(timeline(other), SAME):
        outcome.different.append(f"{run}: the steps of the journal are others")
    measured = ("metrics", "baselines", "rows", "weight", "worst")
    if facts(timeline(mine, "evaluation"), measured) != facts(
        timeline(other, "evaluation"), measured
    ):
        outcome.different.append(f"{run}: the evaluations are others")
    if left := [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]:
        outcome.unclean.append(f"{run}: left behind: {left}")


def facts(lines: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[int, Any]:
    """step -> the named facts of its line."""
    return {line["step"]: [line.get(key) for key in keys] for line in lines}


def checkpoints(run: Path) -> list[Checkpoint]:
    """Those that are committed, each one verified."""
    found = CheckpointStore(run, attempt="oracle").checkpoints()
    assert [verify(checkpoint) for checkpoint in found] == [[] for _ in found]
    assert [checkpoint.step for checkpoint in found] == steps_on_disk(run)
    return found
