"""The end of an attempt: what the bucket lacks is said, is an error where it is required, and the
newest save has its chance, whatever ended training."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from headway.api import train
from headway.errors import RemoteError, StorageFull
from headway.opening import opened
from headway.records import StopReason
from headway.run import train as train_loop
from headway.show import Quiet
from headway.upload import Remote, remote_checkpoints, uploader
from headway.upload.faults import Temporary
from headway.upload.sending import Unsendable
from toy import Cut, toy_config

STEPS = 6


class Said(Quiet):
    """Keeps the lines; opens ``gate`` at the first that holds ``opens``; dies at a step."""

    def __init__(self, opens: str = "", dies_at: int = -1) -> None:
        self.lines: list[str] = []
        self.gate = threading.Event()
        self.opens, self.dies_at = opens, dies_at

    def say(self, what: str) -> None:
        self.lines.append(what)
        if self.opens and self.opens in what:
            self.gate.set()

    def step(self, report: Any, plan: Any, cost_usd: float | None) -> None:
        if report.step == self.dies_at:
            raise Cut("the loss is NaN")

    def of(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]


def config(root: Path, **upload: Any):
    return toy_config(root, upload={"to": str(root / "bucket"), **upload})


def steps_in(bucket: Path) -> set[int]:
    found = remote_checkpoints(Remote(str(bucket / "run")))
    return {copy.step for copy in found if not copy.problems}


def gated(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    """Nothing is sent before the gate opens."""
    real = uploader.send

    def late(*args: Any, **more: Any) -> bool:
        assert said.gate.wait(60)
        return real(*args, **more)

    monkeypatch.setattr(uploader, "send", late)


def refused(*args: Any, **more: Any) -> bool:
    raise Unsendable("3 times the store held other bytes")


@pytest.mark.parametrize("required", [False, True])
def test_a_run_of_which_nothing_could_be_sent_is_finished_only_if_that_is_allowed(
    tmp_path, monkeypatch, required
):
    monkeypatch.setattr(uploader, "send", refused)
    said = Said()
    if required:
        with pytest.raises(RemoteError, match="other bytes") as caught:
            train(config(tmp_path, required=True), show=said)
        assert caught.value.exit_code == 69
    else:
        assert train(config(tmp_path), show=said) is StopReason.FINISHED
        assert f"{STEPS} (" in said.of("NOT IN THE BUCKET")[0]
    assert said.of("WARNING: upload of step") and said.of("NOT IN THE BUCKET")


def test_one_that_could_not_be_sent_is_made_good_by_a_newer_one(tmp_path, monkeypatch):
    real = uploader.send

    def not_the_first(parcel: Any, *args: Any, **more: Any) -> bool:
        return refused() if parcel.step < STEPS else real(parcel, *args, **more)

    monkeypatch.setattr(uploader, "send", not_the_first)
    said = Said()
    assert train(config(tmp_path), show=said) is StopReason.FINISHED
    assert steps_in(tmp_path / "bucket") == {STEPS}
    assert not any(f"step {STEPS}" in line for line in said.of("NOT IN THE BUCKET"))


@pytest.mark.parametrize("required", [False, True])
def test_a_drain_that_ran_out_of_time_is_an_error_where_the_bucket_is_required(
    tmp_path, monkeypatch, required
):
    real = Remote.put

    def busy(self, key, *args, **more):
        if key.startswith("checkpoints/"):
            raise Temporary("503")
        return real(self, key, *args, **more)

    monkeypatch.setattr(Remote, "put", busy)
    said = Said()
    one = config(tmp_path, required=required, drain_minutes=0.01, patience_minutes=60)
    if required:
        with pytest.raises(RemoteError, match=f"NOT IN THE BUCKET.*step.*{STEPS}") as caught:
            train(one, show=said)
        assert caught.value.exit_code == 69
    else:
        assert train(one, show=said) is StopReason.FINISHED
    assert len(said.of("NOT IN THE BUCKET")) == 1


def test_an_error_that_ends_training_leaves_the_newest_save_its_chance(tmp_path, monkeypatch):
    said = Said(opens="Cut ends training", dies_at=4)
    gated(monkeypatch, said)
    with pytest.raises(Cut):
        train(config(tmp_path), show=said)
    here = {int(p.name[5:]) for p in (tmp_path / "run/checkpoints").glob("step-*")}
    assert said.of("ends training") and max(steps_in(tmp_path / "bucket")) >= max(here) - 1


def test_an_error_that_ends_training_says_what_is_not_in_the_bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(uploader, "send", refused)
    said = Said(dies_at=4)
    with pytest.raises(Cut):
        train(config(tmp_path), show=said)
    assert len(said.of("NOT IN THE BUCKET")) == 1


def test_a_last_save_without_room_on_disk_does_not_keep_the_others_from_the_bucket(
    tmp_path, monkeypatch
):
    said = Said(opens="waiting for the bucket")
    gated(monkeypatch, said)
    real = shutil.disk_usage

    def full_at_the_end(path: Any) -> Any:
        saved = list((tmp_path / "run/checkpoints").glob("step-*"))
        return real(path) if len(saved) < STEPS - 1 else type("Usage", (), {"free": 0})

    monkeypatch.setattr("headway.checkpoint.store.shutil.disk_usage", full_at_the_end)
    with pytest.raises(StorageFull) as caught:
        train(config(tmp_path), show=said)
    assert caught.value.exit_code == 77
    assert max(steps_in(tmp_path / "bucket")) == STEPS - 1 and said.gate.is_set()


def test_what_was_skipped_is_said_once_a_step_in_plain_words(tmp_path, monkeypatch):
    said = Said(opens="waiting for the bucket")
    gated(monkeypatch, said)
    assert train(config(tmp_path), show=said) is StopReason.FINISHED
    lines = said.of("was not sent: newer saves came")
    assert lines and len(lines) == len({*lines})
    assert STEPS in steps_in(tmp_path / "bucket")


def test_an_uploader_that_died_is_said_while_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(uploader, "send", lambda *args, **more: 1 / 0)
    said = Said()
    assert train(config(tmp_path), show=said) is StopReason.FINISHED
    assert said.of("ZeroDivisionError")[0].startswith("WARNING: upload of step")


def test_the_end_does_not_wait_for_the_bucket_beyond_a_limit(tmp_path, monkeypatch):
    """The last save is on this disk; waiting for a slow bucket would cost what is not there."""
    said = Said()
    gated(monkeypatch, said)
    with opened(config(tmp_path), show=said) as run:
        monkeypatch.setattr(run.limits, "passed", lambda ahead=0.0: None if ahead else "budget")
        assert train_loop(run) is StopReason.FINISHED
        said.gate.set()
    [line] = said.of("NOT IN THE BUCKET: step")
    assert f"step {STEPS}" in line or f", {STEPS}" in line
