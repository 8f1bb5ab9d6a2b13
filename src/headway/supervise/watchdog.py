"""A thread beside training that notices its silence, says where it stands, and ends it in the end.

It sees what ``Supervisor`` sees from outside, where there is no supervisor, and on every rank. What
it cannot see is a thread that holds the interpreter and never gives it back: that only the
supervisor can.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from headway.supervise.child import beat, unused_hang_file

HUNG = 70
LAST_WORDS_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceLimits:
    """How long silence may last."""

    alert_seconds: float = 300.0
    alert_steps: float = 10.0
    """Or so many median steps, whichever is longer."""
    end_seconds: float | None = 1800.0
    """None: the process is never ended."""
    end_steps: float = 20.0
    opening_factor: float = 4.0
    """Before its first step an attempt may be silent so much longer: compiling, first rows."""

    def at(self, median_seconds: float | None) -> tuple[float, float]:
        """Seconds of silence until the alert and until the end; no median: no step was made."""
        factor = self.opening_factor if median_seconds is None else 1.0
        median = median_seconds or 0.0
        alert = factor * max(self.alert_seconds, self.alert_steps * median)
        if self.end_seconds is None:
            return alert, math.inf
        return alert, max(alert, factor * max(self.end_seconds, self.end_steps * median))


class Watchdog:
    """Counts seconds since the last sign of life. A context manager; the thread is a daemon."""

    def __init__(
        self,
        folder: Path,
        limits: SilenceLimits,
        *,
        heartbeat: Path | None,
        on_silence: Callable[[float, Path | None], None],
        on_end: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """``heartbeat``: the file that a supervisor looks at; None on ranks that write nothing.

        ``on_silence(seconds, stacks)`` and ``on_end(seconds)`` are called on this thread.
        """
        self._folder, self._limits, self._heartbeat = folder, limits, heartbeat
        self._on_silence, self._on_end = on_silence, on_end
        self._clock, self._leave = clock, leave
        self._steps: deque[float] = deque(maxlen=100)
        self._alive_at = clock()
        self._told_at: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headway-watchdog", daemon=True)

    def beat(self, step_seconds: float | None = None) -> None:
        """A sign of life; of a step with its seconds, which say how long silence is normal."""
        if step_seconds is not None:
            self._steps.append(step_seconds)
        self._alive_at = self._clock()
        if self._heartbeat:
            beat(self._heartbeat)

    def look(self) -> float:
        """Judge the silence now; returns the seconds until it is worth looking again."""
        alive_at, steps = self._alive_at, list(self._steps)
        seconds = self._clock() - alive_at
        alert, end = self._limits.at(statistics.median(steps) if steps else None)
        if seconds >= alert and self._told_at != alive_at:
            self._told_at = alive_at
            self._on_silence(seconds, self._written_stacks(seconds))
        if seconds >= end:
            self._ends(seconds)
            return math.inf
        left = (end if seconds >= alert else alert) - seconds
        return max(0.01, min(left, alert))  # the next silence may begin before this one's end

    def _written_stacks(self, seconds: float) -> Path | None:
        """All stacks in a file of the run and on stderr; None if the disk does not take them."""
        with contextlib.suppress(OSError, ValueError):
            faulthandler.dump_traceback(sys.stderr.fileno(), all_threads=True)
        for _ in range(8):  # another rank may take the name first
            with contextlib.suppress(OSError):
                path = unused_hang_file(self._folder)
                with path.open("x") as file:
                    file.write(f"no sign of life for {seconds:.0f} s (process {os.getpid()})\n\n")
                    file.flush()
                    faulthandler.dump_traceback(file.fileno(), all_threads=True)
                return path
        return None

    def _ends(self, seconds: float) -> None:
        """Last words, for a few seconds at most: what hangs may be the disk they go to."""
        words = threading.Thread(target=self._on_end, args=(seconds,), daemon=True)
        words.start()
        words.join(LAST_WORDS_SECONDS)
        self._leave(HUNG)

    def _run(self) -> None:
        wait = 0.0
        while not self._ended.wait(min(wait, threading.TIMEOUT_MAX)):
            wait = self.look()

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
