"""The held-out rows the model was worst at, to be read, and put in order by what is looked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from headway.report import shown
from headway.report.shown import Pictures
from headway.report.timeline import Timeline, measured
from headway.report.words import count, number

FIRST = ("problem", "steps", "prompt", "reference", "prediction")
"""What is shown first, in this order; the rest as the recipe gives it."""
STRONGLY = 0.9
"""A label and a prediction so far apart, as a part of the range, disagree strongly."""
ORDERS = (("loss", "highest loss"), ("error", "highest error"), ("length", "longest"))


def worst_rows(told: Timeline, pictures: Pictures | None = None) -> str:
    """The worst rows of the newest evaluation that names any. ``pictures``: by name."""
    evaluation = next((e for e in reversed(told.evaluations) if e.get("worst")), None)
    if evaluation is None:
        return ""
    rows = [facts_of(row) for row in evaluation["worst"]]
    articles = "".join(_row(row, pictures or {}) for row in rows)
    return (
        '<section class="worst"><h2>Worst held-out rows</h2>'
        f'<p class="note">The {len(rows)} rows with the highest loss of '
        f"{count(evaluation.get('rows'))}, at step {count(evaluation['step'])}.{_legend(rows)}</p>"
        f"{_orders(rows)}{articles}</section>"
    )


def facts_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what it is put in order by taken out of what is shown: ``where``, ``error``,
    ``length``, ``suspicious``, and a chain's ``kinds`` and ``range``."""
    given = dict(row.get("shown") or {})
    facts: dict[str, Any] = {key: row.get(key) for key in ("row", "weight")}
    facts["loss"] = measured(row.get("loss"))
    facts["where"] = given.pop("where", None)
    facts["error"] = measured(given.pop("error", None))
    facts["length"] = measured(given.pop("length", None))
    facts["suspicious"] = str(given.pop("suspicious", None) or "")
    steps = given.get("steps")
    if steps is not None and shown.is_chain(steps):
        _of_a_chain(facts, given, steps)
    else:
        _of_a_text(facts, given)
    if not given.get("prompt", "-"):
        del given["prompt"]  # plain text has none
    return facts | {"shown": given}


def _of_a_chain(facts: dict[str, Any], given: dict[str, Any], steps: Sequence[Any]) -> None:
    kinds, span = given.pop("kinds", None), given.pop("range", None)
    same = isinstance(kinds, list | tuple) and len(kinds) == len(steps)
    facts |= {"kinds": kinds if same else [], "range": span}
    gap = shown.farthest(steps, span)
    if facts["length"] is None:
        facts["length"] = float(len(steps))
    if gap is None:
        return
    off, at = gap
    facts["error"] = off if facts["error"] is None else facts["error"]
    if off >= STRONGLY and not facts["suspicious"]:
        label, predicted = (number(measured(steps[at][key]), 2) for key in ("target", "predicted"))
        facts["suspicious"] = f"step {at + 1} is labelled {label} and predicted {predicted}"


def _of_a_text(facts: dict[str, Any], given: dict[str, Any]) -> None:
    """The reference is drawn token by token where their losses are known."""
    tokens = given.get("tokens")
    if shown.is_pieces(tokens):
        assert isinstance(tokens, list)
        first = next((n for n, (_, loss) in enumerate(tokens) if loss is not None), None)
        if first is not None and "reference" in given:
            given["reference"] = tokens[first:]
            del given["tokens"]
    if facts["length"] is None:
        texts = (given.get(key) for key in ("prompt", "reference"))
        length = len(tokens) if isinstance(tokens, list) else sum(len(str(t or "")) for t in texts)
        facts["length"] = float(length)


def _legend(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the drawings below mean, as far as there are any."""
    values = [value for row in rows for value in row["shown"].values()]
    marks = {mark for value in values if shown.is_pieces(value) for _, mark in value if mark}
    note = ""
    if any(measured(mark) is not None for mark in marks):
        note += " Tokens: the warmer, the higher the loss there."
    if marks & {"added", "missing"}:
        note += " Struck out: wanted, but not said. Underlined: said, but not wanted."
    if any("choices" in row["shown"] for row in rows):
        note += (
            " Choices: what the model would have said at each place of the reference, all before "
            "it being given; marked where it is something else."
        )
    if any(shown.is_chain(value) for value in values):
        note += (
            " Steps: the warmer, the further the prediction (bar) is from the label (stroke). "
            "Doubted is what is predicted below the middle of the range, an error what is labelled "
            "below it."
        )
    return note


def _orders(rows: Sequence[Mapping[str, Any]]) -> str:
    """Buttons for the page's script, which shows them: without it they could do nothing."""
    if len(rows) < 2:
        return ""
    buttons = [
        (key, title)
        for key, title in ORDERS
        if len({row[key] for row in rows if row[key] is not None}) > 1 or key == "loss"
    ]
    doubtful = sum(bool(row["suspicious"]) for row in rows)
    if doubtful:
        buttons.append(("suspicious", f"suspicious ({doubtful})"))
    items = "".join(
        f'<button type="button" value="{key}" aria-pressed="{"true" if key == "loss" else "false"}"'
        f">{title}</button>"
        for key, title in buttons
    )
    return f'<div id="orders" role="group" aria-label="Order of the rows" hidden>{items}</div>'


def _row(row: Mapping[str, Any], pictures: Pictures) -> str:
    ordered = [key for key in FIRST if key in row["shown"]]
    ordered += [key for key in row["shown"] if key not in ordered]
    items = "".join(
        f"<dt>{escape(key)}</dt><dd>{_value(row, key, pictures)}</dd>" for key in ordered
    )
    if row["suspicious"]:
        items += f"<dt>suspicious</dt><dd>{escape(row['suspicious'])}</dd>"
    place = f" · {row['where']}" if row["where"] is not None else ""
    error = f'<span class="second">error {number(row["error"], 3)}</span>'
    data = "".join(
        f' data-{key}="{_sortable(row[key])}"' for key, _ in ORDERS if row[key] is not None
    )
    data += ' data-suspicious="1"' * bool(row["suspicious"])
    return (
        f'<article class="row"{data}><h3>loss {number(row["loss"])}'
        f"{error * (row['error'] is not None)}<span>row {count(row['row'])} · "
        f"weight {count(row['weight'])}{escape(place)}</span></h3><dl>{items}</dl></article>"
    )


def _value(row: Mapping[str, Any], key: str, pictures: Pictures) -> str:
    given = row["shown"][key]
    if shown.is_chain(given):
        return shown.chain(given, row.get("kinds") or [], row.get("range"))
    return shown.value(given, pictures)


def _sortable(value: float) -> str:
    """A number that a script can compare: what is no number is worse than any."""
    return "1e999" if math.isnan(value) else repr(value)
