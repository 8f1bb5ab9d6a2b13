"""A real training with trackers: cut, continued, and read back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headway.api import train
from headway.config import RunConfig
from headway.journal import read
from toy import Cut, CutAt, toy_config
from tracked import measured, single, standing, tensorboard_scalars, wandb_folders, wandb_history

ROOT = Path(__file__).parent


def sent_later(run: Path) -> None:
    """What a busy machine kept a tracker's process, of lowest priority, from sending in time."""
    subprocess.run([sys.executable, "-m", "headway.cli", "track", str(run)], check=True)


def test_a_run_that_is_cut_and_continued_is_in_each_tracker_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    # As where training was started by a process that uses W&B itself, a notebook: not our service.
    monkeypatch.setenv("WANDB_SERVICE", f"3-{os.getpid()}-unix-{tmp_path}/gone")
    places = [ROOT.parent / "src", ROOT, ROOT / "plugins"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
    tree = toy_config(
        tmp_path,
        train={"horizon": {"steps": 12}},
        evaluate={"every_steps": 4},
        checkpoint={"every_steps": 3},
    ).tree()
    config = RunConfig(**{**tree, "track": ["tensorboard", "wandb"]})
    with pytest.raises(Cut):
        train(config, show=CutAt(8))
    train(config)
    run = tmp_path / "run"
    sent_later(run)
    journal, board = run / "journal.jsonl", run / "track" / "tensorboard"
    assert [e["what"] for e in read(journal) if e["event"] == "warning"] == []
    assert tensorboard_scalars(board, "train/loss") == single(standing(journal))
    assert tensorboard_scalars(board, "eval/loss") == single(measured(journal))
    (folder,) = wandb_folders(run)
    rows = wandb_history(folder)
    found = [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert found == standing(journal) and [step for step, _ in found] == list(range(1, 13))
