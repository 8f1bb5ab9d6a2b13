"""The rehearsal: real steps, the first on the heaviest microbatches, and all of it undone.

It is the run's own loop (``train_steps``) on the run's own model and optimizer, so what it takes of
time and memory is what training will take. Afterwards weights, buffers, optimizer, counters and
random states are bit for bit what they were.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from headway.engine.state import TrainState, checkpoint_bytes
from headway.engine.steps import Plan, train_steps
from headway.engine.task import Inputs, Microbatch, RowSums, Task
from headway.engine.world import World
from headway.errors import NonFiniteStep, OutOfMemory
from headway.records import StepReport

LOOKED_AT_STEPS, LOOKED_AT_ROWS, LOOKED_AT_SECONDS = 64, 4096, 5.0
"""Where a task cuts its batches by tokens, so many are looked at for the fullest microbatch; fewer
where they are slow to make, as pictures are: a GPU waits meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What real steps took."""

    rows: int
    """In the heaviest microbatch."""
    tokens: int
    """In the heaviest microbatch."""
    first_seconds: float
    """The step on the heaviest microbatches: the first, so with all that is done once."""
    peak_bytes: int
    """Highest memory of both steps: the GPU's allocator's, or the process's where there is none."""
    step_seconds: float
    """A step on the run's own next batch."""
    step_tokens: int
    """In that batch."""
    checkpoint_bytes: int


def rehearse(
    task: Task,
    state: TrainState,
    plan: Plan,
    world: World,
    microbatch_rows: int | None,
    halvings: int = 0,
) -> Rehearsal:
    """Two steps: on the heaviest microbatches, and on the next batch. The state is as before.

    ``halvings``: how much finer than by itself the task cuts that batch.

    Raises NonFiniteStep, TogetherTooLarge, or OutOfMemory where one row does not fit.
    """
    heaviest = heaviest_batch(task, microbatch_rows)
    ordinary = task.batch_at(state.step, halvings)
    with undone(state, world.device) as kept_bytes:
        forget_peak(world.device)
        first = one_step(task, state, plan, world, heaviest)
        second = one_step(task, state, plan, world, ordinary)
        peak_bytes = peak(world.device)
        size = checkpoint_bytes(state)
    forget_peak(world.device)  # what training then reports is its own
    most = max(heaviest, key=lambda microbatch: microbatch.tokens)
    on_host = world.device.type == "cpu"  # where what is kept to undo the steps lies too
    return Rehearsal(
        rows=len(most.rows),
        tokens=most.tokens,
        first_seconds=first.seconds,
        peak_bytes=peak_bytes - (kept_bytes if on_host else 0),
        step_seconds=second.seconds,
        step_tokens=second.tokens,
        checkpoint_bytes=size,
    )


def heaviest_batch(task: Task, rows: int | None) -> list[Microbatch]:
    """Microbatches that need the most memory; two, because the second finds gradients there.

    ``rows`` in a microbatch: the longest so many. None, where the task cuts by tokens: the longest
    row, and the microbatch of the most tokens among the first batches.
    """
    if rows is not None:
        return [task.longest(rows)] * 2
    fullest: list[Microbatch] = []  # one alone is kept: pictures are large
    looked_at, began = 0, time.monotonic()
    for step in range(LOOKED_AT_STEPS):
        batch = task.batch_at(step)
        looked_at += sum(len(m.rows) for m in batch)
        fullest = [max([*fullest, *batch], key=lambda microbatch: microbatch.tokens)]
        if looked_at > LOOKED_AT_ROWS or time.monotonic() - began > LOOKED_AT_SECONDS:
            break
    return [*fullest, task.longest(1)]


def one_step(
    task: Task, state: TrainState, plan: Plan, world: World, batch: Sequence[Microbatch]
) -> StepReport:
    """One step of the training loop on this batch instead of its own."""
    only = cast(Task, OneBatch(task, batch))
    [report] = train_steps(only, state, replace(plan, num_steps=state.step + 1), world)
    if report.refused:
        rows = f"; rows {list(report.refused.rows)}" if report.refused.rows else ""
        raise NonFiniteStep(f"a step on rows of this run gave {report.refused.why}{rows}")
    return report


class TogetherTooLarge(OutOfMemory):
    """Rows do not fit together; fewer of them may."""

    def __init__(self, batch: Sequence[Microbatch]) -> None:
        most = max(batch, key=lambda microbatch: microbatch.tokens)
        self.rows = len(most.rows)
        super().__init__(
            f"{self.rows} rows with {most.tokens:,} tokens do not fit into memory together"
        )


class OneBatch:
    """A task whose every batch is this one; what ``train_steps`` asks of a task, and no more."""

    def __init__(self, task: Task, batch: Sequence[Microbatch]) -> None:
        self.model = task.model
        self._task, self._batch = task, batch

    def batch_at(self, step: int, halvings: int = 0) -> Sequence[Microbatch]:
        """The batch, whatever the step. Raises TogetherTooLarge rather than to cut it."""
        if halvings:
            raise TogetherTooLarge(self._batch)
        return self._batch

    def recompute_activations(self) -> bool:
        """Nothing is changed here."""
        return False

    def loss(self, model: torch.nn.Module, inputs: Inputs) -> RowSums:
        """The task's."""
        return self._task.loss(model, inputs)


@contextmanager
def undone(state: TrainState, device: torch.device) -> Iterator[int]:
    """Whatever is done to the state within is undone; yields the bytes of host memory this takes.

    Weights that do not train are not kept: nothing may change them.
    """
    model, optimizer = state.task.model, state.optimizer
    live = [p for p in model.parameters() if p.requires_grad] + list(model.buffers())
    kept = [tensor.detach().to("cpu", copy=True) for tensor in live]
    moments = {p: {k: copied(v) for k, v in held.items()} for p, held in optimizer.state.items()}
    settings = [dict(group) for group in optimizer.param_groups]
    modes = [(module, module.training) for module in model.modules()]
    counters = state.step, state.rows, state.tokens, list(state.evaluations), list(state.refused)
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield sum(tensor.nbytes for tensor in kept)
    finally:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for tensor, before in zip(live, kept, strict=True):
                tensor.copy_(before)
        optimizer.state.clear()
        optimizer.state.update(moments)
        for group, before_it in zip(optimizer.param_groups, settings, strict=True):
            group.update(before_it)
        for module, training in modes:
            module.training = training
        state.step, state.rows, state.tokens, state.evaluations, state.refused = counters


def copied(value: object) -> object:
    """A tensor of its own; anything else as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value


# ------------------------------------------------------------------ memory


def forget_peak(device: torch.device) -> None:
    """From now on the highest memory is measured anew. Where Linux does not let us, it is not."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set


def peak(device: torch.device) -> int:
    """Highest memory since ``forget_peak``, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
            return int(found[1]) * 1024
    return 0
