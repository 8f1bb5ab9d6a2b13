"""How a run is opened: lock, config, data, model, and the newest good state.

Opening the same folder again continues it. What must be equal between attempts (the fingerprint,
the data, the base weights) is compared here, and a difference is refused in words.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from headway.checkpoint import CheckpointStore, Saver
from headway.config import RunConfig, difference, find_recipe, fingerprint, identity, load_config
from headway.cost import Meter, Price, process_age_seconds, spent
from headway.engine.host_memory import use_one_heap
from headway.engine.optim import make_optimizer, trainable
from headway.engine.precision import make_deterministic
from headway.engine.schedule import Schedule, steps_of
from headway.engine.state import TrainState, restore
from headway.engine.steps import Plan
from headway.engine.task import BuildContext, Task
from headway.engine.world import World, joined
from headway.errors import CheckpointError, ConfigError, HeadwayError
from headway.journal import Journal, next_attempt, read_events
from headway.lock import RunLock
from headway.records import StopReason
from headway.run import Quiet, Run, Show
from headway.signals import Signals
from headway.summary import summary

CONFIG_FILE, JOURNAL_FILE, LOCK_FILE = "config.yaml", "journal.jsonl", "lock"


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
        if world.leads:
            stack.enter_context(claimed(folder, config, fresh))
        world.barrier()
        attempt = next_attempt(folder / JOURNAL_FILE)
        store = CheckpointStore(folder, attempt=str(attempt))
        saver = stack.enter_context(Saver(store))
        meter = started_meter(config, folder)
        if world.leads:
            store.sweep()
        prepare_torch(config)
        recipe = find_recipe(config.recipe)
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
        found = restore_newest(state, store, facts, from_step, world)
        journal = None
        if world.leads:
            journal = stack.enter_context(Journal(folder / JOURNAL_FILE, attempt))
        run = Run(
            config, folder, recipe, task, state, plan, world, store, saver, journal, meter,
            signals, show, facts,
        )  # fmt: skip
        run.saved_step = state.step if state.step else -1
        run.remember(read_events(folder / JOURNAL_FILE, {"evaluation"}))
        if journal:
            introduce(run, journal, found)
        signals.arm()
        try:
            yield run
        except BaseException as error:
            if journal:
                stopped_by(error, run, journal)
            raise


def run_folder(config: RunConfig) -> Path:
    """``run.root/run.name``; a config without a name is named after its recipe."""
    return config.run.root / (config.run.name or config.recipe)


@contextlib.contextmanager
def claimed(folder: Path, config: RunConfig, fresh: bool) -> Iterator[None]:
    """The folder, locked, with the resolved config in it; a run of another config is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = None
    if fresh and begun(folder):
        with RunLock(folder / LOCK_FILE):
            aside = folder.rename(unused_name(folder))
            folder.mkdir()
    try:
        with RunLock(folder / LOCK_FILE):
            path = folder / CONFIG_FILE
            if path.exists() and begun(folder):
                same_identity(folder, load_config(path), config)
            config.save(path)
            yield
    except BaseException:
        if aside and not begun(folder):  # the new run could not begin: the old one stays in place
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        raise


def begun(folder: Path) -> bool:
    """Whether an attempt of this run ever opened, data, model and all."""
    return bool(read_events(folder / JOURNAL_FILE, {"plan"}))


def unused_name(folder: Path) -> Path:
    """``NAME.replaced-1`` and so on: an old run is moved aside, never deleted."""
    names = (folder.with_name(f"{folder.name}.replaced-{n}") for n in itertools.count(1))
    return next(path for path in names if not path.exists())


def same_identity(folder: Path, then: RunConfig, now: RunConfig) -> None:
    """Raise ConfigError, with the differences, if the two configs are not the same run."""
    changed = difference(identity(then.tree()), identity(now.tree()))
    if changed:
        raise ConfigError(
            f"{folder} is a run with another config, and continuing it would mix two:\n  "
            + "\n  ".join(changed)
            + "\nGive this one another run.name, or start it over with --fresh"
        )


def started_meter(config: RunConfig, folder: Path) -> Meter | None:
    """A meter that goes on from what earlier attempts spent, or None without a price."""
    if config.cost is None:
        return None
    price = Price(
        usd_per_hour=config.cost.usd_per_hour,
        gpu=config.cost.gpu or "this machine",
        source="config",
        date=datetime.now(UTC).date().isoformat(),
    )
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


def cache_folder() -> Path:
    """``$HEADWAY_CACHE``, or ``~/.cache/headway``."""
    return Path(os.environ.get("HEADWAY_CACHE") or Path.home() / ".cache" / "headway")


def prepare_torch(config: RunConfig) -> None:
    """Threads, memory, kernels, and the seed that initial weights are drawn with."""
    use_one_heap()
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    make_deterministic(config.hardware.deterministic)
    torch.manual_seed(config.run.seed)


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
    state: TrainState, store: CheckpointStore, facts: dict[str, Any], at: int | None, world: World
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
            store.supersede(at)
    step = world.agree(step)[0]
    if step < 0:
        return found
    checkpoint = next(c for c in store.checkpoints() if c.step == step)
    same_identities(checkpoint.manifest.facts.get("identities", {}), facts["identities"], step)
    restore(state, checkpoint.path)
    return found


def same_identities(then: dict[str, Any], now: dict[str, Any], step: int) -> None:
    """The data and the base weights must be those the checkpoint was made with."""
    changed = [f"{key}: {then[key]} -> {now.get(key)}" for key in then if then[key] != now.get(key)]
    if changed:
        raise CheckpointError(
            f"step {step} was made with other inputs than are here now ({'; '.join(changed)}): "
            "the training data or the base model changed. Put them back, or start over with --fresh"
        )


def introduce(run: Run, journal: Journal, found: list[str]) -> None:
    """Write to the journal, and say, what this attempt starts with."""
    facts = run.task.facts()
    journal.append(
        "attempt",
        restored_step=run.state.step,
        pid=os.getpid(),
        host=socket.gethostname(),
        hardware=run.facts["hardware"],
        versions=run.facts["versions"],
        command=sys.argv,
    )
    for line in found:
        journal.append("quarantine", what=line)
        run.show.say(f"WARNING: {line}")
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


def stopped_by(error: BaseException, run: Run, journal: Journal) -> None:
    """The last line of an attempt that ended by an error."""
    reason = StopReason.ERROR.value
    kind = str(error) if isinstance(error, HeadwayError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        facts = {"step": run.state.step, "cost_usd": run.cost_usd, "message": kind}
        journal.append("stop", reason=reason, **facts)
        journal.flush()


def hardware(world: World) -> dict[str, Any]:
    """What the figures of this attempt were measured on."""
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "ranks": world.ranks,
    }
    if world.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(world.device)
        found["gpu_memory_bytes"] = torch.cuda.get_device_properties(world.device).total_memory
    return found


def cpu_name() -> str:
    """The processor's own name where Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """What could change the bits of a result."""
    names = ("headway", "torch", "transformers", "peft")
    return {
        "python": platform.python_version(),
        **{n: importlib.metadata.version(n) for n in names},
    }
