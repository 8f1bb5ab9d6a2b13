"""W&B online, against a server on this machine: each step once, whatever is killed or away."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import test_track
from fake_wandb import HOST, FakeWandb, fake_wandb
from headway.journal import read
from headway.records import Evaluation
from headway.tracking import about
from test_track import Trainer, evaluation, train_tracked
from tracked import measured, standing

pytest.importorskip("wandb")


def without_rows(step: int, loss: float) -> Evaluation:
    """A table of worst rows goes by W&B's artifacts, which the server here has not."""
    return replace(evaluation(step, loss), worst=())


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account of whoever runs the tests, and nothing left in their folders."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(test_track, "evaluation", without_rows)
    yield


def tracker(run: Path, url: str) -> subprocess.Popen[bytes]:
    """``headway track`` beside this process, in a group of its own."""
    command = [sys.executable, "-m", "headway.cli", "track", str(run), "--to", "wandb"]
    return subprocess.Popen(
        command,
        env={**os.environ, "WANDB_BASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def tracked(run: Path, server: FakeWandb) -> str:
    """Feed the server to the end; what was said."""
    process = tracker(run, server.url)
    said = process.communicate(timeout=100)[0].decode()
    assert process.returncode == 0, said
    return said


def losses(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row]


@pytest.mark.usefixtures("at_home")
def test_a_server_has_each_step_once_however_often_the_tracker_was_killed(tmp_path: Path) -> None:
    run, killed = tmp_path / "run", 0
    trainer = Trainer(run)
    (run).mkdir()
    (run / "config.yaml").write_text("run: {name: support-bot}\n")
    with fake_wandb() as server:
        for choices in ([0] * 5 + [7], [9, 0, 0, 0, 8, 7], [0, 0, 0]):
            for choice in choices:
                trainer.do(choice)
            identity = about(run).identity
            had = len(server.rows(identity))
            process = tracker(run, server.url)
            assert server.wait_for_rows(identity, had + 1)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
        trainer.do(0)
        trainer.do(11)
        assert f"has step {trainer.step}" in tracked(run, server)
        rows = server.rows(identity)
        assert losses(rows) == standing(trainer.path)
        found = [(row["eval/step"], row["eval/loss"]) for row in rows if "eval/loss" in row]
        assert set(found) <= set(measured(trainer.path)) and len(set(found)) == len(found)
        assert set(server.history) == {identity} and server.names[identity] == "support-bot"
        tracked(run, server)
        assert server.rows(identity) == rows, "fed again, there is nothing new"
    assert killed, "no kill fired"


@pytest.mark.usefixtures("at_home")
def test_a_run_that_goes_another_way_goes_on_as_a_second_run_of_its_group(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    trainer = Trainer(run)
    with fake_wandb() as server:
        for choice in (0, 0, 7, 0, 0):
            trainer.do(choice)
        tracked(run, server)
        for choice in (10, 0, 0, 11):
            trainer.do(choice)
        tracked(run, server)
        first = about(run).identity
        assert set(server.history) == {first, f"{first}-2"}
        assert losses(server.rows(f"{first}-2")) == standing(trainer.path)
        assert server.names[f"{first}-2"].endswith(" (2)") and len({*server.groups.values()}) == 1
        assert any(alert.startswith("roll back") for alert in server.alerts)


@pytest.mark.usefixtures("at_home")
def test_a_server_that_cannot_be_reached_costs_nothing_and_is_fed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://{HOST}:{port}")
    run, said = tmp_path / "run", list[str]()
    train_tracked(run, 50, said)
    journal = run / "journal.jsonl"
    assert [step for step, _ in standing(journal)] == list(range(1, 51))
    assert read(journal)[-1]["event"] == "stop"
    assert "wandb" in said[-1] and f"`headway track {run}` sends it later" in said[-1]
    with fake_wandb(port) as server:
        tracked(run, server)
        assert losses(server.rows(about(run).identity)) == standing(journal)
