"""Chains before a model is loaded: read as rows for a run, shown to a person, and all counted.

The rows are those that training makes (``chain_rows``), so what is shown is what is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headway.data.chains import (
    Chain,
    ChainData,
    ChainReport,
    ChainTally,
    load_chains,
    read_chains,
    refuse_leaks,
    survey_chains,
)
from headway.data.order import Mixture
from headway.engine.task import RowAsRead, Survey
from headway.errors import DataError
from headway.recipes.chain_rows import ChainRow, ChainRows, ChainText, as_sampled


@dataclass(frozen=True)
class ReadChains:
    """Chains as rows, in their order, and what became of them."""

    train: ChainRows
    held: ChainRows | None
    test: ChainRows | None
    mixture: Mixture
    report: ChainReport

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        held = self.held.lines("held-out", "measured") if self.held else []
        test = self.test.lines("test", "measured") if self.test else []
        return [*self.report.lines(), *self.train.lines("train", "trained on"), *held, *test]


def as_rows(data: ChainData, text: ChainText, seed: int) -> ReadChains:
    """Raises DataError where chains cannot be read or nothing can be learned from a source."""
    splits = load_chains(data, seed=seed, target_range=(text.low, text.high))
    train = ChainRows(splits.train, text, splits.sizes)
    held = ChainRows(splits.held_out, text) if splits.held_out else None
    test = ChainRows(splits.test, text) if splits.test else None
    refuse_empty(data, train)
    mixture = Mixture(train.sizes, data.weights, seed)
    sampled = as_sampled(mixture, splits.report, data.weights)
    return ReadChains(train, held, test, mixture, replace(splits.report, sampled=sampled))


def rows_as_read(data: ChainData, text: ChainText) -> Iterator[RowAsRead]:
    """The training rows in the order of the files; a chain of which nothing is read is said."""
    for source in data.train:
        tally = ChainTally(source=source.name or "", path=source.path)
        for chain in read_chains(source, tally):
            yield from _as_read(chain, text)


def survey(data: ChainData, text: ChainText, seed: int) -> Survey:
    """All chains of all splits counted; what a run would refuse is said at the end.

    Raises DataError for data that cannot be read at all.
    """
    splits = survey_chains(data, seed=seed, target_range=(text.low, text.high))
    lines, tree = splits.report.lines(), splits.report.tree()
    tree["rows"] = {}
    refusal = ""
    for split, chains, unused in (
        ("train", splits.train, "trained on"),
        ("held-out", splits.held_out, "measured"),
        ("test", splits.test, "measured"),
    ):
        if not chains:
            continue
        rows = ChainRows(chains, text, splits.sizes if split == "train" else ())
        counted = _lengths(rows, chains)
        tree["rows"][split] = counted
        lines += [f"{split}: {_in_words(counted)}", *rows.lines(split, unused)]
        if split == "train":
            refusal = _refused(lambda rows=rows: refuse_empty(data, rows))
    refusal = refusal or _refused(lambda: refuse_leaks(splits.report, data.max_leaked))
    return Survey(lines=lines, tree=tree, refusal=refusal)


def refuse_empty(data: ChainData, rows: ChainRows) -> None:
    """DataError for a training source of which no row is left."""
    for source, size in zip(data.train, rows.sizes, strict=True):
        if size == 0:
            raise DataError(
                f"{source.path}: no labelled step of it fits into task.max_tokens "
                f"({rows.text.max_tokens}); raise it or leave the source out"
            )


def _refused(check: Any) -> str:
    try:
        check()
    except DataError as error:
        return str(error)
    return ""


def _as_read(chain: Chain, text: ChainText) -> Iterator[RowAsRead]:
    rows = ChainRows([chain], text)
    if not rows.rows:
        yield RowAsRead(
            where=chain.where, facts=f"no labelled step fits into {text.max_tokens} tokens", runs=()
        )
    for row, first in zip(rows.rows, rows.first_step, strict=True):
        facts = [
            f"{len(chain.steps)} steps" + (f", read from step {first + 1}" if first else ""),
            f"{len(row.ids):,} tokens",
            f"{len(row.at)} numbers",
        ]
        facts += [f"{row.lost} labelled steps beyond max_tokens"] if row.lost else []
        facts += [f"{row.dropped} first steps left away for room"] if row.dropped else []
        yield RowAsRead(
            where=chain.where, facts=", ".join(facts), runs=_runs(chain, row, first, text)
        )


def _runs(
    chain: Chain, row: ChainRow, first: int, text: ChainText
) -> tuple[tuple[str, str, float | None], ...]:
    """The row's text, cut where a number is read: (text, the target in words, its share)."""

    def decoded(begin: int, end: int) -> str:
        return str(text.tokenizer.decode(row.ids[begin:end].tolist(), skip_special_tokens=False))

    found: list[tuple[str, str, float | None]] = []
    begin = 0
    for at, step, share in zip(
        row.at.tolist(), row.steps.tolist(), row.targets.tolist(), strict=True
    ):
        before, whole = decoded(begin, at), decoded(begin, at + 1)
        if not whole.startswith(before):
            before = ""  # its last character is in two tokens
        kind = chain.kinds[first + step] if chain.kinds else None
        target = f"{text.low + (text.high - text.low) * share:g}" + (f" {kind}" if kind else "")
        found += [(before, "", None), (whole[len(before) :], target, share)]
        begin = at + 1
    return (*found, (decoded(begin, len(row.ids)), "", None))


def _lengths(rows: ChainRows, chains: list[Chain]) -> dict[str, Any]:
    """How many rows, how long they are in tokens, and how many steps chains have."""
    lengths = np.array([len(row.ids) for row in rows.rows] or [0])
    steps = np.array([len(chain.steps) for chain in chains])
    return {
        "rows": len(rows),
        "tokens": int(lengths.sum()),
        **{f"tokens_{name}": int(np.percentile(lengths, q)) for name, q in QUANTILES.items()},
        **{f"steps_{name}": int(np.percentile(steps, q)) for name, q in QUANTILES.items()},
        "split_chains": rows.split_chains,
        "lost_steps": rows.lost_steps,
        "dropped_steps": rows.dropped_steps,
        "emptied_rows": rows.emptied,
    }


QUANTILES = {"shortest": 0, "median": 50, "95_percent": 95, "longest": 100}


def _in_words(found: dict[str, Any]) -> str:
    def spread(unit: str) -> str:
        low, middle, most, high = (found[f"{unit}_{name}"] for name in QUANTILES)
        return f"{low:,} to {high:,} {unit} (half up to {middle:,}, 95 % up to {most:,})"

    return (
        f"{found['rows']:,} rows, {found['tokens']:,} tokens; a row has {spread('tokens')}, "
        f"a chain {spread('steps')}"
    )
