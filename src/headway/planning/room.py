"""``hardware.microbatch_size: auto`` on a GPU: as many tokens at once as the plan says fit.

Where the plan was too hopeful, the ladder halves the microbatches; the mathematics stay.
"""

from __future__ import annotations

from headway.building import build_context
from headway.config import RunConfig
from headway.engine.fake import weightless
from headway.engine.fit import Footprint
from headway.engine.world import World
from headway.planning.assumptions import Assumptions
from headway.planning.memory import context_of, ladder, traced


def tokens_that_fit(config: RunConfig, world: World, gpu_bytes: int) -> int:
    """Tokens in a microbatch whose step this GPU holds; 0 where by the plan not one row fits.

    The longest rows are traced, 1, 2, 4 … of them up to this rank's share of a batch, recomputed
    where the run will. Raises ConfigError for a model that cannot be planned.
    """
    assume, rows = Assumptions(), -(-config.train.batch_size // world.ranks)
    room = int((gpu_bytes - assume.context_bytes) / (1 + assume.fragmentation))
    recompute = build_context(config, world).activation_checkpointing
    with weightless("cuda"):
        context = context_of(config, data=False, activation_checkpointing=recompute)
        way, _ = traced(config, context, ladder(rows), below_bytes=room)
    copies = way.held.gradient_bytes if world.ranks > 1 else 0  # that the ranks exchange
    return tokens_within(way.steps, room - copies)


def tokens_within(steps: tuple[Footprint, ...], room_bytes: int) -> int:
    """Between the last of these microbatches that fits and the first that does not.

    Each operation's memory is linear in the rows, so the peak is convex: a chord is above it, and
    what fits by the chord fits.
    """
    fitting = [step for step in steps if step.peak_bytes <= room_bytes]
    if not fitting:
        return 0
    last = fitting[-1]
    over = next((step for step in steps if step.peak_bytes > room_bytes), None)
    if over is None:
        return last.tokens
    share = (room_bytes - last.peak_bytes) / (over.peak_bytes - last.peak_bytes)
    return int(last.tokens + share * (over.tokens - last.tokens))
