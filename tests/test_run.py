"""The promises of a run, on the smallest recipe there is: killed anywhere, it ends the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import headway.engine.steps as steps_module
from headway.api import train, train_run
from headway.checkpoint import CheckpointStore
from headway.config import RunConfig
from headway.engine.state import restore
from headway.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteStep,
    RunLocked,
    StorageFull,
)
from headway.evals import stale
from headway.journal import read, read_events, timeline
from headway.opening import opened
from headway.records import Check, Evaluation, Finding, StepReport, StopReason
from headway.run import train as loop
from headway.show import Quiet
from toy import Cut, CutAt, assert_same_state, final_state, toy_config

EVALUATE = {"every_steps": 2, "worst_rows": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of a run that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    assert train(toy_config(root, evaluate=EVALUATE)) is StopReason.FINISHED
    return final_state(root / "run")


@pytest.mark.parametrize("cut", range(1, 7))
def test_resumed_equals_uninterrupted_bit_for_bit_at_every_cut(
    tmp_path: Path, whole: dict[str, Any], cut: int
) -> None:
    config = toy_config(tmp_path, evaluate=EVALUATE)
    with pytest.raises(Cut):
        train(config, show=CutAt(cut))
    assert train(config) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run"), whole)


def test_without_the_optimizer_state_a_resumed_run_would_differ(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the equality above sees a resume that forgets the moments."""
    config = toy_config(tmp_path, evaluate=EVALUATE)
    with pytest.raises(Cut):
        train(config, show=CutAt(4))
    monkeypatch.setattr("headway.engine.state._restore_optimizer", lambda *_: None)
    train(config)
    with pytest.raises(AssertionError):
        assert_same_state(final_state(tmp_path / "run"), whole)


def test_without_a_seed_a_step_a_resumed_run_would_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: dropout must be a function of the step."""
    monkeypatch.setattr(steps_module, "seed_step", lambda *_: None)
    train(toy_config(tmp_path / "a"))
    with pytest.raises(Cut):
        train(toy_config(tmp_path / "b"), show=CutAt(4))
    train(toy_config(tmp_path / "b"))
    with pytest.raises(AssertionError):
        assert_same_state(final_state(tmp_path / "b/run"), final_state(tmp_path / "a/run"))


def test_many_cuts_and_two_resumes_in_a_row_end_the_same(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    config = toy_config(tmp_path, evaluate=EVALUATE)
    for cut in (1, 2, 2, 3, 5, 6):
        with pytest.raises(Cut):
            train(config, show=CutAt(cut))
    train(config)
    assert_same_state(final_state(tmp_path / "run"), whole)
    steps = [line["step"] for line in timeline(read(tmp_path / "run/journal.jsonl"))]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_does_nothing_when_started_again(tmp_path: Path) -> None:
    config = toy_config(tmp_path, evaluate=EVALUATE)
    train(config)
    before = final_state(tmp_path / "run")
    assert train(config) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run"), before)
    journal = read(tmp_path / "run/journal.jsonl")
    again = [line["event"] for line in journal if line["attempt"] == 2]
    assert again == ["opening", "attempt", "plan", "stop"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_step_boundary_and_the_next_attempt_goes_on(
    tmp_path: Path, whole: dict[str, Any], number: int
) -> None:
    class Sends(Quiet):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            if report.step == 3:
                os.kill(os.getpid(), number)

    config = toy_config(tmp_path, evaluate=EVALUATE, checkpoint={"every_steps": None})
    reason = train(config, show=Sends())
    assert reason is StopReason.SIGNAL and reason.exit_code == 75
    assert CheckpointStore(tmp_path / "run", attempt="t").checkpoints()[-1].step == 3
    train(config)
    assert_same_state(final_state(tmp_path / "run"), whole)


def test_a_signal_during_an_evaluation_leaves_it_to_the_next_attempt(tmp_path: Path) -> None:
    from toy_recipe import ToyTask

    class Sends(Quiet):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            if report.step == 2:
                original = ToyTask.held_out

                def once(task: ToyTask, halvings: int = 0) -> Iterator[Any]:
                    ToyTask.held_out = original  # type: ignore[method-assign]
                    for number, microbatch in enumerate(original(task)):
                        if number == 1:
                            os.kill(os.getpid(), signal.SIGTERM)
                        yield microbatch

                ToyTask.held_out = once  # type: ignore[method-assign]

    config = toy_config(tmp_path, evaluate=EVALUATE)
    assert train(config, show=Sends()) is StopReason.SIGNAL
    train(config)
    evaluations = timeline(read(tmp_path / "run/journal.jsonl"), "evaluation")
    assert [e["step"] for e in evaluations] == [0, 2, 4, 6]


@pytest.mark.fault(43)
def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    train(toy_config(tmp_path))
    with pytest.raises(ConfigError, match=r"train\.learning_rate: 0\.02 -> 0\.03"):
        train(toy_config(tmp_path, train={"learning_rate": 0.03}))


@pytest.mark.fault(43)
def test_mechanics_may_change_between_attempts(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        train(toy_config(tmp_path), show=CutAt(3))
    changed = toy_config(tmp_path, hardware={"microbatch_size": 2}, checkpoint={"keep_last": 1})
    assert train(changed) is StopReason.FINISHED


def test_fresh_moves_the_old_run_aside_and_starts_over(tmp_path: Path) -> None:
    train(toy_config(tmp_path))
    old = final_state(tmp_path / "run")
    train(toy_config(tmp_path, train={"learning_rate": 0.03}), fresh=True)
    assert_same_state(final_state(tmp_path / "run.replaced-1"), old)
    with pytest.raises(AssertionError):
        assert_same_state(final_state(tmp_path / "run"), old)


def test_going_back_to_a_step_gives_the_same_end(tmp_path: Path, whole: dict[str, Any]) -> None:
    config = toy_config(tmp_path, evaluate=EVALUATE)
    train(config)
    train_run(config, from_step=2)
    assert_same_state(final_state(tmp_path / "run"), whole)
    with pytest.raises(ConfigError, match="no checkpoint at step 9"):
        train_run(config, from_step=9)


def test_a_damaged_newest_checkpoint_is_quarantined_and_the_end_is_the_same(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    config = toy_config(tmp_path, evaluate=EVALUATE)
    with pytest.raises(Cut):
        train(config, show=CutAt(5))
    newest = CheckpointStore(tmp_path / "run", attempt="t").checkpoints()[-1]
    file = newest.path / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    train(config)
    assert_same_state(final_state(tmp_path / "run"), whole)
    said = read_events(tmp_path / "run/journal.jsonl", {"quarantine"})
    assert len(said) == 1 and "optimizer.safetensors" in said[0]["what"]


@pytest.mark.fault(26)
def test_if_every_checkpoint_is_damaged_the_run_stops_and_does_not_start_over(
    tmp_path: Path,
) -> None:
    config = toy_config(tmp_path)
    with pytest.raises(Cut):
        train(config, show=CutAt(3))
    for file in (tmp_path / "run/checkpoints").rglob("model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="Not starting over"):
        train(config)


def test_changed_training_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toy_recipe import ToyTask

    with pytest.raises(Cut):
        train(toy_config(tmp_path), show=CutAt(3))
    facts = {"parameters": 1, "trainable": 1, "identities": {"rows": "others"}}
    monkeypatch.setattr(ToyTask, "facts", lambda self: facts)
    with pytest.raises(CheckpointError, match="rows: 64 -> others"):
        train(toy_config(tmp_path))


def test_an_attempt_that_fails_while_opening_is_billed_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toy_recipe import ToyRecipe

    def broken(self: Any, config: Any, context: Any) -> Any:
        raise DataError("rows.jsonl:7: not JSON")

    config = toy_config(tmp_path, cost={"usd_per_hour": 3600.0})
    with monkeypatch.context() as patch, pytest.raises(DataError):
        patch.setattr(ToyRecipe, "build", broken)
        train(config)
    opening, stop = read(tmp_path / "run/journal.jsonl")
    assert (opening["event"], stop["event"], stop["reason"]) == ("opening", "stop", "error")
    assert stop["message"] == "rows.jsonl:7: not JSON" and stop["cost_usd"] > 0
    train(config)
    first = read_events(tmp_path / "run/journal.jsonl", {"step"})[0]
    assert first["attempt"] == 2
    assert first["cost_usd"] > stop["cost_usd"] and first["run_seconds"] > stop["run_seconds"] > 0


def test_what_the_recipe_finds_is_said_and_a_blocker_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toy_recipe import ToyRecipe

    finding = Finding(level="warning", name="labels", what="no negatives", fix="add some")
    check = Check("labels", lambda: [finding], quick=True)
    monkeypatch.setattr(ToyRecipe, "checks", lambda self, config, context: [check])
    train(toy_config(tmp_path))
    [warning] = read_events(tmp_path / "run/journal.jsonl", {"warning"})
    assert warning["what"] == "labels: no negatives. add some"
    finding = replace(finding, level="blocker")
    with pytest.raises(ConfigError, match=r"labels: no negatives\. add some"):
        train(toy_config(tmp_path / "other"))


@pytest.mark.fault(43)
def test_a_change_of_mechanics_between_attempts_is_said(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        train(toy_config(tmp_path), show=CutAt(3))
    train(toy_config(tmp_path, hardware={"microbatch_size": 2}))
    [warning] = read_events(tmp_path / "run/journal.jsonl", {"warning"})
    assert warning["what"] == (
        'changed since the last attempt: hardware.microbatch_size: "auto" -> 2'
    )


def test_held_out_losses_over_other_rows_are_not_mixed_in(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        train(toy_config(tmp_path, evaluate={**EVALUATE, "max_rows": 8}), show=CutAt(3))
    with pytest.raises(ConfigError, match=r"evaluate\.max_rows: 8 -> 4"):
        train(toy_config(tmp_path, evaluate={**EVALUATE, "max_rows": 4}))


@pytest.mark.fault(32)
def test_a_warm_start_takes_the_weights_and_nothing_else(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    train(toy_config(tmp_path / "first", evaluate=EVALUATE))
    warm = {"run": {"warm_start": f"{tmp_path / 'first/run'}@6"}}
    with opened(toy_config(tmp_path / "second", **warm)) as run:
        assert run.state.step == 0 and not run.state.optimizer.state
        taken = run.task.saved().tensors["model.safetensors"]
        for name, tensor in taken.items():
            assert torch.equal(tensor, whole[f"model.safetensors:{name}"])
    train(toy_config(tmp_path / "second", **warm))
    one = final_state(tmp_path / "second/run")
    for cut in (2, 4):
        with pytest.raises(Cut):
            train(toy_config(tmp_path / "third", **warm), show=CutAt(cut))
    shutil.rmtree(tmp_path / "first")  # needed to begin, not to go on
    train(toy_config(tmp_path / "third", **warm))
    assert_same_state(final_state(tmp_path / "third/run"), one)
    with pytest.raises(ConfigError, match="first"):
        train(toy_config(tmp_path / "fourth", **warm))


def test_a_warm_start_from_a_model_that_means_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toy_recipe import ToyTask

    train(toy_config(tmp_path / "first"))
    facts = {"parameters": 1, "trainable": 1, "identities": {"rows": "others"}}
    monkeypatch.setattr(ToyTask, "facts", lambda self: facts)
    with pytest.raises(ConfigError, match="trained with another rows"):
        train(toy_config(tmp_path / "second", run={"warm_start": f"{tmp_path / 'first/run'}@6"}))


@pytest.mark.fault(32)
def test_an_optimizer_state_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with opened(toy_config(tmp_path)) as run:
        loop(run)
        checkpoint = run.saves.store.checkpoints()[-1].path
        moments = load_file(checkpoint / "optimizer.safetensors")
        counters = json.loads((checkpoint / "state.json").read_text())
        lost = next(name for name in moments if name.startswith("exp_avg_sq."))
        (checkpoint / "optimizer.safetensors").unlink()
        save_file(
            {k: v for k, v in moments.items() if k != lost}, checkpoint / "optimizer.safetensors"
        )
        with pytest.raises(CheckpointError, match="not whole"):
            restore(run.state, checkpoint)
        counters["optimizer"]["nobody"] = {"step": 3}
        (checkpoint / "state.json").write_text(json.dumps(counters))
        with pytest.raises(CheckpointError, match="nobody"):
            restore(run.state, checkpoint)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with opened(toy_config(tmp_path)), pytest.raises(RunLocked):
        train(toy_config(tmp_path))


def test_early_stopping_survives_restarts(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "train": {"horizon": {"steps": 40}},
        "evaluate": {**EVALUATE, "early_stop": {"patience": 2, "min_delta": 1.0}},
    }
    assert train(toy_config(tmp_path / "a", **how)) is StopReason.EARLY_STOP
    for cut in (1, 3, 4):
        with pytest.raises(Cut):
            train(toy_config(tmp_path / "b", **how), show=CutAt(cut))
    assert train(toy_config(tmp_path / "b", **how)) is StopReason.EARLY_STOP
    assert_same_state(final_state(tmp_path / "a/run"), final_state(tmp_path / "b/run"))
    assert train(toy_config(tmp_path / "b", **how)) is StopReason.EARLY_STOP


def test_patience_counts_evaluations_without_enough_improvement() -> None:
    assert not stale([3.0, 2.0, 1.0, 1.0], patience=2, min_delta=0.0)
    assert stale([3.0, 1.0, 1.0, 1.0], patience=2, min_delta=0.0)
    assert stale([3.0, 2.9, 2.8], patience=2, min_delta=0.5)
    assert not stale([3.0, float("nan"), 2.0], patience=2, min_delta=0.0)
    assert not stale([], patience=1, min_delta=0.0)


def test_cost_adds_up_over_attempts_and_never_falls(tmp_path: Path) -> None:
    config = toy_config(tmp_path, cost={"usd_per_hour": 3600.0})
    for cut in (2, 4):
        with pytest.raises(Cut):
            train(config, show=CutAt(cut))
    train(config)
    costs = [line["cost_usd"] for line in read_events(tmp_path / "run/journal.jsonl", {"step"})]
    assert costs == sorted(costs) and costs[0] > 0


def test_the_budget_stops_the_run_with_a_checkpoint_and_raising_it_goes_on(tmp_path: Path) -> None:
    train(toy_config(tmp_path / "whole"))
    poor = toy_config(tmp_path, cost={"usd_per_hour": 1e9, "budget_usd": 1e-6})
    assert train(poor) is StopReason.BUDGET
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))  # nothing could be afforded

    class Spends(Quiet):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            if report.step == 3:
                run.meter.spent_usd_before = 1e12  # type: ignore[union-attr]

    with opened(
        toy_config(tmp_path, cost={"usd_per_hour": 1.0, "budget_usd": 1e11}), show=Spends()
    ) as run:
        run.meter.spent_usd_before = 0.0  # type: ignore[union-attr]
        assert loop(run) is StopReason.BUDGET
    assert CheckpointStore(tmp_path / "run", attempt="t").checkpoints()[-1].step == 3
    train(toy_config(tmp_path, cost={"usd_per_hour": 1.0, "budget_usd": 1e18}))
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "whole/run"))


class FullDisk(Quiet):
    """No byte is free while training is at one of these steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
        real, self.at = shutil.disk_usage, 0

        def usage(path: Any) -> Any:
            return real(path)._replace(free=0) if self.at in steps else real(path)

        monkeypatch.setattr(shutil, "disk_usage", usage)

    def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
        self.at = report.step


@pytest.mark.fault(10)
def test_a_full_disk_costs_one_save_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    assert train(toy_config(tmp_path, evaluate=EVALUATE), show=FullDisk(monkeypatch, {1, 2}))
    skipped = read_events(tmp_path / "run/journal.jsonl", {"save_skipped"})
    assert [line["step"] for line in skipped] == [1, 2]
    assert_same_state(final_state(tmp_path / "run"), whole)


def test_the_best_and_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    keep = {"every_steps": 2, "keep_last": 1, "keep_best": 1}
    train(toy_config(tmp_path, evaluate=EVALUATE, checkpoint=keep))
    evaluations = read_events(tmp_path / "run/journal.jsonl", {"evaluation"})
    best = min((e for e in evaluations if e["step"]), key=lambda e: e["metrics"]["loss"])["step"]
    kept = {c.step for c in CheckpointStore(tmp_path / "run", attempt="t").checkpoints()}
    assert kept == {best, 6}


def test_an_evaluation_is_on_disk_with_its_worst_rows(tmp_path: Path) -> None:
    train(toy_config(tmp_path, evaluate=EVALUATE))
    place = tmp_path / "run/evals/step-00000006"
    metrics = json.loads((place / "metrics.json").read_text())
    assert metrics["rows"] == 6 and metrics["baselines"].keys() == {"loss/zero", "loss/untrained"}
    rows = [json.loads(line) for line in (place / "worst.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[0]["loss"] >= rows[1]["loss"]


def test_the_saved_config_is_the_config(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    train(config)
    assert RunConfig.load(tmp_path / "run/config.yaml") == config


def test_an_epoch_horizon_is_counted_in_rows(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train={"horizon": {"epochs": 1.5}})
    with opened(config) as run:
        assert run.plan.num_steps == 12  # 64 rows x 1.5 / 8


def test_a_token_horizon_is_counted_in_real_tokens(tmp_path: Path) -> None:
    with opened(toy_config(tmp_path, train={"horizon": {"tokens": 320}})) as run:
        assert run.plan.num_steps == 10  # 8 rows x 4 tokens a step


def test_evaluation_shows_n_and_baseline(tmp_path: Path) -> None:
    seen: list[Evaluation] = []

    class Keeps(Quiet):
        def evaluated(self, evaluation: Evaluation) -> None:
            seen.append(evaluation)

    train(toy_config(tmp_path, evaluate=EVALUATE), show=Keeps())
    assert [e.step for e in seen] == [0, 2, 4, 6]
    assert all(e.rows == 6 and e.weight > 6 and "loss/zero" in e.baselines for e in seen)
    assert torch.isfinite(torch.tensor([e.metrics["absolute"] for e in seen])).all()


def test_a_stop_whose_last_save_fails_is_an_error_and_not_a_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch, {1, 2, 3, 4, 5, 6})
    patience = {**EVALUATE, "early_stop": {"patience": 1, "min_delta": 9.0}}
    with pytest.raises(StorageFull) as caught:
        train(toy_config(tmp_path, evaluate=patience, checkpoint={"every_steps": None}), show=disk)
    assert caught.value.exit_code == 77 and "at step 2" in str(caught.value)


def test_a_disk_that_is_full_from_the_beginning_is_said_before_step_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageFull, match=r"room for 0 checkpoints.*keep_last") as caught:
        train(toy_config(tmp_path), show=FullDisk(monkeypatch, {0}))
    assert caught.value.exit_code == 77
    assert not read_events(tmp_path / "run/journal.jsonl", {"step"})


def test_fresh_gives_the_old_run_back_when_the_new_one_cannot_begin(tmp_path: Path) -> None:
    train(toy_config(tmp_path))
    before = final_state(tmp_path / "run")
    with pytest.raises(DataError):
        train(toy_config(tmp_path, task={"rows": 0}), fresh=True)
    assert_same_state(final_state(tmp_path / "run"), before)
    assert train(toy_config(tmp_path)) is StopReason.FINISHED
    assert not (tmp_path / "run.replaced-1").exists()


def test_a_run_that_never_began_may_be_corrected(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train(toy_config(tmp_path, task={"rows": 0}))
    assert train(toy_config(tmp_path)) is StopReason.FINISHED


def test_an_evaluation_without_rows_is_refused_before_step_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toy_recipe import ToyTask

    monkeypatch.setattr(ToyTask, "held_out", lambda self: iter(()))
    with pytest.raises(ConfigError, match="no held-out rows"):
        train(toy_config(tmp_path, evaluate={**EVALUATE, "at_start": False}))


def test_a_held_out_loss_that_is_no_number_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toy_recipe import ToyTask

    original = ToyTask.held_out

    def broken(task: ToyTask, halvings: int = 0) -> Iterator[Any]:
        for microbatch in original(task):
            microbatch.inputs["x"][:] = float("nan")  # type: ignore[index]
            yield microbatch

    monkeypatch.setattr(ToyTask, "held_out", broken)
    with pytest.raises(NonFiniteStep, match="held-out loss at step 0 is nan"):
        train(toy_config(tmp_path, evaluate=EVALUATE))
