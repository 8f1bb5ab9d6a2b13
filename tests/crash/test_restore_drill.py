"""Training with a bucket, killed at random, the machine lost every second time: the same end."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from attempts import TOY, Forks, run_of, said, toy_run
from instants import kill_at, random_instant
from oracle import Outcome, judge_end

from headway.upload import Remote, remote_checkpoints
from headway.upload.ledger import read_ledger

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

KILLS = 60


def acknowledged(run: Path) -> int:
    """The newest step that the uploader of this disk says is verified in the bucket."""
    entries = read_ledger(run / "upload.jsonl")
    return max((entry["step"] for entry in entries if entry["event"] == "sent"), default=0)


@pytest.mark.fault(52, 57)
def test_with_a_bucket_a_run_survives_kills_and_lost_machines_bit_by_bit(
    forks: Forks, whole: Path, tmp_path: Path, table: Any
) -> None:
    draw, outcome, machines = random.Random(6), Outcome(), 0
    lost: list[str] = []
    while outcome.kills < KILLS:
        outcome.runs += 1
        root = tmp_path / str(outcome.runs)
        bucket = root / "bucket"
        config = toy_run(root, **TOY, upload={"to": str(bucket), "keep_last": 2})
        newest = 0
        for _ in range(12):
            attempt = forks.start(config)
            if not kill_at(random_instant(draw, journal_lines=8, saves=5), attempt, run_of(config)):
                if attempt.wait() != 0:
                    outcome.unclean.append(
                        f"{config}: exit {attempt.wait()}: {said(config)[-400:]}"
                    )
                break
            outcome.kills += 1
            newest = max(newest, acknowledged(run_of(config)))
            copies = remote_checkpoints(Remote(str(bucket / "run"))) if bucket.exists() else []
            lost += [f"{config}: {c.problems}" for c in copies if c.problems]
            if newest > max((c.step for c in copies), default=0):
                lost.append(f"{config}: step {newest} was acknowledged and is gone")
            if outcome.kills % 2 and run_of(config).exists():
                shutil.rmtree(run_of(config))
                machines += 1
        else:
            assert forks.finish(config) == 0, said(config)
        assert outcome.unclean == []
        judge_end(run_of(config), whole, outcome)
    table(outcome.cells("kill -9", f"training with a bucket, {machines} machines lost"))
    assert lost == [] and machines >= 20
    assert outcome.clean, outcome
