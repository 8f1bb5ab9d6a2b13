"""Corners of going on: what was lost, what was never trained, what a person mistyped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headway.api import train, train_run
from headway.checkpoint import CheckpointStore
from headway.cli import build_app
from headway.config import RunConfig
from headway.errors import CheckpointError, ConfigError, StorageFull
from headway.journal import read, read_events
from headway.records import StopReason
from toy import Cut, CutAt, assert_same_state, final_state, toy_config

EVALUATE = {"every_steps": 2, "worst_rows": 2}


def kept(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in CheckpointStore(run, attempt="t").checkpoints()]


def test_fresh_starts_over_where_only_the_journal_was_lost(tmp_path: Path) -> None:
    train(toy_config(tmp_path))
    old = final_state(tmp_path / "run")
    (tmp_path / "run/journal.jsonl").unlink()
    changed = toy_config(tmp_path, train={"learning_rate": 0.03})
    with pytest.raises(CheckpointError, match="--fresh"):
        train(changed)
    assert train(changed, fresh=True) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run.replaced-1"), old)
    assert len(read_events(tmp_path / "run/journal.jsonl", {"step"})) == 6


def test_fresh_starts_over_where_journal_and_all_good_checkpoints_were_lost(tmp_path: Path) -> None:
    config = toy_config(tmp_path, checkpoint={"keep_last": 1, "keep_best": 1})
    train(config)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006/model")
    with pytest.raises(CheckpointError, match="--fresh"):
        train(config)
    (tmp_path / "run/journal.jsonl").unlink()
    assert train(config, fresh=True) is StopReason.FINISHED
    assert len(list((tmp_path / "run.replaced-1/quarantine").iterdir())) == 1


def test_a_run_whose_journal_was_lost_goes_on_to_the_same_end(tmp_path: Path) -> None:
    config = toy_config(tmp_path, evaluate=EVALUATE)
    train(config)
    whole = final_state(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(Cut):
        train(config, show=CutAt(4))
    (tmp_path / "run/journal.jsonl").unlink()
    assert train(config) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run"), whole)


def test_a_half_line_that_a_kill_left_is_cut_off_and_the_next_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        train(toy_config(tmp_path), show=CutAt(3))
    with (tmp_path / "run/journal.jsonl").open("ab") as journal:
        journal.write(b'{"event":"step","at":"2026')
    train(toy_config(tmp_path))
    opening = read_events(tmp_path / "run/journal.jsonl", {"opening"})
    assert [line["cut_bytes"] for line in opening] == [0, 26]


def only_refused_before(root: Path) -> RunConfig:
    """Steps 1 and 2 are refused, and step 8 is one refusal too many: the run goes back to step 2,
    where the optimizer had never run, and leaves steps 3 to 8 out."""
    return toy_config(
        root,
        train={"horizon": {"steps": 14}},
        task={"nan_at_steps": (0, 1, 5, 6, 7)},
        monitor={
            "non_finite": {"refuse_steps": 2, "window_steps": 3},
            "roll_back": {"times": 1, "back_steps": 3},
        },
        checkpoint={"every_steps": 2},
    )


def test_a_checkpoint_of_refused_and_left_out_steps_alone_is_gone_on_from(tmp_path: Path) -> None:
    assert train(only_refused_before(tmp_path / "whole")) is StopReason.FINISHED
    whole = final_state(tmp_path / "whole/run")
    with pytest.raises(Cut):
        train(only_refused_before(tmp_path), show=CutAt(9))
    (rolled,) = read_events(tmp_path / "run/journal.jsonl", {"rollback"})
    assert (rolled["back_to"], rolled["step"]) == (2, 8) and kept(tmp_path / "run")[-1] == 8
    assert train(only_refused_before(tmp_path)) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run"), whole)


@pytest.mark.parametrize("cut", range(1, 9))
def test_early_stop_and_retention_decide_the_same_after_any_cut(tmp_path: Path, cut: int) -> None:
    """Evaluations between saves, one checkpoint kept of each kind, rows in other portions."""

    def config(root: Path, **hardware: Any) -> RunConfig:
        patience = {"patience": 2, "min_delta": 0.5}
        return toy_config(
            root,
            train={"horizon": {"steps": 40}},
            evaluate={"every_steps": 3, "at_start": False, "early_stop": patience},
            checkpoint={"every_steps": 4, "keep_last": 1, "keep_best": 1},
            hardware=hardware,
        )

    assert train(config(tmp_path / "whole")) is StopReason.EARLY_STOP
    with pytest.raises(Cut):
        train(config(tmp_path), show=CutAt(cut))
    assert train(config(tmp_path)) is StopReason.EARLY_STOP
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "whole/run"))
    assert kept(tmp_path / "run") == kept(tmp_path / "whole/run")


def test_a_step_that_is_not_there_leaves_no_trace_in_the_run(tmp_path: Path) -> None:
    train(toy_config(tmp_path))
    before = read(tmp_path / "run/journal.jsonl")
    with pytest.raises(ConfigError, match=r"no checkpoint at step 9; there are \[1, 2, 3, 4, 5"):
        train_run(toy_config(tmp_path), from_step=9)
    assert read(tmp_path / "run/journal.jsonl") == before


def test_fresh_and_from_contradict_each_other(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    config.save(tmp_path / "c.yaml")
    train(config)
    given = ["train", str(tmp_path / "c.yaml"), "--fresh", "--from", "step-00000003"]
    done = CliRunner().invoke(build_app(), given)
    assert "--fresh starts over and --from goes on" in str(done.exception)
    assert kept(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_in_an_evaluation_ends_the_attempt_in_words(tmp_path: Path) -> None:
    config = toy_config(tmp_path, evaluate=EVALUATE)
    full = tmp_path / "run/evals/step-00000002/metrics.json"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    with pytest.raises(StorageFull, match=r"run cannot be written: No space left on device"):
        train(config)
    assert kept(tmp_path / "run")[-1] == 2
    full.unlink()
    assert train(config) is StopReason.FINISHED
    train(toy_config(tmp_path / "whole", evaluate=EVALUATE))
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "whole/run"))
