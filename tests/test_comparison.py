"""Several runs beside each other: what is said of them, and what is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import fake_run
from headway.cli import build_app
from headway.comparing import compare_runs, unlike_names, write_comparison
from headway.config import difference, differing
from headway.errors import ConfigError
from headway.report.comparison import MOST, in_words, overlaid
from headway.report.figures import direction
from headway.report.side_by_side import results
from headway.report.timeline import timeline
from page_reader import Page

STEPS = 120


def make(root: Path, name: str, *, better: float = 0.0, **plan: Any) -> Path:
    """A run whose held-out losses lie ``better`` below the usual ones."""
    run = fake_run.make_run(root, name=name, steps=STEPS, every=40)
    events = fake_run.journal(steps=STEPS, every=40)
    for event in events:
        if event["event"] == "evaluation":
            event["metrics"] = {"loss": event["metrics"]["loss"] - better, "accuracy": better}
        if event["event"] == "plan":
            event["facts"] = {"identities": {"held_out": "aa", **plan}}
    fake_run.write_journal(run, events)
    return run


def set_config(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    found = [make(tmp_path, "first"), make(tmp_path, "second", better=0.2)]
    set_config(found[1], "2.0e-4", "5.0e-4")
    return found


def test_the_best_by_each_figure_is_named_and_the_keys_that_differ_alone(runs: list[Path]) -> None:
    found = compare_runs(runs)
    assert found.same_rows and found.best == {"loss": 1, "accuracy": 1}
    assert found.config == {"train.learning_rate": ["0.0002", "0.0005"]}
    losses = found.values["loss"]
    assert losses[0] - losses[1] == pytest.approx(0.2)  # type: ignore[operator]
    text = " ".join(in_words(found))
    assert "2 runs of the recipe sft, measured on the same 500 held-out rows" in text
    assert "second has the lowest held-out loss" in text
    assert "They differ in train.learning_rate." in text


def test_the_price_of_a_result_is_that_of_the_loss_that_all_reached(runs: list[Path]) -> None:
    found = compare_runs(runs)
    assert found.level == pytest.approx(found.values["loss"][0])
    slow, fast = found.reached
    assert slow.loss == pytest.approx(found.level) and fast.loss <= slow.loss
    assert (fast.step, slow.step) == (40, 80)
    assert fast.cost_usd and slow.cost_usd and fast.cost_usd < slow.cost_usd
    assert fast.seconds < slow.seconds


def test_a_price_counts_steps_once_in_time_and_twice_in_money() -> None:
    told = timeline(fake_run.journal(steps=100, every=50, cut=80))
    at_100 = results(told)[-1]
    assert told.redone_steps == 30 and at_100.step == 100
    assert at_100.seconds == pytest.approx(sum(step["seconds"] for step in told.steps))
    assert at_100.cost_usd == told.cost_usd
    assert told.training_seconds > at_100.seconds, "nothing was done twice: nothing is proved"


def test_figures_of_other_rows_stand_beside_each_other_and_none_is_best(
    runs: list[Path], tmp_path: Path
) -> None:
    other = make(tmp_path, "third", better=0.5, held_out="bb")
    found = compare_runs([*runs, other])
    assert not found.same_rows and found.best == {} and found.level is None
    assert len(found.values["loss"]) == 3
    assert "Their held-out rows are not the same ones" in in_words(found)[0]
    assert found.config["identities held_out"] == ['"aa"', '"aa"', '"bb"']
    assert "What a result cost" not in Page(write_comparison([*runs, other]).read_text()).text


def test_rows_drawn_by_another_seed_are_other_rows(runs: list[Path]) -> None:
    for run in runs:
        lines = (run / "journal.jsonl").read_text()
        (run / "journal.jsonl").write_text(
            lines.replace('"rows": 500', '"rows": 500, "of_rows": 900')
        )
    assert compare_runs(runs).same_rows
    set_config(runs[1], "seed: 17", "seed: 18")
    assert not compare_runs(runs).same_rows


def test_losses_of_another_kind_have_no_best_though_other_figures_do(runs: list[Path]) -> None:
    for run, loss in zip(runs, ("mse", "mae"), strict=True):
        set_config(run, "task: {", f"task: {{loss: {loss}, ")
    found = compare_runs(runs)
    assert found.best == {"accuracy": 1} and found.level is None


def test_runs_of_two_recipes_are_refused_in_words(runs: list[Path]) -> None:
    set_config(runs[1], "recipe: sft", "recipe: regression")
    with pytest.raises(ConfigError, match=r"first is sft, second is regression; .* different"):
        compare_runs(runs)


def test_a_run_twice_or_without_a_step_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        compare_runs([runs[0], runs[0].parent / "." / "first"])
    young = tmp_path / "young"
    fake_run.write_journal(young, fake_run.journal()[:2])
    with pytest.raises(ConfigError, match=r"no step has been recorded yet in .*young"):
        compare_runs([runs[0], young])
    assert len(compare_runs([*runs, young]).runs) == 3, "two that have begun are enough"
    with pytest.raises(ConfigError, match="is not there"):
        compare_runs([runs[0], tmp_path / "none"])


def test_more_runs_than_lines_can_be_told_apart_are_refused(tmp_path: Path) -> None:
    many = [tmp_path / f"r{n}" for n in range(MOST + 1)]
    for run in many:
        fake_run.write_journal(run, fake_run.journal(steps=5, every=5, cut=3))
    with pytest.raises(ConfigError, match=f"at most {MOST}"):
        compare_runs(many)
    charts = overlaid(compare_runs(many[:MOST]).runs)
    looks = {(line.colour, line.dash) for line in charts[0].lines}
    assert len(looks) == MOST == len(charts[0].lines)


def test_the_page_has_each_run_in_each_figure_and_asks_nothing_of_the_network(
    runs: list[Path],
) -> None:
    path = write_comparison(runs)
    assert path == runs[0].parent / "comparison.html"
    text = path.read_text()
    read = Page(text)
    assert read.open == [] and len(read.ids) == len(set(read.ids))
    assert all(reference.startswith("#") for reference in read.references)
    assert "script" not in read.tags and "script-src 'none'" in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) == 10
    assert all("var(--run1)" in d and "var(--run2)" in d for d in drawings)
    assert "Held-out loss over USD" in read.text
    assert f"headway export {runs[1]} --step best" in read.text
    assert "<strong>" in text and "0.0005" in read.text


def test_a_name_from_a_folder_cannot_act_in_the_page(runs: list[Path]) -> None:
    hostile = runs[0].rename(runs[0].with_name("<img src=x onerror=1>"))
    text = write_comparison([hostile, runs[1]]).read_text()
    assert "<img" not in text and "&lt;img src=x onerror=1&gt;" in text


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "other"]
    assert unlike_names(folders) == ["a/run", "b/run", "b/other"]
    assert unlike_names(folders[1:]) == ["run", "other"]


def test_the_verb_compares_two_and_says_so_in_json(runs: list[Path], tmp_path: Path) -> None:
    to = tmp_path / "x" / "c.html"
    names = [str(run) for run in runs]
    done = CliRunner().invoke(build_app(), ["report", *names, "--to", str(to), "--json"])
    told = json.loads(done.output)
    assert told["report"] == str(to) and told["bytes"] == to.stat().st_size
    assert told["comparison"]["best"]["loss"] == "second"
    assert told["comparison"]["reached"]["second"]["step"] == 40
    one = CliRunner().invoke(build_app(), ["report", names[0]])
    assert one.output == f"{runs[0] / 'report.html'}\n"


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("loss", -1), ("perplexity", -1), ("bits_per_byte", -1), ("mae_low", -1), ("r2", 1),
        ("error_auc", 1), ("first_error_accuracy_with_error", 1), ("error_rate", -1), ("n", 0),
        ("absolute_error", -1), ("exact_match", 1), ("tokens", 0), ("source/rmse", -1),
    ],
)  # fmt: skip
def test_which_way_is_better_is_read_off_a_metrics_name(name: str, better: int) -> None:
    assert direction(name) == better


TREES = st.dictionaries(
    st.sampled_from("abc"), st.integers(0, 2) | st.dictionaries(st.just("d"), st.integers(0, 1))
)


@given(TREES, TREES, TREES)
def test_the_keys_that_differ_among_three_are_those_of_its_pairs(a: Any, b: Any, c: Any) -> None:
    pairs = {line.split(":")[0] for x, y in ((a, b), (b, c), (a, c)) for line in difference(x, y)}
    assert {*differing([a, b, c])} == pairs
