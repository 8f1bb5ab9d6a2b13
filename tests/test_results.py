"""What came of a run: measured when somebody asks, and summed up when it is finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cases import CASES, tree_of
from chain_runs import config_of, record, write
from headway.api import load_run, train, train_run
from headway.checkpoint import read_manifest
from headway.cli import build_app
from headway.config import RunConfig, fingerprint, load_config
from headway.errors import CheckpointError, ConfigError, DataError
from headway.journal import read_events
from headway.results import wall_seconds, write_results
from headway.show import Quiet
from toy import Cut, CutAt

pytestmark = pytest.mark.usefixtures("own_cache")


def command(*words: Any) -> Result:
    return CliRunner().invoke(build_app(), [str(w) for w in words], catch_exceptions=False)


def files_of(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


# ------------------------------------------------------------------ headway evaluate


def test_what_evaluate_found_is_kept_beside_what_training_measured(tmp_path: Path) -> None:
    train(config_of(tmp_path))
    run = tmp_path / "runs/run"
    before = {name: files_of(run / "evals" / name) for name in ("step-00000002", "step-00000004")}
    done = command("evaluate", run, "--step", 2)
    kept = run / "evals/asked/step-00000002"
    assert f"kept in {kept}" in done.stdout
    assert before == {name: files_of(run / "evals" / name) for name in before}
    now = files_of(kept)
    assert set(now) == set(before["step-00000002"])
    assert now["predictions.jsonl"] == before["step-00000002"]["predictions.jsonl"]
    then, found = (json.loads(f["metrics.json"]) for f in (before["step-00000002"], now))
    assert found["metrics"] == pytest.approx(then["metrics"], abs=1e-6)
    sha256 = load_run(run, 2).checkpoint.manifest.sha256
    assert found["checkpoint_sha256"] == sha256, "and it says of which weights this is true"


def test_json_stays_json_and_a_place_that_cannot_be_written_costs_no_figure(
    tmp_path: Path,
) -> None:
    train(config_of(tmp_path))
    run = tmp_path / "runs/run"
    done = command("evaluate", run, "--json")
    assert json.loads(done.stdout)["step"] == 4 and "kept in" in done.stderr
    (run / "evals/asked").rename(run / "evals/asked-before")
    (run / "evals/asked").write_text("no folder")
    done = command("evaluate", run)
    assert "held-out loss" in done.stdout and "not kept: " in done.stdout


# ------------------------------------------------------------------ how many of how many


def test_a_capped_evaluation_says_of_how_many_rows_its_rows_are(tmp_path: Path) -> None:
    train(config_of(tmp_path, evaluate={"max_rows": 6}))
    run = tmp_path / "runs/run"
    assert "(6 of 10 rows, weight" in command("evaluate", run).stdout
    for place in ("step-00000004", "asked/step-00000004"):
        found = json.loads((run / "evals" / place / "metrics.json").read_text())
        assert (found["rows"], found["of_rows"]) == (6, 10)
    command("report", run)
    page = (run / "report.html").read_text()
    assert "N = 6 of 10 rows" in page and ">6 of 10<" in page


@pytest.mark.parametrize("kind", ["regression-lora", "sft-lora", "pretrain"])
def test_every_recipe_counts_the_rows_that_a_cap_left_out_and_only_then(
    kind: str, tmp_path: Path
) -> None:
    for name, cap in (("all", None), ("some", 2)):
        tree = tree_of(kind, tmp_path)
        tree["run"] = {"name": name, "root": tmp_path / "runs"}
        tree["evaluate"] = {"every_steps": 100, "at_start": False, "max_rows": cap}
        train(RunConfig(**tree))
        [folder] = (tmp_path / "runs" / name / "evals").glob("step-*")
        found = json.loads((folder / "metrics.json").read_text())
        if cap is None:
            total = found["rows"]
            assert total > 2 and found["of_rows"] is None
        else:
            assert (found["rows"], found["of_rows"]) == (2, total)


# ------------------------------------------------------------------ the test split


def with_test(folder: Path) -> RunConfig:
    rows = {name: [record(n) for n in numbers] for name, numbers in SPLIT_ROWS.items()}
    data = {name: write(folder / f"{name}.jsonl", chains) for name, chains in rows.items()}
    return config_of(folder, {"data": data})


SPLIT_ROWS = {"train": range(24), "eval": range(100, 110), "test": range(500, 507)}


def test_the_test_split_is_measured_when_asked_and_kept_in_a_place_of_its_own(
    tmp_path: Path,
) -> None:
    train(with_test(tmp_path))
    run = tmp_path / "runs/run"
    assert not (run / "evals/test").exists(), "training never looks at it"
    done = command("evaluate", run, "--split", "test", "--step", "best")
    [kept] = (run / "evals/test").iterdir()
    assert done.stdout.startswith("test loss") and f"kept in {kept}" in done.stdout
    facts = json.loads((kept / "metrics.json").read_text())
    assert (facts["split"], facts["rows"]) == ("test", 7)
    own = json.loads((run / "evals" / kept.name / "metrics.json").read_text())
    assert (own["split"], own["rows"]) == ("eval", 10)


def test_a_test_split_that_is_not_there_or_has_changed_is_refused(tmp_path: Path) -> None:
    train(config_of(tmp_path / "without"))
    with pytest.raises(ConfigError, match=r"no task\.data\.test"):
        command("evaluate", tmp_path / "without/runs/run", "--split", "test")
    with pytest.raises(ConfigError, match="write eval or test"):
        command("evaluate", tmp_path / "without/runs/run", "--split", "train")
    train(with_test(tmp_path / "with"))
    write(tmp_path / "with/test.jsonl", [record(n) for n in range(700, 707)])
    with pytest.raises(CheckpointError, match="test: "):
        command("evaluate", tmp_path / "with/runs/run", "--split", "test")


def test_sft_has_a_test_split_too_and_refuses_rows_that_are_in_two(tmp_path: Path) -> None:
    def config(name: str, **asked: list[int]) -> RunConfig:
        tree = tree_of("sft-lora", tmp_path / name)
        numbers = {"train": list(range(20)), "eval": [30, 31, 32], "test": [40, 41, 42, 43]}
        data = {
            split: write(tmp_path / name / f"{split}.jsonl", [question(n) for n in rows])
            for split, rows in {**numbers, **asked}.items()
        }
        return RunConfig(**{**tree, "task": {**tree["task"], "data": data}})

    train(config("fine"))
    found = load_run(tmp_path / "fine/runs/run", data=True).evaluate(split="test")
    assert (found.rows, found.split) == (4, "test")
    assert all("test.jsonl" in row.shown["where"] for row in found.worst)
    for wrong, says in (([40, 3], "among the training rows"), ([40, 31], "which choose the best")):
        with pytest.raises(DataError, match=f"1 of 2 test rows .* {says}"):
            train(config(f"bad-{wrong[1]}", test=wrong))


def question(number: int) -> dict[str, str]:
    return {"question": f"What is number {number}?", "answer": f"It is {number}."}


# ------------------------------------------------------------------ results.json


def results_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "results.json").read_text()))


def test_a_finished_run_says_what_came_of_it(tmp_path: Path) -> None:
    rising = {"horizon": {"steps": 4}, "learning_rate": 1.0, "schedule": "constant"}
    sections: dict[str, Any] = {
        "evaluate": {"every_steps": 1, "at_start": False},
        "checkpoint": {"keep_last": 1, "keep_best": 1},
        "cost": {"usd_per_hour": 3.6},
    }
    train(config_of(tmp_path, train=rising, **sections))
    run = tmp_path / "runs/run"
    found = results_of(run)
    events = read_events(run / "journal.jsonl", {"evaluation", "stop"})
    losses = {e["step"]: e["metrics"]["loss"] for e in events if e["event"] == "evaluation"}
    best = min(losses, key=lambda step: losses[step])
    assert best < 4, "else best and last would be the same and the test would prove little"
    for name, step in (("best", best), ("last", 4)):
        manifest = read_manifest(run / found[name]["checkpoint"])
        assert (found[name]["step"], found[name]["sha256"]) == (step, manifest.sha256)
        assert found[name]["eval"]["metrics"]["loss"] == losses[step]
        assert found[name]["eval"]["rows"] == 10 and found[name]["eval"]["metrics"]["n"] > 10
        assert "r2/constant mean" in found[name]["eval"]["baselines"]
        assert found[name]["test"] is None
    assert (found["ended"], found["steps"], found["steps_planned"]) == ("finished", 4, 4)
    assert found["cost_usd"] == events[-1]["cost_usd"] > 0
    assert 0 < found["training_seconds"] <= found["wall_seconds"]
    assert found["fingerprint"] == fingerprint(load_config(run / "config.yaml"))
    assert {"data", "held_out"} <= set(found["identities"]) and "torch" in found["versions"]
    assert not list(run.glob(".partial-*"))


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_recipe_has_results(case: str, tmp_path: Path) -> None:
    tree = tree_of(case, tmp_path)
    train(RunConfig(**tree))
    found = results_of(tmp_path / "runs/run")
    assert (found["recipe"], found["last"]["step"]) == (tree["recipe"], 4)
    assert found["last"]["eval"]["metrics"]["loss"] >= found["best"]["eval"]["metrics"]["loss"]


def test_results_are_there_exactly_when_the_run_is_finished(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    run = tmp_path / "runs/run"
    with pytest.raises(Cut):
        train(config, show=CutAt(3))
    assert not (run / "results.json").exists() and write_results(run) is None
    train(config)
    first = results_of(run)
    assert first["attempts"] == 2 and first["redone_steps"] == 1
    train(config)
    assert results_of(run)["last"] == first["last"], "nothing was left to do, and it is told again"
    with pytest.raises(Cut):
        train_run(config, from_step=2, show=CutAt(3))
    assert not (run / "results.json").exists(), "what it said is not true any more"


def test_a_test_goes_into_results_and_the_report_and_not_into_those_of_other_weights(
    tmp_path: Path,
) -> None:
    config = with_test(tmp_path)
    said: list[str] = []

    class Hears(Quiet):
        def say(self, what: str) -> None:
            said.append(what)

    train(config, show=Hears())
    run = tmp_path / "runs/run"
    [hint] = [line for line in said if "--split test" in line]
    command(*hint.partition("headway ")[2].split())
    best = results_of(run)["best"]
    assert best["test"]["rows"] == 7 and best["test"]["metrics"] != best["eval"]["metrics"]
    command("report", run)
    assert f"On the test rows, at step {best['step']}" in (run / "report.html").read_text()
    metrics = run / "evals/test" / Path(best["checkpoint"]).name / "metrics.json"
    facts = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({**facts, "checkpoint_sha256": "0" * 64}))
    write_results(run)
    command("report", run)
    assert results_of(run)["best"]["test"] is None
    assert "On the test rows" not in (run / "report.html").read_text()


def test_wall_time_leaves_out_the_time_between_attempts() -> None:
    at = [(1, "10:00:00"), (1, "10:00:30"), (2, "12:00:00"), (2, "12:00:05")]
    events = [{"attempt": n, "at": f"2026-01-01T{clock}+00:00"} for n, clock in at]
    assert wall_seconds(events) == 35
