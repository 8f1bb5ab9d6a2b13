"""``headway watch``: a run followed by its journal, which grows, breaks off and is replaced."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import fake_run
from headway.cli import build_app
from headway.cli.watch import log
from headway.errors import ConfigError
from headway.following import Following
from headway.journal import Tail, read
from headway.report.live import Beside, Live, flops_per_token
from headway.report.live_text import event_line, lines, printable, sparkline, step_line
from headway.report.summary import summarise
from headway.report.timeline import Event, timeline

NOW = fake_run.BEGAN + timedelta(hours=2)


def compact(events: list[dict[str, Any]]) -> bytes:
    """As the journal writes them: ``event`` first, no spaces."""
    ordered = [{"event": e["event"], "at": e["at"], "attempt": e["attempt"]} | e for e in events]
    return b"".join(json.dumps(e, separators=(",", ":")).encode() + b"\n" for e in ordered)


def write_run(run: Path, events: list[dict[str, Any]]) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "journal.jsonl").write_bytes(compact(events))
    return run / "journal.jsonl"


# ------------------------------------------------------------------ the tail of a journal


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 100_000), max_size=12), sparse=st.sampled_from([None, 7]))
def test_a_tail_gives_each_line_once_however_the_journal_grew(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], sparse: int | None
) -> None:
    path = tmp_path_factory.mktemp("tail") / "journal.jsonl"
    data = compact(fake_run.journal(steps=30, every=10))
    tail, found = Tail(path), []
    for end in [*sorted(cut % len(data) for cut in cuts), len(data)]:
        path.write_bytes(data[:end])
        grown = tail.read(sparse)
        assert not grown.anew
        found += grown.events
    assert found == read(path)  # so few lines are all late ones
    assert tail.offset_bytes == len(data)
    assert tail.read().events == []


def test_a_damaged_line_is_skipped_and_a_torn_one_waits(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"event":"a"}\nnot json\n[1]\n\n{"event":"b"}\n{"event":"c')
    tail = Tail(path)
    assert [e["event"] for e in tail.read().events] == ["a", "b"]
    with path.open("ab") as file:
        file.write(b'"}\n')
    assert [e["event"] for e in tail.read().events] == ["c"]


def test_a_torn_line_that_the_next_attempt_cuts_off_is_never_seen(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"event":"a"}\n{"event":"ste')
    tail = Tail(path)
    tail.read()
    path.write_bytes(b'{"event":"a"}\n{"event":"opening"}\n')
    grown = tail.read()
    assert not grown.anew and [e["event"] for e in grown.events] == ["opening"]


@pytest.mark.parametrize("how", ["renamed away", "written over", "cut"])
def test_another_journal_in_its_place_is_read_from_its_beginning(tmp_path: Path, how: str) -> None:
    path = tmp_path / "journal.jsonl"
    old, new = [{"event": f"old {n}"} for n in range(9)], [{"event": f"new {n}"} for n in range(30)]
    path.write_text("".join(json.dumps(e) + "\n" for e in old))
    tail = Tail(path)
    assert tail.read().events == old
    if how == "renamed away":
        path.rename(tmp_path / "aside")
        assert tail.read() == tail.read(), "not there just now: nothing is known of another yet"
    wanted = old[:4] if how == "cut" else new
    path.write_text("".join(json.dumps(e) + "\n" for e in wanted))
    grown = tail.read()
    assert grown.anew and grown.events == wanted


def test_a_tail_that_only_remembers_an_offset_would_mix_two_journals(tmp_path: Path) -> None:
    """Negative control: what is known of the bytes before the offset is what tells."""
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event":"old 1"}\n')
    tail = Tail(path)
    tail.read()
    path.write_text('{"event":"new 1"}\n{"event":"new 2"}\n')
    tail._known = b""
    assert [e["event"] for e in tail.read().events] == ["new 2"]


def test_of_many_steps_some_are_parsed_but_all_other_events_and_the_newest_steps(
    tmp_path: Path,
) -> None:
    events = fake_run.journal(steps=4000, every=500)
    path = write_run(tmp_path / "run", events)
    assert path.stat().st_size > 1_000_000
    found = Tail(path).read(sparse_steps=200).events
    whole = read(path)
    others = [e for e in whole if e["event"] != "step"]
    assert [e for e in found if e["event"] != "step"] == others
    steps = [e["step"] for e in found if e["event"] == "step"]
    assert len(steps) < 900 and steps[-300:] == list(range(3701, 4001))
    cut = [n for n, e in enumerate(found) if e["event"] == "attempt"][1]
    assert found[cut - 1]["step"] == 2320, "the last step of an attempt says how much is done again"


# ------------------------------------------------------------------ what the events come to


def made_up(choices: list[int]) -> list[dict[str, Any]]:
    """A journal with restarts, evaluations, saves and alerts where ``choices`` put them."""
    events: list[dict[str, Any]] = []
    step, attempt, saved, seconds = 0, 1, 0, 0.0

    def add(event: str, **facts: Any) -> None:
        at = (fake_run.BEGAN + timedelta(seconds=seconds)).isoformat()
        events.append({"event": event, "at": at, "attempt": attempt, **facts})

    add("attempt", restored_step=0, host="here", pid=1, hardware=fake_run.HARDWARE)
    add("plan", steps=1000, parameters=10, trainable=10)
    for choice in choices:
        seconds += 1
        if choice <= 6:
            step += 1
            facts = {"seconds": 1.0, "tokens": 100, "cost_usd": seconds / 10}
            add("step", step=step, loss=1 / step, run_seconds=seconds, **facts)
        elif choice == 7:
            add("evaluation", step=step, metrics={"loss": 2 / (1 + step)}, rows=3)
        elif choice == 8:
            saved = step
            add("save", step=step, bytes=10)
        elif choice == 9:
            add("alert", kind="loss_spike", step=step, what="x")
        elif choice == 10:
            add("alert", kind="gpu_idle", step=step, what="x")
        elif choice == 11:
            add("alert_over", kind="loss_spike", step=step)
        else:
            attempt, step = attempt + 1, saved
            add("attempt", restored_step=saved, host="here", pid=1, hardware=fake_run.HARDWARE)
    return events


@settings(max_examples=150, deadline=None)
@given(choices=st.lists(st.integers(0, 13), max_size=120), parts=st.integers(1, 5))
def test_a_view_says_what_the_timeline_of_the_whole_journal_says(
    choices: list[int], parts: int
) -> None:
    events = made_up(choices)
    live = Live()
    for n in range(parts):
        live.take(events[n * len(events) // parts : (n + 1) * len(events) // parts])
    view = live.view(NOW, Beside(host="here"))
    told = timeline(events)
    whole = summarise(told)
    assert (view.loss, view.attempt) == (whole.loss, whole.attempts)
    assert view.step == max(whole.step, told.attempts[-1]["restored_step"])
    assert (view.best_loss, view.best_step) == (whole.best_loss, whole.best_step)
    assert view.tokens_per_second == whole.tokens_per_second
    assert (view.cost_usd, view.redone_steps) == (whole.cost_usd, whole.redone_steps)
    assert [a["kind"] for a in view.alerts] == [a["kind"] for a in told.alerts]
    assert (view.saved or {}).get("step") == (told.saves[-1]["step"] if told.saves else None)
    assert list(view.losses) == [step["loss"] for step in told.steps]
    assert (view.state, view.reason) == (whole.state, whole.reason)


def test_a_view_that_forgets_no_step_at_a_restart_would_be_seen() -> None:
    """Negative control of the property above."""
    events = made_up([0, 0, 8, 0, 0, 12, 0])
    naive = Live()
    naive._forget = lambda after_step: None  # type: ignore[method-assign]
    naive.take(events)
    told = [step["loss"] for step in timeline(events).steps]
    assert list(naive.view(NOW, Beside()).losses) != told


def test_memory_is_bounded_and_the_curve_still_spans_the_run() -> None:
    live = Live()
    for step in range(1, 50_001):
        live.take([{"event": "step", "step": step, "loss": 1.0, "seconds": 1.0, "tokens": 1}])
    assert len(live._curve) <= 2048 and len(live._newest) <= 100
    assert (live._curve[0].step, live._curve[-1].step) == (1, 50_000)


def test_lines_of_another_program_change_nothing() -> None:
    live = Live()
    live.take(made_up([0, 0, 7, 8]))
    before = live.view(NOW, Beside())
    odd: list[Event] = [
        {"event": "step"},
        {"event": "step", "step": None},
        {"event": "evaluation", "step": 2, "metrics": 5},
        {"event": "attempt", "restored_step": "x"},
        {"event": 5},
    ]
    live.take(odd)
    after = live.view(NOW, Beside())
    assert (after.step, after.loss, after.saved) == (before.step, before.loss, before.saved)


def test_time_and_money_to_the_end_come_from_what_was_used_so_far() -> None:
    events = made_up([0] * 100)
    live = Live()
    live.take(events)
    view = live.view(NOW, Beside(writer_pid=1, host="here", budget_usd=50.0))
    assert view.step_seconds == pytest.approx(1.0)
    assert view.left_seconds == pytest.approx(900.0)
    assert view.cost_usd == pytest.approx(10.0) and view.end_usd == pytest.approx(100.0)
    cost = next(line for line in lines(view, NOW) if line.label == "cost")
    assert cost.mood == "warning" and "it will not be enough" in cost.text


def test_mfu_is_the_matrix_products_over_the_peak_of_all_gpus() -> None:
    events = made_up([0] * 5)
    events[0]["hardware"] = {"gpu": "NVIDIA X", "ranks": 2}
    live = Live()
    live.take(events)
    view = live.view(NOW, Beside(peak_flops_per_second={"NVIDIA X": 1e5}))
    assert flops_per_token(10, 10) == 60 and flops_per_token(10, 0) == 40
    assert view.mfu == pytest.approx(100 * 60 / 2e5)
    assert live.view(NOW, Beside()).mfu is None, "no peak, no share"


def test_a_run_of_another_machine_runs_while_it_speaks() -> None:
    live = Live()
    live.take(made_up([0, 0]))
    soon, late = fake_run.BEGAN + timedelta(seconds=60), fake_run.BEGAN + timedelta(hours=1)
    assert live.view(soon, Beside(host="there")).state == "running"
    assert live.view(late, Beside(host="there")).state == "dead"
    assert live.view(soon, Beside(host="here")).state == "dead", "here the lock decides"


def test_a_silence_is_said_when_it_is_long_for_this_run() -> None:
    live = Live()
    live.take(made_up([0] * 20))
    beside = Beside(writer_pid=1, host="here")
    assert live.view(fake_run.BEGAN + timedelta(seconds=50), beside).silent_seconds is None
    assert live.view(fake_run.BEGAN + timedelta(seconds=120), beside).silent_seconds == 100


def test_what_waits_for_the_bucket_is_counted() -> None:
    live = Live()
    at = {"at": NOW.isoformat(), "attempt": 1}
    live.take([{"event": "save", "step": n, "bytes": 1, **at} for n in (1, 2, 3)])
    assert live.view(NOW, Beside()).backlog is None
    live.take([{"event": "upload", "kind": "sent", "step": 1, **at}])
    live.take([{"event": "upload", "kind": "failed", "step": 2, "why": "503", **at}])
    assert live.view(NOW, Beside()).backlog == 2


# ------------------------------------------------------------------ in words


def test_a_sparkline_falls_where_the_loss_falls() -> None:
    drawn = sparkline([float(100 - n) for n in range(100)], width=8)
    assert drawn == "█▇▆▅▄▃▂▁"
    assert sparkline([1.0, 1.0]) == "▄▄" and sparkline([]) == ""


def test_text_of_a_journal_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2J\nb\x07") == "a\ufffd[2J b\ufffd"
    event = {"event": "alert", "kind": "x", "step": 1, "what": "\x1b[31mred", "level": "warning"}
    assert "\x1b" not in (event_line(event) or "")


def test_rows_that_were_cut_for_want_of_memory_are_said_to_whoever_watches() -> None:
    lack = {"event": "out_of_memory", "step": 3, "halvings": 1, "cut_tokens": 0}
    assert "CUT" not in (event_line(lack) or "")
    assert "rows CUT to 512 tokens" in (event_line({**lack, "cut_tokens": 512}) or "")


def test_watch_once_says_everything_that_is_known_of_a_finished_run(tmp_path: Path) -> None:
    run = fake_run.make_run(tmp_path)
    done = CliRunner().invoke(build_app(), ["watch", str(run), "--once"])
    assert done.exit_code == 0 and "\x1b" not in done.output
    found = {line.split()[0]: line for line in done.output.splitlines()[1:]}
    assert set(found) >= {
        "run",
        "step",
        "loss",
        "held-out",
        "rate",
        "speed",
        "memory",
        "cost",
        "saved",
    }
    assert "finished" in found["run"] and "600 of 600 (100%)" in found["step"]
    assert "MFU" in found["speed"], "the 4090 is in the price table"


def test_watch_of_a_run_that_is_not_there_says_where_runs_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="headway status"):
        Following(tmp_path / "none")


def test_a_log_tells_what_happens_while_it_happens_and_ends_with_the_run(tmp_path: Path) -> None:
    events = fake_run.journal(steps=60, every=10)
    cut = next(n for n, e in enumerate(events) if e["event"] == "step" and e["step"] == 15)
    path = write_run(tmp_path / "run", events[:cut])
    later = iter([events[cut : cut + 20], events[cut + 20 :]])

    def wait(seconds: float) -> None:
        with path.open("ab") as file:
            file.write(compact(next(later)))

    with locked(tmp_path / "run"):
        said = list(log(Following(tmp_path / "run"), 20.0, wait, past=True))
    assert "held-out loss" in said[0] or "saved step 10" in " ".join(said[:4])
    assert "saved step 60" in " ".join(said) and said[-2].startswith("step 60/60  loss ")
    assert said[-1] == "finished: nobody trains this run now"
    assert sum(line.startswith("saved step 20") for line in said) == 1


def test_following_reads_nothing_twice(tmp_path: Path) -> None:
    events = fake_run.journal(steps=200, every=50)
    path = write_run(tmp_path / "run", events[:-60])
    following = Following(tmp_path / "run")
    following.look()
    before = following.view()
    data = bytearray(path.read_bytes())
    data[:-300] = b"x" * (len(data) - 300)  # whoever looks there again finds no journal
    path.write_bytes(bytes(data) + compact(events[-60:]))
    following.look()
    after = following.view()
    assert (before.steps, after.steps, after.step) == (200, 200, 200)
    assert after.losses[: len(before.losses)] == before.losses


def test_a_fresh_run_in_its_place_is_followed_from_its_beginning(tmp_path: Path) -> None:
    write_run(tmp_path / "run", fake_run.journal(steps=60, every=10))
    following = Following(tmp_path / "run")
    following.look()
    (tmp_path / "run").rename(tmp_path / "run.replaced-1")
    following.look()
    write_run(tmp_path / "run", fake_run.journal(steps=70, every=10, cut=5, end=None)[:20])
    following.look()
    view = following.view()
    assert view.step < 30 and view.steps == 70 and view.state != "finished"


def test_a_log_line_of_a_step_is_the_line_that_training_shows(tmp_path: Path) -> None:
    write_run(tmp_path / "run", fake_run.journal(steps=60, every=10, end=None))
    following = Following(tmp_path / "run")
    following.look()
    line = step_line(following.view(datetime.now(UTC)))
    assert line.startswith("step 60/60  loss 1.") and "tok/s" in line and "$" in line


# ------------------------------------------------------------------ as a process


class locked:
    """The run's lock, held by a process of its own."""

    def __init__(self, run: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from headway.lock import RunLock\n"
            "with RunLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
        )
        self._command = [sys.executable, "-c", code, str(run / "lock")]

    def __enter__(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"held\n"

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()


def in_a_terminal(*words: str) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "headway.cli", "watch", *words]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    return process, ours


def chunks(fd: int) -> Iterator[bytes]:
    """What comes out of a terminal until nobody writes to it."""
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:  # EIO: the other side is gone
            return
        if not data:
            return
        yield data


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_the_picture_cleanly_with_exit_0(tmp_path: Path, number: int) -> None:
    write_run(tmp_path / "run", fake_run.journal(steps=60, every=10, end=None))
    with locked(tmp_path / "run"):
        process, terminal = in_a_terminal(str(tmp_path / "run"), "--refresh", "0.2")
        seen = b""
        for data in chunks(terminal):
            if b"held-out" not in seen and b"held-out" in seen + data:
                process.send_signal(number)
            seen += data
        assert process.wait(timeout=30) == 0
    os.close(terminal)
    assert b"Traceback" not in seen
    assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == 1, "the screen is given back"


def test_a_finished_run_is_shown_once_and_left(tmp_path: Path) -> None:
    write_run(tmp_path / "run", fake_run.journal(steps=60, every=10))
    process, terminal = in_a_terminal(str(tmp_path / "run"))
    seen = b"".join(chunks(terminal))
    os.close(terminal)
    assert process.wait(timeout=30) == 0 and b"finished" in seen.rpartition(b"\x1b[?1049l")[2]


def test_a_reader_that_goes_ends_it_without_a_word(tmp_path: Path) -> None:
    write_run(tmp_path / "run", fake_run.journal(steps=60, every=10))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "headway.cli", "watch", str(tmp_path / "run")]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
