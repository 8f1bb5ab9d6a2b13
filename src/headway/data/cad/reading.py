"""Reads an instruction back to a change of dimensions: the proof that a label is in its text.

It shares no template with what writes instructions (``wording``): only what a phrase means by
convention, which is that a change without a figure is 10 percent, "a bit" 5 and "a lot" 25. Where
a number has a sign the sign says which way, whatever word stands beside it ("extend by -5 mm"): so
the published data of the seed system is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from headway.data.cad.families import Family

MORE = re.compile(
    r"\b(longer|lengthen|extend|increase|wider|widen|taller|raise|thicker|thicken|larger|bigger|"
    r"enlarge|grow|further|away|right|back|up)\b|(?<=the )\+[xy]\b"
)
LESS = re.compile(
    r"\b(shorter|shorten|decrease|reduce|narrower|narrow|lower|thinner|thin|smaller|shrink|closer|"
    r"towards|left|front|down)\b|(?<=the )-[xy]\b"
)
NOTHING = re.compile(
    r"\b(keep|leave|unchanged|no changes?|don't|do not|nothing|as it is|the same)\b"
)
FIGURE = re.compile(
    r"(?P<sign>[+-])?\s*(?P<number>\d+(?:\.\d+)?)\s*"
    r"(?P<unit>mm|millimet(?:er|re)s?|cm|centimet(?:er|re)s?|inch(?:es)?|in\b|percent|%)"
)
AMOUNT = r"\.\d|\s*(?:mm|millimet|cm|centimet|inch|percent|%)"
"""What follows a figure that is no leg's or hole's number: "the hole 2 mm smaller"."""
TO = re.compile(r"(\bto|=)\s*$")
SIMPLY = re.compile(r"\b(make|set|be)\b")
"""With a length, and no word for which way: "make the width 80 mm", "it should be 80 mm"."""
UNIT_MM = (("mi", 1.0), ("mm", 1.0), ("c", 10.0), ("i", 25.4))
WORDS = ((r"\b(a bit|slightly|a little)\b", 5.0), (r"\b(a lot|much)\b", 25.0))
BY_ADJECTIVE = (
    ("length", r"longer|shorter|lengthen|shorten|extend"),
    ("width", r"wider|narrower|widen|narrow"),
    ("height", r"taller|lower|raise"),
    ("thickness", r"thicker|thinner|thicken"),
)
"""The dimension that a word means when it is said of the whole part."""


class Unreadable(Exception):
    """The text does not say what changes, which way, or how much."""


def read(text: str, family: Family, values: Mapping[str, float]) -> dict[str, float]:
    """Changes in mm by parameter, of a part with these ``values``; empty: nothing changes.

    Raises Unreadable. ``values`` may lack what neither percentages nor "to" ask for.
    """
    plain = _plain(text)
    if NOTHING.search(plain) and not FIGURE.search(plain):
        return {}
    found: dict[str, float] = {}
    for said in re.split(r"\s*(?:,|;|\band\b)\s*", plain):
        if not said:
            continue
        for name in _meant(said, family):
            if name in found:
                raise Unreadable(f"{name} is changed twice in {text!r}")
            found[name] = _change(said, name, values)
    if not found:
        raise Unreadable(f"{text!r} names nothing that changes")
    return found


def _plain(text: str) -> str:
    """Lower case; legs and holes by name, so that no figure is left but amounts."""
    found = text.lower().replace("\u2212", "-").replace("\u2019", "'").strip(" .!")
    found = re.sub(rf"\b(leg|hole) ?([12])\b(?!{AMOUNT})", r"\1_\2", found)
    found = re.sub(r"\b(?:first|horizontal) leg\b", "leg_1", found)
    found = re.sub(r"\b(?:second|vertical) leg\b", "leg_2", found)
    return re.sub(r"\bhole_([12])_? diameter", r"diameter of hole_\1", found)


def _meant(said: str, family: Family) -> tuple[str, ...]:
    """Which dimensions a clause is about."""
    found = _holes(said, family) or _legs(said, family) or _named(said, family)
    if found:
        return found
    for name, pattern in BY_ADJECTIVE:
        if re.search(rf"\b(?:{pattern})\b", said):
            return _those(family, name)
    if re.search(r"\b(it|part|everything|block|bracket|tube|channel|cylinder)\b", said):
        return tuple(p.name for p in family.parameters if p.size)
    raise Unreadable(f"{said!r} names no dimension of a {family.name}")


def _holes(said: str, family: Family) -> tuple[str, ...]:
    if "both holes" in said:
        return _those(family, "hole1_diameter", "hole2_diameter")
    numbered = re.search(r"\bhole_([12])\b|\bhole in (?:the )?leg_([12])\b", said)
    if numbered:
        number = numbered[1] or numbered[2]
        distance = re.search(r"\b(end|distance)\b", said)
        return _those(family, f"hole{number}_{'distance' if distance else 'diameter'}")
    if re.search(r"\bhole\b", said) and "hole_x" in family.names:
        if re.search(r"\bright|left|\bx\b", said):
            return ("hole_x",)
        if re.search(r"\bback|front|\by\b", said):
            return ("hole_y",)
        return ("hole_diameter",)
    return ()


def _legs(said: str, family: Family) -> tuple[str, ...]:
    if re.search(r"\b(both|the) legs?\b(?!_)|\bleg lengths\b", said):
        return _those(family, "leg1", "leg2")
    one = re.search(r"\bleg_([12])\b", said)
    return _those(family, f"leg{one[1]}") if one else ()


def _named(said: str, family: Family) -> tuple[str, ...]:
    """A dimension by its noun."""
    for pattern, name in (
        (r"\b(outer|outside) diameter\b", "outer_diameter"),
        (r"\b(inner|bore) diameter\b|\bbore\b", "inner_diameter"),
        (r"\bdiameter\b", "diameter"),
        (r"\bfillet\b", "fillet"),
        (r"\b(thickness|wall)\b", "thickness"),
        (r"\bwidth\b", "width"),
        (r"\bheight\b", "height"),
        (r"\blength\b", "length"),
    ):
        if re.search(pattern, said):
            return _those(family, name)
    return ()


def _those(family: Family, *names: str) -> tuple[str, ...]:
    missing = [name for name in names if name not in family.names]
    if missing:
        raise Unreadable(f"a {family.name} has no {missing[0]}")
    return names


def _change(said: str, name: str, values: Mapping[str, float]) -> float:
    """By how much, in mm."""
    figure = FIGURE.search(said)
    figures = len(FIGURE.findall(said))
    if figures > 1 or (not figures and re.search(r"(?<!_)\d", said)):
        raise Unreadable(f"{said!r} has {figures} figures with a unit, not one")
    way = _way(said)
    if figure is None:
        share = next((p for pattern, p in WORDS if re.search(pattern, said)), 10.0)
        return _directed(way, said) * share / 100 * _present(values, name, said)
    number = float(figure["number"])
    sign = {"+": 1, "-": -1}.get(figure["sign"] or "")
    if figure["unit"] in ("percent", "%"):
        return (sign or _directed(way, said)) * number / 100 * _present(values, name, said)
    unit = figure["unit"]
    mm = number * next(scale for start, scale in UNIT_MM if unit.startswith(start))
    reached = TO.search(said[: figure.start()])
    if reached or (sign is None and way == 0 and SIMPLY.search(said)):
        return (sign or 1) * mm - _present(values, name, said)
    return (sign or _directed(way, said)) * mm


def _way(said: str) -> int:
    """1: more, -1: less, 0: it does not say."""
    return bool(MORE.search(said)) - bool(LESS.search(said))


def _directed(way: int, said: str) -> int:
    if way == 0:
        raise Unreadable(f"{said!r} does not say which way")
    return way


def _present(values: Mapping[str, float], name: str, said: str) -> float:
    """How large it is now; a hole's place has no percentage."""
    value = values.get(name, math.nan)
    if math.isnan(value):
        raise Unreadable(f"{said!r} changes {name} relative to what it is, and that is not known")
    return value
