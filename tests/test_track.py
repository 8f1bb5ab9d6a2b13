"""Trackers are fed from the journal: each step once, whatever is killed, and nothing waits."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from headway.checks import tracker_findings
from headway.cli import build_app
from headway.config import RunConfig, Track, fingerprint, load_config
from headway.config.track_section import TensorBoard, Wandb
from headway.errors import ConfigError, RemoteError, RunLocked
from headway.evals import brief, write
from headway.journal import Journal, Tail, read, read_events
from headway.lock import RunLock
from headway.records import Evaluation, Picture, RowLoss, StepReport
from headway.track import Back, Feed, Measurement, Note, Past, Row, Sent, Sink, feed, translate
from headway.track.tables import as_markdown, pictures, table
from headway.tracking import about, drained, fed, tracking
from toy import toy_config
from tracked import (
    ABOUT,
    Disk,
    Killed,
    ListSink,
    NaiveSink,
    ServerSink,
    measured,
    raw_scalars,
    single,
    standing,
    tensorboard_scalars,
    wandb_folders,
    wandb_history,
    wandb_records,
)


def report(step: int, loss: float, **more: Any) -> StepReport:
    facts: dict[str, Any] = {"learning_rate": 1e-3, "grad_norm": 1.0, "weight": 4.0, "rows": 4}
    facts |= {"tokens": 400, "seconds": 0.5, "memory_bytes": 10**9}
    return StepReport(step=step, loss=loss, **(facts | more))


def evaluation(step: int, loss: float) -> Evaluation:
    worst = (RowLoss(row=3, loss=9.0, weight=1.0, shown={"prompt": "a|b\nc", "image": "../x.png"}),)
    return Evaluation(
        step=step, rows=5, weight=5.0, metrics={"loss": loss}, baselines={}, seconds=1, worst=worst
    )


class Trainer:
    """Writes the journal of a run with restarts. A redone step is the same unless it is told.

    Every fourth step is evaluated, and step 0; as in real runs, one that an attempt leaves behind
    is evaluated by the next.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "journal.jsonl"
        self.attempt, self.step, self.saved, self.twist = 0, 0, 0, 0
        self._known: set[int] = set()

    def do(self, choice: int) -> None:
        """0 to 5: a step; 6: one that is saved and, where it is to be evaluated, left to the next
        attempt; 7: a save; 8: an alert; 9: a restart; 10: one after which every third step comes
        out otherwise; 11: the end."""
        if choice in (9, 10) or self.attempt == 0:
            self.twist += choice == 10
            self.attempt, self.step = self.attempt + 1, self.saved
            self._known = {step for step in self._known if step <= self.saved}
            self._append("attempt", restored_step=self.saved)
            self._evaluate()
        if choice <= 6:
            self.step += 1
            loss = 1 / self.step + (self.twist if self.step % 3 == 0 else 0)
            self._append(report(self.step, loss), cost_usd=0.1, run_seconds=1.0)
            if choice != 6:
                self._evaluate()
        if choice in (6, 7):
            self.saved = self.step
        if choice == 6:
            self.do(9)
        elif choice == 8:
            self._append("alert", kind="loss_spike", level="warning", what="x", step=self.step)
        elif choice == 11:
            self._append("stop", reason="finished", step=self.step)

    def _evaluate(self) -> None:
        if self.step % 4 == 0 and self.step not in self._known:
            self._known.add(self.step)
            self._append(evaluation(self.step, 2 / (1 + self.step)))

    def _append(self, event: Any, /, **facts: Any) -> None:
        journal = Journal(self.path, self.attempt)
        journal.append(event, **facts)
        os.close(journal._fd)  # without waiting for the disk: nothing here is a power cut


def feed_once(journal: Path, sink: Sink, mark: Path) -> int:
    return feed(
        Feed(
            opened=lambda: Tail(journal),
            sink=lambda: sink,
            about=lambda: ABOUT,
            mark_file=mark,
            over=lambda: True,
            wait=lambda: None,
        )
    )


def rows_of(disk: Disk) -> list[tuple[int, float]]:
    return [(row.step, row.loss) for row in disk.rows if isinstance(row, Row)]


def measured_in(disk: Disk) -> list[tuple[int, float]]:
    return [(m.step, m.values["eval/loss"]) for m in disk.rows if isinstance(m, Measurement)]


CHOICES = st.lists(st.integers(0, 10), min_size=1, max_size=25)
LIVES = st.lists(st.tuples(CHOICES, st.none() | st.integers(1, 40)), min_size=1, max_size=6)
"""What training does, and at which call of the tracker the feeding process is then killed."""


def live_through(
    folder: Path, lives: list[tuple[list[int], int | None]], kind: type[ListSink]
) -> tuple[Disk, Path, int]:
    """Train, feed and kill, again and again; then end the run and feed the rest. Kills that fired.

    Feeding looks at the journal only now and then, as the real process does.
    """
    trainer, disk, kills = Trainer(folder), Disk(), 0
    for choices, kill_at in lives:
        for choice in choices:
            trainer.do(choice)
        try:
            feed_once(trainer.path, kind(disk, kill_at), folder / "mark.json")
        except Killed:
            kills += 1
    trainer.do(0)  # what was evaluated late goes with a row that comes after it
    trainer.do(11)
    feed_once(trainer.path, kind(disk), folder / "mark.json")
    return disk, trainer.path, kills


@pytest.mark.parametrize("kind", [ListSink, ServerSink])
def test_whatever_is_killed_a_tracker_ends_with_each_standing_step_once(
    tmp_path_factory: pytest.TempPathFactory, kind: type[ListSink]
) -> None:
    fired = []

    @settings(max_examples=80, deadline=None)
    @given(lives=LIVES)
    @example(lives=[([0] * 6, 12), ([10] + [0] * 6, None)])  # killed before anything was noted
    def holds(lives: list[tuple[list[int], int | None]]) -> None:
        disk, journal, kills = live_through(tmp_path_factory.mktemp("t"), lives, kind)
        fired.append(kills)
        assert rows_of(disk) == standing(journal)
        found = sorted(measured_in(disk))
        if kind is ListSink:
            assert found == measured(journal)
        else:  # one that came late may be lost in the instant of a kill; none is there twice
            assert set(found) <= set(measured(journal)) and len(set(found)) == len(found)

    holds()
    assert sum(fired) > 10, "the kills never fired"


def test_a_tracker_that_appends_what_comes_ends_with_steps_twice(tmp_path: Path) -> None:
    """Negative control: a restart that comes out otherwise, and a kill before the note."""
    lives: list[tuple[list[int], int | None]] = [([0, 0, 7, 0, 0], 9), ([10, 0, 0], None)]
    disk, journal, kills = live_through(tmp_path, lives, NaiveSink)
    steps = [step for step, _ in rows_of(disk)]
    assert kills == 1 and len(steps) > len(set(steps))
    assert rows_of(disk) != standing(journal)


def step_line(step: int, loss: float | str) -> dict[str, Any]:
    return {"event": "step", "step": step, "loss": loss}


def attempt_line(restored_step: int) -> dict[str, Any]:
    return {"event": "attempt", "restored_step": restored_step}


def kinds(told: list[Any]) -> list[tuple[str, int]]:
    return [(type(one).__name__, one.step) for one in told]


def test_a_step_that_is_done_again_and_the_same_is_not_sent_again() -> None:
    sent = Sent()
    for step in range(1, 6):
        assert kinds(sent.take(step_line(step, 1 / step))) == [("Row", step)]
    assert sent.take(attempt_line(2)) == []
    assert sent.take(step_line(3, 1 / 3)) == []
    assert kinds(sent.take(step_line(4, 7.0))) == [("Back", 3), ("Row", 4)]
    assert kinds(sent.take(step_line(5, 1 / 5))) == [("Row", 5)]


def test_within_its_tolerance_a_redone_step_stays_as_it_was() -> None:
    sent = Sent(tolerance=0.02)
    for loss, told in ((1.0, [("Row", 1)]), (1.01, []), (1.5, [("Back", 0), ("Row", 1)])):
        sent.take(attempt_line(0))
        assert kinds(sent.take(step_line(1, loss))) == told


def test_steps_of_an_attempt_that_never_came_again_are_taken_back_at_the_end() -> None:
    sent = Sent()
    for step in range(1, 6):
        sent.take(step_line(step, 1.0))
    assert sent.take({"event": "stop", "reason": "signal", "step": 3}) == []
    assert sent.take({"event": "stop", "reason": "finished", "step": 3}) == [Back(3)]


def test_a_refused_step_is_the_same_as_itself_and_another_than_a_number() -> None:
    sent = Sent()
    assert kinds(sent.take(step_line(1, "nan"))) == [("Row", 1)]
    assert sent.take(step_line(1, "nan")) == []
    assert kinds(sent.take(step_line(1, 2.0)))[0] == ("Back", 0)


def test_the_mapping_names_figures_alike_and_keeps_nan_and_cost() -> None:
    line = {"event": "step", "at": "1970-01-01T00:00:07+00:00", "step": 3, "loss": "nan"}
    line |= {"tokens": 100, "seconds": 0.5, "cost_usd": 0.2, "also": {"kl": 1}, "run_seconds": 36}
    row = translate(line)
    assert isinstance(row, Row) and row.at == 7 and row.values["train/loss"] != row.loss
    rest = {key: value for key, value in row.values.items() if key != "train/loss"}
    assert rest == {
        "train/kl": 1.0,
        "machine/step_seconds": 0.5,
        "machine/tokens_per_second": 200.0,
        "cost/usd": 0.2,
        "cost/hours": 0.01,
    }


@given(
    st.dictionaries(
        st.sampled_from(["event", "step", "at", "loss", "metrics", "kind", "what", "reason"]),
        st.none() | st.integers() | st.text() | st.sampled_from(["step", "evaluation", "alert"]),
    )
)
def test_an_event_of_any_shape_is_a_record_or_nothing(event: dict[str, Any]) -> None:
    assert isinstance(translate(event), Row | Measurement | Note | None)


def test_notes_come_once_and_again_only_where_all_is_made_again(tmp_path: Path) -> None:
    trainer, disk = Trainer(tmp_path), Disk()
    for choice in (0, 8, 0):
        trainer.do(choice)
    feed_once(trainer.path, ListSink(disk), tmp_path / "mark.json")
    for choice in (0, 8):
        trainer.do(choice)
    feed_once(trainer.path, ListSink(disk), tmp_path / "mark.json")
    assert [row.step for row in disk.rows if isinstance(row, Note)] == [1, 3]


def test_a_journal_of_another_run_in_its_place_is_fed_from_its_beginning(tmp_path: Path) -> None:
    trainer, disk = Trainer(tmp_path), Disk()
    for _ in range(5):
        trainer.do(0)
    feed_once(trainer.path, ListSink(disk), tmp_path / "mark.json")
    trainer.path.unlink()
    again = Trainer(tmp_path)
    again.do(0)
    feed_once(again.path, ListSink(disk), tmp_path / "mark.json")
    assert rows_of(disk) == [(1, 1.0)]


def test_what_a_tracker_lacks_comes_by_step() -> None:
    sent, past = Sent(), Past()

    def take(*events: dict[str, Any]) -> None:
        for event in events:
            for told in sent.take(event):
                past.take(told)

    measured_line = {"event": "evaluation", "metrics": {"loss": 3}}
    alert_line = {"event": "alert", "kind": "x", "what": "y", "step": 1}
    take({**measured_line, "step": 0}, step_line(1, 2), alert_line, step_line(2, 1))
    everything = [("Measurement", 0), ("Row", 1), ("Note", 1), ("Row", 2)]
    assert kinds(list(past.after(None))) == everything
    past.noted()
    take({**measured_line, "step": 2}, step_line(3, 1))
    assert kinds(list(past.after(2))) == [("Measurement", 2), ("Row", 3)]
    assert kinds(list(past.after(1))) == [("Row", 2), ("Measurement", 2), ("Row", 3)]
    take(attempt_line(1), step_line(2, 9))
    assert past.lowest == 1 and kinds(list(past.after(1))) == [("Row", 2)]


# ------------------------------------------------------------------ worst rows


def test_a_picture_outside_the_evaluations_folder_is_never_read(tmp_path: Path) -> None:
    import struct

    folder = tmp_path / "evals" / "step-00000005"
    folder.mkdir(parents=True)
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", 7, 9)
    for place in (folder / "in.png", tmp_path / "evals" / "x.png"):
        place.write_bytes(png)
    names = ["in.png", "../x.png", "/etc/passwd", "none.png", 5, None]
    rows = [{"row": 1, "shown": {"page": {"picture": name, "says": ""}}} for name in names]
    (folder / "worst.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    record = Measurement(5, 0.0, {}, [{"row": 1, "shown": {}}])
    assert [(p.name, *size) for p, *size in pictures(tmp_path, record)] == [("in.png", 7, 9)]


def test_the_pictures_that_an_evaluation_wrote_are_found_for_the_trackers(tmp_path: Path) -> None:
    from PIL import Image

    made = io.BytesIO()
    Image.new("L", (12, 5)).save(made, "PNG")
    picture = Picture(data=made.getvalue(), says="x.png")
    shown = {"page": picture, "parts": [picture, picture], "reference": "a"}
    worst = (RowLoss(row=3, loss=9.0, weight=1.0, shown=shown),)
    found = replace(evaluation(5, 1.0), worst=worst)
    write(tmp_path, found)
    told = [asdict(row) for row in brief(found).worst]  # as the journal keeps it: without pictures
    assert all({"page", "parts"}.isdisjoint(row["shown"]) for row in told)
    sizes = [size for _, *size in pictures(tmp_path, Measurement(5, 0.0, {}, told))]
    assert sizes == [[12, 5]] * 3


def test_a_table_has_a_column_for_whatever_any_row_shows() -> None:
    worst = [
        {"row": 1, "loss": 2.0, "shown": {"a": "x|y"}},
        {"row": 2, "loss": 1.0, "shown": {"b": [1]}},
    ]
    assert table(worst) == (["row", "loss", "a", "b"], [[1, 2.0, "x|y", ""], [2, 1.0, "", "[1]"]])
    assert as_markdown(worst).splitlines()[2] == "| 1 | 2.0 | x\\|y |  |"


# ------------------------------------------------------------------ TensorBoard's files


def test_tensorboard_files_hold_each_step_once_after_kills_restarts_and_other_losses(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    trainer = Trainer(tmp_path)
    for choices in ([0, 0, 7, 6, 0, 0], [9, 0, 0, 0], [10, 0, 7, 8, 0], [9, 0, 6, 0, 11]):
        for choice in choices:
            trainer.do(choice)
        fed("tensorboard", tmp_path, {})
    folder = tmp_path / "track" / "tensorboard"
    wanted = standing(trainer.path)
    assert [step for step, _ in wanted] == list(range(1, wanted[-1][0] + 1))
    assert tensorboard_scalars(folder, "train/loss") == single(wanted)
    assert tensorboard_scalars(folder, "eval/loss") == single(measured(trainer.path))


def test_tensorboard_rows_that_were_written_but_not_noted_are_cut_off(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer, mark = Trainer(tmp_path), tmp_path / "track" / "tensorboard.json"
    for _ in range(5):
        trainer.do(0)
    fed("tensorboard", tmp_path, {})
    noted = mark.read_text()
    for _ in range(5):
        trainer.do(0)
    fed("tensorboard", tmp_path, {})
    mark.write_text(noted)  # as if the process was killed before it could note it
    fed("tensorboard", tmp_path, {})
    folder = tmp_path / "track" / "tensorboard"
    assert raw_scalars(folder, "train/loss") == single(standing(trainer.path))


def test_without_the_cut_a_plain_reader_would_see_steps_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    pytest.importorskip("tensorboard")
    from headway.track.tensorboard_files import TensorBoardFiles

    monkeypatch.setattr(TensorBoardFiles, "_cut_back", lambda self, noted: noted.get("step"))
    trainer, mark = Trainer(tmp_path), tmp_path / "track" / "tensorboard.json"
    for _ in range(5):
        trainer.do(0)
    fed("tensorboard", tmp_path, {})
    noted = json.loads(mark.read_text())
    first = json.loads(mark.read_text()) | {"offset_bytes": 0, "noted": {"step": None}}
    mark.write_text(json.dumps(first))
    fed("tensorboard", tmp_path, {})
    assert noted["noted"]["step"] == 5
    assert len(raw_scalars(tmp_path / "track" / "tensorboard", "train/loss")) == 10


def test_tensorboard_files_that_were_deleted_are_made_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer = Trainer(tmp_path)
    for _ in range(4):
        trainer.do(0)
    fed("tensorboard", tmp_path, {})
    folder = tmp_path / "track" / "tensorboard"
    for file in folder.iterdir():
        file.unlink()
    trainer.do(0)
    fed("tensorboard", tmp_path, {})
    assert tensorboard_scalars(folder, "train/loss") == single(standing(trainer.path))


# ------------------------------------------------------------------ W&B, offline


def test_wandb_offline_is_one_folder_with_each_step_once_and_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = {"project": "p", "entity": None, "mode": None}
    trainer, names = Trainer(tmp_path), set()
    for choices in ([0, 0, 7, 8, 0, 0], [10, 0, 0, 0, 0, 7, 0, 11]):
        for choice in choices:
            trainer.do(choice)
        assert fed("wandb", tmp_path, options) == trainer.step
        (folder,) = wandb_folders(tmp_path)
        names.add(folder.name.rpartition("-")[2])
    assert names == {about(tmp_path).identity}
    history = wandb_history(folder)
    found = [(row["_step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert found == standing(trainer.path)
    assert [(r["eval/step"], r["eval/loss"]) for r in history if "eval/loss" in r] == measured(
        trainer.path
    )
    assert any("worst_rows" in str(row) for row in history)
    kinds = [record.WhichOneof("record_type") for record in wandb_records(folder)]
    assert kinds.count("alert") == 1
    before = folder.stat().st_mtime_ns
    fed("wandb", tmp_path, options)
    assert wandb_folders(tmp_path) == [folder] and folder.stat().st_mtime_ns == before


# ------------------------------------------------------------------ beside training

BOARD = Track(tensorboard=TensorBoard())
CLIENTS = {
    "hangs": "import ctypes\ndef init(**_): ctypes.PyDLL(None).sleep(1000)",
    "refuses": "def init(**_): raise ConnectionError('no answer from the server\\nmore')",
    "dies": "import os\ndef init(**_): os._exit(3)",
    "talks": "print('hello from a client', flush=True)\n"
    "def init(**_): raise ConnectionError('no answer from the server')",
}
"""Clients named ``wandb`` that are not what one wishes; the first holds the interpreter too."""


def client(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "clients").mkdir()
    settings = "\nclass Settings:\n    def __init__(self, **_): pass\n"
    (folder / "clients" / "wandb.py").write_text(text + settings)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'clients'}{os.pathsep}{before}")
    monkeypatch.syspath_prepend(str(folder / "clients"))


def train_tracked(run: Path, steps: int, said: list[str], *, until_said: bool = False) -> None:
    """A run's journal written inside ``tracking``; at its end a second is left for trackers."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("run: {name: run}\n")
    with Journal(run / "journal.jsonl", 1) as journal:
        journal.append("attempt", restored_step=0)
        with tracking(Track(wandb=Wandb()), run, journal, said.append, 1.0):
            for step in range(1, steps + 1):
                journal.append(report(step, 1 / step))
            if until_said:
                _until(lambda: bool(said))
            journal.append("stop", reason="finished", step=steps)


def _until(true: Any) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    assert true()


@pytest.mark.fault(74)
@pytest.mark.parametrize("kind", ["refuses", "talks"])
def test_a_tracker_that_is_away_is_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    client(tmp_path, CLIENTS[kind], monkeypatch)
    said: list[str] = []
    train_tracked(tmp_path / "run", 50, said, until_said=True)
    events = read(tmp_path / "run" / "journal.jsonl")
    warnings = [event["what"] for event in events if event["event"] == "warning"]
    assert len(warnings) == 1 and "wandb" in warnings[0]
    assert "ConnectionError: no answer from the server" in warnings[0] and "more" not in warnings[0]
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, 51))
    assert "headway track" in said[-1] and events[-1]["event"] == "stop"


@pytest.mark.fault(74)
@pytest.mark.parametrize("kind", ["hangs", "dies"])
def test_a_client_that_hangs_or_dies_ends_with_the_run_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    client(tmp_path, CLIENTS[kind], monkeypatch)
    said: list[str] = []
    train_tracked(tmp_path / "run", 50, said, until_said=kind == "dies")
    assert "headway track" in said[-1]
    with RunLock(tmp_path / "run" / "track" / "wandb.lock"):
        """Nobody feeds it any more."""


@pytest.mark.fault(75)
def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    (run / "track").mkdir(parents=True)
    (run / "track" / "tensorboard").write_text("a file where the folder should be")
    (run / "config.yaml").write_text("run: {name: run}\n")
    said: list[str] = []
    with Journal(run / "journal.jsonl", 1) as journal:
        journal.append("attempt", restored_step=0)
        with tracking(BOARD, run, journal, said.append, 1.0):
            journal.append(report(1, 1.0))
            _until(lambda: bool(said))
    assert (
        "FileExistsError" in said[0] and len(read_events(run / "journal.jsonl", {"warning"})) == 1
    )


def test_a_package_that_is_missing_starts_nothing_and_preflight_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = {"wandb": "no_such_package"}
    monkeypatch.setattr("headway.tracking.PACKAGES", packages)
    monkeypatch.setattr("headway.checks.PACKAGES", packages)
    section, said = Track(wandb=Wandb()), []
    with Journal(tmp_path / "journal.jsonl", 1) as journal:
        with tracking(section, tmp_path, journal, said.append):
            pass
    [found] = tracker_findings(section)
    assert said == [] and not (tmp_path / "track").exists()
    assert (found.level, found.fix) == ("warning", "pip install 'headway[track]'")


def test_a_run_without_trackers_starts_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", 1) as journal:
        with tracking(None, tmp_path, journal, lambda line: None):
            pass
    assert not (tmp_path / "track").exists() and drained([]) == []


TRAINER = """
import os, sys, time
from pathlib import Path
from headway.config import Track
from headway.journal import Journal
from headway.tracking import tracking
run = Path(sys.argv[1])
with Journal(run / "journal.jsonl", 1) as journal:
    journal.append("attempt", restored_step=0)
    with tracking(Track(tensorboard={}), run, journal, print):
        for step in range(1, 41):
            journal.append("step", step=step, loss=1 / step)
        print("written", flush=True)
        time.sleep(1000)
"""


def test_what_a_killed_trainer_wrote_still_gets_there(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "config.yaml").write_text("run: {name: run}\n")
    command = [sys.executable, "-c", TRAINER, str(tmp_path)]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert trainer.stdout is not None and trainer.stdout.readline() == b"written\n"
    trainer.send_signal(signal.SIGKILL)
    assert trainer.wait() == -signal.SIGKILL
    trainer.stdout.close()
    mark = tmp_path / "track" / "tensorboard.json"
    _until(lambda: mark.exists() and json.loads(mark.read_text())["ended"])
    found = tensorboard_scalars(tmp_path / "track" / "tensorboard", "train/loss")
    assert [step for step, _ in found] == list(range(1, 41))


def test_two_processes_never_feed_one_tracker(tmp_path: Path) -> None:
    with contextlib.suppress(OSError):
        (tmp_path / "track").mkdir()
    Trainer(tmp_path).do(0)
    code = (
        "import sys; from pathlib import Path; from headway.lock import RunLock\n"
        "with RunLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "track" / "tensorboard.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(RunLocked):
            fed("tensorboard", tmp_path, {})
        holder.communicate()


# ------------------------------------------------------------------ the config and the verb


def with_trackers(root: Path, track: list[Any]) -> RunConfig:
    return RunConfig(**{**toy_config(root).tree(), "track": track})


def test_trackers_are_names_or_sections_and_part_of_no_fingerprint(tmp_path: Path) -> None:
    plain = toy_config(tmp_path)
    named = with_trackers(tmp_path, ["tensorboard", {"wandb": {"project": "mine"}}])
    assert named.track is not None
    assert named.track.options() == {
        "tensorboard": {},
        "wandb": {"project": "mine", "entity": None, "mode": None},
    }
    assert fingerprint(plain) == fingerprint(named)
    named.save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == named
    assert load_config(tmp_path / "saved.yaml", ["track=[wandb]"]).track is not None


@pytest.mark.parametrize(
    ("given", "said"),
    [(["tensorbord"], "did you mean 'tensorboard'"), (["mlflow"], "known: tensorboard, wandb")],
)
def test_a_tracker_that_is_not_known_is_refused(
    tmp_path: Path, given: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        with_trackers(tmp_path, given)


def test_the_identity_of_a_run_is_the_same_in_a_copy_and_another_after_fresh(
    tmp_path: Path,
) -> None:
    first, copy, fresh = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    for folder in (first, fresh):
        Trainer(folder).do(0)
    copy.mkdir()
    (copy / "journal.jsonl").write_bytes((first / "journal.jsonl").read_bytes())
    (fresh / "journal.jsonl").write_text('{"event":"opening","at":"2027"}\n')
    identity = about(first).identity
    assert identity == about(copy).identity != about(fresh).identity
    assert len(identity) == 16


def test_headway_track_feeds_a_run_that_had_no_tracker(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer = Trainer(tmp_path / "run")
    for choice in (0, 0, 0, 11):
        trainer.do(choice)
    for _ in range(2):
        done = CliRunner().invoke(
            build_app(), ["track", str(tmp_path / "run"), "--to", "tensorboard"]
        )
        assert done.exit_code == 0 and "has step 3" in done.output, done.output
    found = tensorboard_scalars(tmp_path / "run" / "track" / "tensorboard", "train/loss")
    assert [step for step, _ in found] == [1, 2, 3]


def test_headway_track_without_a_tracker_says_which_there_are(tmp_path: Path) -> None:
    Trainer(tmp_path / "run").do(0)
    for words, said in (([], "--to tensorboard"), (["--to", "mlflow"], "the trackers are")):
        done = CliRunner().invoke(build_app(), ["track", str(tmp_path / "run"), *words])
        assert isinstance(done.exception, ConfigError) and said in str(done.exception)


def test_headway_track_says_in_a_line_that_a_tracker_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(tmp_path, CLIENTS["refuses"], monkeypatch)
    Trainer(tmp_path / "run").do(0)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    done = CliRunner().invoke(build_app(), ["track", str(tmp_path / "run"), "--to", "wandb"])
    assert isinstance(done.exception, RemoteError), done.output
    said = str(done.exception)
    assert "no answer from the server. " in said and "the same command sends the rest" in said
