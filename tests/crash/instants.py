"""Random instants: the n-th thing that can be seen from outside, and a random while after it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headway.journal import read_events, scan

JOURNAL = "journal.jsonl"


class Attempt(Protocol):
    """A process under test."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


@dataclass(frozen=True)
class Instant:
    """The ``count``-th new ``what`` of an attempt, and ``microseconds`` of busy work after it."""

    what: str
    count: int
    microseconds: int


def random_instant(draw: random.Random, journal_lines: int, saves: int) -> Instant:
    """Anywhere: from the attempt's first microsecond to its last save."""
    what = draw.choice(["start", "journal line", "journal line", "save", "save"])
    most = {"start": 1, "journal line": journal_lines, "save": saves}[what]
    longest = {"start": 150_000, "journal line": 30_000, "save": 25_000}[what]
    return Instant(what, draw.randint(1, most), draw.randrange(longest))


def kill_at(instant: Instant, attempt: Attempt, run: Path) -> bool:
    """Wait for the instant, then ``kill -9``; False if the attempt had ended before."""
    count = counter(instant.what, run)
    if not happens(lambda: count() >= instant.count, attempt):
        attempt.wait()
        return False
    until = time.perf_counter() + instant.microseconds / 1e6
    while time.perf_counter() < until:
        pass
    os.kill(attempt.pid, signal.SIGKILL)
    return attempt.wait() == -signal.SIGKILL


def happens(seen: Callable[[], bool], attempt: Attempt) -> bool:
    """Look until it is there, or the process is gone: a busy wait, because a nap could miss it."""
    while not seen():
        if attempt.poll() is not None:
            return False
    return True


def counter(what: str, run: Path) -> Callable[[], int]:
    """How many of something this attempt has made since now; "start" is always there."""
    if what == "start":
        return lambda: 1
    if what == "journal line":
        before = journal_lines(run)
        return lambda: journal_lines(run) - before
    old, new = set(names(run)), set[str]()

    def begun_or_committed() -> int:
        new.update(set(names(run)) - old)
        return len(new)

    return begun_or_committed


def journal_lines(run: Path) -> int:
    """Whole lines in the journal."""
    try:
        return (run / JOURNAL).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def names(run: Path, prefix: str = "") -> list[str]:
    """Entries of ``checkpoints/`` that begin so."""
    with contextlib.suppress(FileNotFoundError):
        return [name for name in os.listdir(run / "checkpoints") if name.startswith(prefix)]  # noqa: PTH208
    return []


def steps_on_disk(run: Path) -> list[int]:
    """Steps whose directory has its final name, whatever is in it."""
    return sorted(int(name[5:]) for name in names(run, "step-"))


def where_it_hit(run: Path, attempt: int) -> str:
    """What the attempt was doing when it was killed, by what it left behind."""
    mine = [event for event in scan(run / JOURNAL).events if event["attempt"] == attempt]
    steps = [event["step"] for event in mine if event["event"] == "step"]
    if any(event["event"] == "stop" for event in mine):
        return "after the last line"
    if not steps:
        return "before its first step"
    saved = set(steps_on_disk(run)) | {
        int(name.split("-")[2]) for name in names(run, f".partial-step-{steps[-1]:08d}")
    }
    evaluated = {e["step"] for e in mine if e["event"] == "evaluation"}
    due = evaluation_due(run, steps[-1]) and steps[-1] not in evaluated
    main = "in an evaluation" if due and steps[-1] in saved else "in a step"
    if names(run, ".partial-"):
        return f"{main} beside a save"
    return "in pruning" if names(run, ".trash-") else main


def evaluation_due(run: Path, step: int) -> bool:
    """Tests evaluate every fourth step and at the end, or not at all."""
    every = [e for e in read_events(run / JOURNAL, {"evaluation"}) if e["step"] == 0]
    last = [e["steps"] for e in read_events(run / JOURNAL, {"plan"})]
    return bool(every) and (step % 4 == 0 or step in last)
