"""What training says before step 1: memory, time and price by a rehearsal, and missing keys."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_recipe import ToyTask

from headway.api import train
from headway.checking import check
from headway.checks import tracker_findings
from headway.config import RunConfig
from headway.engine import rehearsal
from headway.engine.world import World
from headway.errors import OutOfMemory
from headway.foreseen import foretold
from headway.journal import read_events
from headway.opening import opened
from headway.show import Quiet
from toy import TREE, Cut, CutAt, assert_same_state, final_state, toy_config

ASKED = {"rehearse": True}


class Said(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, what: str) -> None:
        self.lines.append(what)


def said_by(config: RunConfig) -> str:
    said = Said()
    train(config, show=said)
    return "\n".join(said.lines)


def test_a_run_that_rehearses_says_memory_time_and_price_and_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    train(toy_config(tmp_path / "plain"))
    cost = {"usd_per_hour": 1e-6, "budget_usd": 1.0}
    told = said_by(toy_config(tmp_path, run=ASKED, cost=cost))
    for words in ("a step on the longest rows (8 rows", "s a step (32 tokens)", "6 steps to go"):
        assert words in told
    assert "WARNING" not in told and told.index("6 steps to go") < told.index("length ")
    kept = [event["what"] for event in read_events(tmp_path / "run/journal.jsonl", {"fit"})]
    assert len(kept) == 3, "the journal has them too"
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "plain/run"))


def test_a_run_that_goes_on_does_not_rehearse_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Cut):
        train(toy_config(tmp_path, run=ASKED), show=CutAt(3))
    monkeypatch.setattr(rehearsal, "one_step", None)  # it would fail
    assert "a step on the longest" not in said_by(toy_config(tmp_path, run=ASKED))


def test_a_budget_that_is_too_small_is_a_warning_with_the_step_where_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is allowed: it stops at its budget, as it was told. A dollar a second."""
    monkeypatch.setattr("headway.spending.process_age_seconds", lambda: 0.0)
    changes = {
        "train": {"horizon": {"steps": 100_000}},
        "task": {"step_seconds": 0.01},
        "cost": {"usd_per_hour": 3600.0, "budget_usd": 300.0},
        "checkpoint": {"every_steps": 50_000},
    }
    with pytest.raises(Cut):
        train(toy_config(tmp_path, run=ASKED, **changes), show=CutAt(1))
    [found] = [
        event["what"]
        for event in read_events(tmp_path / "run/journal.jsonl", {"warning"})
        if "budget" in event["what"]
    ]
    assert "would stop after about" in found and "saved and unfinished" in found


RECOMPUTED = {"activation_checkpointing": True}


def only_fits(monkeypatch: pytest.MonkeyPatch, tries: list[int]) -> None:
    """Memory for no row in the first forward passes, as many as ``tries`` holds; then for all."""
    real = ToyTask.loss

    def loss(task: Any, model: Any, inputs: Any) -> Any:
        if tries:
            tries.pop()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(task, model, inputs)

    monkeypatch.setattr(ToyTask, "loss", loss)


def test_one_row_that_does_not_fit_in_any_way_ends_the_run_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_fits(monkeypatch, [0] * 1000)
    with pytest.raises(OutOfMemory, match="one row alone does not fit"):
        train(toy_config(tmp_path, run=ASKED, hardware=RECOMPUTED))
    assert not read_events(tmp_path / "run/journal.jsonl", {"step"})


def test_one_row_that_may_be_recomputed_or_cut_does_not_end_the_run_before_it_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rehearsal takes no rung of the ladder, so what it cannot do says nothing of training."""
    only_fits(monkeypatch, first := [0, 0])  # the heaviest batch together, then one row of it
    told = said_by(toy_config(tmp_path / "recomputed", run=ASKED))
    assert first == [] and "WARNING: rehearsal: a row of 4 tokens does not fit by itself" in told
    assert "recomputes activations, if the model can" in told and "CUTS" not in told

    monkeypatch.setattr(ToyTask, "cut_rows", lambda *given: None, raising=False)
    only_fits(monkeypatch, first := [0, 0])
    shortened = {"shorten_rows_to": 2}
    told = said_by(toy_config(tmp_path, run=ASKED, hardware=RECOMPUTED, train=shortened))
    assert first == [] and "training CUTS rows, to no fewer than 2 tokens" in told
    assert "recomputes" not in told

    only_fits(monkeypatch, first := [0, 0])
    told_off = toy_config(tmp_path / "long", run=ASKED, hardware=RECOMPUTED,
                          train={"shorten_rows_to": 4})  # fmt: skip
    with pytest.raises(OutOfMemory, match="one row alone does not fit"):
        train(told_off)
    assert first == []


def test_over_several_ranks_a_rehearsal_that_was_asked_for_is_not_left_out_silently(
    tmp_path: Path,
) -> None:
    two = World(torch.device("cpu"), 0, 2)
    with opened(toy_config(tmp_path)) as run:
        given = run.state, run.plan, two, None
    [(kind, line)] = foretold(toy_config(tmp_path, run=ASKED), *given)
    assert kind == "warning" and "several ranks" in line
    assert foretold(toy_config(tmp_path), *given) == []


def test_rows_that_do_not_fit_together_are_a_warning_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ToyTask.loss

    def three_fit(task: Any, model: Any, inputs: Any) -> Any:
        if len(inputs["x"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(task, model, inputs)

    monkeypatch.setattr(ToyTask, "loss", three_fit)
    told = said_by(toy_config(tmp_path, run=ASKED))
    assert "WARNING: rehearsal: 8 rows with 32 tokens do not fit into memory together" in told


def test_a_step_that_is_not_finite_is_a_warning_as_training_refuses_it_and_goes_on(
    tmp_path: Path,
) -> None:
    told = said_by(toy_config(tmp_path, run=ASKED, task={"nan_at_steps": (0,)}))
    assert "WARNING: rehearsal: a step on rows of this run gave loss nan" in told


# ------------------------------------------------------------------ trackers


def found_of(monkeypatch: pytest.MonkeyPatch, home: Path, **env: str) -> list[Any]:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    config = RunConfig(**{**TREE, "track": ["tensorboard", "wandb"]})
    assert config.track is not None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    return [finding for finding in tracker_findings(config.track) if finding.level == "warning"]


def test_no_key_for_wandb_is_a_warning_before_step_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [found] = found_of(monkeypatch, tmp_path)
    assert "WANDB_API_KEY is not set" in found.what and "offline" in found.fix


@pytest.mark.parametrize(
    "env",
    [
        {"WANDB_API_KEY": "k"},
        {"WANDB_MODE": "offline"},
        {"WANDB_IDENTITY_TOKEN_FILE": "t"},
    ],
    ids=lambda env: next(iter(env)),
)
def test_a_key_in_the_environment_or_no_server_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    assert found_of(monkeypatch, tmp_path, **env) == []


def test_a_key_in_netrc_counts_for_its_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert found_of(monkeypatch, tmp_path) == []
    own = {"WANDB_BASE_URL": "https://wandb.example:8443"}
    [found] = found_of(monkeypatch, tmp_path, **own)
    assert "secret" not in str(found)


def test_check_and_training_ask_for_the_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    lacks = {"tensorboard"}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *at: None if name in lacks else real(name, *at)
    )
    config = toy_config(tmp_path, track={"tensorboard": {}})
    [asked] = [answer for answer in check(config) if answer.name == "trackers"]
    assert asked.level == "warning"
    assert "WARNING: trackers: the package tensorboard is not installed" in said_by(config)


def test_a_package_that_is_not_there_is_said_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = RunConfig(**{**TREE, "track": ["tensorboard"]})
    assert config.track is not None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [found] = tracker_findings(config.track)
    assert (found.level, found.fix) == ("warning", "pip install 'headway[track]'")
