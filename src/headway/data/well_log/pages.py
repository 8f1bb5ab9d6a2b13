"""One page: picture and answer as a pure function of (options, side, index).

A strip is a line or two of text cut from a header, a field one label and its value, a word one of
their words: for models too small to read a page. A crop is the header alone, its width 4/3 of its
height. A page is as high as its parts, log tracks below.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import numpy as np

from headway.data.order import row_at
from headway.data.page_text import Field, Lines, Pairs, Part, Plain, Title, fields, markdown
from headway.data.well_log import scan, tracks
from headway.data.well_log.drawing import SMALLEST, Rule, Sheet, Text, paint, set_parts
from headway.data.well_log.fonts import LABELS, VALUES, face, fitting, width_px
from headway.data.well_log.invented import MOST_WELLS
from headway.data.well_log.layout import Style, compose, style_of, template
from headway.data.well_log.wells import Fact, Sources, Well, well_at
from headway.errors import ConfigError

Side = Literal["train", "eval"]
Size = Literal["page", "crop", "strip", "field", "word"]
SIZES: tuple[Size, ...] = ("page", "crop", "strip", "field", "word")
LINES: tuple[Size, ...] = ("strip", "field", "word")
MOST_PAGES = MOST_WELLS // 2
"""On each side: half of all wells there are."""

INSTRUCTION = (
    "Convert the page to Markdown and return nothing else: no explanation, no code fence. Keep "
    "headings and remarks. Write tables as HTML, and check boxes as ☐ or ☑."
)
STRIP_INSTRUCTION = "Read the text."
STRIP_HEIGHT_PX = 32
STRIP_WIDTHS_PX = (384, 416, 448, 480, 512)
FIELD_STEP_PX, FIELD_MARGIN_PX = 32, 4
"""Fields have few widths, so that many pictures of a batch are of one size."""
MOST_LETTERS = 12
"""Of a word."""
_HIGHEST_PX = 1500
_TRIES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to generate."""

    train: int
    eval: int
    size: Size = "page"
    seed: int = 0
    noise: float = 1.0
    """How worn the pages are: 0 is a clean drawing (PNG), 1 the whole range (JPEG)."""
    lines: int = 1
    """Most lines of a strip; each is 32 pixels high."""
    las: str | None = None
    """Folder of LAS files whose headers are used."""

    def checked(self) -> Options:
        """Itself. ConfigError names the option that cannot be."""
        for name, count in (("train", self.train), ("eval", self.eval)):
            if not 0 <= count <= MOST_PAGES:
                raise ConfigError(f"--{name} {count}: between 0 and {MOST_PAGES:,} pages")
        if self.train + self.eval == 0:
            raise ConfigError("--train 0 --eval 0: nothing to generate; ask for some pages")
        if self.size not in SIZES:
            raise ConfigError(f"--size {self.size}: write one of {', '.join(SIZES)}")
        if not 0 <= self.noise <= 1:
            raise ConfigError(f"--noise {self.noise}: between 0 (clean) and 1")
        if not 1 <= self.lines <= 2:
            raise ConfigError(f"--lines {self.lines}: a strip has 1 or 2 lines")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page and what it says."""

    image: bytes
    suffix: str
    """.jpg or .png."""
    width_px: int
    height_px: int
    answer: str
    fields: tuple[Field, ...]
    strings: tuple[str, ...]
    """Every text that was drawn."""
    well: Well
    template: str
    instruction: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawing before the scanner."""

    image: Any
    sheet: Sheet
    parts: tuple[Part, ...]


def page_at(options: Options, sources: Sources, side: Side, index: int) -> Page:
    """The page of an index on a side; nothing else decides what it is."""
    digest = hashlib.sha256(f"well-log\n{options.seed}\n{side}\n{index}".encode()).digest()
    rng = Random(int.from_bytes(digest[:16], "big"))
    # The two sides take their wells from two halves of one permutation: they cannot meet, and the
    # held-out wells stay the same when more are asked for to train.
    position = index + (MOST_PAGES if side == "eval" else 0)
    well = well_at(row_at(options.seed, position, MOST_WELLS), rng, sources)
    draw = {"page": _page, "crop": _crop, "strip": _strip, "field": _field, "word": _word}[
        options.size
    ]
    drawn = draw(well, rng, options.lines)
    wear = scan.STRIP if options.size in LINES else scan.PAGE
    noise = np.random.default_rng(int.from_bytes(digest[16:], "big"))
    image, suffix = scan.scanned(drawn.image, noise, wear, options.noise)
    return Page(
        image=image,
        suffix=suffix,
        width_px=drawn.image.width,
        height_px=drawn.image.height,
        answer=markdown(drawn.parts),
        fields=tuple(fields(drawn.parts)),
        strings=tuple(drawn.sheet.strings),
        well=well,
        template=template(drawn.parts, drawn.sheet.style),
        instruction=STRIP_INSTRUCTION if options.size in LINES else INSTRUCTION,
    )


def _page(well: Well, rng: Random, _: int) -> Drawn:
    width, margin = rng.randint(860, 1080), rng.randint(40, 64)
    style = style_of(rng, rng.randint(17, 23))
    parts = compose(well, rng)
    sheet = set_parts(parts, style, width - 2 * margin)
    while sheet.y > _HIGHEST_PX - 2 * margin and len(parts) > _fewest(parts):
        parts = parts[:-1]
        sheet = set_parts(parts, style, width - 2 * margin)
    below = rng.choice((0, 0, rng.randint(120, 260)))
    if sheet.y < 0.6 * width:
        below = rng.randint(200, 420)
    height = round(sheet.y) + 2 * margin + below
    image = paint(sheet, (width, height), (margin, margin), rng)
    if below:
        tracks.draw(image, round(sheet.y) + margin + 24, margin, rng)
    return Drawn(image, sheet, parts)


def _crop(well: Well, rng: Random, _: int) -> Drawn:
    height = rng.randint(660, 800)
    width, margin = round(height * 4 / 3), rng.randint(26, 44)
    style = style_of(rng, rng.randint(15, 19))
    parts = compose(_shortened(well, rng), rng)
    while True:
        sheet = set_parts(parts, style, width - 2 * margin)
        if sheet.y <= height - 2 * margin:
            break
        if style.size > 13:
            smaller = max(3, style.pad - 1)
            style = replace(style, size=style.size - 1, pad=smaller, gap=max(7, style.gap - 4))
        elif len(parts) > _fewest(parts):
            parts = parts[:-1]
        else:
            parts = (*parts[:-1], _without_its_last(parts[-1]))
    image = paint(sheet, (width, height), (margin, margin), rng)
    if height - margin - sheet.y > 110:
        tracks.draw(image, round(sheet.y) + margin + 20, margin, rng)
    return Drawn(image, sheet, parts)


def _fewest(parts: tuple[Part, ...]) -> int:
    """The titles and what says which well it is: these are never left out."""
    return 1 + sum(isinstance(part, Title) for part in parts)


def _without_its_last(part: Part) -> Part:
    """A row or line less; what has only one stays."""
    match part:
        case Lines(pairs) if len(pairs) > 1:
            return Lines(pairs[:-1])
        case Pairs(rows, title) if len(rows) > 1:
            return Pairs(rows[:-1], title)
        case _:
            return part


def _shortened(well: Well, rng: Random) -> Well:
    """As many of its measurements as a crop has room for."""

    def some(facts: tuple[Fact, ...], most: int) -> tuple[Fact, ...]:
        count = min(len(facts), rng.randint(3, most))
        return tuple(facts[i] for i in sorted(rng.sample(range(len(facts)), count)))

    return replace(well, site=some(well.site, 8), runs=some(well.runs, 10))


def _strip(well: Well, rng: Random, most_lines: int) -> Drawn:
    lines = rng.randint(1, most_lines)
    width = rng.choice(STRIP_WIDTHS_PX)
    style = _line_style(rng)
    upper = rng.random() < 0.6
    facts = _short_facts(well)
    sheet = Sheet(style, width)
    pairs: list[Field] = []
    for line in range(lines):
        pairs += _strip_line(sheet, facts, upper, line * STRIP_HEIGHT_PX, rng)
    size = (width, lines * STRIP_HEIGHT_PX)
    return Drawn(paint(sheet, size, (0, 0), rng), sheet, (Lines(tuple(pairs)),))


def _field(well: Well, rng: Random, _: int) -> Drawn:
    """A label and its value, cut out to their width."""
    style, upper = _line_style(rng), rng.random() < 0.6
    facts = _short_facts(well)
    telling = [f for f in facts if _telling(f)]
    for _try in range(_TRIES):
        fact = rng.choice(telling if telling and rng.random() < 0.9 else facts)
        pairs = [(fact.label.upper() if upper else fact.label, fact.values[0])]
        wide = _line_px(style, pairs, style.size)
        if wide <= max(STRIP_WIDTHS_PX) - 2 * FIELD_MARGIN_PX:
            break
    else:
        pairs = [("WELL", facts[0].values[0][:24])]
        wide = _line_px(style, pairs, style.size)
    width = _cut_out(wide)
    sheet = Sheet(style, width)
    _set_line(sheet, pairs, style.size, (_place(rng, width, wide), 0), rng)
    return Drawn(paint(sheet, (width, STRIP_HEIGHT_PX), (0, 0), rng), sheet, (Lines(tuple(pairs)),))


def _word(well: Well, rng: Random, _: int) -> Drawn:
    """A word of a label or of a value, cut out to its width."""
    style, upper = _line_style(rng), rng.random() < 0.6
    fact = rng.choice(_short_facts(well))
    label = fact.label.upper() if upper else fact.label
    font, text = rng.choice([(style.label_font, label), (style.value_font, fact.values[0])])
    word = rng.choice(text.split())[:MOST_LETTERS]
    wide = width_px(font, style.size, word)
    width = _cut_out(wide)
    sheet = Sheet(style, width)
    face(font, style.size)
    x, baseline = _place(rng, width, wide), _baseline(style.size, rng)
    sheet.marks.append(Text(x, baseline, word, fitting(font, word), style.size))
    sheet.strings.append(word)
    image = paint(sheet, (width, STRIP_HEIGHT_PX), (0, 0), rng)
    return Drawn(image, sheet, (Plain(word),))


def _cut_out(wide: float) -> int:
    return -(-(int(wide) + 2 * FIELD_MARGIN_PX) // FIELD_STEP_PX) * FIELD_STEP_PX


def _place(rng: Random, width: int, wide: float) -> float:
    return FIELD_MARGIN_PX + rng.random() * (width - wide - 2 * FIELD_MARGIN_PX)


def _line_style(rng: Random) -> Style:
    style = replace(style_of(rng, rng.randint(15, 20)), label_font=rng.choice(LABELS))
    return replace(style, value_font=rng.choice(VALUES))


def _short_facts(well: Well) -> list[Fact]:
    """Facts of one line in plain ASCII with a value, those that tell a well twice as often."""
    facts = [*well.identity, *well.identity, *well.site, *well.runs]
    plain = [f for f in facts if f.values[0] and (f.label + f.values[0]).isascii()]
    return plain or [Fact("WELL", (well.name,))]


def _strip_line(
    sheet: Sheet, facts: list[Fact], upper: bool, top: float, rng: Random
) -> list[Field]:
    """One or two pairs on a line; what is too long for it is not taken."""
    style, room = sheet.style, sheet.width - 16
    for attempt in range(_TRIES):
        chosen = [rng.choice(facts)]
        # What many wells say alike (TEXAS, GEL CHEM) comes with something else of this one: a
        # held-out strip is then seldom one that was trained on, word for word.
        if attempt < _TRIES // 2 and (not _telling(chosen[0]) or rng.random() < 0.25):
            chosen.append(rng.choice(facts))
        labels = [f.label.upper() if upper else f.label for f in chosen]
        pairs = [(label, f.values[0]) for label, f in zip(labels, chosen, strict=True)]
        if len({label for label, _ in pairs}) < len(pairs):
            continue
        for size in range(style.size, 12, -1):
            if (wide := _line_px(style, pairs, size)) <= room:
                _set_line(sheet, pairs, size, (8 + rng.random() * (room - wide), top), rng)
                return pairs
    # Nothing of this well fits: its name, in letters that do.
    pairs = [("WELL", facts[0].values[0][:24])]
    _set_line(sheet, pairs, SMALLEST, (8, top), rng)
    return pairs


def _telling(fact: Fact) -> bool:
    value = fact.values[0]
    return len(value) >= 12 or sum(c.isdigit() for c in value) >= 4


def _line_px(style: Style, pairs: list[Field], size: int) -> float:
    texts = sum(
        width_px(style.label_font, size, f"{label}:") + width_px(style.value_font, size, value)
        for label, value in pairs
    )
    return texts + 10 * len(pairs) + 36 * (len(pairs) - 1)


def _baseline(size: int, rng: Random) -> float:
    return STRIP_HEIGHT_PX / 2 + size * 0.36 + rng.uniform(-2, 2)


def _set_line(
    sheet: Sheet, pairs: list[Field], size: int, at: tuple[float, float], rng: Random
) -> None:
    style, (x, top) = sheet.style, at
    baseline = top + _baseline(size, rng)
    for label, value in pairs:
        start = x
        for text, font in ((f"{label}:", style.label_font), (value, style.value_font)):
            face(font, size)
            sheet.marks.append(Text(x, baseline, text, fitting(font, text), size))
            sheet.strings.append(text)
            x += width_px(font, size, text) + 10
        if style.underline:
            y = min(baseline + 5, top + STRIP_HEIGHT_PX - 2)
            sheet.marks.append(Rule(start, y, x - 10, y, 1))
        x += 26
