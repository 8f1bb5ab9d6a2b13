"""Read this first. A run is this loop: each step is recorded, shown, judged, saved, measured.

The physics of a step is in ``engine/steps.py``; how a run is opened (lock, data, model, restored
state) is in ``opening.py``. Nothing else decides what happens, or in which order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headway.checkpoint import Checkpoint, CheckpointStore, Retention, Saver
from headway.config import RunConfig
from headway.cost import Meter
from headway.engine.evaluate import evaluate
from headway.engine.state import Snapshot, TrainState, non_finite
from headway.engine.steps import Plan, train_steps
from headway.engine.task import Recipe, Task
from headway.engine.world import World
from headway.errors import CheckpointError, StorageFull
from headway.evals import brief, refuse_no_number, stale, write
from headway.journal import Journal, timeline
from headway.records import StepReport, StopReason
from headway.rollback import rolls_back
from headway.show import Show
from headway.signals import Signals
from headway.uploading import Uploading
from headway.watching import Watching


def train(run: Run) -> StopReason:
    """Start or continue the run; returns why it stopped. Calling it again continues it."""
    stop = run.spent() or run.measure_if_due() or run.nothing_left()
    if stop:
        return run.ended(stop)
    for report in train_steps(run.task, run.state, run.plan, run.world):
        run.record(report)  # what it did, and what the run has cost by now
        run.monitor.watch(report)  # warning signs: to the journal, the terminal, a webhook
        stop, save_due = run.judge(report)  # signal, budget, horizon; the same answer on every rank
        if save_due:
            run.save(report)  # a snapshot now; written and committed beside the next steps
        stop = run.measure_if_due(stop) or stop  # held-out rows; early stopping
        run.settle(stop)  # what was committed is announced; old ones are pruned
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
    store: CheckpointStore
    saver: Saver
    journal: Journal | None
    """Rank 0's; the other ranks write nothing."""
    meter: Meter | None
    """None where no price is known."""
    signals: Signals
    show: Show
    facts: dict[str, Any]
    """Goes into every checkpoint's manifest: fingerprint, identities, versions."""
    monitor: Watching
    bucket: Uploading | None = None
    """Rank 0's copy of the run elsewhere; None where no bucket was asked for."""
    snapshot: Snapshot = field(default_factory=Snapshot)
    saved_step: int = -1
    saved_at: float = field(default_factory=time.monotonic)
    unsaved: StorageFull | None = None
    """Why the newest save was not made, until one is."""
    evaluation_seconds: float = 0.0
    """How long the last evaluation took."""
    scores: dict[int, float] = field(default_factory=dict)
    """Step -> held-out loss, for keeping the best."""

    @property
    def cost_usd(self) -> float | None:
        """What all attempts have cost so far; None where no price is known."""
        return self.meter.cost_usd if self.meter else None

    # ------------------------------------------------------------- record, judge

    def record(self, report: StepReport) -> None:
        """Write the step to the journal and show it."""
        self.monitor.beat(report.seconds)
        if self.journal:
            self.journal.append(report, cost_usd=self.cost_usd)
            self.show.step(report, self.plan, self.cost_usd)

    def judge(self, report: StepReport) -> tuple[StopReason | None, bool]:
        """Whether to stop after this step and why, and whether a save is due."""
        if rolls_back(self, report):
            return StopReason.ROLL_BACK, False
        section = self.config.checkpoint
        minutes = (time.monotonic() - self.saved_at) / 60
        due = (
            is_due(report.step, section.every_steps)
            or minutes >= (section.every_minutes or math.inf)
            or self.evaluation_due(report.step)  # the best can only be kept if it was saved
        )
        signalled, spent, cut_off, save_due = self.world.agree(
            int(self.signals.received is not None),
            int(self.over_budget(report.seconds)),
            int(self.bucket is not None and self.bucket.failure() is not None),
            int(due),
        )
        if signalled:
            return StopReason.SIGNAL, True
        if cut_off:
            return StopReason.ERROR, True
        if spent:
            return StopReason.BUDGET, True
        if report.step >= self.plan.num_steps:
            return StopReason.FINISHED, True
        return None, bool(save_due)

    def over_budget(self, step_seconds: float = 0.0) -> bool:
        """Whether one more step, an evaluation and the final save could exceed the budget."""
        section = self.config.cost
        if section is None or section.budget_usd is None or self.meter is None:
            return False
        reserve_seconds = 2 * (self.saver.seconds or 0.0) + 2 * step_seconds
        reserve_usd = self.meter.usd_for(reserve_seconds + self.evaluation_seconds)
        return self.meter.cost_usd + reserve_usd >= section.budget_usd

    def spent(self) -> StopReason | None:
        """BUDGET when nothing more can be afforded."""
        return StopReason.BUDGET if self.world.agree(int(self.over_budget()))[0] else None

    def nothing_left(self) -> StopReason | None:
        """FINISHED when no step is left."""
        return StopReason.FINISHED if self.state.step >= self.plan.num_steps else None

    # ------------------------------------------------------------- save

    def save(self, report: StepReport) -> None:
        """Copy the state aside and have it written; only the copy stalls training."""
        if self.saved_step == report.step or self.journal is None:
            self.saved_step, self.saved_at = report.step, time.monotonic()
            return
        broken = non_finite(self.state)
        if broken:
            raise CheckpointError(
                f"step {report.step}: {broken[:3]} hold NaN or infinity, so no checkpoint was "
                "made; the newest good one is untouched. Lower train.learning_rate"
            )
        self.saver.wait()  # one save at a time: the snapshot's buffers are in use until then
        self.settle(None)
        started = time.perf_counter()
        self.snapshot.take(self.state)
        stall_seconds = time.perf_counter() - started
        try:
            self.saver.submit(
                report.step,
                self.snapshot.files(),
                self.facts_at(report) | {"stall_seconds": stall_seconds},
                self.snapshot.size_bytes,
            )
        except StorageFull as error:
            self.could_not_save(report.step, error)
        self.saved_step, self.saved_at = report.step, time.monotonic()

    def settle(self, stop: StopReason | None) -> None:
        """Announce what was committed since, then delete what retention does not keep.

        An attempt that stops waits here for its last save.
        """
        if self.journal is None:
            return
        try:
            committed = self.saver.collect(wait=stop is not None)
        except StorageFull as error:
            self.could_not_save(self.saved_step, error)
            return
        for checkpoint in committed:
            self.announce(checkpoint, self.journal)
            if self.bucket:
                self.bucket.submit(checkpoint, self.scores)
        if self.bucket:
            self.bucket.tell(self.journal, self.show.say)
        if committed:
            section = self.config.checkpoint
            policy = Retention(
                keep_last=section.keep_last,
                keep_best=section.keep_best,
                keep_every_steps=section.keep_every_steps,
            )
            pinned = self.bucket.pending() if self.bucket else ()
            gone = self.store.prune(policy, self.scores, pinned=pinned)
            if gone:
                self.journal.append("prune", steps=gone)

    def announce(self, checkpoint: Checkpoint, journal: Journal) -> None:
        """Write to the journal that a checkpoint exists from now on."""
        self.unsaved = None
        self.monitor.saved(checkpoint.bytes)
        journal.append(
            "save",
            step=checkpoint.step,
            bytes=checkpoint.bytes,
            stall_seconds=checkpoint.manifest.facts["stall_seconds"],
            write_seconds=self.saver.seconds,
        )
        journal.flush()
        self.show.say(f"saved {checkpoint.path.name} ({checkpoint.bytes / 1e6:.1f} MB)")

    def could_not_save(self, step: int, error: StorageFull) -> None:
        """A full disk costs this save and nothing else, unless it was the attempt's last."""
        if self.journal:
            self.journal.append("save_skipped", step=step, why=str(error))
        self.show.say(f"NOT SAVED at step {step}: {error}")
        self.unsaved = error

    def facts_at(self, report: StepReport) -> dict[str, Any]:
        """What a checkpoint's manifest says of the run at this step."""
        return {
            **self.facts,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "epoch": self.state.rows / self.task.rows_per_epoch,
            "rows": self.state.rows,
            "tokens": self.state.tokens,
            "cost_usd": self.cost_usd,
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

        A step that is left behind by a signal or the budget is evaluated by the next attempt.
        """
        section, step = self.config.evaluate, self.state.step
        if section is not None and self.evaluation_due(step) and leaves_time(stop):
            found = evaluate(
                self.task,
                step=step,
                world=self.world,
                precision=self.config.hardware.precision,
                worst_rows=section.worst_rows,
                interrupted=self.interrupted,
            )
            if found is None:
                return StopReason.SIGNAL
            self.evaluation_seconds = found.seconds
            refuse_no_number(found)
            self.state.evaluations.append((step, found.metrics["loss"]))
            self.scores[step] = found.metrics["loss"]
            if self.journal:
                before = next((x for at, x in self.state.evaluations if at == 0 < step), None)
                if before is not None:
                    found = replace(found, baselines={"loss/untrained": before})
                found = self.recipe.measure(self.task, found)
                write(self.folder, found)
                self.journal.append(brief(found))
                self.journal.flush()
                self.show.evaluated(found)
                self.monitor.evaluated(found)
            self.world.barrier()
        if section is None or section.early_stop is None or stop:
            return None
        patience, min_delta = section.early_stop.patience, section.early_stop.min_delta
        losses = [loss for _, loss in sorted(self.state.evaluations)]
        return StopReason.EARLY_STOP if stale(losses, patience, min_delta) else None

    def interrupted(self) -> bool:
        """Whether an evaluation should end early; asked after each of its microbatches."""
        self.monitor.beat()
        return self.signals.received is not None

    def remember(self, events: Sequence[dict[str, Any]]) -> None:
        """Take losses up to this step from the journal, a held-out one at this very step too.

        The checkpoint holds those before its step; a save comes before the evaluation of its step.
        """
        self.saved_step = self.state.step or -1
        self.monitor.remember(events, self.state.step)
        self.scores = dict(self.state.evaluations)
        for event in timeline(events, "evaluation"):
            if event["step"] <= self.state.step and isinstance(event["metrics"]["loss"], float):
                self.scores[event["step"]] = event["metrics"]["loss"]
        here = self.scores.get(self.state.step)
        if here is not None and self.evaluation_due(self.state.step):
            self.state.evaluations.append((self.state.step, here))

    # ------------------------------------------------------------- end

    def ended(self, stop: StopReason) -> StopReason:
        """Write why this attempt ended. Raises StorageFull if its last state is not on disk."""
        if self.journal:
            self.settle(stop)
            if self.bucket and stop is not StopReason.ROLL_BACK:
                # What an earlier save left gets there, whatever became of the last.
                again = self.monitor.beating(self.signals.again())
                self.bucket.finish(again, self.journal, self.show.say)
            if self.unsaved:
                raise self.unsaved
            facts = {"step": self.state.step, "cost_usd": self.cost_usd}
            self.journal.append("stop", reason=stop.value, **facts)
            self.journal.flush()
        return stop


def is_due(step: int, every_steps: int | None) -> bool:
    """Whether ``step`` is a multiple of the interval."""
    return every_steps is not None and step % every_steps == 0


def leaves_time(stop: StopReason | None) -> bool:
    """Whether an attempt that stops for this reason may still spend time on measuring."""
    return stop in (None, StopReason.FINISHED)
