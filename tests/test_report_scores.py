"""What a report and a terminal show of predicted scores."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_run
from headway.cli.progress import JsonLines, measured
from headway.evals import brief, write
from headway.journal import Journal
from headway.recipes.score_metrics import Scored, measure, reliability
from headway.records import Evaluation, RowLoss
from headway.report.figures import Figures, columns, figures, grid, grids, place_of
from headway.report.html import report_html
from headway.report.reliability import bins_of
from headway.viewing import write_report
from page_reader import Page

STEPS = [
    {"text": "48/2 = 24 <b>", "target": 1.0, "predicted": 0.9},
    {"text": "48+24 = 72", "target": None, "predicted": 0.3},
    {"text": "72*3 = 206", "target": 0.0, "predicted": 0.6},
]


def evaluation(sources: tuple[str, ...] = ("gsm8k", "open/prm"), step: int = 60) -> Evaluation:
    rng = np.random.default_rng(3)
    target = rng.choice([0.0, 0.5, 1.0], 60, p=[0.3, 0.1, 0.6])
    found = Scored(
        chain=np.arange(60) // 4,
        step=np.arange(60) % 4,
        source=np.arange(60) // 4 % len(sources),
        predicted=np.clip(0.5 * target + 0.3 + rng.normal(0, 0.15, 60), 0, 1),
        target=target,
        sources=sources,
    )
    metrics, baselines = measure(found)
    shown = {"where": "x.jsonl:8", "problem": "How many?", "steps": STEPS}
    return Evaluation(
        step=step,
        rows=15,
        weight=60.0,
        metrics={"loss": metrics["mse"], **metrics},
        baselines={"loss/untrained": 0.25, **baselines},
        seconds=2.0,
        worst=(RowLoss(row=7, loss=0.4, weight=2.0, shown=shown),),
        tables={"reliability": reliability(found), "predictions": [{"step": 1}]},
    )


def page_of(**changed: Any) -> str:
    event = {"event": "evaluation", "attempt": 2, **asdict(evaluation()), **changed}
    return report_html([*fake_run.journal(steps=40, every=20), event], name="scores")


def with_steps(steps: Any, **more: Any) -> str:
    shown = {"problem": "How many?", "steps": steps, **more}
    return page_of(worst=[{"row": 7, "loss": 0.4, "weight": 2.0, "shown": shown}])


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that begins with ``first``."""
    row = re.search(rf"<tr[^>]*><t[hd] class=\"name\">{first}</t.*?</tr>", text)
    assert row, first
    return re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row[0])


def test_each_metric_stands_with_its_baseline_overall_and_for_each_source() -> None:
    text, found = page_of(), evaluation()
    assert cells(text, "metric") == [
        "metric", "all", "baseline", "gsm8k", "baseline", "open/prm", "baseline", "baseline is",
    ]  # fmt: skip
    row = cells(text, "mae")
    assert float(row[1]) == pytest.approx(found.metrics["mae"], rel=0.01)
    assert float(row[5]) == pytest.approx(found.metrics["open/prm/mae"], rel=0.01)
    assert float(row[6]) == pytest.approx(found.baselines["open/prm/mae/constant mean"], rel=0.01)
    assert row[-1] == "constant mean" and cells(text, "r2")[2] == "0"
    assert cells(text, "n")[1::2] == ["60", "32", "28", ""]
    assert cells(text, "loss")[3] == "–" and "–: not measured there" in text


def test_where_figures_are_many_the_table_over_the_run_keeps_to_the_main_ones() -> None:
    event = asdict(evaluation())
    assert columns([event]) == ["loss", "r2", "mae", "ece", "error_auc"]
    assert len([*event["metrics"], *event["baselines"]]) > 80, "not many: nothing is proved"
    few = {"metrics": {"loss": 1.0, "perplexity": 2.7}, "baselines": {"loss/untrained": 3.0}}
    assert columns([few]) == ["loss", "loss/untrained", "perplexity"]
    assert "All figures" not in report_html(fake_run.journal(steps=40, every=20), name="few")


def test_the_first_words_name_the_main_figures_beside_a_constants() -> None:
    text = " ".join(
        Page(page_of(metrics={"loss": 0.01, "r2": 0.5, "n": 9.0, "x": 1.0})).text.split()
    )
    assert "There: r2 0.500 (constant mean 0)." in text and "x 1" not in text


def test_a_second_baseline_has_a_row_of_its_own_and_none_has_no_column() -> None:
    found = figures({"metrics": {"loss": 0.5}, "baselines": {"loss/a": 0.7, "loss/b": 0.9}})
    assert grid(found)[1] == [["loss", "0.500", "0.700", "a"], ["", "", "0.900", "b"]]
    alone = figures({"metrics": {"loss": 0.5, "s/r2": "nan"}})
    assert grid(alone)[0] == [("name", "metric"), ("value", "all"), ("value", "s")]
    assert grid(alone)[1] == [["loss", "0.500", "–"], ["r2", "–", "nan"]]


def widths(found: Figures, most: int) -> list[int]:
    """How wide each table is in a terminal, its columns two spaces apart."""
    return [
        sum(max(map(len, c)) + 2 for c in zip([t for _, t in head], *rows, strict=True)) - 2
        for head, rows in grids(found, most)
    ]


def test_a_table_that_fits_is_one_and_many_sources_have_tables_of_their_own() -> None:
    few = figures(asdict(evaluation()))
    assert grids(few, 1000) == [grid(few)]
    names = [f"dimension_{n}" for n in range(18)]
    metrics = {"loss": 0.1, "delta_mse": 0.2, "n": 40.0}
    metrics |= {f"{name}/{m}": 0.25 for name in names for m in ("magnitude", "moved_right", "n")}
    baselines = {"delta_mse/no change": 0.3, "delta_mse/straight line": 0.15}
    baselines |= {f"{name}/magnitude/no change": 0.0 for name in names}
    found = figures({"metrics": metrics, "baselines": baselines})
    (whole,) = widths(found, 10_000)
    assert whole > 250, "not wide: nothing is proved"
    assert max(widths(found, 100)) <= 100
    over_all, by_source = grids(found, 100)
    assert [row[0] for row in over_all[1]] == ["n", "loss", "delta mse", ""]
    assert [title for _, title in by_source[0]] == [
        "of", "magnitude", "no change", "moved right", "n",
    ]  # fmt: skip
    assert by_source[1][3] == ["dimension_3", "0.250", "0", "0.250", "0"]
    narrow = grids(found, 40)
    assert max(widths(found, 40)[1:]) <= 40 and len(narrow) > 2
    assert {title for head, _ in narrow[1:] for _, title in head} == {
        "of", "magnitude", "no change", "moved right", "n",
    }  # fmt: skip


@given(st.text("ab/_", max_size=6), st.text("ab_", min_size=1, max_size=4))
def test_a_sources_own_name_may_hold_a_slash(source: str, metric: str) -> None:
    assert place_of(f"{source}/{metric}") == (source, metric)


def test_the_page_stays_self_contained_well_formed_and_free_of_fixed_colours() -> None:
    text = page_of()
    read = Page(text)
    assert read.open == [] and len(read.ids) == len(set(read.ids))
    assert all(reference.startswith("#") for reference in read.references)
    drawing = next(d for d in re.findall(r"<svg.*?</svg>", text, re.S) if "against observed" in d)
    assert "var(--train)" in drawing and not re.findall(r"#[0-9a-f]{6}", drawing)
    assert re.search(r'aria-label="Predicted against observed: predicted 0\.\d+', drawing)


def test_the_diagram_and_its_numbers_are_those_of_the_table() -> None:
    text, bins = page_of(), evaluation().tables["reliability"]
    full = [b for b in bins if b["n"]]
    assert sum(f">{b['n']}</td>" in text for b in full) == len(full)
    assert text.count("<tr") > len(bins) and "Predicted against observed, at step 60" in text


@pytest.mark.parametrize(
    "table",
    [
        None,
        [],
        [{"low": 0.0, "high": 1.0, "n": 0, "mean_predicted": None, "mean_target": None}],
        [{"low": 1.0, "high": 0.0, "n": 3, "mean_predicted": 0.4, "mean_target": 0.2}],
        [{"low": 0.0, "high": "nan", "n": 3, "mean_predicted": 0.4, "mean_target": 0.2}],
        ["torn"],
        [{"n": 3}],
    ],
)
def test_without_a_table_that_can_be_drawn_there_is_no_diagram_and_the_page_stands(
    table: Any,
) -> None:
    changed = {"tables": {} if table is None else {"reliability": table}}
    assert bins_of(changed) == []
    text = page_of(**changed)
    assert Page(text).open == [] and "Predicted against observed" not in text


def test_one_bin_is_enough_for_a_diagram() -> None:
    row = {"low": -4.0, "high": 4.0, "n": 1, "mean_predicted": 1.0, "mean_target": 9.0}
    assert "Predicted against observed" in page_of(tables={"reliability": [row]})


def test_a_chain_marks_the_first_doubted_step_and_the_first_labelled_error() -> None:
    text = with_steps(STEPS, kinds=[None, None, "arith<metic"])
    steps = re.findall(r"<li style=\"--warmth:(\d+)%\">(.*?)</li>", text)
    assert [warmth for warmth, _ in steps] == ["10", "0", "60"]
    marks = [re.findall(r"<em>(.*?)</em>", step) for _, step in steps]
    assert marks == [[], ["first doubted"], ["first error"]]
    assert "48/2 = 24 &lt;b&gt;" in text and "arith&lt;metic" in steps[2][1]
    assert "not labelled" in steps[1][1] and "label 0" in steps[2][1]
    assert "<dt>kinds</dt>" not in text and "<dt>steps</dt>" in text
    assert Page(text).open == []


def test_the_middle_and_the_warmth_are_those_of_the_targets_range() -> None:
    steps = [
        {"text": "a", "target": 4.0, "predicted": 2.5},
        {"text": "b", "target": 5, "predicted": 1},
    ]
    text = with_steps(steps, range=[1, 5])
    assert re.findall(r"--warmth:(\d+)%", text) == ["38", "100"]
    middle = with_steps([{"text": "a", "target": 3, "predicted": 3.0}], range=[1, 5])
    assert "<em>" not in middle, "the middle itself is neither doubted nor an error"
    assert text.count("<em>first doubted</em>") == 1 and "<dt>range</dt>" not in text


@pytest.mark.parametrize("span", [None, [1, 1], ["a", 2], [3], "01", 7])
def test_a_range_that_is_none_is_taken_as_zero_to_one(span: Any) -> None:
    assert re.findall(r"--warmth:(\d+)%", with_steps(STEPS, range=span)) == ["10", "0", "60"]


def test_a_prediction_that_is_no_number_and_a_chain_without_end_do_not_break_the_page() -> None:
    steps = [{"text": "", "target": 1.0, "predicted": "nan"}] * 50
    text = with_steps(steps, kinds=["too", "short"])
    assert "10 more steps" in text and "predicted nan" in text and "(empty)" in text
    assert Page(text).open == []
    assert "{&#x27;text&#x27;: 1}" in with_steps([{"text": 1}]), "no chain: shown as it is"


def test_the_report_of_a_run_reads_the_table_beside_its_newest_evaluation(tmp_path: Path) -> None:
    found = evaluation()
    for step in (0, 60):
        write(tmp_path, replace(found, step=step))
    with Journal(tmp_path / "journal.jsonl", attempt=1) as journal:
        for step in (0, 60):
            journal.append(brief(replace(found, step=step)))
    assert "Predicted against observed, at step 60" in write_report(tmp_path).read_text()
    (tmp_path / "evals" / "step-00000060" / "reliability.jsonl").unlink()
    assert "Predicted against observed" not in write_report(tmp_path).read_text()


def test_a_terminal_says_the_main_figures_with_baseline_and_n_in_six_lines() -> None:
    found = evaluation()
    lines = measured(found).splitlines()
    assert len(lines) <= 6 and max(map(len, lines)) < 140
    said = " ".join(lines)
    for name in ("r2", "mae", "ece", "error_auc"):
        value, baseline = found.metrics[name], found.baselines[f"{name}/constant mean"]
        assert f"{name} {value:.3g} (constant mean {baseline:.3g})" in said
    assert "untrained 0.25" in said and "n 60, n_chains 15, n_errors" in said
    shown = 5 + 3
    assert f"{len(found.metrics) - shown} more figures, by source too (gsm8k, open/prm)" in said


def test_a_terminal_says_few_figures_in_one_line() -> None:
    few = replace(evaluation(), metrics={"loss": 0.5, "perplexity": 1.65}, baselines={})
    assert measured(few) == (
        "held-out loss 0.5000 at step 60 (15 rows, weight 60, 2 s); perplexity 1.65"
    )


def test_json_lines_leave_every_prediction_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    JsonLines().evaluated(evaluation())
    line = json.loads(out.getvalue())
    assert line["tables"] == {} and math.isfinite(line["metrics"]["r2"])
