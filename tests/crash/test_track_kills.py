"""kill -9 of a tracked trainer: each tracker ends with every step exactly once.

``HEADWAY_TRACK_KILLS`` says how often it is killed (20 for the figure in docs/results).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attempts import ENVIRONMENT

from headway.journal import read
from tracked import measured, single, standing, tensorboard_scalars, wandb_folders, wandb_history

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]
CHILD = Path(__file__).with_name("tracked_child.py")
KILLS = int(os.environ.get("HEADWAY_TRACK_KILLS", "4"))
LAST_STEP = 60 * KILLS


def start(run: Path) -> subprocess.Popen[bytes]:
    environment = {**ENVIRONMENT, "WANDB_SILENT": "true"}
    return subprocess.Popen([sys.executable, CHILD, run, str(LAST_STEP)], env=environment)


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.fault(74)
def test_a_trainer_that_is_killed_again_and_again_has_every_step_in_each_tracker_once(
    tmp_path: Path, table
) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    run, chance = tmp_path / "run", random.Random(5)
    journal, fired = run / "journal.jsonl", 0
    for _ in range(KILLS):
        trainer = start(run)
        until = lines(journal) + chance.randrange(1, 90)
        while trainer.poll() is None and lines(journal) < until:
            time.sleep(0.002)
        trainer.send_signal(signal.SIGKILL)
        fired += trainer.wait() == -signal.SIGKILL
    assert fired == KILLS
    assert start(run).wait() == 0
    wanted = standing(journal)
    assert [step for step, _ in wanted] == list(range(1, LAST_STEP + 1))
    attempts = {event["attempt"] for event in read(journal)}
    assert len(attempts) == KILLS + 1
    steps = [event["step"] for event in read(journal) if event["event"] == "step"]
    assert len(steps) > len(wanted), "nothing was done twice: the test shows nothing"

    board = run / "track" / "tensorboard"
    assert tensorboard_scalars(board, "train/loss") == single(wanted)
    assert tensorboard_scalars(board, "eval/loss") == single(measured(journal))
    (folder,) = wandb_folders(run)
    rows = wandb_history(folder)
    assert [(r["_step"], r["train/loss"]) for r in rows if "train/loss" in r] == wanted
    assert [(r["eval/step"], r["eval/loss"]) for r in rows if "eval/loss" in r] == measured(journal)
    table(("kill -9 while tracked", "any line of the journal", KILLS, fired, 0, 0))
