"""The journal survives kills: whole lines stay, half a line never hurts."""

from __future__ import annotations

import errno
import json
import os
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import StorageFull
from headway.journal import Journal, next_attempt, read, read_events, scan, timeline
from headway.records import Evaluation, Finding, RowLoss, StepReport, StopReason


def step_report(step: int, **changes) -> StepReport:
    facts = {
        "loss": 2.5, "learning_rate": 1e-4, "grad_norm": 0.7, "weight": 100.0, "rows": 4,
        "tokens": 400, "seconds": 0.2, "memory_bytes": 1 << 30, "also": {"kl": 0.1},
    }  # fmt: skip
    return StepReport(step=step, **facts | changes)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run" / "journal.jsonl"


def write_steps(path: Path, attempt: int, steps, restored_step: int | None = None) -> None:
    with Journal(path, attempt) as journal:
        journal.append("attempt", restored_step=restored_step)
        for step in steps:
            journal.append(step_report(step, loss=attempt + step / 1000), cost_usd=step / 100)


def test_lines_come_back_in_order_with_their_time_and_attempt(path):
    with Journal(path, 3) as journal:
        journal.append("attempt", host="a", reason=StopReason.SIGNAL, where=Path("x"))
        journal.append(step_report(1), cost_usd=0.5)
        journal.append(Finding(level="note", name="n", what="w"))
    first, second, third = read(path)
    assert first | {"at": ""} == {
        "event": "attempt", "at": "", "attempt": 3, "host": "a", "reason": "signal", "where": "x",
    }  # fmt: skip
    assert datetime.fromisoformat(first["at"]).utcoffset().total_seconds() == 0
    assert second["event"] == "step" and second["cost_usd"] == 0.5 and second["also"] == {"kl": 0.1}
    assert third["event"] == "finding" and third["what"] == "w"


def test_an_evaluation_keeps_its_worst_rows(path):
    worst = (RowLoss(row=7, loss=9.0, weight=3.0, shown={"prompt": "é\n"}),)
    evaluation = Evaluation(
        step=5, rows=8, weight=1.0, metrics={"loss": 2.0}, baselines={}, seconds=1.0, worst=worst
    )
    with Journal(path, 1) as journal:
        journal.append(evaluation)
    [event] = read_events(path, {"evaluation"})
    assert event["worst"] == [{"row": 7, "loss": 9.0, "weight": 3.0, "shown": {"prompt": "é\n"}}]


def test_nan_and_infinity_are_text_so_that_every_line_is_json(path):
    with Journal(path, 1) as journal:
        journal.append(step_report(1, loss=float("nan"), also={"x": float("-inf")}))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert read(path)[0]["loss"] == "nan" and read(path)[0]["also"] == {"x": "-inf"}


def test_a_numpy_number_is_a_number(path):
    numpy = pytest.importorskip("numpy")
    with Journal(path, 1) as journal:
        journal.append("x", a=numpy.float32(1.5), b=numpy.int64(3), c=numpy.float32("nan"))
    [event] = read(path)
    assert (event["a"], event["b"], event["c"]) == (1.5, 3, "nan")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(min_size=1).filter(lambda k: k not in KEYS), VALUES, max_size=4))
def test_any_fact_is_one_line(tmp_path_factory, facts):
    path = tmp_path_factory.mktemp("j") / "j"
    with Journal(path, 1) as journal:
        journal.append("x", **facts)
        journal.append("y")
    assert [event["event"] for event in read(path)] == ["x", "y"]
    assert set(read(path)[0]) == {*KEYS, *facts}


KEYS = {"event", "at", "attempt"}


def test_a_fact_cannot_hide_what_every_line_says(path):
    with Journal(path, 1) as journal:
        with pytest.raises(ValueError, match="attempt"):
            journal.append("x", attempt=5)
        with pytest.raises(ValueError, match="loss"):
            journal.append(step_report(1), loss=0.0)


# -- kills -------------------------------------------------------------------------------------


def test_cut_at_any_byte_the_journal_reads_and_goes_on(path):
    """Negative control inside: naively parsing every line fails at almost every cut."""
    write_steps(path, 1, range(1, 4))
    whole, lines = path.read_bytes(), read(path)
    naive_failures = 0
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        assert read(path) == lines[:complete]
        try:
            [json.loads(line) for line in whole[:cut].decode().splitlines()]
        except ValueError:
            naive_failures += 1
        assert next_attempt(path) in (1, 2)
        with Journal(path, 2) as journal:
            journal.append("attempt")
            assert journal.cut_bytes == cut - whole.rfind(b"\n", 0, cut) - 1
        after = scan(path)
        assert after.events[:-1] == lines[:complete] and after.events[-1]["attempt"] == 2
        assert after.damaged_lines == after.torn_bytes == 0
    assert naive_failures > 0.9 * len(whole)


def test_a_last_line_of_zeros_after_a_power_loss_is_cut(path):
    write_steps(path, 1, [1])
    with path.open("ab") as file:
        file.write(bytes(100) + b"\n" + bytes(50))
    assert scan(path).torn_bytes == 50 and scan(path).damaged_lines == 1
    with Journal(path, 2) as journal:
        assert journal.cut_bytes == 151
    assert len(read(path)) == 2 and scan(path).damaged_lines == 0


def test_a_damaged_line_in_the_middle_is_skipped_and_counted(path):
    write_steps(path, 1, range(1, 6))
    lines = path.read_bytes().split(b"\n")
    lines[2] = b'{"event":"step","at":"' + b"\xff\xfe"
    lines[3] = b"[1, 2]"
    path.write_bytes(b"\n".join(lines))
    assert [e["step"] for e in read_events(path, {"step"})] == [1, 4, 5]
    assert scan(path).damaged_lines == 2
    with Journal(path, 2) as journal:
        assert journal.cut_bytes == 0


def test_a_torn_line_longer_than_a_block_is_cut(path):
    write_steps(path, 1, [1])
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * 200_000)
    with Journal(path, 2) as journal:
        assert journal.cut_bytes == 200_000
    assert path.read_bytes() == whole


@pytest.mark.parametrize("short", [0, 7])
def test_on_a_full_disk_the_journal_ends_with_its_last_whole_line(path, monkeypatch, short):
    write = os.write

    def full(fd, data):
        if short:
            return write(fd, data[:short])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(path, 1) as journal:
        journal.append("a")
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageFull, match="journal"):
            journal.append("b")
        monkeypatch.undo()
        journal.append("c")
    assert [e["event"] for e in read(path)] == ["a", "c"] and scan(path).damaged_lines == 0


# -- reading -----------------------------------------------------------------------------------


def test_no_journal_is_no_events(path):
    assert read(path) == [] and read_events(path, {"step"}) == [] and next_attempt(path) == 1


def test_named_events_are_found_whoever_wrote_the_line(path):
    write_steps(path, 1, [1, 2])
    with path.open("a") as file:
        file.write('{"at": "2026", "event": "step", "step": 3}\n{"event":"steps"}\n')
    assert [e["step"] for e in read_events(path, {"step"})] == [1, 2, 3]
    assert len(read_events(path, {"step", "attempt"})) == 4


def test_reading_named_events_parses_only_those(path, monkeypatch):
    """100,000 steps: measured 0.72 s for all, 0.06 s for the attempts only (one core)."""
    write_steps(path, 1, range(1, 2001))
    parsed, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(1) or loads(text))
    assert len(read_events(path, {"attempt"})) == 1
    assert len(parsed) == 1


def test_attempts_never_share_a_number(path):
    for attempt in (1, 2, 3):
        assert next_attempt(path) == attempt
        with Journal(path, attempt) as journal:
            journal.append("attempt", text='{"event":"x","at":"","attempt":99}')
    path.write_bytes(path.read_bytes() + b'{"event":"attempt","at":"2026","attempt":4,"ho')
    assert next_attempt(path) == 5


def test_the_timeline_holds_each_step_once_as_it_finally_stands(path):
    write_steps(path, 1, range(1, 11))
    write_steps(path, 2, range(7, 9), restored_step=6)  # dies at 8
    write_steps(path, 3, range(7, 13), restored_step=6)
    steps = timeline(read(path))
    assert [e["step"] for e in steps] == list(range(1, 13))
    assert [e["attempt"] for e in steps] == [1] * 6 + [3] * 6


def test_going_back_drops_what_came_after_even_if_it_is_not_reached_again(path):
    write_steps(path, 1, range(1, 11))
    write_steps(path, 2, [4], restored_step=3)
    assert [e["step"] for e in timeline(read(path))] == [1, 2, 3, 4]
    assert len(read_events(path, {"step"})) == 11  # the naive curve has a step twice


def test_an_attempt_from_scratch_drops_everything_before(path):
    write_steps(path, 1, range(1, 4))
    write_steps(path, 2, [1], restored_step=None)
    assert [(e["step"], e["attempt"]) for e in timeline(read(path))] == [(1, 2)]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)), max_size=8))
def test_the_timeline_of_any_restarts_is_one_unbroken_row(restarts):
    events, reached = [], 0
    for at, length in restarts:
        restored = min(at, reached)
        events.append({"event": "attempt", "restored_step": restored})
        events += [{"event": "step", "step": restored + k} for k in range(1, length + 1)]
        reached = restored + length
    assert [e["step"] for e in timeline(events)] == list(range(1, reached + 1))
