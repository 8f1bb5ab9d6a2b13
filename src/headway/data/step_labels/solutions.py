"""A worked solution as steps of known arithmetic: parsed, recomputed, refused if in doubt.

The format is GSM8K's (Cobbe et al. 2021): one step a line, ``<<48/2=24>>`` calculator notes before
the result they justify, and a last line ``#### 72``. What is used as correct has been recomputed
with exact fractions: every note, every equation written in plain numbers, and that the answer is
reached. Whether the *reasoning* is right, nobody can compute: that is taken from the author.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from headway.data.step_labels.arithmetic import (
    Number,
    evaluate,
    false_equation,
    holds,
    join,
    split_numbers,
    times_as_star,
)

_NOTE = re.compile(r"<<([^<>]*)>>")
_VARIABLE = re.compile(
    r"(?<![A-Za-z'’])[B-HJ-Zb-z]\s*[-+*/=]|\b[Ll]et [a-zA-Z]\b"
    r"|[-+*/=]\s*\d*[B-HJ-Zb-z](?![A-Za-z'’])"
)
_WORDS = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13",
    "fourteen": "14", "fifteen": "15", "sixteen": "16", "seventeen": "17", "eighteen": "18",
    "nineteen": "19", "twenty": "20", "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60",
    "seventy": "70", "eighty": "80", "ninety": "90", "hundred": "100", "thousand": "1000",
    "million": "1000000", "dozen": "12", "score": "20", "half": "1/2", "halves": "1/2",
    "third": "1/3", "thirds": "1/3", "quarter": "1/4", "quarters": "1/4", "fourth": "1/4",
    "fourths": "1/4", "fifth": "1/5", "fifths": "1/5", "sixth": "1/6", "seventh": "1/7",
    "eighth": "1/8", "ninth": "1/9", "tenth": "1/10", "½": "1/2", "¼": "1/4", "¾": "3/4",
    "triple": "3", "thrice": "3", "quadruple": "4", "trio": "3",
}  # fmt: skip
_CONSTANTS = frozenset(
    Fraction(n)
    for n in (
        *("0", "1/100", "1", "2", "3", "4", "5", "7", "8", "10", "12", "14", "16", "24", "25"),
        *(
            "28",
            "30",
            "31",
            "36",
            "50",
            "52",
            "60",
            "90",
            "100",
            "180",
            "360",
            "365",
            "1000",
            "3600",
        ),
    )
)
"""Numbers anybody may use: of time, measures, money, percent, and small counts."""


class Refused(Exception):
    """A solution that cannot be vouched for: ``reason`` to count, ``detail`` to look at."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Note:
    """A calculator note: its expression, operands taken out, and where the text has them."""

    pieces: tuple[str, ...]
    operands: tuple[Fraction, ...]
    links: tuple[int, ...]
    """Index in the step's numbers of each operand; empty when the text does not write them out."""
    result: int
    """Index of the result in the step's numbers."""
    written: bool
    """Whether the text has the whole equation, operators too."""

    def value(self) -> Fraction:
        """The exact value. ValueError when it divides by zero."""
        return evaluate(join(self.pieces, [f"({operand})" for operand in self.operands]))


@dataclass(frozen=True, slots=True)
class Step:
    """One step: prose, the numbers in it, and the note that was removed from it."""

    pieces: tuple[str, ...]
    numbers: tuple[Number, ...]
    note: Note | None = None

    @property
    def text(self) -> str:
        """What the model reads."""
        return join(self.pieces, [number.raw for number in self.numbers])

    @property
    def result(self) -> Fraction | None:
        """The value it derives, as it is shown; None for a step without a note."""
        return self.numbers[self.note.result].value if self.note else None

    def values(self) -> set[Fraction]:
        """Every value the step uses or states, in its text or in its note."""
        operands = self.note.operands if self.note else ()
        return {number.value for number in self.numbers} | set(operands)

    def is_money(self, index: int) -> bool:
        """Whether number ``index`` stands behind a currency sign."""
        return self.pieces[index].endswith(("$", "€", "£"))


@dataclass(frozen=True, slots=True)
class Solution:
    """A problem, its steps (all recomputed), and the values the problem gives."""

    problem: str
    steps: tuple[Step, ...]
    given: frozenset[Fraction]
    """Numbers written in the problem, as digits or words."""
    written: tuple[Fraction, ...]
    """Those written as digits, in order."""


def parse(problem: str, answer: str, *, final_step: bool = True) -> Solution:
    """The solution, vouched for. Refused says why not.

    With ``final_step`` the answer becomes a last step, ``The answer is 72.``
    """
    body, mark, final = answer.strip().rpartition("####")
    if not mark or not body.strip():
        raise Refused("no steps with a final #### line")
    steps = tuple(_step(line.strip()) for line in body.splitlines() if line.strip())
    for step in steps:
        if _VARIABLE.search(times_as_star(step.text)):
            raise Refused("algebra, which the notes do not check", step.text)
    written = tuple(number.value for number in split_numbers(problem)[1])
    given = frozenset({*written, *_words(problem)})
    solution = Solution(problem.strip(), steps, given, written)
    _check_traceable(solution)
    shown = _final_number(final)
    reached = [step for step in steps if step.result == shown.value]
    if not reached:
        raise Refused(
            "the final answer is no step's result", f"{final.strip()} after {steps[-1].text}"
        )
    if not final_step:
        return solution
    derived = reached[-1]
    assert derived.note
    last = Step(("The answer is ", "."), (derived.numbers[derived.note.result],))
    return replace(solution, steps=(*steps, last))


def known_before(solution: Solution, steps: Iterable[Step]) -> Iterator[set[Fraction]]:
    """Before each step the values it may use: given, common (60, 100 …), or stated by now."""
    known = {*solution.given, *_CONSTANTS}
    for value in solution.given:
        known |= _derived(value)
    for step in steps:
        yield known
        for number in step.numbers:
            known |= {number.value} | _derived(number.value)


def untraceable(step: Step, known: set[Fraction]) -> Fraction | None:
    """An operand of the step's note that comes from nowhere; None when each has a source."""
    for operand in step.note.operands if step.note else ():
        if operand not in known and not _is_form_of(operand, step):
            return operand
    return None


def _is_form_of(operand: Fraction, step: Step) -> bool:
    """Whether the step's own words say the operand: half for 0.5, 20% for 0.2, 1/4 for 0.25."""
    if operand in set(_words(step.text)):
        return True
    return any(operand in _derived(n.value) for n in step.numbers if n.value != operand)


def _step(line: str) -> Step:
    notes = _NOTE.findall(line)
    if len(notes) > 1:
        raise Refused("two calculator notes in one step", line)
    pieces, numbers = split_numbers(_NOTE.sub("", line))
    wrong = false_equation(join(pieces, [n.raw for n in numbers]))
    if wrong:
        raise Refused("a written equation does not hold", wrong)
    if not notes:
        return Step(pieces, numbers)
    before = len(split_numbers(line.partition("<<")[0])[1])
    return Step(pieces, numbers, _note(notes[0], pieces, numbers, before))


def _note(note: str, pieces: tuple[str, ...], numbers: tuple[Number, ...], before: int) -> Note:
    """The note, recomputed and found in the text; ``before`` numbers stand in front of it."""
    expression, equals, result = note.partition("=")
    try:
        value, shown = evaluate(expression), Number.read(result.strip())
    except ValueError as error:
        raise Refused("a calculator note that is no equation", note) from error
    if not equals or not holds(value, shown):
        raise Refused("a calculator note does not hold", note)
    if before >= len(numbers) or numbers[before].value != shown.value:
        raise Refused("a note's result is not what the text says", note)
    inner, operands = split_numbers(expression)
    values = tuple(operand.value for operand in operands)
    first = before - len(values)
    found = first >= 0 and values == tuple(n.value for n in numbers[first:before])
    links = tuple(range(first, before)) if found else ()
    between = [_sign(piece) for piece in pieces[first + 1 : before + 1]] if found else []
    signs = [_sign(piece) for piece in inner[1:-1]]
    written = len(values) > 1 and found and between == [*signs, "="]
    return Note(inner, values, links, before, written)


def _sign(piece: str) -> str:
    """The operators of the prose between two numbers, without units and currency."""
    plain = re.sub(r"\b[xX]\b", "*", piece).translate(str.maketrans("×÷−–", "*/--"))
    return re.sub(r"[^-+*/=()%]", "", plain)


def _final_number(final: str) -> Number:
    try:
        return Number.read(final.strip().strip("$").strip())
    except ValueError as error:
        raise Refused("the final #### line holds no number", final.strip()) from error


def _words(text: str) -> Iterator[Fraction]:
    for word in re.findall(r"[a-z]+|[½¼¾]", text.lower()):
        if word in _WORDS:
            yield Fraction(_WORDS[word])


@lru_cache(maxsize=4096)
def _derived(value: Fraction) -> frozenset[Fraction]:
    """Other forms a given value is used in: a percentage as a fraction, its complement, …"""
    part = value / 100
    forms = {part, 1 - part, 1 + part, 100 - value, 100 + value, 1 - value, 1 + value, value - 1}
    return frozenset(forms | ({1 / value} if value else set()))


def _check_traceable(solution: Solution) -> None:
    for step, known in zip(solution.steps, known_before(solution, solution.steps), strict=True):
        if (operand := untraceable(step, known)) is not None:
            raise Refused("a number that is neither given nor derived", f"{operand} in {step.text}")
