"""Out of memory: the same global batch again, in smaller pieces. What is learned stays the same.

A step that does not fit leaves weights, optimizer and counters untouched: its gradients are thrown
away and the same rows come back in microbatches half as large, down to one row each; after that
activations are recomputed instead of kept. Sums over rows do not depend on the split, so neither
rung changes the mathematics. Shorter rows do: they are cut only where the config allows it
(``train.shorten_rows_to``). Fewer bits are another model: that is a person's decision.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from headway.engine.task import Microbatch, Shortening, Task
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
    cut_tokens: int = 0
    """Training rows are cut to so many tokens; 0: they are whole."""
    cut_since: int = 0
    """From the batch after this step on."""
    falls: int = 0
    """How often memory ran out in this attempt."""

    def words(self) -> str:
        """What is done about it."""
        parts = f"microbatches cut in half {self.halvings} times" if self.halvings else ""
        recomputed = "activations recomputed" if self.recomputes else ""
        cut = f"rows CUT to {self.cut_tokens} tokens" if self.cut_tokens else ""
        return " and ".join(part for part in (parts, recomputed, cut) if part) or "as configured"


class OneRowTooLarge(OutOfMemory):
    """A row does not fit by itself, and what was tried was all that may be."""

    def __init__(self, row: Microbatch, said: str) -> None:
        self.tokens = row.tokens
        super().__init__(
            f"one row alone does not fit: row {row.rows[0]} with {row.tokens} tokens, "
            f"activations recomputed: {said}. What is left changes what is learned, so it is "
            "yours to decide: shorter rows (train.shorten_rows_to, or task.max_tokens for all), "
            "tuning kind qlora, a smaller model; "
            "or a GPU with more memory"
        )


def step_down(
    rung: Rung,
    error: RuntimeError,
    task: Task,
    microbatches: Sequence[Microbatch],
    world: World,
    cut: tuple[int, int | None] = (0, None),
) -> None:
    """The next rung, after ``error`` in these microbatches.

    ``cut``: the step after which rows may be cut, and the fewest tokens they may be cut to.
    Raises ``error`` itself if it is no lack of memory, OneRowTooLarge if there is no rung left,
    OutOfMemory if there are several ranks: the others wait for this one's gradients within the same
    backward pass.
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
    step, shorten_to = cut
    longest = max(microbatches, key=lambda m: m.tokens)
    if any(len(m.rows) > 1 for m in microbatches):
        rung.halvings += 1
    elif not rung.recomputes and task.recompute_activations():
        rung.recomputes = True
    elif shorten_to and longest.tokens > shorten_to and isinstance(task, Shortening):
        rung.cut_tokens, rung.cut_since = max(shorten_to, longest.tokens // 2), step
        rung.halvings += 1  # so that no batch that was made before is taken
        task.cut_rows(rung.cut_tokens, rung.cut_since)
    else:
        raise OneRowTooLarge(longest, said) from error


@contextmanager
def whole_or_said(step: int) -> Iterator[None]:
    """The optimizer's update: half of it may be done when memory runs out, so it is never repeated.

    Raises OutOfMemory then: no checkpoint is made of such weights.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"memory ran out in the optimizer's update of step {step}, where no microbatch is too "
            f"large: {str(error).partition(chr(10))[0]}. Weights, gradients and the optimizer's "
            "state alone do not fit: use train.optimizer adamw_8bit, tuning kind lora or qlora, a "
            "smaller model, or a GPU with more memory. What was saved is untouched"
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
