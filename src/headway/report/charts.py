"""Curves as inline SVG that takes its colours from the page, so one drawing serves light and dark.

matplotlib draws with stand-in colours; they become CSS variables afterwards, and text stays text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from headway.report.timeline import smoothed, thinned
from headway.report.words import number, short_count

POINTS = 1500
FEW = 60
"""Steps up to which a training curve is drawn as it is, without its running mean."""
"""Points per curve after thinning: about two per pixel of a wide screen."""

ROUND = [1, 2, 2.5, 5, 10]
"""Tick distances, times a power of ten."""

Role = Literal[
    "muted", "hairline", "train", "heldout", "mark", "run1", "run2", "run3", "run4", "run5"
]
Palette = Mapping[Role, str]

STAND_INS: Palette = {
    "muted": "#010101",
    "hairline": "#020202",
    "train": "#030303",
    "heldout": "#040404",
    "mark": "#050505",
    "run1": "#060606",
    "run2": "#070707",
    "run3": "#080808",
    "run4": "#090909",
    "run5": "#0a0a0a",
}
"""Drawn with, then replaced by the page's CSS variable of the same name."""

ON_WHITE: Palette = {
    "muted": "#5b6470",
    "hairline": "#e6e8eb",
    "train": "#2a5d9c",
    "heldout": "#b3541e",
    "mark": "#8a93a0",
    "run1": "#2a5d9c",
    "run2": "#b3541e",
    "run3": "#2f7a4d",
    "run4": "#8a4a9e",
    "run5": "#957000",
}
DASHES: tuple[Any, ...] = ("solid", (0, (4, 2.5)), (0, (1.2, 2)))
"""How the lines of one colour are told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measured quantity over steps."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    look: Literal["noisy", "mean", "plain", "points"] = "plain"
    """``noisy``: every value pale, a running mean over it. ``mean``: that alone. ``points``: rare,
    one marker each."""
    colour: Role = "train"
    dash: int = 0
    """Which of ``DASHES``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What one figure shows."""

    name: str
    title: str
    lines: list[Line]
    unit: str = ""
    zero: bool = False
    """Whether the value axis begins at zero."""
    over: str = "step"
    """What the lines' ``steps`` are, where they are none."""

    @property
    def logarithmic(self) -> bool:
        """Where the largest value would press all others to the floor (a gradient's spike)."""
        values = sorted(value for line in self.lines for value in line.values)
        if not values or values[0] <= 0 or self.zero:
            return False
        return values[-1] > 30 * values[len(values) // 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What every figure marks on its step axis."""

    restarts: Sequence[tuple[int, str]] = ()
    """Step gone back to, and the attempt that began there."""
    kept: Sequence[int] = ()
    """Steps whose checkpoints are on disk."""
    pruned: Sequence[int] = ()
    """Steps whose checkpoints were saved and later deleted."""


def svg(chart: Chart, marks: Marks, width: int, height: int, says: str) -> str:
    """``chart`` as an ``<svg>`` of ``width`` × ``height`` CSS pixels that may shrink.

    ``says`` is the figure in words, for those who cannot see it.
    """
    # Fixed margins in pixels: the browser's font is not the one matplotlib would measure.
    place = (46 / width, 26 / height, 1 - 54 / width, 1 - 36 / height)
    name = f"{chart.name}-{width}"
    return drawing(
        name, width, height, says,
        lambda figure: _draw(figure.add_axes(place), chart, marks, STAND_INS, width),
    )  # fmt: skip


def drawing(name: str, width: int, height: int, says: str, draw: Callable[[Any], None]) -> str:
    """What ``draw`` puts on a matplotlib figure, in stand-in colours, as an ``<svg>`` for the page.

    ``name``: that no other drawing of the page has.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    own = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": ["sans-serif"]}
    with mpl.rc_context({**_style(STAND_INS), **own}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        draw(figure)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), name, says)


def save_png(charts: Sequence[Chart], marks: Marks, to: Path, title: str) -> None:
    """``charts`` under each other in one PNG on white, for a slide or a message."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_style(ON_WHITE), "font.family": ["DejaVu Sans"]}):
        figure = Figure(figsize=(10, 3.6 * len(charts)), dpi=150, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
        grid = figure.subplots(len(charts), 1, sharex=True, squeeze=False)[:, 0]
        for axes, chart in zip(grid, charts, strict=True):
            _draw(axes, chart, marks, ON_WHITE, 720)
            axes.set_ylabel(chart.title + (f" ({chart.unit})" if chart.unit else ""))
            if len(chart.lines) > 1:
                axes.legend(frameon=False)
        grid[-1].set_xlabel("step")
        figure.savefig(to, format="png")


def _style(ink: Palette) -> dict[str, Any]:
    return {
        "font.size": 11,
        "text.color": ink["muted"],
        "axes.edgecolor": ink["hairline"],
        "axes.labelcolor": ink["muted"],
        "xtick.color": ink["muted"],
        "ytick.color": ink["muted"],
        "grid.color": ink["hairline"],
        "axes.unicode_minus": False,
        "path.simplify": True,
        "path.simplify_threshold": 0.2,
    }


def _draw(axes: Any, chart: Chart, marks: Marks, ink: Palette, width: int) -> None:
    for line in chart.lines:
        if line.look == "points":
            _plot_points(axes, line, ink[line.colour])
        else:
            _plot_curve(axes, line, ink[line.colour])
    _mark(axes, marks, ink)
    _dress(axes, chart, width)


def _plot_points(axes: Any, line: Line, colour: str) -> None:
    steps, values = thinned(line.steps, line.values, POINTS // 4)
    marker = "o" if len(steps) <= 60 else None
    look = {"linewidth": 1.6, "marker": marker, "markersize": 4, "zorder": 4}
    look["linestyle"] = DASHES[line.dash]
    axes.plot(steps, values, color=colour, label=line.label, **look)


def _plot_curve(axes: Any, line: Line, colour: str) -> None:
    noisy = line.look in ("noisy", "mean") and len(line.values) > FEW
    dash = DASHES[line.dash]
    if not noisy:
        steps, values = thinned(line.steps, line.values, POINTS)
        look = {"linewidth": 1.6, "linestyle": dash, "label": line.label, "zorder": 2}
        axes.plot(steps, values, color=colour, **look)
        return
    if line.look == "noisy":
        steps, values = thinned(line.steps, line.values, POINTS)
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.32, zorder=2)
    mean = smoothed(line.values, reach(len(line.values)))
    every = max(1, len(mean) // (POINTS // 3))
    chosen = sorted({*range(0, len(mean), every), len(mean) - 1})
    axes.plot(
        [line.steps[i] for i in chosen],
        [mean[i] for i in chosen],
        color=colour,
        linewidth=1.8,
        linestyle=dash,
        label=line.label,
        zorder=3,
    )


def reach(steps: int) -> int:
    """Neighbours on each side that the running mean takes in: one hundredth of the run."""
    return max(3, steps // 100)


def _mark(axes: Any, marks: Marks, ink: Palette) -> None:
    for step, label in marks.restarts:
        axes.axvline(step, color=ink["mark"], linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        if len(marks.restarts) <= 4:
            axes.annotate(
                label,
                (step, 1),
                xycoords=("data", "axes fraction"),
                xytext=(4, -2),
                textcoords="offset points",
                va="top",
                color=ink["muted"],
                fontsize=10,
            )
    bottom = axes.get_xaxis_transform()
    for steps, filled in ((marks.pruned, False), (marks.kept, True)):
        axes.plot(
            steps,
            [0.0] * len(steps),
            transform=bottom,
            linestyle="none",
            marker="^",
            markersize=5.5,
            color=ink["mark"],
            markerfacecolor=ink["mark"] if filled else "none",
            markeredgewidth=0.8,
            clip_on=False,
            zorder=5,
        )


def _dress(axes: Any, chart: Chart, width: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, pad=6)
    axes.margins(x=0.01, y=0.12)
    if chart.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    if chart.zero:
        axes.set_ylim(0, 1.12 * axes.dataLim.y1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    by_step = chart.over == "step"
    most = 5 if width < 600 else 8
    axes.xaxis.set_major_locator(MaxNLocator(most, steps=ROUND, integer=by_step))
    said = short_count if by_step else tick
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: said(value)))


def tick(value: float) -> str:
    """A tick's number without trailing zeros: ``0.5``, ``12,000``, ``2e-4``."""
    if value != 0 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if abs(value) >= 1e5:
        return short_count(value)
    text = number(value, 5) if abs(value) < 1e3 else f"{value:,.0f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _inline(document: str, prefix: str, says: str) -> str:
    """An SVG file made fit to stand among others in a page: no prologue, own ids, CSS colours."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.S)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    for role, stand_in in STAND_INS.items():
        body = body.replace(stand_in, f"var(--{role})")
    body = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" '
        rf'aria-label="{escape(says)}">',
        body,
        count=1,
        flags=re.S,
    )
    return body.strip()
