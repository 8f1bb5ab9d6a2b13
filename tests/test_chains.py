"""Chains out of every format: each label exactly once, and nothing lost without being counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headway.data.chains import (
    Chain,
    ChainData,
    ChainSource,
    ChainTally,
    eqasc,
    load_chains,
    pieces,
    prm800k,
    read_chains,
    reveal,
)
from headway.data.chains.chain import Drop, Note
from headway.data.chains.report import labels_of
from headway.data.formats import Record
from headway.data.order import Mixture
from headway.errors import DataError
from shared_data import shared

ROOT = Path(__file__).parent.parent


# --- records as the datasets have them -----------------------------------------------------------


def completion(text, rating, flagged=None):
    return {"text": text, "rating": rating, "flagged": flagged}


def step(*completions, chosen=None, human=None):
    return {
        "completions": list(completions),
        "human_completion": human,
        "chosen_completion": chosen,
    }


def solution(*steps, problem="What is 2+3*4?", own=(), finish="found_error", **flags):
    return {
        "labeler": "340d89bc",
        "timestamp": "2023-01-22T04:34:27.052924",
        "generation": 9,
        "is_quality_control_question": flags.get("quality", False),
        "is_initial_screening_question": flags.get("screening", False),
        "question": {
            "problem": problem,
            "ground_truth_answer": "14",
            "pre_generated_steps": list(own) or None,
        },
        "label": {"steps": list(steps), "total_time": 1000, "finish_reason": finish},
    }


PHASE_2 = solution(
    step(completion("Multiply first: 3*4 = 12.", 1), chosen=0),
    step(completion("The sum comes next.", 0), chosen=0),
    step(
        completion("12 + 2 = 15.", -1),
        completion("12 + 2 = 14.", 1),
        completion("So it is 20.", -1),
        completion("Hm.", None),
    ),
    own=["Multiply first: 3*4 = 12.", "The sum comes next.", "12 + 2 = 15.", "# Answer 15"],
)


def row(step_idx, label, *, answer="q1_flan", text=None, evidence="A passage.", question="Why?"):
    return {
        "question_id": question,
        "question": question,
        "answer_id": answer,
        "step_idx": step_idx,
        "step": text or f"Step {step_idx} of {answer}.",
        "evidence": evidence,
        "attribution_label": label,
    }


def grc(*choices, stem="What burns?"):
    """An eQASC question: each choice is (text, chains), each chain (scores, verdict)."""
    listed = []
    for name, chains in choices:
        made = []
        for scores, verdict in chains:
            facts = [{"text": f"Fact {s} on {name}.", "score": s} for s in scores]
            judged = {"grc": ["X", "Y"], "turk_label": {"label": verdict} if verdict else None}
            made.append([*facts, judged])
        listed.append({"label": name[0].upper(), "text": name, "chains": made})
    return {"id": "3X", "question": {"stem": stem, "choices": listed}, "answerKey": "W"}


def records(*rows):
    return [Record(row, f"f.jsonl:{n}") for n, row in enumerate(rows, start=1)]


def only_chains(items):
    return [item for item in items if isinstance(item, Chain)]


def labelled(chains):
    """Every loss unit: (its step, its target)."""
    return [
        (text, target)
        for chain in chains
        for text, target in zip(chain.steps, chain.targets, strict=True)
        if target is not None
    ]


def written(folder, name, rows):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def plain_row(index, target=1.0, **more):
    return {"problem": f"p {index}", "steps": ["a", f"b {index}"], "targets": [1, target], **more}


# --- PRM800K -------------------------------------------------------------------------------------


def by_chosen_completions(record):
    """The reader of seed 002: the chosen completion, else the human one, else nothing."""
    found = []
    for each in record["label"]["steps"]:
        if each["chosen_completion"] is not None:
            chosen = each["completions"][each["chosen_completion"]]
            if chosen["rating"] is not None:
                found.append((chosen["text"], prm800k.TARGETS[chosen["rating"]]))
    return found


def test_defect_missing_negatives_the_first_error_is_kept():
    """Seed 002 followed chosen completions; at the first error nothing is chosen."""
    assert 0.0 not in [target for _, target in by_chosen_completions(PHASE_2)], "the control"
    path, *branches = only_chains(prm800k.chains(*records(PHASE_2)))
    assert path.steps == ("Multiply first: 3*4 = 12.", "The sum comes next.", "12 + 2 = 15.")
    assert path.targets == (1.0, 0.5, 0.0)
    assert [(b.steps[-1], b.targets) for b in branches] == [
        ("12 + 2 = 14.", (None, None, 1.0)),
        ("So it is 20.", (None, None, 0.0)),
    ]
    assert all(b.steps[:2] == path.steps[:2] for b in branches)
    assert [b.where for b in branches] == ["f.jsonl:1#branch 1", "f.jsonl:1#branch 2"]
    assert len({c.group for c in (path, *branches)}) == 1


def test_without_the_solutions_own_step_the_path_ends_with_the_first_error():
    record = solution(step(completion("good", 1), completion("bad", -1)))
    path = only_chains(prm800k.chains(*records(record)))[0]
    assert (path.steps, path.targets) == (("bad",), (0.0,))


RATINGS = st.sampled_from([-1, 0, 1, None])


@st.composite
def solutions(draw):
    """Solutions of both phases; every completion has a text of its own."""
    steps, number = [], 0
    for _ in range(draw(st.integers(0, 5))):
        listed = []
        for _ in range(draw(st.integers(0, 4))):
            number += 1
            flagged = draw(st.sampled_from([None, False, False, True]))
            listed.append(completion(f"text {number}", draw(RATINGS), flagged))
        chosen = draw(st.none() | st.integers(0, len(listed) - 1)) if listed else None
        human = draw(st.sampled_from([None, {"text": f"by hand {number}", "rating": None}]))
        steps.append(step(*listed, chosen=chosen, human=None if chosen is not None else human))
    return solution(*steps)


def until_nothing_was_chosen(record):
    """Steps that a reader of the path can reach."""
    for each in record["label"]["steps"]:
        yield each
        if each["chosen_completion"] is None and each["human_completion"] is None:
            return


@settings(max_examples=300, deadline=None)
@given(solutions())
def test_every_rated_completion_is_exactly_one_labelled_step(record):
    items = list(prm800k.chains(*records(record)))
    expected = Counter(
        (c["text"], prm800k.TARGETS[c["rating"]])
        for each in until_nothing_was_chosen(record)
        for c in each["completions"]
        if c["rating"] is not None and not c["flagged"]
    )
    assert Counter(labelled(only_chains(items))) == expected
    completions = sum(len(each["completions"]) for each in record["label"]["steps"])
    left_out = sum(isinstance(item, Drop) for item in items)
    assert completions == sum(expected.values()) + left_out


def test_a_step_written_by_the_labeler_is_context_and_counted():
    record = solution(
        step(completion("bad", -1), human={"text": "By hand.", "rating": None}),
        step(completion("next", 1), chosen=0),
        finish="solution",
    )
    items = list(prm800k.chains(*records(record)))
    path, branch = only_chains(items)
    assert (path.steps, path.targets) == (("By hand.", "next"), (None, 1.0))
    assert (branch.steps, branch.targets) == (("bad",), (0.0,))
    assert sum(isinstance(item, Note) for item in items) == 1


def test_quality_control_and_screening_rows_are_filtered_and_counted(tmp_path):
    rows = [PHASE_2, PHASE_2 | {"is_quality_control_question": True}]
    rows += [PHASE_2 | {"is_initial_screening_question": True}] * 2
    tally = ChainTally(source="", path="")
    path = written(tmp_path, "phase2_train.jsonl", rows)
    assert len(list(read_chains(ChainSource(path=path), tally))) == 3
    assert (tally.format, tally.source) == ("prm800k", "prm800k")
    assert (tally.read, tally.kept) == (4, 1)
    assert sorted(tally.dropped.values()) == [1, 2]
    assert tally.left_out == {"completion without a rating": 1}
    assert tally.first["completion without a rating"] == [f"{path}:1"]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (solution(step(completion("x", 2), chosen=0)), "label.steps[0].completions[0].rating"),
        (solution(step(completion("x", 1), chosen=3)), "label.steps[0].chosen_completion"),
        ({"label": {"steps": []}}, "no field 'question'"),
        (solution() | {"label": {}}, "label: no field 'steps'"),
    ],
)
def test_a_malformed_solution_is_an_error_with_its_place_and_key(record, says):
    with pytest.raises(DataError) as error:
        list(prm800k.chains(Record(record, "p.jsonl:7")))
    assert str(error.value).startswith("p.jsonl:7: ")
    assert says in str(error.value)


# --- REVEAL --------------------------------------------------------------------------------------


def test_defect_answers_mixed_each_answer_is_its_own_chain():
    """Seed 002 grouped by question only, and appended a step again for each passage."""
    rows = records(
        row(0, "Fully"),
        row(0, "Unsupported", evidence="Another passage."),
        row(0, "Contradictory", answer="q1_gpt3"),
        row(1, "Partially"),
        row(1, None, answer="q1_gpt3"),
    )
    found = [c for group in reveal.grouped(rows) for c in only_chains(reveal.chains(group))]
    assert [(c.targets, c.problem) for c in found] == [((1.0, 0.5), "Why?"), ((0.0, None), "Why?")]
    assert found[0].group == found[1].group, "both answer one question"
    assert found[0].steps == ("Step 0 of q1_flan.", "Step 1 of q1_flan.")


@pytest.mark.parametrize(
    ("labels", "target"),
    [
        (["Unsupported", "Fully"], 1.0),
        (["Contradictory", "Unsupported"], 0.0),
        (["Partially", "Contradictory"], 0.0),
        (["Unsupported", "Partially", None], 0.5),
        (["Unsupported", "Unsupported"], 0.25),
        (["Fully Attributable", "Contradictory"], 1.0),
        ([None, None], None),
    ],
)
def test_labels_of_several_passages_are_combined_in_any_order(labels, target):
    for order in (labels, labels[::-1]):
        rows = [row(0, label, evidence=f"passage {n}") for n, label in enumerate(order)]
        items = list(reveal.chains(records(row(1, "Fully"), *rows)))
        assert only_chains(items)[0].targets == (target, 1.0), "and step 0 comes before step 1"
        if {"Fully Attributable", "Contradictory"} <= set(labels):
            assert [i.what for i in items if isinstance(i, Note)] == [
                "step supported by one passage and contradicted by another"
            ]


def test_defect_unknown_label_is_an_error_and_not_a_quarter():
    with pytest.raises(DataError, match=r"f.jsonl:1: attribution_label: .*Known are Fully"):
        list(reveal.chains(records(row(0, "Mostly"))))


def test_evidence_is_given_on_request_only():
    rows = records(row(0, "Fully"), row(1, "Fully"), row(1, "Partially", evidence="More."))
    assert only_chains(reveal.chains(rows))[0].evidence == ()
    asked = only_chains(reveal.chains(rows, with_evidence=True))[0]
    assert asked.evidence == ("A passage.", "More.")


def test_rows_of_an_answer_are_read_kept_or_dropped(tmp_path):
    rows = [row(0, "Fully"), row(0, "Fully"), row(1, None), row(0, None, answer="b")]
    tally = ChainTally(source="", path="")
    list(read_chains(ChainSource(path=written(tmp_path, "eval.json", rows)), tally))
    assert (tally.read, tally.kept) == (4, 2)
    assert tally.dropped == {
        "the same step, passage and label again": 1,
        "no step has a label": 1,
    }


def test_training_on_reveal_needs_its_terms_accepted(tmp_path):
    path = written(tmp_path, "eval.json", [row(0, "Fully"), row(1, "Contradictory")])
    other = written(tmp_path, "own.jsonl", [plain_row(1, 0)])
    with pytest.raises(DataError, match=r"test set, not as a training set.*accept_terms: true"):
        load_chains(ChainData(train=path), seed=1)
    assert load_chains(ChainData(train=other, eval=path), seed=1).held_out, "to evaluate is fine"
    accepted = ChainSource(path=path, accept_terms=True)
    assert load_chains(ChainData(train=accepted), seed=1).sizes == [1]


def test_answers_that_cannot_be_told_apart_are_an_error():
    rows = [{k: v for k, v in row(0, "Fully").items() if k != "answer_id"}]
    with pytest.raises(DataError, match="would be mixed"):
        list(reveal.grouped(records(*rows)))
    with pytest.raises(DataError, match="under one id"):
        list(reveal.chains(records(row(0, "Fully"), row(0, "Fully", text="Another step."))))


# --- eQASC ---------------------------------------------------------------------------------------


def test_a_score_is_scaled_and_clamped():
    record = grc(("wood", [((49, 88), None), ((5, 10), None)]), ("water", [((95, 20), "no")]))
    items = list(eqasc.chains(*records(record), label="score"))
    found = only_chains(items)
    assert [c.targets for c in found] == [(0.5, 1.0), (0.0, 0.0), (1.0, pytest.approx(10 / 78))]
    assert found[0].problem == "What burns?\nAnswer: wood"
    assert len({c.group for c in found}) == 1
    assert sum(isinstance(item, Note) for item in items) == 2


def test_defect_a_print_per_clamped_fact_is_one_line_with_a_count(tmp_path, capsys):
    many = [grc(("wood", [((5, 99), None)]), stem=f"q {n}") for n in range(50)]
    source = ChainSource(path=written(tmp_path, "eqasc_train_grc.json", many), label="score")
    lines = load_chains(ChainData(train=source), seed=1).report.lines()
    assert next(line for line in lines if "nearer end" in line).startswith("  100 × ")
    assert sum("nearer end" in line for line in lines) == 1
    assert any("retrieval scores" in line for line in lines)
    assert capsys.readouterr() == ("", "")


def test_human_verdicts_are_of_the_whole_chain_and_keep_the_score_beside():
    record = grc(("wood", [((40, 30), "yes"), ((20, 40), "no"), ((20, 40), None), ((9, 9), "?")]))
    items = list(eqasc.chains(*records(record)))
    assert [c.targets for c in only_chains(items)] == [(None, 1.0), (None, 0.0)]
    assert [c.extra for c in only_chains(items)] == [{"score": 35.0}, {"score": 30.0}]
    assert sum(isinstance(item, Drop) for item in items) == 2
    with pytest.raises(DataError, match=r"turk_label\.label: not a known verdict: 'perhaps'"):
        list(eqasc.chains(*records(grc(("wood", [((9, 9), "perhaps")])))))


def test_a_file_without_human_labels_is_refused_with_the_way_out(tmp_path):
    path = written(tmp_path, "g.jsonl", [grc(("wood", [((40, 30), None)]))])
    with pytest.raises(DataError, match=r"no chain is left.*\n(.*\n)*.*label: score"):
        load_chains(ChainData(train=path), seed=1)


# --- plain records and tables --------------------------------------------------------------------


def test_json_lines_of_chains(tmp_path):
    rows = [
        plain_row(1, 0, kinds=[None, "wrong operand"], evidence=["e"]),
        {"steps": ["only"], "targets": [0.25]},
        plain_row(2, None),
    ]
    path = written(tmp_path, "own.jsonl", rows)
    first, second, third = load_chains(ChainData(train=path), seed=1).train
    assert (first.problem, first.targets, first.source) == ("p 1", (1.0, 0.0), "own")
    assert (first.kinds, first.evidence, first.where) == ((None, "wrong operand"), (), f"{path}:1")
    assert (second.problem, second.group) == ("", "only")
    assert third.targets == (1.0, None)
    asked = ChainSource(path=path, with_evidence=True, limit=1)
    assert load_chains(ChainData(train=asked), seed=1).train[0].evidence == ("e",)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
def test_a_table_of_texts_with_a_number_each(tmp_path, name):
    rows = [("So good", 3.5), ("So bad", -2.0), ("Fine", 0.5)]
    if name.endswith("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = [{"sentence": text, "mean": value} for text, value in rows]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / name)
    else:
        comma = "," if name.endswith("csv") else "\t"
        lines = [f"sentence{comma}mean", *(f"{text}{comma}{value}" for text, value in rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    columns = {"text": "sentence", "targets": "mean"}
    source = {"path": str(tmp_path / name), "columns": columns, "name": "vader"}
    splits = load_chains(ChainData(train=[source]), seed=1)
    assert [(c.steps, c.targets) for c in splits.train] == [((t,), (v,)) for t, v in rows]
    labels = splits.report.splits[0].labels
    assert (labels.low, labels.high, labels.negatives) == (-2.0, 3.5, 2), "1 -> 0.75 is the middle"


def test_words_stand_for_numbers_and_null_is_left_out(tmp_path):
    file = tmp_path / "t.tsv"
    file.write_text("Q\tA\tF1\tF2\tT\tS\nq\ta\tone\ttwo\tyes\t4\nq\tb\tone\ttwo\t?\t5\n")
    source = {
        "path": str(file),
        "columns": {
            "problem": "{Q}: {A}",
            "steps": ["F1", "F2"],
            "targets": "T",
            "group": "Q",
            "extra": {"score": "S"},
        },
        "labels": {"yes": 1, "no": 0, "?": None},
    }
    splits = load_chains(ChainData(train=[source]), seed=1)
    (chain,) = splits.train
    assert (chain.problem, chain.steps, chain.targets) == ("q: a", ("one", "two"), (None, 1.0))
    assert (chain.group, chain.extra) == ("q", {"score": 4.0})
    assert splits.report.sources[0].dropped == {"no label": 1}
    with pytest.raises(DataError, match=rf"{file}:2: T: 'yes' is none of labels: no. Give"):
        load_chains(ChainData(train=[source | {"labels": {"no": 0}}]), seed=1)
    with pytest.raises(DataError, match="T: a finite number was expected, not 'yes'"):
        load_chains(ChainData(train=[source | {"labels": None}]), seed=1)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"steps": ["a", "b"], "targets": [1, 0, 1]}, "2 steps but 3 targets"),
        ({"steps": ["a"], "targets": ["high"]}, r"targets\[0\]: a finite number"),
        ({"steps": ["a"], "targets": [float("nan")], "x": 1}, None),
        ({"steps": ["a"], "targets": [True]}, r"targets\[0\]: a finite number"),
        ({"steps": [1], "targets": [1]}, r"steps\[0\]: a text was expected"),
        ({"steps": ["a"]}, "no field 'targets'"),
        ({"steps": ["a", "b"], "targets": [1, 0], "kinds": ["x"]}, "2 steps but 1 kind"),
    ],
)
def test_a_bad_record_is_an_error_with_file_line_and_key(tmp_path, bad, says):
    path = written(tmp_path, "own.jsonl", [plain_row(1, 0), bad])
    if says is None:  # NaN is how pandas writes that there is no label
        assert load_chains(ChainData(train=path), seed=1).sizes == [1]
        return
    with pytest.raises(DataError, match=rf"^{path}:2: {says}"):
        load_chains(ChainData(train=path), seed=1)


def test_a_line_that_is_not_json_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(plain_row(1)) + "\n{oops\n")
    with pytest.raises(DataError, match=rf"^{path}:2: column"):
        load_chains(ChainData(train=str(path)), seed=1)


def test_eobqa_loads_as_a_table_with_its_human_labels():
    path = shared("eobqa/chains.tsv")
    source = {
        "path": str(path),
        "name": "eobqa",
        "columns": {
            "problem": "{Question}\nAnswer: {Answer}",
            "steps": ["Fact1", "Fact2"],
            "targets": "Turk",
            "extra": {"score": "WOL score"},
        },
        "labels": {w: 0 for w in ("no", "fact1", "fact2", "fact12", "bad-answer")}
        | {"yes": 1, "?": None},
    }
    splits = load_chains(ChainData(train=[source], eval_fraction=0.2), seed=17)
    tally = splits.report.sources[0]
    assert (tally.read, tally.kept, tally.dropped) == (998, 805, {"no label": 193})
    every = splits.train + splits.held_out
    assert Counter(c.targets for c in every) == {(None, 1.0): 95, (None, 0.0): 710}
    assert all(32 < c.extra["score"] < 109 for c in every)


# --- recognising ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("prm800k", PHASE_2),
        ("reveal", row(0, "Contradictory")),
        ("eqasc", grc(("wood", [((40, 30), "no")]))),
        ("chains", plain_row(1, 0)),
        ("table", {"text": "bad", "target": 0}),
    ],
)
def test_a_format_is_recognised_by_the_keys_of_its_records(tmp_path, kind, record):
    path = written(tmp_path, "a.jsonl", [record])
    splits = load_chains(
        ChainData(train=[{"path": path, "accept_terms": kind == "reveal"}]), seed=1
    )
    assert splits.report.sources[0].format == kind
    assert splits.train


@pytest.mark.parametrize("record", [{"prompt": "x"}, plain_row(1) | {"text": "t", "target": 1}])
def test_an_unknown_or_ambiguous_record_lists_the_formats(tmp_path, record):
    path = written(tmp_path, "a.jsonl", [record])
    with pytest.raises(DataError, match=rf"^{path}:1: ") as error:
        load_chains(ChainData(train=path), seed=1)
    for kind in ("prm800k", "reveal", "eqasc", "chains", "table"):
        assert f"\n  {kind}: " in str(error.value)


@pytest.mark.parametrize(
    "key",
    [{"label": "human"}, {"with_evidence": True}, {"accept_terms": True}, {"labels": {"y": 1}}],
)
def test_a_key_that_the_format_does_not_use_is_refused(tmp_path, key):
    path = written(tmp_path, "a.jsonl", [PHASE_2])
    with pytest.raises(DataError, match=f"{next(iter(key))} is of use for .* only"):
        load_chains(ChainData(train=[{"path": path} | key]), seed=1)


@pytest.mark.parametrize(
    "section",
    [
        {"train": "a", "eval": "b", "eval_fraction": 0.1},
        {"train": [{"path": "a", "weight": 1}, "b"]},
        {"train": "a", "eval": [{"path": "b", "weight": 1}]},
        {"train": "a", "wieght": 1},
        {"train": "a", "eval_fold": 1},
        {"train": "a", "eval_fraction": 0.2, "eval_fold": 5},
        {"train": [{"path": "a", "columns": {"text": "t", "steps": "s"}}]},
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(section):
    with pytest.raises(ValidationError):
        ChainData.model_validate(section)


# --- splits, mixtures, counts --------------------------------------------------------------------


def test_defect_unused_weights_are_sampled_as_written(tmp_path):
    """Seed 002 wrote .5/.25/.25 and drew by row count."""
    sizes = {"big": 400, "middle": 60, "small": 7}
    sources = []
    for (name, size), weight in zip(sizes.items(), (0.5, 0.25, 0.25), strict=True):
        rows = [plain_row(f"{name} {n}", n % 2) for n in range(size)]
        sources.append({"path": written(tmp_path, f"{name}.jsonl", rows), "weight": weight})
    data = ChainData(train=sources)
    splits = load_chains(data, seed=5)
    assert splits.sizes == [400, 60, 7]
    drawn = Mixture(splits.sizes, data.weights, 5).as_sampled(2000)
    assert [count / 2000 for count in drawn] == [0.5, 0.25, 0.25]
    assert splits.report.sampled == (("big", 0.5), ("middle", 0.25), ("small", 0.25))
    assert (
        splits.report.lines()[-1] == "mixture as sampled: big 50.0 %, middle 25.0 %, small 25.0 %"
    )
    by_size = ChainData(train=[source["path"] for source in sources])
    assert by_size.weights is None
    assert load_chains(by_size, seed=5).report.sampled[0][1] == pytest.approx(400 / 467), "control"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.floats(0.2, 0.8))
def test_a_split_never_separates_a_problem_and_loses_no_chain(tmp_path_factory, seed, share):
    path = tmp_path_factory.getbasetemp() / "groups.jsonl"
    if not path.exists():
        rows = [plain_row(n % 40, 0) | {"steps": ["a", f"{n}"]} for n in range(120)]
        written(path.parent, path.name, rows)
    splits = load_chains(ChainData(train=str(path), eval_fraction=share), seed=seed)
    sides = [{chain.group for chain in side} for side in (splits.train, splits.held_out)]
    assert not sides[0] & sides[1]
    assert len(splits.train) + len(splits.held_out) == 120
    assert len(sides[0] | sides[1]) == 40


def test_the_folds_are_disjoint_and_are_everything(tmp_path):
    path = written(tmp_path, "a.jsonl", [plain_row(n % 50, n % 2) for n in range(100)])
    folds = [
        load_chains(ChainData(train=path, eval_fraction=0.2, eval_fold=k), seed=3).held_out
        for k in range(5)
    ]
    assert Counter(c.where for fold in folds for c in fold) == Counter(
        f"{path}:{n}" for n in range(1, 101)
    )


PLANTED = st.lists(
    st.sampled_from(["good", "quality", "screening", "no steps", "null"]), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None)
@given(PLANTED)
def test_what_is_read_is_kept_or_dropped_with_a_reason(tmp_path_factory, kinds):
    rows = []
    for kind in kinds:
        body = {"no steps": [], "null": [step(completion("x", None), chosen=0)]}
        record = solution(*body.get(kind, PHASE_2["label"]["steps"]))
        record["is_quality_control_question"] = kind == "quality"
        record["is_initial_screening_question"] = kind == "screening"
        rows.append(record)
    path = written(tmp_path_factory.getbasetemp(), "planted.jsonl", rows)
    tally = ChainTally(source="", path="")
    chains = list(read_chains(ChainSource(path=path), tally))
    assert tally.read == len(kinds) == tally.kept + sum(tally.dropped.values())
    assert tally.kept == kinds.count("good")
    assert tally.chains == len(chains) == 3 * kinds.count("good")


def test_a_source_without_negatives_is_a_warning_that_says_so(tmp_path):
    only_chosen = [solution(step(completion("a", 1), chosen=0), step(completion("b", 0), chosen=0))]
    path = written(tmp_path, "phase2.jsonl", only_chosen)
    report = load_chains(ChainData(train=path), seed=1).report
    assert report.warnings == (
        "prm800k has no negatives: none of its 2 train labels is below 0.5, the middle of its "
        "range, so what a wrong step looks like cannot be learned from it",
    )
    assert any("warning: prm800k has no negatives" in line for line in report.lines())
    fine = written(tmp_path, "fine.jsonl", [PHASE_2])
    assert load_chains(ChainData(train=fine), seed=1).report.warnings == ()


def test_duplicates_contradictions_and_leaks_are_counted_with_their_places(tmp_path):
    train = written(tmp_path, "t.jsonl", [plain_row(1, 0), plain_row(1, 0), plain_row(1, 1)])
    held = written(tmp_path, "h.jsonl", [plain_row(1, 0), plain_row(2, 0)])
    with pytest.raises(DataError, match=rf"1 of 2 held-out chains \(50.0 %\).*First: {held}:1"):
        load_chains(ChainData(train=train, eval=held), seed=1)
    report = load_chains(ChainData(train=train, eval=held, max_leaked=0.5), seed=1).report
    mine, theirs = report.splits
    assert (mine.duplicates, mine.contradicting, mine.leaked) == (2, 1, 0)
    assert (theirs.duplicates, theirs.leaked) == (0, 1)
    assert mine.first["seen before with other targets"] == [f"{train}:3"]
    assert json.loads(json.dumps(report.tree()))["splits"][1]["leaked"] == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_every_label_is_in_one_bin(values):
    labels = labels_of(values)
    assert sum(count for _, count in labels.bins) == labels.count == len(values)
    assert labels.negatives == sum(value < labels.middle for value in values)
    assert len(labels.bins) <= 10


def test_loading_is_a_function_of_the_section_and_the_seed(tmp_path):
    path = written(tmp_path, "a.jsonl", [plain_row(n, n % 2) for n in range(40)])
    data = ChainData(train=path, eval_fraction=0.3)
    once, again, other = (load_chains(data, seed=seed) for seed in (1, 1, 2))
    assert (once.train, once.held_out) == (again.train, again.held_out)
    assert once.held_out != other.held_out


# --- pieces --------------------------------------------------------------------------------------


def chain_of(targets):
    return Chain(
        problem="p",
        steps=tuple(f"s {n}" for n in range(len(targets))),
        targets=tuple(targets),
        source="x",
        where="f:1",
        group="p",
    )


def test_defect_tail_cut_the_error_at_the_end_of_a_long_chain_is_kept():
    """Seed 002 cut chains after 10 steps, where the errors are."""
    chain = chain_of([1.0] * 14 + [0.0])
    assert 0.0 not in chain.targets[:10], "the control"
    parts = [part for _, part in pieces(chain, max_steps=10)]
    assert [part.targets[-1] for part in parts] == [1.0, 0.0]
    assert parts[-1].steps[-1] == "s 14"
    assert [part.where for part in parts] == ["f:1#steps 1-10", "f:1#steps 6-15"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=1, max_size=40), st.integers(1, 12)
)
def test_each_label_is_in_exactly_one_piece_with_its_context_before_it(targets, max_steps):
    chain = chain_of(targets)
    found = pieces(chain, max_steps=max_steps)
    assert [first for first, _ in found] == [int(part.steps[0].split()[1]) for _, part in found]
    parts = [part for _, part in found]
    assert sorted(labelled(parts)) == sorted(labelled([chain]))
    for part in parts:
        assert 1 <= len(part.steps) <= max_steps
        start = int(part.steps[0].split()[1])
        assert part.steps == chain.steps[start : start + len(part.steps)]
        if part is not chain and start:
            first_label = next(n for n, t in enumerate(part.targets) if t is not None)
            assert first_label >= max_steps // 2
