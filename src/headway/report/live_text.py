"""A run's view in words: one line a subject for eyes, one line an event for a log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from headway.report.figures import figures
from headway.report.live import View
from headway.report.timeline import Event, measured
from headway.report.words import (
    ago,
    count,
    duration,
    instant,
    money,
    number,
    rows_in_words,
    short_count,
    size,
)

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE = 40
"""Characters."""
Mood = Literal["plain", "good", "warning", "bad"]


@dataclass(frozen=True, slots=True)
class Line:
    """One subject."""

    label: str
    text: str
    mood: Mood = "plain"
    share: float | None = None
    """How far the run is, 0 to 1: where there is room, a bar."""


def lines(view: View, now: datetime) -> list[Line]:
    """Everything that is known, the most asked first; what is not known has no line."""
    found = [
        *_state(view),
        *_progress(view, now),
        *_loss(view),
        *_held_out(view),
        *_rate(view),
        *_speed(view),
        *_memory(view),
        *_cost(view),
        *_saved(view, now),
    ]
    found += [Line("ALERT", alert_text(alert), "bad") for alert in view.alerts]
    found += [
        Line("warning", str(n.get("what") or n.get("why") or ""), "warning") for n in view.notices
    ]
    return [Line(line.label, printable(line.text), line.mood, line.share) for line in found]


def printable(text: str) -> str:
    """One line that cannot steer a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def sparkline(values: Sequence[float], width: int = SPARKLINE) -> str:
    """``values`` in ``width`` characters, each the median of its share of them, high is high."""
    if not values:
        return ""
    total, width = len(values), min(width, len(values))
    shares = [sorted(values[n * total // width : (n + 1) * total // width]) for n in range(width)]
    medians = [share[len(share) // 2] for share in shares]
    low, high = min(medians), max(medians)
    if high <= low:
        return BLOCKS[3] * width
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((value - low) / (high - low) * top)] for value in medians)


def _state(view: View) -> Iterator[Line]:
    where = f" (process {view.pid} on {view.host})" if view.pid and view.host else ""
    parts: list[str] = [view.state]
    if view.state == "running":
        if view.opening:
            parts = ["opening: reads data and model"]
        parts[0] += where
    elif view.reason and view.reason != view.state:
        parts[0] += f" ({view.reason})"
    if view.state == "dead":
        parts[0] += ": it ended without a word; the same command goes on"
    parts += [view.hardware] if view.hardware else []
    parts += [f"attempt {view.attempt}"] if view.attempt > 1 else []
    again = f"{count(view.redone_steps)} steps done again"
    parts += [again] if view.redone_steps else []
    moods: Mapping[str, Mood] = {"running": "good", "finished": "good", "dead": "bad"}
    yield Line("run", " · ".join(parts), moods.get(view.state, "warning"))
    if view.message:
        yield Line("error", view.message, "bad")
    if view.silent_seconds is not None:
        yield Line("silent", f"for {duration(view.silent_seconds)}", "warning")


def _progress(view: View, now: datetime) -> Iterator[Line]:
    text = count(view.step)
    if view.steps:
        text += f" of {count(view.steps)} ({view.step / view.steps:.0%})"
    yield Line("step", text, share=view.step / view.steps if view.steps else None)
    parts = [f"{duration(view.run_seconds)} so far"] if view.run_seconds else []
    if view.left_seconds is not None and view.state == "running":
        end = now + timedelta(seconds=view.left_seconds)
        parts.insert(0, f"{duration(view.left_seconds)} left, until {end:%H:%M} UTC")
    elif view.left_seconds is not None:
        parts.insert(0, f"{duration(view.left_seconds)} of training left")
    if parts:
        yield Line("time", " · ".join(parts))


def _loss(view: View) -> Iterator[Line]:
    if view.loss is None:
        return
    text = f"{number(view.loss)}  {sparkline(view.losses)}  {view.trend}".rstrip()
    yield Line("loss", text, "plain" if math.isfinite(view.loss) else "bad")
    if view.refused:
        yield Line("refused", f"the newest step changed nothing: {view.refused}", "bad")


def _held_out(view: View) -> Iterator[Line]:
    if view.held_out is None:
        return
    found = figures(view.held_out)
    loss = found.values.get(("", "loss"))
    parts = [f"{number(loss)} at step {count(view.held_out['step'])}"]
    if view.best_step is not None and view.best_step != view.held_out["step"]:
        parts.append(f"best {number(view.best_loss)} at step {count(view.best_step)}")
    parts += [f"{name} {number(found.values['', name])}" for name in found.main[1:4]]
    rows = rows_in_words(view.held_out.get("rows"), view.held_out.get("of_rows"))
    yield Line("held-out", f"{' · '.join(parts)} ({rows} rows)")


def _rate(view: View) -> Iterator[Line]:
    if view.learning_rate is not None:
        gradient = f" · gradient norm {number(view.grad_norm)}"
        yield Line("rate", f"learning rate {number(view.learning_rate)}{gradient}")


def _speed(view: View) -> Iterator[Line]:
    parts = []
    if view.tokens_per_second is not None:
        parts.append(f"{short_count(view.tokens_per_second)} tokens/s")
    if view.step_seconds is not None:
        parts.append(f"{duration(view.step_seconds)} a step")
    if view.mfu is not None:
        parts.append(f"MFU {view.mfu:.1%} (without attention)")
    if parts:
        yield Line("speed", " · ".join(parts))


def _memory(view: View) -> Iterator[Line]:
    parts = []
    if view.memory_bytes:
        of = f" of {size(view.memory_limit_bytes)}" if view.memory_limit_bytes else ""
        parts.append(f"{size(view.memory_bytes)}{of} at most")
    if view.gpu_share is not None:
        parts.append(f"GPU {view.gpu_share:.0%} busy")
    if parts:
        yield Line("memory", " · ".join(parts))


def _cost(view: View) -> Iterator[Line]:
    if view.cost_usd is None:
        return
    parts = [f"{money(view.cost_usd)} so far"]
    if view.end_usd is not None:
        parts.append(f"{money(view.end_usd)} at the end")
    over = False
    if view.budget_usd is not None:
        over = (view.end_usd or view.cost_usd) > view.budget_usd
        parts.append(
            f"budget {money(view.budget_usd)}" + (": it will not be enough" if over else "")
        )
    yield Line("cost", " · ".join(parts), "warning" if over else "plain")


def _saved(view: View, now: datetime) -> Iterator[Line]:
    parts = []
    if view.saved is not None:
        when = ago(instant(view.saved.get("at")), now)
        parts.append(f"step {count(view.saved['step'])}, {when}, {size(view.saved.get('bytes'))}")
    elif view.step:
        parts.append("nothing yet")
    if view.backlog is not None:
        waits = f"{view.backlog} not in the bucket yet" if view.backlog else "all in the bucket"
        parts.append(waits)
    if parts:
        yield Line("saved", " · ".join(parts))


def alert_text(alert: Event) -> str:
    """``loss spike, since step 120: …. What to do: …``"""
    kind = str(alert.get("kind")).replace("_", " ")
    advice = f". What to do: {alert['advice']}" if alert.get("advice") else ""
    return f"{kind}, since step {count(alert.get('step'))}: {alert.get('what')}{advice}"


# ------------------------------------------------------------------ a line for an event


def step_line(view: View) -> str:
    """A step as ``headway train`` shows it where there is no terminal."""
    of = f"/{view.steps}" if view.steps else ""
    loss = f"{view.loss:.4f}" if view.loss is not None else "–"
    parts = [f"step {view.step}{of}", f"loss {loss}"]
    if view.tokens_per_second is not None:
        parts.append(f"{view.tokens_per_second:,.0f} tok/s")
    if view.left_seconds is not None:
        parts.append(f"{duration(view.left_seconds)} left")
    if view.memory_bytes:
        parts.append(f"{view.memory_bytes / 1e9:.1f} GB")
    if view.cost_usd is not None:
        parts.append(f"${view.cost_usd:.4f}")
    return "  ".join(parts)


def event_line(event: Event) -> str | None:
    """What happened, in one line; None for a step, and for what nobody needs to hear."""
    said = _happened(event)
    return None if said is None else printable(said)


def _happened(event: Event) -> str | None:
    step = event.get("step")
    match event.get("event"):
        case "opening":
            return f"attempt {event.get('attempt')} opens the run on {event.get('host')}"
        case "attempt":
            restored = event.get("restored_step") or 0
            return (
                f"attempt {event.get('attempt')} goes on from step {restored}" if restored else None
            )
        case "evaluation":
            loss = number(measured((event.get("metrics") or {}).get("loss")))
            rows = rows_in_words(event.get("rows"), event.get("of_rows"))
            return f"held-out loss {loss} at step {step} ({rows} rows)"
        case "save":
            return f"saved step {step} ({size(event.get('bytes'))})"
        case "save_skipped":
            return f"WARNING: step {step} was not saved: {event.get('why')}"
        case "upload" if event.get("kind") in ("sent", "failed", "warning"):
            why = f": {event['why']}" if event.get("why") else ""
            return f"bucket: step {step} {event['kind']}{why}"
        case "alert":
            return f"ALERT {event.get('level')}: {alert_text(event)}"
        case "alert_over":
            return f"over since step {step}: {str(event.get('kind')).replace('_', ' ')}"
        case "warning" | "quarantine":
            return f"WARNING: {event.get('what')}"
        case "rollback":
            return f"back to step {event.get('back_to')}: {event.get('why')}"
        case "out_of_memory":
            tokens = event.get("cut_tokens")
            cut = f", with rows CUT to {tokens} tokens" if tokens else ""
            return f"OUT OF MEMORY at step {step}; it goes on in smaller pieces{cut}"
        case "stop":
            return _stopped(event)
    return None


def _stopped(event: Mapping[str, Any]) -> str:
    at = f" at step {event['step']}" if event.get("step") is not None else ""
    message = f": {event['message']}" if event.get("message") else ""
    return f"stopped{at}: {event.get('reason')}{message}"
