"""Two ranks under torchrun: one is killed, one is asked to stop, and both end together."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attempts import ENVIRONMENT, output_of, run_of, said, toy_run
from instants import JOURNAL, happens
from oracle import Outcome, checkpoints, judge_end

from headway.journal import read_events, timeline

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]

SLOW: dict[str, Any] = {
    "train": {"horizon": {"steps": 12}},
    "evaluate": {"every_steps": 4, "worst_rows": 2},
    "checkpoint": {"every_steps": 3},
    "task": {"step_seconds": 0.05},
}


def torchrun(config: Path) -> subprocess.Popen[bytes]:
    """``headway train`` on two ranks with gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with output_of(config).open("ab") as output:
        return subprocess.Popen(
            [*command, "-m", "headway.cli", "train", str(config)],
            stdout=output,
            stderr=output,
            env={**ENVIRONMENT, "PYTHONWARNINGS": "ignore"},
        )


def ranks_of(agent: subprocess.Popen[bytes]) -> dict[int, int]:
    """Rank -> pid of the processes that torchrun started."""
    found = {}
    for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks = [int(word[5:]) for word in environment if word.startswith(b"RANK=")]
        found.update(dict.fromkeys(ranks, int(pid)))
    return found


def has_trained(config: Path, step: int) -> bool:
    """This step is in the journal."""
    lines = read_events(run_of(config) / JOURNAL, {"step"})
    return bool(lines) and lines[-1]["step"] >= step


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks that nothing interrupted."""
    config = toy_run(tmp_path_factory.mktemp("together"), **SLOW)
    assert torchrun(config).wait() == 0, said(config)
    return run_of(config)


@pytest.mark.fault(69)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others_and_the_same_command_ends_the_same(
    together: Path, tmp_path: Path, table: Any, rank: int
) -> None:
    config = toy_run(tmp_path, **SLOW)
    agent = torchrun(config)
    at = random.Random(rank).randint(4, 9)
    assert happens(lambda: has_trained(config, at), agent), said(config)
    both = ranks_of(agent)
    os.kill(both[rank], signal.SIGKILL)
    assert agent.wait() not in (0, 75), said(config)
    assert not any(Path(f"/proc/{pid}").exists() for pid in both.values()), "none is left"
    checkpoints(run_of(config))
    assert torchrun(config).wait() == 0, said(config)
    outcome = Outcome(kills=1, runs=1)
    judge_end(run_of(config), together, outcome)
    table(outcome.cells(f"kill -9 of rank {rank}", "two ranks under torchrun"))
    assert outcome.clean, outcome


@pytest.mark.fault(72)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_request_that_only_one_rank_hears_stops_both_at_one_step_with_a_checkpoint(
    together: Path, tmp_path: Path, rank: int
) -> None:
    config = toy_run(tmp_path, **SLOW)
    agent = torchrun(config)
    assert happens(lambda: has_trained(config, 4), agent), said(config)
    os.kill(ranks_of(agent)[rank], signal.SIGTERM)
    agent.wait()
    run = run_of(config)
    stop = read_events(run / JOURNAL, {"stop"})[-1]
    last = timeline(read_events(run / JOURNAL, {"step"}))[-1]["step"]
    assert (stop["reason"], stop["step"]) == ("signal", last)
    assert last < 12 and checkpoints(run)[-1].step == last
    assert torchrun(config).wait() == 0, said(config)
    outcome = Outcome()
    judge_end(run, together, outcome)
    assert outcome.clean, outcome
