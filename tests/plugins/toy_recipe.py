"""A recipe as a stranger would write it: a small regression with dropout and uneven row weights.

It enters by the entry point group, like ours, and is small enough to be trained hundreds of times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from headway.data.order import rows_at
from headway.engine.task import BuildContext, GoOn, Inputs, Microbatch, RowSums, SavedModel
from headway.errors import ConfigError, DataError
from headway.records import Check, Evaluation


class ToyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int = 64
    width: int = 8
    dropout: float = 0.25
    nan_at_steps: tuple[int, ...] = ()
    """Batches (counted from 0) whose last row holds a NaN."""
    huge_at_steps: tuple[int, ...] = ()
    """Batches whose last row has a target far from all others."""
    step_seconds: float = 0.0
    """How long the loss of one microbatch takes at least, in training and evaluation."""
    buffer_values: int = 0
    """Extra frozen-in-place numbers in every checkpoint, to make saves large."""


@dataclass
class ToyTask:
    config: ToyConfig
    context: BuildContext
    model: nn.Module
    held_rows: int = 6

    @property
    def rows_per_epoch(self) -> int:
        return self.config.rows

    @property
    def tokens_per_epoch(self) -> int:
        return self.config.rows * 4

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        made = torch.Generator().manual_seed(1000 + index)
        x = torch.randn(4, generator=made)
        values = 1 + index % 3
        return x, (x.sum() * torch.arange(1, values + 1)).sin()

    def microbatch(self, rows: Sequence[int]) -> Microbatch:
        pairs = [self.row(row) for row in rows]
        targets = torch.full((len(rows), 3), float("nan"))
        for i, (_, y) in enumerate(pairs):
            targets[i, : len(y)] = y
        return Microbatch(
            inputs={"x": torch.stack([x for x, _ in pairs]), "y": targets},
            rows=tuple(rows),
            weights=tuple(float(len(y)) for _, y in pairs),
            tokens=4 * len(rows),
        )

    def batch_at(self, step: int, halvings: int = 0) -> list[Microbatch]:
        size = self.context.batch_size
        positions = np.arange(step * size, (step + 1) * size)
        rows = rows_at(self.context.seed, positions, self.config.rows).tolist()
        mine = rows[self.context.rank :: self.context.ranks]
        part = max(1, (self.context.microbatch_size or len(mine)) >> halvings)
        made = [self.microbatch(mine[i : i + part]) for i in range(0, len(mine), part)]
        if step in self.config.nan_at_steps and mine[-1] == rows[-1]:  # on one rank only
            made[-1].inputs["x"][-1] = float("nan")  # type: ignore[index]
        if step in self.config.huge_at_steps:
            made[-1].inputs["y"][-1] = 1e4  # type: ignore[index]
        return made

    def held_out(self, halvings: int = 0) -> Iterator[Microbatch]:
        mine = range(self.config.rows, self.config.rows + self.held_rows)
        for row in mine[self.context.rank :: self.context.ranks]:
            yield self.microbatch([row])

    def longest(self, rows: int) -> Microbatch:
        most = [row for row in range(self.config.rows) if row % 3 == 2] or [0]  # three values
        return self.microbatch([most[i % len(most)] for i in range(rows)])

    def loss(self, model: nn.Module, inputs: Inputs) -> RowSums:
        time.sleep(self.config.step_seconds)  # work, for tests that interrupt it
        wanted = inputs["y"]
        there = ~wanted.isnan()
        error = torch.where(there, model(inputs["x"]) - wanted.nan_to_num(), 0.0)
        return {"loss": error.square().sum(1), "absolute": error.abs().sum(1)}

    def recompute_activations(self) -> bool:
        return False

    def saved(self) -> SavedModel:
        return SavedModel(
            tensors={"model.safetensors": dict(self.model.state_dict())},
            files={"toy.json": json.dumps(self.config.model_dump()).encode()},
        )

    def facts(self) -> dict[str, Any]:
        count = sum(p.numel() for p in self.model.parameters())
        return {"parameters": count, "trainable": count, "identities": {"rows": self.config.rows}}


class ToyRecipe:
    Config = ToyConfig

    def build(self, config: ToyConfig, context: BuildContext) -> ToyTask:
        if config.rows < 1:
            raise DataError("toy: rows must be at least 1")
        width = config.width
        model = nn.Sequential(
            nn.Linear(4, width), nn.Tanh(), nn.Dropout(config.dropout), nn.Linear(width, 3)
        )
        if config.buffer_values:
            model.register_buffer("ballast", torch.randn(config.buffer_values))
        return ToyTask(config, context, model.to(context.device))

    def checks(self, config: ToyConfig, context: BuildContext) -> list[Check]:
        return []

    def measure(self, task: ToyTask, evaluation: Evaluation, go_on: GoOn) -> Evaluation:
        return replace(evaluation, baselines={**evaluation.baselines, "loss/zero": 0.5})

    def check_request(self, request: Mapping[str, Any]) -> None:
        if set(request) != {"x"}:
            raise ConfigError(f"toy answers x, not {sorted(request)}")

    def predict(self, task: ToyTask, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with torch.no_grad():
            return {"y": task.model(torch.tensor(request["x"])).tolist()}

    def export(self, task: ToyTask, config: ToyConfig, to: Path, format: str) -> Mapping[str, Any]:
        if format != "weights":
            raise ConfigError(f"toy exports weights, not {format}")
        from safetensors.torch import save_file

        save_file(task.model.state_dict(), to / "model.safetensors")
        return {}


RECIPE = ToyRecipe()
