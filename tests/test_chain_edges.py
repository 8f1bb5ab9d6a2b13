"""Sources that are nearly right: what is counted, named, refused, and said of their labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from headway.data.chains import ChainData, ChainSource, ChainTally, load_chains, read_chains
from headway.errors import DataError
from shared_data import shared

ROOT = Path(__file__).parent.parent


def written(folder, name, rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chain_row(problem, *targets, last="end"):
    steps = [f"step {n}" for n in range(len(targets) - 1)]
    return {"problem": problem, "steps": [*steps, last], "targets": list(targets)}


def read(path, **keys):
    tally = ChainTally(source="", path=path)
    return list(read_chains(ChainSource(path=path, **keys), tally)), tally


# --- the range of the labels ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stars", "target_range", "negatives"),
    [((4, 5), (1, 5), 0), ((1, 2, 3, 4), (-4, 4), 0), ((1, 2), (1, 5), 2)],
)
def test_the_middle_is_that_of_the_range_given_not_of_the_labels_that_are_there(
    tmp_path, stars, target_range, negatives
):
    rows = [{"text": f"review {n}", "target": star} for n, star in enumerate(stars)]
    data = ChainData(train=written(tmp_path, "stars.jsonl", rows))
    report = load_chains(data, seed=1, target_range=target_range).report
    labels = report.splits[0].labels
    assert (labels.low, labels.high, labels.negatives) == (*target_range, negatives)
    word = "has only negatives" if negatives else "has no negatives"
    assert word in report.warnings[0] and f"{labels.middle:g}, the middle" in report.warnings[0]
    by_labels = load_chains(data, seed=1).report.splits[0].labels
    assert (by_labels.low, by_labels.high) == (min(stars), max(stars)), "control"


def test_labels_outside_of_the_range_given_are_in_the_outer_bins(tmp_path):
    rows = [{"text": f"t {n}", "target": n} for n in range(-20, 21)]
    data = ChainData(train=written(tmp_path, "wide.jsonl", rows))
    labels = load_chains(data, seed=1, target_range=(0, 10)).report.splits[0].labels
    assert sum(n for _, n in labels.bins) == 41 and labels.bins[0][1] == 21


# --- splits and names ----------------------------------------------------------------------------


def test_held_out_chains_of_a_training_problem_are_counted_and_warned_about(tmp_path):
    train = written(tmp_path, "t.jsonl", [chain_row("p", 1, 0), chain_row("q", 0)])
    rows = [chain_row("p", 1, 0, last="other"), chain_row("p", 0), chain_row("new", 1, 0)]
    held = written(tmp_path, "h.jsonl", rows)
    report = load_chains(ChainData(train=train, eval=held), seed=1).report
    theirs = report.splits[1]
    assert (theirs.leaked, theirs.known) == (0, 2)
    assert theirs.first["of a problem that training chains have too"] == [f"{held}:1", f"{held}:2"]
    assert any("2 of 3 held-out chains of h are of a problem" in w for w in report.warnings)
    divided = load_chains(ChainData(train=[train, held], eval_fraction=0.4), seed=3).report
    assert all(split.known == 0 for split in divided.splits)


def test_sources_of_one_name_are_told_apart_and_it_is_said(tmp_path):
    paths = [written(tmp_path, f"{n}/eval.jsonl", [chain_row(n, 1, 0)]) for n in "abc"]
    splits = load_chains(ChainData(train=paths, eval=[paths[0]], max_leaked=1), seed=1)
    assert [chain.source for chain in splits.train] == ["eval", "eval#2", "eval#3"]
    assert [name for name, _ in splits.report.sampled] == ["eval", "eval#2", "eval#3"]
    assert splits.held_out[0].source == "eval", "the two splits are no two sources"
    assert any("named eval#2, as another source is eval" in line for line in splits.report.lines())
    named = [{"path": path, "name": name} for path, name in zip(paths, "xyz", strict=True)]
    assert not any(
        "named" in line for line in load_chains(ChainData(train=named), seed=1).report.lines()
    )


def test_no_question_of_the_eobqa_config_is_on_both_sides_of_a_fold():
    path = shared("eobqa/chains.tsv")
    config = YAML(typ="safe").load(ROOT / "configs" / "eobqa.yaml")
    section = config["task"]["data"]
    section["train"][0]["path"] = str(path)
    held = []
    for fold in range(5):
        splits = load_chains(ChainData(**section | {"eval_fold": fold}), seed=17)
        sides = [{c.problem.split("\n")[0] for c in s} for s in (splits.train, splits.held_out)]
        assert not sides[0] & sides[1]
        held += splits.held_out
    assert (len(held), len({chain.group for chain in held})) == (805, 480)
    assert len({chain.problem for chain in held}) == 481, "one question has two answers"


# --- records -------------------------------------------------------------------------------------


def test_a_list_of_one_target_does_not_fit_three_steps(tmp_path):
    row = {"problem": "p", "steps": ["a", "b", "c"], "targets": [0]}
    path = written(tmp_path, "own.jsonl", [chain_row("p", 1), row])
    with pytest.raises(DataError, match=rf"^{path}:2: 3 steps but 1 target: give one for each"):
        read(path)
    columns = {"steps": ["a", "b"], "targets": "valid"}
    table = written(tmp_path, "table.jsonl", [{"a": "one", "b": "two", "valid": 1}])
    assert read(table, columns=columns)[0][0].targets == (None, 1.0), "a column's label: the last"
    table = written(tmp_path, "list.jsonl", [{"a": "one", "b": "two", "valid": [1]}])
    with pytest.raises(DataError, match="2 steps but 1 target:"):
        read(table, columns=columns)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("text", ["review", "{review}"])
def test_a_text_that_is_not_there_is_one_dropped_record_in_every_format(tmp_path, ending, text):
    rows = [{"review": "good", "stars": 5}, {"review": None, "stars": 1}]
    path = tmp_path / f"t.{ending}"
    if ending == "csv":
        path.write_text("review,stars\ngood,5\n,1\n")
    elif ending == "jsonl":
        written(tmp_path, path.name, rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    chains, tally = read(str(path), columns={"text": text, "targets": "stars"})
    assert [chain.steps for chain in chains] == [("good",)]
    assert tally.dropped == {"no text, or a step without one": 1}


@pytest.mark.parametrize("rating", [[1], {"value": 1}, "1", True, 0.5])
def test_a_rating_of_another_kind_is_an_error_with_file_and_line(tmp_path, rating):
    completion = {"text": "1 + 1 = 2.", "rating": rating, "flagged": None}
    step = {"completions": [completion], "human_completion": None, "chosen_completion": 0}
    record = {"question": {"problem": "1 + 1?"}, "label": {"steps": [step], "finish_reason": None}}
    path = written(tmp_path, "prm.jsonl", [record])
    with pytest.raises(DataError, match=rf"^{path}:1: .*rating: a rating is -1, 0, 1 or null, not"):
        read(path)


def test_a_limit_on_reveal_counts_whole_answers(tmp_path):
    rows = [
        {"question_id": "q", "question": "Why?", "answer_id": answer, "step_idx": at,
         "step": f"Step {at}.", "evidence": passage, "attribution_label": "Fully"}
        for passage in ("one", "two") for answer in "ab" for at in range(3)
    ]  # fmt: skip
    chains, tally = read(written(tmp_path, "eval.jsonl", rows), limit=1)
    assert [len(chain.steps) for chain in chains] == [3], "not cut after the first row"
    assert (tally.read, tally.kept) == (6, 6), "with the rows that come after another answer's"
    plain = written(tmp_path, "own.jsonl", [chain_row(str(n), 1, 0) for n in range(5)])
    assert len(read(plain, limit=2)[0]) == 2
