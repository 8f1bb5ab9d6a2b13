"""The memory of a run's step, for each way of doing it: rows at once, recomputed or not, 4 bits.

One way is one trace of the real model; the ladder of rows is traced, not extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import BaseModel

from headway.config import RunConfig, find_recipe
from headway.engine.fit import Footprint, Held, footprint, held
from headway.engine.task import BuildContext, Task
from headway.engine.world import World
from headway.opening import build_context, optimizer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to do the step."""

    recompute: bool
    tuning: str | None
    """The task's ``tuning.kind``, where it has one."""
    changed: bool
    """Whether the tuning is another than the config's."""
    held: Held
    steps: tuple[Footprint, ...]
    """By rows at once, rising."""
    flops_per_token: float
    """Of the training rows themselves, recomputation counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is known of the training rows."""

    per_epoch: int | None
    tokens_per_row: float
    longest_tokens: int
    held_out_tokens: int
    read: bool
    said: str
    """Where this comes from."""


def context_of(config: RunConfig, **changes: Any) -> BuildContext:
    """The run's own context, for a model without weights. Compiling changes no shape."""
    context = build_context(config, World(torch.device("cpu")))
    return replace(context, weights=False, compile=False, **changes)


def built(config: RunConfig, context: BuildContext) -> Task:
    """The run's task without weights; to be called within ``weightless``."""
    torch.manual_seed(config.run.seed)
    task: Task = find_recipe(config.recipe).build(config.task, context)
    return task


def ladder(most: int) -> list[int]:
    """1, 2, 4 … up to ``most``, which comes last."""
    rows = [1]
    while rows[-1] * 2 < most:
        rows.append(rows[-1] * 2)
    return rows if rows[-1] == most else [*rows, most]


def traced(
    config: RunConfig,
    context: BuildContext,
    rows: list[int],
    *,
    below_bytes: float = float("inf"),
    changed: bool = False,
) -> tuple[Way, Task]:
    """The step's memory at each of ``rows``, up to the first that needs more than ``below_bytes``.

    To be called within ``weightless``.
    """
    task = built(config, context)
    optimizer = optimizer_of(config, task) if config.train.optimizer == "adamw" else None
    there = held(task, optimizer, max_grad_norm=config.train.max_grad_norm)
    steps: list[Footprint] = []
    for count in rows:
        found = footprint(task, task.longest(count), there, precision=context.precision)
        steps.append(found)
        if found.peak_bytes > below_bytes:
            break
    way = Way(
        recompute=context.activation_checkpointing,
        tuning=tuning_of(config),
        changed=changed,
        held=there,
        steps=tuple(steps),
        flops_per_token=flops_per_token(task, there, steps, context),
    )
    return way, task


def flops_per_token(
    task: Task, there: Held, steps: list[Footprint], context: BuildContext
) -> float:
    """Of the first batch as the run will see it; of the longest row where no rows were read."""
    if not context.data or not task.rows_per_epoch:
        return steps[0].flops / steps[0].tokens
    batch = task.batch_at(0)[:4]
    found = [footprint(task, m, there, precision=context.precision) for m in batch]
    return sum(f.flops for f in found) / sum(f.tokens for f in found)


def tuning_of(config: RunConfig) -> str | None:
    """The kind of tuning, where the recipe has such a thing."""
    return getattr(getattr(config.task, "tuning", None), "kind", None)


def in_four_bits(config: RunConfig) -> RunConfig | None:
    """The same config with its frozen weights in 4 bits, where the recipe offers that."""
    tuning = getattr(config.task, "tuning", None)
    if tuning_of(config) != "lora" or not isinstance(tuning, BaseModel):
        return None
    task = config.task.model_dump(mode="json")
    task["tuning"] = {**task["tuning"], "kind": "qlora"}
    return RunConfig(**{**config.tree(), "task": task})

