"""What a new user of headway stumbled over, each as the sentence that is true now."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import fake_run
from headway.api import refuse_full
from headway.cli import build_app
from headway.cli.checkpoints import app
from headway.cli.init import init
from headway.cli.watch import drawn
from headway.cost import Price
from headway.errors import ConfigError
from headway.report import appendix
from headway.report.live_text import Line
from headway.report.summary import tokens_per_second
from headway.report.words import money
from headway.viewing import commands, open_run


def checkpoints(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_starter_names_the_file_it_was_written_to(tmp_path: Path) -> None:
    mine = tmp_path / "run.yaml"
    init("sft", mine)
    assert "headway train run.yaml " in mine.read_text() and "sft.yaml" not in mine.read_text()
    init("regression", mine, force=True)
    assert "headway predict runs/run " in mine.read_text()
    assert "runs/regression" not in mine.read_text()


@pytest.mark.parametrize(
    ("usd", "said"),
    [(0.0010346, "$0.0010"), (0.00097, "$0.00097"), (0.000012, "$0.000012"), (0.01, "$0.01")],
)
def test_small_money_has_two_digits_and_no_exponent(usd: float, said: str) -> None:
    assert money(usd) == said


@pytest.mark.parametrize(
    ("usd", "said"), [(0.1, "$0.10"), (3.6, "$3.60"), (0, "$0.00"), (0.345, "$0.345"), (2, "$2.00")]
)
def test_a_price_has_cents(usd: float, said: str) -> None:
    price = Price(usd_per_hour=usd, gpu="", source="config", date="2026-11-22")
    assert price.an_hour == f"{said} an hour"


def test_the_median_of_an_even_number_of_steps_lies_between_the_two_in_the_middle() -> None:
    steps = [{"tokens": tokens, "seconds": 1.0} for tokens in (400, 100, 200, 300)]
    assert tokens_per_second(steps) == 250
    assert tokens_per_second(steps[:3]) == 200
    assert tokens_per_second([]) is None


def test_a_short_curve_is_plotted_as_it_is_and_a_long_ones_mean_says_so(tmp_path: Path) -> None:
    short = fake_run.make_run(tmp_path, name="short", steps=20, every=10)
    first = open_run(short).told.steps[0]["loss"]
    title, top = checkpoints("plot", short).splitlines()[1:3]
    assert title == "Loss, training"
    assert float(top.split()[0]) == pytest.approx(
        max(step["loss"] for step in open_run(short).told.steps), rel=1e-3
    ), first
    long = fake_run.make_run(tmp_path, name="long", steps=300, every=100)
    assert "Loss, training (mean of 7 steps)" in checkpoints("plot", long)


def test_a_checkpoint_compared_with_itself_is_the_same_and_has_no_table(tmp_path: Path) -> None:
    run = fake_run.make_run(tmp_path)
    text = checkpoints("compare", run, "600", "newest")
    assert "all 64 are the same" in text and "relative L2" not in text
    assert "relative L2" in checkpoints("compare", run, "500", "newest")


@pytest.mark.parametrize(
    ("config", "format"),
    [
        ({"recipe": "sft", "task": {"tuning": {"kind": "lora"}}}, ""),
        ({"recipe": "sft", "task": {"tuning": {"kind": "full"}}}, " --format full"),
        ({"recipe": "pretrain", "task": {}}, " --format full"),
        ({"recipe": "graph_vae"}, " --format full"),
        ({}, ""),
    ],
)
def test_a_report_offers_an_export_that_the_run_can_make(config: dict, format: str) -> None:
    command = appendix.export_command("runs/a", config, "a-model", "best")
    assert command == f"headway export runs/a --step best{format} --to a-model"


def test_a_report_offers_a_question_that_the_recipe_answers(tmp_path: Path) -> None:
    run = fake_run.make_run(tmp_path)
    offered = dict(commands(open_run(run)))
    assert offered["ask the trained model"] == f'headway predict {run} --prompt "QUESTION"'
    for recipe in ("sft", "pretrain", "regression", "vision", "latent_editor", "graph_vae", ""):
        assert " --" in appendix.predict_command("a", recipe)


def test_a_full_folder_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    refuse_full(tmp_path / "not there")
    refuse_full(tmp_path)
    (tmp_path / "mine").write_text("x")
    refuse_full(tmp_path / "mine")  # no folder: said where it is written to
    with pytest.raises(ConfigError, match="not empty"):
        refuse_full(tmp_path)


def test_a_bar_is_read_without_colour() -> None:
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(drawn("run", "", [Line("step", "6 of 12", share=0.5)]))
    assert "━" * 12 + "─" * 12 in capture.get()


def test_a_piped_watch_says_nothing_of_a_step_before_the_first(tmp_path: Path) -> None:
    fake_run.write_journal(tmp_path / "young", fake_run.journal()[:1])
    result = CliRunner().invoke(build_app(), ["watch", str(tmp_path / "young"), "--logs-only"])
    assert result.exit_code == 0 and "nobody trains" in result.output
    assert "step 0/" not in result.output and "loss –" not in result.output
