"""A run in one record: where it stands, how good it is, what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from headway.report.timeline import Event, Timeline, measured, timeline
from headway.report.words import instant

State = Literal["running", "finished", "stopped", "dead", "not started"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What ``headway status`` shows of a run, and the first words of its report."""

    name: str
    state: State
    """``stopped``: it said why and may be continued. ``dead``: it ended without a word."""
    reason: str
    """The journal's stop reason (``budget``, ``signal`` …); empty while running or dead."""
    message: str
    step: int
    steps: int | None
    loss: float | None
    """Training loss of the last step."""
    held_out_loss: float | None
    """Of the last evaluation."""
    best_loss: float | None
    """Lowest held-out loss."""
    best_step: int | None
    tokens: int | None
    """Tokens that the present weights have seen; None when only a part of the journal was read."""
    tokens_per_second: float | None
    """Median of the last 50 steps."""
    training_seconds: float | None
    """Step time over all attempts; None when only a part of the journal was read."""
    cost_usd: float | None
    attempts: int
    redone_steps: int
    hardware: str
    last_at: datetime | None
    alerts: tuple[str, ...] = ()
    """Kinds of alerts that are not over: ``loss spike``. Where only a part of the journal was read,
    those that began in it."""


def summarise(
    events: Iterable[Event] | Timeline,
    *,
    name: str = "",
    writer_pid: int | None = None,
    whole: bool = True,
) -> Summary:
    """Sum a run up.

    ``writer_pid`` is the process that holds the run's lock, or None when nobody does: that, and no
    clock, tells a running attempt from a dead one. ``whole=False`` says that the events are only
    the journal's head and tail, and leaves out the totals that would then be too small.
    """
    told = events if isinstance(events, Timeline) else timeline(events)
    last = told.steps[-1] if told.steps else {}
    best = best_evaluation(told.evaluations)
    state, reason = state_of(told.stop, writer_pid, bool(told.attempts or told.steps))
    ended_at_step = int((told.stop or {}).get("step") or 0)
    return Summary(
        name=name,
        state=state,
        reason=reason,
        message=str((told.stop or {}).get("message") or ""),
        step=max(int(last.get("step", 0)), ended_at_step),
        steps=told.plan.get("steps"),
        loss=measured(last.get("loss")),
        held_out_loss=held_out_loss(told.evaluations[-1]) if told.evaluations else None,
        best_loss=held_out_loss(best) if best else None,
        best_step=best["step"] if best else None,
        tokens=sum(int(step.get("tokens") or 0) for step in told.steps) if whole else None,
        tokens_per_second=tokens_per_second(told.steps[-50:]),
        training_seconds=told.training_seconds if whole else None,
        cost_usd=told.cost_usd,
        attempts=told.attempt,
        redone_steps=told.redone_steps,
        hardware=hardware_name(told.attempts[-1].get("hardware") if told.attempts else None),
        last_at=instant(told.last_at),
        alerts=tuple(str(alert.get("kind")).replace("_", " ") for alert in told.alerts),
    )


def state_of(stop: Event | None, writer_pid: int | None, began: bool) -> tuple[State, str]:
    """A run's state and the journal's stop reason; ``began``: an attempt opened it once."""
    if stop is not None:
        reason = str(stop.get("reason", "")).replace("_", " ").lower()
        return ("finished" if reason in ("finished", "early stop") else "stopped"), reason
    if writer_pid is not None:
        return "running", ""
    return ("dead" if began else "not started"), ""


def held_out_loss(evaluation: Event) -> float | None:
    """The loss of an evaluation event, or None where it has none."""
    return measured((evaluation.get("metrics") or {}).get("loss"))


def best_evaluation(evaluations: Sequence[Event]) -> Event | None:
    """The evaluation with the lowest finite loss; the earliest of equals. NaN is never best."""
    finite = [
        (loss, n)
        for n, evaluation in enumerate(evaluations)
        if (loss := held_out_loss(evaluation)) is not None and math.isfinite(loss)
    ]
    return evaluations[min(finite)[1]] if finite else None


def tokens_per_second(steps: Sequence[Event]) -> float | None:
    """Median over ``steps`` of tokens / seconds."""
    rates = sorted(
        float(step["tokens"]) / float(step["seconds"])
        for step in steps
        if step.get("seconds") and step.get("tokens") is not None
    )
    half = len(rates) // 2
    return (rates[half] + rates[-1 - half]) / 2 if rates else None


def hardware_name(hardware: Any) -> str:
    """The device's name as the attempt recorded it: a GPU's before the processor's."""
    if isinstance(hardware, str):
        return hardware
    if not isinstance(hardware, Mapping):
        return ""
    for key in ("name", "gpu", "gpus", "device_name", "device", "cpu", "processor"):
        value = hardware.get(key)
        if isinstance(value, list | tuple) and value:
            return f"{len(value)} × {value[0]}" if len(value) > 1 else str(value[0])
        if isinstance(value, str) and value and value not in ("cpu", "cuda"):
            return value
    return str(hardware.get("device") or "")
