"""``--quick`` makes any config small, and nothing else of it different."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cases import CASES, tree_of
from headway.cli import build_app
from headway.config import RunConfig, load_config
from headway.config.quick import quick
from headway.journal import read_events

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))


def sources(value: Any) -> list[dict[str, Any]]:
    """Every mapping with a path and a limit."""
    if isinstance(value, list | tuple):
        return [found for item in value for found in sources(item)]
    if not isinstance(value, dict):
        return []
    own = [value] if {"path", "limit"} <= set(value) else []
    return own + [found for item in value.values() for found in sources(item)]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_every_shipped_config_can_be_tried_with_it(file: Path) -> None:
    config = load_config(file)
    small = quick(config)
    assert small.train.horizon.steps == 10 and small.run.name == f"{config.run.name}-quick"
    assert small.checkpoint.every_steps == 5
    if small.evaluate:
        assert small.evaluate.every_steps == 5 and (small.evaluate.max_rows or 99) <= 20
    limits = [source["limit"] for source in sources(small.tree()["task"])]
    assert all(limit is not None and limit <= 100 for limit in limits)
    same = {key: config.tree()["task"][key] for key in config.tree()["task"] if key != "data"}
    assert {key: small.tree()["task"][key] for key in same} == same
    for section in ("hardware", "cost", "upload"):
        assert getattr(small, section) == getattr(config, section)
    assert small.train.batch_size == config.train.batch_size


def test_sources_share_the_hundred_rows(tmp_path: Path) -> None:
    tree = tree_of("sft-lora", tmp_path)
    tree["task"]["data"] = {
        "train": ["a.jsonl", {"path": "b.jsonl", "limit": 7}],
        "eval": "c.jsonl",
    }
    small = quick(RunConfig(**tree)).tree()["task"]["data"]
    assert [source["limit"] for source in small["train"]] == [50, 7]
    assert small["eval"][0]["limit"] == 100


def test_a_whole_number_of_warm_up_steps_fits_into_ten(tmp_path: Path) -> None:
    tree = tree_of("toy", tmp_path)
    for warmup, expected in ((500, 5), (3, 3), (0.1, 0.1)):
        tree["train"]["warmup"] = warmup
        assert quick(RunConfig(**tree)).train.warmup == expected


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("case", ["toy", "vision-lora"])
def test_the_command_trains_ten_steps_as_a_run_of_its_own(case: str, tmp_path: Path) -> None:
    if CASES[case][0] == "vision":
        pytest.importorskip("PIL")
        pytest.importorskip("jiwer")
    config = RunConfig(**tree_of(case, tmp_path))
    config.save(tmp_path / "c.yaml")
    for _ in range(2):  # the second begins anew
        done = CliRunner().invoke(
            build_app(), ["train", str(tmp_path / "c.yaml"), "--quick", "--json"]
        )
        assert done.exit_code == 0, done.output
        folder = tmp_path / "runs/run-quick"
        steps = [e["step"] for e in read_events(folder / "journal.jsonl", {"step"})]
        assert steps == list(range(1, 11))
    assert not (tmp_path / "runs/run").exists()
    assert json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("also", [["--supervise"], ["--from", "5"]])
def test_it_goes_with_nothing_that_continues_a_run(also: list[str], tmp_path: Path) -> None:
    RunConfig(**tree_of("toy", tmp_path)).save(tmp_path / "c.yaml")
    given = ["train", str(tmp_path / "c.yaml"), "--quick", *also]
    done = CliRunner().invoke(build_app(), given)
    assert done.exit_code != 0 and "--quick" in str(done.exception or done.output)
