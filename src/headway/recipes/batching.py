"""Which rows go through the model together: this rank's share of a step, cut to fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from headway.data.order import rows_at
from headway.engine.task import BuildContext
from headway.errors import ConfigError
from headway.models.backbone import base_model

ACTIVATION_BYTES = {"cpu": 400e6, "cuda": 8e9}
"""What one forward pass may keep for backward under ``microbatch_size: auto``. On CPU SmolLM2-135M
then sees about 600 tokens at once: 15 % slower than 1000, with 0.4 GB less."""
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


def groups(
    rows: Sequence[int], length_of: Callable[[int], int], model: nn.Module, context: BuildContext
) -> Iterator[list[int]]:
    """``rows`` as microbatches of ``microbatch_size``, or of as many tokens as the memory takes.

    A row that is too long by itself goes alone. No rows, no group.
    """
    size, budget = context.microbatch_size, tokens_at_once(model, context.device)
    group: list[int] = []
    tokens = 0
    for row in rows:
        length = length_of(row)
        full = len(group) == size if size else tokens + length > budget
        if group and full:
            yield group
            group, tokens = [], 0
        group.append(row)
        tokens += length
    if group:
        yield group


def longest_rows(lengths: NDArray[np.int64], rows: int) -> list[int]:
    """Numbers of the ``rows`` longest, longest first; from the first again when there are fewer."""
    order = np.argsort(-lengths, kind="stable")
    return [int(row) for row in np.resize(order, rows)]


def tokens_at_once(model: nn.Module, device: str) -> float:
    """Tokens that one forward and backward pass may take."""
    shape = base_model(model).config.get_text_config()
    return ACTIVATION_BYTES[device] / (KEPT_BYTES * shape.num_hidden_layers * shape.hidden_size)
