"""Rows are tokenised once, kept by content, split without leaks, and nothing is lost silently."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.data import prepare as prepare_module
from headway.data.chat import render
from headway.data.formats import Record
from headway.data.prepare import prepare, survey
from headway.data.report import DataReport
from headway.data.sources import TextData, read_records
from headway.errors import DataError
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(count, start=0):
    return [
        {"question": f"What is {i} + 1?", "answer": f"It is {i + 1}."}
        for i in range(start, start + count)
    ]


def prepared(folder, seed=0, max_tokens=128, **section):
    data = TextData.model_validate(section)
    return prepare(data, TOKENIZER, max_tokens=max_tokens, seed=seed, cache=folder / "cache")


def contents(rows):
    return [rows[i][0].tolist() for i in range(len(rows))]


def test_every_row_is_what_render_makes_of_its_record(tmp_path):
    mixed = [
        *questions(3),
        {"text": "Some plain text."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]},
        {"instruction": "Add.", "input": "1 1", "output": "2"},
    ]
    path = jsonl(tmp_path / "a.jsonl", mixed)
    rows = prepared(tmp_path, train=path).train
    for index, record in enumerate(read_records(path)):
        example = render(record, TOKENIZER, max_tokens=128)
        ids, supervised = rows[index]
        assert ids.tolist() == example.ids.tolist() and ids.dtype == np.int32
        assert supervised.tolist() == example.supervised.tolist()
        assert rows.where(index) == f"{path}:{index + 1}"
        assert rows.lengths[index] == len(ids)
        assert rows.weights[index] == example.weight
    assert len(rows) == 6
    with pytest.raises(IndexError):
        rows[6]


def test_the_next_attempt_reads_the_cache_and_tokenises_nothing(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", questions(5))
    first = prepared(tmp_path, train=path)

    def refuse(*_args, **_options):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(prepare_module, "_build", refuse)
    again = prepared(tmp_path, train=path)
    assert contents(again.train) == contents(first.train)
    assert again.report.tree() == first.report.tree()
    with pytest.raises(AssertionError, match="tokenised again"):  # the fault can fire
        prepared(tmp_path, train=path, max_tokens=127)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: jsonl(folder / "a.jsonl", questions(5, start=1)),
        {"train_on": "all"},
        {"max_tokens": 127},
        {"overlong": "drop"},
        {"chat_template": "plain"},
        {"eval_fraction": 0.5},
    ],
)
def test_whatever_rows_depend_on_gives_another_cache_folder(tmp_path, change):
    path = jsonl(tmp_path / "a.jsonl", questions(5))
    prepared(tmp_path, train=path)
    options = {} if callable(change) else change
    if callable(change):
        change(tmp_path)
    prepared(tmp_path, train=path, **options)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_another_tokenizer_gives_another_cache_folder(tmp_path):
    data = TextData(train=jsonl(tmp_path / "a.jsonl", questions(5)))
    for vocab_size in (300, 350):
        tokenizer = tiny_tokenizer(vocab_size=vocab_size)
        prepare(data, tokenizer, max_tokens=99, seed=0, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_limits_and_weights_do_not_prepare_again(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", questions(5))
    prepared(tmp_path, train=path)
    prepared(tmp_path, train={"path": path, "weight": 2.0}, max_dropped=0.5)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncate", "header", "missing"])
def test_a_damaged_cache_is_written_anew(tmp_path, damage):
    path = jsonl(tmp_path / "a.jsonl", questions(5))
    first = contents(prepared(tmp_path, train=path).train)
    (folder,) = (tmp_path / "cache").iterdir()
    if damage == "truncate":
        ids = folder / "train" / "ids.bin"
        ids.write_bytes(ids.read_bytes()[:-20])
    elif damage == "header":
        header = folder / "train" / "header.json"
        header.write_text(header.read_text().replace('"rows": 5', '"rows": 4'))
    else:
        (folder / "report.json").unlink()
    assert contents(prepared(tmp_path, train=path).train) == first


def test_a_flipped_bit_is_found_when_asked_for(tmp_path):
    prepared(tmp_path, train=jsonl(tmp_path / "a.jsonl", questions(5)))
    (folder,) = (tmp_path / "cache").iterdir()
    file = folder / "train" / "ids.bin"
    raw = bytearray(file.read_bytes())
    raw[3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match="content changed"):
        prepare_module.Prepared(folder / "train", verify=True)


def test_a_killed_preparation_leaves_nothing_that_would_be_used(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", questions(5))

    class Killed(BaseException):
        pass

    def die(*_args, **_options):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", die)
        with pytest.raises(Killed):
            prepared(tmp_path, train=path)
    assert not list((tmp_path / "cache").glob("rows-*"))
    assert len(prepared(tmp_path, train=path).train) == 5


@given(seed=st.integers(0, 10**6), fraction=st.floats(0.1, 0.9))
@settings(deadline=None, max_examples=8)
def test_a_drawn_split_is_disjoint_even_with_duplicate_rows(tmp_path_factory, seed, fraction):
    folder = tmp_path_factory.mktemp("split")
    path = jsonl(folder / "a.jsonl", questions(60) * 2)
    splits = prepared(folder, seed=seed, train=path, eval_fraction=fraction)
    train, held_out = contents(splits.train), contents(splits.held_out)
    assert len(train) + len(held_out) == 120
    assert not {tuple(ids) for ids in train} & {tuple(ids) for ids in held_out}
    assert abs(len(held_out) / 120 - fraction) < 0.35


def test_the_split_is_a_function_of_the_seed(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", questions(60))
    first = prepared(tmp_path, seed=1, train=path, eval_fraction=0.5).held_out
    other = prepared(tmp_path, seed=2, train=path, eval_fraction=0.5).held_out
    assert contents(first) != contents(other)


def test_rows_in_both_splits_are_refused_with_their_places(tmp_path):
    train = jsonl(tmp_path / "a.jsonl", questions(10))
    held = jsonl(tmp_path / "b.jsonl", questions(4, start=8))
    with pytest.raises(DataError, match=r"2 of 4 held-out rows.*b\.jsonl:1.*max_leaked"):
        prepared(tmp_path, train=train, eval=held)
    splits = prepared(tmp_path, train=train, eval=held, max_leaked=0.5)
    assert len(splits.held_out) == 4
    assert "also among the training rows" in "\n".join(splits.report.lines())


def test_more_truncated_rows_than_allowed_are_refused(tmp_path):
    long = {"question": "Why?", "answer": "Because. " * 60}
    path = jsonl(tmp_path / "a.jsonl", [*questions(3), long, long])
    with pytest.raises(DataError, match=r"2 of 5 train rows \(40\.0 %\) are cut.*a\.jsonl:4"):
        prepared(tmp_path, train=path)
    splits = prepared(tmp_path, train=path, max_truncated=0.5)
    tally = splits.report.tallies[0]
    assert (tally.truncated, tally.kept, tally.duplicates) == (2, 5, 1)
    assert tally.cut_tokens == 2 * (tally.longest_tokens - 128)
    assert splits.train.lengths.max() == 128


@pytest.mark.fault(62)
def test_rows_that_teach_nothing_are_dropped_counted_and_limited(tmp_path):
    rows = [
        *questions(7),
        {"question": "long " * 200, "answer": "never seen"},
        {"question": "And?", "answer": " "},
        {"messages": [{"role": "user", "content": "Hello?"}]},
    ]
    path = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"3 of 10 train rows.*dropped.*a\.jsonl:9.*max_dropped"):
        prepared(tmp_path, train=path)
    splits = prepared(tmp_path, train=path, max_dropped=0.3)
    assert len(splits.train) == 7
    assert sum(splits.report.tallies[0].dropped.values()) == 3
    assert splits.train.weights.min() > 0


def test_data_without_one_usable_row_is_refused_whatever_the_limits(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"question": "And?", "answer": ""}])
    with pytest.raises(DataError, match=r"no train row is left of 1.*a\.jsonl:1"):
        prepared(tmp_path, train=path, max_dropped=1.0)


def test_a_source_without_a_usable_row_is_named_wherever_it_stands(tmp_path):
    good = jsonl(tmp_path / "good.jsonl", questions(5))
    empty = jsonl(tmp_path / "empty.jsonl", [{"question": "And?", "answer": ""}])
    for train in ([good, empty], [empty, good], [good, empty, good]):
        with pytest.raises(DataError, match=r"empty\.jsonl: none of its rows"):
            prepared(tmp_path, train=train, max_dropped=1.0)


def test_a_fraction_that_holds_out_nothing_is_refused(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", questions(3))
    with pytest.raises(DataError, match="holds out no row; raise it"):
        prepared(tmp_path, train=path, eval_fraction=0.0001)


def test_a_mixture_of_prepared_rows_is_sampled_as_configured(tmp_path):
    one = jsonl(tmp_path / "a.jsonl", questions(5))
    two = jsonl(tmp_path / "b.jsonl", questions(20, start=50))
    splits = prepared(tmp_path, train=[{"path": one, "weight": 3}, {"path": two, "weight": 1}])
    assert splits.train.sizes == (5, 20)
    mixture = splits.train.mixture([3, 1], seed=0)
    assert mixture.as_sampled(1000) == [750, 250]
    rows = mixture.rows_at(np.arange(1000))
    assert sum(splits.train.where(row).startswith(one) for row in rows) == 750


def test_the_report_survives_json_and_reads_well(tmp_path):
    rows = [*questions(4), {"text": "Some text."}]
    splits = prepared(tmp_path, train=jsonl(tmp_path / "a.jsonl", rows))
    tree = json.loads(json.dumps(splits.report.tree()))
    assert DataReport.from_tree(tree) == splits.report
    (line,) = splits.report.lines()
    assert "5 of 5 rows (question 4, text 1)" in line
    data = TextData(train=str(tmp_path / "a.jsonl"))
    assert survey(data, TOKENIZER, max_tokens=128, seed=0) == splits.report


def test_ids_beyond_two_bytes_are_kept_whole(tmp_path):
    from headway.data.rows import Prepared, RowsWriter

    example = render(Record({"text": "abc"}, "x:1"), TOKENIZER, max_tokens=9)
    ids = np.array([70_000, 3, 151_000], dtype=np.int32)
    big = type(example)(ids, np.ones(3, bool), "x:1", "text", 3)
    writer = RowsWriter(tmp_path / "big", 152_000)
    writer.add(big, 0)
    writer.finish()
    assert Prepared(tmp_path / "big", verify=True)[0][0].tolist() == ids.tolist()
