"""``headway data show`` and ``lint`` of chains: what is shown is what is trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from ruamel.yaml import YAML
from typer.testing import CliRunner

from cases import tree_of
from chain_runs import HELD, RECORDS, record, section, task_of, write
from headway.cli.data import app
from headway.errors import ConfigError, DataError
from headway.recipes.regression import RECIPE, RegressionConfig

pytestmark = pytest.mark.usefixtures("own_cache")
GREEN, RED, YELLOW = "\x1b[32m", "\x1b[31m", "\x1b[33m"


def written(folder: Path, tree: Mapping[str, Any]) -> Path:
    """The config as a file; the base model's weights are gone: nobody may need them."""
    for weights in (folder / "base").glob("*.safetensors"):
        weights.unlink()
    file = folder / "run.yaml"
    YAML(typ="safe", pure=True).dump(json.loads(json.dumps(tree, default=str)), file)
    return file


def config_file(folder: Path, **task: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tree = {
        "recipe": "regression",
        "run": {"name": "run", "seed": 5},
        "train": {"horizon": {"steps": 4}, "batch_size": 8, "learning_rate": 0.01},
        "task": section(folder, **task),
    }
    return written(folder, tree)


def command(*words: Any, colour: bool = True) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words], color=colour)


def lines_of(done: Result) -> Sequence[str]:
    assert done.exception is None, done.exception
    return done.stdout.splitlines()


# ------------------------------------------------------------------ show


@pytest.mark.parametrize("more", [{}, {"read_at": "last"}, {"max_steps": 2}, {"max_tokens": 40}])
def test_the_rows_that_are_shown_are_those_that_train(tmp_path: Path, more: dict[str, Any]) -> None:
    task = task_of(tmp_path / "built", **more)
    assert task.train is not None
    config = RegressionConfig.model_validate(section(tmp_path / "built", **more))
    shown = [r for r in RECIPE.rows_as_read(config, tmp_path / "cache") if r.runs]
    assert len(shown) == len(task.train) > 0
    for row, read in zip(task.train.rows, shown, strict=True):
        assert "".join(text for text, *_ in read.runs) == task.tokenizer.decode(row.ids)
        assert [share for *_, share in read.runs if share is not None] == row.targets.tolist()
        ends = [text for text, target, _ in read.runs if target]
        assert all(text and (more.get("read_at") or text == "<CONFIDENCE>") for text in ends)
    skipped = [r for r in RECIPE.rows_as_read(config, tmp_path / "cache") if not r.runs]
    assert len(skipped) == task.train.emptied and all(
        "no labelled step" in r.facts for r in skipped
    )


def test_show_marks_each_place_with_its_target_in_colour_and_loads_no_model(
    tmp_path: Path,
) -> None:
    kinds = ["operand", None, None]
    chain = {**record(2, length=3), "targets": [0, 0.5, 1], "kinds": kinds}
    data = {"train": write(tmp_path / "one.jsonl", [record(0), chain])}
    config = config_file(tmp_path, data=data)
    shown = command("show", config, "--start", 1).stdout
    assert f"{tmp_path / 'one.jsonl'}:2" in shown and "3 steps" in shown and "3 numbers" in shown
    for colour, mark in ((RED, "[0 operand]"), (YELLOW, "[0.5]"), (GREEN, "[1]")):
        assert f"{colour}<CONFIDENCE>" in shown
        assert colour in shown.partition(mark)[0][-12:], "the target has the colour of its place"
    plain = command("show", config, "--start", 1, colour=False).stdout
    assert "<CONFIDENCE>[0 operand]" in plain and "\x1b" not in plain


def test_show_says_what_of_a_chain_is_not_read(tmp_path: Path) -> None:
    data = {"train": write(tmp_path / "long.jsonl", [record(4, length=30), record(1, length=1)])}
    shown = command("show", config_file(tmp_path, data=data, max_tokens=48), colour=False).stdout
    assert "labelled steps beyond max_tokens" in shown
    shown = command("show", config_file(tmp_path, data=data, max_tokens=8), colour=False).stdout
    assert shown.count("no labelled step fits into 8 tokens") == 2


# ------------------------------------------------------------------ lint


def test_lint_counts_labels_lengths_cut_steps_and_duplicates(tmp_path: Path) -> None:
    data = {
        "train": write(tmp_path / "t.jsonl", [*RECORDS, RECORDS[0], record(4, length=30)]),
        "eval": write(tmp_path / "e.jsonl", HELD),
    }
    config = config_file(tmp_path, data=data)
    lines = lines_of(command("lint", config))
    assert any(line.startswith("train: t: 26 chains") for line in lines)
    assert any(line.startswith("  labels: 0: ") for line in lines)
    assert any("1 seen before in this split" in line for line in lines)
    assert any(line.startswith("train: 26 rows, ") and "128 tokens (half" in line for line in lines)
    assert any("labelled steps beyond max_tokens (128) are not trained on" in li for li in lines)
    assert any(line.startswith("held-out: 10 rows, ") for line in lines)
    tree = json.loads(command("lint", config, "--json").stdout)
    task = task_of(tmp_path / "again", data=data)
    assert task.train is not None and task.held is not None
    assert tree["rows"]["train"]["tokens"] == task.train.tokens
    assert tree["rows"]["train"]["lost_steps"] == task.train.lost_steps > 0
    assert tree["rows"]["held-out"]["tokens_longest"] == max(len(r.ids) for r in task.held.rows)
    assert tree["splits"][0]["duplicates"] == 1


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"eval": [*HELD, RECORDS[0]]}, "1 of 11 held-out chains"),
        ({"test": HELD[:2]}, "2 of 2 test chains"),
        ({"max_tokens": 8}, "no labelled step of it fits"),
    ],
)
def test_lint_shows_everything_and_then_refuses_what_a_run_would_refuse(
    tmp_path: Path, task: dict[str, Any], says: str
) -> None:
    longest = {"max_tokens": task.pop("max_tokens")} if "max_tokens" in task else {}
    rows = {"train": RECORDS, "eval": HELD, **task}
    data = {split: write(tmp_path / f"{split}.jsonl", chains) for split, chains in rows.items()}
    done = command("lint", config_file(tmp_path, data=data, **longest))
    assert isinstance(done.exception, DataError) and says in str(done.exception)
    assert "train: train: 24 chains" in done.stdout
    with pytest.raises(DataError, match=says):
        task_of(tmp_path / "run", data=data, **longest)


def test_a_config_is_looked_at_as_it_would_train_with_these_overrides(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    plain = json.loads(command("lint", config, "--json").stdout)
    short = json.loads(command("lint", config, "--json", "task.max_tokens=24").stdout)
    assert short["rows"]["train"]["lost_steps"] > plain["rows"]["train"]["lost_steps"]
    assert command("show", config, "task.max_tokens=24").exit_code == 0
    done = command("lint", tmp_path / "train.jsonl", "task.max_tokens=24")
    assert isinstance(done.exception, ConfigError) and "is data" in str(done.exception)


def test_what_cannot_be_shown_is_refused_and_so_is_a_second_tokenizer(tmp_path: Path) -> None:
    other = written(tmp_path, tree_of("toy", tmp_path))
    done = command("show", other)
    assert isinstance(done.exception, ConfigError) and "no way to show it" in str(done.exception)
    done = command("lint", config_file(tmp_path / "own"), "--tokenizer", "x")
    assert isinstance(done.exception, ConfigError) and "names its own" in str(done.exception)
