"""What was measured on held-out rows: over the run, and all of it at the newest evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from headway.report.figures import Figures, columns, figures, grids
from headway.report.page import table
from headway.report.reliability import bins_of, calibration
from headway.report.summary import best_evaluation
from headway.report.timeline import Event, Timeline, measured
from headway.report.words import count, duration, number, rows_in_words

TABLE_ROWS = 30
MOST_CHARACTERS = 140
"""Of a table in a row: wider, and its sources have a table of their own."""


def evaluations(told: Timeline, tested: Sequence[Event] = ()) -> str:
    """The section: what was tested; a row per evaluation; the newest in full where it is much."""
    parts = [_tested(evaluation) for evaluation in tested]
    if told.evaluations:
        newest = told.evaluations[-1]
        parts += [_over_the_run(told), _in_full(newest)]
        bins = bins_of(newest)
        if bins:
            parts.append(calibration(bins, newest["step"]))
    if not parts:
        return ""
    return f"<section><h2>Evaluations</h2>{''.join(parts)}</section>"


def _over_the_run(told: Timeline) -> str:
    best = best_evaluation(told.evaluations)
    shown = _spread(told.evaluations, TABLE_ROWS, best)
    keys = columns(told.evaluations)
    head = [("", "step"), ("", "rows N"), ("", "weight")]
    head += [("baseline" if "/" in key else "", _title(key)) for key in keys]
    head += [("faint", "took"), ("text", "")]
    rows = []
    for evaluation in shown:
        values = {**evaluation.get("metrics", {}), **evaluation.get("baselines", {})}
        cells = [count(evaluation["step"])]
        cells += [rows_in_words(evaluation.get("rows"), evaluation.get("of_rows"))]
        cells += [count(evaluation.get("weight"))]
        cells += [number(measured(values.get(key))) for key in keys]
        cells += [duration(evaluation.get("seconds")), "best" if evaluation is best else ""]
        rows.append(("best" if evaluation is best else "", cells))
    left_out = len(told.evaluations) - len(shown)
    note = f" {count(left_out)} more are in journal.jsonl." if left_out else ""
    return (
        '<p class="note">On held-out rows. Weight counts the loss units (for text, supervised '
        f"tokens). A baseline is the same measurement of something trivial.{note}</p>"
        f"{table(head, rows)}"
    )


def _tested(evaluation: Event) -> str:
    """All figures on test rows: the result to report."""
    return (
        f'<h3 class="part">On the test rows, at step {count(evaluation["step"])}</h3>'
        f'<p class="note">N = {count(evaluation.get("rows"))} rows, '
        f"{count(evaluation.get('weight'))} loss units. These rows chose nothing: not the best "
        f"checkpoint, not when to stop.</p>{_tables(figures(evaluation))}"
    )


def _tables(found: Figures) -> str:
    parts = grids(found, MOST_CHARACTERS)
    return "".join(table(head, [("", cells) for cells in rows]) for head, rows in parts)


def _title(key: str) -> str:
    return key.replace("/", ", ").replace("_", " ")


def _in_full(newest: Event) -> str:
    """Every figure of one evaluation, where the table above has only the main ones."""
    found = figures(newest)
    if not found.many:
        return ""
    note = "A baseline stands in grey beside each figure."
    if any("–" in cells for _, rows in grids(found, MOST_CHARACTERS) for cells in rows):
        note += " –: not measured there, or not defined (such as R² of targets that are all equal)."
    return (
        f'<h3 class="part">All figures at step {count(newest["step"])}</h3>'
        f'<p class="note">{note}</p>{_tables(found)}'
    )


def _spread(rows: Sequence[Event], limit: int, also: Event | None) -> list[Event]:
    """At most ``limit`` rows, evenly over all of them; first, last and ``also`` among them."""
    if len(rows) <= limit:
        return list(rows)
    chosen = {round(n * (len(rows) - 1) / (limit - 1)) for n in range(limit)}
    return [row for n, row in enumerate(rows) if n in chosen or row is also]
