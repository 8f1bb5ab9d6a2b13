"""A plan whose speed was measured: a few real steps of the run on this machine, then thrown away.

Weights and data are loaded as the run would load them; no run directory is made and nothing is
saved. What the steps reach is this machine's own: only its line of the plan is computed with it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from datetime import date

from headway.building import build_context, make_plan, memory_of, optimizer_of, with_room
from headway.config import RunConfig, find_recipe
from headway.cost import Gpu, Rate, find_gpu, load_prices
from headway.engine.state import TrainState
from headway.engine.steps import train_steps
from headway.engine.world import World, choose_device
from headway.errors import ConfigError
from headway.machine import hardware, prepare_torch
from headway.planning.offers import Money, Offer
from headway.planning.plan import RunPlan, plan_run
from headway.spending import price_now

WARM_STEPS, TIMED_STEPS = 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a few real steps reached."""

    machine: str
    tokens_per_second: float
    memory_bytes: int
    """Peak of the GPU's allocator, or of the process without a GPU."""
    device_bytes: int
    """Memory of the GPU, or of the machine."""
    gpu: bool


def calibrated(config: RunConfig, *, rows: int | None = None, count: bool = False) -> RunPlan:
    """The plan with a line for this machine at the speed it was seen to have.

    Raises ConfigError where the run is too short to time, and whatever building the run raises.
    """
    speed = measured(config)
    table = load_prices(config.cost.prices if config.cost else None)
    found = plan_run(config, prices=table, rows=rows, count=count)
    own = find_gpu(table, speed.machine) if speed.gpu else None
    plain = min(found.ways, key=lambda way: (way.changed, way.flops_per_token))
    reached = speed.tokens_per_second * plain.flops_per_token
    said = f"measured on {speed.machine}: {speed.tokens_per_second:,.0f} tokens/s"
    if own is not None and own.bf16_flops_per_second:
        share = reached / own.bf16_flops_per_second
        said += f", {share:.0%} of its bf16 peak"
    mine = this_machine(config, speed, own, found)
    others = tuple(
        each for each in found.offers if own is None or each.gpu.name != own.name or not mine.fits
    )
    return replace(found, offers=(mine, *others), notes=(said, *found.notes))


def measured(config: RunConfig) -> Speed:
    """Tokens a second over a few real steps, the first ones left out."""
    world = World(choose_device(config.hardware.device))
    prepare_torch(config)
    context, _ = with_room(config, build_context(config, world), world, memory_of(world))
    task = find_recipe(config.recipe).build(config.task, context)
    plan = make_plan(config, task)
    steps = WARM_STEPS + TIMED_STEPS
    if plan.num_steps < steps:
        raise ConfigError(
            f"--calibrate times {steps} steps and this run has {plan.num_steps}: lengthen it"
        )
    optimizer = optimizer_of(config, task)
    reports = train_steps(task, TrainState(task, optimizer), plan, world)
    seen = [report for _, report in zip(range(steps), reports, strict=False)]
    reports.close()  # type: ignore[attr-defined]
    timed = seen[WARM_STEPS:]
    machine = hardware(world)
    return Speed(
        machine=machine.get("gpu") or machine["cpu"],
        tokens_per_second=statistics.median(r.tokens / r.seconds for r in timed),
        memory_bytes=timed[-1].memory_bytes,
        device_bytes=machine.get("gpu_memory_bytes") or machine["memory_bytes"],
        gpu="gpu" in machine,
    )


def this_machine(config: RunConfig, speed: Speed, own: Gpu | None, found: RunPlan) -> Offer:
    """The line of the machine that was measured: it fits, it ran."""
    gpu = Gpu(
        name=f"this machine ({own.name if own else speed.machine})",
        memory_mib=max(1, speed.device_bytes // 2**20),
        source="measured now",
        date=date.today().isoformat(),
    )
    tokens = found.work.tokens
    hours = None
    if tokens is not None:
        hours = (tokens + found.work.held_out_tokens / 3) / speed.tokens_per_second / 3600
    rate = rate_here(config, own)
    money = Money(rate=rate, hours=hours, usd=hours * rate.usd_per_hour) if rate and hours else None
    size = config.hardware.microbatch_size
    return Offer(
        gpu=gpu,
        fits=True,
        rows=0 if size == "auto" else size,
        recompute=config.hardware.activation_checkpointing is True,
        peak_bytes=speed.memory_bytes,
        needs_bytes=speed.memory_bytes,
        hours=hours,
        on_demand=money,
    )


def rate_here(config: RunConfig, own: Gpu | None) -> Rate | None:
    """The config's price, else the table's for this GPU."""
    if config.cost is None:
        return own.on_demand if own else None
    price = price_now(config.cost)
    if price.usd_per_hour == 0:
        return None
    return Rate(
        usd_per_hour=price.usd_per_hour, provider=price.gpu, source=price.source, date=price.date
    )
