"""Read this first. A run is this loop: each step is recorded, shown, judged, saved, measured.

The physics of a step is in ``engine/steps.py``; how a run is opened (lock, data, model, restored
state) is in ``opening.py``. Nothing else decides what happens, or in which order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headway.claim import writable
from headway.config import RunConfig
from headway.cost import Meter
from headway.engine.evaluate import evaluate
from headway.engine.ladder import Rung
from headway.engine.state import TrainState
from headway.engine.steps import Plan, train_steps
from headway.engine.task import Interrupted, Recipe, Task
from headway.engine.world import World
from headway.evals import brief, refuse_no_number, stale, write
from headway.journal import Journal, timeline
from headway.limits import LIMITS, Limits
from headway.records import Evaluation, StepReport, StopReason
from headway.rollback import rolls_back
from headway.saving import Saving
from headway.show import Show
from headway.signals import Signals
from headway.spending import asked_of
from headway.uploading import Uploading
from headway.watching import Watching


def train(run: Run) -> StopReason:
    """Start or continue the run; returns why it stopped. Calling it again continues it."""
    stop = run.spent() or run.measure_if_due() or run.nothing_left()
    if stop:
        return run.ended(stop)
    for report in train_steps(run.task, run.state, run.plan, run.world, run.rung):
        run.record(report)  # what it did, and what the run has cost by now
        run.monitor.watch(report)  # warning signs: to the journal, the terminal, a webhook
        stop, save_due = run.judge(report)  # signal, limits, horizon; the same on every rank
        if save_due:
            run.saves.begin(report.step, run.facts_at(report))  # a snapshot; written meanwhile
        stop = run.measure_if_due(stop) or stop  # held-out rows; early stopping
        run.saves.settle(last=stop is not None)  # what is committed is announced; old ones go
        if stop:
            break  # always after a save (but to roll back), never inside a step
    return run.ended(stop or StopReason.FINISHED)


@dataclass
class Run:
    """One open run: its parts, and the few decisions between them."""

    config: RunConfig
    folder: Path
    recipe: Recipe
    task: Task
    state: TrainState
    plan: Plan
    world: World
    saves: Saving
    journal: Journal | None
    """Rank 0's; the other ranks write nothing."""
    meter: Meter | None
    """None where no price is known."""
    limits: Limits
    """What money and time may still be used."""
    signals: Signals
    show: Show
    facts: dict[str, Any]
    """Goes into every checkpoint's manifest: fingerprint, identities, versions."""
    rung: Rung
    """How steps are cut to fit the memory."""
    monitor: Watching
    bucket: Uploading | None = None
    """Rank 0's copy of the run elsewhere; None where no bucket was asked for."""
    told_falls: int = 0
    """How many lacks of memory were written down."""

    @property
    def cost_usd(self) -> float | None:
        """What all attempts have cost so far; None where no price is known."""
        return self.meter.cost_usd if self.meter else None

    # ------------------------------------------------------------- record, judge

    def record(self, report: StepReport) -> None:
        """Write the step to the journal and show it."""
        self.limits.took(step=report.seconds)
        self.monitor.beat(report.seconds)
        if self.journal:
            self.journal.append(report, **self.used())
            self.show.step(report, self.plan, self.cost_usd)
            self.remark(report.step, self.journal)

    def used(self) -> dict[str, float | None]:
        """What all attempts have used so far: each step's line in the journal carries it."""
        return {"cost_usd": self.cost_usd, "run_seconds": self.limits.run_seconds}

    def remark(self, step: int, journal: Journal) -> None:
        """Write down, and say, what a person should hear of this step."""
        warning = self.limits.warning()
        if warning:
            journal.append("warning", what=warning)
            self.show.say(f"WARNING: {warning}")
        if self.rung.falls > self.told_falls:
            self.told_falls = self.rung.falls
            facts = {"hardware": self.facts["hardware"], "asked": asked_of(self.config)}
            journal.append("out_of_memory", step=step, **asdict(self.rung), **facts)
            self.show.say(f"OUT OF MEMORY at step {step}: {self.rung.words()}; nothing is lost")

    def judge(self, report: StepReport) -> tuple[StopReason | None, bool]:
        """Whether to stop after this step and why, and whether a save is due."""
        if rolls_back(self, report):
            return StopReason.ROLL_BACK, False
        section = self.config.checkpoint
        due = (
            is_due(report.step, section.every_steps)
            or self.saves.minutes >= (section.every_minutes or math.inf)
            or self.evaluation_due(report.step)  # the best can only be kept if it was saved
        )
        signalled, spent, cut_off, save_due = self.world.agree(
            int(self.signals.received is not None),
            LIMITS.index(self.limit()),
            int(self.bucket is not None and self.bucket.failure() is not None),
            int(due),
        )
        if signalled:
            return StopReason.SIGNAL, True
        if cut_off:
            return StopReason.ERROR, True
        done = report.step >= self.plan.num_steps
        if spent and (not done or self.evaluation_due(report.step)):
            return LIMITS[spent], True
        if done:  # the reserve for one more step is not needed any more
            return StopReason.FINISHED, True
        return None, bool(save_due)

    def limit(self) -> StopReason | None:
        """BUDGET or DEADLINE when one more step, the final save and the upload might not fit."""
        drain_seconds = self.bucket.drain_seconds(self.saves.size_bytes) if self.bucket else 0.0
        ends_soon = self.state.step + 1 >= self.plan.num_steps
        found = self.limits.reached(evaluates=ends_soon, drain_seconds=drain_seconds)
        return StopReason(found) if found else None

    def spent(self) -> StopReason | None:
        """Why nothing more can be afforded; None if it can. The same answer on every rank."""
        return LIMITS[self.world.agree(LIMITS.index(self.limit()))[0]]

    def nothing_left(self) -> StopReason | None:
        """FINISHED when no step is left."""
        return StopReason.FINISHED if self.state.step >= self.plan.num_steps else None

    def facts_at(self, report: StepReport) -> dict[str, Any]:
        """What a checkpoint's manifest says of the run at this step."""
        return {
            **self.facts,
            **self.used(),
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "epoch": self.state.rows / self.task.rows_per_epoch,
            "rows": self.state.rows,
            "tokens": self.state.tokens,
            "evaluations": [list(e) for e in self.state.evaluations],
        }

    # ------------------------------------------------------------- measure

    def evaluation_due(self, step: int) -> bool:
        """At the start, every so many steps, and at the horizon; once each."""
        section = self.config.evaluate
        if section is None or any(step == done for done, _ in self.state.evaluations):
            return False
        if step == 0:
            return section.at_start
        return is_due(step, section.every_steps) or step >= self.plan.num_steps

    def measure_if_due(self, stop: StopReason | None = None) -> StopReason | None:
        """Evaluate if this step calls for it; EARLY_STOP when the held-out loss no longer falls.

        A step that is left behind by a signal or a limit is evaluated by the next attempt.
        """
        section, step = self.config.evaluate, self.state.step
        if section is None:
            return None
        if self.evaluation_due(step) and leaves_time(stop):
            found = evaluate(
                self.task,
                step=step,
                world=self.world,
                precision=self.config.hardware.precision,
                worst_rows=section.worst_rows,
                interrupted=self.interrupted,
                rung=self.rung,
            )
            if found is None or not self.measured(found):
                return self.spent() or StopReason.SIGNAL
        if section.early_stop is None or stop:
            return None
        patience, min_delta = section.early_stop.patience, section.early_stop.min_delta
        losses = [loss for _, loss in sorted(self.state.evaluations)]
        return StopReason.EARLY_STOP if stale(losses, patience, min_delta) else None

    def measured(self, found: Evaluation) -> bool:
        """Count a whole evaluation, write it to disk and journal, and show it.

        False where the run must stop while the recipe adds to it: it counts as not made.
        """
        refuse_no_number(found)
        interrupted = self.journal is not None and not self.told(found, self.journal)
        if self.world.agree(int(interrupted))[0]:
            return False
        self.state.evaluations.append((found.step, found.metrics["loss"]))
        self.saves.scores[found.step] = found.metrics["loss"]
        return True

    def told(self, found: Evaluation, journal: Journal) -> bool:
        """What the recipe makes of an evaluation, to disk and journal; False: interrupted."""
        began = time.monotonic()
        untrained = dict(self.state.evaluations).get(0)  # None when this is the one at step 0
        if untrained is not None:
            found = replace(found, baselines={"loss/untrained": untrained})
        try:
            found = self.recipe.measure(self.task, found, self.go_on)
        except Interrupted:
            return False
        self.limits.took(evaluation=found.seconds + time.monotonic() - began)
        with writable(self.folder):
            write(self.folder, found)
        journal.append(brief(found))
        journal.flush()
        self.show.evaluated(found)
        self.monitor.evaluated(found)
        return True

    def go_on(self) -> None:
        """Raise Interrupted where what is being measured should be left."""
        if self.interrupted():
            raise Interrupted

    def interrupted(self) -> bool:
        """Whether an evaluation should end early; asked after each of its microbatches."""
        self.monitor.beat()
        return self.signals.received is not None or self.limit() is not None

    def remember(self, events: Sequence[dict[str, Any]]) -> None:
        """Take losses up to this step from the journal, a held-out one at this very step too.

        The checkpoint holds those before its step; a save comes before the evaluation of its step.
        """
        self.monitor.remember(events, self.state.step)
        self.saves.step = self.state.step or -1
        scores = self.saves.scores
        scores.update(self.state.evaluations)
        for event in timeline(events, "evaluation"):
            if event["step"] <= self.state.step and isinstance(event["metrics"]["loss"], float):
                scores[event["step"]] = event["metrics"]["loss"]
        here = scores.get(self.state.step)
        if here is not None and self.evaluation_due(self.state.step):
            self.state.evaluations.append((self.state.step, here))

    # ------------------------------------------------------------- end

    def ended(self, stop: StopReason) -> StopReason:
        """Write why this attempt ended. Raises why its last state is not on disk, if so."""
        if self.journal:
            self.saves.settle(last=True)
            if self.bucket and stop is not StopReason.ROLL_BACK:
                # What an earlier save left gets there, whatever became of the last.
                again = self.signals.again()
                until = self.monitor.beating(lambda: again() or self.limits.passed() is not None)
                self.bucket.finish(until, self.journal, self.show.say)
            if self.saves.unsaved:
                raise self.saves.unsaved
            self.journal.append("stop", reason=stop.value, step=self.state.step, **self.used())
            self.journal.flush()
        return stop


def is_due(step: int, every_steps: int | None) -> bool:
    """Whether ``step`` is a multiple of the interval."""
    return every_steps is not None and step % every_steps == 0


def leaves_time(stop: StopReason | None) -> bool:
    """Whether an attempt that stops for this reason may still spend time on measuring."""
    return stop in (None, StopReason.FINISHED)
