"""Error rates: 0 exactly for equal texts, bounded, pooled as they say, and shown in pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("jiwer", reason="the extra vision is not installed")

from headway.data.page_text import Lines, Pairs, markdown
from headway.errors import DataError
from headway.recipes.ocr_metrics import (
    Edits,
    diff,
    measure,
    normalised,
    score_page,
    without_looking,
)

TEXT = st.text(st.sampled_from("ab <>td/☑\n&1:") | st.characters(), max_size=40)
PAGES = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)


def levenshtein(a, b):
    """The textbook's table: what jiwer is compared with."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@given(TEXT, TEXT)
def test_edits_are_those_of_the_textbook(read, reference):
    score = score_page(read, reference)
    assert score.characters == Edits(levenshtein(read, reference), len(reference))
    right = reference.split()
    assert score.words == Edits(levenshtein(read.split(), right), len(right))


@given(TEXT, TEXT)
def test_a_rate_is_0_exactly_where_texts_are_equal(read, reference):
    score = score_page(read, reference)
    assert (score.cer == 0) == (read == reference)
    assert (score.wer == 0) == (read.split() == reference.split())
    assert (score.characters_normalised.rate == 0) == (normalised(read) == normalised(reference))
    assert score_page(read, read).exact


def test_what_jiwer_strips_by_default_counts_here():
    """Negative control: its own default calls these two equal."""
    import jiwer

    assert jiwer.cer(reference="WELL A", hypothesis="WELL A\n") == 0
    assert score_page("WELL A\n", "WELL A").cer == pytest.approx(1 / 6)


@given(TEXT, TEXT)
def test_edits_are_symmetric_and_bounded(read, reference):
    edits = score_page(read, reference).characters.edits
    assert edits == score_page(reference, read).characters.edits
    assert abs(len(read) - len(reference)) <= edits <= max(len(read), len(reference))


@given(PAGES)
def test_the_pooled_rate_is_the_mean_weighted_by_length(pages):
    scores = [score_page(read, reference) for read, reference in pages if reference]
    if scores:
        length = sum(s.characters.length for s in scores)
        weighted = sum(s.cer * s.characters.length for s in scores) / length
        assert measure(scores)["cer"] == pytest.approx(weighted)
        mean = sum(s.cer for s in scores) / len(scores)
        assert measure(scores)["cer_per_page"] == pytest.approx(mean)


def test_pooled_and_mean_differ_where_lengths_do():
    """Negative control of the one above."""
    pages = [score_page("", "a"), score_page("b" * 99, "b" * 99)]
    assert measure(pages)["cer"] == pytest.approx(0.01)
    assert measure(pages)["cer_per_page"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("read", "reference", "rate"), [("", "", 0), ("xy", "", 1), ("", "xy", 1), (" ", "", 1)]
)
def test_an_empty_reference_is_0_or_1(read, reference, rate):
    score = score_page(read, reference)
    assert score.cer == rate
    assert measure([score])["cer"] == rate
    assert measure([score])["n_empty"] == (reference == "")


def test_what_was_read_off_an_empty_page_counts_in_the_pooled_rate():
    assert measure([score_page("xy", ""), score_page("abcd", "abcd")])["cer"] == 0.5


def test_fields_count_as_often_as_they_are_there():
    reference = "WELL: A\nBS: 7\nBS: 7\nBHT: 90"
    figures = measure([score_page("WELL: A\nBS: 7\nBHT: 9\nX: 1\nY: 2", reference)])
    assert figures["field_recall"] == 2 / 4
    assert figures["field_precision"] == 2 / 5
    assert figures["exact_match"] == 0
    assert (figures["n_fields"], figures["n_fields_predicted"], figures["n"]) == (4, 5, 1)


def test_the_order_of_fields_and_the_form_of_the_table_do_not_make_a_field_wrong():
    pairs = (("WELL", "A & B"), ("FIELD", "C"))
    table, one_row = Pairs(tuple((p,) for p in pairs)), Pairs((pairs,))
    score = score_page(markdown([one_row]), markdown([table]))
    assert score.exact and score.cer > 0
    assert score.characters_normalised.rate == 0
    assert score_page(markdown([Lines(pairs[::-1])]), markdown([table])).exact


def test_what_is_not_defined_is_left_out():
    figures = measure([score_page("", "no field at all")])
    assert not {"field_recall", "field_precision", "exact_match"} & set(figures)
    with pytest.raises(DataError, match="nothing to measure"):
        measure([])


@given(TEXT, TEXT)
def test_the_pieces_of_a_difference_are_both_texts(read, reference):
    pieces = diff(read, reference)
    assert "".join(text for kind, text in pieces if kind != "extra") == reference
    assert "".join(text for kind, text in pieces if kind != "missing") == read
    assert all(text and kind in ("equal", "missing", "extra") for kind, text in pieces)
    missing = sum(len(text) for kind, text in pieces if kind == "missing")
    extra = sum(len(text) for kind, text in pieces if kind == "extra")
    edits = score_page(read, reference).characters.edits
    assert max(missing, extra) <= edits <= missing + extra


def test_a_difference_reads_like_one():
    assert diff("WELL: A 12", "WELL: A-12B") == [
        ("equal", "WELL: A"), ("missing", "-"), ("extra", " "), ("equal", "12"), ("missing", "B"),
    ]  # fmt: skip


def test_the_answer_that_does_not_look_is_the_best_of_those_known():
    references = [f"WELL: A{i}\nSTATE: TEXAS" for i in range(9)]
    found = without_looking(references, ["nothing", "WELL: A\nSTATE: TEXAS", "x"])
    assert found["cer/same answer for all"] == pytest.approx(9 / sum(map(len, references)))
    assert found["field_recall/same answer for all"] == 0.5
    assert not any(name.startswith("n_") for name in found)
    assert without_looking(references, []) == {}


def test_a_row_of_the_worst_can_be_written_as_json():
    import json

    tree = score_page("WELL: B", "WELL: A").tree()
    assert json.loads(json.dumps(tree)) == tree
    assert tree["cer"] == pytest.approx(1 / 7) and tree["exact"] is False
