"""What can be checked of a step without a model: its sums, and where its numbers come from.

A small language model reads well and computes badly. So a calculator redoes each written equation,
and each number that a step uses is looked for in the problem and in the steps before. A step in
which one of these fails is doubtful, and so is what is done with its numbers later on. That is
evidence, not a verdict: a number may come from common knowledge, and a wrong one may stand in the
problem too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.data.step_labels.arithmetic import NUMBER, Number, false_equation

CHECKS = (
    "has an equation",
    "an equation does not hold",
    "uses a number from nowhere",
    "numbers from nowhere, to 3",
    "uses a number of a doubtful step",
    "an equation before did not hold",
    "a step before used a number from nowhere",
    "uses the result of an equation before",
    "results that no step has used yet, to 3",
    "says the last result again, without an equation",
)
"""What the numbers of ``checked`` are, in order: 0 or 1, or a count over 3. ``models.score`` has
their number."""

DOUBTS = (
    "an equation does not hold",
    "uses a number from nowhere",
    "uses a number of a doubtful step",
)
"""Those of ``CHECKS`` that speak against a step."""

_RESULT = re.compile(
    r"(?:=>?|≈)\s*(?:about |approximately )?[-−–]?(?:\\boxed\{|\*\*|\\?[$€£]|\()*\s*$"
)
"""What stands right before the result of an equation."""
_LOOK_BACK = 40
_NUMBERING = re.compile(r"^\s*(?:step\s*)?\d+\s*[.:)]\s", re.IGNORECASE)
_SAID = {
    "1/2": "half", "1/3": "third", "1/4": "quarter", "1": "one once",
    "2": "two twice double doubled pair couple both", "3": "three thrice triple tripled",
    "4": "four quadruple", "5": "five", "6": "six", "7": "seven week weeks weekly", "8": "eight",
    "9": "nine", "10": "ten", "11": "eleven", "12": "twelve dozen dozens year years yearly",
    "15": "fifteen", "20": "twenty", "24": "day days daily", "30": "thirty month months monthly",
    "40": "forty", "50": "fifty", "60": "sixty hour hours hourly minute minutes",
}  # fmt: skip
_WORDS = {word: Fraction(value) for value, words in _SAID.items() for word in words.split()}
_ANYWHERE = frozenset(map(Fraction, (0, 1, 2, 52, 100, 365, 1000, 3600)))
"""Numbers that anybody may use."""


def checked(problem: str, steps: Sequence[str]) -> NDArray[np.float32]:
    """[steps, CHECKS]: each step in the light of the problem and of what stands before it."""
    known = _values(problem) | _words(problem) | _ANYWHERE
    doubtful: set[Fraction] = set()
    unused: list[Fraction] = []
    last: Fraction | None = None
    results: set[Fraction] = set()
    false_before = lost_before = False
    found = np.zeros((len(steps), len(CHECKS)), dtype=np.float32)
    for at, step in enumerate(steps):
        made, used, words, false = _read(step)
        lost = [value for value in used if not _traced(value, known | words)]
        leans = not doubtful.isdisjoint(used)
        said_again = not made and bool(used) and used[-1] == last
        found[at] = (
            bool(made), false, bool(lost), min(len(lost), 3) / 3, leans, false_before, lost_before,
            not results.isdisjoint(used), min(len(unused), 3) / 3, said_again,
        )  # fmt: skip
        if false or lost or leans:
            doubtful |= {*made, *lost, *(() if made else used[-1:])}
        false_before, lost_before = false_before or false, lost_before or bool(lost)
        unused = [value for value in unused if value not in used] + list(made)
        results |= set(made)
        last = made[-1] if made else last
        known = known | set(made) | set(used)
    return found


def doubts(found: NDArray[np.float32]) -> list[list[str]]:
    """For each row of ``checked`` what speaks against the step, in words; nothing in [steps, 0]."""
    there = [(CHECKS.index(name), name) for name in DOUBTS if found.shape[1]]
    return [[name for at, name in there if row[at]] for row in found]


class _Step(NamedTuple):
    """What one step says by itself."""

    made: tuple[Fraction, ...]
    """The numbers right behind an equals sign."""
    used: tuple[Fraction, ...]
    """All others."""
    words: frozenset[Fraction]
    """What its words say: half, a dozen."""
    false: bool
    """Whether an equation does not hold."""


@lru_cache(maxsize=4096)
def _read(step: str) -> _Step:
    """Cached: the chains of one problem share most of their steps."""
    made: list[Fraction] = []
    used: list[Fraction] = []
    plain = _NUMBERING.sub("", step)
    for match in NUMBER.finditer(plain):
        before = plain[max(0, match.start() - _LOOK_BACK) : match.start()]
        kind = made if _RESULT.search(before) else used
        kind.append(Number.read(match.group()).value)
    others = tuple(value for value in used if value not in made)
    return _Step(tuple(made), others, frozenset(_words(step)), false_equation(step) is not None)


def _traced(value: Fraction, known: Set[Fraction]) -> bool:
    """Whether a number is known, as a percentage or as a share, or as what is left or added: .2,
    20, .8 and 1.2 are all of 20 percent."""
    forms = (value, value / 100, value * 100, 100 - 100 * value, 100 * value - 100)
    return not known.isdisjoint(forms)


def _values(text: str) -> set[Fraction]:
    return {Number.read(match.group()).value for match in NUMBER.finditer(text)}


def _words(text: str) -> set[Fraction]:
    return {_WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _WORDS}
