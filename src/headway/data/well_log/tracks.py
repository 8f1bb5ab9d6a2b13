"""The log itself below its header: a grid and a few wandering curves, without a word."""

from __future__ import annotations

from random import Random
from typing import Any


def draw(image: Any, top: int, margin: int, rng: Random) -> None:
    """From ``top`` to the lower edge of a Pillow image, within the margins."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(image)
    left, right, bottom = margin, image.width - margin, image.height
    width = right - left
    # The depth column stands between the first track and the others.
    tracks = [(0.0, 0.36), (0.44, 0.72), (0.72, 1.0)]
    for start, end in tracks:
        a, b = left + round(start * width), left + round(end * width)
        pen.line([(a, top), (a, bottom)], fill=0, width=2)
        pen.line([(b, top), (b, bottom)], fill=0, width=2)
        for i in range(1, 10):
            x = a + round(i * (b - a) / 10)
            pen.line([(x, top), (x, bottom)], fill=150)
        for y in range(top, bottom, 11):
            pen.line([(a, y), (b, y)], fill=150 if (y - top) % 55 else 60)
        for _ in range(rng.randint(1, 2)):
            _curve(pen, (a, b), (top, bottom), rng)
    pen.line([(left, top), (right, top)], fill=0, width=2)


def _curve(pen: Any, across: tuple[int, int], down: tuple[int, int], rng: Random) -> None:
    """A value that wanders with depth and stays in its track."""
    a, b = across
    at = rng.uniform(0.2, 0.8)
    points = []
    for y in range(down[0], down[1], 3):
        at = min(0.98, max(0.02, at + rng.gauss(0, 0.05) + 0.02 * (0.5 - at)))
        points.append((a + at * (b - a), y))
    if len(points) > 1:
        pen.line(points, fill=20, width=rng.choice((1, 1, 2)))
