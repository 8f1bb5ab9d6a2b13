"""Rules on what is learned: loss, gradient, learning rate, held-out loss.

Each is a pure function of the history. A rule that compares levels uses medians and asks for
differences of several of their own standard errors; every verdict on a loss stays the same when
the loss is multiplied by a constant.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from headway.monitor.alerts import Alert
from headway.monitor.history import BLOCK_STEPS, NEAR_STEPS, Block, History, spread
from headway.monitor.thresholds import Thresholds
from headway.records import StepReport

LEAST_STEPS = 24
"""A window shorter than that has no median worth comparing with."""
TAIL = 6.0
"""How often the distance from the median to the 95th percentile a spike must lie above it. The
score alone would call 1 in 600 steps a spike where losses are distributed exponentially."""
RISE_ERRORS, RISE_BLOCKS = 7.0, 3
FLAT_BLOCKS, FALLEN_ERRORS = 12, 3.0
EXPLODING, EXPLODING_STEPS, OF_STEPS = 10.0, 5, 8
VANISHING = 1e-3
ZERO_STEPS = 3
NO_RATE = 1e-6
GAP_SHARE = 0.05
ROWS_SHOWN = 16


def non_finite(report: StepReport) -> Alert | None:
    """A step whose loss or gradient was NaN or infinite: refused, so the weights are as before."""
    refused = report.refused
    if refused is None or refused.left_out:
        return None
    what = f"step {report.step} was refused: {refused.why}"
    if refused.rows:
        what += f"; the loss of rows {shown(refused.rows)} is not finite"
    return Alert(
        kind="non_finite",
        level="warning",
        what=what,
        why="the optimizer was not run: one such update would have made every weight NaN",
        advice="look at these rows (headway data show); if it happens again, lower "
        "train.learning_rate or set train.max_grad_norm",
        rows=refused.rows,
    )


def loss_spike(history: History, given: Thresholds) -> Alert | None:
    """How far the newest loss rose above the steps just before it, against the window's rises.

    Rises and not losses: in a window with the first steep fall in it, nothing would be high.
    """
    window = history.rises[-given.window_steps - 1 : -1]
    if len(window) < LEAST_STEPS:
        return None
    middle, newest = statistics.median(window), history.rises[-1]
    above = newest - middle
    if newest <= 0 or above <= TAIL * (percentile_95(window) - middle):
        return None
    loss = history.steps[-1].loss
    score = above / max(spread(window), 1e-3 * abs(loss - newest), 1e-300)
    if score < given.spike_score:
        return None
    return Alert(
        kind="loss_spike",
        level="warning",
        what=f"the loss jumped to {loss:.4g}; the median of the {NEAR_STEPS} steps before is "
        f"{loss - newest:.4g} (robust score {score:.0f} over {len(window)} steps)",
        why="a row unlike the others, or a learning rate at the edge of what the model bears",
        advice="look at the step's rows (headway data show); if it stays high, lower "
        "train.learning_rate, or go back and leave these rows out with monitor.on_spike: rollback",
    )


def loss_rising(history: History, given: Thresholds) -> Alert | None:
    """The newest three blocks all lie clearly above the best one: learning runs backwards."""
    blocks = history.blocks
    if len(blocks) < 2 * RISE_BLOCKS:
        return None
    earlier, newest = blocks[:-RISE_BLOCKS], blocks[-RISE_BLOCKS:]
    best = min(block.loss for block in earlier)
    lowest = min(block.loss for block in newest)
    if lowest - best <= RISE_ERRORS * standard_error(blocks, best):
        return None
    return Alert(
        kind="loss_rising",
        level="critical",
        what=f"the loss has risen to {newest[-1].loss:.4g} (median of {BLOCK_STEPS} steps) from "
        f"{best:.4g} at its best, and stayed there for {RISE_BLOCKS * BLOCK_STEPS} steps",
        why="training diverges: what was learned is being lost",
        advice="stop, lower train.learning_rate (a third of it) or lengthen train.warmup, and "
        "begin again from a checkpoint before the rise: run.warm_start=RUN@STEP",
    )


def loss_flat(history: History, given: Thresholds) -> Alert | None:
    """After 300 steps the loss is where it began, and the held-out loss too."""
    blocks = history.blocks
    if len(blocks) < FLAT_BLOCKS or blocks[0].last_step > BLOCK_STEPS:
        return None
    began, now = blocks[0].loss, statistics.median(block.loss for block in blocks[-4:])
    error = standard_error(blocks, began)
    if began - now > error or began - min(block.loss for block in blocks) > FALLEN_ERRORS * error:
        return None
    held_out = [loss for _, loss in history.evaluations]
    if len(held_out) > 1 and held_out[0] - min(held_out[1:]) > 0.01 * abs(held_out[0]):
        return None
    return Alert(
        kind="loss_flat",
        level="warning",
        what=f"the loss is {now:.4g} after {blocks[-1].last_step} steps and was {began:.4g} in the "
        f"first {BLOCK_STEPS}: it has not fallen",
        why="nothing is being learned, at this learning rate or from these rows",
        advice="raise train.learning_rate (three times it); see with headway data show that the "
        "answers are what is supervised, and that the parameters that train are the ones you mean",
    )


def gradient_exploding(history: History, given: Thresholds) -> Alert | None:
    """Most of the newest gradients are ten times the window's median."""
    norms = [step.grad_norm for step in history.steps[-given.window_steps - OF_STEPS :]]
    window, newest = norms[:-OF_STEPS], norms[-OF_STEPS:]
    if len(window) < LEAST_STEPS or norms[-1] <= EXPLODING * min(window):
        return None  # the second is the quick way out of nearly every step
    middle = statistics.median(window)
    if middle <= 0 or sum(norm > EXPLODING * middle for norm in newest) < EXPLODING_STEPS:
        return None
    return Alert(
        kind="gradient_exploding",
        level="critical",
        what=f"the gradient norm is {statistics.median(newest):.3g} over the last {OF_STEPS} "
        f"steps; the median of the {len(window)} before is {middle:.3g}",
        why="steps of this size leave the region that was learned; NaN is often next",
        advice="lower train.learning_rate, lengthen train.warmup, or set train.max_grad_norm "
        "(1.0 is usual); the checkpoints before are good",
    )


def gradient_vanishing(history: History, given: Thresholds) -> Alert | None:
    """The gradient is a thousandth of what it was, and not because the loss is gone."""
    blocks = history.blocks
    if len(blocks) < 4:
        return None
    first = statistics.median(block.grad_norm for block in blocks[: len(blocks) // 2])
    newest = blocks[-1]
    if not 0 < newest.grad_norm < VANISHING * first or newest.loss < 0.5 * blocks[0].loss:
        return None
    return Alert(
        kind="gradient_vanishing",
        level="warning",
        what=f"the gradient norm is {newest.grad_norm:.2g}; it was {first:.2g} in the first half "
        f"of the run, and the loss is still {newest.loss:.4g}",
        why="a part of the model is saturated (a score at its limit, a dead activation)",
        advice="lower train.learning_rate and begin again from an earlier checkpoint; look at the "
        "worst rows in the report",
    )


def gradient_zero(history: History, given: Thresholds) -> Alert | None:
    """Three gradients in a row are exactly zero."""
    newest = history.steps[-ZERO_STEPS:]
    if len(newest) < ZERO_STEPS or any(step.grad_norm != 0 for step in newest):
        return None
    return Alert(
        kind="gradient_zero",
        level="critical",
        what=f"the gradient of the last {ZERO_STEPS} steps is exactly 0",
        why="no parameter that trains influences the loss: money is spent and nothing is learned",
        advice="see that task.tuning trains what you mean, and with headway data show that tokens "
        "are supervised",
    )


def learning_rate_zero(history: History, given: Thresholds) -> Alert | None:
    """The learning rate is as good as zero while many steps remain."""
    newest = history.steps[-1]
    left = history.num_steps - newest.step
    # The last steps of a schedule that ends at zero are small, but never so small so early.
    enough = left > max(2, 0.01 * history.num_steps)
    if not enough or newest.learning_rate > NO_RATE * history.peak_rate:
        return None
    return Alert(
        kind="learning_rate_zero",
        level="critical",
        what=f"the learning rate is {newest.learning_rate:.2g} with {left} steps to go",
        why="nothing more can be learned, and every step still costs",
        advice="stop it; the checkpoint is as good as the last one would be. In a new run look at "
        "train.schedule, train.decay and train.min_learning_rate_ratio",
    )


def evaluation_gap(history: History, given: Thresholds) -> Alert | None:
    """Held-out loss rises twice in a row while the training loss falls: overfitting."""
    found = history.evaluations
    if len(found) < 3:
        return None
    best_step, best = min(found, key=lambda e: e[1])
    (_, before), (_, newest) = found[-2:]
    gained = max(found[0][1] - best, 0.01 * abs(best))
    if not best < before < newest or newest - best <= GAP_SHARE * gained:
        return None
    old = [block.loss for block in history.blocks if block.last_step <= best_step]
    new = [block.loss for block in history.blocks if block.last_step > best_step]
    if not old or not new or new[-1] >= old[-1]:
        return None
    return Alert(
        kind="evaluation_gap",
        level="warning",
        what=f"the held-out loss has risen to {newest:.4g} from {best:.4g} at step {best_step}, "
        f"while the training loss fell from {old[-1]:.4g} to {new[-1]:.4g}",
        why="the model learns its rows by heart, or at this learning rate its answers grow surer "
        "than they are right: more steps make it worse on other rows",
        advice=f"use the checkpoint of step {best_step} (it is kept: --step best); stop such runs "
        "with evaluate.early_stop, or take fewer epochs, more rows, or a smaller rank; if the loss "
        "of single steps jumps about, lower train.learning_rate or set train.max_grad_norm",
    )


def standard_error(blocks: Sequence[Block], level: float) -> float:
    """Of one block's median loss: from the noise within blocks, or between neighbours if larger.

    A median of n values has 1.2533 σ / √n. Neighbouring batches of ordered data are more alike than
    distant ones; then the medians of blocks differ by more, and that is measured here: by second
    differences (of variance 6), which a falling curve does not make larger.
    """
    inside = 1.2533 * statistics.median(b.loss_spread for b in blocks) / BLOCK_STEPS**0.5
    losses = [block.loss for block in blocks]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    between = 1.4826 * statistics.median(bends) / 6**0.5 if bends else 0.0
    return float(max(inside, between, 1e-3 * abs(level)))


def percentile_95(values: Sequence[float]) -> float:
    """The value that one in twenty exceeds."""
    return sorted(values)[int(0.95 * (len(values) - 1))]


def shown(rows: Sequence[int]) -> str:
    """The first rows, and how many more there are."""
    more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
    return ", ".join(map(str, rows[:ROWS_SHOWN])) + more
