"""Out of memory: the same global batch again, in smaller pieces. What is learned stays the same.

A step that does not fit leaves weights, optimizer and counters untouched: its gradients are thrown
away and the same rows come back in microbatches half as large, down to one row each; after that
activations are recomputed instead of kept. Sums over rows do not depend on the split, so neither
rung changes the mathematics. Shorter rows or fewer bits would: they are a person's decision.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headway.engine.task import Microbatch, Task
from headway.engine.world import World
from headway.errors import OutOfMemory

WORDS = (
    "DefaultCPUAllocator: can't allocate memory",  # malloc refused: a limit of the process
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",  # outside torch's own allocator
)
"""How libraries say it without torch.OutOfMemoryError."""


@dataclass
class Rung:
    """How a step is cut to fit this machine. The engine moves it; the run writes it down."""

    halvings: int = 0
    """Microbatches are so many times half as large as the task would choose."""
    recomputes: bool = False
    """Activations are recomputed because memory ran out."""
    falls: int = 0
    """How often memory ran out in this attempt."""

    def words(self) -> str:
        """What is done about it."""
        parts = f"microbatches cut in half {self.halvings} times" if self.halvings else ""
        recomputed = "activations recomputed" if self.recomputes else ""
        return " and ".join(part for part in (parts, recomputed) if part) or "as configured"


def step_down(
    rung: Rung, error: RuntimeError, task: Task, microbatches: Sequence[Microbatch], world: World
) -> None:
    """The next rung, after ``error`` in these microbatches.

    Raises ``error`` itself if it is no lack of memory, OutOfMemory if there is no rung left, or
    several ranks: the others wait for this one's gradients within the same backward pass.
    """
    if not is_out_of_memory(error):
        raise error
    rung.falls += 1
    said = str(error).partition("\n")[0]
    if world.ranks > 1:
        raise OutOfMemory(
            f"rank {world.rank} ran out of memory, and ranks cannot repeat a step alone: {said}. "
            f"Set hardware.microbatch_size below {max(len(m.rows) for m in microbatches)}, or "
            "hardware.activation_checkpointing: true, and run the same command"
        ) from error
    if any(len(m.rows) > 1 for m in microbatches):
        rung.halvings += 1
    elif not rung.recomputes and task.recompute_activations():
        rung.recomputes = True
    else:
        longest = max(microbatches, key=lambda m: m.tokens)
        raise OutOfMemory(
            f"one row alone does not fit: row {longest.rows[0]} with {longest.tokens} tokens, "
            f"activations recomputed: {said}. What is left changes what is learned, so it is "
            "yours to decide: shorter rows (task.max_tokens), tuning kind qlora, a smaller model; "
            "or a GPU with more memory"
        ) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on the GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in WORDS)


def give_back_memory(task: Task, device: torch.device) -> None:
    """Drop a broken step's gradients, and what its frames and torch's cache still hold."""
    for parameter in task.model.parameters():
        parameter.grad = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
