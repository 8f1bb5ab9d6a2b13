"""A run's plan: the model traced, the work counted, an offer for each GPU."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from headway.config import RunConfig
from headway.cost import Gpu, load_prices
from headway.engine.fake import weightless
from headway.errors import DataError
from headway.planning.assumptions import Assumptions
from headway.planning.data import rows_of, why_not_counted
from headway.planning.memory import Rows, Way, context_of, in_four_bits, ladder, traced
from headway.planning.offers import Offer, Work, needed_bytes, offers

MOST_ROWS = 8
"""At once, that are traced: beyond it a GPU gains little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """All that ``headway plan`` says."""

    model: str
    precision: str
    rows: Rows
    ways: tuple[Way, ...]
    work: Work
    batch_size: int
    checkpoint_bytes: int
    """Of one: what trains and its optimizer state."""
    checkpoints: int
    """Kept at most, the one being written included."""
    flops: float | None
    """Of the whole run without recomputation; None where the rows are not known."""
    offers: tuple[Offer, ...]
    assumptions: Assumptions
    notes: tuple[str, ...]
    seconds: float
    """That making this plan took."""

    @property
    def disk_bytes(self) -> int:
        """Free disk that the run's checkpoints need."""
        return self.checkpoint_bytes * self.checkpoints


def plan_run(
    config: RunConfig,
    *,
    prices: dict[str, Gpu] | None = None,
    assumptions: Assumptions | None = None,
    rows: int | None = None,
    count: bool = False,
    microbatches: list[int] | None = None,
) -> RunPlan:
    """What this run will need and cost on each GPU of ``prices`` (the table of ``config.cost``).

    ``rows``: how many training rows there are, where they are not read here. ``count``: read them
    however many. ``microbatches``: which rows at once to trace. Raises ConfigError for a model that
    cannot be planned; unreadable data is a note.
    """
    began = time.perf_counter()
    assume = assumptions or Assumptions()
    table = prices or load_prices(config.cost.prices if config.cost else None)
    why = None if count else why_not_counted(config)
    notes: list[str] = []
    sizes = microbatches or ladder_of(config)
    largest = max((gpu.memory_bytes for gpu in table.values()), default=0)
    with weightless("cuda"):
        try:
            ways, task = all_ways(config, sizes, largest, table, assume, data=why is None)
        except DataError as error:
            why = f"its data cannot be read: {error}"
            notes.append(f"data: {error}")
            ways, task = all_ways(config, sizes, largest, table, assume, data=False)
        found = rows_of(task, read=why is None, why=why, given=rows)
        facts = task.facts()
    work = work_of(config, found)
    plain = min(ways, key=lambda way: (way.changed, way.flops_per_token))
    return RunPlan(
        model=str(facts.get("model", config.recipe)),
        precision=config.hardware.precision,
        rows=found,
        ways=tuple(ways),
        work=work,
        batch_size=config.train.batch_size,
        checkpoint_bytes=ways[0].held.gradient_bytes + ways[0].held.optimizer_bytes,
        checkpoints=kept(config, work.steps),
        flops=None if work.tokens is None else plain.flops_per_token * work.tokens,
        offers=offers(table, ways, work, config.hardware, config.checkpoint, assume),
        assumptions=assume,
        notes=(*notes, *limits(config)),
        seconds=time.perf_counter() - began,
    )


def all_ways(
    config: RunConfig,
    sizes: list[int],
    largest: int,
    table: dict[str, Gpu],
    assume: Assumptions,
    *,
    data: bool,
) -> tuple[list[Way], Any]:
    """Recomputed and not, and, where that leaves a GPU out, in 4 bits."""
    ways = []
    task: Any = None
    for recompute in (True, False):
        context = context_of(config, data=data, activation_checkpointing=recompute)
        way, task = traced(config, context, sizes, below_bytes=largest)
        ways.append(way)
    smallest = min(step.peak_bytes for way in ways for step in way.steps)
    left_out = any(gpu.memory_bytes < needed_bytes(smallest, assume) for gpu in table.values())
    packed = in_four_bits(config) if left_out else None
    if packed is not None:
        context = context_of(packed, data=data, activation_checkpointing=True)
        ways.append(traced(packed, context, sizes, below_bytes=largest, changed=True)[0])
    return ways, task


def ladder_of(config: RunConfig) -> list[int]:
    """Rows at once that are tried: powers of two, and what the config says."""
    most = min(config.train.batch_size, MOST_ROWS)
    wanted = config.hardware.microbatch_size
    own = [] if wanted == "auto" else [min(wanted, config.train.batch_size)]
    return sorted({*ladder(most), *own})


def work_of(config: RunConfig, rows: Rows) -> Work:
    """Steps and tokens: the horizon's, over what is known of the rows."""
    horizon, size = config.train.horizon, config.train.batch_size
    per_step = size * rows.tokens_per_row
    steps: int | None
    if horizon.steps:
        steps = horizon.steps
    elif horizon.tokens:
        steps = max(1, round(horizon.tokens / per_step))
    elif rows.per_epoch is None:
        return Work(steps=None, tokens=None)
    else:
        steps = max(1, -(-round((horizon.epochs or 0) * rows.per_epoch) // size))
    times = 0
    if config.evaluate:
        times = -(-steps // config.evaluate.every_steps) + config.evaluate.at_start
    return Work(
        steps=steps, tokens=steps * per_step, held_out_tokens=float(times * rows.held_out_tokens)
    )


def kept(config: RunConfig, steps: int | None) -> int:
    """Checkpoints on the disk at most: what retention keeps, and the one being written."""
    section = config.checkpoint
    count = section.keep_last + 1
    if config.evaluate:
        count += section.keep_best
    if section.keep_every_steps and steps:
        count += steps // section.keep_every_steps
    return count


def limits(config: RunConfig) -> list[str]:
    """What this plan does not know of this config."""
    said = []
    if config.train.optimizer != "adamw":
        said.append(
            f"{config.train.optimizer}: its state is computed from its layout, its kernels are not "
            "traced; paged state is counted as if it stayed on the GPU"
        )
    if config.hardware.precision == "fp32":
        said.append(
            "fp32: attention on a GPU is traced as matrix products, which hold more than the "
            "kernel that will run"
        )
    if aloud := getattr(config.task, "read_rows", 0) if config.evaluate else 0:
        said.append(
            f"each evaluation also reads {aloud:,} rows aloud, token by token: its time is not in "
            "the plan (task.read_rows, task.answer_tokens; the run measures it as reading_seconds)"
        )
    if config.hardware.compile:
        said.append("compile: true is traced uncompiled")
    return said
