"""Parts set as marks on a page: where every text, rule and box stands, then painted in one go.

The strings that were set are kept as they were given, whole: a test compares them with the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

from headway.data.page_text import Boxes, Field, Grid, Lines, Pairs, Part, Title
from headway.data.well_log.fonts import face, fitting, width_px
from headway.data.well_log.layout import Style

SMALLEST = 10
"""Pixels of the smallest letters there are."""
_INK = 0
_BORDER_PX = 14


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; ``y`` is its baseline."""

    x: float
    y: float
    text: str
    font: str
    size: int


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight line."""

    x0: float
    y0: float
    x1: float
    y1: float
    width: int


@dataclass(frozen=True, slots=True)
class Box:
    """A check box."""

    x: float
    y: float
    side: float
    ticked: bool


@dataclass(slots=True)
class Sheet:
    """What has been set so far, from the top, in a column of so many pixels."""

    style: Style
    width: float
    y: float = 0.0
    marks: list[Text | Rule | Box] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    """Every text as it was given, in the order it was set."""

    def write(self, text: str, x: float, y: float, width: float, font: str, size: int) -> float:
        """A text whose top left corner is (x, y), broken to a width; returns its height."""
        if not text:
            return 0.0
        self.strings.append(text)
        lines, font, size = broken(text, font, size, width)
        up, step = _ascent(font, size), line_px(font, size)
        for i, line in enumerate(lines):
            self.marks.append(Text(x, y + i * step + up, line, font, size))
        return step * len(lines)

    def rule(self, x0: float, y0: float, x1: float, y1: float, width: int | None = None) -> None:
        """A line from point to point."""
        self.marks.append(Rule(x0, y0, x1, y1, width or self.style.rule))

    def frame(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Four rules."""
        corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0))
        for a, b in pairwise(corners):
            self.rule(*a, *b)


def set_parts(parts: Sequence[Part], style: Style, width: float) -> Sheet:
    """All parts below each other, a gap between two."""
    sheet = Sheet(style, width)
    for i, part in enumerate(parts):
        if i:
            sheet.y += style.gap
        match part:
            case Title(text):
                _title(sheet, text)
            case Lines(pairs):
                _lines(sheet, pairs)
            case Pairs(rows, title):
                _heading(sheet, title)
                _pairs(sheet, rows)
            case Grid(corner, columns, rows, title):
                _heading(sheet, title)
                _grid(sheet, ((corner, *columns), *rows))
            case Boxes(label, boxes):
                _boxes(sheet, label, boxes)
    if style.border:
        sheet.frame(-_BORDER_PX, -_BORDER_PX, width + _BORDER_PX, sheet.y + _BORDER_PX)
    return sheet


def paint(sheet: Sheet, size: tuple[int, int], at: tuple[float, float], rng: Random) -> Any:
    """The marks on white paper, as a Pillow image in L; ``at``: where the sheet's corner lies."""
    from PIL import Image, ImageDraw

    image = Image.new("L", size, 255)
    draw = ImageDraw.Draw(image)
    for mark in sheet.marks:
        match mark:
            case Text(x, y, text, font, pixels):
                place = (round(x + at[0]), round(y + at[1]))
                draw.text(place, text, fill=_INK, font=face(font, pixels), anchor="ls")
            case Rule(x0, y0, x1, y1, width):
                ends = [(x0 + at[0], y0 + at[1]), (x1 + at[0], y1 + at[1])]
                draw.line([(round(x), round(y)) for x, y in ends], fill=_INK, width=width)
            case Box(x, y, side, ticked):
                _paint_box(draw, (x + at[0], y + at[1]), side, ticked, rng)
    return image


def broken(text: str, font: str, size: int, width: float) -> tuple[list[str], str, int]:
    """(lines, typeface, size) so that every line is within the width: smaller first, then broken.

    A word that is wider than the width even in the smallest letters is cut into pieces.
    """
    font = fitting(font, text)
    for pixels in range(size, max(SMALLEST, round(size * 0.8)) - 1, -1):
        if width_px(font, pixels, text) <= width:
            return [text], font, pixels
    words = text.split(" ")
    for pixels in range(size, SMALLEST - 1, -1):
        if all(width_px(font, pixels, word) <= width for word in words):
            return _filled(words, font, pixels, width), font, pixels
    letters = max(1, int(width / width_px(font, SMALLEST, "W")))
    pieces = [text[i : i + letters] for i in range(0, len(text), letters)]
    return pieces, font, SMALLEST


def line_px(font: str, size: int) -> float:
    """From one line of text to the next."""
    up, down = face(font, size).getmetrics()
    return float(min(up + down, round(1.35 * size)) + 1)


def _ascent(font: str, size: int) -> float:
    return float(min(face(font, size).getmetrics()[0], size))


def _filled(words: Sequence[str], font: str, size: int, width: float) -> list[str]:
    """Words in as few lines as there can be."""
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]} {word}"
        if width_px(font, size, longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _title(sheet: Sheet, text: str) -> None:
    style = sheet.style
    size = round(style.size * style.title_scale)
    inside = sheet.width - 4 * style.pad
    lines, font, size = broken(text, style.title_font, size, inside)
    sheet.strings.append(text)
    step = line_px(font, size)
    for line in lines:
        x = 2 * style.pad
        if style.centred:
            x += round((inside - width_px(font, size, line)) / 2)
        sheet.marks.append(Text(x, sheet.y + _ascent(font, size), line, font, size))
        sheet.y += step
    if style.double_frame:
        for y in (sheet.y + 2, sheet.y + 4 + style.rule):
            sheet.rule(0, y, sheet.width, y)
        sheet.y += 4 + 2 * style.rule


def _heading(sheet: Sheet, text: str) -> None:
    if text:
        style = sheet.style
        sheet.y += sheet.write(text, 0, sheet.y, sheet.width, style.title_font, style.size) + 2


def _label_size(style: Style) -> int:
    return max(SMALLEST, round(style.size * style.label_scale))


def _lines(sheet: Sheet, pairs: Sequence[Field]) -> None:
    style, size = sheet.style, _label_size(sheet.style)
    widths = [width_px(style.label_font, size, f"{label}:") for label, _ in pairs]
    tab = min(max(widths), sheet.width * 0.45)
    for (label, value), own in zip(pairs, widths, strict=True):
        room = min(own + 1, sheet.width * 0.45)
        y = sheet.y
        below = sheet.write(f"{label}:", 0, y, room, style.label_font, size)
        x = (tab if style.tab else room) + style.pad + 6
        below = max(
            below,
            line_px(style.value_font, style.size),
            sheet.write(value, x, y, sheet.width - x, style.value_font, style.size),
        )
        if style.underline:
            sheet.rule(x - 3, y + below, sheet.width, y + below, 1)
        sheet.y += below + max(2, style.pad)


def _pairs(sheet: Sheet, rows: Sequence[Sequence[Field]]) -> None:
    style, size, pad = sheet.style, _label_size(sheet.style), sheet.style.pad
    across = max(len(row) for row in rows)
    cell = sheet.width / across
    labels = [label for row in rows for label, _ in row]
    widest = max(width_px(style.label_font, size, label) for label in labels) + 2 * pad
    beside = min(widest, cell * 0.52)
    top, edges = sheet.y, [sheet.y]
    for row in rows:
        y, height = sheet.y + pad, line_px(style.value_font, style.size)
        for i, (label, value) in enumerate(row):
            x = i * cell + pad
            if style.beside:
                room = beside - 2 * pad
                a = sheet.write(label, x, y, room, style.label_font, size)
                x, room = i * cell + beside + pad, cell - beside - 2 * pad
                b = sheet.write(value, x, y, room, style.value_font, style.size)
                height = max(height, a, b)
            else:
                room, small = cell - 2 * pad, max(SMALLEST, round(size * 0.75))
                a = sheet.write(label, x, y, room, style.label_font, small)
                b = sheet.write(value, x, y + a, room, style.value_font, style.size)
                height = max(height, a + max(b, line_px(style.value_font, style.size)))
        sheet.y = y + height + pad
        edges.append(sheet.y)
    inner = [i * cell for i in range(1, across)]
    if style.beside and style.frame == "grid":
        inner += [i * cell + beside for i in range(across)]
    _rules(sheet, top, edges, inner)


def _grid(sheet: Sheet, rows: Sequence[Sequence[str]]) -> None:
    """Rows of texts, the first of them headings."""
    style, size, pad = sheet.style, _label_size(sheet.style), sheet.style.pad
    widest = max(width_px(style.label_font, size, row[0]) for row in rows) + 2 * pad
    first = min(max(widest, sheet.width * 0.25), sheet.width * 0.42)
    each = (sheet.width - first) / (len(rows[0]) - 1)
    starts = [0.0, *(first + i * each for i in range(len(rows[0]) - 1))]
    top, edges = sheet.y, [sheet.y]
    for n, row in enumerate(rows):
        y, height = sheet.y + pad, line_px(style.value_font, style.size)
        for i, text in enumerate(row):
            room = (first if i == 0 else each) - 2 * pad
            font = style.label_font if i == 0 or n == 0 else style.value_font
            pixels = size if i == 0 or n == 0 else style.size
            height = max(height, sheet.write(text, starts[i] + pad, y, room, font, pixels))
        sheet.y = y + height + pad
        edges.append(sheet.y)
    _rules(sheet, top, edges, starts[1:])


def _rules(sheet: Sheet, top: float, edges: Sequence[float], inner: Sequence[float]) -> None:
    """The lines of a table by the style's frame; ``edges``: of its rows, the outer ones too."""
    frame, bottom = sheet.style.frame, edges[-1]
    if frame in ("grid", "outline"):
        sheet.frame(0, top, sheet.width, bottom)
    if frame == "grid":
        for x in inner:
            sheet.rule(x, top, x, bottom, 1)
    if frame in ("grid", "rows"):
        for y in edges[1:-1] if frame == "grid" else edges:
            sheet.rule(0, y, sheet.width, y, 1)


def _boxes(sheet: Sheet, label: str, boxes: Sequence[tuple[str, bool]]) -> None:
    style, size = sheet.style, _label_size(sheet.style)
    step = max(line_px(style.label_font, size), size * 1.25) + 3
    sheet.write(f"{label}:", 0, sheet.y, sheet.width, style.label_font, size)
    x = width_px(style.label_font, size, f"{label}:") + 14
    side = round(size * 0.8)
    for name, ticked in boxes:
        needed = side + 5 + width_px(style.label_font, size, name)
        if x + needed > sheet.width:
            x, sheet.y = 14.0, sheet.y + step
        sheet.marks.append(Box(x, sheet.y + 2, side, ticked))
        sheet.write(name, x + side + 5, sheet.y, needed, style.label_font, size)
        x += needed + 16
    sheet.y += step


def _paint_box(draw: Any, at: tuple[float, float], side: float, ticked: bool, rng: Random) -> None:
    """A square, and a cross or a tick by hand in it."""
    x, y = round(at[0]), round(at[1])
    s = round(side)
    draw.rectangle([(x, y), (x + s, y + s)], outline=_INK, width=1)
    if not ticked:
        return
    out = rng.randint(0, 2)
    if rng.random() < 0.6:
        draw.line([(x - out, y - out), (x + s + out, y + s + out)], fill=_INK, width=2)
        draw.line([(x - out, y + s + out), (x + s + out, y - out)], fill=_INK, width=2)
    else:
        corners = [(x + 1, y + s // 2), (x + s // 2, y + s - 1), (x + s + out + 2, y - out - 2)]
        draw.line(corners, fill=_INK, width=2)
