"""Which curves a run has, and what every one of them marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from headway.report.charts import Chart, Line, Marks
from headway.report.figures import figures
from headway.report.summary import held_out_loss
from headway.report.timeline import Event, Timeline, series
from headway.report.words import number


def run_marks(told: Timeline, checkpoints: Mapping[int, int] | None = None) -> Marks:
    """Restarts and checkpoints. ``checkpoints``: step -> bytes on disk; None: not looked at."""
    saved = {int(save["step"]) for save in told.saves}
    kept = saved if checkpoints is None else set(checkpoints)
    restarts = [
        (int(attempt.get("restored_step") or 0), f"attempt {attempt.get('attempt', n)}")
        for n, attempt in enumerate(told.attempts, 1)
    ]
    return Marks(restarts=restarts[1:], kept=sorted(kept), pruned=sorted(saved - kept))


def run_charts(told: Timeline) -> list[Chart]:
    """The curves that have anything to show: loss first, the small ones after it."""
    steps = told.steps
    rates: list[Event] = [
        {"step": s["step"], "rate": s["tokens"] / s["seconds"]} for s in steps if s.get("seconds")
    ]
    memory: list[Event] = [
        {"step": s["step"], "gb": (s.get("memory_bytes") or 0) / 1e9} for s in steps
    ]
    held_out: list[Event] = [
        {"step": e["step"], "loss": held_out_loss(e)} for e in told.evaluations
    ]
    charts = [
        Chart(name="loss", title="Loss", lines=_lines(steps, "loss", noisy=True)),
        Chart(name="lr", title="Learning rate", lines=_lines(steps, "learning_rate"), zero=True),
        Chart(
            name="grad",
            title="Gradient norm",
            unit="before clipping",
            lines=_lines(steps, "grad_norm", noisy=True),
        ),
        Chart(
            name="speed",
            title="Tokens per second",
            lines=_lines(rates, "rate", noisy=True),
            zero=True,
        ),
        Chart(name="memory", title="Peak memory", unit="GB", lines=_lines(memory, "gb"), zero=True),
        Chart(
            name="cost", title="Cost so far", unit="USD", lines=_lines(steps, "cost_usd"), zero=True
        ),
    ]
    charts[0].lines.extend(_held_out_line(held_out))
    charts[1:1] = metric_charts(told.evaluations)
    return [chart for chart in charts if chart.lines]


def metric_charts(evaluations: Sequence[Event]) -> list[Chart]:
    """The main figures on held-out rows over the run, but for the loss; each with its baseline."""
    found = figures(evaluations[-1]) if len(evaluations) > 1 else None
    charts = []
    for n, name in enumerate(found.main if found else ()):
        values: list[Event] = [
            {"step": e["step"], "value": (e.get("metrics") or {}).get(name)} for e in evaluations
        ]
        lines = _held_out_line(values, "value")
        if name == "loss" or not lines:
            continue
        ends = [lines[0].steps[0], lines[0].steps[-1]]
        for baseline, value in list(found.beside(name).items())[:1] if found else ():
            level = Line(label=baseline, steps=ends, values=[value] * 2, colour="mark", dash=1)
            lines.append(level)
        charts.append(Chart(name=f"metric{n}", title=name.replace("_", " "), lines=lines))
    return charts


def _lines(events: Sequence[Event], key: str, *, noisy: bool = False) -> list[Line]:
    """One line, or none where nothing but zeros was measured."""
    steps, values = series(events, key)
    if not any(values):
        return []
    look: Literal["noisy", "plain"] = "noisy" if noisy else "plain"
    return [Line(label="training", steps=steps, values=values, look=look)]


def _held_out_line(measured: Sequence[Event], key: str = "loss") -> list[Line]:
    steps, values = series(measured, key)
    held_out = Line(label="held-out", steps=steps, values=values, look="points", colour="heldout")
    return [held_out] if steps else []


def in_words(chart: Chart) -> str:
    """A chart for those who cannot see it: where each line begins and ends."""
    lines = (
        f"{line.label} from {number(line.values[0])} at {chart.over} {_place(chart, line, 0)} "
        f"to {number(line.values[-1])} at {chart.over} {_place(chart, line, -1)}"
        for line in chart.lines
    )
    return f"{chart.title}: {'; '.join(lines)}"


def _place(chart: Chart, line: Line, at: int) -> str:
    return f"{line.steps[at]:.0f}" if chart.over == "step" else number(line.steps[at])
