"""How much money and time a run may still use, and when the last moment to stop has come.

*Promises.* An attempt stops while what it still must do (the final save, the upload) fits under the
limit, as far as that could be known: each is expected to take twice what it took at most so far.
Time is counted from the start of the process, over all attempts, on a clock that no one can set.

*Does not promise.* That a step which takes more than twice as long as any before it ends in time.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from headway.errors import HeadwayError
from headway.records import StopReason

Limit = Literal["budget", "deadline"]
LIMITS = (None, StopReason.BUDGET, StopReason.DEADLINE)
"""What ranks tell each other by number."""
WARN_AT = 0.9
RECENT_STEPS = 100
"""Steps whose longest stands for the next one."""
UNMEASURED_BYTES_PER_SECOND = 50e6
"""How fast the first save is taken to be, before one was measured: a slow network disk."""


class Spent(HeadwayError):
    """Money or time does not reach for one more step; nothing was loaded to find that out."""

    exit_code = 76

    def __init__(self, reason: StopReason) -> None:
        super().__init__(f"{reason.value}: not even opening the run and one step can be paid")
        self.reason = reason


def steady_seconds() -> float:
    """Seconds that also pass while the machine sleeps: the rent does not sleep either."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) if clock is not None else time.monotonic()


@dataclass
class Limits:
    """What one attempt may use, beside what the attempts before it used."""

    spent_usd: Callable[[], float] = lambda: 0.0
    """Of all attempts."""
    usd_per_second: float = 0.0
    budget_usd: float = math.inf
    max_seconds: float = math.inf
    """Of all attempts together."""
    stop_at: datetime | None = None
    seconds_before: float = 0.0
    """Used by earlier attempts, and by this one before it was opened."""
    expected_save_seconds: float = 0.0
    """What a save is taken to last until one was measured."""
    save_seconds: float = 0.0
    """The longest that was measured; 0: none was."""
    clock: Callable[[], float] = steady_seconds
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    evaluation_seconds: float = 0.0
    _began: float = field(init=False)
    _steps: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=RECENT_STEPS))
    _warned: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def run_seconds(self) -> float:
        """What all attempts have taken so far."""
        return self.seconds_before + max(0.0, self.clock() - self._began)

    def took(self, *, step: float = 0.0, save: float = 0.0, evaluation: float = 0.0) -> None:
        """Remember how long something took, in seconds."""
        if step:
            self._steps.append(step)
        self.save_seconds = max(self.save_seconds, save)
        self.evaluation_seconds = max(self.evaluation_seconds, evaluation)

    def reached(self, *, evaluates: bool = False, drain_seconds: float = 0.0) -> Limit | None:
        """The limit that one more step, the final save and the upload could pass; None: none.

        ``evaluates``: an evaluation comes before the final save. ``drain_seconds``: what the bucket
        still needs for what it has not got yet.
        """
        ahead = 2 * max(self._steps, default=0.0) + drain_seconds
        ahead += 2 * (self.save_seconds or self.expected_save_seconds)
        if evaluates:
            ahead += 2 * self.evaluation_seconds
        return self.passed(ahead)

    def passed(self, ahead_seconds: float = 0.0) -> Limit | None:
        """The limit that has been passed ``ahead_seconds`` from now."""
        if self.spent_usd() + ahead_seconds * self.usd_per_second >= self.budget_usd:
            return "budget"
        late = self.run_seconds + ahead_seconds >= self.max_seconds
        if late or ahead_seconds >= self._seconds_to_deadline():
            return "deadline"
        return None

    def warning(self) -> str | None:
        """A line when nine tenths of a limit are used: once for each limit and attempt."""
        usd = self.spent_usd()
        shares = {
            f"${usd:.2f} of cost.budget_usd ${self.budget_usd:g}": usd / self.budget_usd,
            f"{self.run_seconds / 3600:.2f} of run.max_hours {self.max_seconds / 3600:g}": (
                self.run_seconds / self.max_seconds
            ),
        }
        for (what, share), limit in zip(shares.items(), ("budget", "hours"), strict=True):
            if share >= WARN_AT and limit not in self._warned:
                self._warned.add(limit)
                return f"{what} is used ({share:.0%}); the run saves and stops before it is all"
        return None

    def _seconds_to_deadline(self) -> float:
        return (self.stop_at - self.now()).total_seconds() if self.stop_at else math.inf


def used_seconds(events: Iterable[Mapping[str, Any]]) -> float:
    """What a journal's lines say that all attempts took: the largest ``run_seconds``, 0 if none.

    The largest and not the last: a line that a killed attempt lost must not make time come back.
    """
    found = (event.get("run_seconds") for event in events)
    return max(
        (float(s) for s in found if isinstance(s, int | float) and math.isfinite(s)), default=0.0
    )
