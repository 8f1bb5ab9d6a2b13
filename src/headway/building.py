"""What a config comes to: its recipe and task, its horizon in steps, its optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from headway.checks import before_build, passed
from headway.config import RunConfig, find_recipe
from headway.engine.optim import make_optimizer, trainable
from headway.engine.schedule import Schedule, steps_of
from headway.engine.steps import Plan
from headway.engine.task import BuildContext, Recipe, Shortening, Task
from headway.engine.world import World
from headway.errors import ConfigError
from headway.machine import cache_folder


def built(
    config: RunConfig, world: World, folder: Path, changed: list[str]
) -> tuple[Recipe, Task, list[tuple[str, str]]]:
    """The recipe, the task it makes of the config, and what is to be said of both."""
    recipe = find_recipe(config.recipe)
    context, fits = with_room(config, build_context(config, world), world, memory_of(world))
    asked = before_build(config, folder) if world.leads else []
    notes = [*fits, *(("warning", line) for line in changed)]
    notes += passed([*asked, *recipe.checks(config.task, context)])
    task = recipe.build(config.task, context)
    refuse_nothing_held_out(config, task)
    return recipe, task, notes


def with_room(
    config: RunConfig, context: BuildContext, world: World, gpu_bytes: int | None
) -> tuple[BuildContext, list[tuple[str, str]]]:
    """The context with the tokens at once that the plan says fit this GPU, and what to say of it.

    Nothing changes where there is no GPU, or the config says how many rows.
    """
    if gpu_bytes is None or context.microbatch_size is not None:
        return context, []
    from headway.planning.room import tokens_that_fit  # it builds tasks too

    place = f"{gpu_bytes / 2**30:.0f} GiB"
    try:
        tokens = tokens_that_fit(config, world, gpu_bytes)
    except Exception as error:  # a stranger's model may do what cannot be traced; training can
        why = str(error) if isinstance(error, ConfigError) else type(error).__name__
        return context, [("fit", f"microbatches for {place} by a rule of thumb: {why}")]
    if not tokens:
        what = f"by the plan not even one row of the longest fits {place}; it is tried nevertheless"
        return replace(context, tokens_at_once=1), [("warning", what)]
    said = f"by the plan {tokens:,} tokens at once fit {place}"
    return replace(context, tokens_at_once=tokens), [("fit", said)]


def memory_of(world: World) -> int | None:
    """Of this rank's GPU; None on a CPU."""
    if world.device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(world.device).total_memory)


def refuse_nothing_held_out(config: RunConfig, task: Task) -> None:
    """An evaluation needs rows; better said now than at the first one."""
    if config.evaluate and not any(m.rows for m in task.held_out()):
        raise ConfigError(
            "evaluate: there are no held-out rows to measure; give task.data.eval (or "
            "eval_fraction, for pretrain eval_tail), or leave out evaluate"
        )


def build_context(config: RunConfig, world: World, *, data: bool = True) -> BuildContext:
    """What the recipe may know of the run and the machine."""
    section = config.hardware
    if config.train.batch_size < world.ranks:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}, fewer rows than ranks ({world.ranks})"
        )
    on_gpu = world.device.type == "cuda"
    recompute = section.activation_checkpointing
    return BuildContext(
        seed=config.run.seed,
        batch_size=config.train.batch_size,
        microbatch_size=None if section.microbatch_size == "auto" else section.microbatch_size,
        precision=section.precision,
        device=world.device.type,
        rank=world.rank,
        ranks=world.ranks,
        activation_checkpointing=on_gpu if recompute == "auto" else recompute,
        compile=section.compile,
        held_out_rows=config.evaluate.max_rows if config.evaluate else None,
        cache=cache_folder(),
        data=data,
    )


def make_plan(config: RunConfig, task: Task) -> Plan:
    """The horizon in steps, and the schedule over them.

    Raises ConfigError: rows may be shortened, and this task's cannot be.
    """
    section = config.train
    if section.shorten_rows_to and not isinstance(task, Shortening):
        raise ConfigError(
            f"train.shorten_rows_to: a row of the recipe {config.recipe} cannot be cut, so it "
            "would do nothing; leave it out"
        )
    horizon, rows = section.horizon, section.batch_size
    if horizon.steps:
        num_steps = horizon.steps
    elif horizon.epochs:
        num_steps = max(1, -(-round(horizon.epochs * task.rows_per_epoch) // rows))
    else:
        tokens_per_step = rows * task.tokens_per_epoch / task.rows_per_epoch
        num_steps = max(1, round((horizon.tokens or 0) / tokens_per_step))
    schedule = Schedule(
        peak=section.learning_rate,
        num_steps=num_steps,
        shape=section.schedule,
        warmup_steps=steps_of(section.warmup, num_steps),
        floor_ratio=section.min_learning_rate_ratio,
        decay_steps=steps_of(section.decay, num_steps),
    )
    return Plan(
        num_steps=num_steps,
        seed=config.run.seed,
        schedule=schedule,
        max_grad_norm=section.max_grad_norm,
        precision=config.hardware.precision,
        shorten_to=section.shorten_rows_to,
    )


def optimizer_of(config: RunConfig, task: Task) -> torch.optim.Optimizer:
    """The configured optimizer over every parameter that trains."""
    section = config.train
    return make_optimizer(
        section.optimizer,
        trainable(task.model),
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
    )
