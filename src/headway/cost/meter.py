"""What a run has cost: rate times time, summed over attempts, never counted down."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.errors import ConfigError


def an_hour(usd: float) -> str:
    """``$0.40 an hour``; more digits where the price has them."""
    cents = f"{usd:.2f}"
    return f"${cents if float(cents) == usd else f'{usd:g}'} an hour"


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What an hour on this machine costs, and who says so."""

    usd_per_hour: float
    gpu: str
    source: str
    """Where the figure comes from: ``config``, or a page's address."""
    date: str
    """When it was true, ISO 8601."""

    @property
    def an_hour(self) -> str:
        """See ``an_hour``."""
        return an_hour(self.usd_per_hour)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.usd_per_hour) and self.usd_per_hour >= 0):
            raise ConfigError(
                f"cost.usd_per_hour is {self.usd_per_hour}: it must be a number of dollars, 0 or "
                "more. Look the price up where the GPU is rented."
            )


class Meter:
    """What this run has cost so far, over all attempts. Runs from the moment it is made."""

    def __init__(
        self,
        price: Price,
        spent_usd_before: float = 0.0,
        seconds_before: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``spent_usd_before``: by earlier attempts, ``spent(events)``.

        ``seconds_before``: by this attempt before the meter was made, ``process_age_seconds()``.
        """
        self.price = price
        self.spent_usd_before = spent_usd_before
        self._clock = clock
        self._began = clock() - seconds_before

    @property
    def attempt_usd(self) -> float:
        """What this attempt has cost so far."""
        return max(0.0, self._clock() - self._began) / 3600 * self.price.usd_per_hour

    @property
    def cost_usd(self) -> float:
        """What all attempts have cost so far: each step's line in the journal carries it."""
        return self.spent_usd_before + self.attempt_usd

    def usd_for(self, seconds: float) -> float:
        """What that many more seconds would cost: a last save, an upload."""
        return seconds / 3600 * self.price.usd_per_hour


def spent(events: Iterable[Mapping[str, Any]]) -> float:
    """What a journal's lines say was spent, in USD: the largest ``cost_usd``, 0 if there is none.

    The largest and not the last: a line that a killed attempt lost must not make money come back.
    """
    figures = (event.get("cost_usd") for event in events)
    return max(
        (float(usd) for usd in figures if isinstance(usd, int | float) and math.isfinite(usd)),
        default=0.0,
    )


def process_age_seconds() -> float:
    """How long ago this process started: imports and model loading are paid too. 0 if unknown."""
    if sys.platform != "linux":
        return 0.0
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5)
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError):
        return 0.0
