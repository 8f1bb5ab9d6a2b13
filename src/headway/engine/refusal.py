"""Steps that are no update: one that is not finite is refused, one that a roll back leaves out is
not computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from headway.engine.task import Microbatch
from headway.engine.world import World
from headway.records import Refusal, StepReport


def refusal(
    loss: float,
    grad_norm: float,
    microbatches: Sequence[Microbatch],
    totals: Sequence[dict[str, Tensor]],
    world: World,
) -> Refusal | None:
    """Why the optimizer must not run, and the rows whose loss is not finite; None where it may.

    The same on every rank: ``loss`` and ``grad_norm`` are those of the global batch already.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return None
    mine: list[tuple[float, ...]] = [
        (float(row),)
        for microbatch, sums in zip(microbatches, totals, strict=True)
        for row, value in zip(microbatch.rows, sums["loss"].tolist(), strict=True)
        if not math.isfinite(value)
    ]
    found = world.gather(mine) if world.agree(len(mine))[0] else []
    rows = tuple(int(row) for (row,) in found)
    return Refusal(why=f"loss {loss}, gradient norm {grad_norm}", rows=rows)


def left_out(step: int, rate: float, memory_bytes: int) -> StepReport:
    """The report of a step that a roll back leaves out: no row was read, nothing computed."""
    return StepReport(
        step=step,
        loss=math.nan,
        learning_rate=rate,
        grad_norm=math.nan,
        weight=0.0,
        rows=0,
        tokens=0,
        seconds=0.0,
        memory_bytes=memory_bytes,
        refused=Refusal(why="a roll back leaves this step out", left_out=True),
    )
