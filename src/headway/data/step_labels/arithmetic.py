"""Numbers in prose, exactly: found, evaluated as fractions, compared as shown, and rewritten.

Nothing here is a float, and nothing is ever given to ``eval``: an expression is parsed by ``ast``
and may hold + - * / ( ) and numbers only.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor

NUMBER = re.compile(
    r"(?<![A-WYZa-wyz\d.])(?:(?:\d{1,3}(?:,\d{3}){1,99}|\d{1,300})(?:\.\d{1,300})?|\.\d{1,300})"
    r"(?!\d|(?:st|nd|rd|th)\b)"
)
_OPERATORS: Mapping[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LONGEST_EXPRESSION = 400
_PLAIN = r"[\d.,$€£%+\-*/xX×÷−–() ]"
_EQUATION = re.compile(rf"(?<!{_PLAIN}){_PLAIN}*(?:={_PLAIN}*)+")
_INSIDE = re.compile(r"(?:\\[A-Za-z]+|[\^·√—_]|\b(?:times|mod))\s*$")
"""What stands before a run of arithmetic that is the end of something larger."""
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-"})
_TIMES = re.compile(r"(?<=[\d)%])(\s*)[xX](?=\s*[$(.\d])")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is written, and its exact value."""

    raw: str
    value: Fraction

    @classmethod
    def read(cls, raw: str) -> Number:
        """From digits with or without thousands commas: ``1,250.50``, ``.5``."""
        return cls(raw, Fraction(raw.replace(",", "")))

    @property
    def decimals(self) -> int:
        """Digits after the point."""
        return len(self.raw.partition(".")[2])


def split_numbers(text: str) -> tuple[tuple[str, ...], tuple[Number, ...]]:
    """The prose between the numbers [n + 1], and the numbers [n]."""
    pieces, numbers, end = [], [], 0
    for match in NUMBER.finditer(text):
        pieces.append(text[end : match.start()])
        numbers.append(Number.read(match.group()))
        end = match.end()
    return (*pieces, text[end:]), tuple(numbers)


def join(pieces: Sequence[str], numbers: Sequence[str]) -> str:
    """The text that ``split_numbers`` took apart."""
    return "".join(part for pair in zip(pieces, (*numbers, ""), strict=True) for part in pair)


def evaluate(expression: str) -> Fraction:
    """The exact value. ValueError when it is not plain arithmetic, or divides by zero.

    >>> evaluate("12.5 * (1 - 20%)")
    Fraction(10, 1)
    """
    if len(expression) > _LONGEST_EXPRESSION:
        raise ValueError("too long to be a step's arithmetic")
    pieces, numbers = split_numbers(expression.replace("$", ""))
    exact = [f"({number.value})" for number in numbers]
    plain = join(pieces, exact).replace("%", "*(1/100)").strip()
    try:
        return _value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, RecursionError) as error:
        raise ValueError(f"not plain arithmetic: {expression}") from error


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("not plain arithmetic")


def holds(value: Fraction, shown: Number) -> bool:
    """Whether ``shown`` is this value, rounded or cut where it stops: 20/3 is 6.67 or 6.66.

    A whole number must be the nearest one: 10/4 = 3 holds, 10/3 = 4 does not.
    """
    if not shown.decimals:
        return abs(value - shown.value) <= Fraction(1, 2)
    unit = 10**shown.decimals
    exact, written = abs(value) * unit, abs(shown.value) * unit
    same_sign = value * shown.value >= 0
    # Half to even is one of the two: a half is cut or rounded up.
    return same_sign and written in (floor(exact), floor(exact + Fraction(1, 2)))


def times_as_star(text: str) -> str:
    """``5 x 3`` as ``5 * 3``; an x that is a variable stays."""
    return _TIMES.sub(r"\1*", text)


def false_equation(text: str) -> str | None:
    """The first written equation of plain numbers that does not hold; None when all do."""
    for found in _EQUATION.finditer(text):
        run = found.group()
        before = text[: found.end() - len(run.lstrip(" ,"))]
        plain = times_as_star(run.lstrip(" ,").translate(_SIGNS))
        sides = [side.strip().rstrip(".,") for side in plain.split("=")]
        if all(NUMBER.fullmatch(side.strip("$€£% ")) for side in sides[:2]):
            sides = sides[1:]  # "20% of 50 = 10", "$5 = 500 cents": no sum stands there
        if _INSIDE.search(before) or before[-1:].isalpha() or before.endswith(":"):
            continue
        if sides[0][:1] in ("+", "-", "*", "/"):
            continue  # the run begins inside something else: a variable, a clock time, a sum
        if not all(_agree(left, right) for left, right in pairwise(sides)):
            return run.strip()
    return None


def _agree(left: str, right: str) -> bool:
    """Whether two sides are equal to the precision shown; sides that are no arithmetic agree."""
    try:
        values = [evaluate(side.replace("€", "").replace("£", "")) for side in (left, right)]
    except ValueError:
        return True
    shown = [
        Number.read(match.group()) for side in (left, right) for match in NUMBER.finditer(side)
    ]
    for side, value in ((right, values[0]), (left, values[1])):
        bare = side.strip("$€£% ")
        if NUMBER.fullmatch(bare):
            number = Number.read(bare)
            if any(
                holds(scaled, number) for scaled in (value, 100 * value if "%" in side else value)
            ):
                return True
    return values[0] == values[1] or len(shown) < 2


def rewrite(value: Fraction, like: Number, *, money: bool, commas: bool) -> Number | None:
    """``value`` written as ``like`` is, or None when that cannot be done without a trace.

    The same number of decimals, none of them a padding zero unless ``like`` has one or is
    ``money``; whole stays whole; positive. ``commas`` decides for a number that grew past 999.
    """
    scaled = value * 10**like.decimals
    if value <= 0 or scaled.denominator != 1:
        return None
    padded = like.raw.endswith("0") or (money and like.decimals == 2)
    if like.decimals and scaled % 10 == 0 and not padded:
        return None
    whole, fraction = divmod(int(scaled), 10**like.decimals)
    grouped = "," in like.raw or (commas and like.value < 1000)
    head = f"{whole:,}" if grouped else str(whole)
    if like.raw.startswith(".") and whole == 0:
        head = ""
    tail = f".{fraction:0{like.decimals}d}" if like.decimals else ""
    return Number(head + tail, value)
