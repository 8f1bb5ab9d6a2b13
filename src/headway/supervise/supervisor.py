"""Start, watch, judge, start again: the loop around attempts, and the silence within one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headway.supervise.child import STOPPED, Child, unused_hang_file
from headway.supervise.trace import Event, Trace, advice, how, trace, where

HEARTBEAT_FILE, RECORD_FILE = "heartbeat", "supervisor.jsonl"
ASKING = (signal.SIGTERM, signal.SIGINT)
HEARD = (*ASKING, signal.SIGHUP, signal.SIGCHLD)
NO_ANSWER, GAVE_UP = 69, 70
FINAL = frozenset({0, 2, 65, 76, 77, 78})
"""Exit codes that another attempt would only repeat. A full disk (77) is one: waiting costs money,
and only a person can make room."""
STACKS_SECONDS = 5.0
"""How long a child that hangs has to say where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often to try, and how long to wait."""

    tries: int = 3
    """Attempts in a row that end without a new step or save, after which it gives up."""
    outage_tries: int = 10
    """The same where the bucket did not answer (69): that may pass, and nothing is computed."""
    first_delay_seconds: float = 10.0
    longest_delay_seconds: float = 300.0
    hang_seconds: float | None = None
    """Silence that is a hang; None: half an hour or 20 median steps, whichever is longer."""
    opening_factor: float = 4.0
    """Before its first step an attempt may be silent so much longer: downloads, tokenising."""
    grace_seconds: float = 60.0
    """From SIGTERM to SIGKILL for a child that hangs; it may still save at its next step."""
    leaving_seconds: float = 5.0
    """The same after it was asked twice to stop."""
    look_seconds: float = 10.0

    def delay_seconds(self, ended: int, draw: float) -> float:
        """Before the next attempt, after ``ended`` in a row; ``draw`` in [0, 1) spreads it."""
        doubled = self.first_delay_seconds * 2.0 ** min(ended - 1, 30)
        return min(doubled, self.longest_delay_seconds) * (0.5 + draw / 2)

    @property
    def shortest_hang_seconds(self) -> float:
        """No shorter silence is ever a hang."""
        return self.hang_seconds or 1800.0

    def silence_seconds(self, found: Trace) -> float:
        """How long an attempt may show no sign of life."""
        limit = self.hang_seconds or max(self.shortest_hang_seconds, 20 * found.median_seconds)
        return limit if found.trained else limit * self.opening_factor


class Ears:
    """Hears signals as bytes on a socket: none is lost between two looks. A context manager."""

    def __enter__(self) -> Ears:
        self._inner, self._outer = socket.socketpair()
        self._inner.setblocking(False)
        self._outer.setblocking(False)
        self._fd = signal.set_wakeup_fd(self._outer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in HEARD}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._fd)
        self._inner.close()
        self._outer.close()

    def wait(self, seconds: float) -> list[int]:
        """The signals that came, at the latest after ``seconds``."""
        heard = select.select([self._inner], [], [], max(0.0, seconds))[0]
        return list(self._inner.recv(4096)) if heard else []


class Silence:
    """For how long nothing has changed that a living attempt touches. Reads no wall clock."""

    def __init__(self, signs: Sequence[Path], clock: Callable[[], float]) -> None:
        self._signs, self._clock = signs, clock
        self._seen, self._since = self._look(), clock()
        self.limit_seconds: float | None = None
        """When it is a hang, once somebody has worked that out; forgotten at each sign of life."""

    def seconds(self) -> float:
        """Since the last change that was seen."""
        seen = self._look()
        if seen != self._seen:
            self._seen, self._since, self.limit_seconds = seen, self._clock(), None
        return self._clock() - self._since

    def _look(self) -> list[tuple[int, int] | None]:
        return [_size_and_time(path) for path in self._signs]


class Supervisor:
    """Runs one command until it has ended for good; ``run`` gives the exit code.

    ``command(again)`` is what to start; ``again``: an attempt has opened the run, so what is meant
    for once (``--fresh``, ``--from``) must not be repeated. ``events`` reads the journal
    (``EVENTS``); ``say`` shows a line to a person; ``wait``, ``clock`` and ``draw`` are time,
    signals and chance.
    """

    def __init__(
        self,
        journal: Path,
        command: Callable[[bool], Sequence[str]],
        events: Callable[[], Sequence[Event]],
        say: Callable[[str], None],
        patience: Patience,
        *,
        wait: Callable[[float], list[int]],
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._folder = journal.parent
        self._signs = (journal, self._folder / HEARTBEAT_FILE)
        self._command, self._events, self._say = command, events, say
        self._patience, self._wait, self._clock, self._draw = patience, wait, clock, draw
        self._asked = 0
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        self._hung_up = False
        self._before: tuple[int, str] | None = None
        self._unwritten: list[str] = []

    def run(self) -> int:
        """Start, watch, judge, start again."""
        first = self._before = self._newest().attempt
        step, saved, again = -1, -1, False
        failed: Counter[bool] = Counter()  # outages and crashes without progress, each by itself
        while True:
            code, hung = self._attempt(self._command(again))
            found = self._found()
            self._before = found.attempt or self._before
            again = again or (found.opened and found.attempt != first)
            end = how(code, hung)
            facts = {"code": code, "hung": hung, "step": found.step, "message": found.message}
            self._tell("ended", f"the process ended {end} at {where(found.step)}", **facts)
            if code in FINAL or self._asked:
                return code if code >= 0 else 128 - code
            if found.step > step or found.saved > saved:
                failed.clear()
            failed[code == NO_ANSWER] += 1
            ended = failed[code == NO_ANSWER]
            step, saved = max(step, found.step), max(saved, found.saved)
            if ended >= self._tries(code):
                self._give_up(ended, step, found.message or f"the last one ended {end}", code, hung)
                return GAVE_UP
            delay = self._patience.delay_seconds(ended, self._draw())
            self._tell("restarting", f"starting again in {delay:.0f} s", seconds=delay)
            if not self._rested(delay):
                return STOPPED

    def _found(self) -> Trace:
        """What the journal says of this attempt; one that never opened the journal has no line."""
        found = self._newest()
        if found.attempt == self._before:
            return Trace(median_seconds=found.median_seconds)
        return found

    def _newest(self) -> Trace:
        try:
            return trace(self._events())
        except OSError:  # the disk is away for a moment, or for good: the child will say so
            return Trace()

    def _tries(self, code: int) -> int:
        return self._patience.outage_tries if code == NO_ANSWER else self._patience.tries

    def _give_up(self, ended: int, step: int, last: str, code: int, hung: bool) -> None:
        why = f"{ended} attempts in a row did not get past {where(step)}"
        ways = advice(code, hung, self._folder)
        self._tell("gave_up", f"giving up: {why}. {last}\n{ways}", why=why, last=last, advice=ways)

    def _rested(self, seconds: float) -> bool:
        """Wait between two attempts; False if asked to stop meanwhile."""
        until = self._clock() + seconds
        while not self._asked and (left := until - self._clock()) > 0:
            self._heard(left)
        return not self._asked

    def _attempt(self, command: Sequence[str]) -> tuple[int, bool]:
        """Run it once; its return code, and whether it hung."""
        child = Child(command, mute=self._terminals if self._hung_up else ())
        self._tell("started", f"started process {child.pid}", pid=child.pid, command=list(command))
        try:
            code, hung = self._watched(child)
            if code != 0:
                child.kill()  # what it started and left behind may hold the GPU
            return code, hung
        finally:
            child.close()

    def _watched(self, child: Child) -> tuple[int, bool]:
        """Until it has ended: pass signals on, and end it when it shows no sign of life."""
        silence = Silence(self._signs, self._clock)
        hung, kill_at = False, math.inf
        while (code := child.code) is None:
            self._pass_on(child, min(self._patience.look_seconds, kill_at - self._clock()))
            self._write()
            if self._asked > 1:
                kill_at = min(kill_at, self._clock() + self._patience.leaving_seconds)
            if self._clock() >= kill_at:
                child.kill()
                kill_at = self._clock() + self._patience.leaving_seconds
            elif not hung and self._is_hang(silence):
                hung, kill_at = True, self._clock() + self._patience.grace_seconds
                self._note_hang(child, silence.seconds())
                child.send(signal.SIGTERM)
        return code, hung

    def _is_hang(self, silence: Silence) -> bool:
        seconds = silence.seconds()
        if seconds < self._patience.shortest_hang_seconds:
            return False
        if silence.limit_seconds is None:
            silence.limit_seconds = self._patience.silence_seconds(self._found())
        return seconds >= silence.limit_seconds

    def _note_hang(self, child: Child, seconds: float) -> None:
        """Ask where it stands, and keep the answer beside the run."""
        stacks, asked_at = "", self._clock()
        if child.ask_for_stacks():
            while child.code is None and self._clock() - asked_at < STACKS_SECONDS:
                self._pass_on(child, 0.5)
                if stacks and stacks == child.stacks():
                    break
                stacks = child.stacks()
        line = f"no sign of life from process {child.pid} for {seconds:.0f} s: a hang"
        path = unused_hang_file(self._folder)
        with contextlib.suppress(OSError):
            path.write_text(f"{line}\n\n{stacks or 'It does not answer.'}\n")
        facts = {"pid": child.pid, "seconds": seconds, "stacks": str(path)}
        self._tell("hang", f"{line}. Its stacks: {path}", **facts)

    def _pass_on(self, child: Child, seconds: float) -> None:
        for number in self._heard(seconds):
            self._tell("signal", f"{signal.Signals(number).name}: passed on", signal=number)
            child.send(number)

    def _heard(self, seconds: float) -> list[int]:
        """Requests to stop that came within ``seconds``. A lost terminal is noted, no more."""
        heard = self._wait(seconds)
        self._hung_up = self._hung_up or signal.SIGHUP in heard
        asking = [number for number in heard if number in ASKING]
        self._asked += len(asking)
        return asking

    def _tell(self, event: str, line: str, **facts: Any) -> None:
        """To the person, and to the run's folder once there is one."""
        self._say(line)
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._unwritten.append(json.dumps({"event": event, "at": at, **facts}) + "\n")
        self._write()

    def _write(self) -> None:
        """What was told, once there is a folder: it is the first attempt that makes it."""
        if not self._unwritten:
            return
        with contextlib.suppress(OSError), (self._folder / RECORD_FILE).open("a") as file:
            file.write("".join(self._unwritten))
            self._unwritten.clear()


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
