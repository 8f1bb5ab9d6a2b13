"""Headers cut from wide strips: the seed's rule, on every format and page, and never twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("PIL", reason="pillow is not installed")

from PIL import Image

from headway.cli import build_app
from headway.data.pictures import ImageData, Picture, Reading, decoded
from headway.data.pictures.crop import ROWS_FILE, crop_headers
from headway.data.sources import read_records
from headway.errors import ConfigError, DataError

RULE = Reading(header_ratio=4 / 3)


def strip(width: int, height: int, seed: int = 0, mode: str = "L") -> Any:
    """Noise, so that no two parts are alike."""
    drawn = np.random.default_rng(seed)
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(drawn.integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Strips in four formats, one of them with three pages, one in a folder below."""
    folder = tmp_path / "scans"
    (folder / "north").mkdir(parents=True)
    strip(90, 12).save(folder / "a.png")
    strip(90, 12, 1, "RGB").save(folder / "a.jpg", quality=95)
    strip(80, 30, 2).save(
        folder / "north/log.tif", save_all=True,
        append_images=[strip(60, 20, 3), strip(10, 40, 4)],
    )  # fmt: skip
    strip(50, 9, 5).convert("1").save(folder / "fax.TIFF", compression="group4")
    (folder / "notes.txt").write_text("no picture")
    return folder


def command(*given: Any) -> Any:
    return CliRunner().invoke(build_app(), ["data", "crop-headers", *map(str, given)])


def rows_of(to: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (to / ROWS_FILE).read_text().splitlines()]


def test_every_page_of_every_scan_gives_its_left_four_thirds(scans: Path, tmp_path: Path) -> None:
    to = tmp_path / "headers"
    done = command(scans, "--to", to, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["headers"] == 6
    sizes = {row["image"]: (row["width"], row["height"], row["page"]) for row in rows_of(to)}
    assert sizes == {
        "a.jpg.png": (16, 12, 1), "a.png.png": (16, 12, 1), "fax.TIFF.png": (12, 9, 1),
        "north/log.tif.p001.png": (40, 30, 1), "north/log.tif.p002.png": (27, 20, 2),
        "north/log.tif.p003.png": (10, 40, 3),
    }  # fmt: skip
    for row in rows_of(to):
        whole = decoded(Picture("x", str(scans / row["source"]), page=row["page"] - 1), Reading())
        header = decoded(Picture("x", str(to / row["image"])), Reading())
        assert header.size == (row["width"], row["height"])
        assert header.tobytes() == whole.crop((0, 0, *header.size)).tobytes()


def test_a_header_is_cut_as_training_cuts_it(scans: Path, tmp_path: Path) -> None:
    way = Reading(header_ratio=2.0, turn=90)
    crop_headers([scans], tmp_path / "headers", way)
    for row in rows_of(tmp_path / "headers"):
        source = Picture("x", str(scans / row["source"]), page=row["page"] - 1)
        found = decoded(Picture("x", str(tmp_path / "headers" / row["image"])), Reading())
        assert found.tobytes() == decoded(source, way).tobytes()


def test_the_rows_are_rows_of_training_once_an_answer_is_added(scans: Path, tmp_path: Path) -> None:
    to = tmp_path / "headers"
    crop_headers([scans], to, RULE)
    lines = [{**row, "instruction": "Read.", "answer": "RED"} for row in rows_of(to)]
    (to / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    from headway.data.pictures import recognise

    data = ImageData.model_validate({"train": str(to / "train.jsonl")})
    for record in read_records(data.train[0]):
        assert decoded(recognise(record).pictures[0], data.images).height > 0


def test_the_same_call_again_cuts_only_what_is_new_or_changed(scans: Path, tmp_path: Path) -> None:
    to = tmp_path / "headers"
    assert crop_headers([scans], to, RULE).new == 6
    before = {f: f.stat().st_mtime_ns for f in to.rglob("*.png")}
    strip(70, 12, 9).save(scans / "a.png")
    strip(70, 12, 8).save(scans / "b.png")
    found = crop_headers([scans], to, RULE)
    assert (found.new, len(found.rows)) == (2, 7)
    changed = {f.name for f, at in before.items() if f.stat().st_mtime_ns != at}
    assert changed == {"a.png.png"}


def test_a_call_that_was_killed_is_continued(scans: Path, tmp_path: Path) -> None:
    """Killed in its third scan, with the row of the second half written."""
    to = tmp_path / "headers"
    seen: list[int] = []

    def dies(files: int) -> None:
        seen.append(files)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crop_headers([scans], to, RULE, dies)
    lines = (to / ROWS_FILE).read_text().splitlines()
    assert len(lines) == 2
    (to / ROWS_FILE).write_text(lines[0] + "\n" + lines[1][:30])
    found = crop_headers([scans], to, RULE)
    assert (found.new, len(found.rows)) == (5, 6), "one was whole"
    shutil.rmtree(to)
    assert [row["image"] for row in crop_headers([scans], to, RULE).rows] == [
        row["image"] for row in found.rows
    ]


def test_a_scan_that_cannot_be_read_is_named_and_stops_no_other(
    scans: Path, tmp_path: Path
) -> None:
    (scans / "broken.png").write_bytes((scans / "a.png").read_bytes()[:50])
    to = tmp_path / "headers"
    done = command(scans, "--to", to)
    assert isinstance(done.exception, DataError) and "broken.png" in str(done.exception)
    assert len(rows_of(to)) == 6
    skipped = command(scans, "--to", to, "--unreadable", "skip")
    assert skipped.exit_code == 0 and "1 scans or pages" in skipped.output
    large = command(scans, "--to", tmp_path / "few", "--decoded-pixels", 1000)
    assert isinstance(large.exception, DataError) and "90 x 12 pixels" in str(large.exception)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (["--ratio", "0"], "--ratio"),
        (["--turn", "45"], "--turn"),
        (["--unreadable", "perhaps"], "--unreadable"),
        (["--decoded-pixels", "1000000000"], "--decoded-pixels"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(
    scans: Path, tmp_path: Path, given: list[str], what: str
) -> None:
    done = command(scans, "--to", tmp_path / "headers", *given)
    assert isinstance(done.exception, ConfigError) and what in str(done.exception)
    assert not (tmp_path / "headers").exists()


def test_nothing_is_mixed_up_or_overwritten(scans: Path, tmp_path: Path) -> None:
    to = tmp_path / "headers"
    crop_headers([scans], to, RULE)
    with pytest.raises(ConfigError, match="were cut with"):
        crop_headers([scans], to, Reading(header_ratio=2.0))
    with pytest.raises(ConfigError, match="lies in"):
        crop_headers([scans], scans / "headers", RULE)
    with pytest.raises(ConfigError, match="holds other files"):
        crop_headers([scans / "a.png"], scans, RULE)
    with pytest.raises(ConfigError, match="two of the sources"):
        crop_headers([scans, scans / "a.png"], tmp_path / "x", RULE)
    with pytest.raises(ConfigError, match="no such file"):
        crop_headers([tmp_path / "none"], tmp_path / "x", RULE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no picture in"):
        crop_headers([tmp_path / "empty"], tmp_path / "x", RULE)
