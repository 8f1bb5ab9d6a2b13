"""Rows with pictures: every shape they come in, what is refused, and that nothing is silent."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("PIL", reason="pillow is not installed")

from PIL import Image

from headway.data.formats import Record
from headway.data.pictures import (
    ImageData,
    ImageSplits,
    Picture,
    PromptWriter,
    Reading,
    decoded,
    pages,
    prepare_images,
    recognise,
)
from headway.data.pictures.augment import Augmentation, augmented
from headway.errors import DataError
from tiny_vision import QWEN_TEMPLATE, drawn, png, row_of, tokenizer_of, write_rows


def held(image: Any, **options: Any) -> Picture:
    return Picture("rows.jsonl:7, picture 1", data=png(image, **options))


class Squares:
    """Eyes that see one feature in each square of 16 pixels."""

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 16) * 16, -(-width // 16) * 16

    def features(self, height: int, width: int) -> int:
        high, wide = self.scaled(height, width)
        return (high // 16) * (wide // 16)


@pytest.fixture(scope="module")
def writer() -> PromptWriter:
    specials = ["<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer = tokenizer_of(specials, QWEN_TEMPLATE)
    return PromptWriter(tokenizer, QWEN_TEMPLATE, "<|image_pad|>", 4)


def prepared(
    folder: Path, writer: PromptWriter, rows: list[dict[str, Any]], **section: Any
) -> ImageSplits:
    file = write_rows(folder / "rows.jsonl", rows)
    data = ImageData.model_validate({"train": str(file), **section})
    return prepare_images(data, writer, Squares(), max_tokens=200, seed=1, cache=folder / "cache")


# ------------------------------------------------------------------ one picture


def test_a_picture_stands_as_its_exif_note_says() -> None:
    image = Image.new("RGB", (30, 10), "white")
    image.paste("black", (0, 0, 5, 10))  # the left end is black
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn it clockwise
    found = decoded(held(image, exif=exif), Reading())
    assert found.size == (10, 30)
    assert found.getpixel((5, 1)) == (0, 0, 0) and found.getpixel((5, 28)) == (255, 255, 255)
    assert decoded(held(image), Reading()).size == (30, 10)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it has so many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        raw = name + body
        return struct.pack(">I", len(body)) + raw + struct.pack(">I", zlib.crc32(raw))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9000, 12_000, 100_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(side: int) -> None:
    """The three sides lie above our limit, PIL's warning, and PIL's own refusal."""
    picture = Picture("rows.jsonl:7, picture 1", data=bomb(side, side))
    with pytest.raises(DataError, match=r"rows\.jsonl:7.*too large to unpack"):
        decoded(picture, Reading())


def test_the_limit_is_on_pixels_and_not_on_what_stands_in_the_file() -> None:
    image = drawn("RED", 50, 40)
    assert decoded(held(image), Reading(decoded_pixels=2000)).size == (50, 40)
    with pytest.raises(DataError, match=r"50 x 40 pixels.*1,999"):
        decoded(held(image), Reading(decoded_pixels=1999))


@pytest.mark.parametrize("cut", [0, 1, 20, 60, 110])
def test_a_damaged_picture_is_an_error_that_names_the_row(cut: int) -> None:
    whole = png(drawn("GREEN 12"))
    with pytest.raises(DataError, match=r"rows\.jsonl:7, picture 1"):
        decoded(Picture("rows.jsonl:7, picture 1", data=whole[:cut]), Reading())


def test_no_other_program_is_started_for_a_picture() -> None:
    """PIL would give EPS to Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError, match="no picture in a known format"):
        decoded(Picture("x:1", data=eps), Reading())


def test_a_pointer_of_git_lfs_is_not_taken_for_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with pytest.raises(DataError, match="git lfs pull"):
        decoded(Picture("x:1", path=str(tmp_path / "a.png")), Reading())


def test_what_is_transparent_is_white_and_sixteen_bits_keep_their_grey() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert decoded(held(clear), Reading()).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert abs(decoded(held(grey), Reading()).getpixel((0, 0))[0] - 128) <= 1
    paper = Image.new("1", (4, 4), 1)
    assert decoded(held(paper), Reading()).getpixel((0, 0)) == (255, 255, 255)


# ------------------------------------------------------------------ more than 8 bits a pixel


def tiff(pixels: bytes, width: int, height: int, bits: int, **tags: int) -> bytes:
    """A TIFF of one strip, by hand: Pillow writes none of these. ``zero``: which end is black (0:
    the upper; 2: colours), ``kind``: 1 unsigned, 2 signed, 3 floating point."""
    samples = 3 if tags.get("zero") == 2 else 1
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, samples, bits), (259, 3, 1, 1),
        (262, 3, 1, tags.get("zero", 1)), (273, 4, 1, 0), (277, 3, 1, samples),
        (278, 3, 1, height), (279, 4, 1, len(pixels)), (339, 3, samples, tags.get("kind", 1)),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(entries) + 4
    more, body = b"", b""
    for tag, type_, count, value in entries:
        if count > 1:  # three numbers do not fit into the entry: they lie behind the list
            place, more = start + len(more), more + struct.pack("<H", value) * count
            body += struct.pack("<HHII", tag, 4 if tag == 273 else type_, count, place)
        else:
            body += struct.pack("<HHII", tag, type_, count, value)
    body = body.replace(
        struct.pack("<HHII", 273, 4, 1, 0), struct.pack("<HHII", 273, 4, 1, start + len(more))
    )
    head = b"II" + struct.pack("<HI", 42, 8) + struct.pack("<H", len(entries))
    return head + body + struct.pack("<I", 0) + more + pixels


def packed(values: list[int], bits: int) -> bytes:
    """Grey values of one row as a TIFF holds them."""
    if bits == 16:
        return struct.pack(f"<{len(values)}H", *values)
    whole = 0
    for value in values:
        whole = whole << bits | value
    return whole.to_bytes(len(values) * bits // 8, "big")


@given(
    st.lists(st.integers(0, 4095), min_size=4, max_size=20).filter(lambda v: len(v) % 2 == 0),
    st.sampled_from([(12, 1), (16, 1), (16, 0)]),
)
@settings(max_examples=60, deadline=None)
def test_grey_of_more_than_8_bits_is_scaled_as_its_file_says(
    values: list[int], depth: tuple[int, int]
) -> None:
    bits, zero = depth
    values = [value << (bits - 12) for value in [*values, 0, 4000]]
    raw = tiff(packed(values, bits), len(values), 1, bits, zero=zero)
    found = decoded(Picture("x:1", data=raw), Reading())
    most = (1 << bits) - 1
    bright = [255 * (value if zero else most - value) / most for value in values]
    grey = [found.getpixel((x, 0)) for x in range(len(values))]
    assert all(red == green == blue for red, green, blue in grey)
    assert [red for red, _, _ in grey] == pytest.approx(bright, abs=0.51)


def test_sixteen_bits_are_never_taken_for_eight() -> None:
    """A page almost all black would otherwise come out 256 times as bright."""
    black = Image.fromarray(np.zeros((4, 4), dtype=np.uint16))
    assert decoded(held(black), Reading()).getpixel((0, 0)) == (0, 0, 0)
    values = np.full((4, 4), 200, dtype=np.uint16)
    values[0, 0] = 65535
    found = decoded(held(Image.fromarray(values)), Reading())
    assert found.getpixel((0, 0)) == (255, 255, 255) and found.getpixel((1, 1)) == (1, 1, 1)


def test_a_grey_of_16_bits_that_is_named_transparent_is_white() -> None:
    values = np.array([[40_000, 0]], dtype=np.uint16)
    found = decoded(held(Image.fromarray(values), transparency=0), Reading())
    assert found.getpixel((1, 0)) == (255, 255, 255) and found.getpixel((0, 0)) == (156, 156, 156)


def saved(values: Any, form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format=form)
    return stream.getvalue()


RAMP = np.linspace(0, 1, 12).reshape(3, 4)
OF_NO_SCALE: dict[str, bytes] = {
    "floats from 0 to 1": saved(RAMP.astype(np.float32), "TIFF"),
    "floats from 0 to 255": saved((255 * RAMP).astype(np.float32), "TIFF"),
    "32 bits": saved((2**31 * RAMP * 0.99).astype(np.int32), "TIFF"),
    "signed, 16 bits": tiff((20_000 * RAMP).astype("<i2").tobytes(), 4, 3, 16, kind=2),
    "signed, 8 bits": tiff((100 * RAMP).astype("<i1").tobytes(), 4, 3, 8, kind=2),
    "12 bits in a TIFF of 16": tiff((4095 * RAMP).astype("<u2").tobytes(), 4, 3, 16),
    "12 bits in a white TIFF of 16": tiff((4095 * RAMP).astype("<u2").tobytes(), 4, 3, 16, zero=0),
    "14 bits in a PNG of 16": saved((16383 * RAMP).astype(np.uint16), "PNG"),
    "8 bits in a PNG of 16": saved((255 * RAMP).astype(np.uint16), "PNG"),
    "10 bits in a TIFF of 12": tiff(packed([1, 1023] * 6, 12), 4, 3, 12),
    "colours, 12 bits in 16": tiff(
        (4095 * RAMP).astype("<u2").repeat(3).tobytes(), 4, 3, 16, zero=2
    ),
    "a portable float map": b"Pf\n4 3\n-1.0\n" + RAMP.astype("<f4").tobytes(),
}


@pytest.mark.parametrize("case", OF_NO_SCALE)
def test_a_picture_of_which_nobody_says_what_is_white_is_refused_and_named(case: str) -> None:
    picture = Picture("rows.jsonl:7, picture 1", data=OF_NO_SCALE[case])
    with pytest.raises(
        DataError, match=r"rows\.jsonl:7.*(nobody says|seems to be another).*8 bits"
    ):
        decoded(picture, Reading())


def test_colours_of_16_bits_are_read() -> None:
    """Negative control of the refusals: the same form, its whole scale used."""
    values = np.array([[[65535, 32768, 0]]], dtype="<u2")
    found = decoded(Picture("x", data=tiff(values.tobytes(), 1, 1, 16, zero=2)), Reading())
    assert found.getpixel((0, 0)) == (255, 128, 0)


def test_a_picture_of_no_scale_is_skipped_and_counted_where_that_was_asked(
    tmp_path: Path, writer: PromptWriter
) -> None:
    (tmp_path / "float.tif").write_bytes(OF_NO_SCALE["floats from 0 to 1"])
    rows = [row_of(0), {"image": "float.tif", **PAIR}, row_of(2)]
    with pytest.raises(DataError, match=r"rows\.jsonl:2, picture 1 .*float\.tif"):
        prepared(tmp_path, writer, rows)
    skip = {"images": {"unreadable": "skip"}, "max_dropped": 0.5}
    assert len(prepared(tmp_path, writer, rows, **skip).train) == 2


def test_a_multi_picture_jpeg_is_its_first_picture_and_one_page(tmp_path: Path) -> None:
    """Cameras put the other eye's view, or a smaller copy, behind it."""
    file = tmp_path / "camera.jpg"
    first, other = Image.new("RGB", (30, 20), (250, 10, 10)), Image.new("RGB", (10, 8))
    first.save(file, format="MPO", save_all=True, append_images=[other])
    with Image.open(file) as opened:
        assert opened.format == "MPO" and opened.n_frames == 2
    picture = Picture("x", path=str(file))
    found = decoded(picture, Reading())
    assert pages(picture) == 1 and found.size == (30, 20)
    assert found.getpixel((5, 5))[0] > 240 > 20 > found.getpixel((5, 5))[2]


def test_what_pillow_cannot_make_of_a_note_in_a_file_is_no_warning() -> None:
    """Warnings are errors in these tests, and lines between the answers in a terminal."""
    whole = tiff(bytes(12), 4, 3, 8)
    note = struct.pack("<HHII", 259, 3, 1, 1)
    assert note in whole
    raw = whole.replace(
        struct.pack("<HHII", 339, 3, 1, 1), struct.pack("<HHII", 33432, 2, 900, 9999)
    )
    with pytest.warns(UserWarning, match="EXIF|Truncated|Skipping"):
        Image.open(io.BytesIO(raw)).load()
    picture = Picture("x", data=raw)
    assert decoded(picture, Reading()).size == (4, 3) and pages(picture) == 1


def test_a_tiff_has_pages_and_each_is_read(tmp_path: Path) -> None:
    shades = [Image.new("L", (8, 6), value) for value in (0, 100, 200)]
    file = tmp_path / "log.tif"
    shades[0].save(file, save_all=True, append_images=shades[1:])
    assert pages(Picture("x", path=str(file))) == 3
    found = [decoded(Picture("x", path=str(file), page=n), Reading()) for n in range(3)]
    assert [image.getpixel((0, 0))[0] for image in found] == [0, 100, 200]
    with pytest.raises(DataError, match="page 4"):
        decoded(Picture("x", path=str(file), page=3), Reading())


@given(height=st.integers(1, 60), width=st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_the_header_of_a_wide_strip_is_its_left_four_thirds(height: int, width: int) -> None:
    image = Image.new("L", (width, height), 255)
    image.putpixel((0, 0), 7)
    found = decoded(held(image), Reading(header_ratio=4 / 3))
    assert found.size == (min(width, max(1, round(height * 4 / 3))), height)
    assert found.getpixel((0, 0)) == (7, 7, 7)


def test_a_turn_is_anticlockwise_and_comes_before_the_crop() -> None:
    image = Image.new("L", (9, 40), 255)  # a strip that was scanned upright
    image.putpixel((8, 0), 7)  # its right upper corner becomes the left upper one
    found = decoded(held(image), Reading(turn=90, header_ratio=1.0))
    assert found.size == (9, 9) and found.getpixel((0, 0)) == (7, 7, 7)


# ------------------------------------------------------------------ augmentation


@given(position=st.integers(0, 2**40), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_augmentation_is_a_function_of_seed_and_position_and_keeps_the_size(
    position: int, seed: int
) -> None:
    how = Augmentation(rotation_degrees=3, shift=0.1, contrast=0.3, brightness=0.1, noise=0.1)
    image = drawn("BLUE").convert("RGB")
    first, again = (augmented(image, how, seed, position) for _ in range(2))
    assert first.size == image.size and first.tobytes() == again.tobytes()
    assert first.tobytes() != augmented(image, how, seed, position + 1).tobytes()
    assert first.tobytes() != augmented(image, how, seed + 1, position).tobytes()


def test_no_augmentation_leaves_every_pixel() -> None:
    image = drawn("BLUE").convert("RGB")
    assert augmented(image, Augmentation(), 1, 5).tobytes() == image.tobytes()


def test_a_strong_one_still_shows_the_same_text() -> None:
    """Negative control for a shift or turn that would throw the text out of the picture."""
    image = drawn("BLUE").convert("RGB")
    how = Augmentation(rotation_degrees=3, shift=0.05)
    for position in range(20):
        values = np.asarray(augmented(image, how, 0, position))
        assert (values < 128).sum() > 0.6 * (np.asarray(image) < 128).sum()


# ------------------------------------------------------------------ shapes of rows

BYTES = png(drawn("RED 1"))
ENCODED = base64.b64encode(BYTES).decode()
URI = f"data:image/png;base64,{ENCODED}"
ASK, TOLD = {"type": "text", "text": "Read."}, {"role": "assistant", "content": "RED 1"}


def conversation(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part, ASK]}, TOLD]}


PAIR = {"instruction": "Read.", "answer": "RED 1"}
SHAPES: list[dict[str, Any]] = [
    {"image_base64": ENCODED, **PAIR},
    {"image_base64": URI, **PAIR},
    {"image": URI, **PAIR},
    {"bytes": BYTES, **PAIR},
    {"image": {"bytes": BYTES, "path": None}, **PAIR},
    {"image": "pictures/a.png", **PAIR},
    {"image_path": "pictures/a.png", **PAIR},
    {"image": {"bytes": None, "path": "pictures/a.png"}, **PAIR},
    {"image": Image.open(io.BytesIO(BYTES)), **PAIR},
    {"images": ["pictures/a.png"], **PAIR},
    conversation({"type": "image_url", "image_url": {"url": URI}}),
    conversation({"type": "image_url", "image_url": URI}),
    conversation({"type": "image", "image": "pictures/a.png"}),
    conversation({"type": "image", "image": {"bytes": BYTES}}),
    {**conversation({"type": "image", "text": None}), "images": ["pictures/a.png"]},
]


@pytest.mark.parametrize("data", SHAPES, ids=lambda d: "+".join(map(str, d)))
def test_every_shape_becomes_the_same_conversation(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(BYTES)
    row = recognise(Record(data, f"{tmp_path}/rows.jsonl:3"))
    assert row.messages == (
        {"role": "user", "content": [{"type": "image"}, ASK]},
        {"role": "assistant", "content": [{"type": "text", "text": "RED 1"}]},
    )
    assert row.answer == "RED 1" and len(row.pictures) == 1
    image = decoded(row.pictures[0], Reading())
    assert image.tobytes() == Image.open(tmp_path / "pictures/a.png").convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_what_pil_has_open_is_read_as_its_file_would_be(mode: str, orientation: int) -> None:
    """PNG, in which it is kept, knows neither print colours nor how the camera was held."""
    image = drawn("RED 1").convert("RGB").convert(mode)
    plain = image.convert("RGB")
    image.getexif()[0x0112] = orientation
    row = recognise(Record({"image": image, **PAIR}, "rows.jsonl:3"))
    found = decoded(row.pictures[0], Reading())
    turned = plain.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else plain
    assert found.size == turned.size and found.tobytes() == turned.tobytes()


@pytest.mark.parametrize("values", [RAMP.astype(np.float32), (4095 * RAMP).astype(np.int32)])
def test_what_pil_has_open_without_a_scale_is_named_or_skipped(values: Any) -> None:
    row = recognise(Record({"image": Image.fromarray(values), **PAIR}, "rows.parquet[3]"))
    with pytest.raises(DataError, match=r"^rows\.parquet\[3\], picture 1: its values are signed"):
        decoded(row.pictures[0], Reading())


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({"answer": "x", "instruction": "y"}, "one picture is needed"),
        ({"image": "a.png", "image_base64": ENCODED, **PAIR}, "image and image_base64"),
        ({"image": "a.png", "instruction": "y"}, "field 'answer' must be text"),
        ({"image": "a.png", "answer": "x"}, "'instruction' must be text"),
        ({"image": "https://a.b/c.png", **PAIR}, "fetch it first"),
        ({"image": 7, **PAIR}, "no picture"),
        (conversation({"type": "video", "video": "a"}), "no text and no picture"),
        ({**conversation(ASK), "images": ["a.png"]}, "have no part"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "needs a role"),
    ],
)
def test_a_row_of_another_shape_is_refused_where_it_stands(data: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=rf"train\.jsonl:9.*{what}"):
        recognise(Record(data, "data/train.jsonl:9"))


# ------------------------------------------------------------------ rows together


def test_rows_are_light_whatever_their_pictures_weigh(tmp_path: Path, writer: PromptWriter) -> None:
    splits = prepared(tmp_path, writer, [row_of(n) for n in range(3)])
    for row in splits.train:
        assert all(p.data is None and Path(str(p.path)).exists() for p in row.row.pictures)
        assert row.features == (Squares().features(*row.sizes[0]),)
        assert int((row.ids == 4).sum()) == sum(row.features)


def test_only_the_answer_and_its_end_are_learned(tmp_path: Path, writer: PromptWriter) -> None:
    for row in prepared(tmp_path, writer, [row_of(n) for n in range(6)]).train:
        said = writer.tokenizer.decode(row.ids[row.supervised].tolist())
        assert said == f"{row.row.answer}<|im_end|>"
        assert not row.supervised[: row.prompt_tokens].any()
        assert row.supervised[row.prompt_tokens :].all()


def damaged_rows() -> list[dict[str, Any]]:
    broken = base64.b64encode(png(drawn("PINK 9"))[:60]).decode()
    return [row_of(0), {**row_of(1), "image_base64": broken}, row_of(2)]


def test_a_damaged_picture_stops_the_run_and_names_its_line(
    tmp_path: Path, writer: PromptWriter
) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2, picture 1.*unreadable: skip"):
        prepared(tmp_path, writer, damaged_rows())


def test_or_its_row_is_left_out_and_counted_if_that_was_asked_for(
    tmp_path: Path, writer: PromptWriter
) -> None:
    skip = {"images": {"unreadable": "skip"}}
    splits = prepared(tmp_path, writer, damaged_rows(), max_dropped=0.5, **skip)
    assert len(splits.train) == 2
    told = "\n".join(splits.report.lines())
    assert "1 dropped, a picture that cannot be read" in told and "rows.jsonl:2" in told
    with pytest.raises(DataError, match="max_dropped"):
        prepared(tmp_path, writer, damaged_rows(), **skip)


def faulty(fault: str, shape: str, folder: Path) -> dict[str, Any]:
    """A row whose picture is faulty, held as base64, as bytes or in a file."""
    raw = {
        "not base64": b"",
        "damaged": png(drawn("PINK 9"))[:60],
        "no picture": b"hello",
        "bomb": bomb(12_000, 12_000),
        "worse bomb": bomb(100_000, 100_000),
        "missing": None,
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    }[fault]
    row: dict[str, Any] = {k: v for k, v in row_of(1).items() if k != "image_base64"}
    if shape == "base64":
        text = "&&&" if fault == "not base64" else base64.b64encode(raw or b"").decode()
        return {**row, "image_base64": text}
    if shape == "uri":
        return {**row, "image": "data:image/png;base64,&&&"}
    if raw is not None:
        (folder / "bad.png").write_bytes(raw)
    return {**row, "image": "bad.png"}


FAULTS = [
    ("not base64", "base64"), ("not base64", "uri"), ("damaged", "base64"), ("damaged", "file"),
    ("no picture", "base64"), ("no picture", "file"), ("bomb", "base64"), ("bomb", "file"),
    ("worse bomb", "base64"), ("worse bomb", "file"), ("missing", "file"), ("pointer", "file"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "shape"), FAULTS)
def test_whatever_is_wrong_with_a_picture_its_row_is_named_or_skipped_and_counted(
    tmp_path: Path, writer: PromptWriter, fault: str, shape: str
) -> None:
    rows = [row_of(0), faulty(fault, shape, tmp_path), row_of(2)]
    with pytest.raises(DataError, match=r"rows\.jsonl:2, picture 1.*unreadable: skip"):
        prepared(tmp_path, writer, rows)
    skip = {"images": {"unreadable": "skip"}, "max_dropped": 0.5}
    splits = prepared(tmp_path, writer, rows, **skip)
    assert [row.row.filename for row in splits.train] == ["0.png", "2.png"]
    told = "\n".join(splits.report.lines())
    assert "1 dropped, a picture that cannot be read" in told and "rows.jsonl:2" in told


def test_counting_the_pages_of_a_bomb_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(100_000, 100_000))
    picture = Picture("x", path=str(tmp_path / "bomb.png"))
    with pytest.raises(DataError, match=r"bomb\.png.*no picture that can be read"):
        pages(picture)


def test_the_same_page_in_both_splits_is_refused_whatever_its_label_says(
    tmp_path: Path, writer: PromptWriter
) -> None:
    other = write_rows(tmp_path / "eval.jsonl", [{**row_of(1), "answer": "another label"}])
    with pytest.raises(DataError, match="also among the training rows"):
        prepared(tmp_path, writer, [row_of(0), row_of(1)], eval=str(other))


def test_rows_of_one_page_fall_on_the_same_side(tmp_path: Path, writer: PromptWriter) -> None:
    rows = [{**row_of(n), "instruction": ask} for n in range(30) for ask in ("Read.", "Say it.")]
    splits = prepared(tmp_path, writer, rows, eval_fraction=0.3)
    assert splits.held_out is not None

    def names(part: list[Any]) -> set[str]:
        return {row.row.filename for row in part}

    assert not names(splits.train) & names(splits.held_out)
    assert len(splits.train) + len(splits.held_out) == 60


@pytest.mark.parametrize(
    ("overlong", "kept", "told"),
    [("truncate", 2, "1 truncated"), ("drop", 1, "1 dropped, longer than max_tokens")],
)
def test_a_row_that_is_too_long_is_cut_or_dropped_and_counted(
    tmp_path: Path, writer: PromptWriter, overlong: str, kept: int, told: str
) -> None:
    rows = [row_of(0), {**row_of(1), "answer": "RED GREEN " * 200}]
    limits = {"max_truncated": 1.0, "max_dropped": 1.0}
    splits = prepared(tmp_path, writer, rows, overlong=overlong, **limits)
    assert len(splits.train) == kept and told in "\n".join(splits.report.lines())
    assert max(len(row.ids) for row in splits.train) <= 200


def test_by_default_a_row_that_is_too_long_is_an_error(
    tmp_path: Path, writer: PromptWriter
) -> None:
    rows = [row_of(0), {**row_of(1), "answer": "RED GREEN " * 200}]
    with pytest.raises(DataError, match=r"rows\.jsonl:2.*more than max_tokens: 200"):
        prepared(tmp_path, writer, rows)


def test_a_picture_is_never_cut(tmp_path: Path, writer: PromptWriter) -> None:
    late = {
        "messages": [
            {"role": "user", "content": "word " * 120},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [{"type": "image", "image": URI}] * 30},
            TOLD,
        ]
    }
    splits = prepared(tmp_path, writer, [row_of(0), late], overlong="truncate", max_dropped=1.0)
    assert len(splits.train) == 1


def test_the_mark_of_a_picture_in_a_text_is_refused(tmp_path: Path, writer: PromptWriter) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1.*room for 2"):
        prepared(tmp_path, writer, [{**row_of(0), "answer": "say <|image_pad|> now"}])


def test_a_second_look_unpacks_no_picture(
    tmp_path: Path, writer: PromptWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row_of(n) for n in range(4)]
    first = prepared(tmp_path, writer, rows)
    monkeypatch.setattr("headway.data.pictures.load.decoded_bytes", pytest.fail)
    again = prepared(tmp_path, writer, rows)
    assert again.identities == first.identities
    assert [row.sizes for row in again.train] == [row.sizes for row in first.train]


def test_another_picture_under_the_same_name_is_another_identity(
    tmp_path: Path, writer: PromptWriter
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(drawn("RED 1")))
    rows = [{"image": "a.png", **PAIR}]
    first = prepared(tmp_path, writer, rows).identities
    file.write_bytes(png(drawn("RED 2")))
    assert prepared(tmp_path, writer, rows).identities != first


def test_a_parquet_of_image_features_is_read(tmp_path: Path, writer: PromptWriter) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": {"bytes": BYTES, "path": "a.png"}, **PAIR}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = ImageData.model_validate({"train": str(tmp_path / "a.parquet")})
    splits = prepare_images(
        data, writer, Squares(), max_tokens=200, seed=1, cache=tmp_path / "cache"
    )
    assert splits.train[0].row.answer == "RED 1"


def test_the_picture_budget_is_told(tmp_path: Path, writer: PromptWriter) -> None:
    from headway.data.pictures.load import budget_lines

    splits = prepared(tmp_path, writer, [row_of(n) for n in range(5)])
    (line,) = budget_lines([("train", splits.train)], Squares())
    assert "5 pictures" in line and "picture tokens a row" in line and "of all tokens" in line
