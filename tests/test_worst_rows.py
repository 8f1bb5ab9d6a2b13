"""The form in which a recipe hands over its worst rows: on disk, in the journal, in the page."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_run
from headway import evals
from headway.evals import as_json, brief, place, whole, write
from headway.journal import Journal, read
from headway.recipes.compared import compared
from headway.records import Evaluation, Picture, RowLoss
from headway.report.html import report_html
from headway.report.script import SCRIPT
from headway.viewing import write_report
from page_reader import Page

PNG = b"\x89PNG\r\n\x1a\n" + b"one"
JPEG = b"\xff\xd8\xff" + b"two"


def evaluation(*rows: dict[str, Any], step: int = 20) -> Evaluation:
    worst = tuple(
        RowLoss(row=7 + n, loss=3.0 - n, weight=2.0, shown=shown) for n, shown in enumerate(rows)
    )
    metrics = {"loss": 0.5}
    return Evaluation(
        step=step, rows=40, weight=90.0, metrics=metrics, baselines={}, seconds=1.0, worst=worst
    )


def page_of(*rows: dict[str, Any], folder: Path) -> str:
    """The report of a run whose newest evaluation has these worst rows."""
    found = evaluation(*rows)
    write(folder, found)
    with Journal(folder / "journal.jsonl", attempt=1) as journal:
        journal.append(brief(found))
    return write_report(folder).read_text()


def section(text: str) -> str:
    return text[text.index('<section class="worst">') :]


# ---------------------------------------------------------------- pictures


def test_a_picture_is_a_file_beside_the_rows_and_stands_in_the_page(tmp_path: Path) -> None:
    row = {"page": Picture(data=PNG, says='the "page"'), "parts": [Picture(data=JPEG)] * 2}
    text = page_of(row, folder=tmp_path)
    files = {str(f.relative_to(place(tmp_path, 20))) for f in tmp_path.rglob("row-*")}
    assert files == {"pictures/row-7-1.png", "pictures/row-7-2.jpg", "pictures/row-7-3.jpg"}
    (line,) = (place(tmp_path, 20) / "worst.jsonl").read_text().splitlines()
    assert json.loads(line)["shown"]["page"] == {
        "picture": "pictures/row-7-1.png", "says": 'the "page"',
    }  # fmt: skip
    sources = re.findall(r'<img src="data:image/(\w+);base64,([^"]+)" alt="([^"]*)"', text)
    assert [(kind, b64decode(data), says) for kind, data, says in sources] == [
        ("png", PNG, "the &quot;page&quot;"), ("jpeg", JPEG, ""), ("jpeg", JPEG, ""),
    ]  # fmt: skip
    assert Page(text).open == [] and "<figcaption>the &quot;page&quot;</figcaption>" in text


def test_no_byte_of_a_picture_is_in_the_journal_or_in_json(tmp_path: Path) -> None:
    row = {
        "where": "x:8", "page": Picture(data=PNG), "deep": {"in": [{"it": Picture(data=JPEG)}]},
        "prediction": [("a", "added")], "steps": [{"text": "s", "predicted": 0.5, "target": None}],
        "range": [0, 5], "kinds": [None], "error": 0.5,
    }  # fmt: skip
    found = evaluation(row)
    with Journal(tmp_path / "journal.jsonl", attempt=1) as journal:
        journal.append(brief(found))
    (event,) = read(tmp_path / "journal.jsonl")
    assert set(event["worst"][0]["shown"]) == {"where", "steps", "range", "kinds", "error"}
    shown = json.loads(json.dumps(as_json(found)))["worst"][0]["shown"]
    assert shown["deep"]["in"][0]["it"] == {"picture": "pictures/row-7-2.jpg", "says": ""}


def test_an_evaluation_in_the_same_place_leaves_no_picture_of_the_one_before(
    tmp_path: Path,
) -> None:
    write(tmp_path, evaluation({"a": Picture(data=PNG), "b": Picture(data=JPEG)}))
    write(tmp_path, evaluation({"a": Picture(data=PNG)}))
    assert [f.name for f in tmp_path.rglob("row-*")] == ["row-7-1.png"]


def test_what_is_no_picture_cannot_be_made_one() -> None:
    for data in (b"", b"<svg onload=alert(1)>", b"GIF89a", PNG[1:]):
        with pytest.raises(ValueError, match="must be PNG or JPEG"):
            Picture(data=data)


@pytest.mark.parametrize(
    "name", ["../../secret.png", "/etc/a.png", "pictures/../x.png", "pictures/A.png", "x.png", ""]
)
def test_a_name_that_leads_elsewhere_is_never_read(tmp_path: Path, name: str) -> None:
    folder = place(tmp_path, 20)
    folder.mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PNG)
    (folder / "x.png").write_bytes(PNG)
    event = {"step": 20, "worst": [{"row": 1, "loss": 1, "shown": {"p": {"picture": name}}}]}
    assert evals.pictures(tmp_path, event) == {}
    text = report_html([{"event": "evaluation", "metrics": {"loss": 1}, **event}], name="r")
    assert "is not in this page" in text and "<img" not in text


def test_a_page_takes_in_only_what_it_has_room_for_and_names_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evals, "ALL_PICTURES_BYTES", 2 * len(PNG) + 1)
    monkeypatch.setattr(evals, "ONE_PICTURE_BYTES", len(PNG))
    large = Picture(data=PNG + b"!", says="<large>")
    text = page_of({"a": large}, *[{"a": Picture(data=PNG)}] * 3, folder=tmp_path)
    assert text.count("<img") == 2
    assert "(picture “&lt;large&gt;” is not in this page: pictures/row-7-1.png)" in text
    assert "is not in this page: pictures/row-10-1.png" in text


def test_a_file_that_is_gone_or_was_exchanged_is_named_and_not_shown(tmp_path: Path) -> None:
    page_of({"a": Picture(data=PNG)}, {"a": Picture(data=PNG)}, folder=tmp_path)
    first, second = sorted(tmp_path.rglob("row-*"))
    first.unlink()
    second.write_bytes(b"<script>alert(1)</script>")
    text = write_report(tmp_path).read_text()
    assert "<img" not in text and text.count("is not in this page") == 2


# ---------------------------------------------------------------- texts


def test_pieces_say_what_was_missing_and_what_was_added(tmp_path: Path) -> None:
    row = {"prediction": compared("the <bat> sat on", "the cat sat"), "prompt": "p"}
    text = section(page_of(row, folder=tmp_path))
    assert "<del>cat</del><ins>&lt;bat&gt;</ins><span> sat</span><ins> on</ins>" in text
    assert "Struck out: wanted, but not said." in text and "the warmer" not in text


@given(st.text("ab <\n", max_size=30), st.text("ab <\n", max_size=30))
def test_both_texts_are_found_again_in_the_pieces(said: str, wanted: str) -> None:
    pieces = compared(said, wanted)
    assert "".join(t for t, mark in pieces if mark != "missing") == said
    assert "".join(t for t, mark in pieces if mark != "added") == wanted
    assert all(t for t, _ in pieces) and {m for _, m in pieces} <= {None, "missing", "added"}


def test_the_reference_is_drawn_token_by_token_in_its_own_place(tmp_path: Path) -> None:
    tokens = [("Q", None), (" A", 0.6), ("<b>", 9.0), ("</s>", 0.0)]
    row = {"prompt": "Q", "reference": " A<b>", "tokens": tokens, "choices": [("C", "changed")]}
    text = section(page_of(row, folder=tmp_path))
    assert re.findall(r"<dt>(\w+)</dt>", text) == ["prompt", "reference", "choices"]
    assert re.findall(r"--warmth:(\d+)%", text) == ["10", "100", "0"]
    assert "&lt;b&gt;" in text and "<mark>C</mark>" in text and "Choices: what" in text


@pytest.mark.parametrize(
    "value", [[["a", "b"]], [["a", []]], [["a", 1], ["b"]], [[]], [["a", True]], {"picture": 3}]
)
def test_what_only_looks_like_pieces_is_shown_as_it_is(tmp_path: Path, value: Any) -> None:
    text = section(page_of({"x": value}, folder=tmp_path))
    assert "<del>" not in text and "<b " not in text and "<dt>x</dt>" in text


# ---------------------------------------------------------------- orders


def test_a_row_says_what_it_can_be_put_in_order_by(tmp_path: Path) -> None:
    chain = [
        {"text": "a", "target": 1.0, "predicted": 0.9},
        {"text": "b", "target": 5, "predicted": 0},
    ]
    text = section(
        page_of(
            {"steps": chain, "range": [0, 5]},
            {"prompt": "four", "reference": "5"},
            {"error": 0.25, "length": 12, "suspicious": "why <not>"},
            folder=tmp_path,
        )
    )
    rows = re.findall(r'<article class="row"([^>]*)>', text)
    assert rows == [
        ' data-loss="3.0" data-error="1.0" data-length="2.0" data-suspicious="1"',
        ' data-loss="2.0" data-length="5.0"',
        ' data-loss="1.0" data-error="0.25" data-length="12.0" data-suspicious="1"',
    ]
    assert "step 2 is labelled 5.0 and predicted 0" in text and "why &lt;not&gt;" in text
    buttons = re.findall(r'<button type="button" value="(\w+)"[^>]*>([^<]+)', text)
    assert buttons == [
        ("loss", "highest loss"), ("error", "highest error"), ("length", "longest"),
        ("suspicious", "suspicious (2)"),
    ]  # fmt: skip
    assert not {"error", "length", "where"} & {*re.findall(r"<dt>(\w+)</dt>", text)}


def test_buttons_wait_for_the_script_and_one_row_needs_none(tmp_path: Path) -> None:
    text = section(page_of({"prompt": "a"}, {"prompt": "bb"}, folder=tmp_path))
    assert '<div id="orders" role="group" aria-label="Order of the rows" hidden>' in text
    (tmp_path / "journal.jsonl").unlink()
    assert "<script" not in page_of({"prompt": "a"}, folder=tmp_path)


def test_the_only_script_of_the_page_is_ours_and_its_policy_names_it(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    rows = [
        {
            "where": hostile, hostile: hostile, "prompt": hostile, "suspicious": hostile,
            "tokens": [(hostile, 1.0)], "p": Picture(data=PNG, says=f'"{hostile}'),
            "steps": [{"text": hostile, "target": 1.0, "predicted": 0.0}], "kinds": [hostile],
        },
        {"prompt": hostile, "prediction": compared(hostile, "a")},
    ]  # fmt: skip
    text = page_of(*rows, folder=tmp_path)
    read = Page(text)
    assert read.open == [] and read.tags.count("script") == 1 and read.tags.count("img") == 1
    assert f"<script>{SCRIPT}</script>" in text and read.text.count("<script>alert(1)") >= 8
    from hashlib import sha256

    policy = re.search(r"script-src 'sha256-([^']+)'", text)
    assert policy and b64decode(policy[1]) == sha256(SCRIPT.encode()).digest()
    assert "unsafe-inline'; img-src" in text and "'unsafe-eval'" not in text


def test_a_page_without_rows_has_no_script_and_allows_none() -> None:
    events = [e for e in fake_run.journal(steps=40, every=20) if e["event"] != "evaluation"]
    text = report_html(events, name="young")
    assert "<script" not in text and "script-src 'none'" in text


def test_pictures_and_pieces_survive_a_torn_journal_line(tmp_path: Path) -> None:
    found = evaluation({"page": Picture(data=PNG)})
    write(tmp_path, found)
    again = whole(tmp_path, {"step": 20, "worst": []})
    assert evals.pictures(tmp_path, again) == {"pictures/row-7-1.png": PNG}
