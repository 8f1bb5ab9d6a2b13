"""An evaluation's numbers in order: each metric over all rows and by source, baselines beside it.

A key is ``metric`` or ``SOURCE/metric``, a baseline's is one of these and ``/its name``. The main
figures are those that come first; ``n`` and ``n_…`` are counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headway.report.timeline import measured
from headway.report.words import count, number

MAIN = 5
"""Figures that are shown where there is no room for all; the loss is one of them."""

LOWER = frozenset({
    "loss", "perplexity", "bits", "mse", "rmse", "mae", "ece", "brier", "error", "errors",
    "distance", "deviation", "gap", "cer", "wer",
})  # fmt: skip
HIGHER = frozenset({
    "accuracy", "r2", "auc", "pearson", "spearman", "f1", "precision", "recall", "iou", "match",
    "matches", "correct", "valid", "similarity",
})  # fmt: skip
"""Words of a metric's name that say which way is better."""

Place = tuple[str, str]
"""(source, metric); the source of what is over all rows is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured, by place."""

    metrics: Sequence[str]
    """Names without a source: the loss, then as the recipe gives them, counts last."""
    sources: Sequence[str]
    values: Mapping[Place, float]
    baselines: Mapping[Place, Mapping[str, float]]
    """Place -> name of the baseline -> its value."""

    @property
    def main(self) -> list[str]:
        """The first metrics over all rows; no counts."""
        there = [name for name in self.metrics if ("", name) in self.values and not counts(name)]
        return there[:MAIN]

    @property
    def many(self) -> bool:
        """Whether there are more than the main ones."""
        return bool(self.sources) or len([m for m in self.metrics if not counts(m)]) > MAIN

    def beside(self, name: str, source: str = "") -> Mapping[str, float]:
        """The baselines of a metric."""
        return self.baselines.get((source, name), {})


def figures(evaluation: Mapping[str, Any]) -> Figures:
    """The figures of a journal's evaluation, or of the fields of an ``Evaluation``."""
    values: dict[Place, float] = {}
    baselines: dict[Place, dict[str, float]] = {}
    for key, given in (evaluation.get("metrics") or {}).items():
        value = measured(given)
        if value is not None:
            values[place_of(key)] = value
    for key, given in (evaluation.get("baselines") or {}).items():
        of, _, name = key.rpartition("/")
        value = measured(given)
        if of and value is not None:
            baselines.setdefault(place_of(of), {})[name] = value
    names = dict.fromkeys(name for _, name in [*values, *baselines])
    return Figures(
        metrics=sorted(names, key=lambda name: (name != "loss", counts(name))),
        sources=list(dict.fromkeys(source for source, _ in values if source)),
        values=values,
        baselines=baselines,
    )


def place_of(key: str) -> Place:
    """``SOURCE/metric`` in two; a source's own name may hold a slash."""
    source, _, name = key.rpartition("/")
    return source, name


def counts(name: str) -> bool:
    """Whether a metric is a number of things."""
    return name == "n" or name.startswith("n_")


def direction(name: str) -> int:
    """1 where more of a metric is better, -1 where less is, 0 where its name does not say.

    The last word that says it counts: an ``error_auc`` is an area, ``mae_low`` an error.
    """
    words = name.rpartition("/")[2].partition("_with")[0].split("_")
    known = [word for word in words if word in LOWER or word in HIGHER]
    return 0 if not known else 1 if known[-1] in HIGHER else -1


def said(name: str, value: float | None, digits: int = 4) -> str:
    """A figure's value in words."""
    return count(value) if counts(name) else number(value, digits)


def columns(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys for a table with a row per evaluation: each metric, its baselines right after it.

    Where there are too many for that, the main figures alone.
    """
    newest = figures(evaluations[-1]) if evaluations else None
    if newest and newest.many:
        return newest.main
    metrics: dict[str, None] = {}
    baselines: dict[str, None] = {}
    for evaluation in evaluations:
        metrics.update(dict.fromkeys(evaluation.get("metrics") or {}))
        baselines.update(dict.fromkeys(evaluation.get("baselines") or {}))
    ordered = sorted(metrics, key=lambda name: name != "loss")
    grouped = [[m, *(b for b in baselines if b.rpartition("/")[0] == m)] for m in ordered]
    placed = [name for group in grouped for name in group]
    return [*placed, *(b for b in baselines if b not in placed)]


Grid = tuple[list[tuple[str, str]], list[list[str]]]
"""(class, title) of each column, and the rows' cells."""


def grids(found: Figures, most_characters: int) -> list[Grid]:
    """All figures in tables no wider than this, where a table can be: one where it fits.

    Else what is over all rows, and then the sources, a row each, their metrics as columns, as many
    as fit beside each other.
    """
    whole = grid(found)
    if _characters(whole) <= most_characters or not found.sources:
        return [whole]
    over_all = {place: value for place, value in found.values.items() if not place[0]}
    metrics = [name for name in found.metrics if ("", name) in over_all]
    tables = [grid(replace(found, metrics=metrics, sources=(), values=over_all))]
    kept: list[tuple[str, str, list[str]]] = []
    for name in sorted({n for s, n in found.values if s}, key=found.metrics.index):
        more = _by_source(found, name)
        if kept and _characters(_source_grid(found, [*kept, *more])) > most_characters:
            tables.append(_source_grid(found, kept))
            kept = []
        kept += more
    return [*tables, _source_grid(found, kept)] if kept else tables


def _by_source(found: Figures, name: str) -> list[tuple[str, str, list[str]]]:
    """(class, title, cells): a metric of each source, and its baselines right after it."""
    values = [found.values.get((source, name)) for source in found.sources]
    columns = [("value", name.replace("_", " "), [said(name, value, 3) for value in values])]
    for kind in dict.fromkeys(kind for s in found.sources for kind in found.beside(name, s)):
        beside = [found.beside(name, source).get(kind) for source in found.sources]
        cells = ["" if value is None else number(value, 3) for value in beside]
        columns.append(("beside", kind, cells))
    return columns


def _source_grid(found: Figures, columns: Sequence[tuple[str, str, list[str]]]) -> Grid:
    head = [("name", "of"), *((kind, title) for kind, title, _ in columns)]
    rows = zip(found.sources, *(cells for *_, cells in columns), strict=True)
    return head, [list(row) for row in rows]


def _characters(table: Grid) -> int:
    """How wide a table is in a terminal, its columns two spaces apart."""
    head, rows = table
    lines = [[title for _, title in head], *rows]
    return sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True)) - 2


def grid(found: Figures) -> Grid:
    """All figures as a table: (class, title) of each column, and the rows' cells.

    A metric a row, how many values they are over before them: its value and its baseline over all
    rows, then for each source; a second baseline has a row of its own.
    """
    head = [("name", "metric")]
    sources = ["", *found.sources]
    for source in sources:
        head += [("value", source or "all"), ("beside", "baseline")]
    rows = []
    for name in sorted(found.metrics, key=lambda name: name != "n"):
        kinds = dict.fromkeys(kind for s in sources for kind in found.beside(name, s))
        for n, kind in enumerate(kinds or [""]):
            cells = [name.replace("_", " ") if n == 0 else ""]
            for source in sources:
                value = found.values.get((source, name))
                beside = found.beside(name, source).get(kind)
                cells.append(said(name, value, 3) if n == 0 else "")
                cells.append("" if beside is None else number(beside, 3))
            rows.append([*cells, kind])
    if any(found.baselines.values()):
        return [*head, ("text faint", "baseline is")], rows
    kept = [n for n, (kind, _) in enumerate(head) if kind != "beside"]
    return [head[n] for n in kept], [[row[n] for n in kept] for row in rows]
