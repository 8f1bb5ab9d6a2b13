"""The held-out rows the model was worst at, as a person reads them: texts, tokens, chains.

A chain is ``steps``, each with ``text``, ``predicted`` and ``target`` (None: not labelled); beside
it ``kinds``, what is wrong with each step, and ``range``, the lowest and the highest target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from headway.report.timeline import Timeline, measured
from headway.report.words import count, number

TOKEN_LIMIT = 400
"""Tokens of a row that are shown; the rest is counted."""
STEP_LIMIT = 40
"""Steps of a chain that are shown; the rest is counted."""
TEXT_LIMIT = 1500
"""Characters of one text of a row that are shown; the rest is counted."""
FIRST = ("problem", "steps", "prompt", "reference", "prediction")
"""What is shown first, in this order; the rest as the recipe gives it."""


def worst_rows(told: Timeline) -> str:
    """The worst rows of the newest evaluation that names any."""
    evaluation = next((e for e in reversed(told.evaluations) if e.get("worst")), None)
    if evaluation is None:
        return ""
    shown = [row.get("shown") or {} for row in evaluation["worst"]]
    rows = "".join(_row(row) for row in evaluation["worst"])
    note = ""
    if any("tokens" in each for each in shown):
        note += " Tokens: the warmer, the higher the loss there."
    if any(_is_chain(value) for each in shown for value in each.values()):
        note += (
            " Steps: the warmer, the further the prediction (bar) is from the label (stroke). "
            "Doubted is what is predicted below the middle of the range, an error what is labelled "
            "below it."
        )
    return (
        "<section><h2>Worst held-out rows</h2>"
        f'<p class="note">The {len(shown)} rows with the highest loss of '
        f"{count(evaluation.get('rows'))}, at step {count(evaluation['step'])}.{note}</p>"
        f"{rows}</section>"
    )


def _row(row: Mapping[str, Any]) -> str:
    shown = dict(row.get("shown") or {})
    where = shown.pop("where", None)
    span = shown.pop("range", None) if _is_chain(shown.get("steps")) else None
    kinds = _kinds(shown)
    if not shown.get("prompt", "-"):
        del shown["prompt"]  # plain text has none
    ordered = [key for key in FIRST if key in shown]
    ordered += [key for key in shown if key not in ordered]
    facts = "".join(
        f"<dt>{escape(key)}</dt>"
        f"<dd>{_chain(shown[key], kinds, span) if _is_chain(shown[key]) else _shown(shown[key])}"
        "</dd>"
        for key in ordered
    )
    place = f" · {where}" if where is not None else ""
    return (
        f'<article class="row"><h3>loss {number(measured(row.get("loss")))}'
        f"<span>row {count(row.get('row'))} · weight {count(row.get('weight'))}"
        f"{escape(place)}</span></h3><dl>{facts}</dl></article>"
    )


def _is_chain(value: Any) -> bool:
    """Whether a value is a list of steps, each a text with a label or a prediction."""
    return (
        isinstance(value, Sequence)
        and bool(value)
        and all(isinstance(s, Mapping) and "text" in s and "predicted" in s for s in value)
    )


def _kinds(shown: dict[str, Any]) -> list[Any]:
    """Taken out of ``shown``: what is wrong with each step, where there is one for each."""
    steps, kinds = shown.get("steps"), shown.get("kinds")
    if _is_chain(steps) and isinstance(kinds, list | tuple):
        del shown["kinds"]
        if steps is not None and len(kinds) == len(steps):
            return list(kinds)
    return []


def _chain(steps: Sequence[Mapping[str, Any]], kinds: Sequence[Any], span: Any) -> str:
    """Steps under each other, their label and prediction below each. ``span``: of the targets."""
    low, high = _range(span)
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


def _range(span: Any) -> tuple[float, float]:
    """The lowest and highest target there can be: [0, 1] where the recipe does not say."""
    ends = [measured(end) for end in span] if isinstance(span, list | tuple) else []
    low, high = ends if len(ends) == 2 else (None, None)
    return (low, high) if low is not None and high is not None and low < high else (0.0, 1.0)


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
    return f'<li style="--warmth:{warmth}%"><div>{_shown(step["text"])}</div><p>{words}</p></li>'


def _percent(value: float | None, low: float, high: float) -> str:
    share = 0.0 if value is None or value != value else (value - low) / (high - low)
    return f"{100 * min(1.0, max(0.0, share)):.0f}%"


def _shown(value: Any) -> str:
    """A text of the data, or one given as [token, loss] pairs, drawn warmer where it was worse."""
    pairs = value if isinstance(value, list) and value else []
    if not pairs or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        return _text(value)
    spans = "".join(_token(str(text), measured(loss)) for text, loss in pairs[:TOKEN_LIMIT])
    left_out = len(pairs) - TOKEN_LIMIT
    return spans + (f"<i> … {count(left_out)} more tokens</i>" if left_out > 0 else "")


def _token(text: str, loss: float | None) -> str:
    """One token; without a loss it was only read, not predicted."""
    if loss is None:
        return f"<i>{escape(text)}</i>"
    # From no colour at 0 to the strongest at 6 nats, a chance of 1 in 400.
    warmth = round(100 * min(1.0, max(0.0, loss / 6)))
    return f'<b style="--warmth:{warmth}%" title="loss {number(loss)}">{escape(text)}</b>'


def _text(value: Any) -> str:
    """A text of the data, cut and escaped; an empty one is said to be empty."""
    text = value if isinstance(value, str) else str(value)
    if not text.strip():
        return "<i>(empty)</i>"
    left_out = len(text) - TEXT_LIMIT
    cut = escape(text[:TEXT_LIMIT])
    return cut + (f"<i> … {count(left_out)} more characters</i>" if left_out > 0 else "")
