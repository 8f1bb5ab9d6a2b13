"""Wrong numbers that a person could have written: near the true one, and no odder than it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from random import Random

from headway.data.step_labels.arithmetic import Number


def near(number: Number, operands: Sequence[Fraction], rng: Random) -> Iterator[Fraction]:
    """Values near ``number``, each once, in an order drawn by ``rng``; never its own.

    Off by one or two, a digit slipped, two digits exchanged, a carry lost, a place lost, or off by
    an operand.
    """
    unit = Fraction(1, 10**number.decimals)
    scaled = int(number.value / unit)
    zeros = len(str(scaled)) - len(str(scaled).rstrip("0"))
    found = {value * 10**zeros for value in _slips(str(scaled // 10**zeros))}
    found |= {scaled * 10, *([scaled // 10] if zeros else [])}
    found |= {scaled + int(sign * o / unit) for o in operands for sign in (1, -1)}
    kept = sorted(n for n in found if n > 0 and n != scaled)
    order = sorted((rng.random(), n) for n in kept)
    yield from (n * unit for _, n in order)


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
