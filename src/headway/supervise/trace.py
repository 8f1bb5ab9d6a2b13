"""What a journal says of its newest attempt, and how an attempt's end is put into words."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVENTS = frozenset({"opening", "attempt", "plan", "step", "evaluation", "save", "stop"})
"""The journal events that ``trace`` reads."""
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """How far an attempt got."""

    attempt: tuple[int, str] | None = None
    """Its number and the instant of its first line; None: there was no attempt."""
    opened: bool = False
    """Data, model and state were there."""
    step: int = -1
    """The furthest step, the restored one if it made none; -1: it restored none."""
    saved: int = -1
    """The newest step it saved."""
    trained: bool = False
    """It made a step."""
    median_seconds: float = 0.0
    """Of the newest hundred steps, whichever attempt made them."""
    message: str | None = None
    """Its own last words, if an error ended it."""


def trace(events: Iterable[Event]) -> Trace:
    """The newest attempt in a journal's events, oldest first."""
    events = list(events)
    if not events:
        return Trace()
    number = events[-1]["attempt"]
    mine = [event for event in events if event["attempt"] == number]
    steps = [event["step"] for event in mine if event["event"] == "step"]
    restored = [event["restored_step"] or 0 for event in mine if event["event"] == "attempt"]
    saves = [event["step"] for event in mine if event["event"] == "save"]
    messages = [event.get("message") for event in mine if event["event"] == "stop"]
    seconds = [event["seconds"] for event in events if event["event"] == "step"][-100:]
    return Trace(
        attempt=(number, mine[0]["at"]),
        opened=any(event["event"] == "plan" for event in mine),
        step=max([*steps, *restored], default=-1),
        saved=max(saves, default=-1),
        trained=bool(steps),
        median_seconds=statistics.median(seconds) if seconds else 0.0,
        message=messages[-1] if messages else None,
    )


def how(code: int, hung: bool) -> str:
    """A return code as a person would say it; signals of a shell's children (128 + n) too."""
    hang = " after a hang" if hung else ""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"with exit code {code}{hang}"
    return f"by {name}" + (" (out of memory?)" if code in KILLED and not hung else hang)


def where(step: int) -> str:
    """``step 12``, or the start."""
    return f"step {step}" if step >= 0 else "the start, before any state was restored"


def advice(code: int, hung: bool, folder: Path) -> str:
    """What a person can do about a run that dies again and again at one place."""
    ways = []
    if hung:
        ways.append(f"see where it hangs: {folder / 'hang-*.txt'}")
    elif code in KILLED:
        ways.append(
            "if memory ran out, the same command with hardware.microbatch_size=1 or "
            "hardware.activation_checkpointing=true goes on"
        )
    else:
        ways.append("its output above says why; `headway data lint CONFIG` looks for bad rows")
    steps = sorted(path.name for path in folder.glob("checkpoints/step-*"))
    if len(steps) > 1:
        ways.append(f"roll back: headway train CONFIG --from {steps[-2]}")
    if steps:
        ways.append(
            "leave rows out or lower train.learning_rate in a new run that begins with these "
            f"weights: run.name=NEW run.warm_start={folder}@{steps[-1].removeprefix('step-')}"
        )
    return "What you can do: " + "; ".join(ways)
