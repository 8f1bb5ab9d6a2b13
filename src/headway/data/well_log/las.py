"""Real well-log headers: the ~W and ~P sections of LAS files, read tolerantly.

LAS is the Canadian Well Logging Society's format: a line is ``MNEM.UNIT  value : description``. In
version 1.2 the well section has description and value the other way round. Real files break every
rule; a line that cannot be understood is left out, a file without a usable line is no header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from headway.errors import DataError

_LINE = re.compile(r"([^.:~#]+)\.([^\s:]*(?::[^\s:]+)?)\s*(.*)")
_COLON = re.compile(r"(?<!\d):|:(?!\d)")  # 23:15 is a time
_NOT_SWAPPED = {"STRT", "STOP", "STEP", "NULL"}
_NAMED = {"COMP", "WELL", "FLD", "LOC", "SRVC", "DATE"}
_DESCRIPTIONS = {"COMPANY", "WELL", "FIELD", "LOCATION", "SERVICE COMPANY", "LOG DATE"}
_NULL = re.compile(r"-?(?:999|9999|99999)(?:[.,]\d*)?")
_LONGEST = 44
"""Characters of a label or a value; longer ones are sentences, not fields."""
_MOST_FILES = 20_000
_HEADER_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class HeaderItem:
    """One line: ``BHT.DEGC 35.5 : BOTTOM HOLE TEMPERATURE``."""

    mnemonic: str
    unit: str
    value: str
    """Empty where the file leaves it open or says NULL."""
    label: str
    """The description, or the mnemonic where there is none."""
    section: str
    """W or P."""


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says of its well."""

    file: str
    items: tuple[HeaderItem, ...]

    @property
    def well(self) -> str:
        """The well's name, its identity among real wells; empty where the file has none."""
        return " ".join(next((i.value for i in self.items if i.mnemonic == "WELL"), "").split())


def parse_header(text: str, file: str = "") -> Header:
    """The usable items of a LAS file's text, each label once; never raises."""
    section = ""
    found: list[HeaderItem] = []
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("~"):
            section = line[1:2].upper()
            if section == "A":
                break
        elif section in ("W", "P") and (parts := _parts(line)):
            found.append(HeaderItem(*parts, section))
    # Asked of the lines themselves: files give the wrong version, or none.
    swapped = any(i.mnemonic in _NAMED and i.value.upper() in _DESCRIPTIONS for i in found)
    items: dict[str, HeaderItem] = {}
    for item in found:
        if swapped and item.section == "W" and item.mnemonic not in _NOT_SWAPPED:
            item = replace(item, value=item.label, label=item.value)
        if usable := _usable(item):
            items.setdefault(usable.label.casefold(), usable)
    return Header(file, tuple(items.values()))


def read_headers(folder: Path) -> list[Header]:
    """The headers of all .las files below a folder, by name; DataError where none is usable."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --las takes a folder of LAS files")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() == ".las" and p.is_file())
    if not files:
        raise DataError(f"{folder}: holds no .las file; --las takes a folder of LAS files")
    if len(files) > _MOST_FILES:
        raise DataError(f"{folder}: {len(files):,} .las files; take at most {_MOST_FILES:,}")
    headers = [header for file in files if (header := _read(file, folder)).items]
    if not headers:
        raise DataError(
            f"{folder}: none of {len(files):,} .las files has a line of a well or parameter section"
        )
    return headers


def forms(headers: Iterable[Header], fewest: int = 6) -> list[Header]:
    """One header of each distinct set of labels with at least so many items."""
    distinct: dict[tuple[str, ...], Header] = {}
    for header in headers:
        if len(header.items) >= fewest:
            distinct.setdefault(tuple(item.label for item in header.items), header)
    return list(distinct.values())


def wells(headers: Iterable[Header]) -> list[Header]:
    """The fullest header of each well that has a name, by name."""
    fullest: dict[str, Header] = {}
    for header in headers:
        known = fullest.get(header.well.casefold())
        if header.well and (known is None or _filled(known) < _filled(header)):
            fullest[header.well.casefold()] = header
    return [fullest[name] for name in sorted(fullest)]


def _read(file: Path, folder: Path) -> Header:
    with file.open("rb") as stream:
        raw = stream.read(_HEADER_BYTES)
    # Every byte is a character in Latin-1: what was another encoding is dropped with its item.
    return parse_header(raw.decode("latin-1"), file.relative_to(folder).as_posix())


def _parts(line: str) -> tuple[str, str, str, str] | None:
    """(mnemonic, unit, what is before the colon, what is behind it)."""
    found = _LINE.fullmatch(line)
    colon = _COLON.search(found[3]) if found else None
    if found is None or colon is None:
        return None
    value, label = found[3][: colon.start()], found[3][colon.end() :]
    mnemonic = found[1].strip().upper()
    return mnemonic, found[2].strip(), value.strip(), label.strip(" :")


def _usable(item: HeaderItem) -> HeaderItem | None:
    item = replace(item, label=item.label or item.mnemonic)
    texts = (item.label, item.value, item.unit)
    if not all(text.isascii() and (text.isprintable() or not text) for text in texts):
        return None
    if item.mnemonic == "NULL" or ":" in item.label or len(item.unit) > 10:
        return None
    label, value = " ".join(item.label.split()), " ".join(item.value.split())
    if not any(c.isalpha() for c in label) or max(len(label), len(value)) > _LONGEST:
        return None
    if "<" in label + value or label.startswith(("#", "-", "*")):
        return None
    if _NULL.fullmatch(value):
        value = ""
    unit = "" if ":" in item.unit else item.unit  # hh:mm is no unit
    return HeaderItem(item.mnemonic, unit, value, label, item.section)


def _filled(header: Header) -> int:
    return sum(bool(item.value) for item in header.items)
