"""Sweeps: each value a run of its own, resumable, budgeted together, compared at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fake_run
from headway.config import RunConfig
from headway.errors import ConfigError
from headway.sweeping import Point, axis, compared, name_of, planned, product, state_of, sweep
from toy import toy_config

ROOT = Path(__file__).parent.parent


def points(root: Path, count: int, budget_usd: float | None = None) -> list[Point]:
    return [
        Point(f"run-{n}", str(root / f"run-{n}"), (("train.seed", str(n)),), budget_usd)
        for n in range(count)
    ]


def write(point: Point, step: int, *, cost: float, reason: str | None, loss: float = 1.0) -> None:
    """What an attempt leaves behind."""
    head: dict[str, Any] = {"at": "2026-01-01T00:00:00Z", "attempt": 1}
    events = [
        {"event": "attempt", **head, "restored_step": 0},
        {"event": "plan", **head, "steps": 10},
        {"event": "step", **head, "step": step, "loss": loss, "tokens": 9, "seconds": 1}
        | {"cost_usd": cost},
        {"event": "evaluation", **head, "step": step, "metrics": {"loss": loss}},
    ]
    if reason:
        events.append({"event": "stop", **head, "reason": reason, "step": step, "cost_usd": cost})
    fake_run.write_journal(Path(point.folder), events)


# ------------------------------------------------------------------ which runs they are


def test_an_axis_is_a_key_and_values_with_commas_in_brackets_or_quotes_kept() -> None:
    assert axis("train.learning_rate=1e-4, 2e-4,5e-4") == (
        "train.learning_rate",
        ["1e-4", "2e-4", "5e-4"],
    )
    assert axis("train.betas=[0.9,0.99],[0.9,0.95]")[1] == ["[0.9,0.99]", "[0.9,0.95]"]
    assert axis("task.tuning={kind: lora, rank: 8},{kind: full}")[1][1] == "{kind: full}"
    assert axis("task.x='a,b',c")[1] == ["'a,b'", "c"]


@pytest.mark.parametrize(
    "text", ["train.seed", "train.seed=", "=1,2", "a=1,,2", "a=1,1", "run.name=a,b"]
)
def test_an_axis_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--sweep"):
        axis(text)


def test_several_axes_are_all_combinations_and_a_key_is_swept_once() -> None:
    found = product(["a=1,2", "b=x,y"])
    assert [[value for _, value in values] for values in found] == [
        ["1", "x"],
        ["1", "y"],
        ["2", "x"],
        ["2", "y"],
    ]
    with pytest.raises(ConfigError, match="twice"):
        product(["a=1,2", "a=3"])
    with pytest.raises(ConfigError, match="more than"):
        product([f"{key}={','.join(map(str, range(40)))}" for key in "ab"])


@given(st.lists(st.text(min_size=1, max_size=60), min_size=2, max_size=6, unique=True))
def test_names_are_valid_the_same_each_time_and_differ_where_values_do(values: list[str]) -> None:
    import re

    names = [name_of("run", [("task.key", value)]) for value in values]
    assert names == [name_of("run", [("task.key", value)]) for value in values]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) for name in names)


def test_each_run_of_a_sweep_is_a_valid_config_of_its_own_name(tmp_path: Path) -> None:
    toy_config(tmp_path, cost={"usd_per_hour": 1.0, "budget_usd": 3.0}).save(tmp_path / "c.yaml")
    found = planned(
        str(tmp_path / "c.yaml"), ["train.batch_size=8"], ["train.learning_rate=1e-3,2e-3"]
    )
    assert [Path(p.folder).name for p in found] == [p.name for p in found]
    assert [p.name for p in found] == ["run.learning_rate-1e-3", "run.learning_rate-2e-3"]
    assert {p.budget_usd for p in found} == {3.0}
    loaded = RunConfig.load(tmp_path / "c.yaml", found[1].overrides)
    assert loaded.train.learning_rate == 2e-3 and loaded.run.name == found[1].name
    with pytest.raises(ConfigError, match="learning_rat"):
        planned(str(tmp_path / "c.yaml"), [], ["train.learning_rat=1,2"])


# ------------------------------------------------------------------ one after the other


class Machine:
    """Trains points by writing journals; ``ends`` says how each start ends."""

    def __init__(self, ends: list[tuple[int, float]]) -> None:
        self.ends, self.begun = iter(ends), list[tuple[str, float | None]]()

    def start(self, point: Point, budget_usd: float | None) -> int:
        self.begun.append((point.name, budget_usd))
        code, cost = next(self.ends)
        before = state_of(point)
        total = cost + ((before and before.cost_usd) or 0.0)
        reason = {0: "finished", 75: "signal", 76: "budget", 65: "error"}.get(code)
        write(point, 10 if code == 0 else 5, cost=total, reason=reason)
        return code


def test_a_sweep_that_is_stopped_goes_on_where_it_was_and_runs_nothing_twice(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    given = points(tmp_path, 3)
    machine = Machine([(0, 1.0), (75, 0.5)])
    assert sweep(given, machine.start, said.append) == 75
    assert [name for name, _ in machine.begun] == ["run-0", "run-1"]
    again = Machine([(0, 0.5), (0, 1.0)])
    assert sweep(given, again.start, said.append) == 0
    assert [name for name, _ in again.begun] == ["run-1", "run-2"]
    nothing = Machine([])
    assert sweep(given, nothing.start, said.append) == 0 and nothing.begun == []


@pytest.mark.parametrize("killed", [137, 139])
def test_a_run_that_dies_keeps_no_other_back_and_its_code_is_the_sweeps(
    tmp_path: Path, killed: int
) -> None:
    machine = Machine([(killed, 0.1), (65, 0.1), (0, 1.0)])
    assert sweep(points(tmp_path, 3), machine.start, [].append) == killed
    assert len(machine.begun) == 3
    again = Machine([(0, 0.1), (0, 0.1)])
    assert sweep(points(tmp_path, 3), again.start, [].append) == 0
    assert [name for name, _ in again.begun] == ["run-0", "run-1"]


@pytest.mark.parametrize("code", [75, 76, 77, 143])
def test_no_run_begins_after_one_that_was_asked_to_stop_or_had_no_money_or_disk(
    tmp_path: Path, code: int
) -> None:
    machine = Machine([(code, 1.0)])
    assert sweep(points(tmp_path, 3), machine.start, [].append) == code
    assert len(machine.begun) == 1


def test_the_budget_is_the_sweeps_and_what_one_run_leaves_the_next_may_spend(
    tmp_path: Path,
) -> None:
    given = points(tmp_path, 3, budget_usd=4.0)
    machine = Machine([(0, 1.0), (0, 2.5), (76, 0.5)])
    assert sweep(given, machine.start, [].append) == 76
    assert machine.begun == [("run-0", 4.0), ("run-1", 3.0), ("run-2", 0.5)]
    nothing = Machine([])
    assert sweep(given, nothing.start, [].append) == 76 and nothing.begun == []


@settings(max_examples=60, deadline=None)
@given(
    ends=st.lists(
        st.tuples(st.sampled_from([0, 75, 65]), st.floats(0.01, 2.0)), min_size=40, max_size=40
    )
)
def test_however_it_is_stopped_no_run_is_given_more_than_the_others_left(
    tmp_path_factory: pytest.TempPathFactory, ends: list[tuple[int, float]]
) -> None:
    given = points(tmp_path_factory.mktemp("s"), 4, budget_usd=6.0)
    machine = Machine(ends)

    def start(point: Point, budget_usd: float | None) -> int:
        others = sum((f.cost_usd or 0.0) for p in given if p is not point if (f := state_of(p)))
        assert budget_usd is not None and budget_usd == pytest.approx(6.0 - others)
        return machine.start(point, budget_usd)

    for _ in range(6):
        if sweep(given, start, [].append) in (0, 76):
            break


def test_the_comparison_is_best_first_and_leaves_out_what_never_began(tmp_path: Path) -> None:
    given = points(tmp_path, 4)
    for n, loss in ((0, 2.0), (1, 1.0), (3, float("nan"))):
        write(given[n], 10, cost=1.0, reason="finished", loss=loss)
    assert [point.name for point, _ in compared(given)] == ["run-1", "run-0", "run-3"]


# ------------------------------------------------------------------ for real

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests", ROOT / "tests/plugins"))),
}


def headway(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "headway.cli", "train", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


@pytest.mark.slow
def test_a_real_sweep_is_killed_goes_on_and_says_which_is_best(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "train": {"horizon": {"steps": 30}},
        "evaluate": {"every_steps": 15},
        "checkpoint": {"every_steps": 5},
        "cost": {"usd_per_hour": 1.0, "budget_usd": 1.0},
        "task": {"step_seconds": 0.02},
    }
    toy_config(tmp_path / "runs", **sections).save(tmp_path / "c.yaml")
    words = [str(tmp_path / "c.yaml"), "--sweep", "train.learning_rate=0.01,0.02"]
    first = tmp_path / "runs" / "run.learning_rate-0.01" / "journal.jsonl"
    sweeping = headway(*words)
    assert sweeping.stdout is not None
    while sweeping.poll() is None and not (first.exists() and b'"step":8,' in first.read_bytes()):
        if not sweeping.stdout.readline():
            break
    sweeping.send_signal(signal.SIGTERM)
    _, said = sweeping.communicate(timeout=100)
    assert sweeping.returncode == 75, said
    assert not (tmp_path / "runs" / "run.learning_rate-0.02").exists()
    again = headway(*words)
    shown, said = again.communicate(timeout=100)
    assert again.returncode == 0, said
    reasons = [
        [
            e["reason"]
            for line in (run / "journal.jsonl").read_text().splitlines()
            if (e := json.loads(line))["event"] == "stop"
        ]
        for run in sorted((tmp_path / "runs").iterdir())
    ]
    assert reasons == [["signal", "finished"], ["finished"]]
    assert "best by held-out loss: run.learning_rate-" in said
    assert "headway report " in said and "stopped at step" in shown
