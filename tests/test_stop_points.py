"""A request to stop may come at any point of a step: it is answered at the step's end, bit by bit.

The points are the run's own calls, reached for certain, not instants hit by chance.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_recipe import ToyTask

from headway.api import train
from headway.checkpoint import CheckpointStore
from headway.config import RunConfig
from headway.engine.state import Snapshot
from headway.journal import read_events, timeline
from headway.records import StopReason
from toy import assert_same_state, final_state, toy_config

MICROBATCHES = 4
STOP_IN_STEP = 3


def config(root: Path) -> RunConfig:
    """Four microbatches a step, evaluations every second step, a save at every step."""
    return toy_config(
        root,
        hardware={"microbatch_size": 2},
        evaluate={"every_steps": 2, "worst_rows": 2},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end of a run that nobody stopped."""
    root = tmp_path_factory.mktemp("whole")
    assert train(config(root)) is StopReason.FINISHED
    return final_state(root / "run")


class Bell:
    """Rings once: a real signal to this process, from wherever it is called."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.rung_at: list[str] = []

    def ring(self, where: str) -> None:
        if not self.rung_at:
            self.rung_at.append(where)
            os.kill(os.getpid(), self.number)


def in_forward(bell: Bell, patch: pytest.MonkeyPatch) -> None:
    """Before the second microbatch of the step is computed."""
    real, calls = ToyTask.loss, []

    def loss(task: ToyTask, model: Any, inputs: Any) -> Any:
        if model.training and torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == (STOP_IN_STEP - 1) * MICROBATCHES + 2:
                bell.ring("forward")
        return real(task, model, inputs)

    patch.setattr(ToyTask, "loss", loss)


def in_backward(bell: Bell, patch: pytest.MonkeyPatch) -> None:
    """While the gradient of the third microbatch is computed."""
    real, calls = ToyTask.loss, []

    def loss(task: ToyTask, model: Any, inputs: Any) -> Any:
        sums = real(task, model, inputs)
        if sums["loss"].requires_grad:
            calls.append(1)
            if len(calls) == (STOP_IN_STEP - 1) * MICROBATCHES + 3:
                sums["loss"].register_hook(lambda gradient: bell.ring("backward"))
        return sums

    patch.setattr(ToyTask, "loss", loss)


def in_the_optimizer(bell: Bell, patch: pytest.MonkeyPatch) -> None:
    """Before the weights of the step are written."""
    real, calls = torch.optim.AdamW.step, []

    def step(optimizer: Any, *given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == STOP_IN_STEP:
            bell.ring("optimizer")
        return real(optimizer, *given, **more)

    patch.setattr(torch.optim.AdamW, "step", step)


def while_data_are_awaited(bell: Bell, patch: pytest.MonkeyPatch) -> None:
    """While the thread that makes batches makes this step's."""
    real = ToyTask.batch_at

    def batch_at(task: ToyTask, step: int, halvings: int = 0) -> Any:
        if step == STOP_IN_STEP - 1:
            bell.ring("data")
        return real(task, step)

    patch.setattr(ToyTask, "batch_at", batch_at)


def in_the_snapshot(bell: Bell, patch: pytest.MonkeyPatch) -> None:
    """While the state is copied for a save."""
    real = Snapshot.take

    def take(snapshot: Snapshot, state: Any) -> None:
        if state.step == STOP_IN_STEP:
            bell.ring("snapshot")
        real(snapshot, state)

    patch.setattr(Snapshot, "take", take)


def beside_a_write(bell: Bell, patch: pytest.MonkeyPatch) -> None:
    """While the writer's thread commits a save."""
    from headway.checkpoint.store import Partial

    real = Partial.commit

    def commit(partial: Partial, facts: Any) -> Any:
        if partial.step == STOP_IN_STEP:
            bell.ring("write")
        return real(partial, facts)

    patch.setattr(Partial, "commit", commit)


def in_pruning(bell: Bell, patch: pytest.MonkeyPatch) -> None:
    """While old checkpoints are deleted."""
    real = CheckpointStore.prune

    def prune(store: CheckpointStore, *given: Any, **more: Any) -> Any:
        if store.checkpoints()[-1].step == STOP_IN_STEP:
            bell.ring("pruning")
        return real(store, *given, **more)

    patch.setattr(CheckpointStore, "prune", prune)


POINTS: list[Callable[[Bell, pytest.MonkeyPatch], None]] = [
    in_forward,
    in_backward,
    in_the_optimizer,
    while_data_are_awaited,
    in_the_snapshot,
    beside_a_write,
    in_pruning,
]


@pytest.mark.fault(17, 34)
@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.__name__)
def test_a_request_to_stop_at_any_point_is_answered_with_a_whole_step_and_the_same_end(
    tmp_path: Path, whole: dict[str, Any], point: Callable[..., None]
) -> None:
    bell = Bell(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        point(bell, patch)
        assert train(config(tmp_path)) is StopReason.SIGNAL
    assert len(bell.rung_at) == 1
    last = timeline(read_events(tmp_path / "run/journal.jsonl", {"step"}))[-1]
    assert last["rows"] == 8, "no step is cut between its microbatches"
    newest = CheckpointStore(tmp_path / "run", attempt="t").checkpoints()[-1]
    assert newest.step == last["step"] >= STOP_IN_STEP - 1
    assert newest.step <= STOP_IN_STEP + 1, "answered at once"
    assert train(config(tmp_path)) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run"), whole)


@pytest.mark.fault(37)
def test_a_hang_up_is_answered_like_a_request_to_stop(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    bell = Bell(signal.SIGHUP)
    with pytest.MonkeyPatch.context() as patch:
        in_forward(bell, patch)
        assert train(config(tmp_path)) is StopReason.SIGNAL
    assert bell.rung_at == ["forward"]
    assert CheckpointStore(tmp_path / "run", attempt="t").checkpoints()[-1].step == STOP_IN_STEP
    train(config(tmp_path))
    assert_same_state(final_state(tmp_path / "run"), whole)


@pytest.mark.fault(37)
def test_a_hang_up_that_was_ignored_on_purpose_stays_ignored(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    """``nohup headway train …``"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        bell = Bell(signal.SIGHUP)
        with pytest.MonkeyPatch.context() as patch:
            in_forward(bell, patch)
            assert train(config(tmp_path)) is StopReason.FINISHED
        assert bell.rung_at == ["forward"]
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same_state(final_state(tmp_path / "run"), whole)


@pytest.mark.fault(17)
def test_a_save_between_two_microbatches_would_be_seen(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    """Negative control: a step of half its microbatches ends in other bits."""
    real = ToyTask.batch_at

    def cut_short(task: ToyTask, step: int, halvings: int = 0) -> Any:
        made = real(task, step)
        return made[: MICROBATCHES // 2] if step == STOP_IN_STEP - 1 else made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyTask, "batch_at", cut_short)
        train(config(tmp_path))
    with pytest.raises(AssertionError):
        assert_same_state(final_state(tmp_path / "run"), whole)
