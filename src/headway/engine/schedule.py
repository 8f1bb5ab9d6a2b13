"""The learning rate as a pure function of the step: nothing to save, nothing to step in the
wrong unit."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Warm-up to ``peak``, then one of four shapes, over optimizer steps."""

    peak: float
    num_steps: int
    shape: str = "cosine"
    """``linear``, ``cosine``, ``constant``, or ``wsd`` (warm-up, stable, decay;
    arXiv:2404.06395)."""
    warmup_steps: int = 0
    floor_ratio: float = 0.0
    """The last step's rate as a share of the peak."""
    decay_steps: int = 0
    """``wsd`` only: length of the linear decay at the end."""

    def at(self, step: int) -> float:
        """The rate of the update that leads from ``step`` to ``step + 1``.

        Never zero before the end: the first rate is ``peak / warmup_steps``, and the floor is
        reached at ``num_steps``, after the last update (every shape but ``constant``), so no step
        is wasted.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        share = self._share(min(step, self.num_steps))
        return self.peak * (self.floor_ratio + (1 - self.floor_ratio) * share)

    def _share(self, step: int) -> float:
        if self.shape == "constant":
            return 1.0
        if self.shape == "wsd":
            return min(1.0, (self.num_steps - step) / max(1, self.decay_steps))
        done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done)) if self.shape == "cosine" else 1 - done


def steps_of(amount: float, num_steps: int) -> int:
    """A duration given as a share of the run (below 1) or as a number of steps, in steps."""
    return round(amount * num_steps) if amount < 1 else int(amount)
