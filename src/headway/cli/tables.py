"""What a verb prints: a table for eyes, the same table plain for a pipe, or JSON for a program."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from headway.report.figures import Figures

WIDTH = 100
"""Characters that a table of figures may take in the terminal."""


def show_json(value: Any) -> None:
    """One JSON document; NaN and infinity are null, instants ISO 8601."""
    typer.echo(json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def show_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int = 1,
    last_is_text: bool = True,
) -> None:
    """Rows under titles; the first ``left`` columns and the last are text, the others numbers."""
    last = len(columns) - 1 if last_is_text else -1
    if not sys.stdout.isatty():
        _show_plain(columns, rows, {*range(left), last})
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for n, title in enumerate(columns):
        is_text = n < left or n == last
        table.add_column(title, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def show_facts(facts: Mapping[str, str], title: str = "") -> None:
    """``key  value`` lines, the values in one column."""
    if title:
        typer.echo(f"\n{title}")
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        typer.echo(f"  {key:<{width}}  {value}".rstrip())


def show_figures(found: Figures) -> None:
    """All of an evaluation's figures, a blank line before each table."""
    from headway.report.figures import grids

    for head, rows in grids(found, WIDTH):
        typer.echo()
        kind, _ = head[-1]
        show_table([title for _, title in head], rows, last_is_text=kind.startswith("text"))


def _show_plain(
    columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: set[int]
) -> None:
    widths = [max(len(row[n]) for row in (columns, *rows)) for n in range(len(columns))]
    for row in (columns, *rows):
        cells = (
            f"{cell:<{width}}" if n in text_columns else f"{cell:>{width}}"
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        typer.echo("  ".join(cells).rstrip())


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
