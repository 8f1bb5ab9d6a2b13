"""The worst rows of an evaluation as a table, and the pictures that belong to them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headway.track.records import Measurement

CELL_CHARACTERS = 2000
PICTURES = 20


def table(worst: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: the row's number and loss, then what is shown of any of them, as text."""
    shown = list(dict.fromkeys(key for row in worst for key in row.get("shown") or {}))
    columns = ["row", "loss", *shown]
    rows = [
        [
            row.get("row"),
            row.get("loss"),
            *((_cell((row.get("shown") or {}).get(k))) for k in shown),
        ]
        for row in worst
    ]
    return columns, rows


def as_markdown(worst: Sequence[Mapping[str, Any]]) -> str:
    """The same as a table of markdown."""
    columns, rows = table(worst)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_in_table, line)) + " |" for line in lines)


def pictures(run: Path, record: Measurement) -> Iterator[tuple[Path, int, int]]:
    """(file, width, height) of the PNG pictures of the worst rows, which the evaluation's own file
    names: the journal leaves them out.

    A name is relative to the evaluation's folder, and leads nowhere else.
    """
    folder = (run / "evals" / f"step-{record.step:08d}").resolve()
    for name in _named(folder / "worst.jsonl"):
        path = (folder / name).resolve()
        if path.is_relative_to(folder) and path.is_file():
            with path.open("rb") as file:
                head = file.read(24)
            if head.startswith(b"\x89PNG\r\n\x1a\n"):
                yield path, *struct.unpack(">II", head[16:24])


def _named(file: Path) -> list[str]:
    """The first PICTURES pictures that the rows of this file show; none where it is not there."""
    try:
        rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    except (OSError, ValueError):
        return []
    shown = [item for row in rows for item in (row.get("shown") or {}).values()]
    each = [one for item in shown for one in (item if isinstance(item, list) else [item])]
    found = [one.get("picture") for one in each if isinstance(one, Mapping)]
    return [name for name in found if isinstance(name, str)][:PICTURES]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def _in_table(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")
