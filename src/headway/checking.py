"""``headway check``: everything that can be known of a run before it costs anything.

The checks are asked in order, the cheap ones first; each leaves for the next what it found: the
config, the device, the task. Nothing of the run is touched: its folder, its checkpoints and its
bucket are as before, and the steps of the rehearsal are undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headway.bucket import url_of
from headway.building import (
    build_context,
    make_plan,
    memory_of,
    optimizer_of,
    refuse_nothing_held_out,
    with_room,
)
from headway.checkpoint import Checkpoint, CheckpointStore, verify
from headway.checks import before_build, disk_check
from headway.claim import (
    begun,
    run_folder,
    same_fingerprint,
    same_identities,
    same_run,
    same_run_there,
)
from headway.config import RunConfig, find_recipe, fingerprint, load_config
from headway.engine.ladder import OneRowTooLarge
from headway.engine.rehearsal import Rehearsal
from headway.engine.state import TrainState
from headway.engine.steps import Plan
from headway.engine.task import Recipe, Task
from headway.engine.world import World, choose_device
from headway.errors import CheckpointError, ConfigError, OutOfMemory, RunLocked
from headway.foreseen import one_row_finding, price_findings, rehearsal_findings, run_seconds
from headway.journal import read_events
from headway.lock import holder
from headway.machine import facts_of, prepare_torch
from headway.preflight import Answer, ask
from headway.records import Check, Finding
from headway.spending import USED, started_meter
from headway.summary import counted
from headway.upload import Remote
from headway.upload.lease import read as read_lease
from headway.upload.probe import probe
from headway.viewing import CONFIG_FILE, JOURNAL_FILE, LOCK_FILE

ON_CPU = World(torch.device("cpu"))


def check(config: RunConfig, *, fresh: bool = False) -> list[Answer]:
    """Ask everything about this config. ``fresh``: as ``train --fresh`` would begin it."""
    return list(ask(Inspection(lambda: config, fresh=fresh).checks()))


@dataclass
class Built:
    """A task and what trains it, as a run would have them at its first step."""

    task: Task
    state: TrainState
    plan: Plan
    facts: dict[str, Any]


@dataclass
class Inspection:
    """What the checks of one config find, each for those after it."""

    load: Callable[[], RunConfig]
    fresh: bool = False
    config: RunConfig | None = None
    world: World = ON_CPU
    built: Built | None = None
    rehearsed: Rehearsal | None = None

    def checks(self) -> Iterator[Check]:
        """The checks in order. What is asked depends on the config, so that comes first."""
        yield Check("config", self.read_config)
        if self.config is None:
            return
        config, folder = self.config, run_folder(self.config)
        recipe: Recipe = find_recipe(config.recipe)
        yield from before_build(config, folder, idle_gpu="blocker")
        yield Check("run", lambda: run_findings(config, folder, self.fresh), needs=("folder",))
        # Where the device cannot be used, data and tokenizer can be looked at all the same.
        self.world = world_of(config)
        own = recipe.checks(config.task, build_context(config, self.world))
        yield from own
        if config.upload:
            yield Check("bucket", lambda: bucket_findings(config, folder, self.fresh))
        yield Check(
            "model",
            lambda: self.build(config, recipe),
            needs=("machine", *(check.name for check in own)),
        )
        store = CheckpointStore(folder, attempt="check")
        yield Check("resume", lambda: self.resume(store), needs=("run", "model"))
        yield self.disk(config, store)
        yield Check("rehearsal", lambda: self.rehearse(config), needs=("model",))
        yield Check("price", lambda: self.price(config, folder), needs=("model", "rehearsal"))

    # ------------------------------------------------------------------ each in turn

    def read_config(self) -> Iterator[Finding]:
        """The config, every problem at once. Raises ConfigError."""
        self.config = config = self.load()
        yield note("config", f"recipe {config.recipe}, fingerprint {fingerprint(config)}")

    def build(self, config: RunConfig, recipe: Recipe) -> Iterator[Finding]:
        """Data and model, as training builds them. Raises what the recipe refuses."""
        prepare_torch(config)
        plain, memory = build_context(config, self.world), memory_of(self.world)
        context, fits = with_room(config, plain, self.world, memory)
        for kind, line in fits:
            yield Finding(level="note" if kind == "fit" else "warning", name="model", what=line)
        task = recipe.build(config.task, context)
        refuse_nothing_held_out(config, task)
        plan = make_plan(config, task)
        state = TrainState(task, optimizer_of(config, task))
        told = task.facts()
        self.built = Built(task, state, plan, facts_of(config, task, self.world))
        yield note(
            "model",
            f"{told.get('model', config.recipe)}: {counted(told['trainable'])} of "
            f"{counted(told['parameters'])} parameters train, {plan.num_steps:,} steps of "
            f"{config.train.batch_size} rows",
        )
        for line in told.get("warnings", ()):
            yield Finding(level="warning", name="model", what=line)

    def resume(self, store: CheckpointStore) -> Iterator[Finding]:
        """From where the run would go on."""
        if self.fresh:
            yield note("resume", "--fresh: begins at step 0; what is there is moved aside")
            return
        yield from resume_findings(store, self.whole().facts, self.whole().state)

    def disk(self, config: RunConfig, store: CheckpointStore) -> Check:
        """Room for the checkpoints, once it is known how large they are."""

        def run() -> Iterator[Finding]:
            built = self.whole()
            yield from disk_check(config, built.state, built.plan, store).run()

        return Check("disk", run, needs=("model",))

    def rehearse(self, config: RunConfig) -> Iterator[Finding]:
        """Real steps, undone; a batch for which training has no way to fit is a blocker."""
        built = self.whole()
        try:
            for found in rehearsal_findings(config, built.state, built.plan, self.world):
                if isinstance(found, Finding):
                    yield found
                else:
                    self.rehearsed = found
        except OneRowTooLarge as error:
            yield one_row_finding(config, built.task, self.world, error)
        except OutOfMemory as error:
            why = "training would end in its first step"
            yield Finding(level="blocker", name="rehearsal", what=str(error), why=why)

    def price(self, config: RunConfig, folder: Path) -> Iterator[Finding]:
        """Time and dollars of what is left of the run."""
        built, found = self.whole(), self.rehearsed
        if found is None:
            yield note("price", "not known: the rehearsal found no step that fits as it is")
            return
        step = built.state.step
        training, evaluating = run_seconds(found, config, built.task, built.plan, step)
        budget = config.cost.budget_usd if config.cost else None
        events = read_events(folder / JOURNAL_FILE, USED)
        meter = started_meter(config.cost, events, CheckpointStore(folder, attempt="check"))
        steps = built.plan.num_steps - step
        yield from price_findings(training + evaluating, steps, meter, budget)

    def whole(self) -> Built:
        """What was built; asked only by those that need ``model``."""
        assert self.built is not None
        return self.built


# ------------------------------------------------------------------ findings


def world_of(config: RunConfig) -> World:
    """The device to check on; the CPU where the config's cannot be used (``machine`` says so)."""
    try:
        return World(choose_device(config.hardware.device))
    except ConfigError:
        return ON_CPU


def run_findings(config: RunConfig, folder: Path, fresh: bool) -> Iterator[Finding]:
    """The run that is there already: whether it is this one, and whether somebody writes it.

    Raises ConfigError with the differences, RunLocked.
    """
    who = holder(folder / LOCK_FILE)
    if who is not None:
        raise RunLocked(
            f"{folder} is being written by {who}. Wait for it, stop it, or give this run another "
            "name (run.name)"
        )
    if fresh or not begun(folder):
        yield note("run", f"{folder}: a new run")
        return
    for line in same_run(str(folder), load_config(folder / CONFIG_FILE), config):
        yield Finding(level="warning", name="run", what=f"changed since the last attempt: {line}")
    yield note("run", f"{folder}: the same run, it goes on")


def bucket_findings(config: RunConfig, folder: Path, fresh: bool) -> Iterator[Finding]:
    """What the bucket can do, and whose run lies there. Raises ConfigError, RemoteError."""
    assert config.upload is not None
    remote = Remote(url_of(config.upload, folder))
    found = probe(remote)
    yield from found
    if any(finding.level == "blocker" for finding in found):
        return
    if not fresh:
        same_run_there(remote, config)
    writer, _ = read_lease(remote)
    if writer is not None and not writer.released:
        yield Finding(
            level="warning",
            name="bucket",
            what=f"{remote.url} is being written by {writer}, or was when that died",
            why="training begins once its lease is not renewed any more",
            fix="If that process is alive, let it end first",
        )


def resume_findings(
    store: CheckpointStore, facts: dict[str, Any], state: TrainState
) -> Iterator[Finding]:
    """From which checkpoint the run would go on, by manifest and sizes; ``state.step`` is set.

    Raises CheckpointError: none is whole, or it was made with another config, data or base model.
    """
    checkpoints = store.checkpoints()
    newest, damaged = newest_whole(checkpoints)
    for checkpoint, problems in damaged:
        yield Finding(
            level="warning",
            name="resume",
            what=f"{checkpoint.path.name} is damaged: {'; '.join(problems[:3])}",
            why="it is set aside, and training goes on from an older one",
            fix="Nothing, or bring it back from the bucket: headway restore",
        )
    unread = sorted({*store.directory.glob("step-*")} - {c.path for c in checkpoints})
    for path in unread:
        yield Finding(
            level="warning",
            name="resume",
            what=f"{path.name} has no manifest that can be read, so it is no checkpoint",
            why="it is set aside",
        )
    if newest is None:
        saves = read_events(store.root / JOURNAL_FILE, {"save"})
        if unread or checkpoints or saves or list(store.quarantine.glob("step-*")):
            raise CheckpointError(
                f"{store.root} has no good checkpoint, and there was one. Training would not "
                "start over by itself: restore a copy, or start again with --fresh"
            )
        yield note("resume", "a new run: it begins at step 0")
        return
    then = newest.manifest.facts
    same_fingerprint(then, facts, newest.path)
    same_identities(then.get("identities", {}), facts["identities"], newest.step)
    state.step = newest.step
    yield note(
        "resume",
        f"goes on from {newest.path.name} ({newest.bytes / 1e6:.1f} MB, sizes as its manifest "
        "says)",
    )


def newest_whole(
    checkpoints: list[Checkpoint],
) -> tuple[Checkpoint | None, list[tuple[Checkpoint, list[str]]]]:
    """The newest whose files have their sizes, and those after it with what is wrong."""
    damaged: list[tuple[Checkpoint, list[str]]] = []
    for checkpoint in reversed(checkpoints):
        problems = verify(checkpoint, hashes=False)
        if not problems:
            return checkpoint, damaged
        damaged.append((checkpoint, problems))
    return None, damaged


def note(name: str, what: str) -> Finding:
    """Something that is as it should be."""
    return Finding(level="note", name=name, what=what)
