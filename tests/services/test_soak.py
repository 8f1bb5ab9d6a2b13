"""A soak: one run, one bucket in a real store, twenty faults of every kind, and the same end.

Faults strike at random steps: the trainer is killed (and loses its machine), the server is killed,
answers 503, resets, loses its replies, is slow, and the disk fills up for a while.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headway.journal import read, read_events, timeline
from services.places import Place
from services.proxy import Fault

sys.path.append(str(Path(__file__).parents[1] / "crash"))

import attempts
from attempts import Fork, Forks, run_of, said, toy_run
from disks import tmpfs
from instants import JOURNAL, happens, journal_lines
from oracle import Outcome, judge_end

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

FAULTS = {
    "trainer killed": 5,
    "trainer killed, its disk lost": 2,
    "server killed": 4,
    "503 for a while": 3,
    "connections reset": 2,
    "replies lost": 1,
    "slow line": 1,
    "disk full": 2,
}
SECTIONS: dict[str, Any] = {
    "train": {"horizon": {"steps": 400}},
    "evaluate": {"every_steps": 40, "worst_rows": 2},
    "checkpoint": {"every_steps": 4, "keep_last": 2, "keep_best": 1},
    "task": {"buffer_values": 250_000, "step_seconds": 0.06},
}


class Soak:
    """One run under fire: an attempt is always running, as a supervisor would see to it."""

    def __init__(self, forks: Forks, config: Path, place: Place, disk: Path) -> None:
        self.forks, self.config, self.place, self.disk = forks, config, place, disk
        self.run = run_of(config)
        self.draw = random.Random(20)
        self.added: list[Fault] = []
        self.struck: Counter[str] = Counter()
        self.exits: Counter[int] = Counter()
        self.began = time.monotonic()
        self.started = 0
        self.attempt: Fork
        self.start()

    def start(self) -> None:
        """One more attempt."""
        self.started += 1
        self.attempt = self.forks.start(self.config)

    def strike(self, what: str) -> None:
        """One fault, some steps from now."""
        self.after_steps(self.draw.randint(3, 9))
        assert self.place.proxy and self.place.server
        if what.startswith("trainer killed"):
            self.killed(loses_its_disk="lost" in what)
        elif what == "server killed":
            self.place.server.kill()
            self.after_steps(self.draw.randint(1, 6))
            os.kill(self.attempt.pid, signal.SIGSTOP)  # a server's start takes hundreds of steps
            self.place.server.start()
            os.kill(self.attempt.pid, signal.SIGCONT)
        elif what == "disk full":
            self.fill()
        else:
            kind, more = {
                "503 for a while": ("status", {"times": 8, "status": 503}),
                "connections reset": ("reset_request", {"times": 4, "at": 100, "method": "PUT"}),
                "replies lost": ("lost_reply", {"times": 2, "method": "PUT"}),
                "slow line": ("slow", {"times": 3, "method": "PUT", "bytes_per_second": 5e5}),
            }[what]
            self.added.append(self.place.proxy.add(kind, **more))  # type: ignore[arg-type]
            fault = self.added[-1]
            self.wait(lambda: fault.fired > 0)
        self.struck[what] += 1

    def killed(self, *, loses_its_disk: bool) -> None:
        """The attempt, or the next, where an earlier fault had just ended it by itself."""
        os.kill(self.attempt.pid, signal.SIGKILL)
        while (code := self.attempt.wait()) != -signal.SIGKILL:
            self.exits[code] += 1
            assert code not in (0, 1), said(self.config)[-3000:]
            self.start()
            self.after_steps(1)
            os.kill(self.attempt.pid, signal.SIGKILL)
        if loses_its_disk:
            shutil.rmtree(self.run)
        self.start()

    def fill(self) -> None:
        """Until a save was skipped, or refused at the end of an attempt."""
        before = len(read_events(self.run / JOURNAL, {"save_skipped"}))
        ballast = self.disk / "ballast"
        free = os.statvfs(self.disk).f_bavail * os.statvfs(self.disk).f_frsize
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - (150 << 20))
        self.wait(lambda: len(read_events(self.run / JOURNAL, {"save_skipped"})) > before)
        ballast.unlink()

    def after_steps(self, count: int) -> None:
        """Wait for so many new lines of the journal."""
        before = journal_lines(self.run)
        self.wait(lambda: not before <= journal_lines(self.run) < before + count)

    def wait(self, seen: Callable[[], bool]) -> None:
        """Until it is seen; an attempt that ends meanwhile is followed by another."""

        def seen_by_and_by() -> bool:
            time.sleep(0.01)
            return seen()

        while not happens(seen_by_and_by, self.attempt):
            code = self.attempt.wait()
            self.exits[code] += 1
            assert code not in (0, 1), said(self.config)[-3000:]
            self.start()

    def ends(self) -> float:
        """The wall seconds of it all, once the run has finished."""
        for _ in range(5):
            if self.attempt.wait() == 0:
                return time.monotonic() - self.began
            self.exits[self.attempt.wait()] += 1
            self.start()
        raise AssertionError(said(self.config)[-3000:])


def useful_seconds(run: Path) -> float:
    """Of the steps that the run consists of: those done again are counted once."""
    return sum(step["seconds"] for step in timeline(read(run / JOURNAL)))


def state_hash(run: Path) -> str:
    """SHA-256 of all files of the newest checkpoint but its manifest, which holds times."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    digest = hashlib.sha256()
    for file in sorted(newest.rglob("*")):
        if file.is_file() and file.name != "manifest.json":
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def test_twenty_random_faults_end_with_the_state_of_a_run_that_met_none(
    place_of: Callable[[str], Place],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = place_of("swift")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.setitem(attempts.ENVIRONMENT, name, os.environ[name])
    faults = [what for what, count in FAULTS.items() for _ in range(count)]
    random.Random(6).shuffle(faults)
    outcome, forks = Outcome(), Forks()
    try:
        began = time.monotonic()
        whole = toy_run(tmp_path / "whole", **SECTIONS)
        assert forks.finish(whole) == 0, said(whole)
        clean = useful_seconds(run_of(whole)) / (time.monotonic() - began)
        with tmpfs(tmp_path / "disk", "600m") as disk:
            upload = {"to": place.url, "keep_last": 2, "lease_seconds": 10}
            soak = Soak(forks, toy_run(disk, **SECTIONS, upload=upload), place, disk)
            for what in faults:
                soak.strike(what)
            wall = soak.ends()
            judge_end(soak.run, run_of(whole), outcome)
            same = state_hash(soak.run) == state_hash(run_of(whole))
            goodput = useful_seconds(soak.run) / wall
    finally:
        forks.close()
    with capsys.disabled():
        facts = {
            "faults": sum(soak.struck.values()),
            "attempts": soak.started,
            "other exits": dict(soak.exits),
            "seconds": round(wall),
            "goodput": round(goodput, 3),
            "goodput of the clean run": round(clean, 3),
        }
        sys.stdout.write(f"\nsoak: {json.dumps(facts)}\n")
    assert sum(soak.struck.values()) == 20 and all(fault.fired for fault in soak.added)
    assert same and outcome.clean, outcome
