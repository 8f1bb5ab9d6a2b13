"""The memory of a run's step, for each way of doing it: rows at once, recomputed or not, 4 bits.

Each is traced with the run's own code: every rung of the ladder of rows, and of the layers, where
all are alike, as many as it takes to know what one more adds (``engine.fit.depth``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import BaseModel

from headway.building import build_context, optimizer_of
from headway.config import RunConfig, find_recipe
from headway.engine.fit import SHALLOW, Footprint, Held, at_depth, footprint, held
from headway.engine.task import BuildContext, Microbatch, Task
from headway.engine.world import World


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
    whole: bool = False,
) -> tuple[Way, Task]:
    """The step's memory at each of ``rows``, up to the first that needs more than ``below_bytes``.

    ``whole``: trace every layer, also where all are alike and two shallow models say the same.
    To be called within ``weightless``.
    """
    low, high = SHALLOW
    shallow = Traced.of(config, replace(context, layers=None if whole else high))
    layers = shallow.task.facts().get("layers") or 0
    pair = None
    if not whole and layers > high:
        pair = Traced.of(config, replace(context, layers=low))
    steps: list[Footprint] = []
    for count in rows:
        steps.append(step_of(shallow, pair, layers, lambda task, n=count: task.longest(n)))  # type: ignore[misc]
        if steps[-1].peak_bytes > below_bytes:
            break
    way = Way(
        recompute=context.activation_checkpointing,
        tuning=tuning_of(config),
        changed=changed,
        held=steps[0].held,
        steps=tuple(steps),
        flops_per_token=flops_per_token(shallow, pair, layers, steps),
    )
    return way, shallow.task


@dataclass(frozen=True, slots=True)
class Traced:
    """A task without weights, and what it holds."""

    task: Task
    held: Held
    precision: str
    read: bool

    @classmethod
    def of(cls, config: RunConfig, context: BuildContext) -> Traced:
        """Built now."""
        task = built(config, context)
        optimizer = optimizer_of(config, task) if config.train.optimizer == "adamw" else None
        there = held(task, optimizer, max_grad_norm=config.train.max_grad_norm)
        return cls(task, there, context.precision, context.data and task.rows_per_epoch > 0)

    def at(self, microbatch: Microbatch) -> Footprint:
        """The footprint of this microbatch."""
        return footprint(self.task, microbatch, self.held, precision=self.precision)


def step_of(
    one: Traced, pair: Traced | None, layers: int, batch: Callable[[Task], Microbatch]
) -> Footprint:
    """The footprint of a microbatch in the whole model."""
    found = one.at(batch(one.task))
    return found if pair is None else at_depth(layers, pair.at(batch(pair.task)), found)


def flops_per_token(one: Traced, pair: Traced | None, layers: int, steps: list[Footprint]) -> float:
    """Of the first batch as the run will see it; of the longest row where no rows were read."""
    if not one.read:
        return steps[0].flops / steps[0].tokens
    found = step_of(one, pair, layers, lambda task: task.batch_at(0)[0])
    return found.flops / found.tokens


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
