"""Parts beside each other, drawn as lines to one scale."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headway.data.cad.families import Family, Values

Line = NDArray[np.float64]
"""[points, 3] in mm."""
VIEW = np.array([[math.cos(0.6), math.sin(0.6), 0.0],
                 [-math.sin(0.6) * 0.5, math.cos(0.6) * 0.5, 0.87]])  # fmt: skip
"""What is right and what is up on the picture: from above, in front, to the left."""
BEFORE, AFTER, WANTED = "#9aa3ad", "#1f5fbf", "#2e7d32"
BENEATH = "#c3c9d0"
CELL_INCHES = (2.7, 2.5)
"""Of one part on the picture; the title is above."""
TITLE_INCHES = 0.5
COLOURS = 48
"""Of a picture: a third of the bytes that it would have with all of them."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One part on a picture."""

    title: str
    family: Family
    values: Values
    """[parameters] in mm, finite; what makes no part is drawn as far as it can be."""
    colour: str
    beneath: tuple[Family, Values] | None = None
    """Another part, drawn pale in the same place: what this one should be."""


def draw_before_after(path: Path, family: Family, before: Values, after: Values) -> None:
    """A PNG with both parts, to the same scale."""
    changed = [
        f"{name} {was:.1f} → {now:.1f} mm"
        for name, was, now in zip(family.names, before, after, strict=True)
        if abs(now - was) >= 0.05
    ]
    parts = [Drawn("before", family, before, BEFORE), Drawn("after", family, after, AFTER)]
    path.write_bytes(drawn(parts, f"{family.name}: " + (", ".join(changed) or "no change")))


def drawn(parts: Sequence[Drawn], title: str = "") -> bytes:
    """A PNG of 10 to 20 kB with these parts side by side, to the same scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib needs it, so it is there

    width, height = CELL_INCHES[0] * len(parts), CELL_INCHES[1] + TITLE_INCHES
    figure = Figure(figsize=(width, height), dpi=110)
    canvas = FigureCanvasAgg(figure)
    sets = [[_flat(part.family, part.values), *_beneath(part)] for part in parts]
    points = np.concatenate([line for lines in sets for flat in lines for line in flat])
    low, high = points.min(0), points.max(0)
    room = 0.06 * float(np.max(high - low)) + 1e-6
    for place, (part, lines) in enumerate(zip(parts, sets, strict=True)):
        left, share = place / len(parts), CELL_INCHES[1] / height
        axes = figure.add_axes((left, 0, 1 / len(parts), share))
        for flat, colour in zip(lines, (part.colour, BENEATH), strict=False):
            axes.add_collection(
                LineCollection(flat, colors=colour, linewidths=1.2, zorder=1 + (colour != BENEATH))
            )
        axes.set_xlim(low[0] - room, high[0] + room)
        axes.set_ylim(low[1] - room, high[1] + room)
        axes.set_aspect("equal")
        axes.set_axis_off()
        figure.text(left + 0.5 / len(parts), share, part.title, ha="center", va="bottom", size=10)
    figure.text(0.5, 0.985, title, ha="center", va="top", size=9)
    canvas.draw()
    stream = io.BytesIO()
    few = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(COLOURS)
    few.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _beneath(part: Drawn) -> list[list[Line]]:
    return [_flat(*part.beneath)] if part.beneath else []


def _flat(family: Family, values: Values) -> list[Line]:
    """The edges of a part as [points, 2] on the picture."""
    return [line @ VIEW.T for line in outline(family, values)]


def outline(family: Family, values: ArrayLike) -> list[Line]:
    """The edges of a part, a fillet as an arc."""
    v = dict(zip(family.names, np.asarray(values, dtype=np.float64).tolist(), strict=True))
    if family.name in ("tube", "cylinder"):
        diameters = [v[n] for n in ("outer_diameter", "diameter", "inner_diameter") if n in v]
        found = [_circle(d, (0, 0, z), 2) for d in diameters for z in (0.0, v["length"])]
        silhouette = diameters[0] / 2 * np.array([math.cos(0.6), math.sin(0.6), 0.0])
        up = np.array([0.0, 0.0, v["length"]])
        return found + [np.stack([s * silhouette, s * silhouette + up]) for s in (-1, 1)]
    if family.name == "bracket":
        return _bracket(v)
    if family.name == "channel":
        w, h, t = v["width"], v["height"], v["thickness"]
        profile = [(0, 0), (w, 0), (w, h), (w - t, h), (w - t, t), (t, t), (t, h), (0, h)]
        return _drawn_out(profile, v["length"])
    length, height = v["length"], v["height"]
    found = _drawn_out([(0, 0), (length, 0), (length, height), (0, height)], v["width"])
    if "hole_x" in v:
        centre = (length / 2 + v["hole_x"], v["hole_y"])
        found += [_circle(v["hole_diameter"], (*centre, z), 2) for z in (0.0, height)]
    return found


def _bracket(v: dict[str, float]) -> list[Line]:
    a, b, t, r = v["leg1"], v["leg2"], v["thickness"], v["fillet"]
    turn = np.linspace(1.5 * math.pi, math.pi, 12)
    arc = [(t + r + r * math.cos(k), t + r + r * math.sin(k)) for k in turn] if r else [(t, t)]
    profile = [(0.0, 0.0), (a, 0.0), (a, t), *arc, (t, b), (0.0, b)]
    found = _drawn_out(profile, v["width"], smooth=range(4, 3 + len(arc) - 1))
    for z in (0.0, t):
        found.append(_circle(v["hole1_diameter"], (a - v["hole1_distance"], 0, z), 2))
    for x in (0.0, t):
        found.append(_circle(v["hole2_diameter"], (x, 0, b - v["hole2_distance"]), 0))
    return found


def _drawn_out(
    profile: list[tuple[float, float]], depth: float, smooth: range = range(0)
) -> list[Line]:
    """A profile in (x, z) at both ends, and the lines between its corners."""
    found = []
    for y in (-depth / 2, depth / 2):
        found.append(np.array([(x, y, z) for x, z in [*profile, profile[0]]]))
    for number, (x, z) in enumerate(profile):
        if number not in smooth:
            found.append(np.array([(x, -depth / 2, z), (x, depth / 2, z)]))
    return found


def _circle(diameter: float, centre: tuple[float, float, float], axis: int) -> Line:
    turn = np.linspace(0, 2 * math.pi, 49)
    found = np.zeros((len(turn), 3)) + np.array(centre)
    one, other = (k for k in range(3) if k != axis)
    found[:, one] += diameter / 2 * np.cos(turn)
    found[:, other] += diameter / 2 * np.sin(turn)
    return found
