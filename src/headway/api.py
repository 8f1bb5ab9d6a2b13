"""The Python door: train a run, open a trained one, use it. The command line goes through here."""

from __future__ import annotations

import gc
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from headway.building import build_context
from headway.checkpoint import Checkpoint, verify
from headway.claim import run_folder, same_identities
from headway.config import RunConfig, find_recipe, load_config
from headway.engine.evaluate import evaluate
from headway.engine.state import load_model
from headway.engine.task import Recipe, Task, Tested, no_stop
from headway.engine.world import World, choose_device
from headway.errors import CheckpointError, ConfigError
from headway.evals import ASKED, TEST, write
from headway.limits import Spent, steady_seconds
from headway.lock import holder
from headway.machine import prepare_torch
from headway.opening import opened
from headway.records import Evaluation, StopReason
from headway.results import RESULTS_FILE, take_away, write_results
from headway.run import Run
from headway.run import train as train_loop
from headway.show import Quiet, Show
from headway.viewing import CONFIG_FILE, LOCK_FILE, open_run

Split = Literal["eval", "test"]
"""The held-out rows that choose the best checkpoint, or those that choose nothing."""


def train(config: RunConfig, *, fresh: bool = False, show: Show | None = None) -> StopReason:
    """Start or continue the run that ``config`` describes; returns why it stopped.

    Raises HeadwayError (ConfigError, DataError, CheckpointError, RunLocked …) with what to do.
    """
    return train_run(config, fresh=fresh, show=show)[1]


def train_run(
    config: RunConfig,
    *,
    fresh: bool = False,
    from_step: int | None = None,
    show: Show | None = None,
) -> tuple[Path, StopReason]:
    """As ``train``; also says where the run is.

    A run that rolls back is opened again here, at the checkpoint that its journal names.
    """
    billed_until = None
    while True:
        ended = one_attempt(config, fresh, from_step, show or Quiet(), billed_until)
        if ended.reason is not StopReason.ROLL_BACK:
            return ended.folder, ended.reason
        if ended.asked:
            return ended.folder, StopReason.SIGNAL
        fresh, from_step, billed_until = False, None, ended.at
        gc.collect()  # this attempt's model, before the next one's is loaded


@dataclass(frozen=True, slots=True)
class Ended:
    """How one attempt ended."""

    folder: Path
    reason: StopReason
    asked: bool
    """A signal asked it to."""
    at: float
    """Until when it was billed, by ``limits.steady_seconds``."""


def one_attempt(
    config: RunConfig, fresh: bool, from_step: int | None, show: Show, billed_until: float | None
) -> Ended:
    """Open the run, train, close it: nothing of the model stays in memory."""
    try:
        with opened(
            config, fresh=fresh, from_step=from_step, show=show, billed_until=billed_until
        ) as run:
            reason = train_and_tell(run)
            return Ended(run.folder, reason, run.signals.received is not None, steady_seconds())
    except Spent as spent:
        return Ended(run_folder(config), spent.reason, False, steady_seconds())


def train_and_tell(run: Run) -> StopReason:
    """The loop of an open run; when the run is finished, ``results.json`` too."""
    if run.journal:
        take_away(run.folder)
    reason = train_loop(run)
    if run.journal:
        try:
            written = write_results(run.folder)
        except OSError as error:  # what was trained is saved, and the file can be made again
            run.show.say(f"WARNING: {RESULTS_FILE} was not written: {error}")
        else:
            if written and isinstance(run.task, Tested) and run.task.tested() is not None:
                run.show.say(
                    "the test rows are measured when you ask: headway evaluate "
                    f"{shlex.quote(str(run.folder))} --step best --split test"
                )
    return reason


@dataclass(frozen=True)
class TrainedRun:
    """A run's model at one verified checkpoint, ready for use."""

    config: RunConfig
    folder: Path
    recipe: Recipe
    task: Task
    checkpoint: Checkpoint
    world: World

    def predict(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """One answer; keys are the recipe's own (``prompt`` -> ``text``)."""
        return self.recipe.predict(self.task, request)

    def evaluate(self, worst_rows: int = 20, split: Split = "eval") -> Evaluation:
        """Measure on the held-out rows, or on the test rows: those that choose nothing.

        The run must have been loaded with ``data=True``. Raises ConfigError for a split that the
        run has no rows of.
        """
        task = rows_of(self.task, split)
        found = evaluate(
            task,
            step=self.checkpoint.step,
            world=self.world,
            precision=self.config.hardware.precision,
            worst_rows=worst_rows,
        )
        assert found is not None
        return self.recipe.measure(task, replace(found, split=split), no_stop)

    def keep(self, evaluation: Evaluation) -> Path:
        """Write what ``evaluate`` found under ``evals/asked`` or ``evals/test``; says where.

        Never in the place of what training measured at this step. A test's figures go into
        ``results.json`` too. Raises OSError.
        """
        weights = {"checkpoint_sha256": self.checkpoint.manifest.sha256}
        if evaluation.split == "eval":
            return write(self.folder, evaluation, ASKED, weights)
        kept = write(self.folder, evaluation, TEST, weights)
        if holder(self.folder / LOCK_FILE) is None:
            write_results(self.folder)  # of a finished run: what was tested is its result
        return kept

    def export(self, to: Path, format: str) -> Mapping[str, Any]:
        """Write weights for use elsewhere, read them back and compare; what was found."""
        try:
            to.mkdir(parents=True, exist_ok=True)
            next(to.iterdir(), None)
        except OSError as error:
            raise ConfigError(
                f"--to {to}: {error.strerror}; give a folder that can be made and written"
            ) from error
        refuse_full(to)
        try:
            return self.recipe.export(self.task, self.config.task, to, format)
        except BaseException:
            shutil.rmtree(to)  # an export that could not be proved must not be taken for one
            raise


def refuse_full(to: Path) -> None:
    """ConfigError where ``to`` is a folder that holds something: asked before a model is loaded."""
    try:
        full = to.is_dir() and any(to.iterdir())
    except OSError:
        return  # said in words when it is written to
    if full:
        raise ConfigError(f"--to {to}: the folder is not empty; give another one")


def rows_of(task: Task, split: Split) -> Task:
    """The task over the rows of a split; ConfigError where it has none."""
    if split == "eval":
        return task
    tested = task.tested() if isinstance(task, Tested) else None
    if tested is None:
        raise ConfigError(
            "there are no test rows to measure: this run's config has no task.data.test, and what "
            "is tested on is stated before training, not after"
        )
    return tested


def load_run(
    folder: str | Path, step: int | str | None = None, *, data: bool = False
) -> TrainedRun:
    """The run in ``folder`` at a step, at ``"best"`` (lowest held-out loss), or at its newest.

    ``folder`` may also be a run's name under ``runs/``.

    The checkpoint is verified before it is used and never another one is used instead. ``data``:
    read the held-out rows too. Raises ConfigError (no such run or step), CheckpointError (damaged).
    """
    view = open_run(folder)
    folder = view.path
    checkpoint = view.checkpoint("newest" if step is None else str(step))
    config = load_config(folder / CONFIG_FILE)
    problems = verify(checkpoint)
    if problems:
        raise CheckpointError(
            f"{checkpoint.path} is damaged: {'; '.join(problems)}. Choose another with --step; "
            "headway train puts it aside and goes on from the newest good one"
        )
    prepare_torch(config)
    world = World(choose_device(config.hardware.device))
    recipe = find_recipe(config.recipe)
    task = recipe.build(config.task, build_context(config, world, data=data))
    then = dict(checkpoint.manifest.facts.get("identities", {}))
    now = task.facts().get("identities", {})
    if not data:
        then = {key: value for key, value in then.items() if key in now}  # no rows were read
    same_identities(then, now, checkpoint.step)
    load_model(task, checkpoint.path / "model")
    task.model.eval()
    return TrainedRun(config, folder, recipe, task, checkpoint, world)
