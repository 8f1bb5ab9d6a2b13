"""Errors put into a correct solution: typed, placed, plausible, and proved to be errors.

One rule gives every label. A step is wrong (0.0) where the error was put, where it uses or states
a value that the error made wrong, and where it uses a value that nothing has derived yet. Every
other step is right (1.0), after an error too. What follows from a wrong value is recomputed, so
the text stays coherent and only the first error can give itself away.

===========  =====================================================================================
arithmetic   the right expression, a wrong result near the true one
operand      a number replaced by another of the problem's or an earlier result; arithmetic right
operator     another operation on the same numbers; arithmetic right
carry        an earlier result copied wrongly; arithmetic right for what was copied
dropped      a step left out: the first step that uses its result is the error
swapped      a step before the one whose result it uses
===========  =====================================================================================

What a reader of surfaces (lengths, digits, places, no arithmetic) can tell is measured by
``tests/test_step_labels.py``. ``operator`` is not among the defaults for that reason: few steps
have a second operation with a result that could be, and those few look alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random
from typing import Any

from headway.data.step_labels.arithmetic import Number, false_equation, holds, rewrite
from headway.data.step_labels.near import near
from headway.data.step_labels.solutions import Note, Solution, Step, known_before, untraceable

FOLLOWS = "follows"
"""The kind of a step that is wrong because an earlier one is."""

_MANY_MEANINGS = frozenset(Fraction(n) for n in (1, 2, 7, 12, 24, 52, 60, 100, 365))
_OPERATOR = re.compile(r"[-+*/×÷−–]|(?<![A-Za-z])[xX](?![A-Za-z])")
_OTHERS = {"+": "-*", "-": "+/", "*": "+/", "/": "-*"}
_FURTHEST = 10


@dataclass(frozen=True, slots=True)
class Faulty:
    """A solution with one error. ``kinds`` [steps]: what is wrong with each, None for right."""

    steps: tuple[Step, ...]
    kinds: tuple[str | None, ...]
    at: int
    before: str
    after: str


Edits = Iterator[Faulty | None]


def inject(solution: Solution, kind: str, rng: Random) -> Faulty | None:
    """The solution with one error of this kind at a place drawn by ``rng``; None when none fits."""
    return next((found for found in KINDS[kind](solution, rng) if found is not None), None)


def _arithmetic(solution: Solution, rng: Random) -> Edits:
    for at, step, note in _noted(solution, rng):
        if not note.written:
            continue
        for value in near(step.numbers[note.result], note.operands, rng):
            number = _like(step, note.result, value, _commas(solution))
            if number is None or value in step.values() or holds(note.value(), number):
                continue
            restated = _restated(step, number)
            if restated is not None:
                yield _carried_on(solution, at, restated, "arithmetic")


def _operand(solution: Solution, rng: Random) -> Edits:
    for at, step, note in _noted(solution, rng):
        derived = [s.result for s in solution.steps[:at] if s.result is not None]
        pool = sorted({*solution.written, *derived} - step.values())
        places = [(old, new) for old in sorted(set(note.operands)) for new in pool]
        for old, new in _shuffled(places if note.links else [], rng):
            yield _changed(solution, at, {old: new}, "operand")


def _carry(solution: Solution, rng: Random) -> Edits:
    taken = {*solution.given}.union(*(step.values() for step in solution.steps))
    for at in _shuffled(range(1, len(solution.steps)), rng):
        step = solution.steps[at]
        copied = [j for j in range(at) if solution.steps[j].result in step.values()]
        for j in _shuffled([j for j in copied if _is_its_own(solution, j)], rng):
            origin = solution.steps[j]
            assert origin.note
            for new in near(origin.numbers[origin.note.result], (), rng):
                if new not in taken and (step.note is None or step.note.links):
                    yield _changed(solution, at, {origin.result: new}, "carry")


def _operator(solution: Solution, rng: Random) -> Edits:
    for at, step, note in _noted(solution, rng):
        places = [
            (k, sign)
            for k, piece in enumerate(note.pieces[1:-1])
            for sign in _OTHERS.get(piece.strip(), "")
        ]
        for k, sign in _shuffled(places if note.written else [], rng):
            where = note.links[k] + 1
            if len(_OPERATOR.findall(step.pieces[where])) != 1:
                continue
            shown = _OPERATOR.sub(_spelled(sign, solution), step.pieces[where])
            pieces = (*note.pieces[: k + 1], sign, *note.pieces[k + 2 :])
            altered = replace(
                step,
                pieces=(*step.pieces[:where], shown, *step.pieces[where + 1 :]),
                note=replace(note, pieces=pieces),
            )
            yield _plausible(
                solution, at, _recomputed(step, altered, _commas(solution)), "operator"
            )


def _dropped(solution: Solution, rng: Random) -> Edits:
    for j, step, _ in _noted(solution, rng):
        rest = (*solution.steps[:j], *solution.steps[j + 1 :])
        users = [i for i in range(j, len(rest)) if step.result in rest[i].values()]
        if not users or not rest[users[0]].note or not _is_its_own(solution, j):
            continue
        kinds = [FOLLOWS if i in users else None for i in range(len(rest))]
        kinds[users[0]] = "dropped"
        after = rest[users[0]].text
        yield _sound(solution, Faulty(rest, tuple(kinds), users[0], step.text, after), users)


def _swapped(solution: Solution, rng: Random) -> Edits:
    for j, step, _ in _noted(solution, rng):
        if j + 1 == len(solution.steps) or not (user := solution.steps[j + 1]).note:
            continue
        if step.result not in user.values() or not _is_its_own(solution, j):
            continue
        steps = (*solution.steps[:j], user, step, *solution.steps[j + 2 :])
        kinds = tuple("swapped" if i == j else None for i in range(len(steps)))
        yield _sound(solution, Faulty(steps, kinds, j, step.text, user.text), [j])


KINDS: Mapping[str, Callable[[Solution, Random], Edits]] = {
    "arithmetic": _arithmetic,
    "operand": _operand,
    "operator": _operator,
    "carry": _carry,
    "dropped": _dropped,
    "swapped": _swapped,
}


DEFAULT_KINDS = tuple(kind for kind in KINDS if kind != "operator")


def _noted(solution: Solution, rng: Random) -> Iterator[tuple[int, Step, Note]]:
    """Steps with a note, in a random order, small results earlier: they are refused more often."""
    noted = [(at, step, step.note) for at, step in enumerate(solution.steps) if step.note]
    keys = [rng.random() * len(step.numbers[note.result].raw) ** 2 for _, step, note in noted]
    yield from (noted[k] for k in sorted(range(len(noted)), key=keys.__getitem__))


def _shuffled(items: Sequence[Any], rng: Random) -> list[Any]:
    """A random order that depends on ``rng.random()`` alone, the same in every Python."""
    return [item for _, _, item in sorted((rng.random(), n, item) for n, item in enumerate(items))]


def _changed(solution: Solution, at: int, changes: dict[Any, Fraction], kind: str) -> Faulty | None:
    """The solution with some values of one step replaced, and the step recomputed."""
    return _plausible(
        solution, at, _substituted(solution.steps[at], changes, _commas(solution)), kind
    )


def _plausible(solution: Solution, at: int, step: Step | None, kind: str) -> Faulty | None:
    """Carried on, unless the new result is no error, another true result, or absurd."""
    if step is None:
        return None
    old, new = solution.steps[at].result, step.result
    if old is not None and new is not None:
        true = {s.result for s in solution.steps}
        if new in true or not old / _FURTHEST <= new <= old * _FURTHEST:
            return None
    return _carried_on(solution, at, step, kind)


def _carried_on(solution: Solution, at: int, step: Step, kind: str) -> Faulty | None:
    """The chain from the wrong step on: what uses a wrong value is recomputed and wrong too."""
    steps = [*solution.steps[:at], step]
    kinds: list[str | None] = [None] * at + [kind]
    changes: dict[Fraction, Fraction] = {}
    if not _note_change(solution, at, step, changes):
        return None
    for i in range(at + 1, len(solution.steps)):
        later = solution.steps[i]
        if not later.values() & changes.keys():
            steps.append(later)
            kinds.append(None)
            continue
        moved = _substituted(later, changes, _commas(solution))
        if moved is None or not _note_change(solution, i, moved, changes):
            return None
        steps.append(moved)
        kinds.append(FOLLOWS)
    faulty = Faulty(tuple(steps), tuple(kinds), at, solution.steps[at].text, step.text)
    return _sound(solution, faulty, [at] if kind == "carry" else [])


def _note_change(
    solution: Solution, at: int, step: Step, changes: dict[Fraction, Fraction]
) -> bool:
    """Record that the result of step ``at`` changed; False when its uses cannot be told apart."""
    old, new = solution.steps[at].result, step.result
    if old is None or new is None or old == new:
        return True
    changes[old] = new
    return _is_its_own(solution, at)


def _is_its_own(solution: Solution, j: int) -> bool:
    """Whether a later number equal to the result of step ``j`` can only mean that result."""
    value = solution.steps[j].result
    assert value is not None
    if not any(value in step.values() for step in solution.steps[j + 1 :]):
        return True
    elsewhere = any(value in step.values() for step in solution.steps[:j])
    again = any(s.result == value for s in solution.steps[j + 1 :] if s.note)
    note = solution.steps[j].note
    own_operand = note is not None and value in note.operands
    return not (
        elsewhere or again or own_operand or value in solution.given or value in _MANY_MEANINGS
    )


def _sound(solution: Solution, faulty: Faulty, excused: Sequence[int]) -> Faulty | None:
    """The chain, if what it labels is so: equations hold but for the one that must not, and no
    step but the ``excused`` uses a number without a source (a use that the values do not show).
    """
    wrong_sum = faulty.kinds[faulty.at] == "arithmetic"
    for i, known in enumerate(known_before(solution, faulty.steps)):
        step = faulty.steps[i]
        if false_equation(step.text) and not (wrong_sum and i == faulty.at):
            return None
        if i not in excused and untraceable(step, known) is not None:
            return None
    return faulty


def _substituted(step: Step, changes: Mapping[Any, Fraction], commas: bool) -> Step | None:
    """The step with values replaced wherever it has them, its result recomputed."""
    note = step.note
    operands = tuple(changes.get(value, value) for value in note.operands) if note else ()
    numbers: list[Number] = []
    for index, number in enumerate(step.numbers):
        is_result = note is not None and index == note.result
        if number.value not in changes or is_result:
            numbers.append(number)
            continue
        if note and not note.links and number.value not in note.operands:
            return None  # the note may use it in another form: 20% as 0.2
        new = _like(step, index, changes[number.value], commas)
        if new is None:
            return None
        numbers.append(new)
    altered = replace(
        step,
        numbers=tuple(numbers),
        note=replace(note, operands=operands) if note else None,
    )
    return _recomputed(step, altered, commas)


def _recomputed(step: Step, altered: Step, commas: bool) -> Step | None:
    """``altered`` with the result its note now has, written as ``step`` wrote its own."""
    if altered.note is None or step.note is None:
        return altered
    shown = step.numbers[step.note.result]
    try:
        value, true = altered.note.value(), step.note.value()
    except ValueError:
        return None
    if true != shown.value:  # the author rounded, and so does this
        value = Fraction(round(value * 10**shown.decimals), 10**shown.decimals)
    if value == shown.value:
        return altered
    number = _like(step, step.note.result, value, commas)
    return None if number is None else _restated(altered, number)


def _restated(step: Step, result: Number) -> Step | None:
    """The step with another result, wherever it states it; None when that is not certain."""
    assert step.note
    old = step.result
    if old in step.note.operands:
        return None
    numbers = tuple(result if n.value == old else n for n in step.numbers)
    return replace(step, numbers=numbers)


def _like(step: Step, index: int, value: Fraction, commas: bool) -> Number | None:
    return rewrite(value, step.numbers[index], money=step.is_money(index), commas=commas)


def _commas(solution: Solution) -> bool:
    """Whether this author writes 1,000: as in the steps, else as in the problem."""
    large = [n.raw for step in solution.steps for n in step.numbers if n.value >= 1000]
    return any("," in raw for raw in large)


def _spelled(sign: str, solution: Solution) -> str:
    """The operator as this author writes it: ``x`` or ``×`` for ``*``."""
    if sign != "*":
        return sign
    text = " ".join(step.text for step in solution.steps)
    found = re.search(r"\d\s*([x×*])\s*\$?\d", text)
    return found[1] if found else "*"
