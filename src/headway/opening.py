"""How a run is opened: lock, config, data, model, and the newest good state.

Opening the same folder again continues it. What must be equal between attempts (the fingerprint,
the data, the base weights) is compared here, and a difference is refused in words.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headway import rollback
from headway.building import built, make_plan, optimizer_of
from headway.checkpoint import CheckpointStore, Saver, verify
from headway.checks import disk_check, passed
from headway.claim import claimed, run_folder, same_fingerprint, same_identities, same_run_there
from headway.config import RunConfig
from headway.cost import Meter
from headway.engine.state import TrainState, checkpoint_bytes, load_model, restore
from headway.engine.steps import Plan
from headway.engine.task import Task
from headway.engine.world import World, joined
from headway.errors import CheckpointError, ConfigError, HeadwayError
from headway.foreseen import foretold
from headway.journal import Journal, next_attempt, read_events
from headway.limits import UNMEASURED_BYTES_PER_SECOND, Limits, Spent
from headway.machine import facts_of, prepare_torch
from headway.preflight.host import usable_memory_bytes
from headway.records import StopReason
from headway.run import Run
from headway.saving import Saving
from headway.show import Quiet, Show
from headway.signals import Signals
from headway.spending import USED, limits_of, refuse_spent, rung_of, started_meter
from headway.summary import summary
from headway.tracking import tracking
from headway.upload.faults import scrubbed
from headway.uploading import Uploading, uploading
from headway.viewing import JOURNAL_FILE, open_run
from headway.watching import Watching, watching

OF_THE_DATA = ("data", "held_out", "test")
"""Identities that a run from another's weights may have of its own."""


@contextlib.contextmanager
def opened(
    config: RunConfig,
    *,
    fresh: bool = False,
    from_step: int | None = None,
    show: Show | None = None,
    billed_until: float | None = None,
) -> Iterator[Run]:
    """The run this config describes, ready for its next step; everything is closed afterwards.

    ``fresh`` moves an existing run aside and starts over; ``from_step`` continues from that
    checkpoint and moves later ones aside. Raises RunLocked, ConfigError (another fingerprint),
    CheckpointError (no good checkpoint), DataError, StorageFull, Spent (before anything is loaded:
    no further step can be paid). ``billed_until``: when an attempt
    in this same process ended (``limits.steady_seconds()``); what was before is not billed again.
    """
    show = show or Quiet()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        world = stack.enter_context(joined(config.hardware.device))
        folder = run_folder(config)
        bucket = stack.enter_context(own_bucket(config, world, fresh, from_step, show))
        signals.before_leaving(bucket.leave if bucket else lambda: None)
        changed = stack.enter_context(claimed(folder, config, fresh)) if world.leads else []
        attempt = world.agree(own_attempt(folder, bucket) if world.leads else 0)[0]
        store = store_of(folder, attempt, from_step)  # before the journal: a typo is no attempt
        events = read_events(folder / JOURNAL_FILE, USED)
        meter = started_meter(config.cost, events, store, billed_until, world.gpus)
        limits = limits_of(config, meter, events, store, billed_until)
        journal = stack.enter_context(own_journal(folder, attempt)) if world.leads else None
        stack.enter_context(tracking(config.track, folder, journal, show.say))
        stack.enter_context(last_words(journal, meter, limits))
        refuse_spent(limits, events, world)
        saver = stack.enter_context(Saver(store))
        if world.leads:
            from_step = swept(store, events, from_step)
        prepare_torch(config)
        recipe, task, notes = built(config, world, folder, changed)
        plan = make_plan(config, task)
        state = TrainState(task, optimizer_of(config, task))
        facts = facts_of(config, task, world)
        notes += restored(state, store, facts, from_step, world, bucket)
        state.left_out = sorted({*state.left_out, *rollback.left_out(events)})
        notes += warm_started(state, config.run.warm_start, facts)
        notes += passed([disk_check(config, state, plan, store)] if world.leads else [])
        notes += foretold(config, state, plan, world, meter)
        limits.expected_save_seconds = checkpoint_bytes(state) / UNMEASURED_BYTES_PER_SECOND
        judge = own_monitor(config, folder, journal, task, plan, facts, show, bucket)
        monitor = stack.enter_context(judge)
        section = config.checkpoint
        saves = Saving(section, state, store, saver, journal, show, limits, monitor, bucket)
        rung = rung_of(events, config, facts["hardware"], task)
        run = Run(
            config, folder, recipe, task, state, plan, world, saves, journal, meter, limits,
            signals, show, facts, rung, monitor, bucket,
        )  # fmt: skip
        run.remember(events)
        introduce(run, notes)
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


def own_monitor(
    config: RunConfig,
    folder: Path,
    journal: Journal | None,
    task: Task,
    plan: Plan,
    facts: Mapping[str, Any],
    show: Show,
    bucket: Uploading | None,
) -> contextlib.AbstractContextManager[Watching]:
    """What judges the run while it trains; on ranks that write nothing the watchdog alone."""
    machine = facts["hardware"]
    return watching(
        config.monitor,
        folder,
        journal,
        say=show.say,
        num_steps=plan.num_steps,
        memory_limit_bytes=machine.get("gpu_memory_bytes") or usable_memory_bytes(),
        gpu="gpu" in machine,
        rows_of=lambda step: [row for m in task.batch_at(step - 1) for row in m.rows],
        waiting=lambda: len(bucket.pending()) if bucket else 0,
    )


def own_attempt(folder: Path, bucket: Uploading | None) -> int:
    """A number no attempt had: the next in the journal, and where a bucket is, in its lease."""
    return bucket.attempt() if bucket else next_attempt(folder / JOURNAL_FILE)


def own_journal(folder: Path, attempt: int) -> Journal:
    """The run's journal with the first line of this attempt: who opens the run, and what half line
    a kill had left."""
    journal = Journal(folder / JOURNAL_FILE, attempt)
    who = {"pid": os.getpid(), "host": socket.gethostname()}
    journal.append("opening", **who, cut_bytes=journal.cut_bytes)
    return journal


@contextlib.contextmanager
def last_words(journal: Journal | None, meter: Meter | None, limits: Limits) -> Iterator[None]:
    """An attempt that an error ends says so, and what it has used, from its first moment on."""
    try:
        yield
    except BaseException as error:
        if journal:
            reason = error.reason if isinstance(error, Spent) else StopReason.ERROR
            own = isinstance(error, HeadwayError)
            message = scrubbed(str(error) if own else f"{type(error).__name__}: {error}")
            used = {
                "cost_usd": meter.cost_usd if meter else None,
                "run_seconds": limits.run_seconds,
            }
            with contextlib.suppress(OSError, HeadwayError):
                journal.append("stop", reason=reason.value, message=message, **used)
                journal.flush()
        raise


def store_of(folder: Path, attempt: int, from_step: int | None) -> CheckpointStore:
    """The run's checkpoints; ConfigError if the one to go on from is not among them."""
    store = CheckpointStore(folder, attempt=str(attempt))
    steps = [checkpoint.step for checkpoint in store.checkpoints()]
    if from_step is not None and from_step not in steps:
        raise ConfigError(f"--from: there is no checkpoint at step {from_step}; there are {steps}")
    return store


def swept(
    store: CheckpointStore, past: Sequence[Mapping[str, Any]], from_step: int | None
) -> int | None:
    """Remove what kills left behind; the step to continue from, by request or by a roll back."""
    store.sweep()
    if from_step is not None:
        return from_step
    return rollback.pending(past, [checkpoint.step for checkpoint in store.checkpoints()])


def restored(
    state: TrainState,
    store: CheckpointStore,
    facts: dict[str, Any],
    at: int | None,
    world: World,
    bucket: Uploading | None = None,
) -> list[tuple[str, str]]:
    """Fill the state from the newest good checkpoint, the same on every rank; what was found."""
    found: list[str] = []
    step = -1
    if world.leads:
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
    notes = [("quarantine", line) for line in found]
    if step < 0:
        return notes
    checkpoint = next(c for c in store.checkpoints() if c.step == step)
    same_fingerprint(checkpoint.manifest.facts, facts, checkpoint.path)
    same_identities(checkpoint.manifest.facts.get("identities", {}), facts["identities"], step)
    restore(state, checkpoint.path)
    other = other_versions(checkpoint.manifest.facts.get("versions", {}), facts["versions"])
    return notes + [("warning", line) for line in other]


def other_versions(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One line if a library is another than the checkpoint was made with; its bits may differ."""
    other = [
        f"{name} {then[name]} -> {now.get(name)}" for name in then if then[name] != now.get(name)
    ]
    what = "since the checkpoint; the run goes on, its bits may differ from here on"
    return [f"other versions ({', '.join(other)}) {what}"] if other else []


def warm_started(
    state: TrainState, source: str | None, facts: dict[str, Any]
) -> list[tuple[str, str]]:
    """Give the model the weights of another run's checkpoint (``RUN@STEP``); what was taken.

    Weights only: step, optimizer and data order begin anew. What the weights are read with (base
    model, tokenizer, what a head's number means) must be the same; the data need not.
    """
    if source is None or state.step > 0:
        return []
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
    what = f"weights of {view.path.name} at step {checkpoint.step}; everything else begins anew"
    return [("warm_start", what)]


def introduce(run: Run, notes: list[tuple[str, str]]) -> None:
    """Write to the journal, and say, what this attempt starts with; nothing without a journal."""
    journal = run.journal
    if journal is None:
        return
    if run.bucket:
        run.bucket.claim()
    facts = run.task.facts()
    notes = [*notes, *(("warning", line) for line in facts.get("warnings", ()))]
    journal.append(
        "attempt",
        restored_step=run.state.step,
        pid=os.getpid(),
        host=socket.gethostname(),
        command=[scrubbed(word) for word in sys.argv],
        hardware=run.facts["hardware"],
        versions=run.facts["versions"],
    )
    for kind, line in notes:
        journal.append(kind, what=line)
        run.show.say(line if kind in ("warm_start", "fit") else f"WARNING: {line}")
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
        run.bucket.begin(run.saves.store.checkpoints(), run.saves.scores)
