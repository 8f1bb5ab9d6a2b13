"""What the rules look at: a small immutable history of steps, blocks of steps, and gauges.

A block sums up BLOCK_STEPS steps by medians, so that a trend over thousands of steps is a few
numbers. Refused steps taught nothing and are not in the history.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headway.records import StepReport

KEPT_STEPS, BLOCK_STEPS, NEAR_STEPS = 256, 25, 8
KEPT_BLOCKS, KEPT_GAUGES = 400, 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """The machine at one instant. None: nobody knows."""

    at_seconds: float
    """On a monotonic clock."""
    disk_free_bytes: int | None = None
    save_bytes: int | None = None
    """Size of the newest checkpoint."""
    gpu_share: float | None = None
    """How much of the time the GPU computed, 0 to 1: the least busy GPU's."""
    waiting_checkpoints: int = 0
    """Not in the bucket yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """BLOCK_STEPS steps, summed up."""

    last_step: int
    attempt: int
    """Counts attempts; the next one may be on another machine."""
    whole: bool
    """That attempt made all of its steps."""
    loss: float
    """Median."""
    loss_spread: float
    """What a standard deviation would be, made from medians: one wild step does not move it."""
    grad_norm: float
    tokens_per_second: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The past as far as rules need it. ``after…`` gives the next one; nothing is changed."""

    num_steps: int = 0
    """The horizon; 0: not known."""
    memory_limit_bytes: int | None = None
    """Of the GPU, or of the machine where there is none."""
    steps: tuple[StepReport, ...] = ()
    """Oldest first."""
    rises: tuple[float, ...] = ()
    """How far each loss lies above the median of the NEAR_STEPS before it: the trend taken out."""
    blocks: tuple[Block, ...] = ()
    evaluations: tuple[tuple[int, float], ...] = ()
    """(step, held-out loss)."""
    gauges: tuple[Gauges, ...] = ()
    attempt: int = 0
    attempt_steps: int = 0
    """Steps since this attempt began."""
    in_block: int = 0
    """Steps since the last block ended."""
    peak_rate: float = 0.0
    """The highest learning rate so far."""

    def after(self, report: StepReport) -> History:
        """With one more step."""
        steps = (*self.steps[-KEPT_STEPS + 1 :], report)
        before = [step.loss for step in steps[-NEAR_STEPS - 1 : -1]]
        rises = self.rises
        if len(before) == NEAR_STEPS:
            rises = (*rises[-KEPT_STEPS + 1 :], report.loss - statistics.median(before))
        blocks, in_block = self.blocks, self.in_block + 1
        if in_block == BLOCK_STEPS:
            ended = block_of(
                steps[-BLOCK_STEPS:],
                attempt=self.attempt,
                whole=self.attempt_steps + 1 >= BLOCK_STEPS,
            )
            blocks, in_block = (*blocks[-KEPT_BLOCKS + 1 :], ended), 0
        return replace(
            self,
            steps=steps,
            rises=rises,
            blocks=blocks,
            in_block=in_block,
            attempt_steps=self.attempt_steps + 1,
            peak_rate=max(self.peak_rate, report.learning_rate),
        )

    def after_evaluation(self, step: int, loss: float) -> History:
        """With one more evaluation."""
        return replace(self, evaluations=(*self.evaluations, (step, loss)))

    def after_gauges(self, gauges: Gauges) -> History:
        """With one more look at the machine."""
        return replace(self, gauges=(*self.gauges[-KEPT_GAUGES + 1 :], gauges))

    def in_new_attempt(self) -> History:
        """Another process, perhaps on another machine: what was measured of the old one goes."""
        return replace(self, attempt=self.attempt + 1, attempt_steps=0, gauges=())


def block_of(steps: Sequence[StepReport], *, attempt: int, whole: bool) -> Block:
    """One block of these steps."""
    losses = [step.loss for step in steps]
    return Block(
        last_step=steps[-1].step,
        attempt=attempt,
        whole=whole,
        loss=statistics.median(losses),
        loss_spread=spread(losses),
        grad_norm=statistics.median(step.grad_norm for step in steps),
        tokens_per_second=statistics.median(s.tokens / max(s.seconds, 1e-9) for s in steps),
        memory_bytes=steps[-1].memory_bytes,
    )


def spread(values: Sequence[float]) -> float:
    """A standard deviation's estimate that few wild values can move.

    The larger of two: 1.4826 times the median distance from the median (MAD), which is 0 where more
    than half of the values are equal, and 1.2533 times the mean distance, which is not. Both are
    the standard deviation for normal noise (Rousseeuw and Croux 1993).
    """
    middle = statistics.median(values)
    distances = [abs(value - middle) for value in values]
    return max(1.4826 * statistics.median(distances), 1.2533 * sum(distances) / len(distances))
