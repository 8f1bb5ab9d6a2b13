"""What people call a part's dimensions, and the sentences in which they ask for a change.

A sentence is made of one or more clauses. Each clause names what changes, which way, and how much:
by an amount with a sign, by an amount and a word ("20 mm longer"), to a value, by a percentage, or
by no figure at all, which means 10 percent; "a bit" means 5, "a lot" 25. Every template
is an English sentence whatever is filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from headway.data.cad.families import Family
from headway.data.cad.sampling import uniform

T = TypeVar("T")

PERCENT_OF_WORD = {"": 10.0, "a bit": 5.0, "slightly": 5.0, "a lot": 25.0, "much": 25.0}
UNITS_MM = {"mm": 1.0, "millimeters": 1.0, "cm": 10.0, "inches": 25.4}
NOOPS = (
    "keep it the same", "don't modify anything", "no changes", "leave it unchanged",
    "keep the {part} as it is", "do not change anything", "leave the {part} alone",
    "keep all dimensions", "nothing should change", "do not change {quantity}", "keep {quantity}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Name:
    """How one dimension, or several that change alike, can be spoken of."""

    parameters: tuple[str, ...]
    quantities: tuple[str, ...]
    """Take "increase", "set … to": "the width"."""
    things: tuple[tuple[str, str, str], ...] = ()
    """(what, more, less): "leg1", "longer", "shorter". "{part}" is the family's own name."""
    verbs: tuple[tuple[str, str, str], ...] = ()
    """(what, to more, to less): "leg1", "lengthen", "shorten"."""
    moves: tuple[tuple[str, str, str], ...] = ()
    """(what moves, to more, to less): "the hole", "to the right", "to the left"."""


def _leg(number: int, ordinal: str, way: str) -> Name:
    things = (f"leg{number}", f"leg {number}", f"the {ordinal} leg", f"the {way} leg")
    return Name(
        (f"leg{number}",),
        (*things, f"the length of leg{number}", f"the {ordinal} leg's length"),
        tuple((thing, "longer", "shorter") for thing in things),
        tuple((t, *v) for t in things for v in (("lengthen", "shorten"), ("extend", "shorten"))),
    )


def _sized(parameter: str, noun: str, adjectives: tuple[str, str], verbs: tuple[str, str]) -> Name:
    """A dimension of the whole part: "the width", or "make the block wider"."""
    return Name(
        (parameter,),
        (f"the {noun}", f"the {noun} of the {{part}}"),
        (("the {part}", *adjectives),),
        (("the {part}", *verbs),) if verbs[0] else (),
    )


def _round(parameter: str, quantities: tuple[str, ...], things: tuple[str, ...]) -> Name:
    """A diameter or a radius."""
    return Name(
        (parameter,),
        quantities,
        tuple((t, *w) for t in things for w in (("larger", "smaller"), ("bigger", "smaller"))),
        tuple((thing, "enlarge", "shrink") for thing in things),
    )


def _hole(number: int) -> tuple[Name, Name]:
    things = (f"hole {number}", f"hole{number}", f"the hole in leg{number}")
    quantities = tuple(f"the diameter of {thing}" for thing in things)
    return (
        _round(f"hole{number}_diameter", (*quantities, f"the hole{number} diameter"), things),
        Name(
            (f"hole{number}_distance",),
            tuple(f"the distance of {thing} from the end" for thing in things),
            moves=tuple(
                (thing, *way)
                for thing in things
                for way in (
                    ("further from the end", "closer to the end"),
                    ("away from the end", "towards the end"),
                )
            ),
        ),
    )


_LENGTH = _sized("length", "length", ("longer", "shorter"), ("lengthen", "shorten"))
_WIDTH = _sized("width", "width", ("wider", "narrower"), ("widen", "narrow"))
_HEIGHT = _sized("height", "height", ("taller", "lower"), ("raise", "lower"))
_THICKNESS = Name(
    ("thickness",),
    ("the thickness", "the wall thickness", "the thickness of the {part}"),
    (("the {part}", "thicker", "thinner"), ("the wall", "thicker", "thinner")),
    (("the wall", "thicken", "thin"),),
)
_HOLE_1, _HOLE_2 = _hole(1), _hole(2)

NAMES: dict[str, tuple[Name, ...]] = {
    "bracket": (
        _leg(1, "first", "horizontal"), _leg(2, "second", "vertical"), _WIDTH, _THICKNESS,
        _round("fillet", ("the fillet radius", "the radius of the fillet"), ("the fillet",)),
        *_HOLE_1, *_HOLE_2,
    ),
    "tube": (
        _LENGTH,
        _round("outer_diameter", ("the outer diameter", "the outside diameter"), ()),
        _round("inner_diameter", ("the inner diameter", "the bore diameter"), ("the bore",)),
    ),
    "channel": (_WIDTH, _HEIGHT, _LENGTH, _THICKNESS),
    "block": (_LENGTH, _WIDTH, _HEIGHT),
    "cylinder": (
        _LENGTH,
        _round("diameter", ("the diameter", "the diameter of the cylinder"), ()),
    ),
    "blockhole": (
        _LENGTH, _WIDTH, _HEIGHT,
        _round(
            "hole_diameter", ("the hole diameter", "the diameter of the hole"), ("the hole",)
        ),
        Name(
            ("hole_x",), ("the x position of the hole",),
            moves=(("the hole", "to the right", "to the left"),
                   ("the hole", "in the +x direction", "in the -x direction")),
        ),
        Name(
            ("hole_y",), ("the y position of the hole",),
            moves=(("the hole", "to the back", "to the front"),
                   ("the hole", "in the +y direction", "in the -y direction")),
        ),
    ),
}  # fmt: skip
"""Family -> how each of its dimensions is spoken of, in the order of its table."""

TOGETHER: dict[str, tuple[Name, ...]] = {
    "bracket": (
        Name(
            ("leg1", "leg2"),
            ("both legs", "the length of both legs"),
            (("both legs", "longer", "shorter"),),
            (("both legs", "extend", "shorten"),),
        ),
        Name(
            ("hole1_diameter", "hole2_diameter"),
            ("the diameter of both holes",),
            (("both holes", "larger", "smaller"),),
            (("both holes", "enlarge", "shrink"),),
        ),
    ),
}
"""Dimensions that one clause changes alike."""
WHOLE = (
    ("make it{word} bigger{figure}", "make it{word} smaller{figure}"),
    ("make it{word}{share} bigger", "make it{word}{share} smaller"),
    ("make the {part}{word} larger{figure}", "make the {part}{word} smaller{figure}"),
    ("enlarge it{figure}{word_after}", "shrink it{figure}{word_after}"),
    ("scale it up{figure}{word_after}", "scale it down{figure}{word_after}"),
)
"""Every size of the part by the same percentage."""
PART_NAMES = {"blockhole": "block"}
"""What a family is called in a sentence, where that is not its name."""


class Draws:
    """Choices in order, a pure function of (seed, index)."""

    def __init__(self, seed: int, index: int) -> None:
        self._seed, self._index, self._count = seed, index, 0
        self._ready: list[float] = []

    def number(self) -> float:
        """In [0, 1)."""
        if not self._ready:
            first = 1000 + 256 * self._count
            draws = range(first + 255, first - 1, -1)
            self._ready = uniform(self._seed, self._index, list(draws)).tolist()
            self._count += 1
        return self._ready.pop()

    def choose(self, options: Sequence[T]) -> T:
        """One of them, each equally likely."""
        return options[int(self.number() * len(options))]

    def happens(self, share: float) -> bool:
        """True in this share of cases."""
        return self.number() < share


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is said: in a unit, in percent, or in a word."""

    kind: str
    """``by``, ``to``, ``percent`` or ``word``."""
    value: float
    """Not negative but for ``to``. In mm; in percent."""
    text: str
    """As it is written: ``20 mm``, ``10 %``, ``a bit``, or empty."""


def clause(draws: Draws, family: Family, name: Name, amount: Amount, more: bool) -> str:
    """A sentence that asks for this amount, more or less."""
    forms = {
        "to": _to, "by": _by, "percent": _percent, "word": _word,
    }[amount.kind](name, amount.text, more)  # fmt: skip
    return draws.choose(forms).replace("{part}", spoken(family))


def _verbs(more: bool) -> tuple[str, ...]:
    return ("increase",) if more else ("reduce", "decrease")


def _to(name: Name, text: str, more: bool) -> list[str]:
    found = [f"{verb} {q} to {text}" for q in name.quantities for verb in ("set", "change")]
    found += [f"make {q} {text}" for q in name.quantities]
    return found + [f"{q} should be {text}" for q in name.quantities if not q.startswith("both")]


def _by(name: Name, text: str, more: bool) -> list[str]:
    """With a sign, or with a word instead of one."""
    sign, size = ("+", "larger") if more else ("-", "smaller")
    found = []
    for q in name.quantities:
        found += [f"{q} {sign}{text}", f"change {q} by {sign}{text}", f"adjust {q} by {sign}{text}"]
        found += [f"{verb} {q} by {text}" for verb in _verbs(more)]
        found += [f"make {q} {text} {size}"] if not q.startswith(("leg", "both")) else []
    for what, longer, shorter in name.things:
        word = longer if more else shorter
        found += [f"make {what} {text} {word}", f"{what} should be {text} {word}"]
        found += [f"{what} {text} {word}", f"make {what} {word} by {text}"]
    found += [f"{to if more else fro} {what} by {text}" for what, to, fro in name.verbs]
    for what, to, fro in name.moves:
        found += [f"move {what} {text} {to if more else fro}"] * 2
    return found


def _percent(name: Name, text: str, more: bool) -> list[str]:
    found = [f"{verb} {q} by {text}" for q in name.quantities for verb in _verbs(more)]
    for what, longer, shorter in name.things:
        found += [f"make {what} {text} {longer if more else shorter}"]
    return found + [f"{to if more else fro} {what} by {text}" for what, to, fro in name.verbs]


def _word(name: Name, text: str, more: bool) -> list[str]:
    after = {"": "", "much": " a lot"}.get(text, f" {text}")
    before = {"": "", "a lot": " much"}.get(text, f" {text}")
    found = [f"{verb} {q}{after}" for q in name.quantities for verb in _verbs(more)]
    for what, longer, shorter in name.things:
        found += [f"make {what}{before} {longer if more else shorter}"]
    return found + [f"{to if more else fro} {what}{after}" for what, to, fro in name.verbs]


def whole(draws: Draws, family: Family, amount: Amount, more: bool) -> str:
    """A sentence that asks for the whole part to become larger or smaller."""
    form = draws.choose(WHOLE)[0 if more else 1]
    text = amount.text
    figure = f" by {text}" if amount.kind == "percent" else ""
    before = {"": "", "a lot": " much"}.get(text, f" {text}") if not figure else ""
    after = {"": "", "much": " a lot"}.get(text, f" {text}") if not figure else ""
    share = f" {text}" if amount.kind == "percent" else ""
    filled = form.replace("{figure}", figure).replace("{share}", share)
    filled = filled.replace("{word_after}", after).replace("{word}", before)
    return filled.replace("{part}", spoken(family))


def nothing(draws: Draws, family: Family) -> str:
    """A sentence that asks for no change."""
    quantity = draws.choose(draws.choose(NAMES[family.name]).quantities)
    form = draws.choose(NOOPS).replace("{quantity}", quantity)
    return form.replace("{part}", spoken(family))


def spoken(family: Family) -> str:
    """What the part is called in a sentence."""
    return PART_NAMES.get(family.name, family.name)
