"""A curve in the terminal: eight dots to a character, axes in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from headway.report.words import number, short_count

# Unicode braille: U+2800 plus one bit per dot, columns left and right, rows from the top.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def plot(
    steps: Sequence[float], values: Sequence[float], *, width: int = 72, height: int = 12
) -> list[str]:
    """Lines of text that draw ``values`` over ``steps`` on ``width`` × ``height`` characters."""
    pairs = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    if not pairs:
        return ["(nothing measured)"]
    first, last = pairs[0][0], pairs[-1][0]
    low, high = min(y for _, y in pairs), max(y for _, y in pairs)
    rows = height * 4
    cells = [[0] * width for _ in range(height)]
    before: int | None = None
    for x, y in _without_gaps(pairs, width * 2):
        column = _place(x, first, last, width * 2)
        row = rows - 1 - _place(y, low, high, rows)
        start = row if before is None else before
        for dot in range(min(start, row), max(start, row) + 1):
            cells[dot // 4][column // 2] |= DOTS[dot % 4][column % 2]
        before = row
    labels = {0: number(high), height - 1: number(low)}
    if height > 4:
        labels[height // 2] = number(high - (high - low) * (height // 2) / (height - 1))
    margin = max(len(label) for label in labels.values())
    lines = [
        f"{labels.get(n, ''):>{margin}} ┤"
        + "".join(chr(0x2800 + cell) for cell in row).rstrip("\u2800")
        for n, row in enumerate(cells)
    ]
    left, right = short_count(first), f"step {short_count(last)}"
    lines.append(" " * (margin + 2) + left + right.rjust(max(1, width - len(left))))
    return lines


def _without_gaps(
    pairs: Sequence[tuple[float, float]], columns: int
) -> Iterator[tuple[float, float]]:
    """The points, and straight lines between those further apart than half a column."""
    column = (pairs[-1][0] - pairs[0][0]) / (2 * columns)
    for (x, y), (x_next, y_next) in pairwise(pairs):
        parts = max(1, math.ceil((x_next - x) / column)) if column > 0 else 1
        for n in range(parts):
            yield x + (x_next - x) * n / parts, y + (y_next - y) * n / parts
    yield pairs[-1]


def _place(value: float, low: float, high: float, places: int) -> int:
    """Which of ``places`` equal bins of [low, high] ``value`` falls in."""
    if high <= low:
        return places // 2
    return min(places - 1, int((value - low) / (high - low) * places))
