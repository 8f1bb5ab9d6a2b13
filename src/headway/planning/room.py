"""``hardware.microbatch_size: auto`` on a GPU: as many tokens at once as the plan says fit.

Where the plan was too hopeful, the ladder halves the microbatches; the mathematics stay.
"""

from __future__ import annotations

import torch

from headway.building import build_context
from headway.config import RunConfig
from headway.engine.fake import weightless
from headway.engine.fit import Footprint
from headway.engine.world import World
from headway.planning.assumptions import Assumptions
from headway.planning.memory import context_of, traced

CLOSE = 0.15
"""The search ends when so much more, as a share, does not fit."""


def tokens_that_fit(config: RunConfig, world: World, gpu_bytes: int) -> int:
    """Tokens in a microbatch whose step this GPU holds; 0 where by the plan not one row fits.

    Microbatches of the longest rows are traced, recomputed where the run will: one row, this rank's
    share of a batch, and where that is too much, some between, until what fits and what does not
    lie close together. Raises ConfigError for a model that cannot be planned.
    """
    assume, rows = Assumptions(), -(-config.train.batch_size // world.ranks)
    room = int((gpu_bytes - assume.context_bytes) / (1 + assume.fragmentation))
    recompute = build_context(config, world).activation_checkpointing
    with torch.random.fork_rng(devices=[]), weightless("cuda"):  # the run draws as without it
        context = context_of(config, data=False, activation_checkpointing=recompute)

        def step(count: int) -> Footprint:
            return traced(config, context, [count])[0].steps[0]

        fits = step(1)
        if world.ranks > 1:
            room -= fits.held.gradient_bytes  # the copies that ranks exchange
        if fits.peak_bytes > room:
            return 0
        over = step(rows)
        if over.peak_bytes <= room:
            return over.tokens
        while over.rows - fits.rows > max(1, CLOSE * fits.rows):
            found = step(between(fits, over, room))
            fits, over = (found, over) if found.peak_bytes <= room else (fits, found)
    return fits.tokens


def between(fits: Footprint, over: Footprint, room_bytes: int) -> int:
    """Rows where a straight line says that the room ends; at least a tenth of the way from both."""
    apart = over.rows - fits.rows
    share = (room_bytes - fits.peak_bytes) / (over.peak_bytes - fits.peak_bytes)
    return fits.rows + max(1, min(apart - 1, round(apart * min(max(share, 0.1), 0.9))))
