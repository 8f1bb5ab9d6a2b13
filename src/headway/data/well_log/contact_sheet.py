"""Many pages on one picture, small, in few greys, to look at and to show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from headway.errors import DataError

_ACROSS = 5
_GAP_PX = 8
_GREYS = 16
_DESK = 96


def contact_sheet(folder: Path, to: Path, *, pages: int = 20, width_px: int = 1500) -> int:
    """The first pages of a generated folder, eval's before train's, as PNG; returns its bytes."""
    files = _images(folder, pages)
    thumbs = [_thumb(file, (width_px - _GAP_PX) // _ACROSS - _GAP_PX) for file in files]
    data = _encoded(_placed(thumbs, width_px))
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(data)
    return len(data)


def _images(folder: Path, most: int) -> list[Path]:
    found = []
    for side in ("eval", "train"):
        lines = (folder / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()
        found += [folder / json.loads(line)["image"] for line in lines[: most - len(found)]]
    if not found:
        raise DataError(f"{folder}: no page to show")
    return found


def _thumb(file: Path, width: int) -> Any:
    from PIL import Image

    with Image.open(file) as image:
        height = max(1, round(image.height * width / image.width))
        return image.convert("L").resize((width, height), Image.Resampling.LANCZOS)


def _placed(thumbs: Sequence[Any], width: int) -> Any:
    """In columns, each thumb where there is most room."""
    from PIL import Image

    columns: list[list[Any]] = [[] for _ in range(_ACROSS)]
    ends = [_GAP_PX] * _ACROSS
    for thumb in thumbs:
        shortest = ends.index(min(ends))
        columns[shortest].append((thumb, ends[shortest]))
        ends[shortest] += thumb.height + _GAP_PX
    sheet = Image.new("L", (width, max(ends)), _DESK)
    step = (width - _GAP_PX) // _ACROSS
    for i, column in enumerate(columns):
        for thumb, top in column:
            sheet.paste(thumb, (_GAP_PX + i * step, top))
    return sheet


def _encoded(sheet: Any) -> bytes:
    """PNG in sixteen greys."""
    step = 255 / (_GREYS - 1)
    levels = sheet.point([round(round(value / step) * step) for value in range(256)])
    stream = BytesIO()
    levels.convert("P").quantize(_GREYS).save(stream, "PNG", optimize=True)
    return stream.getvalue()
