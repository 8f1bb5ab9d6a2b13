"""Held-out measurements with the loss that trains: same sums, no gradients, nothing disturbed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from headway.engine.ladder import Rung, give_back_memory, step_down
from headway.engine.precision import autocast
from headway.engine.steps import on_device
from headway.engine.task import Microbatch, Observing, RowSums, Task
from headway.engine.world import World
from headway.errors import DataError
from headway.records import Evaluation, RowLoss


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode and a forked random state; every module's mode is as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(
    task: Task,
    *,
    step: int,
    world: World,
    precision: str,
    worst_rows: int = 0,
    interrupted: Callable[[], bool] = lambda: False,
    rung: Rung | None = None,
) -> Evaluation | None:
    """The mean loss over all held-out rows, and the rows with the highest losses.

    Where memory runs out it begins again in smaller pieces. ``interrupted`` is asked after each
    microbatch; None is returned when it asked to stop: a partial mean is no measurement.
    Raises DataError when there are no held-out rows, OutOfMemory when one alone does not fit.
    """
    rung = rung or Rung()
    while True:
        falls = rung.falls
        found = _measured(task, step, world, precision, worst_rows, interrupted, rung)
        if rung.falls == falls:
            return found
        give_back_memory(task, world.device)


def _measured(
    task: Task,
    step: int,
    world: World,
    precision: str,
    worst_rows: int,
    interrupted: Callable[[], bool],
    rung: Rung,
) -> Evaluation | None:
    """One try; None also when memory ran out, which moves ``rung``."""
    started = time.perf_counter()
    rows: list[tuple[int, float, float]] = []
    totals: dict[str, float] = {}
    observed: list[tuple[float, ...]] = []
    with undisturbed(task.model, world.device):
        for microbatch in task.held_out(rung.halvings):
            try:
                sums, figures = _sums(task, microbatch, precision, world)
            except RuntimeError as error:
                step_down(rung, error, task, [microbatch], world)
                return None
            observed += figures
            values = {name: total.float().tolist() for name, total in sums.items()}
            for name, per_row in values.items():
                totals[name] = totals.get(name, 0.0) + sum(per_row)
            rows += zip(microbatch.rows, values["loss"], microbatch.weights, strict=True)
            # Always asked, since asking is a sign of life; obeyed by one process alone, since ranks
            # may hold different numbers of microbatches.
            if interrupted() and world.ranks == 1:
                return None
    found = _summed(totals, rows, step, world, worst_rows, started)
    if not isinstance(task, Observing):
        return found
    return replace(found, observed=tuple(sorted(world.gather(observed))))


def _sums(
    task: Task, microbatch: Microbatch, precision: str, world: World
) -> tuple[RowSums, list[tuple[float, ...]]]:
    """Named sums per row, and each loss unit's own figures where the task has any."""
    with autocast(precision, world.device):
        inputs = on_device(microbatch.inputs, world.device)
        if not isinstance(task, Observing):
            return task.loss(task.model, inputs), []
        sums, figures = task.observe(task.model, inputs)
        return sums, [tuple(row) for row in figures.double().tolist()]


def _summed(
    totals: dict[str, float],
    rows: list[tuple[int, float, float]],
    step: int,
    world: World,
    worst_rows: int,
    started: float,
) -> Evaluation:
    names = sorted(totals)
    *sums, count, weight = world.sum(
        [*(totals[name] for name in names), len(rows), sum(row[2] for row in rows)]
    )
    if weight == 0:
        raise DataError("evaluation found no held-out loss unit; set task.data.eval")
    worst = _worst(rows, worst_rows, world)
    return Evaluation(
        step=step,
        rows=int(count),
        weight=weight,
        metrics={name: value / weight for name, value in zip(names, sums, strict=True)},
        baselines={},
        seconds=time.perf_counter() - started,
        worst=worst,
    )


def _worst(rows: list[tuple[int, float, float]], keep: int, world: World) -> tuple[RowLoss, ...]:
    """The ``keep`` rows of highest mean loss over all ranks; ties in row order."""
    mine: list[tuple[float, ...]] = [
        (total / weight, float(row), weight) for row, total, weight in rows
    ]
    everyone = world.gather(_hardest(mine, keep))
    return tuple(
        RowLoss(row=int(row), loss=loss, weight=weight)
        for loss, row, weight in _hardest(everyone, keep)
    )


def _hardest(rows: list[tuple[float, ...]], keep: int) -> list[tuple[float, ...]]:
    # NaN compares with nothing, so it would stay wherever it was; and it is the worst there is.
    return sorted(rows, key=lambda row: (not math.isnan(row[0]), -row[0], row[1]))[:keep]
