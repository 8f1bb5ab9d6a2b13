"""Edits: a part, a change that leaves it a part, and a sentence in which the change can be read.

Edit i of a seed is a pure function of both. Seven in ten change one dimension, two in ten several,
one in ten none.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from headway.data.cad import wording
from headway.data.cad.families import FAMILIES, Family, Parameter, are_valid
from headway.data.cad.reading import Unreadable, read
from headway.data.cad.sampling import parts
from headway.data.cad.wording import Amount, Draws, Name
from headway.errors import DataError

Kind = Literal["single", "compound", "noop"]
MIX: dict[Kind, float] = {"single": 0.7, "compound": 0.2, "noop": 0.1}
TRIES = 200
"""A change that would leave no part, or move a hole by nothing, is drawn again."""
LEAST_SHARE = 0.05
"""Of the largest change that is asked for: a leg changes by 2.5 mm at least, a wall by 0.2 mm."""
PROOFS = 500
"""Instructions whose hash stands for the wording: a template more or less changes some of them."""
SAME_MM = 1e-6
"""A label and what is read from its text agree within this."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One instruction for one part."""

    index: int
    family: Family
    values: tuple[float, ...]
    """The part before, in mm."""
    changes: dict[str, float]
    """By parameter, in mm; empty: none."""
    instruction: str
    kind: Kind

    @property
    def target(self) -> tuple[float, ...]:
        """The part after, in mm."""
        pairs = zip(self.family.names, self.values, strict=True)
        return tuple(value + self.changes.get(name, 0.0) for name, value in pairs)


@dataclass
class Readings:
    """How many labels can be read from their texts."""

    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """One text for each reason."""

    @property
    def unreadable(self) -> int:
        """Labels that are not in their texts."""
        return sum(self.reasons.values())

    def look(self, edit: Edit, tolerance_mm: float = SAME_MM) -> bool:
        """Whether the label can be read; counted."""
        now = dict(zip(edit.family.names, edit.values, strict=True))
        try:
            found = read(edit.instruction, edit.family, now)
        except Unreadable as error:
            return self._not(f"{type(error).__name__}", f"{edit.instruction!r}: {error}")
        names = {*found, *edit.changes}
        off = [n for n in names if abs(found.get(n, 0) - edit.changes.get(n, 0)) > tolerance_mm]
        if off:
            return self._not("another change", f"{edit.instruction!r} reads as {found}")
        self.read += 1
        return True

    def _not(self, reason: str, text: str) -> bool:
        self.reasons[reason] += 1
        self.first.setdefault(reason, text)
        return False

    def refuse_beyond(self, limit: float) -> None:
        """Raise DataError where more than this share of the labels is not in the text."""
        total = self.read + self.unreadable
        if self.unreadable > limit * total:
            raise DataError(
                f"{self.unreadable:,} of {total:,} labels cannot be read from their instructions "
                f"(limit {limit:.1%}), such as {next(iter(self.first.values()))}"
            )


def edits(seed: int, first: int, count: int, mix: dict[Kind, float] | None = None) -> list[Edit]:
    """Edits ``first`` to ``first + count - 1``, of each dimension about as many."""
    numbers = np.arange(first, first + count)
    family, values = parts(seed, numbers, by_dimensions=True)
    found = []
    for row, index in enumerate(numbers.tolist()):
        kind = FAMILIES[family[row]]
        there = tuple(values[row, : len(kind.parameters)].tolist())
        found.append(_edit(seed, index, kind, there, mix or MIX))
    return found


def wording_sha256() -> str:
    """Names how instructions are worded and drawn: what a folder's rows also are a function of."""
    texts = [edit.instruction for edit in edits(0, 0, PROOFS)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _edit(
    seed: int, index: int, family: Family, values: tuple[float, ...], mix: dict[Kind, float]
) -> Edit:
    draws = Draws(seed, index)
    share, kind = draws.number() * sum(mix.values()), next(iter(mix))
    for option, part in mix.items():
        kind = option
        if share < part:
            break
        share -= part
    if kind == "noop":
        return Edit(index, family, values, {}, wording.nothing(draws, family), "noop")
    for _ in range(TRIES):
        changes, text = (_single if kind == "single" else _compound)(draws, family, values)
        moved = all(abs(change) >= least_change(family, n) for n, change in changes.items())
        edit = Edit(index, family, values, changes, text, kind)
        if changes and moved and are_valid(family, [edit.target])[0]:
            return edit
    raise DataError(f"no valid change found for the {family.name} {values}")


def least_change(family: Family, name: str) -> float:
    """The smallest change of a dimension that an edit asks for, in mm."""
    return LEAST_SHARE * family.parameters[family.place(name)].most_change


def _single(draws: Draws, family: Family, values: Sequence[float]) -> tuple[dict[str, float], str]:
    column = int(draws.number() * len(family.parameters))
    name = wording.NAMES[family.name][column]
    return _clause(draws, family, values, name)


def _compound(
    draws: Draws, family: Family, values: Sequence[float]
) -> tuple[dict[str, float], str]:
    """Several dimensions: each in its clause, alike, or all of them."""
    together = wording.TOGETHER.get(family.name, ())
    form = draws.number()
    if form < 0.25:
        return _whole(draws, family, values)
    if form < 0.5 and together:
        return _clause(draws, family, values, draws.choose(together))
    wanted = 3 if draws.happens(0.2) and len(family.parameters) > 2 else 2
    chosen: list[Name] = []
    while len(chosen) < wanted:
        name = draws.choose(wording.NAMES[family.name])
        chosen += [name] if name not in chosen else []
    clauses = [_clause(draws, family, values, name) for name in chosen]
    changes = {name: change for made, _ in clauses for name, change in made.items()}
    return changes, _joined(draws, [text for _, text in clauses])


def _joined(draws: Draws, texts: list[str]) -> str:
    last = f" and {texts[-1]}" if draws.happens(0.7) else f", {texts[-1]}"
    return ", ".join(texts[:-1]) + last


def _clause(
    draws: Draws, family: Family, values: Sequence[float], name: Name
) -> tuple[dict[str, float], str]:
    """(changes, text) of one clause; the changes need not leave a part."""
    places = [family.place(parameter) for parameter in name.parameters]
    parameter, more = family.parameters[places[0]], draws.happens(0.5)
    amount = _amount(draws, parameter, values[places[0]], one=len(places) == 1)
    changes = {}
    for parameter_name, place in zip(name.parameters, places, strict=True):
        now, way = values[place], 1 if more else -1
        if amount.kind == "to":
            changes[parameter_name] = amount.value - now
        elif amount.kind == "by":
            changes[parameter_name] = way * amount.value
        else:
            changes[parameter_name] = way * amount.value / 100 * now
    return changes, wording.clause(draws, family, name, amount, more)


def _amount(draws: Draws, parameter: Parameter, now: float, one: bool) -> Amount:
    """How much is asked for, and in which words."""
    form = draws.number()
    sized = parameter.size and now > 0
    if form < 0.12 and sized:
        word = draws.choose(tuple(wording.PERCENT_OF_WORD))
        return Amount("word", wording.PERCENT_OF_WORD[word], word)
    if form < 0.22 and sized:
        percent = float(draws.choose((5, 10, 15, 20, 25, 30, 40)))
        sign = "%" if draws.happens(0.6) else " percent"
        return Amount("percent", percent, f"{percent:g}{sign}")
    grid = 1.0 if parameter.most_change > 10 else 0.5
    if form < 0.34 and one and parameter.low >= 0:
        low = max(parameter.low, now - parameter.most_change)
        high = min(parameter.high, now + parameter.most_change)
        value = round((low + draws.number() * (high - low)) / grid) * grid
        return Amount("to", value, _plainly(draws, value))
    change = max(grid, round(draws.number() * parameter.most_change / grid) * grid)
    return Amount("by", *_written(draws, change))


def _plainly(draws: Draws, value: float) -> str:
    """A length to reach; the text is exact."""
    form = draws.number()
    if form < 0.2:
        return f"{value / 10:g} cm"
    return f"{value:g} millimeters" if form < 0.3 else f"{value:g} mm"


def _written(draws: Draws, change: float) -> tuple[float, str]:
    """(mm, text) of about this change in some unit; the text is exact."""
    form = draws.number()
    if form < 0.1 and change >= 3:
        eighths = max(1, round(change / 25.4 * 8))
        inches = eighths / 8
        return inches * 25.4, f"{inches:g} {'inch' if inches == 1 else 'inches'}"
    if form < 0.25:
        return change, f"{change / 10:g} cm"
    unit = "mm" if form < 0.9 else "millimeters"
    space = " " if unit != "mm" or draws.happens(0.6) else ""
    unit = "millimeter" if unit != "mm" and change == 1 else unit
    return change, f"{change:g}{space}{unit}"


def _whole(draws: Draws, family: Family, values: Sequence[float]) -> tuple[dict[str, float], str]:
    """Every size by the same percentage; what is not there stays away."""
    more = draws.happens(0.5)
    if draws.happens(0.5):
        word = draws.choose(tuple(wording.PERCENT_OF_WORD))
        amount = Amount("word", wording.PERCENT_OF_WORD[word], word)
    else:
        percent = float(draws.choose((5, 10, 15, 20, 25)))
        amount = Amount("percent", percent, f"{percent:g}%")
    way = 1 if more else -1
    changes = {
        parameter.name: way * amount.value / 100 * value
        for parameter, value in zip(family.parameters, values, strict=True)
        if parameter.size and value > 0
    }
    return changes, wording.whole(draws, family, amount, more)
