"""Which rows go through the model together: this rank's share of a step, cut to fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headway.data.order import rows_at
from headway.engine.task import BuildContext
from headway.errors import ConfigError
from headway.models.backbone import base_model
from headway.records import Evaluation

CPU_BYTES = 400e6
"""What one forward pass may keep for backward under ``microbatch_size: auto`` on CPU: SmolLM2-135M
then sees about 600 tokens at once: 15 % slower than 1000, with 0.4 GB less."""
GPU_SHARE = 0.5
"""Where the plan does not know the model: of the GPU's memory that weights, gradients and optimizer
leave; the loss, temporary values and fragments need some too."""
KEPT_BYTES = 40
"""Kept for backward per token, layer and unit of width: 629 MB for 906 tokens of SmolLM2-135M."""

Order = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Positions in the training order -> rows."""


def rows_of_step(order: Order, step: int, context: BuildContext) -> list[int]:
    """This rank's rows of the global batch that follows ``step``: a pure function."""
    size = context.batch_size
    rows = order(np.arange(step * size, (step + 1) * size, dtype=np.int64))
    return [int(row) for row in rows[context.rank :: context.ranks]]


def drawn(total: int, context: BuildContext) -> NDArray[np.int64]:
    """Held-out rows that are measured: all, or ``held_out_rows`` of them, sorted.

    Raises ConfigError where a rank would have none: it would wait for the others in vain.
    """
    wanted = context.held_out_rows
    if 0 < min(total, wanted or total) < context.ranks:
        raise ConfigError(
            f"{min(total, wanted or total)} held-out rows are fewer than ranks ({context.ranks}): "
            "raise evaluate.max_rows, give more rows in task.data.eval, or train on fewer ranks"
        )
    if not wanted or wanted >= total:
        return np.arange(total)
    return np.sort(rows_at(context.seed, np.arange(wanted), total, stream=-2))


def part_of(total: int, evaluation: Evaluation) -> int | None:
    """``total`` held-out rows where the evaluation is over fewer; None where it is over all."""
    return total if total > evaluation.rows else None


def groups(
    rows: Sequence[int],
    length_of: Callable[[int], int],
    model: nn.Module,
    context: BuildContext,
    halvings: int = 0,
) -> Iterator[list[int]]:
    """``rows`` as microbatches of ``microbatch_size``, or of as many tokens as the memory takes.

    A row that is too long by itself goes alone. No rows, no group. Each halving cuts every group in
    two, down to one row.
    """
    size = context.microbatch_size
    budget = context.tokens_at_once or tokens_at_once(model, context.device)
    group: list[int] = []
    tokens = 0
    for row in rows:
        length = length_of(row)
        full = len(group) == size if size else tokens + length > budget
        if group and full:
            yield from pieces(group, halvings)
            group, tokens = [], 0
        group.append(row)
        tokens += length
    if group:
        yield from pieces(group, halvings)


def pieces(group: list[int], halvings: int) -> Iterator[list[int]]:
    """A group in order, in parts of 1 / 2**halvings of its rows, rounded up."""
    size = -(-len(group) // 2**halvings)
    for start in range(0, len(group), size):
        yield group[start : start + size]


def longest_rows(lengths: NDArray[np.int64], rows: int) -> list[int]:
    """Numbers of the ``rows`` longest, longest first; from the first again when there are fewer."""
    order = np.argsort(-lengths, kind="stable")
    return [int(row) for row in np.resize(order, rows)]


def tokens_at_once(model: nn.Module, device: str) -> float:
    """Tokens that one forward and backward pass may take: the same at every step."""
    shape = base_model(model).config.get_text_config()
    room = CPU_BYTES if device == "cpu" else GPU_SHARE * room_on_gpu(model)
    return room / (KEPT_BYTES * shape.num_hidden_layers * shape.hidden_size)


def room_on_gpu(model: nn.Module) -> float:
    """Bytes of this GPU beside weights, gradients and AdamW's two moments in fp32."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    weights = sum(p.nbytes for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return float(max(total - weights - 12 * trained, 0.1 * total))
