"""What a whole run will take of memory, time and money, foreseen from its rehearsal.

``headway check`` says it, and training before step 1 of a new run (``run.rehearse``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headway.building import build_context
from headway.checks import sentence
from headway.config import RunConfig
from headway.cost import Meter
from headway.engine.ladder import OneRowTooLarge
from headway.engine.rehearsal import Rehearsal, TogetherTooLarge, rehearse
from headway.engine.state import TrainState
from headway.engine.steps import Plan
from headway.engine.task import Shortening, Task
from headway.engine.world import World
from headway.errors import NonFiniteStep
from headway.preflight.host import usable_memory_bytes
from headway.records import Finding

TIGHT_SHARE = 0.9
"""Of a device's memory: beyond, what else needs some may end the run."""
ROW_BY_ROW = 32
"""Halvings after which a microbatch has one row."""
FORWARD_SHARE = 1 / 3
"""Of a training step: what an evaluation of as many tokens takes. Backward is twice forward."""


def rehearsal_findings(
    config: RunConfig, state: TrainState, plan: Plan, world: World
) -> Iterator[Finding | Rehearsal]:
    """What the rehearsal found, last the rehearsal itself. Raises OneRowTooLarge, NonFiniteStep,
    OutOfMemory where the optimizer's update does not fit.

    Rows that do not fit together are a warning: training cuts them, and so does this.
    """
    asked = config.hardware.microbatch_size
    rows = None if asked == "auto" else min(asked, config.train.batch_size)
    try:
        found = rehearse(state.task, state, plan, world, rows)
    except TogetherTooLarge as error:
        yield Finding(
            level="warning",
            name="rehearsal",
            what=str(error),
            why="training will find out, and do each such step again in smaller pieces: slower, "
            "with the same result",
            fix=f"Set hardware.microbatch_size below {error.rows}",
        )
        found = rehearse(state.task, state, plan, world, 1, halvings=ROW_BY_ROW)
    yield Finding(
        level="note",
        name="rehearsal",
        what=f"{found.step_seconds:.2f} s a step ({found.step_tokens:,} tokens), "
        f"{found.first_seconds:.2f} s for the first; everything undone",
    )
    yield from memory_findings(found, world)
    yield found


def one_row_finding(config: RunConfig, task: Task, world: World, error: OneRowTooLarge) -> Finding:
    """What a row that does not fit by itself comes to: the rungs that training has left, or its
    end. The rehearsal takes none of them: they cannot be undone."""
    rungs = []
    if not build_context(config, world).activation_checkpointing:
        rungs.append("recomputes activations, if the model can")
    shortest = config.train.shorten_rows_to
    if shortest and error.tokens > shortest and isinstance(task, Shortening):
        rungs.append(f"CUTS rows, to no fewer than {shortest:,} tokens (train.shorten_rows_to)")
    if not rungs:
        why = "training would end when it comes to this row"
        return Finding(level="blocker", name="rehearsal", what=str(error), why=why)
    return Finding(
        level="warning",
        name="rehearsal",
        what=f"a row of {error.tokens:,} tokens does not fit by itself",
        why=f"at such a row training {', then '.join(rungs)}, and ends where that is not enough; "
        "memory, time and price are not known before",
        fix="Set hardware.activation_checkpointing: true, or task.max_tokens lower",
    )


def foretold(
    config: RunConfig, state: TrainState, plan: Plan, world: World, meter: Meter | None
) -> list[tuple[str, str]]:
    """What a new run will take, rehearsed before its step 1; nothing where it was not asked to be.

    A budget that is too small is a warning here: the run will stop at it, as it was told. Several
    ranks do not rehearse: one that ran out of memory would leave the others waiting. Raises
    OutOfMemory where training would find no way to fit either.
    """
    asked = config.run.rehearse
    wanted = world.device.type == "cuda" if asked == "auto" else asked
    if state.step or not wanted:
        return []
    if world.ranks > 1:
        line = "run.rehearse: over several ranks nothing is rehearsed; on one, `headway check` does"
        return [("warning", line)] if asked is True else []
    told: list[Finding] = []
    try:
        for found in rehearsal_findings(config, state, plan, world):
            if isinstance(found, Finding):
                told.append(found)
                continue
            seconds = sum(run_seconds(found, config, state.task, plan, state.step))
            budget = config.cost.budget_usd if config.cost else None
            told += price_findings(seconds, plan.num_steps, meter, budget)
    except NonFiniteStep as error:  # training refuses such a step, and goes on
        told.append(Finding(level="warning", name="rehearsal", what=str(error)))
    except OneRowTooLarge as error:
        told.append(one_row_finding(config, state.task, world, error))
        if told[-1].level == "blocker":
            raise
    return [
        ("fit" if each.level == "note" else "warning", f"{each.name}: {sentence(each)}")
        for each in told
    ]


def memory_findings(found: Rehearsal, world: World) -> Iterator[Finding]:
    """The rehearsal's peak against what there is."""
    if world.device.type == "cuda":
        total: int | None = torch.cuda.get_device_properties(world.device).total_memory
        place = torch.cuda.get_device_name(world.device)
    else:
        total, place = usable_memory_bytes(), "this machine"
    yield from memory_of(found, total, place)


def memory_of(found: Rehearsal, total_bytes: int | None, place: str) -> Iterator[Finding]:
    """``memory_findings`` where ``place`` has so much memory."""
    share = found.peak_bytes / total_bytes if total_bytes else 0.0
    what = (
        f"a step on the longest rows ({found.rows} rows, {found.tokens:,} tokens at once) takes "
        f"{found.peak_bytes / 1e9:.2f} GB"
        + (f" of the {total_bytes / 1e9:.1f} GB of {place}" if total_bytes else "")
    )
    if share > TIGHT_SHARE:
        yield Finding(
            level="warning",
            name="rehearsal",
            what=what,
            why="that is so near the limit that a save or an evaluation may go beyond it",
            fix="Set hardware.microbatch_size lower, or activation_checkpointing: true",
        )
    else:
        yield Finding(level="note", name="rehearsal", what=what)


def run_seconds(
    found: Rehearsal, config: RunConfig, task: Task, plan: Plan, step: int
) -> tuple[float, float]:
    """(training, evaluating) seconds from ``step`` to the horizon, by the tokens of each."""
    token_seconds = found.step_seconds / max(1, found.step_tokens)
    per_row = task.tokens_per_epoch / task.rows_per_epoch
    training = (plan.num_steps - step) * config.train.batch_size * per_row * token_seconds
    section = config.evaluate
    if section is None:
        return training, 0.0
    times = plan.num_steps // section.every_steps - step // section.every_steps
    times += bool(plan.num_steps % section.every_steps) + (section.at_start and step == 0)
    held_tokens = sum(microbatch.tokens for microbatch in task.held_out())
    return training, times * held_tokens * token_seconds * FORWARD_SHARE


def price_findings(
    seconds: float, steps: int, meter: Meter | None, budget_usd: float | None
) -> Iterator[Finding]:
    """The whole run in time and dollars, against what is left of the budget."""
    duration = f"{steps:,} steps to go, about {spoken(seconds)}"
    if meter is None:
        yield Finding(level="note", name="price", what=f"{duration}; no price is given (cost)")
        return
    needed = meter.usd_for(seconds)
    what = f"{duration}, ${needed:.2f} at {meter.price.an_hour}"
    if budget_usd is None:
        yield Finding(level="note", name="price", what=what)
        return
    left = budget_usd - meter.spent_usd_before
    if left <= 0:
        yield Finding(
            level="blocker",
            name="price",
            what=f"the budget of ${budget_usd:g} is spent (${meter.spent_usd_before:.2f})",
            why="training would stop at once, with exit code 76",
            fix="Raise cost.budget_usd",
        )
    elif needed > left:
        reached = round(steps * left / needed)
        yield Finding(
            level="blocker",
            name="price",
            what=f"{what}, and ${left:.2f} of the budget of ${budget_usd:g} are left",
            why=f"the run would stop after about {reached:,} steps, saved and unfinished",
            fix="Raise cost.budget_usd, shorten train.horizon, or rent a cheaper GPU",
        )
    else:
        yield Finding(level="note", name="price", what=f"{what}; ${left:.2f} may be spent")


def spoken(seconds: float) -> str:
    """95 -> ``1.6 minutes``."""
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
