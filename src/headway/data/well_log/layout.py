"""Which parts a page has, in which order and style: drawn anew for every page.

Parts are the page's only content: the picture is drawn from them and the answer written from them.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from random import Random
from typing import Literal

from headway.data.page_text import Boxes, Field, Grid, Lines, Pairs, Part, Plain, Title
from headway.data.well_log.fields import REMARKS
from headway.data.well_log.fonts import LABELS, TITLES, VALUES
from headway.data.well_log.invented import CURVES
from headway.data.well_log.wells import Fact, Well


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a page looks. Sizes in pixels."""

    label_font: str
    value_font: str
    title_font: str
    size: int
    title_scale: float
    label_scale: float
    frame: Literal["grid", "rows", "outline", "none"]
    rule: int
    pad: int
    gap: int
    beside: bool
    """Labels beside their values, or small above them."""
    tab: bool
    """Values of lines below each other, or each behind its label."""
    underline: bool
    centred: bool
    double_frame: bool
    border: bool
    """A frame around everything."""


def style_of(rng: Random, size: int) -> Style:
    """A style around a size of letters."""
    return Style(
        label_font=rng.choice(LABELS),
        value_font=rng.choice(VALUES),
        title_font=rng.choice(TITLES),
        size=size,
        title_scale=rng.uniform(1.25, 2.0),
        label_scale=rng.choice((0.85, 0.95, 1.0)),
        frame=rng.choice(("grid", "grid", "rows", "outline", "none")),
        rule=rng.choice((1, 1, 2, 2, 3)),
        pad=rng.randint(3, 8),
        gap=rng.randint(8, 26),
        beside=rng.random() < 0.65,
        tab=rng.random() < 0.6,
        underline=rng.random() < 0.4,
        centred=rng.random() < 0.75,
        double_frame=rng.random() < 0.3,
        border=rng.random() < 0.3,
    )


def compose(well: Well, rng: Random) -> tuple[Part, ...]:
    """The parts of a page: title, who and where, then the measured in any order."""
    words = _Words(
        upper=rng.random() < 0.55, units=rng.choice(("behind", "label", "label", "none"))
    )
    body: list[Part] = []
    if well.site:
        body.append(_table(words, well.site, rng, "Well data"))
    if well.runs:
        body.append(_run_grid(words, well, rng))
    if rng.random() < 0.45:
        body.append(_boxes(words, rng))
    if rng.random() < 0.45:
        body.append(_remarks(words, rng))
    rng.shuffle(body)
    titles: list[Part] = [Title(well.log), Title(well.service)]
    rng.shuffle(titles)
    head = titles if rng.random() < 0.8 else titles[:1]
    return (*head, _identity(words, well, rng), *body)


def template(parts: tuple[Part, ...], style: Style) -> str:
    """What two pages share that differ in values only: kinds and labels of the parts, and style."""
    shape: list[object] = [asdict(style)]
    for part in parts:
        match part:
            case Title(_):
                shape.append("title")
            case Lines(pairs):
                shape.append(["lines", [label for label, _ in pairs]])
            case Pairs(rows, title):
                shape.append(["pairs", title, [[label for label, _ in row] for row in rows]])
            case Grid(corner, columns, rows, title):
                shape.append(["grid", title, corner, columns, [row[0] for row in rows]])
            case Boxes(label, boxes):
                shape.append(["boxes", label, [name for name, _ in boxes]])
            case Plain(_):
                shape.append("plain")
    return hashlib.sha256(repr(shape).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Words:
    """How labels are written on a page, and where units stand."""

    upper: bool
    units: str

    def label(self, text: str) -> str:
        """In capitals where the page has them."""
        return text.upper() if self.upper else text

    def pair(self, fact: Fact) -> Field:
        """The label and the first value, the unit with one of them."""
        label, value = self.label(fact.label), fact.values[0]
        if fact.unit and self.units == "label":
            return f"{label} ({fact.unit})", value
        if fact.unit and value and self.units == "behind":
            return label, f"{value} {fact.unit}"
        return label, value


def _identity(words: _Words, well: Well, rng: Random) -> Part:
    facts = well.identity
    if rng.random() < 0.4:
        return Lines(tuple(words.pair(fact) for fact in facts))
    return _pairs(words, facts, rng.choice((1, 1, 2)), "")


def _table(words: _Words, facts: tuple[Fact, ...], rng: Random, name: str) -> Part:
    title = words.label(name) if rng.random() < 0.4 else ""
    if any(fact.unit for fact in facts) and rng.random() < 0.35:
        rows = tuple((words.label(f.label), f.values[0], f.unit) for f in facts)
        corner = words.label(rng.choice(("Item", "Parameter", "Description")))
        return Grid(corner, (words.label("Value"), words.label("Unit")), rows, title)
    return _pairs(words, facts, rng.choice((1, 2, 2, 3)), title)


def _pairs(words: _Words, facts: tuple[Fact, ...], across: int, title: str) -> Pairs:
    pairs = [words.pair(fact) for fact in facts]
    return Pairs(tuple(tuple(pairs[i : i + across]) for i in range(0, len(pairs), across)), title)


def _run_grid(words: _Words, well: Well, rng: Random) -> Part:
    names = rng.choice((("1", "2", "3"), ("ONE", "TWO", "THREE"), ("Run 1", "Run 2", "Run 3")))
    rows = []
    for fact in well.runs:
        with_unit = fact.unit and words.units != "none"
        label = words.label(fact.label) + (f" ({fact.unit})" if with_unit else "")
        rows.append((label, *fact.values))
    corner = words.label(rng.choice(("Run no.", "Run number", "Run")))
    return Grid(corner, names[: well.num_runs], tuple(rows))


def _boxes(words: _Words, rng: Random) -> Part:
    names = rng.sample(CURVES, rng.randint(3, 6))
    label = words.label(rng.choice(("Logs run", "Services", "Curves presented", "Other services")))
    return Boxes(label, tuple((words.label(name), rng.random() < 0.5) for name in names))


def _remarks(words: _Words, rng: Random) -> Part:
    return Lines(((words.label("Remarks"), " ".join(rng.sample(REMARKS, rng.randint(1, 3)))),))
