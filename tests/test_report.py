from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_run
from headway import journal
from headway.errors import ConfigError
from headway.report.charts import Chart, Line, Marks, svg
from headway.report.checkpoint_view import checkpoint_details
from headway.report.curves import run_charts, run_marks
from headway.report.figures import columns
from headway.report.html import Extras, report_html
from headway.report.script import SCRIPT
from headway.report.summary import best_evaluation, summarise
from headway.report.terminal import plot
from headway.report.timeline import measured, smoothed, thinned, timeline, trend
from headway.report.words import ago, duration, instant, money, number, size
from headway.viewing import changed_lines, open_run, write_report
from page_reader import Page

Events = list[dict[str, Any]]


@st.composite
def attempts(draw: st.DrawFn) -> Events:
    """A journal of attempts, each going back to some step that was reached and on from there."""
    events: Events = []
    reached = 0
    for number_ in range(1, draw(st.integers(1, 5)) + 1):
        restored = draw(st.integers(0, reached))
        events.append({"event": "attempt", "attempt": number_, "restored_step": restored})
        reached = restored + draw(st.integers(0, 8))
        for step in range(restored + 1, reached + 1):
            events.append({"event": "step", "attempt": number_, "step": step, "seconds": 1.0})
    return events


@given(attempts())
def test_the_curves_show_every_step_once_and_time_counts_every_step_done(events: Events) -> None:
    told = timeline(events)
    done = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in told.steps] == list(range(1, len(told.steps) + 1))
    assert told.steps == journal.timeline(events), "the journal room tells it otherwise"
    assert told.training_seconds == len(done)
    assert told.redone_steps == len(done) - len(told.steps)


def test_without_the_restart_the_curves_would_go_back_in_time() -> None:
    events = [e for e in fake_run.journal(steps=60, every=10) if e["event"] == "step"]
    steps = [event["step"] for event in events]
    assert steps != sorted(steps), "the fixture has no step that was done twice"
    told = timeline(fake_run.journal(steps=60, every=10))
    assert [event["step"] for event in told.steps] == list(range(1, 61))


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400),
    st.integers(2, 50),
)
def test_thinning_keeps_the_extremes_and_the_order(values: list[float], points: int) -> None:
    steps, kept = thinned(range(len(values)), values, points)
    assert len(kept) <= max(points, 2)
    assert (min(kept), max(kept)) == (min(values), max(values))
    assert steps == sorted(set(steps))
    assert all(values[int(step)] == value for step, value in zip(steps, kept, strict=True))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=80), st.integers(0, 9))
def test_the_running_mean_is_the_mean_of_its_neighbours(values: list[float], reach: int) -> None:
    for i, mean in enumerate(smoothed(values, reach)):
        near = values[max(0, i - reach) : i + reach + 1]
        assert mean == pytest.approx(sum(near) / len(near), abs=1e-6)


def test_a_trend_is_only_named_when_it_is_larger_than_the_noise() -> None:
    noise = list(np.random.default_rng(0).normal(0, 0.1, 100))
    assert trend(noise) == "flat"
    assert trend([2 - n / 100 + noise[n] for n in range(100)]) == "improving"
    assert trend([2 + n / 100 + noise[n] for n in range(100)]) == "worsening"
    assert trend([1.0] * 5) == "too short to say"


def test_the_lock_and_not_the_clock_tells_a_running_run_from_a_dead_one() -> None:
    events = fake_run.journal(steps=60, every=10, end=None)
    assert summarise(events, writer_pid=None).state == "dead"
    assert summarise(events, writer_pid=4711).state == "running"
    ended = fake_run.journal(steps=60, every=10, end="budget")
    assert (summarise(ended).state, summarise(ended).reason) == ("stopped", "budget")
    assert summarise(fake_run.journal(steps=60, every=10)).state == "finished"
    assert summarise([]).state == "not started"


def test_a_summary_adds_up_over_attempts() -> None:
    events = fake_run.journal(steps=60, every=10, cut=37)
    found = summarise(events, name="r")
    steps = [event for event in events if event["event"] == "step"]
    assert (found.step, found.steps, found.attempts, found.redone_steps) == (60, 60, 2, 7)
    assert found.training_seconds == pytest.approx(sum(event["seconds"] for event in steps))
    assert found.cost_usd == steps[-1]["cost_usd"]
    assert found.tokens == sum(event["tokens"] for event in timeline(events).steps)
    assert found.hardware == "NVIDIA RTX 4090"


def test_nan_is_never_the_best_evaluation() -> None:
    found = [
        {"step": n, "metrics": {"loss": loss}} for n, loss in enumerate(["nan", 2.0, 1.5, 1.5])
    ]
    best = best_evaluation(found)
    assert best is not None and best["step"] == 2
    assert best_evaluation(found[:1]) is None
    assert math.isnan(measured("nan") or 0.0) and measured("loss") is None


@pytest.fixture(scope="module")
def page() -> str:
    extras = Extras(config_lines=["train.batch_size: 16 & <b>"], commands=[("go on", "headway x")])
    return report_html(fake_run.journal(steps=600), name="</title><img src=//x>", extras=extras)


def test_the_page_asks_nothing_of_the_network_and_runs_no_script_but_its_own(page: str) -> None:
    read = Page(page)
    assert all(reference.startswith("#") for reference in read.references)
    assert read.tags.count("script") == 1 and f"<script>{SCRIPT}</script>" in page
    assert not {"link", "iframe", "object", "form", "base"} & {*read.tags}
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", page)
    assert "default-src 'none'" in page


def test_the_page_is_well_formed_and_every_id_in_it_is_its_own(page: str) -> None:
    read = Page(page)
    assert read.open == []
    assert len(read.ids) == len(set(read.ids)) and read.ids
    inside = {*re.findall(r"url\(#([^)]+)\)", page), *(r[1:] for r in read.references)}
    assert inside and inside <= set(read.ids), "a drawing refers to what is not there"


def test_two_drawings_without_their_prefix_would_share_ids(page: str) -> None:
    stripped = [re.sub(r"^\w+-\d+-", "", name) for name in Page(page).ids]
    assert len(stripped) != len(set(stripped))


def test_text_from_data_and_config_cannot_act_in_the_page(page: str) -> None:
    text = Page(page).text
    assert "<script>alert('x')</script>" in text and "<script>alert" not in page
    assert (
        text.count("</title><img src=//x>") == 2
        and "16 & <b>" in text
        and "<return to sender>" in text
    )
    assert "3,500 more characters" in text and "(empty)" in text


def test_what_went_wrong_is_said_in_the_page() -> None:
    events = fake_run.journal(steps=60, every=30)
    events.append({"event": "save_skipped", "attempt": 2, "step": 30, "why": "disk full"})
    events.append({"event": "quarantine", "attempt": 2, "what": "step-00000020 <is> damaged"})
    text = Page(report_html(events, name="r")).text
    assert "save skipped at step 30: disk full" in text
    assert "quarantine: step-00000020 <is> damaged" in text
    died = report_html(fake_run.journal(steps=60, every=30, end=None), name="r")
    assert "ended without a word" in Page(died).text


def test_a_row_given_token_by_token_is_warmer_where_the_model_was_worse() -> None:
    events = fake_run.journal(steps=60, every=30)
    pairs = [["Q: <", None], ["a", 0.3], ["<b>", 9.0], ["nan", "nan"]]
    evaluation = {**events[-3], "worst": [{"row": 1, "loss": 4.0, "shown": {"tokens": pairs}}]}
    text = report_html([*events, {**evaluation, "event": "evaluation", "step": 61}], name="r")
    warmth = re.findall(r"--warmth:(\d+)%[^>]*>([^<]*)<", text)
    assert warmth[:2] == [("5", "a"), ("100", "&lt;b&gt;")]
    assert "the warmer, the higher the loss" in text
    assert Page(text).open == [] and "<i>Q: &lt;</i>" in text


def test_samples_are_shown_as_they_are_and_those_of_the_newest_evaluation_only() -> None:
    events = fake_run.journal(steps=60, every=30)
    evaluations = [e for e in events if e["event"] == "evaluation"]
    for n, event in enumerate(evaluations):
        event["samples"] = [["<b>Once", f" upon {n} </dd>"], ["", ""]]
    page = Page(report_html(events, name="r"))
    assert page.open == [] and "Samples" in page.text and "<b>Once" in page.text
    assert f" upon {len(evaluations) - 1} </dd>" in page.text and "upon 0" not in page.text
    assert "greedily" in page.text
    assert "Samples" not in Page(report_html(fake_run.journal(steps=60, every=30), name="r")).text


def test_the_page_says_what_a_person_wants_to_know_first(page: str) -> None:
    text = " ".join(Page(page).text.split())
    for words in (
        "600 of 600 steps",
        "in 2 attempts on NVIDIA RTX 4090",
        "Held-out loss is best at step 400: 1.450",
        "N = 500 rows",
        "Baseline “untrained”: 2.530",
        "Restarts did 48 steps again",
        "12 of 4,200 rows were truncated",
        "data/eval.jsonl:413",
        "headway x",
    ):
        assert words in text, words


def test_drawings_take_their_colours_from_the_page(page: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, re.S))
    assert "var(--train)" in drawings and "var(--heldout)" in drawings
    assert set(re.findall(r"(?:fill|stroke): *(#[0-9a-f]+)", drawings)) == set()


def test_a_run_of_a_hundred_thousand_steps_makes_a_page_that_opens() -> None:
    events = _long_journal(100_000)
    text = report_html(events, name="long")
    assert len(text.encode()) < 2_000_000
    assert "100,000 of 100,000 steps" in text


def _long_journal(steps: int) -> Iterator[dict[str, Any]]:
    yield {"event": "attempt", "attempt": 1, "restored_step": 0}
    yield {"event": "plan", "attempt": 1, "steps": steps}
    for step in range(1, steps + 1):
        noise = (step * 7919 % 1000) / 1000
        yield {
            "event": "step", "attempt": 1, "step": step, "loss": 2 + noise, "grad_norm": noise,
            "learning_rate": 1e-4, "tokens": 1000 + step % 7, "seconds": 1 + noise,
            "memory_bytes": 10**9, "cost_usd": step / 1e4,
        }  # fmt: skip


def test_the_data_is_told_line_by_line_and_its_warnings_first() -> None:
    events = fake_run.journal(steps=60, every=30)
    facts = {"data": ["train: 9 <rows>", "  labels: 3"], "warnings": ["2 rows & more"]}
    for event in events:
        if event["event"] == "plan":
            event["facts"] = {**facts, "model": "m"}
    text = report_html(events, name="r")
    data = text[text.index("<h2>Data</h2>") :].partition("</section>")[0]
    assert data.index("2 rows &amp; more") < data.index("<li>train: 9 &lt;rows&gt;</li>")
    assert "<li class=inner>labels: 3</li>" in data
    assert text.count("labels: 3") == 1, "the data is told twice"


def test_held_out_figures_are_drawn_over_the_run_beside_their_baseline() -> None:
    events = fake_run.journal(steps=60, every=20)
    for event in events:
        if event["event"] == "evaluation":
            event["metrics"] |= {"r2": event["step"] / 100}
            event["baselines"] |= {"r2/constant mean": 0.0}
    chart = next(c for c in run_charts(timeline(events)) if c.title == "r2")
    assert [line.label for line in chart.lines] == ["held-out", "constant mean"]
    assert chart.lines[0].values[-1] == 0.6 and chart.lines[1].values == [0.0, 0.0]
    assert "constant mean" in report_html(events, name="r")
    once = [e for e in events if e["event"] != "evaluation" or e["step"] == 60]
    assert "r2" not in {c.title for c in run_charts(timeline(once))}, "one point is no curve"


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 5])
def test_a_journal_that_has_just_begun_makes_a_page_too(keep: int) -> None:
    assert Page(report_html(fake_run.journal()[:keep], name="young")).open == []


def test_nan_and_infinity_in_a_journal_do_not_break_the_page() -> None:
    events = fake_run.journal(steps=100, every=50)
    for event in events[5:30]:
        event |= {"loss": "nan", "grad_norm": "inf"}
    events[-3]["metrics"] = {"loss": "nan"}
    assert "nan" in Page(report_html(events, name="r")).text


def test_a_spike_makes_the_gradient_axis_logarithmic_and_a_calm_curve_keeps_its_own() -> None:
    charts = {chart.name: chart for chart in run_charts(timeline(fake_run.journal()))}
    assert charts["grad"].logarithmic and not charts["loss"].logarithmic
    assert set(charts) == {"loss", "lr", "grad", "speed", "memory", "cost", "metric1"}
    free = [{**event, "cost_usd": None} for event in fake_run.journal()]
    assert "cost" not in {chart.name for chart in run_charts(timeline(free))}


def test_restarts_and_deleted_checkpoints_are_marked() -> None:
    marks = run_marks(timeline(fake_run.journal(steps=600)), {500: 1, 600: 1})
    assert marks.restarts == [(300, "attempt 2")]
    assert (list(marks.kept), list(marks.pruned)) == ([500, 600], [100, 200, 300, 400])


def test_a_drawing_is_the_same_every_time() -> None:
    line = Line(label="training", steps=[1, 2, 3], values=[3.0, 2.0, 1.0])
    chart = Chart(name="loss", title="Loss", lines=[line])
    assert svg(chart, Marks(), 400, 200, "x") == svg(chart, Marks(), 400, 200, "x")


def test_a_baseline_stands_beside_its_metric() -> None:
    evaluation = {
        "metrics": {"accuracy": 1, "loss": 2},
        "baselines": {"loss/untrained": 3, "accuracy/majority": 4},
    }
    assert columns([evaluation]) == [
        "loss", "loss/untrained", "accuracy", "accuracy/majority",
    ]  # fmt: skip


def test_write_report_puts_the_page_into_the_run(tmp_path: Path) -> None:
    run = fake_run.make_run(tmp_path)
    path = write_report(run)
    assert path == run / "report.html"
    text = Page(path.read_text()).text
    assert "3 on disk, 3 older ones deleted by retention" in text
    assert "train.learning_rate: 0.0002" in text and f"headway predict {run}" in text
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(ConfigError, match="is not there"):
        write_report(tmp_path / "none")


def test_config_lines_leave_the_defaults_out() -> None:
    tree = {
        "recipe": "sft",
        "train": {"batch_size": 16, "schedule": "linear", "betas": [0.9, 0.999], "warmup": 0.1},
        "hardware": {"precision": "fp32", "compile": False},
        "cost": None,
    }
    assert changed_lines(tree) == [
        'recipe: "sft"', "train.warmup: 0.1", "train.batch_size: 16", 'hardware.precision: "fp32"',
    ]  # fmt: skip


def test_looking_at_a_run_never_imports_torch(tmp_path: Path) -> None:
    run = fake_run.make_run(tmp_path, steps=60, every=10)
    code = (
        "import sys; from headway.viewing import write_report, glance; from pathlib import Path; "
        "run = Path(sys.argv[1]); glance(run); "
        "assert 'matplotlib' not in sys.modules and 'numpy' not in sys.modules; "
        "write_report(run); assert 'matplotlib' in sys.modules; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)


def test_details_of_a_checkpoint_know_only_the_steps_before_it(tmp_path: Path) -> None:
    view = open_run(fake_run.make_run(tmp_path))
    told = checkpoint_details(view.told, view.checkpoint("400").manifest)
    assert told["held_out"]["best_step_so_far"] == 400
    assert told["held_out"]["evaluations_since_best"] == 0
    assert told["training"]["loss"] == view.told.steps[399]["loss"]
    mean = sum(step["loss"] for step in view.told.steps[350:400]) / 50
    assert told["training"]["mean_loss_of_50_steps"] == pytest.approx(mean)
    later = checkpoint_details(view.told, view.checkpoint("newest").manifest)
    assert later["held_out"]["evaluations_since_best"] == 2
    assert json.loads(json.dumps(later)) == later


@given(st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), max_size=200))
def test_a_terminal_plot_never_leaves_its_frame(values: list[float]) -> None:
    lines = plot(range(len(values)), values, width=30, height=6)
    assert len(lines) in (1, 7) and all(len(line) <= 30 + 16 for line in lines)


def test_a_terminal_plot_falls_where_the_values_fall() -> None:
    lines = plot([0, 50, 100], [10.0, 5.0, 0.0], width=10, height=5)
    drawn = [line.split("┤")[1] for line in lines[:-1]]
    assert [len(row) for row in drawn] == sorted(len(row) for row in drawn)
    assert lines[0].startswith("10") and lines[4].strip().startswith("0")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (number(1.4501), "1.450"), (number(0.00012), "1.20e-4"), (number(None), "–"),
        (number(math.nan), "nan"), (number(-123456.7), "-123,457"), (duration(4.26), "4.3 s"),
        (duration(59.6), "60 s"), (duration(3599), "1 h"), (duration(11_520), "3 h 12 min"),
        (duration(190_000), "2 d 4 h"), (size(999), "999 B"), (size(78_400_000), "78.4 MB"),
        (money(1.284), "$1.28"), (money(0.0034), "$0.0034"), (money(0), "$0.00"),
    ],
)  # fmt: skip
def test_numbers_read_as_a_person_would_say_them(said: str, expected: str) -> None:
    assert said == expected


def test_instants_are_read_from_text_and_from_seconds() -> None:
    at = instant("2026-11-20T09:00:00+01:00")
    assert at is not None and at == instant(at.timestamp()) == instant("2026-11-20T08:00:00")
    assert instant("yesterday") is None and instant(None) is None
    later = instant("2026-11-20T08:12:00Z")
    assert later is not None and ago(at, later) == "12 min ago" and ago(None, later) == "–"
