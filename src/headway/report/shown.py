"""What a recipe shows of a row, as HTML: texts, texts in pieces, pictures, chains of steps.

A text in pieces is a list of [text, mark] pairs, the mark a loss in nats, a word, or None. A
picture is ``{"picture": name, "says": …}``, its bytes apart. A chain is ``steps``, each with
``text``, ``predicted`` and ``target`` (None: not labelled); beside it ``kinds``, what is wrong with
each step, and ``range``, the lowest and the highest target. Everything else is text, and escaped.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from headway.records import picture_kind
from headway.report.timeline import measured
from headway.report.words import count, number

PIECE_LIMIT = 400
"""Pieces of a text (tokens, for one) that are shown; the rest is counted."""
STEP_LIMIT = 40
"""Steps of a chain that are shown; the rest is counted."""
TEXT_LIMIT = 1500
"""Characters of one text of a row that are shown; the rest is counted."""
MARKS = {"added": "ins", "missing": "del", "changed": "mark"}
"""A piece's mark and the element that shows it."""
Pictures = Mapping[str, bytes]


def value(given: Any, pictures: Pictures) -> str:
    """Anything but a chain, escaped and cut to a length that can be read."""
    if is_picture(given):
        return _pictures([given], pictures)
    if isinstance(given, list) and given and all(map(is_picture, given)):
        return _pictures(given, pictures)
    return _pieces(given) if is_pieces(given) else _text(given)


def is_picture(given: Any) -> bool:
    """Whether a value stands for a picture."""
    return isinstance(given, Mapping) and isinstance(given.get("picture"), str)


def is_pieces(given: Any) -> bool:
    """Whether a value is a text in pieces."""
    return (
        isinstance(given, list)
        and bool(given)
        and all(isinstance(p, list) and len(p) == 2 and _is_mark(p[1]) for p in given)
    )


def _is_mark(mark: Any) -> bool:
    """A loss (NaN is written as text), a word of ``MARKS``, or nothing."""
    return mark is None or (isinstance(mark, str) and mark in MARKS) or measured(mark) is not None


def is_chain(given: Any) -> bool:
    """Whether a value is a list of steps, each a text with a label or a prediction."""
    return (
        isinstance(given, Sequence)
        and bool(given)
        and all(isinstance(s, Mapping) and "text" in s and "predicted" in s for s in given)
    )


def _pictures(given: Sequence[Mapping[str, Any]], pictures: Pictures) -> str:
    return f'<div class="pictures">{"".join(_picture(each, pictures) for each in given)}</div>'


def _picture(given: Mapping[str, Any], pictures: Pictures) -> str:
    name, says = given["picture"], str(given.get("says") or "")
    data = pictures.get(name, b"")
    kind = {"png": "png", "jpg": "jpeg"}.get(picture_kind(data))
    if kind is None:
        what = f" “{says}”" if says else ""
        return f"<i>(picture{escape(what)} is not in this page: {escape(name)})</i>"
    source = f"data:image/{kind};base64,{b64encode(data).decode()}"
    below = f"<figcaption>{escape(says)}</figcaption>" if says else ""
    return f'<figure><img src="{source}" alt="{escape(says)}">{below}</figure>'


def _pieces(pieces: Sequence[Sequence[Any]]) -> str:
    # Beside losses, what has none was only read; beside words, it is as it should be.
    rest = "i" if any(measured(mark) is not None for _, mark in pieces) else "span"
    spans = "".join(_piece(str(text), mark, rest) for text, mark in pieces[:PIECE_LIMIT])
    left_out = len(pieces) - PIECE_LIMIT
    return spans + (f"<i> … {count(left_out)} more tokens</i>" if left_out > 0 else "")


def _piece(text: str, mark: Any, rest: str) -> str:
    """One piece: marked, or drawn warmer where the loss was higher, or in the element ``rest``."""
    if isinstance(mark, str) and mark in MARKS:
        return f"<{MARKS[mark]}>{escape(text)}</{MARKS[mark]}>"
    loss = measured(mark)
    if loss is None:
        return f"<{rest}>{escape(text)}</{rest}>"
    # From no colour at 0 to the strongest at 6 nats, a chance of 1 in 400.
    warmth = round(100 * min(1.0, max(0.0, loss / 6)))
    return f'<b style="--warmth:{warmth}%" title="loss {number(loss)}">{escape(text)}</b>'


def _text(given: Any) -> str:
    """A text of the data, cut and escaped; an empty one is said to be empty. Numbers are round."""
    text = number(given) if isinstance(given, float) else str(given)
    if not text.strip():
        return "<i>(empty)</i>"
    left_out = len(text) - TEXT_LIMIT
    cut = escape(text[:TEXT_LIMIT])
    return cut + (f"<i> … {count(left_out)} more characters</i>" if left_out > 0 else "")


def chain(steps: Sequence[Mapping[str, Any]], kinds: Sequence[Any], span: Any) -> str:
    """Steps under each other, their label and prediction below each. ``span``: of the targets."""
    low, high = range_of(span)
    middle = (low + high) / 2
    doubted = _first_below(steps, "predicted", middle)
    wrong = _first_below(steps, "target", middle)
    items = ""
    for n, step in enumerate(steps[:STEP_LIMIT]):
        marks = ["first doubted"] * (n == doubted) + ["first error"] * (n == wrong)
        kind = kinds[n] if n < len(kinds) and kinds[n] is not None else None
        items += _step(step, kind, marks, low, high)
    left_out = len(steps) - STEP_LIMIT
    more = f"<i> … {count(left_out)} more steps</i>" if left_out > 0 else ""
    return f'<ol class="chain">{items}</ol>{more}'


def range_of(span: Any) -> tuple[float, float]:
    """The lowest and highest target there can be: [0, 1] where the recipe does not say."""
    ends = [measured(end) for end in span] if isinstance(span, list | tuple) else []
    low, high = ends if len(ends) == 2 else (None, None)
    return (low, high) if low is not None and high is not None and low < high else (0.0, 1.0)


def farthest(steps: Sequence[Mapping[str, Any]], span: Any) -> tuple[float, int] | None:
    """How far label and prediction lie apart at most, as a part of the range, and at which step;
    None where nothing is labelled."""
    low, high = range_of(span)
    gaps = [
        (abs(target - predicted) / (high - low), n)
        for n, step in enumerate(steps)
        if (target := measured(step.get("target"))) is not None
        and (predicted := measured(step.get("predicted"))) is not None
    ]
    return max(gaps, key=lambda gap: (gap[0], -gap[1]), default=None)


def _first_below(steps: Sequence[Mapping[str, Any]], key: str, middle: float) -> int | None:
    values = [measured(step.get(key)) for step in steps]
    return next((n for n, v in enumerate(values) if v is not None and v < middle), None)


def _step(step: Mapping[str, Any], kind: Any, marks: Sequence[str], low: float, high: float) -> str:
    target, predicted = measured(step.get("target")), measured(step.get("predicted"))
    off = 0.0 if target is None or predicted is None else abs(target - predicted) / (high - low)
    gauge = f'<span class="gauge" style="--at:{_percent(predicted, low, high)}">'
    gauge += f'<s style="--at:{_percent(target, low, high)}"></s>' * (target is not None)
    words = f"{gauge}</span>predicted {number(predicted, 2)}"
    words += " · not labelled" if target is None else f" · label {number(target, 2)}"
    words += f" · {escape(str(kind))}" if kind is not None else ""
    words += "".join(f"<em>{mark}</em>" for mark in marks)
    warmth = round(100 * min(1.0, off)) if off == off else 100
    text = _pieces(step["text"]) if is_pieces(step["text"]) else _text(step["text"])
    return f'<li style="--warmth:{warmth}%"><div>{text}</div><p>{words}</p></li>'


def _percent(value: float | None, low: float, high: float) -> str:
    share = 0.0 if value is None or value != value else (value - low) / (high - low)
    return f"{100 * min(1.0, max(0.0, share)):.0f}%"
