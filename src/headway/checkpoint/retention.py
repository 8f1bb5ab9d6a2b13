"""Which checkpoints may go: a pure function of what is on disk, never a decision remembered."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How many checkpoints to keep. The newest and the best always stay, whatever the numbers."""

    keep_last: int = 3
    keep_best: int = 3
    keep_every_steps: int | None = None
    """Also keep every step that is a multiple of this, for good."""


def expendable(
    steps: Iterable[int],
    scores: Mapping[int, float | None],
    policy: Retention,
    pinned: Collection[int] = (),
) -> list[int]:
    """The steps that may be deleted, ascending.

    ``scores``: step -> what is to be small (held-out loss). A step without a finite score is never
    among the best; of equal scores the earlier is better. ``pinned`` steps stay.
    """
    ascending = sorted(set(steps))
    newest = ascending[-max(1, policy.keep_last) :]
    best = [step for _, step in ranked(ascending, scores)[: max(1, policy.keep_best)]]
    kept = {*newest, *best, *pinned}
    if policy.keep_every_steps:
        kept.update(step for step in ascending if step % policy.keep_every_steps == 0)
    return [step for step in ascending if step not in kept]


def ranked(steps: Iterable[int], scores: Mapping[int, float | None]) -> list[tuple[float, int]]:
    """(score, step) of the steps with a finite score, the best first."""
    pairs = ((scores.get(step), step) for step in steps)
    return sorted(
        (score, step) for score, step in pairs if score is not None and math.isfinite(score)
    )
