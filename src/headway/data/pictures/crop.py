"""Headers of wide strips as pictures of their own: scans in, a folder of headers out.

A scanned well log is many times as wide as it is high; its header is the left part, width = height
x 4/3 (the rule of seed system 000).

*Promises.* A header is cut as ``images.turn`` and ``images.header_ratio`` cut it in training. The
scans are never changed. What was cut before from the same bytes in the same way is left as it is,
so the same call continues one that was killed. A scan that cannot be read is named and stops none
of the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headway.data.pictures.images import (
    ENDINGS,
    Picture,
    Reading,
    content,
    decoded_bytes,
    pages,
    png_bytes,
)
from headway.errors import ConfigError, DataError
from headway.system import write_whole

ROWS_FILE, WAY_FILE = "headers.jsonl", "cut.json"
Row = dict[str, Any]
"""Of a header: ``image`` (relative to the folder), ``filename``, ``source``, ``page`` (from 1),
``width``, ``height``, ``sha256`` of the scan; for training its answer is still to be added."""


@dataclass(frozen=True, slots=True)
class Cropped:
    """What became of the scans."""

    rows: tuple[Row, ...]
    new: int
    """Headers cut now; the others were there."""
    unreadable: tuple[str, ...]
    """Why, each with its file and page."""


def crop_headers(
    sources: Sequence[Path],
    to: Path,
    reading: Reading,
    done: Callable[[int], None] = lambda files: None,
) -> Cropped:
    """Cut the header of every page of every scan into ``to``; ``done(1)`` after each scan.

    ``sources``: files, or folders with all that is below. Raises ConfigError: nothing to read,
    ``to`` lies within a source, or it holds headers that were cut otherwise.
    """
    scans = scans_in(sources, to)
    known = opened_folder(to, reading)
    rows: list[Row] = []
    unreadable: list[str] = []
    new = 0
    with (to / ROWS_FILE).open("a", encoding="utf-8") as stream:
        for scan, name in scans:
            for found in headers_of(scan, name, to, reading, known):
                if isinstance(found, str):
                    unreadable.append(found)
                    continue
                rows.append(found)
                if found is not known.get(found["image"]):
                    new += 1
                    stream.write(json.dumps(found) + "\n")
            stream.flush()
            done(1)
    write_whole(to / ROWS_FILE, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return Cropped(tuple(rows), new, tuple(unreadable))


def scans_in(sources: Sequence[Path], to: Path) -> list[tuple[Path, str]]:
    """Every picture that the sources name, in order, and its name below its source."""
    found: list[tuple[Path, str]] = []
    for source in sources:
        if source.is_dir():
            if to.resolve().is_relative_to(source.resolve()):
                raise ConfigError(
                    f"--to {to} lies in {source}: the headers would be cut again the next time. "
                    "Choose a folder beside it"
                )
            files = sorted(f for f in source.rglob("*") if f.suffix.lower() in ENDINGS)
            found += [(f, f.relative_to(source).as_posix()) for f in files if f.is_file()]
        elif source.is_file():
            found.append((source, source.name))
        else:
            raise ConfigError(f"{source}: there is no such file or folder")
    if not found:
        raise ConfigError(f"no picture in {', '.join(map(str, sources))}: {', '.join(ENDINGS)}")
    names = [name for _, name in found]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{double[0]} is in two of the sources: give one folder above both")
    return found


def opened_folder(to: Path, reading: Reading) -> dict[str, Row]:
    """The folder, made ready; the rows of headers that are there, by ``image``."""
    way = {"turn": reading.turn, "ratio": reading.header_ratio}
    file = to / WAY_FILE
    if not file.exists():
        if to.is_dir() and any(to.iterdir()):
            raise ConfigError(f"--to {to} holds other files: choose a new folder")
        try:
            to.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--to {to}: {error.strerror}; give a folder to write") from error
        write_whole(file, json.dumps(way).encode())
    elif json.loads(file.read_text(encoding="utf-8")) != way:
        raise ConfigError(
            f"--to {to}: the headers there were cut with {file.read_text(encoding='utf-8')}, and "
            f"this is {json.dumps(way)}. Choose a new folder"
        )
    known: dict[str, Row] = {}
    rows = to / ROWS_FILE
    for line in rows.read_bytes().splitlines() if rows.exists() else ():
        try:
            row = json.loads(line)
            known[row["image"]] = row
        except (ValueError, KeyError, TypeError):
            continue  # torn when an earlier call was killed: that header is cut again
    return known


def headers_of(
    scan: Path, name: str, to: Path, reading: Reading, known: dict[str, Row]
) -> Iterator[Row | str]:
    """A row for each page of a scan, its header written where it was not; or why there is none."""
    whole = Picture(name, path=str(scan))
    try:
        raw = content(whole)
        held = replace(whole, path=None, data=raw)
        count = pages(held)
    except DataError as error:
        yield str(error)
        return
    digest = hashlib.sha256(raw).hexdigest()
    for page in range(count):
        image = f"{name}.p{page + 1:03d}.png" if count > 1 else f"{name}.png"
        before = known.get(image)
        if before is not None and before["sha256"] == digest and (to / image).is_file():
            yield before
            continue
        try:
            header = decoded_bytes(raw, replace(held, page=page), reading)
        except DataError as error:
            yield str(error)
            continue
        (to / image).parent.mkdir(parents=True, exist_ok=True)
        write_whole(to / image, png_bytes(_plain(header)))
        yield {
            "image": image,
            "filename": Path(name).name,
            "source": name,
            "page": page + 1,
            "width": header.width,
            "height": header.height,
            "sha256": digest,
        }


def _plain(image: Any) -> Any:
    """A grey picture as grey: a third of the bytes, the same pixels when it is read again."""
    red, green, blue = image.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else image
