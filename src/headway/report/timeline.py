"""The events that count: a restart goes back to a checkpoint, and what came after it is void.

Curves follow the run that led to the present weights; time and money follow everything that
happened. Both are kept here, so that no other module has to think about restarts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

Event = Mapping[str, Any]
NOTICES = frozenset({"warning", "alert", "rollback", "save_skipped", "quarantine", "webhook"})
LEARNING = ("loss_", "gradient_", "learning_", "evaluation_")
"""Kinds of alerts that begin so outlive a restart; the others are of one process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A run's events by kind. ``steps``, ``evaluations`` and ``saves`` rise strictly in step."""

    steps: Sequence[Event]
    evaluations: Sequence[Event]
    saves: Sequence[Event]
    attempts: Sequence[Event]
    plan: Event
    stop: Event | None
    """How the last attempt ended; None while it has not, or when it never could say."""
    notices: Sequence[Event]
    """Warnings, alerts, roll backs, skipped saves and quarantined checkpoints, of every attempt."""
    alerts: Sequence[Event]
    """Alerts that are not over, each kind once."""
    redone_steps: int
    """Steps that a restart did again."""
    training_seconds: float
    """Step time over all attempts, steps done twice included."""
    cost_usd: float | None
    attempt: int
    """Number of the newest attempt; every event carries its attempt's."""
    last_at: Any
    """``at`` of the last event."""


def timeline(events: Iterable[Event]) -> Timeline:
    """Sort the events of a whole journal, or of any part of one, by kind."""
    by_step: dict[str, list[Event]] = {"step": [], "evaluation": [], "save": []}
    attempts: list[Event] = []
    notices: list[Event] = []
    alerts: dict[Any, Event] = {}
    plan: Event = {}
    stop: Event | None = None
    redone, seconds, cost, number, last_at = 0, 0.0, None, 0, None
    for event in events:
        kind = event.get("event")
        last_at = event.get("at", last_at)
        number = max(number, int(event.get("attempt") or 0))
        if stop is not None and event.get("attempt") != stop.get("attempt"):
            stop = None  # a later attempt, whose first event may lie in a part that was not read
        if event.get("cost_usd") is not None:
            cost = max(float(event["cost_usd"]), cost or 0.0)
        if kind in by_step:
            replaced = _append(by_step[kind], event)
            if kind == "step":
                seconds += measured(event.get("seconds")) or 0.0
                redone += replaced
        elif kind == "attempt":
            attempts.append(event)
            stop = None
            restored = int(event.get("restored_step") or 0)
            redone += _void(by_step["step"], restored)
            _void(by_step["evaluation"], restored)
            _void(by_step["save"], restored)
            alerts = {k: e for k, e in alerts.items() if outlives(e, restored)}
        elif kind == "plan":
            plan = event
        elif kind == "stop":
            stop = event
        elif kind in NOTICES:
            notices.append(event)
        if kind == "alert":
            alerts[event.get("kind")] = event
        elif kind == "alert_over":
            alerts.pop(event.get("kind"), None)
    return Timeline(
        steps=by_step["step"],
        evaluations=by_step["evaluation"],
        saves=by_step["save"],
        attempts=attempts,
        plan=plan,
        stop=stop,
        notices=notices,
        alerts=list(alerts.values()),
        redone_steps=redone,
        training_seconds=seconds,
        cost_usd=cost,
        attempt=number,
        last_at=last_at,
    )


def outlives(alert: Event, restored_step: int) -> bool:
    """Whether an alert still holds in an attempt that went back to ``restored_step``."""
    return str(alert.get("kind")).startswith(LEARNING) and alert.get("step", 0) <= restored_step


def _void(kept: list[Event], after_step: int) -> int:
    """Drop what lies after ``after_step``; return how many."""
    before = len(kept)
    while kept and kept[-1]["step"] > after_step:
        kept.pop()
    return before - len(kept)


def _append(kept: list[Event], event: Event) -> int:
    """Append, replacing anything at or after the same step; return how many were replaced."""
    replaced = _void(kept, event["step"] - 1)
    kept.append(event)
    return replaced


def measured(value: Any) -> float | None:
    """A number of the journal, which writes NaN and infinity as text; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def series(events: Iterable[Event], key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of ``key`` where it was measured: two lists of one length."""
    steps, values = [], []
    for event in events:
        value = measured(event.get(key))
        if value is not None and math.isfinite(value):
            steps.append(event["step"])
            values.append(value)
    return steps, values


def smoothed(values: Sequence[float], reach: int) -> list[float]:
    """Mean over ``reach`` neighbours on each side (fewer at the ends): no lag, unlike a decay."""
    sums = [0.0, *accumulate(values)]
    last = len(values)
    ranges = ((max(0, i - reach), min(last, i + reach + 1)) for i in range(last))
    return [(sums[high] - sums[low]) / (high - low) for low, high in ranges]


def thinned(
    steps: Sequence[float], values: Sequence[float], points: int
) -> tuple[list[float], list[float]]:
    """At most ``points`` points: each bin's lowest and highest, so that no spike is lost."""
    total = len(steps)
    if total <= points:
        return list(steps), list(values)
    bins = max(1, points // 2)
    chosen: list[int] = []
    for n in range(bins):
        indices = range(n * total // bins, (n + 1) * total // bins)
        low, high = min(indices, key=values.__getitem__), max(indices, key=values.__getitem__)
        chosen.extend(sorted({low, high}))
    return [steps[i] for i in chosen], [values[i] for i in chosen]


def trend(values: Sequence[float]) -> str:
    """``improving``, ``worsening`` or ``flat``: the last 50 losses against the 50 before them.

    The difference of the two means has to be larger than twice its standard error.
    """
    half = min(50, len(values) // 2)
    if half < 5:
        return "too short to say"
    before, after = values[-2 * half : -half], values[-half:]
    mean_before, mean_after = sum(before) / half, sum(after) / half
    spread = sum((v - mean_before) ** 2 for v in before) + sum((v - mean_after) ** 2 for v in after)
    standard_error = math.sqrt(spread / (half * (half - 1)))
    if abs(mean_after - mean_before) <= 2 * standard_error:
        return "flat"
    return "improving" if mean_after < mean_before else "worsening"
