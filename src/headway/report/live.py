"""A run while it trains: events are taken in as they come, and a view is what they say now.

The journal may grow for days, so only a bounded part of it is kept: the newest steps, and a thinned
curve of the whole. A restart takes back what came after its checkpoint, here as in ``timeline``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from headway.report.summary import (
    State,
    hardware_name,
    held_out_loss,
    state_of,
    tokens_per_second,
)
from headway.report.timeline import NOTICES, Event, measured, outlives, trend
from headway.report.words import instant

NEWEST_STEPS = 100
CURVE_POINTS = 2048
"""The curve is thinned to half as many whenever it has more."""
PACE_SHARE = 0.1
"""Of the run: how far back the time left is reckoned from, evaluations and saves included."""
SILENT_SECONDS = 60.0
"""A shorter silence is never spoken of; a longer one if it is ten median steps long."""


class Point(NamedTuple):
    """What is kept of an old step."""

    step: int
    attempt: int
    loss: float
    run_seconds: float | None
    cost_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What is known of a run beside its journal."""

    name: str = ""
    writer_pid: int | None = None
    """The process on this machine that holds the run's lock."""
    host: str = ""
    """This machine: of a run on another one the lock may say nothing."""
    budget_usd: float | None = None
    peak_flops_per_second: Mapping[str, float] = field(default_factory=dict)
    """GPU's name in the journal -> dense bf16 peak of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A run at this moment. None: not measured, or not known."""

    name: str
    state: State
    reason: str
    message: str
    opening: bool
    """A process reads data and model; no step of this attempt yet."""
    silent_seconds: float | None
    """For how long a running run has said nothing, where that is unusual."""
    attempt: int
    pid: int | None
    host: str
    hardware: str
    step: int
    steps: int | None
    redone_steps: int
    loss: float | None
    losses: tuple[float, ...]
    """Over the whole run, thinned."""
    trend: str
    refused: str
    """Why the newest step was no update; empty if it was one."""
    held_out: Event | None
    """The newest evaluation."""
    best_loss: float | None
    best_step: int | None
    learning_rate: float | None
    grad_norm: float | None
    tokens_per_second: float | None
    step_seconds: float | None
    mfu: float | None
    """Model FLOPs of this rate over the GPUs' peak, both as in ``flops_per_token``."""
    memory_bytes: int | None
    memory_limit_bytes: int | None
    gpu_share: float | None
    run_seconds: float | None
    left_seconds: float | None
    cost_usd: float | None
    end_usd: float | None
    """What it will have cost at the horizon, if it goes on as it does now."""
    budget_usd: float | None
    saved: Event | None
    backlog: int | None
    """Checkpoints newer than the newest in the bucket; None where no bucket was heard of."""
    alerts: tuple[Event, ...]
    notices: tuple[Event, ...]
    """The newest warnings that are no alerts."""
    last_at: datetime | None


def flops_per_token(parameters: float, trainable: float) -> float:
    """Matrix products of a step on one token: 2 a parameter forward, 2 back to the activations,
    2 to each weight that trains (6 N where all do). Attention scores and recomputation are not in.
    """
    return 4 * parameters + 2 * trainable


class Live:
    """Takes a journal's events in their order; ``view`` is what they come to."""

    def __init__(self) -> None:
        self._newest: deque[Event] = deque(maxlen=NEWEST_STEPS)
        self._curve: list[Point] = []
        self._held_out: dict[int, float] = {}
        """Step -> held-out loss."""
        self._evaluation: Event | None = None
        self._saved: Event | None = None
        self._saves: set[int] = set()
        self._uploads: set[int] | None = None
        self._alerts: dict[Any, Event] = {}
        self._notices: deque[Event] = deque(maxlen=3)
        self._attempt: Event = {}
        self._opening = False
        self._plan: Event = {}
        self._stop: Event | None = None
        self._machine: Event = {}
        self._last: Event = {}
        self._cost_usd: float | None = None
        self._run_seconds: float | None = None
        self._redone = 0

    def take(self, events: Iterable[Event]) -> None:
        """The next events; lines of a kind or shape that is not known change nothing."""
        for event in events:
            try:
                self._take(event)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # a line of another program, or of another headway

    def _take(self, event: Event) -> None:
        kind = event.get("event")
        if self._stop is not None and event.get("attempt") != self._stop.get("attempt"):
            self._stop = None
        for key, name in (("cost_usd", "_cost_usd"), ("run_seconds", "_run_seconds")):
            value = measured(event.get(key))
            if value is not None:
                setattr(self, name, max(value, getattr(self, name) or 0.0))
        if kind == "step":
            self._take_step(event)
        elif kind == "evaluation":
            loss = held_out_loss(event)
            self._held_out[int(event["step"])] = math.nan if loss is None else loss
            self._evaluation = {key: value for key, value in event.items() if key != "worst"}
        elif kind == "save":
            self._saves.add(int(event["step"]))
            self._saved = event
        elif kind == "upload" and event.get("kind") in ("sent", "failed"):
            self._uploads = self._uploads or set()
            if event["kind"] == "sent":
                self._uploads.add(int(event["step"]))
        elif kind == "opening":
            self._opening, self._attempt = True, {**self._attempt, **event}
        elif kind == "attempt":
            self._restarted(event)
        elif kind == "plan":
            self._plan = event
        elif kind == "stop":
            self._stop, self._opening = event, False
        elif kind == "machine":
            self._machine = event
        elif kind == "alert":
            self._alerts[event.get("kind")] = event
        elif kind == "alert_over":
            self._alerts.pop(event.get("kind"), None)
        elif kind in NOTICES:
            self._notices.append(event)
        self._last = event

    def _take_step(self, event: Event) -> None:
        step, loss = int(event["step"]), measured(event.get("loss"))
        self._opening = False
        self._forget(step - 1)
        self._newest.append(event)
        numbers = measured(event.get("run_seconds")), measured(event.get("cost_usd"))
        attempt = int(event.get("attempt") or 0)
        self._curve.append(Point(step, attempt, math.nan if loss is None else loss, *numbers))
        if len(self._curve) > CURVE_POINTS:
            del self._curve[1:-NEWEST_STEPS:2]

    def _restarted(self, event: Event) -> None:
        restored = int(event.get("restored_step") or 0)
        self._attempt, self._opening, self._stop = event, True, None
        self._machine = {}
        newest = self._newest[-1]["step"] if self._newest else 0
        self._redone += max(0, newest - restored)
        self._forget(restored)
        self._held_out = {step: loss for step, loss in self._held_out.items() if step <= restored}
        if self._evaluation is not None and self._evaluation["step"] > restored:
            self._evaluation = None
        self._saves = {step for step in self._saves if step <= restored}
        if self._saved is not None and self._saved["step"] > restored:
            self._saved = None
        self._alerts = {kind: e for kind, e in self._alerts.items() if outlives(e, restored)}

    def _forget(self, after_step: int) -> None:
        while self._newest and self._newest[-1]["step"] > after_step:
            self._newest.pop()
        while self._curve and self._curve[-1].step > after_step:
            self._curve.pop()

    # ------------------------------------------------------------------ what it comes to

    def view(self, now: datetime, beside: Beside) -> View:
        """What the events say at this moment."""
        last_at = instant(self._last.get("at"))
        silent = (now - last_at).total_seconds() if last_at else math.inf
        state, reason = state_of(
            self._stop, self._writer(beside, silent), bool(self._attempt or self._newest)
        )
        step_seconds, usd_per_second = self._pace()
        unusual = silent > max(SILENT_SECONDS, 10 * (step_seconds or 0))
        return View(
            name=beside.name,
            state=state,
            reason=reason,
            silent_seconds=silent if state == "running" and unusual and last_at else None,
            last_at=last_at,
            budget_usd=beside.budget_usd,
            step_seconds=step_seconds,
            **self._attempts(),
            **self._learning(),
            **self._machinery(beside),
            **self._means(step_seconds, usd_per_second),
        )

    def _attempts(self) -> dict[str, Any]:
        return {
            "message": str((self._stop or {}).get("message") or ""),
            "opening": self._opening,
            "attempt": int(self._last.get("attempt") or 0),
            "pid": self._attempt.get("pid"),
            "host": str(self._attempt.get("host") or ""),
            "redone_steps": self._redone,
            "saved": self._saved,
            "backlog": self._backlog(),
            "alerts": tuple(self._alerts.values()),
            "notices": tuple(self._notices),
        }

    def _backlog(self) -> int | None:
        """Checkpoints that are newer than the newest in the bucket."""
        if self._uploads is None:
            return None
        newest = max(self._uploads, default=-1)
        return sum(step > newest for step in self._saves)

    def _learning(self) -> dict[str, Any]:
        last = self._newest[-1] if self._newest else {}
        held_out = self._held_out.items()
        best = min(((loss, step) for step, loss in held_out if math.isfinite(loss)), default=None)
        return {
            "loss": measured(last.get("loss")),
            "losses": tuple(p.loss for p in self._curve if math.isfinite(p.loss)),
            "trend": self._trend(),
            "refused": str((last.get("refused") or {}).get("why") or ""),
            "held_out": self._evaluation,
            "best_loss": best[0] if best else None,
            "best_step": best[1] if best else None,
            "learning_rate": measured(last.get("learning_rate")),
            "grad_norm": measured(last.get("grad_norm")),
        }

    def _machinery(self, beside: Beside) -> dict[str, Any]:
        hardware = self._attempt.get("hardware")
        machine = hardware if isinstance(hardware, Mapping) else {}
        last = self._newest[-1] if self._newest else {}
        rate = tokens_per_second(list(self._newest)[-50:])
        return {
            "hardware": hardware_name(hardware),
            "tokens_per_second": rate,
            "mfu": self._mfu(rate, machine, beside),
            "memory_bytes": last.get("memory_bytes"),
            "memory_limit_bytes": machine.get("gpu_memory_bytes") or machine.get("memory_bytes"),
            "gpu_share": measured(self._machine.get("gpu_share")),
        }

    def _means(self, step_seconds: float | None, usd_per_second: float | None) -> dict[str, Any]:
        """Steps, time and money: so far and to the end."""
        step, steps, cost = self._step(), self._plan.get("steps"), self._cost_usd
        left = steps - step if isinstance(steps, int) and steps > step else 0
        left_seconds = left * step_seconds if step_seconds and left else None
        known = cost is not None and usd_per_second is not None and left_seconds is not None
        more = (usd_per_second or 0) * (left_seconds or 0)
        return {
            "step": step,
            "steps": steps,
            "run_seconds": self._run_seconds,
            "left_seconds": left_seconds,
            "cost_usd": cost,
            "end_usd": (cost or 0) + more if known else None,
        }

    def _step(self) -> int:
        """The newest, or where the newest attempt began or ended."""
        newest = self._newest[-1]["step"] if self._newest else 0
        places = (self._attempt.get("restored_step"), (self._stop or {}).get("step"))
        return max([newest, *(int(place or 0) for place in places)])

    def _writer(self, beside: Beside, silent_seconds: float) -> int | None:
        """The process that writes the run: by its lock, or on another machine by its words."""
        elsewhere = str(self._attempt.get("host") or "") not in ("", beside.host)
        if beside.writer_pid is None and elsewhere and silent_seconds < 5 * SILENT_SECONDS:
            pid = self._attempt.get("pid")
            return pid if isinstance(pid, int) else 0
        return beside.writer_pid

    def _pace(self) -> tuple[float | None, float | None]:
        """Seconds a step now takes, everything between steps included, and USD a second."""
        last = self._curve[-1] if self._curve else None
        if last is None:
            return None, None
        back = max(50, PACE_SHARE * int(self._plan.get("steps") or 0))
        known = [
            p
            for p in self._curve
            if p.attempt == last.attempt and p.step >= last.step - back and p.run_seconds
        ]
        if len(known) > 1 and last.run_seconds:
            first = known[0]
            seconds = last.run_seconds - (first.run_seconds or 0)
            paid = None if last.cost_usd is None else last.cost_usd - (first.cost_usd or 0)
            each = seconds / (last.step - first.step)
            return each, paid / seconds if paid is not None and seconds > 0 else None
        own = [s for e in self._newest if (s := measured(e.get("seconds"))) is not None]
        each = sum(own) / len(own) if own else 0.0
        return each or None, None

    def _trend(self) -> str:
        losses = [v for e in self._newest if (v := measured(e.get("loss"))) is not None]
        found = trend([loss for loss in losses if math.isfinite(loss)])
        return "" if found.startswith("too") else found

    def _mfu(self, rate: float | None, machine: Mapping[str, Any], beside: Beside) -> float | None:
        peak = beside.peak_flops_per_second.get(str(machine.get("gpu")))
        parameters, trainable = self._plan.get("parameters"), self._plan.get("trainable")
        if not (peak and rate and parameters):
            return None
        gpus = machine.get("ranks") or 1
        return rate * flops_per_token(parameters, trainable or parameters) / (peak * gpus)

    @property
    def gpu(self) -> str:
        """The GPU's name as the newest attempt recorded it; empty without one."""
        hardware = self._attempt.get("hardware")
        return str(hardware.get("gpu") or "") if isinstance(hardware, Mapping) else ""
