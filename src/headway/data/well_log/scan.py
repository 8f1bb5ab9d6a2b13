"""A clean drawing as a scanner and the years would have left it.

Ink that faded in places, a page laid in crooked, paper that yellowed (scans are grey), stains,
specks, streaks of the drum, noise, copies thresholded to black and white, JPEG. Everything is drawn
from the generator given, and ``amount`` scales it down to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.float32]
"""[height, width], 0 black to 255 white."""


@dataclass(frozen=True, slots=True)
class Wear:
    """How far things can go on a kind of page."""

    tilt_degrees: float
    blur_px: float
    noise: float
    """Standard deviation in grey levels."""
    most_stains: int
    copies: float
    """Share of pages that were copied to black and white."""
    edges: float
    """Share of pages with the scanner's black edge in the picture."""
    lowest_quality: int
    """Of JPEG."""


PAGE = Wear(1.3, 0.9, 16.0, 3, 0.35, 0.3, 35)
STRIP = Wear(0.35, 0.6, 14.0, 1, 0.15, 0.0, 45)
_TILE = 512


def scanned(image: Any, rng: np.random.Generator, wear: Wear, amount: float) -> tuple[bytes, str]:
    """(the file's bytes, its suffix) of a Pillow image in L: JPEG, or PNG where ``amount`` is 0."""
    from PIL import Image

    if amount <= 0:
        return _encoded(image, "PNG", optimize=False, compress_level=6), ".png"
    tilted = _tilted(image, rng, wear, amount)
    grey = np.asarray(tilted, dtype=np.float32)
    light = _paper(grey.shape, rng, wear, amount)
    grey = _faded(grey, rng, amount) * light / 255
    grey = _worn(grey, light, rng, wear, amount)
    pixels = np.clip(grey, 0, 255).astype(np.uint8)
    quality = round(95 - rng.random() * amount * (95 - wear.lowest_quality))
    return _encoded(Image.fromarray(pixels), "JPEG", quality=quality), ".jpg"


def _encoded(image: Any, kind: str, **how: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def _tilted(image: Any, rng: np.random.Generator, wear: Wear, amount: float) -> Any:
    """Laid in crooked, and out of focus."""
    from PIL import Image, ImageFilter

    degrees = float(np.clip(rng.normal(0, 0.45), -1, 1)) * wear.tilt_degrees * amount
    behind = 255
    if rng.random() < wear.edges * amount:
        behind = int(rng.integers(0, 70))
        edge, side = int(rng.integers(2, 9)), int(rng.integers(0, 4))
        width, height = image.size
        box = [(0, 0, edge, height), (0, 0, width, edge), (width - edge, 0, width, height),
               (0, height - edge, width, height)][side]  # fmt: skip
        image.paste(behind, box)
    turned = image.rotate(degrees, resample=Image.Resampling.BILINEAR, fillcolor=behind)
    radius = float(rng.random()) * wear.blur_px * amount
    return turned.filter(ImageFilter.GaussianBlur(radius)) if radius > 0.15 else turned


def _smooth(shape: tuple[int, ...], rng: np.random.Generator, cells: int) -> Grey:
    """A field between 0 and 1 that changes slowly [height, width]."""
    from PIL import Image

    rows = max(2, round(cells * shape[0] / max(shape)))
    columns = max(2, round(cells * shape[1] / max(shape)))
    small = (rng.random((rows, columns)) * 255).astype(np.uint8)
    wide = Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(wide, dtype=np.float32) / 255


def _faded(grey: Grey, rng: np.random.Generator, amount: float) -> Grey:
    """Ink that is not black, and less so in places."""
    ink = rng.uniform(0, 90) * amount
    uneven = rng.uniform(0, 60) * amount
    floor = ink + uneven * _smooth(grey.shape, rng, 9)
    return floor + grey * (255 - floor) / 255


def _paper(shape: tuple[int, ...], rng: np.random.Generator, wear: Wear, amount: float) -> Grey:
    """Paper that is not white, darker towards an edge, and stained."""
    height, width = shape
    white = 255 - rng.uniform(0, 45) * amount
    light = white - rng.uniform(0, 22) * amount * _smooth(shape, rng, 4)
    if rng.random() < 0.4:  # the lid was not closed: a shadow along one side
        side = np.linspace(0, 1, width, dtype=np.float32)
        side = side if rng.random() < 0.5 else side[::-1]
        light = light - 70 * amount * np.exp(-side * rng.uniform(12, 40))[None, :]
    for _ in range(min(wear.most_stains, int(rng.poisson(0.7)))):
        light *= 1 - amount * _stain((height, width), rng)
    return light


def _stain(shape: tuple[int, int], rng: np.random.Generator) -> Grey:
    """How much darker each pixel is: a ring as a cup leaves it, or drops that ran together."""
    from PIL import Image, ImageDraw, ImageFilter

    height, width = shape
    scale = max(1, min(8, min(shape) // 32))
    small = Image.new("L", (width // scale + 1, height // scale + 1), 0)
    draw = ImageDraw.Draw(small)
    x, y = rng.uniform(0, small.width), rng.uniform(0, small.height)
    across, depth = rng.uniform(0.05, 0.16) * max(small.size), rng.uniform(10, 42)
    if rng.random() < 0.4:
        box = [(x - across, y - across), (x + across, y + across)]
        draw.ellipse(box, fill=round(depth * 0.15), outline=round(depth), width=2)
    else:
        for _ in range(int(rng.integers(3, 9))):
            dx, dy = rng.normal(0, across / 2, 2)
            rx, ry = rng.uniform(0.15, 0.6, 2) * across
            drop = [(x + dx - rx, y + dy - ry), (x + dx + rx, y + dy + ry)]
            draw.ellipse(drop, fill=round(depth * rng.uniform(0.6, 1)))
    soft = small.filter(ImageFilter.GaussianBlur(1.3))
    wide = soft.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(wide, dtype=np.float32) / 255


def _worn(grey: Grey, light: Grey, rng: np.random.Generator, wear: Wear, amount: float) -> Grey:
    """Noise, streaks of the drum, a fold, specks; some pages copied to black and white."""
    height, width = grey.shape
    grey = grey + _noise((height, width), rng) * (rng.random() * wear.noise * amount)
    for _ in range(rng.poisson(1.2 * amount)):
        column = int(rng.integers(0, width))
        grey[:, column : column + int(rng.integers(1, 3))] += rng.uniform(-35, 60) * amount
    if height > 200 and rng.random() < 0.3 * amount:
        row = int(rng.integers(height // 8, height - height // 8))
        grey[row : row + 2] += 50 * amount  # folded: the ink came off
    if rng.random() < wear.copies * min(1.0, amount):
        grey = _copied(grey, light, rng)
    specks = rng.poisson(amount * rng.uniform(0, 1.0) ** 2 * height * width / 1500)
    rows, columns = rng.integers(0, height - 1, specks), rng.integers(0, width - 1, specks)
    shade = np.where(rng.random(specks) < 0.75, rng.uniform(0, 110), 255).astype(np.float32)
    grey[rows, columns] = shade
    big = rng.random(specks) < 0.25
    grey[rows[big] + 1, columns[big]] = shade[big]
    grey[rows[big], columns[big] + 1] = shade[big]
    return grey


def _copied(grey: Grey, light: Grey, rng: np.random.Generator) -> Grey:
    """A copier's threshold between ink and paper; edges stay soft.

    Copiers follow the paper's brightness. Without that a stain would turn black, and what was under
    it would be in the answer but not in the picture.
    """
    flat = grey * (255 / light) ** 0.85
    darkest, paper = np.percentile(flat[::4, ::4], [1, 70])
    threshold = darkest + (paper - darkest) * rng.uniform(0.58, 0.72)
    hardness = rng.uniform(4, 14)
    return np.asarray(np.clip((flat - threshold) * hardness + 128, 0, 255), dtype=np.float32)


def _noise(shape: tuple[int, int], rng: np.random.Generator) -> Grey:
    """Normal noise; larger pages repeat a tile, which nobody sees and which is ten times faster."""
    tile = rng.standard_normal((min(shape[0], _TILE), min(shape[1], _TILE)), dtype=np.float32)
    times = (-(-shape[0] // tile.shape[0]), -(-shape[1] // tile.shape[1]))
    return np.tile(tile, times)[: shape[0], : shape[1]]
