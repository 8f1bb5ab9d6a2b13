from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.errors import NonFiniteStep
from headway.evals import brief, place, refuse_no_number, stale, whole, write
from headway.journal import Journal, read
from headway.records import Evaluation, RowLoss

BINS = [{"low": 0.0, "high": 0.5, "n": 3, "mean_predicted": 0.4, "mean_target": 0.25}]


def evaluation(**more: Any) -> Evaluation:
    given = {"metrics": {"loss": 0.5, "r2": 0.25}, "baselines": {"r2/constant mean": 0.0}}
    worst = (RowLoss(row=7, loss=2.0, weight=3.0, shown={"where": "x:8", "tokens": [["a", 1]]}),)
    return Evaluation(step=20, rows=4, weight=9, seconds=1, worst=worst, **{**given, **more})


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_table_is_a_file_and_the_metrics_file_holds_none_of_them(tmp_path: Path) -> None:
    tables = {"reliability": BINS, "predictions": [{"step": 1}] * 3}
    write(tmp_path, evaluation(tables=tables, observed=((0.0, 1.0),)))
    folder = place(tmp_path, 20)
    assert lines(folder / "reliability.jsonl") == BINS
    assert lines(folder / "predictions.jsonl") == [{"step": 1}] * 3
    assert lines(folder / "worst.jsonl")[0]["shown"]["tokens"] == [["a", 1]]
    facts = json.loads((folder / "metrics.json").read_text())
    assert facts["metrics"] == {"loss": 0.5, "r2": 0.25}
    assert not {"tables", "worst", "observed"} & set(facts)


def test_an_evaluation_replaces_the_one_before_it_with_its_tables(tmp_path: Path) -> None:
    write(tmp_path, evaluation(tables={"reliability": BINS, "predictions": []}))
    write(tmp_path, evaluation(tables={"predictions": [{"step": 2}]}))
    names = {file.name for file in place(tmp_path, 20).iterdir()}
    assert names == {"metrics.json", "worst.jsonl", "predictions.jsonl"}
    assert lines(place(tmp_path, 20) / "predictions.jsonl") == [{"step": 2}]


def test_the_journal_keeps_no_table_and_the_whole_evaluation_has_those_that_are_drawn(
    tmp_path: Path,
) -> None:
    found = evaluation(tables={"reliability": BINS, "predictions": [{"step": 1}]})
    write(tmp_path, replace(found, observed=((0.0, 1.0),)))
    with Journal(tmp_path / "journal.jsonl", attempt=1) as journal:
        journal.append(brief(replace(found, observed=((0.0, 1.0),))))
    (event,) = read(tmp_path / "journal.jsonl")
    assert (event["tables"], event["observed"]) == ({}, [])
    assert "tokens" not in event["worst"][0]["shown"]
    again = whole(tmp_path, event)
    assert again["tables"] == {"reliability": BINS}
    assert again["worst"][0]["shown"]["tokens"] == [["a", 1]]


@pytest.mark.parametrize("torn", ["", '{"low": 0.', "\udcff"])
def test_a_torn_table_is_left_out_and_the_rest_is_read(tmp_path: Path, torn: str) -> None:
    write(tmp_path, evaluation(tables={"reliability": BINS}))
    file = place(tmp_path, 20) / "reliability.jsonl"
    file.write_bytes(torn.encode("utf-8", "surrogateescape"))
    found = whole(tmp_path, {"step": 20, "worst": []})
    assert found["tables"] == {} and found["worst"][0]["row"] == 7
    assert whole(tmp_path, {"step": 99, "worst": [1]})["worst"] == [1], "nothing on disk"


def test_a_line_separator_inside_a_text_does_not_tear_its_row(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\r\nfour"
    worst = (RowLoss(row=1, loss=1.0, weight=1.0, shown={"prompt": text}),)
    write(tmp_path, replace(evaluation(), worst=worst))
    assert whole(tmp_path, {"step": 20})["worst"][0]["shown"]["prompt"] == text
    raw = (place(tmp_path, 20) / "worst.jsonl").read_text()
    assert len(raw.splitlines()) == 3, "the text holds nothing that splitlines would cut at"


def test_numbers_of_numpy_and_those_that_json_has_not_are_written_as_json(tmp_path: Path) -> None:
    row = {"n": np.int64(3), "mean": np.float64(0.5), "nan": math.nan, "in": [np.float32("inf")]}
    write(tmp_path, evaluation(tables={"reliability": [row]}, metrics={"loss": math.inf}))
    text = (place(tmp_path, 20) / "reliability.jsonl").read_text()
    assert text == '{"n": 3, "mean": 0.5, "nan": "nan", "in": ["inf"]}\n'
    assert '"loss": "inf"' in (place(tmp_path, 20) / "metrics.json").read_text()


@pytest.mark.parametrize("name", ["worst", "../x", "a/b", "", "Metrics.json"])
def test_a_table_cannot_take_another_files_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be named"):
        write(tmp_path, evaluation(tables={name: BINS}))
    assert not (tmp_path / "evals").exists()


def test_a_held_out_loss_that_is_no_number_is_refused_with_its_rows() -> None:
    bad = replace(
        evaluation(metrics={"loss": math.nan}), worst=(RowLoss(row=7, loss=math.nan, weight=1),)
    )
    with pytest.raises(NonFiniteStep, match=r"step 20 is nan \(rows \[7\]\)"):
        refuse_no_number(bad)
    refuse_no_number(evaluation())


def test_patience_counts_evaluations_since_the_last_real_improvement() -> None:
    assert not stale([3.0, 2.0, 1.0], 1, 0.0)
    assert stale([3.0, 2.0, 2.0, 2.1], 2, 0.0) and not stale([3.0, 2.0, 2.0, 2.1], 3, 0.0)
    assert stale([3.0, 2.99, 2.98], 2, 0.05), "smaller than min_delta is none"
