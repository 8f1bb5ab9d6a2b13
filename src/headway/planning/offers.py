"""Which GPU can do it, in which way, how long it takes and what it costs: arithmetic alone.

Each way is a step traced before; a GPU takes the first way that fits, in the order of how far it is
from the config: what it asks for (``auto`` asks for nothing), then other mechanics (fewer rows at
once, recomputed activations), then weights in 4 bits, which the config must allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headway.config.sections import Checkpoint, Hardware
from headway.cost import Gpu, Rate
from headway.engine.fit import Footprint
from headway.planning.assumptions import Assumptions
from headway.planning.memory import Way


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How much is to be done. None where the number of rows is not known."""

    steps: int | None
    tokens: float | None
    held_out_tokens: float = 0.0
    """Read by all evaluations together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """What the work costs at one rate."""

    rate: Rate
    hours: float
    """Of rent: on a spot GPU with what preemptions are expected to lose."""
    usd: float
    lost_hours: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One GPU, and what the run would be on it."""

    gpu: Gpu
    fits: bool
    rows: int = 0
    """At once: the microbatch."""
    recompute: bool = False
    changes: tuple[str, ...] = ()
    """What the config would have to say for this way."""
    as_asked: bool = True
    """Whether it contradicts nothing that the config asks for."""
    peak_bytes: int = 0
    """Of tensors."""
    needs_bytes: int = 0
    """With what the process holds beside them; where nothing fits, of the smallest way."""
    hours: float | None = None
    on_demand: Money | None = None
    spot: Money | None = None
    marks: tuple[str, ...] = ()
    """``cheapest``, ``fastest``."""

    @property
    def usd(self) -> float | None:
        """The lower of what it costs on demand and on spot."""
        known = [money.usd for money in (self.on_demand, self.spot) if money]
        return min(known, default=None)


def needed_bytes(peak_bytes: int, assume: Assumptions) -> int:
    """What a GPU must have for a step of this peak."""
    return int(peak_bytes * (1 + assume.fragmentation)) + assume.context_bytes


def fitting(
    gpu: Gpu, ways: Sequence[Way], hardware: Hardware, assume: Assumptions
) -> tuple[Way, Footprint, tuple[str, ...]] | None:
    """The way to take on this GPU, its step, and what the config must change for it."""
    candidates = []
    for way in ways:
        for step in way.steps:
            if needed_bytes(step.peak_bytes, assume) <= gpu.memory_bytes:
                # Least against the config, then least arithmetic, then the most rows at once.
                far = refused(way, step.rows, hardware)
                candidates.append(((far, way.flops_per_token, -step.rows), way, step))
    if not candidates:
        return None
    _, way, step = min(candidates, key=lambda each: each[0])
    return way, step, changes_for(way, step.rows, hardware)


def changes_for(way: Way, rows: int, hardware: Hardware) -> tuple[str, ...]:
    """What the config must say to be done in this way; nothing where it says so already."""
    found = []
    if hardware.microbatch_size not in ("auto", rows):
        found.append(f"hardware.microbatch_size={rows}")
    recompute = hardware.activation_checkpointing
    if way.recompute != (True if recompute == "auto" else recompute):  # `auto` does, on a GPU
        found.append(f"hardware.activation_checkpointing={str(way.recompute).lower()}")
    if way.changed:
        found.append(f"task.tuning.kind={way.tuning}")
    return tuple(found)


def refused(way: Way, rows: int, hardware: Hardware) -> int:
    """How far this way is from what the config asks for: 0 not at all, 1 mechanics, 2 storage."""
    asked = hardware.activation_checkpointing in ("auto", way.recompute)
    return 2 if way.changed else 0 if asked and hardware.microbatch_size in ("auto", rows) else 1


def offer(
    gpu: Gpu,
    ways: Sequence[Way],
    work: Work,
    hardware: Hardware,
    saving: Checkpoint,
    assume: Assumptions,
) -> Offer:
    """What the run would be on this GPU."""
    found = fitting(gpu, ways, hardware, assume)
    if found is None:
        least = min((step.peak_bytes for way in ways for step in way.steps), default=0)
        return Offer(gpu=gpu, fits=False, peak_bytes=least, needs_bytes=needed_bytes(least, assume))
    way, step, changes = found
    seconds = seconds_of(work, way, gpu, assume)
    made = Offer(
        gpu=gpu,
        fits=True,
        rows=step.rows,
        recompute=way.recompute,
        changes=changes,
        as_asked=refused(way, step.rows, hardware) == 0,
        peak_bytes=step.peak_bytes,
        needs_bytes=needed_bytes(step.peak_bytes, assume),
        hours=None if seconds is None else seconds / 3600,
    )
    if seconds is None:
        return made
    hours = seconds / 3600
    rate, on_demand = gpu.on_demand, None
    if rate is not None:
        on_demand = Money(rate=rate, hours=hours, usd=hours * rate.usd_per_hour)
    return replace(
        made, on_demand=on_demand, spot=spot_money(gpu.spot, seconds, work, saving, assume)
    )


def seconds_of(work: Work, way: Way, gpu: Gpu, assume: Assumptions) -> float | None:
    """Of computing all of it. None where the work, or the GPU's peak, is not known."""
    if work.tokens is None or gpu.bf16_flops_per_second is None:
        return None
    # An evaluation is a forward pass: a third of a step of trained weights.
    flops = way.flops_per_token * (work.tokens + work.held_out_tokens / 3)
    return flops / (gpu.bf16_flops_per_second * assume.utilisation)


def spot_money(
    rate: Rate | None, seconds: float, work: Work, saving: Checkpoint, assume: Assumptions
) -> Money | None:
    """What it costs on a GPU that may be taken away.

    Each preemption loses half the time between two checkpoints and the time to come back; what is
    lost is done again, under preemptions too: h = seconds + rate * h * lost.
    """
    if rate is None:
        return None
    between = seconds
    if saving.every_minutes:
        between = min(between, 60 * saving.every_minutes)
    if saving.every_steps and work.steps:
        between = min(between, seconds / work.steps * saving.every_steps)
    lost_each = (between / 2 + assume.restart_seconds) / 3600
    share = assume.preemptions_per_hour * lost_each
    if share >= 1:
        return None  # it would lose more than it does
    hours = seconds / 3600 / (1 - share)
    return Money(
        rate=rate, hours=hours, usd=hours * rate.usd_per_hour, lost_hours=hours - seconds / 3600
    )


def offers(
    gpus: Mapping[str, Gpu],
    ways: Sequence[Way],
    work: Work,
    hardware: Hardware,
    saving: Checkpoint,
    assume: Assumptions,
) -> tuple[Offer, ...]:
    """An offer for every GPU of the table, the cheapest and the fastest marked."""
    made = [offer(gpu, ways, work, hardware, saving, assume) for gpu in gpus.values()]
    timed = [each for each in made if each.fits and each.hours is not None]
    priced = [each for each in timed if each.usd is not None]
    fastest = min(timed, key=lambda each: each.hours or 0, default=None)
    cheapest = min(priced, key=lambda each: each.usd or 0, default=None)

    def marked(each: Offer) -> Offer:
        names = (("cheapest", cheapest), ("fastest", fastest))
        return replace(each, marks=tuple(name for name, best in names if best is each))

    return tuple(marked(each) for each in made)
