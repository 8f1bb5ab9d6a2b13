"""One picture, from where it lies to RGB pixels: the same pixels every time, or an error in words.

*Promises.* Nothing is decoded before it is asked for. A picture stands as its EXIF note says; what
is transparent is white; one larger than the limit is refused before its pixels are unpacked, and
one that does not say which of its values is white is refused too. What cannot be read is a
DataError that names file, line and picture. Nothing is executed: formats that PIL gives to other
programs (EPS) are not read. *Does not promise* colours: profiles are ignored.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from headway.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
ENDINGS = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm",
    ".jp2", ".mpo",
)  # fmt: skip
RULES = 2
"""Another number wherever pictures are refused that were read before: what is kept of them is then
looked at again."""
MOST_PIXELS = 178_956_970
"""PIL itself refuses more as a decompression bomb; above half of it, it warns."""
DAMAGE = (
    OSError, EOFError, SyntaxError, ValueError, KeyError, IndexError, OverflowError, TypeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""What PIL's readers raise for damaged files."""
_PILLOW = re.compile(r"PIL\.")
_LFS = b"version https://git-lfs.github.com/spec/"


class Reading(BaseModel):
    """How pictures are read, in training, evaluation and prediction alike."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    decoded_pixels: int = Field(
        50_000_000,
        ge=1,
        le=MOST_PIXELS,
        description="A picture with more pixels than this is refused before it is unpacked: a "
        "small file can hold gigabytes.",
    )
    turn: Literal[0, 90, 180, 270] = Field(
        0, description="Degrees that every picture is turned anticlockwise, after its EXIF note."
    )
    header_ratio: float | None = Field(
        None,
        gt=0,
        description="Keep only the left part of a wide strip, its header: width = height x this "
        "(1.3333 for well logs). None: the whole picture.",
    )
    unreadable: Literal["error", "skip"] = Field(
        "error",
        description="What to do with a row whose picture is missing, damaged, too large or of a "
        "shape that the model cannot take: stop and name it, or leave it out and count it (see "
        "max_dropped). `headway predict` always names such a picture and goes on to the next.",
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture is: in a file, or in memory."""

    where: str
    """File, line and number of the picture: ``train.jsonl:3, picture 1``."""
    path: str | None = None
    """A file on this disk, or a remote one with its ``://``."""
    data: bytes | None = field(default=None, repr=False)
    """The file's bytes, when the row itself held them."""
    page: int = 0
    """Of a file with several pages, counted from 0."""
    problem: str = ""
    """Why there are no bytes, where a row held something else: said when they are asked for."""


def content(picture: Picture) -> bytes:
    """The picture's file as bytes. DataError when it is missing, a Git-LFS pointer, or was not
    base64."""
    if picture.problem:
        raise DataError(f"{picture.where}: {picture.problem}")
    if picture.data is not None:
        return picture.data
    assert picture.path is not None
    try:
        if "://" in picture.path:
            import fsspec

            with fsspec.open(picture.path, "rb") as stream:
                raw: bytes = stream.read()
        else:
            raw = Path(picture.path).read_bytes()
    except (OSError, ImportError, ValueError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{named(picture)}: {why}; a path is relative to its data file") from error
    if raw.startswith(_LFS):
        raise DataError(
            f"{named(picture)}: this is a Git-LFS pointer, not a picture; run `git lfs pull` there"
        )
    return raw


def decoded(picture: Picture, reading: Reading) -> Image:
    """The picture in RGB, upright, turned and cropped as ``reading`` says.

    DataError, naming the row, for one that is missing, damaged, of another format or too large.
    """
    return decoded_bytes(content(picture), picture, reading)


def decoded_bytes(raw: bytes, picture: Picture, reading: Reading) -> Image:
    """As ``decoded``, of bytes that were read already."""
    _needs_pillow()
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as opened:
            if picture.page:
                opened.seek(picture.page)
            width, height = opened.size
            if width * height > reading.decoded_pixels:
                raise DataError(_too_large(picture, f"{width} x {height} pixels", reading))
            opened.load()
            scale = _scale(opened, picture)
            upright = ImageOps.exif_transpose(opened)
            return _placed(_rgb(_eight_bits(upright, scale, picture)), reading)
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(picture, str(error), reading)) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{named(picture)}: no picture in a known format ({', '.join(FORMATS)}), "
            f"{len(raw):,} bytes"
        ) from error
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{named(picture)}: the picture is damaged: {error}") from error


def pages(picture: Picture) -> int:
    """How many pages its file has. DataError as for ``decoded``.

    A multi-picture JPEG (MPO, of cameras) is one: what follows its first picture is that picture
    from another eye, or smaller.
    """
    _needs_pillow()
    from PIL import Image

    raw = content(picture)
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as opened:
            return 1 if opened.format == "MPO" else int(getattr(opened, "n_frames", 1))
    except (Image.DecompressionBombError, *DAMAGE) as error:
        raise DataError(f"{named(picture)}: no picture that can be read: {error}") from error


def from_base64(text: str, where: str) -> Picture:
    """A picture written as base64, or as a ``data:`` URI. One that is neither is a picture with a
    ``problem``: a row like one whose file is damaged."""
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return Picture(where, data=base64.b64decode("".join(body.split()), validate=True))
    except (binascii.Error, ValueError) as error:
        return Picture(where, problem=f"not base64: {error}")


def from_pil(image: Any, where: str) -> Picture:
    """A picture that PIL has open already (a row of a Hugging Face dataset), upright, as PNG bytes;
    with a ``problem`` where it cannot be read."""
    from PIL import ImageOps

    picture = Picture(where)
    try:
        image.load()
        scale = _scale(image, picture)
        upright = ImageOps.exif_transpose(image)
        if scale is not None or upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            upright = _rgb(_eight_bits(upright, scale, picture))
        return replace(picture, data=png_bytes(upright))
    except DataError as error:
        return replace(picture, problem=str(error).removeprefix(f"{where}: "))
    except DAMAGE as error:
        return replace(picture, problem=f"the picture is damaged: {error}")


def png_bytes(image: Any) -> bytes:
    """A decoded picture as the bytes of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def kept(picture: Picture, raw: bytes, folder: Path) -> Picture:
    """The picture as one that lies in a file: what a row held in memory is written to ``folder``.

    Named by its content, so that the same picture is written once.
    """
    if picture.path is not None:
        return picture
    digest = hashlib.sha256(raw).hexdigest()
    file = folder / digest[:2] / digest
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".partial-{file.name}-{os.getpid()}")
        partial.write_bytes(raw)
        partial.replace(file)
    return Picture(picture.where, path=str(file), page=picture.page)


def _scale(opened: Any, picture: Picture) -> tuple[int, int] | None:
    """The values that are black and white in a picture of more than 8 bits; None for any other.

    DataError where its file does not say. TIFF's tags: 258 bits, 262 which end is black (0: the
    upper), 339 kind of number (1: unsigned). All other formats fill 16 bits.
    """
    tags = opened.tag_v2 if opened.format == "TIFF" else {}
    signed = any(kind != 1 for kind in tags.get(339, (1,)))
    fills_16 = opened.format in ("PNG", "PPM")
    if signed or opened.mode == "F" or (opened.mode == "I" and not fills_16):
        raise DataError(
            f"{named(picture)}: its values are signed, fractions or of 32 bits, and which of them "
            "is white nobody says. Save it with 8 bits a colour"
        )
    bits = max(tags.get(258, (16 if opened.mode.startswith("I") else 8,)))
    if bits <= 8:
        return None
    most = (1 << bits) - 1
    return (most, 0) if tags and tags.get(262, 0) == 0 else (0, most)


def _eight_bits(image: Any, scale: tuple[int, int] | None, picture: Picture) -> Any:
    """The picture with 8 bits a colour. DataError where it is so dark that its scale must be
    another: 12 bits are often kept in 16."""
    import numpy as np
    from PIL import Image

    if scale is None:
        return image
    grey = image.mode.startswith("I")
    values = np.asarray(image)
    most = max(scale) if grey else 255  # of colours PIL has cut off what is beyond 8 bits
    if 0 < values.max(initial=0) <= most // 4:
        raise DataError(
            f"{named(picture)}: none of its values is above a quarter of {max(scale):,}, so that "
            "its scale seems to be another. Save it with 8 bits a colour"
        )
    if not grey:
        return image
    black, white = scale
    shades = np.rint(255 * (np.arange(most + 1) - black) / (white - black)).astype(np.uint8)
    clear = image.info.get("transparency")
    if clear is not None:
        shades[clear] = 255
    return Image.fromarray(shades[values])


def _rgb(image: Any) -> Any:
    """Any of PIL's modes of 8 bits as RGB; what is transparent lies on white."""
    from PIL import Image

    if "A" in image.getbands() or image.info.get("transparency") is not None:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, clear).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _placed(image: Any, reading: Reading) -> Any:
    """Turned and cropped."""
    from PIL import Image

    if reading.turn:
        turns = {
            90: Image.Transpose.ROTATE_90,
            180: Image.Transpose.ROTATE_180,
            270: Image.Transpose.ROTATE_270,
        }
        image = image.transpose(turns[reading.turn])
    if reading.header_ratio is not None:
        width = min(image.width, max(1, round(image.height * reading.header_ratio)))
        image = image.crop((0, 0, width, image.height))
    return image


def named(picture: Picture) -> str:
    """What a message calls it: where it was given, which page, which file."""
    page = f", page {picture.page + 1}" if picture.page else ""
    return f"{picture.where}{page}" + (f" ({picture.path})" if picture.path else "")


def _too_large(picture: Picture, what: str, reading: Reading) -> str:
    return (
        f"{named(picture)}: too large to unpack: {what}, and images.decoded_pixels allows "
        f"{reading.decoded_pixels:,}. Is it what it seems? Scale it down, or raise the limit"
    )


def _needs_pillow() -> None:
    """DataError without Pillow; and it shall not warn: of sizes, on which ``decoded_pixels``
    decides, or of notes in a file that it cannot read. What it cannot unpack is an error."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError("pictures need: pip install 'headway[vision]'") from error
    # Once and for good: `catch_warnings` would be undone by another thread that decodes.
    if not any(where == _PILLOW for *_, where, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)
