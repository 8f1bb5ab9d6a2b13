"""A picture a little different each time it is trained on: a pure function of (seed, position).

Position is the place in the training order, so the same row differs from epoch to epoch, and a
resumed run sees exactly what an uninterrupted one would have. The size never changes: neither does
the number of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from PIL.Image import Image


class Augmentation(BaseModel):
    """How much a training picture may differ from the one in the file. 0: not at all."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rotation_degrees: float = Field(
        0.0, ge=0, le=15, description="Turned by up to this angle, either way."
    )
    shift: float = Field(
        0.0, ge=0, le=0.2, description="Moved by up to this share of the height, in each direction."
    )
    contrast: float = Field(
        0.0, ge=0, lt=1, description="Contrast times 1 plus or minus up to this."
    )
    brightness: float = Field(
        0.0, ge=0, lt=1, description="Brightness plus or minus up to this share of the range."
    )
    noise: float = Field(
        0.0, ge=0, lt=1, description="Normal noise of up to this standard deviation, of the range."
    )


def augmented(image: Image, how: Augmentation, seed: int, position: int, number: int = 0) -> Image:
    """The picture at this position of the training order; ``number``: which picture of the row.

    What a turn or a move uncovers has the colour of the picture's edge.
    """
    from PIL import Image as Images

    drawn = np.random.Generator(
        np.random.Philox(key=[seed & (1 << 64) - 1, position], counter=number)
    )
    angle, right, down, contrast, brightness, noise = drawn.uniform(-1, 1, 6)
    if how.rotation_degrees or how.shift:
        move = (how.shift * image.height * right, how.shift * image.height * down)
        image = image.rotate(
            how.rotation_degrees * angle,
            resample=Images.Resampling.BILINEAR,
            translate=(round(move[0]), round(move[1])),
            fillcolor=edge_colour(image),
        )
    if not (how.contrast or how.brightness or how.noise):
        return image
    values = np.asarray(image, dtype=np.float32)
    factor = np.float32(1 + how.contrast * contrast)
    values = (values - 128) * factor + np.float32(128 + 255 * how.brightness * brightness)
    if how.noise:
        size = values.shape[:2]  # grey noise: a scanner's, not a camera's
        spread = np.float32(255 * how.noise * abs(noise))
        values = values + spread * drawn.standard_normal((*size, 1), dtype=np.float32)
    return Images.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def edge_colour(image: Image) -> tuple[int, int, int]:
    """The median colour of the picture's outermost pixels."""
    values = np.asarray(image)
    edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    red, green, blue = np.median(edge, axis=0)
    return int(red), int(green), int(blue)
