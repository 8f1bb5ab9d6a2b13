"""A page as text: Markdown with HTML tables, written from its parts and read back as fields.

The format is what vision models are asked for when they read documents: ``# Title``, ``Label:
value`` lines, check boxes ☐ ☑, tables in HTML. A field is a (name, value) pair; its name says where
the value stands: ``Mud type``, ``Bit size / Run 2`` in a table with column headings, ``Logs run /
Gamma ray`` for a box, ``#`` for a heading. Reading never fails: what a broken answer still says is
what it is worth.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Field = tuple[str, str]
"""(name, value)."""

EMPTY_BOX, TICKED_BOX = "☐", "☑"
HEADING = "#"
"""The name of a heading's field."""

_NAMES = "table|thead|tbody|tfoot|tr|td|th|caption|colgroup|col"
_TABLE_TAG = re.compile(rf"</?(?:{_NAMES})\b[^<>]*>", re.IGNORECASE)
_TABLE = re.compile(r"<table\b[^<>]*>(.*?)(?:</table\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_ROW = re.compile(r"<tr\b[^<>]*>", re.IGNORECASE)
_CELL = re.compile(r"<(t[hd])\b[^<>]*>(.*?)(?=</?t[hdr]\b|\Z)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")
_SPACE = re.compile(r"\s+")
_BOX = re.compile(rf"([{EMPTY_BOX}{TICKED_BOX}])\s*([^{EMPTY_BOX}{TICKED_BOX}]*)")
_LINE = re.compile(r"(?:[-*]\s+)?(?:\*\*)?([^:]{1,80}?)(?:\*\*)?\s*:(?:\*\*)?(?:\s+(.*))?")
_TITLE = re.compile(r"#{1,6}\s+(.*)")

Cell = tuple[bool, str]
"""(whether it is a heading cell, its text)."""


@dataclass(frozen=True, slots=True)
class Title:
    """A heading."""

    text: str


@dataclass(frozen=True, slots=True)
class Lines:
    """``Label: value`` on a line each."""

    pairs: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """A table of labels with their values beside them, some pairs in a row."""

    rows: tuple[tuple[Field, ...], ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table with column headings: row label, then a value below each heading."""

    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Check boxes behind a label."""

    label: str
    boxes: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Plain:
    """Text that is no field."""

    text: str


Part = Title | Lines | Pairs | Grid | Boxes | Plain


def markdown(parts: Iterable[Part]) -> str:
    """The parts as text, an empty line between two of them."""
    return "\n\n".join(_written(part) for part in parts)


def fields(parts: Iterable[Part]) -> list[Field]:
    """What ``fields_of`` reads from ``markdown`` of the same parts, in order."""
    found: list[Field] = []
    for part in parts:
        match part:
            case Title(text):
                found.append((HEADING, text))
            case Lines(pairs):
                found += pairs
            case Pairs(rows, title):
                found += [(HEADING, title)] * bool(title)
                found += [pair for row in rows for pair in row]
            case Grid(_, columns, rows, title):
                found += [(HEADING, title)] * bool(title)
                found += [
                    (f"{row[0]} / {column}", value)
                    for row in rows
                    for column, value in zip(columns, row[1:], strict=True)
                ]
            case Boxes(label, boxes):
                found += [(f"{label} / {name}", _box(on)) for name, on in boxes]
            case Plain(_):
                pass
    return found


def fields_of(answer: str) -> list[Field]:
    """The fields of a page's text in reading order; never raises.

    A table whose first row is all headings gives ``row label / heading``; in other tables a heading
    cell names the cells behind it, or the cells are taken two by two.
    """
    found: list[Field] = []
    at = 0
    for table in _TABLE.finditer(answer):
        found += _line_fields(answer[at : table.start()])
        found += _table_fields(table[1])
        at = table.end()
    return found + _line_fields(answer[at:])


def normalised(text: str) -> str:
    """Table tags and runs of white space as one space each, entities decoded; idempotent.

    What is left of a table are its cells in reading order, so that layout costs nothing.
    """
    # Until nothing changes: what is taken out can leave a tag behind (``<td<td>>``).
    while (plain := _collapsed(html.unescape(_TABLE_TAG.sub(" ", text)))) != text:
        text = plain
    return text


def _written(part: Part) -> str:
    match part:
        case Title(text):
            return f"# {text}"
        case Lines(pairs):
            return "\n".join(f"{label}: {value}".rstrip() for label, value in pairs)
        case Pairs(rows, title):
            cells = [
                [(i == 0, text) for pair in row for i, text in enumerate(pair)] for row in rows
            ]
            return _table(title, cells)
        case Grid(corner, columns, rows, title):
            head = [(True, text) for text in (corner, *columns)]
            return _table(title, [head, *([(False, text) for text in row] for row in rows)])
        case Boxes(label, boxes):
            return f"{label}: " + " ".join(f"{_box(on)} {name}" for name, on in boxes)
        case Plain(text):
            return text


def _table(title: str, rows: Iterable[Sequence[Cell]]) -> str:
    lines = [f"<tr><th>{_escaped(title)}</th></tr>"] * bool(title)
    for row in rows:
        cells = (
            f"<th>{_escaped(t)}</th>" if head else f"<td>{_escaped(t)}</td>" for head, t in row
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join(["<table>", *lines, "</table>"])


def _table_fields(inside: str) -> list[Field]:
    found: list[Field] = []
    headings: list[str] | None = None
    first = True
    for chunk in _ROW.split(inside):
        row = [(kind.lower() == "th", _cell_text(text)) for kind, text in _CELL.findall(chunk)]
        if len(row) == 1:
            found += [(HEADING, row[0][1])] * bool(row[0][1])
        elif row and first and all(head for head, _ in row):
            headings, first = [text for _, text in row], False
        elif row and headings:
            first = False
            label, values = row[0][1], (text for _, text in row[1:])
            for heading, value in zip(headings[1:], values, strict=False):
                found.append((f"{label} / {heading}", value))
        elif row:
            first = False
            found += _pair_fields(row)
    return found


def _pair_fields(row: Sequence[Cell]) -> list[Field]:
    """Of a row without column headings."""
    if not any(head for head, _ in row):
        row = [(i % 2 == 0, text) for i, (_, text) in enumerate(row)]
    pairs: list[tuple[str, list[str]]] = []
    for head, text in row:
        if head or not pairs:
            pairs.append((text.removesuffix(":").rstrip() if head else "", [] if head else [text]))
        else:
            pairs[-1][1].append(text)
    return [
        field
        for name, values in pairs
        for field in (_box_fields(name, " ".join(values)) or [(name, " ".join(values))])
    ]


def _line_fields(text: str) -> list[Field]:
    found: list[Field] = []
    for raw in text.splitlines():
        line = _collapsed(raw)
        if title := _TITLE.fullmatch(line):
            found.append((HEADING, title[1]))
        elif EMPTY_BOX in line or TICKED_BOX in line:
            before = re.split(f"[{EMPTY_BOX}{TICKED_BOX}]", line, maxsplit=1)[0]
            found += _box_fields(before.strip(" -*").removesuffix(":").rstrip(), line)
        elif pair := _LINE.fullmatch(line):
            found.append((pair[1].strip(), pair[2] or ""))
    return found


def _box_fields(label: str, text: str) -> list[Field]:
    prefix = f"{label} / " if label else ""
    return [(prefix + name.strip(), box) for box, name in _BOX.findall(text)]


def _cell_text(text: str) -> str:
    return _collapsed(html.unescape(_TAG.sub(" ", text)))


def _collapsed(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def _box(on: bool) -> str:
    return TICKED_BOX if on else EMPTY_BOX
