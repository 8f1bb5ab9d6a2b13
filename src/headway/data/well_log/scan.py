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
    lowest_quality: int
    """Of JPEG."""


PAGE = Wear(1.3, 0.9, 16.0, 4, 0.3, 35)
STRIP = Wear(0.35, 0.6, 14.0, 1, 0.15, 45)
_TILE = 512


def scanned(image: Any, rng: np.random.Generator, wear: Wear, amount: float) -> tuple[bytes, str]:
    """(the file's bytes, its suffix) of a Pillow image in L: JPEG, or PNG where ``amount`` is 0."""
    from PIL import Image

    if amount <= 0:
        return _encoded(image, "PNG", optimize=False, compress_level=6), ".png"
    tilted = _tilted(image, rng, wear, amount)
    grey = np.asarray(tilted, dtype=np.float32)
    grey = _faded(grey, rng, amount)
    grey = _on_paper(grey, rng, wear, amount)
    grey = _worn(grey, rng, wear, amount)
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
    turned = image.rotate(degrees, resample=Image.Resampling.BILINEAR, fillcolor=255)
    radius = float(rng.random()) * wear.blur_px * amount
    return turned.filter(ImageFilter.GaussianBlur(radius)) if radius > 0.15 else turned


def _smooth(shape: tuple[int, int], rng: np.random.Generator, cells: int) -> Grey:
    """A field between 0 and 1 that changes slowly [height, width]."""
    from PIL import Image

    rows = max(2, round(cells * shape[0] / max(shape)))
    columns = max(2, round(cells * shape[1] / max(shape)))
    small = (rng.random((rows, columns)) * 255).astype(np.uint8)
    wide = Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(wide, dtype=np.float32) / 255


def _faded(grey: Grey, rng: np.random.Generator, amount: float) -> Grey:
    """Ink that is not black, and less so in places."""
    ink = rng.uniform(0, 95) * amount
    uneven = rng.uniform(0, 70) * amount
    floor = ink + uneven * _smooth(grey.shape, rng, 9)  # type: ignore[arg-type]
    return floor + grey * (255 - floor) / 255


def _on_paper(grey: Grey, rng: np.random.Generator, wear: Wear, amount: float) -> Grey:
    """Paper that is not white, darker towards an edge, and stained."""
    height, width = grey.shape
    paper = 255 - rng.uniform(0, 45) * amount
    light = paper - rng.uniform(0, 22) * amount * _smooth((height, width), rng, 4)
    if rng.random() < 0.4:  # the lid was not closed: a shadow along one side
        side = np.linspace(0, 1, width, dtype=np.float32)
        side = side if rng.random() < 0.5 else side[::-1]
        light = light - 70 * amount * np.exp(-side * rng.uniform(12, 40))[None, :]
    for _ in range(int(rng.integers(0, wear.most_stains + 1))):
        light *= 1 - amount * _stain((height, width), rng)
    return grey * light / 255


def _stain(shape: tuple[int, int], rng: np.random.Generator) -> Grey:
    """How much darker a round stain makes each pixel: its rim most, as coffee dries."""
    from PIL import Image, ImageDraw, ImageFilter

    height, width = shape
    scale = max(1, min(8, min(shape) // 32))
    small = Image.new("L", (width // scale + 1, height // scale + 1), 0)
    draw = ImageDraw.Draw(small)
    x, y = rng.uniform(0, small.width), rng.uniform(0, small.height)
    across = rng.uniform(0.04, 0.16) * max(small.size)
    tall = across * rng.uniform(0.7, 1.3)
    box = [(x - across, y - tall), (x + across, y + tall)]
    depth = rng.uniform(15, 60)
    draw.ellipse(box, fill=round(depth * 0.6), outline=round(depth), width=max(1, int(across / 9)))
    soft = small.filter(ImageFilter.GaussianBlur(1.2)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return np.asarray(soft, dtype=np.float32) / 255


def _worn(grey: Grey, rng: np.random.Generator, wear: Wear, amount: float) -> Grey:
    """Noise, streaks of the drum, a fold, specks; some pages copied to black and white."""
    height, width = grey.shape
    grey = grey + _noise((height, width), rng) * (rng.random() * wear.noise * amount)
    for _ in range(rng.poisson(1.2 * amount)):
        column = int(rng.integers(0, width))
        grey[:, column : column + int(rng.integers(1, 3))] += rng.uniform(-60, 60) * amount
    if height > 200 and rng.random() < 0.3 * amount:
        row = int(rng.integers(height // 8, height - height // 8))
        grey[row : row + 2] += 50 * amount  # folded: the ink came off
    if rng.random() < wear.copies * min(1.0, amount):
        grey = _copied(grey, rng)
    specks = rng.poisson(amount * rng.uniform(0, 1.0) ** 2 * height * width / 1500)
    rows, columns = rng.integers(0, height - 1, specks), rng.integers(0, width - 1, specks)
    shade = np.where(rng.random(specks) < 0.75, rng.uniform(0, 110), 255).astype(np.float32)
    grey[rows, columns] = shade
    big = rng.random(specks) < 0.25
    grey[rows[big] + 1, columns[big]] = shade[big]
    grey[rows[big], columns[big] + 1] = shade[big]
    return grey


def _copied(grey: Grey, rng: np.random.Generator) -> Grey:
    """A copier's threshold, halfway between the page's ink and its paper; edges stay soft."""
    darkest, paper = np.percentile(grey[::4, ::4], [1, 70])
    threshold = darkest + (paper - darkest) * rng.uniform(0.5, 0.68)
    hardness = rng.uniform(4, 14)
    return np.clip((grey - threshold) * hardness + 128, 0, 255)


def _noise(shape: tuple[int, int], rng: np.random.Generator) -> Grey:
    """Normal noise; larger pages repeat a tile, which nobody sees and which is ten times faster."""
    tile = rng.standard_normal((min(shape[0], _TILE), min(shape[1], _TILE)), dtype=np.float32)
    times = (-(-shape[0] // tile.shape[0]), -(-shape[1] // tile.shape[1]))
    return np.tile(tile, times)[: shape[0], : shape[1]]
