"""How a run is opened: lock, config, data, model, and the newest good state.

Opening the same folder again continues it. What must be equal between attempts (the fingerprint,
the data, the base weights) is compared here, and a difference is refused in words.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headway.checkpoint import CheckpointStore, Saver, verify
from headway.claim import claimed, run_folder, same_run_there
from headway.config import RunConfig, find_recipe, fingerprint
from headway.cost import Meter, price_of, process_age_seconds, spent
from headway.engine.optim import make_optimizer, trainable
from headway.engine.schedule import Schedule, steps_of
from headway.engine.state import TrainState, load_model, restore
from headway.engine.steps import Plan
from headway.engine.task import BuildContext, Recipe, Task
from headway.engine.world import World, joined
from headway.errors import CheckpointError, ConfigError, HeadwayError
from headway.journal import Journal, next_attempt, read_events
from headway.machine import cache_folder, hardware, prepare_torch, versions
from headway.records import StopReason
from headway.run import Run
from headway.show import Quiet, Show
from headway.signals import Signals
from headway.summary import summary
from headway.uploading import Uploading, uploading
from headway.viewing import JOURNAL_FILE, open_run

OF_THE_DATA = ("data", "held_out")
"""Identities that a run from another's weights may have of its own."""


@contextlib.contextmanager
def opened(
    config: RunConfig,
    *,
    fresh: bool = False,
    from_step: int | None = None,
    show: Show | None = None,
) -> Iterator[Run]:
    """The run this config describes, ready for its next step; everything is closed afterwards.

    ``fresh`` moves an existing run aside and starts over; ``from_step`` continues from that
    checkpoint and moves later ones aside. Raises RunLocked, ConfigError (another fingerprint),
    CheckpointError (no good checkpoint), DataError, StorageFull.
    """
    show = show or Quiet()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        world = stack.enter_context(joined(config.hardware.device))
        folder = run_folder(config)
        bucket = stack.enter_context(own_bucket(config, world, fresh, from_step, show))
        changed = stack.enter_context(claimed(folder, config, fresh)) if world.leads else []
        attempt = world.agree(own_attempt(folder, bucket) if world.leads else 0)[0]
        meter = started_meter(config, folder)
        journal = None
        if world.leads:
            journal = stack.enter_context(Journal(folder / JOURNAL_FILE, attempt))
            journal.append("opening", pid=os.getpid(), host=socket.gethostname())
        stack.enter_context(last_words(journal, meter))
        store = CheckpointStore(folder, attempt=str(attempt))
        saver = stack.enter_context(Saver(store))
        if world.leads:
            store.sweep()
        prepare_torch(config)
        recipe = find_recipe(config.recipe)
        notes = [("warning", f"changed since the last attempt: {line}") for line in changed]
        notes += [("warning", line) for line in consult(recipe, config)]
        task = recipe.build(config.task, build_context(config, world))
        refuse_nothing_held_out(config, task)
        plan = make_plan(config, task)
        state = TrainState(task, optimizer_of(config, task))
        facts = {
            "fingerprint": fingerprint(config),
            "identities": task.facts().get("identities", {}),
            "hardware": hardware(world),
            "versions": versions(),
        }
        found = restore_newest(state, store, facts, from_step, world, bucket)
        notes += [("quarantine", line) for line in found]
        if config.run.warm_start and state.step == 0:
            notes.append(("warm_start", warm_started(state, config.run.warm_start, facts)))
        run = Run(
            config, folder, recipe, task, state, plan, world, store, saver, journal, meter,
            signals, show, facts, bucket,
        )  # fmt: skip
        run.saved_step = state.step if state.step else -1
        run.remember(read_events(folder / JOURNAL_FILE, {"attempt", "evaluation"}))
        if journal:
            introduce(run, journal, notes)
        signals.arm()
        yield run


def own_bucket(
    config: RunConfig, world: World, fresh: bool, from_step: int | None, show: Show
) -> contextlib.AbstractContextManager[Uploading | None]:
    """The run's bucket, on rank 0 and where one was asked for: what is newer there comes back."""
    if not world.leads or config.upload is None:
        return contextlib.nullcontext()
    folder = run_folder(config)
    return uploading(
        config.upload,
        folder,
        refuse_another=partial(same_run_there, config=config),
        fresh=fresh,
        from_step=from_step,
        say=show.say,
    )


def own_attempt(folder: Path, bucket: Uploading | None) -> int:
    """A number no attempt had: the next in the journal, and where a bucket is, in its lease."""
    return bucket.attempt() if bucket else next_attempt(folder / JOURNAL_FILE)


@contextlib.contextmanager
def last_words(journal: Journal | None, meter: Meter | None) -> Iterator[None]:
    """An attempt that an error ends says so, and what it has cost, from its first moment on."""
    try:
        yield
    except BaseException as error:
        if journal:
            own = isinstance(error, HeadwayError)
            message = str(error) if own else f"{type(error).__name__}: {error}"
            cost_usd = meter.cost_usd if meter else None
            with contextlib.suppress(OSError, HeadwayError):
                journal.append(
                    "stop", reason=StopReason.ERROR.value, cost_usd=cost_usd, message=message
                )
                journal.flush()
        raise


def consult(recipe: Recipe, config: RunConfig) -> list[str]:
    """What the recipe has to say of this config; a blocker is a ConfigError."""
    said = []
    for finding in recipe.checks(config.task):
        line = ". ".join(part for part in (finding.what, finding.why, finding.fix) if part)
        if finding.level == "blocker":
            raise ConfigError(f"{finding.name}: {line}")
        said.append(f"{finding.name}: {line}")
    return said


def started_meter(config: RunConfig, folder: Path) -> Meter | None:
    """A meter that goes on from what earlier attempts spent, or None without a price."""
    if config.cost is None:
        return None
    price = price_of(config.cost.gpu, config.cost.usd_per_hour, config.cost.prices)
    before = spent(read_events(folder / JOURNAL_FILE, {"step", "stop"}))
    return Meter(price, before, process_age_seconds())


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
    """The horizon in steps, and the schedule over them."""
    section = config.train
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


def restore_newest(
    state: TrainState,
    store: CheckpointStore,
    facts: dict[str, Any],
    at: int | None,
    world: World,
    bucket: Uploading | None = None,
) -> list[str]:
    """Fill the state from the newest good checkpoint, the same on every rank; what was found."""
    found: list[str] = []
    step = -1
    if world.leads:
        steps = [c.step for c in store.checkpoints()]
        if at is not None and at not in steps:
            raise ConfigError(f"--from: there is no checkpoint at step {at}; there are {steps}")
        checkpoint, found = store.newest_good(at)
        step = checkpoint.step if checkpoint else -1
        saves = read_events(store.root / JOURNAL_FILE, {"save"})
        if checkpoint is None and saves:
            raise CheckpointError(
                f"{store.root} has no checkpoint, but its journal says that step "
                f"{saves[-1]['step']} was saved: they were deleted or the disk is not the same. "
                "Not starting over by itself: restore a copy, or start again with --fresh"
            )
        if at is not None and step != at:
            raise CheckpointError(f"--from: the checkpoint at step {at} is damaged: {found}")
        if at is not None:
            if bucket:
                bucket.go_back(at)
            store.supersede(at)
    step = world.agree(step)[0]
    if step < 0:
        return found
    checkpoint = next(c for c in store.checkpoints() if c.step == step)
    same_fingerprint(checkpoint.manifest.facts, facts, checkpoint.path)
    same_identities(checkpoint.manifest.facts.get("identities", {}), facts["identities"], step)
    restore(state, checkpoint.path)
    return found


def warm_started(state: TrainState, source: str, facts: dict[str, Any]) -> str:
    """Give the model the weights of another run's checkpoint (``RUN@STEP``); what was taken.

    Weights only: step, optimizer and data order begin anew. What the weights are read with (base
    model, tokenizer, what a head's number means) must be the same; the data need not.
    """
    folder, _, step = source.rpartition("@")
    view = open_run(folder)
    checkpoint = view.checkpoint(step)
    problems = verify(checkpoint)
    if problems:
        raise CheckpointError(f"run.warm_start: {checkpoint.path} is damaged: {problems}")
    then, now = checkpoint.manifest.facts.get("identities", {}), facts["identities"]
    other = [k for k in then if k not in OF_THE_DATA and k in now and then[k] != now[k]]
    if other:
        raise ConfigError(
            f"run.warm_start: {checkpoint.path} was trained with another {' and '.join(other)}: "
            "its weights would mean something else here. Use the same task section but for its data"
        )
    load_model(state.task, checkpoint.path / "model")
    return f"weights of {view.path.name} at step {checkpoint.step}; everything else begins anew"


def same_fingerprint(then: Mapping[str, Any], now: dict[str, Any], path: Path) -> None:
    """A checkpoint of another config is refused, however it came here.

    Another headway may resolve the same config to more keys: then the saved config alone decides.
    """
    same_headway = then.get("versions", {}).get("headway") == now["versions"]["headway"]
    made = then.get("fingerprint")
    if same_headway and made and made != now["fingerprint"]:
        raise CheckpointError(
            f"{path} was made by a run with another config (fingerprint {made}, here "
            f"{now['fingerprint']}), and continuing from it would mix two. Remove it, give this "
            "run another run.name, or start it over with --fresh"
        )


def same_identities(then: dict[str, Any], now: dict[str, Any], step: int) -> None:
    """The data and the base weights must be those the checkpoint was made with."""
    changed = [f"{key}: {then[key]} -> {now.get(key)}" for key in then if then[key] != now.get(key)]
    if changed:
        raise CheckpointError(
            f"step {step} was made with other inputs than are here now ({'; '.join(changed)}): "
            "the data or the base model changed. Put them back, or start over with --fresh"
        )


def introduce(run: Run, journal: Journal, notes: list[tuple[str, str]]) -> None:
    """Write to the journal, and say, what this attempt starts with."""
    if run.bucket:
        run.bucket.claim()
    facts = run.task.facts()
    notes = [*notes, *(("warning", line) for line in facts.get("warnings", ()))]
    journal.append(
        "attempt",
        restored_step=run.state.step,
        pid=os.getpid(),
        host=socket.gethostname(),
        command=sys.argv,
        hardware=run.facts["hardware"],
        versions=run.facts["versions"],
    )
    for kind, line in notes:
        journal.append(kind, what=line)
        run.show.say(line if kind == "warm_start" else f"WARNING: {line}")
    section = run.config.train
    journal.append(
        "plan",
        steps=run.plan.num_steps,
        batch_size=section.batch_size,
        rows_per_epoch=run.task.rows_per_epoch,
        parameters=facts.get("parameters"),
        trainable=facts.get("trainable"),
        facts=facts,
    )
    journal.flush()
    for line in summary(run):
        run.show.say(line)
    if run.bucket:
        run.bucket.begin(run.store.checkpoints(), run.scores)
