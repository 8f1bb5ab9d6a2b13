"""Leaving in two steps: one signal ends the waiting for a bucket, one more ends the process; either
way the journal has its lines, and the lease is given back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from fake_bucket import saved
from headway.api import train
from headway.bucket import leased
from headway.checkpoint import CheckpointStore
from headway.config import Upload
from headway.records import StopReason
from headway.show import Quiet
from headway.signals import asked_to_leave
from headway.upload import Remote, acquire, uploader
from headway.upload.lease import read
from headway.uploading import Uploading
from toy import toy_config


class Impatient(Quiet):
    """Sends SIGINT at a step, and when it is told that the run waits for its bucket."""

    def __init__(self, at_step: int = -1) -> None:
        self.lines: list[str] = []
        self.at_step = at_step
        self.gate = threading.Event()

    def step(self, report: Any, plan: Any, cost_usd: float | None) -> None:
        if report.step == self.at_step:
            os.kill(os.getpid(), signal.SIGINT)

    def say(self, what: str) -> None:
        self.lines.append(what)
        if what.startswith("waiting for the bucket"):
            os.kill(os.getpid(), signal.SIGINT)
        if what.startswith("NOT IN THE BUCKET"):
            self.gate.set()


@pytest.mark.parametrize(("at_step", "ends"), [(-1, StopReason.FINISHED), (3, StopReason.SIGNAL)])
def test_a_signal_while_waiting_for_the_bucket_ends_the_waiting_and_not_the_process(
    tmp_path, monkeypatch, at_step, ends
):
    show, real = Impatient(at_step), uploader.send

    def late(*args: Any, **more: Any) -> bool:
        assert show.gate.wait(60)
        return real(*args, **more)

    monkeypatch.setattr(uploader, "send", late)
    before = signal.getsignal(signal.SIGINT)
    assert train(toy_config(tmp_path, upload={"to": str(tmp_path / "bucket")}), show=show) is ends
    assert signal.getsignal(signal.SIGINT) is before
    assert any(line.startswith("NOT IN THE BUCKET") for line in show.lines)
    last = json.loads((tmp_path / "run/journal.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["reason"]) == ("stop", ends.value)
    holder, _ = read(Remote(str(tmp_path / "bucket/run")))
    assert holder and holder.released


def test_the_second_signal_while_waiting_ends_the_process(tmp_path):
    code = (
        "import os, signal\nfrom headway.signals import asked_to_leave\n"
        "with asked_to_leave() as leaving:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    assert leaving()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    raise SystemExit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 75 and "leaving now" in done.stderr


def test_nobody_asks_to_leave_off_the_main_thread():
    found: list[bool] = []

    def look() -> None:
        with asked_to_leave() as leaving:
            found.append(leaving())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.parametrize("hangs", [False, True])
def test_what_is_to_be_done_before_leaving_at_once_is_done_and_is_not_waited_for_long(
    tmp_path, hangs
):
    """The newest first; one that hangs does not keep the process."""
    code = (
        "import os, signal, sys, threading, time\nfrom pathlib import Path\n"
        "from headway.signals import Signals\n"
        "with Signals() as signals:\n"
        "    signals.arm()\n"
        f"    signals.before_leaving({'threading.Event().wait' if hangs else '(lambda: 1 / 0)'})\n"
        "    signals.before_leaving(lambda: Path(sys.argv[1]).write_text('done'))\n"
        "    for _ in range(2):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    raise SystemExit(1)\n"
    )
    place = tmp_path / "done"
    command = [sys.executable, "-c", code, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75 and place.read_text() == "done", done.stderr


def impatient_wait(seconds: float) -> None:
    raise AssertionError("another machine would have to wait")


@pytest.mark.parametrize("leaves", [True, False])
def test_a_process_that_leaves_at_once_gives_its_lease_back(tmp_path, monkeypatch, leaves):
    """In the middle of an upload. Negative control: without it the next machine has to wait."""
    monkeypatch.setattr("headway.upload.lease.this_machine", lambda: "")
    reached, go = threading.Event(), threading.Event()
    real = uploader.send

    def late(*args: Any, **more: Any) -> bool:
        reached.set()
        assert go.wait(60)
        return real(*args, **more)

    monkeypatch.setattr(uploader, "send", late)
    run, remote = tmp_path / "run", Remote(str(tmp_path / "bucket/run"))
    saved(run, 1)
    section = Upload(to=str(tmp_path / "bucket"))
    with leased(remote, section, 1, lambda line: None) as lease:
        here = Uploading(section, remote, lease, run)
        here.attempt()
        here.begin(CheckpointStore(run, attempt="reader").checkpoints(), {})
        assert reached.wait(60)
        if leaves:
            here.leave()
            assert acquire(Remote(remote.url), seconds=60, wait=impatient_wait).token == 2
        else:
            with pytest.raises(AssertionError, match="have to wait"):
                acquire(Remote(remote.url), seconds=60, wait=impatient_wait)
        go.set()
        here.close()
    sent = list((tmp_path / "bucket/run").rglob("manifest.json"))
    assert not (leaves and sent), "what was cut is not committed"
