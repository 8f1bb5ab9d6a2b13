"""What a run meets besides kills: a broken state, a wrong clock, the end of the money."""

from __future__ import annotations

import errno
import os
import random
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_recipe import ToyTask

import headway.engine.steps as steps_module
from headway.api import train
from headway.checkpoint import CheckpointStore, Saver, read_manifest
from headway.checkpoint.manifest import manifest_bytes
from headway.checkpoint.store import Partial
from headway.cost import Meter
from headway.errors import CheckpointError
from headway.journal import read, read_events
from headway.machine import versions as versions_here
from headway.opening import opened
from headway.records import StepReport, StopReason
from headway.run import Run
from headway.run import train as loop
from headway.show import Quiet
from toy import Cut, CutAt, assert_same_state, final_state, toy_config


def steps_saved(root: Path) -> list[int]:
    return [c.step for c in CheckpointStore(root / "run", attempt="t").checkpoints()]


# ------------------------------------------------------------------ a state that is no state


class Poisons(Quiet):
    """Puts one NaN or infinity into the weights after a step, before it is saved."""

    def __init__(self, value: float, step: int) -> None:
        self.value, self.at = value, step
        self.run: Run | None = None

    def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
        if report.step == self.at:
            assert self.run is not None
            next(self.run.task.model.parameters()).data.view(-1)[-1] = self.value


def poisoned(root: Path, value: float) -> Path:
    show = Poisons(value, step=3)
    with opened(toy_config(root), show=show) as run:
        show.run = run
        loop(run)
    return root


@pytest.mark.fault(19)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite_is_never_saved_and_the_last_good_one_goes_on(
    tmp_path: Path, value: float
) -> None:
    train(toy_config(tmp_path / "whole"))
    with pytest.raises(CheckpointError, match=r"step 3: .*hold NaN or infinity"):
        poisoned(tmp_path, value)
    assert steps_saved(tmp_path) == [1, 2]
    assert "NaN or infinity" in read(tmp_path / "run/journal.jsonl")[-1]["message"]
    assert train(toy_config(tmp_path)) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "whole/run"))


@pytest.mark.fault(19)
def test_without_that_look_it_would_be_the_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    monkeypatch.setattr("headway.saving.non_finite", lambda state: [])
    poisoned(tmp_path, float("nan"))
    assert steps_saved(tmp_path)[:3] == [1, 2, 3]
    weights = final_state(tmp_path / "run")
    assert any(torch.isnan(t).any() for t in weights.values() if isinstance(t, torch.Tensor))


# ------------------------------------------------------------------ a clock that is wrong


class Leaping(datetime):
    """Each time it is asked it is an hour or a year earlier or later."""

    asked = 0

    @classmethod
    def leap(cls) -> timedelta:
        Leaping.asked += 1
        return random.Random(Leaping.asked).choice([-1, 1]) * random.Random(-Leaping.asked).choice(
            [timedelta(hours=1), timedelta(days=365)]
        )

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.leap()


@pytest.mark.fault(41)
def test_a_clock_that_leaps_and_scrambled_file_times_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {
        "evaluate": {"every_steps": 2},
        "checkpoint": {"every_steps": 2, "every_minutes": 30.0},
        "cost": {"usd_per_hour": 3600.0, "budget_usd": 1e6},
    }
    train(toy_config(tmp_path / "whole", **how))
    real = time.time
    for module in ("journal", "checkpoint.store", "spending"):
        monkeypatch.setattr(f"headway.{module}.datetime", Leaping)
    monkeypatch.setattr(time, "time", lambda: real() + Leaping.leap().total_seconds())
    config = toy_config(tmp_path, **how)
    with pytest.raises(Cut):
        train(config, show=CutAt(5))
    assert steps_saved(tmp_path) == [2, 4], "an interval of minutes is not the clock's"
    for number, path in enumerate(sorted((tmp_path / "run").rglob("*"))):
        os.utime(path, (10**9 - number, 10**9 - number))
    assert train(config) is StopReason.FINISHED
    attempts = read_events(tmp_path / "run/journal.jsonl", {"attempt"})
    assert [event["restored_step"] for event in attempts] == [0, 4]
    costs = [e["cost_usd"] for e in read_events(tmp_path / "run/journal.jsonl", {"step"})]
    assert costs == sorted(costs) and 0 < costs[-1] < 86_400, "no year was billed"
    assert Leaping.asked > 20
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "whole/run"))


# ------------------------------------------------------------------ the end of the money

STEP_SECONDS, SAVE_SECONDS = 10.0, 7.0


class Clock:
    """Time that only work moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def cost_of_a_run(root: Path, budget_usd: float, patch: pytest.MonkeyPatch) -> float:
    """Train until the budget stops it, at one dollar a second; what it then has cost."""
    clock = Clock()
    compute, commit, submit = ToyTask.loss, Partial.commit, Saver.submit

    def loss(task: ToyTask, model: Any, inputs: Any) -> Any:
        clock.now += STEP_SECONDS
        return compute(task, model, inputs)

    def slow_commit(partial: Partial, facts: Any) -> Any:
        clock.now += SAVE_SECONDS
        return commit(partial, facts)

    def submit_and_wait(saver: Saver, *given: Any, **more: Any) -> None:
        submit(saver, *given, **more)
        saver.wait()  # one thing at a time, so that time has one order

    patch.setattr(ToyTask, "loss", loss)
    patch.setattr(Partial, "commit", slow_commit)
    patch.setattr(Saver, "submit", submit_and_wait)
    patch.setattr(steps_module, "time", SimpleNamespace(perf_counter=clock))
    patch.setattr("headway.checkpoint.saver.time", SimpleNamespace(monotonic=clock))
    patch.setattr("headway.spending.process_age_seconds", lambda: 0.0)
    cost = {"usd_per_hour": 3600.0, "budget_usd": budget_usd}
    with opened(toy_config(root, cost=cost, train={"horizon": {"steps": 99}})) as run:
        assert run.meter is not None
        run.meter = meter = Meter(run.meter.price, clock=clock)
        run.limits.spent_usd = lambda: meter.cost_usd
        assert loop(run) is StopReason.BUDGET
        assert run.meter.cost_usd == clock.now
        assert steps_saved(root)[-1] == run.state.step, "what was paid for is saved"
        return clock.now


@pytest.mark.fault(76)
@pytest.mark.parametrize("budget_usd", [20.0, 60.0, 61.0, 68.0, 77.0, 85.0, 199.0])
def test_a_run_never_costs_more_than_its_budget_the_last_save_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget_usd: float
) -> None:
    cost = cost_of_a_run(tmp_path, budget_usd, monkeypatch)
    assert cost <= budget_usd
    assert cost > budget_usd - 3 * (STEP_SECONDS + SAVE_SECONDS), "nor does it stop far too early"
    stop = read(tmp_path / "run/journal.jsonl")[-1]
    assert (stop["event"], stop["reason"]) == ("stop", "budget")
    assert StopReason.BUDGET.exit_code == 76


@pytest.mark.fault(76)
def test_without_the_reserve_for_that_save_the_budget_would_be_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""

    def no_reserve(run: Run) -> StopReason | None:
        return StopReason.BUDGET if run.limits.passed() else None

    monkeypatch.setattr(Run, "limit", no_reserve)
    assert cost_of_a_run(tmp_path, 60.0, monkeypatch) > 60.0


# ------------------------------------------------------------------ a disk that fails, once


@pytest.mark.fault(13, 15)
@pytest.mark.parametrize("what", ["fsync EIO", "mkdir EROFS", "no memory"])
def test_a_save_that_fails_is_said_and_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    train(toy_config(tmp_path / "whole"))
    real, fired = Partial.write, []

    def fails_once(partial: Partial, name: str, chunks: Any) -> Any:
        if partial.step == 3 and not fired:
            fired.append(name)
            if what == "no memory":
                raise MemoryError
            number = errno.EIO if what == "fsync EIO" else errno.EROFS
            call = what.split()[0]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, call, lambda *given: raised(number))
                return real(partial, f"new/{name}", chunks)
        return real(partial, name, chunks)

    monkeypatch.setattr(Partial, "write", fails_once)
    assert train(toy_config(tmp_path)) is StopReason.FINISHED
    [skipped] = read_events(tmp_path / "run/journal.jsonl", {"save_skipped"})
    assert skipped["step"] == 3 and fired
    assert steps_saved(tmp_path) == [1, 2, 4, 5, 6]
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "whole/run"))


def raised(number: int) -> None:
    raise OSError(number, os.strerror(number))


def test_if_the_last_save_fails_the_attempt_does_not_say_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(partial: Partial, facts: Any) -> Any:
        raise CheckpointError("the disk refused fsync: EIO")

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "commit", broken)
        with pytest.raises(CheckpointError, match="EIO"):
            train(toy_config(tmp_path))
    assert train(toy_config(tmp_path)) is StopReason.FINISHED


# ------------------------------------------------------------------ other libraries, words


@pytest.mark.fault(44)
def test_another_version_of_a_library_is_said_and_noted_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    with pytest.raises(Cut):
        train(toy_config(tmp_path), show=CutAt(3))
    folder = CheckpointStore(tmp_path / "run", attempt="t").checkpoints()[-1].path
    manifest = read_manifest(folder)
    versions = {**manifest.facts["versions"], "torch": "1.13.0"}
    forged = replace(manifest, facts={**manifest.facts, "versions": versions})
    (folder / "manifest.json").write_bytes(manifest_bytes(forged))
    assert train(toy_config(tmp_path)) is StopReason.FINISHED
    [warning] = read_events(tmp_path / "run/journal.jsonl", {"warning"})
    assert f"torch 1.13.0 -> {versions_here()['torch']}" in warning["what"]
    attempts = read_events(tmp_path / "run/journal.jsonl", {"attempt"})
    assert all(attempt["versions"]["torch"] != "1.13.0" for attempt in attempts)


@pytest.mark.fault(82)
def test_neither_the_command_nor_the_last_words_repeat_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toy_recipe import ToyRecipe

    def talks(recipe: Any, config: Any, context: Any) -> Any:
        raise OSError("GET https://host/x?token=CANARY-CANARY: 401")

    monkeypatch.setenv("HF_TOKEN", "CANARY-CANARY")
    monkeypatch.setattr("sys.argv", ["train.py", "--token", "CANARY-CANARY"])
    train(toy_config(tmp_path))
    monkeypatch.setattr(ToyRecipe, "build", talks)
    with pytest.raises(OSError, match="401"):
        train(toy_config(tmp_path))
    journal = (tmp_path / "run/journal.jsonl").read_text()
    assert "CANARY" not in journal and "401" in journal and "--token" in journal
