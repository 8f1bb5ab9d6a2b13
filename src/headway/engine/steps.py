"""The training loop: physics in one screen. What is done with each step is in
``headway/run.py``."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headway.engine.ahead import ahead
from headway.engine.ladder import Rung, give_back_memory, step_down, whole_or_said
from headway.engine.optim import clip, set_learning_rate
from headway.engine.precision import autocast, seed_step
from headway.engine.refusal import left_out, refusal
from headway.engine.schedule import Schedule
from headway.engine.state import TrainState
from headway.engine.task import Inputs, Microbatch, RowSums, Task
from headway.engine.world import World
from headway.records import StepReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the config fixes of the mathematics, resolved to steps."""

    num_steps: int
    seed: int
    schedule: Schedule
    max_grad_norm: float
    precision: str
    shorten_to: int | None = None
    """Tokens that a row which does not fit may be cut to; None: it may not."""


def train_steps(
    task: Task, state: TrainState, plan: Plan, world: World, rung: Rung | None = None
) -> Iterator[StepReport]:
    """Yield a report after each step; at every yield ``state`` is safe to save.

    A step whose loss or gradient is not finite is refused: the weights stay those of the step
    before, the report says so, and the next step takes the next batch. One that runs out of memory
    is done again in smaller pieces (``engine/ladder.py``).
    """
    rung = rung or Rung()
    row_sums = world.replicate(RowSumsOf(task))
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    task.model.train()
    with ahead(task.batch_at, until=plan.num_steps) as batch_at:
        while state.step < plan.num_steps:
            started = time.perf_counter()
            rate = plan.schedule.at(state.step)
            if state.leaves_out(state.step + 1):
                state.step += 1
                yield left_out(state.step, rate, peak_memory_bytes(world.device))
                continue
            microbatches = batch_at(state.step, rung.halvings)  # pure: no loader's state is saved
            weight, rows, tokens = world.sum(sizes(microbatches))
            seed_step(plan.seed, state.step, world.rank)  # dropout: a function of (seed, step)
            try:
                totals = gradients(row_sums, microbatches, weight, plan.precision, world)
                norm = clip(parameters, plan.max_grad_norm)
            except RuntimeError as error:
                cut = state.step, plan.shorten_to
                step_down(rung, error, task, microbatches, world, cut)
                totals = None
            if totals is None:  # the same rows again; outside of the except, which holds tensors
                give_back_memory(task, world.device)
                continue
            means, grad_norm = read(totals, norm, weight, world)  # the step's one host sync
            refused = refusal(means["loss"], grad_norm, microbatches, totals, world)
            state.step += 1
            if refused:
                state.refused.append(state.step)
            else:
                set_learning_rate(state.optimizer, rate)
                with whole_or_said(state.step):
                    state.optimizer.step()
                state.rows += int(rows)
                state.tokens += int(tokens)
            state.optimizer.zero_grad(set_to_none=True)
            yield StepReport(
                step=state.step,
                loss=means.pop("loss"),
                learning_rate=rate,
                grad_norm=grad_norm,
                weight=weight,
                rows=int(rows),
                tokens=int(tokens),
                seconds=time.perf_counter() - started,
                memory_bytes=peak_memory_bytes(world.device),
                also=means,
                refused=refused,
            )


def gradients(
    row_sums: nn.Module,
    microbatches: Sequence[Microbatch],
    weight: float,
    precision: str,
    world: World,
) -> list[dict[str, Tensor]]:
    """Add up the gradient of the whole global batch; each microbatch's named sums: name -> [rows].

    Sums over rows, microbatches and ranks, divided once by the global weight: never a mean of
    means. (DDP averages over ranks, hence the factor.)
    """
    totals: list[dict[str, Tensor]] = []
    for microbatch in microbatches:
        with gradients_meet(row_sums, at=microbatch is microbatches[-1]):
            with autocast(precision, world.device):
                sums = row_sums(on_device(microbatch.inputs, world.device))
            (sums["loss"].sum() * (world.ranks / weight)).backward()
        totals.append({name: rows.detach() for name, rows in sums.items()})
    return totals


class RowSumsOf(nn.Module):
    """The task's loss as a module's forward, so that DDP sees the call that leads to the
    gradients."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._loss = task.loss

    def forward(self, inputs: Inputs) -> RowSums:
        """Named sums per row: name -> [rows]."""
        return self._loss(self.model, inputs)


def sizes(microbatches: Sequence[Microbatch]) -> tuple[float, int, int]:
    """Loss units, rows and tokens of this rank's share."""
    return (
        sum(m.weight for m in microbatches),
        sum(len(m.rows) for m in microbatches),
        sum(m.tokens for m in microbatches),
    )


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs with every tensor on the device.

    They go to a GPU from pinned memory: from ordinary memory the host would wait for the copy, and
    so for all the work before it.
    """

    def sent(value: Tensor) -> Tensor:
        pinned = device.type == "cuda" and value.device.type == "cpu"
        return (value.pin_memory() if pinned else value).to(device, non_blocking=True)

    return {n: sent(value) if isinstance(value, Tensor) else value for n, value in inputs.items()}


@contextmanager
def gradients_meet(module: nn.Module, at: bool) -> Iterator[None]:
    """Gradients are exchanged between ranks once a step: at its last microbatch."""
    if at or not isinstance(module, nn.parallel.DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield


def read(
    totals: Sequence[dict[str, Tensor]], norm: Tensor, weight: float, world: World
) -> tuple[dict[str, float], float]:
    """Means over the global batch by name, and the gradient norm, with one wait for the device."""
    names = list(totals[0])
    sums = [torch.stack([t[name].sum().double() for t in totals]).sum() for name in names]
    *values, grad_norm = torch.stack([*sums, norm.double()]).tolist()
    means = [value / weight for value in world.sum(values)]
    return dict(zip(names, means, strict=True)), grad_norm


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory so far: the GPU allocator's peak, or the process's resident peak without a
    GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
