"""The typefaces pages are set in: those that come with Pillow and matplotlib.

Preprinted labels and typed values are seldom in the same face, so each page draws its own pair.
Layout is Pillow's basic one whatever else is installed: the same text has the same pixels.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from headway.errors import ConfigError

LABELS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "STIXGeneral", "STIXGeneralBol", "Aileron",
    "cmss10",
)  # fmt: skip
VALUES = (
    "cmtt10", "DejaVuSansMono", "DejaVuSansMono-Bold", "STIXGeneral", "DejaVuSans", "Aileron",
    "STIXGeneralItalic", "DejaVuSerif",
)  # fmt: skip
TITLES = ("DejaVuSans-Bold", "STIXGeneralBol", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "Aileron")

_PILLOWS = "Aileron"
# TeX's own encoding: these letters hold other signs there.
_NOT_IN_CM = re.compile(r'["<>_{|}\\$°]')


@lru_cache(maxsize=512)
def face(name: str, size: int) -> Any:
    """A Pillow font of so many pixels. ConfigError where Pillow or matplotlib is not installed."""
    try:
        from PIL import ImageFont
    except ImportError as error:
        raise ConfigError(
            "pages are drawn by Pillow, which is not installed: pip install 'headway[vision]'"
        ) from error
    if name == _PILLOWS:
        return ImageFont.load_default(size)
    file = _folder() / f"{name}.ttf"
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def fitting(name: str, text: str) -> str:
    """The typeface, or one like it that has every sign of the text."""
    if name.startswith("cm") and _NOT_IN_CM.search(text):
        return "DejaVuSansMono" if name == "cmtt10" else "DejaVuSans"
    return name


def width_px(name: str, size: int, text: str) -> float:
    """How wide a line of text is."""
    return float(face(fitting(name, text), size).getlength(text))


@lru_cache(maxsize=1)
def _folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"
