from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import fake_run
from headway.cli.predict import shown
from headway.cli.status import status
from headway.errors import ConfigError
from headway.report.glance import HEAD_BYTES, TAIL_BYTES, head_and_tail, tail_events
from headway.report.summary import summarise
from headway.viewing import glance


def run_status(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(status)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_small(folder: Path, name: str, at: str, cost: float | None, reason: str | None) -> None:
    head: dict[str, Any] = {"at": at, "attempt": 1}
    events = [
        {"event": "attempt", **head, "restored_step": 0},
        {"event": "plan", **head, "steps": 10},
        {"event": "step", **head, "step": 4, "loss": 2.5, "tokens": 90, "seconds": 0.5}
        | {"cost_usd": cost},
    ]
    if reason:
        events.append({"event": "stop", **head, "reason": reason, "step": 4, "message": ""})
    fake_run.write_journal(folder / name, events)


def test_status_lists_runs_by_last_activity_with_what_they_spent(tmp_path: Path) -> None:
    write_small(tmp_path, "old", "2026-01-01T00:00:00Z", 1.5, "finished")
    write_small(tmp_path, "new", "2026-03-01T00:00:00Z", 0.25, None)
    write_small(tmp_path, "mid", "2026-02-01T00:00:00Z", None, "budget")
    (tmp_path / "not-a-run").mkdir()
    lines = run_status(tmp_path).output.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["new", "mid", "old"]
    assert "dead" in lines[1] and "stopped (budget)" in lines[2] and "finished" in lines[3]
    assert "4/10" in lines[1] and "$0.25" in lines[1] and "180" in lines[1]
    assert lines[-1] == "3 runs, $1.75 spent"


def test_status_finds_runs_in_folders_of_folders_and_looks_into_no_run(tmp_path: Path) -> None:
    write_small(tmp_path, "near", "2026-01-01T00:00:00Z", 1.0, "finished")
    write_small(tmp_path / "project", "far", "2026-01-02T00:00:00Z", 2.0, "finished")
    write_small(tmp_path / "near" / "track", "copy", "2026-01-03T00:00:00Z", 9.0, "finished")
    write_small(tmp_path / ".trash", "gone", "2026-01-03T00:00:00Z", 9.0, "finished")
    lines = run_status(tmp_path).output.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["project/far", "near"]
    assert lines[-1] == "2 runs, $3.00 spent"


def test_status_shows_the_first_words_of_an_error(tmp_path: Path) -> None:
    head: dict[str, Any] = {"at": "2026-01-01T00:00:00Z", "attempt": 1}
    error = {"reason": "error", "message": "rows.jsonl:7: not JSON\nmend it " + "x" * 90}
    events = [{"event": "opening", **head}, {"event": "stop", **head, **error}]
    fake_run.write_journal(tmp_path / "failed", events)
    assert "stopped: rows.jsonl:7: not JSON" in run_status(tmp_path).output
    assert "mend it" not in run_status(tmp_path).output


def test_predictions_cannot_steer_the_terminal() -> None:
    assert shown("a\n\tb\x1b[2Jc\x07 é") == "a\n\tb\ufffd[2Jc\ufffd é"


def test_status_as_json_is_for_programs(tmp_path: Path) -> None:
    write_small(tmp_path, "old", "2026-01-01T00:00:00Z", 1.5, "signal")
    told = json.loads(run_status(tmp_path, "--json").output)
    assert told["cost_usd"] == 1.5
    assert told["runs"][0]["state"] == "stopped" and told["runs"][0]["reason"] == "signal"
    assert told["runs"][0]["last_at"] == "2026-01-01T00:00:00+00:00"


def test_status_of_one_run_of_none_and_of_nothing(tmp_path: Path) -> None:
    assert "no run" in run_status(tmp_path).output
    write_small(tmp_path, "only", "2026-01-01T00:00:00Z", None, "finished")
    assert "only" in run_status(tmp_path / "only").output
    with pytest.raises(ConfigError, match="no such directory"):
        run_status(tmp_path / "none")


def test_an_empty_or_torn_journal_is_a_run_that_has_not_started(tmp_path: Path) -> None:
    for name, text in (("empty", ""), ("torn", '{"event":"att')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "journal.jsonl").write_text(text)
    assert run_status(tmp_path).output.count("not started") == 2


def test_a_held_lock_is_a_running_run_and_a_killed_holder_a_dead_one(tmp_path: Path) -> None:
    write_small(tmp_path, "run", "2026-01-01T00:00:00Z", None, None)
    code = (
        "import sys; from pathlib import Path; from headway.lock import RunLock\n"
        "with RunLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert glance(tmp_path / "run").state == "running"
        holder.kill()
        holder.wait()
        assert glance(tmp_path / "run").state == "dead"
        assert (tmp_path / "run" / "lock").stat().st_size > 0, "the file alone must not count"


def test_a_small_journal_is_read_whole_and_a_large_one_at_its_ends(tmp_path: Path) -> None:
    events = fake_run.journal(steps=60, every=10)
    small = fake_run.write_journal(tmp_path / "small", events)
    assert head_and_tail(small) == (events, True)
    events = fake_run.journal(steps=3000, every=500)
    large = fake_run.write_journal(tmp_path / "large", events)
    assert large.stat().st_size > 4 * (HEAD_BYTES + TAIL_BYTES)
    ends, whole = head_and_tail(large)
    assert not whole and len(ends) < len(events) / 3
    told, full = summarise(ends, whole=False), summarise(events)
    for same in ("state", "step", "steps", "loss", "cost_usd", "attempts", "tokens_per_second"):
        assert getattr(told, same) == getattr(full, same), same
    assert told.last_at == full.last_at and told.hardware == full.hardware
    assert told.tokens is None, "a total over a part would be wrong"


def test_the_middle_of_a_large_journal_is_not_read(tmp_path: Path) -> None:
    events = fake_run.journal(steps=3000, every=500)
    path = fake_run.write_journal(tmp_path / "run", events)
    data = bytearray(path.read_bytes())
    data[HEAD_BYTES + 1 : -TAIL_BYTES - 1] = b"x" * (len(data) - HEAD_BYTES - TAIL_BYTES - 2)
    path.write_bytes(data)
    assert glance(tmp_path / "run").step == 3000


@pytest.mark.parametrize("restored", [None, 1900, 2000])
def test_the_newest_evaluation_is_found_far_back_and_a_restart_behind_it_takes_it_back(
    tmp_path: Path, restored: int | None
) -> None:
    events = fake_run.journal(steps=2600, every=2000, cut=0, end=None)
    kept = [e for e in events if e["event"] != "evaluation" or e["step"] != 2600]
    if restored is not None:
        at = next(n for n, e in enumerate(kept) if e.get("step") == 2300)
        steps = [e for e in kept if e["event"] == "step" and e["step"] > restored]
        attempt = {**events[0], "attempt": 3, "restored_step": restored}
        kept = [*kept[:at], attempt, *steps]
    path = tmp_path / "run" / "journal.jsonl"
    path.parent.mkdir()
    path.write_text(
        "".join(json.dumps({"event": e["event"]} | e, separators=(",", ":")) + "\n" for e in kept)
    )
    told = glance(tmp_path / "run")
    assert told.tokens is None, "only its ends were read"
    if restored == 1900:
        assert told.held_out_loss is None, "what was taken back is not shown"
    else:
        assert told.held_out_loss == summarise(kept).held_out_loss


def test_the_stop_of_an_earlier_attempt_does_not_end_the_run() -> None:
    events = fake_run.journal(steps=60, every=10, end=None)
    cut = next(n for n, event in enumerate(events) if event["attempt"] == 2)
    stop = {"event": "stop", "attempt": 1, "reason": "signal", "step": 34, "message": ""}
    with_gap = [*events[:cut], stop, *events[cut + 12 :]]  # attempt 2's first lines were not read
    assert with_gap[cut + 1]["event"] != "attempt"
    assert summarise(with_gap, writer_pid=1, whole=False).state == "running"
    assert summarise([*events[:cut], stop]).state == "stopped"


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.text(max_size=60), max_size=20),
    tail_bytes=st.integers(1, 600),
    torn=st.sampled_from(["", '{"event": "st', '{"event": "step", "n": 1}']),
)
def test_the_tail_is_the_end_of_the_journal_and_never_empty(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], tail_bytes: int, torn: str
) -> None:
    events = [{"event": "step", "n": n, "text": text} for n, text in enumerate(texts)]
    path = fake_run.write_journal(tmp_path_factory.mktemp("run"), events)
    with path.open("a") as file:
        file.write(torn)
    tail = tail_events(path, tail_bytes)
    assert tail == events[len(events) - len(tail) :]
    assert bool(tail) == bool(events)


def test_a_line_that_is_not_json_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b'{"event":"a"}\n\xff\x00{\n[1]\n{"event":"b"}\n')
    events = [{"event": "a"}, {"event": "b"}]
    assert tail_events(tmp_path / "journal.jsonl") == events
