"""Records from every place and format, and errors that name the file and the line."""

import gzip
import json

import fsspec
import pytest
from pydantic import ValidationError

from headway.data.sources import Source, TextData, fingerprint, list_files, read_records
from headway.errors import DataError
from shared_data import shared

ROWS = [{"question": f"q {i} é", "answer": f"a {i}"} for i in range(3)]


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def written(folder, name, rows=ROWS):
    """A file of the format its name says, holding ``rows``."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(as_jsonl(rows).encode()))
        return path
    delimiter = "\t" if name.endswith(".tsv") else ","
    table = [delimiter.join(rows[0])] + [delimiter.join(row.values()) for row in rows]
    text = {
        "jsonl": as_jsonl(rows),
        "json": json.dumps(rows),
        "csv": "\n".join(table) + "\n",
        "tsv": "\n".join(table) + "\n",
    }[name.rpartition(".")[2]]
    path.write_text(text, encoding="utf-8")
    return path


def data_of(spec):
    return [dict(record.data) for record in read_records(spec)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"])
def test_every_format_gives_the_same_records(tmp_path, name):
    assert data_of(str(written(tmp_path, name))) == ROWS


def test_a_record_knows_its_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [r.where for r in read_records(str(path))] == [f"{path}:1", f"{path}:3"]
    table = tmp_path / "a.csv"
    table.write_text('q,a\n"two\nlines",x\ny,z\n')
    assert [r.where for r in read_records(str(table))] == [f"{table}:2", f"{table}:4"]
    assert [r.where for r in read_records(str(written(tmp_path, "b.json")))][2].endswith("[2]")


def test_json_is_a_list_or_a_data_list_or_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert data_of(str(path)) == ROWS
    path.write_text(as_jsonl(ROWS))
    assert data_of(str(path)) == ROWS


def test_a_folder_is_read_recursively_in_sorted_order_with_each_format(tmp_path):
    written(tmp_path, "b/z.jsonl", ROWS[:1])
    written(tmp_path, "a.csv", ROWS[1:2])
    (tmp_path / "b" / "doc.md").write_text("A document.\n\nOf two paragraphs.")
    (tmp_path / ".hidden.jsonl").write_text("nonsense")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert data_of(str(tmp_path)) == [
        ROWS[1],
        {"text": "A document.\n\nOf two paragraphs."},
        ROWS[0],
    ]


def test_a_remote_file_and_a_remote_folder_are_read(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/data/a.jsonl", as_jsonl(ROWS[:2]).encode())
    fs.pipe("/bucket/data/sub/b.jsonl.gz", gzip.compress(as_jsonl(ROWS[2:]).encode()))
    try:
        assert data_of("memory://bucket/data/a.jsonl") == ROWS[:2]
        assert data_of("memory://bucket/data") == ROWS
        before = fingerprint(Source(path="memory://bucket/data"))
        fs.pipe("/bucket/data/a.jsonl", b'{"text": "other"}\n')
        assert fingerprint(Source(path="memory://bucket/data")) != before
    finally:
        fs.rm("/bucket", recursive=True)


def test_a_saved_hugging_face_dataset_is_read(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    assert data_of(str(tmp_path / "one")) == ROWS
    both = datasets.DatasetDict({"train": table, "test": table.select([0])})
    both.save_to_disk(tmp_path / "two")
    assert data_of(str(tmp_path / "two")) == ROWS
    assert data_of(Source(path=str(tmp_path / "two"), split="test")) == ROWS[:1]
    with pytest.raises(DataError, match=r"no split 'dev'.*\['train', 'test'\]"):
        data_of(Source(path=str(tmp_path / "two"), split="dev"))
    assert fingerprint(Source(path=str(tmp_path / "one"))) != fingerprint(
        Source(path=str(tmp_path / "two"))
    )


def test_a_hub_dataset_goes_through_load_dataset(tmp_path, monkeypatch):
    """``load_dataset`` takes a local folder where a hub name would stand: the same code runs."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    written(tmp_path, "set/train.jsonl")
    written(tmp_path, "set/test.jsonl", ROWS[:1])
    assert data_of(f"hf:{tmp_path}/set") == ROWS
    assert data_of(f"hf:{tmp_path}/set@test") == ROWS[:1]
    with pytest.raises(DataError, match="cannot be loaded"):
        data_of(f"hf:{tmp_path}/nowhere")


@pytest.mark.fault(62)
def test_limit_and_columns_are_applied(tmp_path):
    path = str(written(tmp_path, "a.jsonl"))
    spec = Source(path=path, limit=1, columns={"prompt": "question"})
    assert data_of(spec) == [{"prompt": ROWS[0]["question"], "answer": ROWS[0]["answer"]}]
    with pytest.raises(DataError, match=r"a\.jsonl:1: no field 'reply'.*'question', 'answer'"):
        data_of(Source(path=path, columns={"answer": "reply"}))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n"


@pytest.mark.fault(29, 62)
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: column \d+: not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1, 2]\n', r"a\.jsonl:2: a list where an object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2: not UTF-8: byte 0xff at byte 8"),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', r"a\.json:2: column 7: not JSON"),
        ("a.json", b'[{"a": 1}, 5]', r"a\.json\[1\]: a int where an object"),
        ("a.json", b'{"a": 1}', "must be a list of objects"),
        ("a.json", b'[{"a":\n"\xff"}]', r"a\.json:2: not UTF-8"),
        ("a.csv", b"q,a\n1,2\n1,2,3\n", r"a\.csv:3: 3 fields, but the header names 2"),
        ("a.csv", b'q,a\n"1,2\n', r"a\.csv:2: .*quote"),
        ("a.csv", b"q,q\n1,2\n", r"a\.csv:1: the header names a column twice"),
        ("a.txt", b"line\n\xfe\n", r"a\.txt:2: not UTF-8"),
        ("a.jsonl", POINTER, "Git-LFS pointer.*git lfs pull"),
        ("a.parquet", POINTER, "Git-LFS pointer"),
        ("a.parquet", b"PAR1 no", "not readable as Parquet"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-9],
            "cannot be read to its end",
        ),
        ("a.jsonl", b"", "no records"),
        ("a.csv", b"q,a\n", "no records"),
        ("a.bin", b"x", "does not say which format"),
    ],
)
def test_what_cannot_be_read_names_file_and_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        data_of(str(path))


@pytest.mark.fault(62)
def test_missing_files_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        data_of(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="without a readable file"):
        list_files(Source(path=str(tmp_path)))
    with pytest.raises(DataError, match="Protocol not known"):
        data_of("nowhere://x/a.jsonl")


def test_a_byte_order_mark_is_not_part_of_the_first_field(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfq,a\n1,2\n")
    assert data_of(str(path)) == [{"q": "1", "a": "2"}]


def test_the_fingerprint_is_of_the_content_not_of_the_clock(tmp_path):
    import os

    spec = Source(path=str(written(tmp_path, "a.jsonl")))
    before = fingerprint(spec)
    os.utime(spec.path, (1, 1))
    assert fingerprint(spec) == before
    written(tmp_path, "a.jsonl", ROWS[:2])
    assert fingerprint(spec) != before


def test_the_data_section_takes_a_path_a_source_or_a_list():
    one = TextData(train="a.jsonl")
    assert one.train == (Source(path="a.jsonl"),) and one.weights is None
    many = TextData(
        train=[{"path": "a.jsonl", "weight": 2}, {"path": "b", "weight": 1}], eval="c.jsonl"
    )
    assert many.weights == [2, 1] and many.eval == (Source(path="c.jsonl"),)
    assert TextData.model_validate(many.model_dump()) == many


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train": "a", "eval": "b", "eval_fraction": 0.1}, "not both"),
        ({"train": [{"path": "a", "weight": 1}, "b"]}, "every training source a weight"),
        ({"train": "a", "eval": {"path": "b", "weight": 1}}, "would be ignored"),
        ({"train": {"path": "a", "wieght": 1}}, "wieght"),
        ({"train": []}, "train"),
        ({"train": "a", "eval_fraction": 0}, "eval_fraction"),
    ],
)
def test_a_data_section_that_says_two_things_is_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        TextData.model_validate(section)


def test_real_data_is_read():
    assert len(data_of(str(shared("gsm8k/train.jsonl")))) == 7473
    assert len(data_of(str(shared("eobqa/chains.tsv")))) == 998
