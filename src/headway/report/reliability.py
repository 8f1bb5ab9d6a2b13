"""Whether a prediction means what it says: predicted against observed, bin by bin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headway.report.charts import STAND_INS, drawing, tick
from headway.report.page import table
from headway.report.timeline import Event, measured
from headway.report.words import count, number

WIDTH, HEIGHT = 440, 500
LARGEST = 150.0
"""Area of the dot of the fullest bin, in square points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Values predicted within [low, high), and their means; None where there are none."""

    low: float
    high: float
    n: int
    predicted: float | None
    observed: float | None


def bins_of(evaluation: Event) -> list[Bin]:
    """The evaluation's ``reliability`` table; empty where it has none that can be drawn."""
    found = []
    for row in (evaluation.get("tables") or {}).get("reliability") or ():
        if not isinstance(row, Mapping):
            return []
        low, high, n = (_finite(row.get(key)) for key in ("low", "high", "n"))
        if low is None or high is None or n is None or not low < high:
            return []
        means = {"predicted": row.get("mean_predicted"), "observed": row.get("mean_target")}
        means = {key: _finite(value) for key, value in means.items()}
        found.append(Bin(low=low, high=high, n=int(n), **means))
    drawable = (b.predicted is not None and b.observed is not None for b in found)
    return found if any(drawable) else []


def calibration(bins: Sequence[Bin], step: int) -> str:
    """The diagram and its numbers, beside each other where there is room."""
    head = [
        ("", "predicted"),
        ("", "n"),
        ("", "mean predicted"),
        ("", "mean observed"),
        ("", "gap"),
    ]
    rows = []
    for b in bins:
        gap = None if b.predicted is None or b.observed is None else b.observed - b.predicted
        cells = [f"{tick(b.low)} – {tick(b.high)}", count(b.n)]
        cells += [number(b.predicted, 3), number(b.observed, 3)]
        rows.append(("", [*cells, "–" if gap is None else f"{gap:+.2g}"]))
    return (
        f'<h3 class="part">Predicted against observed, at step {count(step)}</h3>'
        '<p class="note">Held-out values in bins of what was predicted for them: on the dashed '
        "line a prediction means what it says. A dot’s area, and the bars below, say how many "
        'values a bin holds.</p><div class="pair calibration">'
        "<figure><figcaption>Up: mean observed. Across: mean predicted.</figcaption>"
        f"{_drawn(bins)}</figure>{table(head, rows)}</div>"
    )


def _drawn(bins: Sequence[Bin]) -> str:
    points = [
        f"predicted {number(b.predicted, 3)}, observed {number(b.observed, 3)} (n {count(b.n)})"
        for b in bins
        if b.predicted is not None
    ]
    says = f"Predicted against observed: {'; '.join(points)}"
    return drawing("reliability", WIDTH, HEIGHT, says, lambda figure: _draw(figure, bins))


def _draw(figure: Any, bins: Sequence[Bin]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    left, right, side = 46 / WIDTH, 1 - 46 / WIDTH - 10 / WIDTH, WIDTH - 56
    upper = figure.add_axes((left, 1 - (side + 8) / HEIGHT, right, side / HEIGHT))
    lower = figure.add_axes((left, 26 / HEIGHT, right, 58 / HEIGHT), sharex=upper)
    low, high = bins[0].low, bins[-1].high
    ink = STAND_INS
    upper.plot([low, high], [low, high], color=ink["mark"], linewidth=1, linestyle=(0, (4, 4)))
    most = max(1, *(b.n for b in bins))
    dots = [
        (b.predicted, b.observed, max(10.0, LARGEST * b.n / most))
        for b in bins
        if b.predicted is not None and b.observed is not None
    ]
    x, y, areas = (list(column) for column in zip(*dots, strict=True))
    upper.plot(x, y, color=ink["train"], linewidth=1.2, alpha=0.5, zorder=2)
    upper.scatter(x, y, s=areas, color=ink["train"], linewidths=0, zorder=3, clip_on=False)
    widths = [0.86 * (b.high - b.low) for b in bins]
    middles = [(b.low + b.high) / 2 for b in bins]
    lower.bar(middles, [b.n for b in bins], widths, color=ink["train"], alpha=0.45, linewidth=0)
    room = 0.03 * (high - low)
    upper.set_xlim(low - room, high + room)
    upper.set_ylim(min(low, *y) - room, max(high, *y) + room)
    for axes in (upper, lower):
        for name in ("left", "right", "top"):
            axes.spines[name].set_visible(False)
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0, pad=6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5 if axes is upper else 2, integer=axes is lower))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    upper.tick_params(labelbottom=False)


def _finite(value: Any) -> float | None:
    found = measured(value)
    return found if found is not None and math.isfinite(found) else None
