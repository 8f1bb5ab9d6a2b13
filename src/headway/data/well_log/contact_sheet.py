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
_GREYS = 12
_HIGHEST = 1.15
"""Height of a thumb over its width, at most."""
_DESK = 96


def contact_sheet(folder: Path, to: Path, *, pages: int = 20, width_px: int = 1280) -> int:
    """The first pages of a generated folder, eval's before train's, as PNG; returns its bytes."""
    files = _images(folder, pages)
    thumbs = [_thumb(file, (width_px - _GAP_PX) // _ACROSS - _GAP_PX) for file in files]
    data = _encoded(_placed(thumbs, width_px))
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(data)
    return len(data)


def _images(folder: Path, most: int) -> list[Path]:
    found: list[Path] = []
    for side in ("eval", "train"):
        lines = (folder / f"{side}.jsonl").read_bytes().splitlines()
        found += [folder / json.loads(line)["image"] for line in lines[: most - len(found)]]
    if not found:
        raise DataError(f"{folder}: no page to show")
    return found


def _thumb(file: Path, width: int) -> Any:
    """As wide as it shall be, and cut at the bottom where it is much higher than wide."""
    from PIL import Image

    with Image.open(file) as image:
        highest = min(image.height, round(image.width * _HIGHEST))
        top = image.convert("L").crop((0, 0, image.width, highest))
    height = max(1, round(highest * width / image.width))
    return top.resize((width, height), Image.Resampling.LANCZOS)


def _placed(thumbs: Sequence[Any], width: int) -> Any:
    """In rows as high as their highest."""
    from PIL import Image

    rows = [thumbs[i : i + _ACROSS] for i in range(0, len(thumbs), _ACROSS)]
    heights = [max(thumb.height for thumb in row) + _GAP_PX for row in rows]
    sheet = Image.new("L", (width, sum(heights) + _GAP_PX), _DESK)
    step, top = (width - _GAP_PX) // _ACROSS, _GAP_PX
    for row, height in zip(rows, heights, strict=True):
        for i, thumb in enumerate(row):
            sheet.paste(thumb, (_GAP_PX + i * step, top))
        top += height
    return sheet


def _encoded(sheet: Any) -> bytes:
    """PNG in a few greys."""
    step = 255 / (_GREYS - 1)
    levels = sheet.point([round(round(value / step) * step) for value in range(256)])
    stream = BytesIO()
    levels.convert("P").quantize(_GREYS).save(stream, "PNG", optimize=True)
    return stream.getvalue()
