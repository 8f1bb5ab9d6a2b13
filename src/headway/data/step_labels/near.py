"""Wrong numbers that a person could have written: near the true one, and no odder than it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import log
from random import Random

from headway.data.step_labels.arithmetic import Number

_LAST_DIGIT_SHARE = (
    (0.130, 0.149, 0.135, 0.132, 0.099, 0.146, 0.046, 0.098, 0.065),
    (0.058, 0.183, 0.045, 0.145, 0.230, 0.136, 0.044, 0.128, 0.031),
)
"""Share of each last digit but 0 (1 to 9) in the 23,704 results of GSM8K's training notes, for
numbers of one digit, zeros aside, and of more."""


def near(number: Number, operands: Sequence[Fraction], rng: Random) -> Iterator[Fraction]:
    """Values near ``number``, each once, in an order drawn by ``rng``; never its own.

    Off by one or two, a digit slipped, two digits exchanged, a carry lost, a place lost, or off by
    an operand.
    """
    unit = Fraction(1, 10**number.decimals)
    scaled = int(number.value / unit)
    zeros = _zeros(scaled)
    found = {value * 10**zeros for value in _slips(str(scaled // 10**zeros))}
    found |= {scaled * 10, *([scaled // 10] if zeros else [])}
    found |= {scaled + int(sign * o / unit) for o in operands for sign in (1, -1)}
    kept = sorted(n for n in found if n > 0 and n != scaled)
    order = sorted((-log(1 - rng.random()) / _ease(n, scaled), n) for n in kept)
    yield from (n * unit for _, n in order)


def _ease(wrong: int, true: int) -> float:
    """How often ``wrong`` is drawn: as often as numbers of its looks are right ones.

    Right results end in an even digit or 5 more often than in 7 or 9, and slips that change the
    length or the zeros at the end can be seen without reading; both would give errors away.
    """
    same_shape = len(str(wrong)) == len(str(true)) and _zeros(wrong) == _zeros(true)
    digits = str(wrong).rstrip("0")
    share = _LAST_DIGIT_SHARE[len(digits) > 1][int(digits[-1]) - 1]
    return share * (1.0 if same_shape else 0.1)


def _zeros(value: int) -> int:
    return len(str(value)) - len(str(value).rstrip("0"))


def _slips(digits: str) -> set[int]:
    """Slips of the pen in ``digits``, which end in no zero."""
    value = int(digits)
    found = {value + step for step in (-2, -1, 1, 2)}
    if len(digits) > 1:
        found |= {value + 10, value - 10}
    if len(digits) > 2:
        found |= {value + 100, value - 100}
    for i in range(len(digits) - 1):
        found.add(int(digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :]))
    return found
