"""Generated folders: the same bytes however they came about, whole or not finished."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("PIL", reason="the extra vision is not installed")

from PIL import Image

from headway.cli import build_app
from headway.data import well_log
from headway.data.well_log import MANIFEST, Options, pages, write
from headway.data.well_log.contact_sheet import contact_sheet
from headway.errors import ConfigError, DataError

SMALL = Options(train=70, eval=40, size="strip", seed=3)


def files(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def rows(folder: Path, side: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{side}.jsonl").read_bytes().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One generation, never changed by a test."""
    folder = tmp_path_factory.mktemp("made") / "set"
    write(SMALL, folder)
    return folder


def test_every_row_has_its_picture_and_the_manifest_is_about_these_files(made):
    manifest = json.loads((made / MANIFEST).read_bytes())
    for side, count in (("train", 70), ("eval", 40)):
        found = rows(made, side)
        assert len(found) == count
        for row in found:
            with Image.open(made / row["image"]) as image:
                assert image.size == (row["width"], row["height"]) and image.mode == "L"
            assert row["answer"] and row["instruction"] and row["well"]
            assert row["image"].endswith(row["filename"])
        lines = (made / f"{side}.jsonl").read_bytes()
        assert manifest["files"][f"{side}.jsonl"]["sha256"] == hashlib.sha256(lines).hexdigest()
    pictures = [made / row["image"] for side in ("train", "eval") for row in rows(made, side)]
    digests = "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in pictures)
    assert manifest["images_sha256"] == hashlib.sha256(digests.encode()).hexdigest()
    assert len(list(made.rglob("*.jpg"))) == 110 and not (made / ".partial").exists()


def test_the_number_of_processes_changes_no_byte(made, tmp_path):
    write(SMALL, tmp_path / "two", workers=2)
    assert files(tmp_path / "two") == files(made)


def test_another_seed_gives_other_pages(made, tmp_path):
    """Negative control: the comparison above can fail."""
    write(Options(train=70, eval=40, size="strip", seed=4), tmp_path / "other")
    assert files(tmp_path / "other").keys() == files(made).keys()
    assert not set(files(tmp_path / "other").values()) & set(files(made).values())


KILLED = """
import os, sys
from pathlib import Path
from headway.data.well_log import Options, write
left = [int(sys.argv[2])]
def done(pages):
    left[0] -= 1
    if left[0] == 0:
        os._exit(9)
write(Options(train=70, eval=40, size="strip", seed=3), Path(sys.argv[1]), done=done)
"""


@pytest.mark.parametrize("chunks", [1, 4])
def test_a_killed_generation_goes_on_where_it_was(made, tmp_path, chunks):
    folder = tmp_path / "set"
    dead = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(chunks)], env=os.environ)
    assert dead.returncode == 9
    assert not (folder / MANIFEST).exists() and not (folder / "train.jsonl").exists()
    again = []
    write(SMALL, folder, done=again.append)
    assert sum(again) == sum([32, 32, 6, 32, 8][chunks:])
    assert files(folder) == files(made)


def test_a_picture_that_was_cut_short_is_made_again(made, tmp_path):
    class Stop(Exception):
        pass

    def stop(_):
        raise Stop

    with pytest.raises(Stop):
        write(SMALL, tmp_path, done=stop)
    hurt = next(tmp_path.rglob("*.jpg"))
    hurt.write_bytes(hurt.read_bytes()[:100])
    again = []
    write(SMALL, tmp_path, done=again.append)
    assert sum(again) == 110
    assert files(tmp_path) == files(made)


def test_a_whole_folder_is_left_as_it_is_and_another_is_not_overwritten(made):
    before = files(made)
    again = []
    manifest = write(SMALL, made, done=again.append)
    assert not again and manifest["pages"] == 110
    with pytest.raises(DataError, match="other options"):
        write(Options(train=3, eval=2, size="strip", seed=3), made)
    assert files(made) == before


def test_force_replaces_all_of_it(tmp_path):
    write(Options(train=5, eval=2, size="strip", noise=0), tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 7
    smaller = Options(train=2, eval=1, size="strip")
    write(smaller, tmp_path, force=True)
    assert len(list(tmp_path.rglob("*.jpg"))) == 3 and not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["train.jsonl", "images/mine.png", "manifest.json"])
def test_files_that_are_not_ours_are_never_touched(tmp_path, name, force):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text('{"kind": "mine"}')
    with pytest.raises(DataError, match="Choose another folder"):
        write(Options(train=2, eval=1, size="strip"), tmp_path, force=force)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [mine]
    assert mine.read_text() == '{"kind": "mine"}'


def test_more_pages_to_train_on_leave_the_held_out_ones_as_they_are(made, tmp_path):
    write(Options(train=5, eval=40, size="strip", seed=3), tmp_path)
    assert (tmp_path / "eval.jsonl").read_bytes() == (made / "eval.jsonl").read_bytes()


def test_train_and_eval_share_no_well(made):
    train, held_out = ({row["well"] for row in rows(made, side)} for side in ("train", "eval"))
    assert len(train) == 70 and len(held_out) == 40 and not train & held_out


def test_a_well_on_both_sides_stops_the_generation(tmp_path, monkeypatch):
    """Negative control: the assertion fires, and there is no manifest then."""
    monkeypatch.setattr(pages, "row_at", lambda seed, position, rows: position % pages.MOST_PAGES)
    with pytest.raises(DataError, match="in train and eval both"):
        write(Options(train=3, eval=3, size="strip"), tmp_path)
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (Options(train=0, eval=0), "nothing to generate"),
        (Options(train=-1, eval=0), "--train -1"),
        (Options(train=1, eval=10**9), "--eval 1000000000"),
        (Options(train=1, eval=1, noise=2), "--noise 2"),
        (Options(train=1, eval=1, lines=3), "--lines 3"),
        (Options(train=1, eval=1, size="poster"), "--size poster"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, named, tmp_path):
    with pytest.raises(ConfigError, match=named):
        write(options, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"no header at all"])
def test_a_folder_without_a_usable_header_is_refused(content, tmp_path):
    if content:
        (tmp_path / "a.las").write_bytes(content)
    with pytest.raises(DataError, match=r"\.las file"):
        write(Options(train=1, eval=1, las=str(tmp_path)), tmp_path / "out")


def test_the_command_makes_pages_and_a_sheet_of_them(tmp_path):
    words = ["data", "well-log-headers", "--out", str(tmp_path / "set"), "--train", "4", "--eval",
             "3", "--size", "crop", "--contact-sheet", str(tmp_path / "sheet.png")]  # fmt: skip
    done = CliRunner().invoke(build_app(), words)
    assert done.exit_code == 0, done.output
    assert "7 pages, 7 of them new" in done.output and "none in both" in done.output
    done = CliRunner().invoke(build_app(), [*words, "--json"])
    assert json.loads(done.output)["new_pages"] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "P" and sheet.width == 1280
        grey = sheet.convert("RGB").getcolors()
        assert all(r == g == b for _, (r, g, b) in grey)


def test_a_sheet_of_twenty_pages_is_small(tmp_path):
    write(Options(train=0, eval=20, size="crop"), tmp_path / "set")
    assert contact_sheet(tmp_path / "set", tmp_path / "sheet.png") < 300_000


def test_the_manifest_names_what_decided_the_bytes(made):
    manifest = json.loads((made / MANIFEST).read_bytes())
    assert set(manifest["versions"]) == {"pillow", "numpy", "matplotlib"}
    assert manifest["options"]["seed"] == 3
    assert manifest["wells"] == {"train": 70, "eval": 40}


def test_other_versions_are_another_generation(made, monkeypatch):
    monkeypatch.setattr(well_log, "version", lambda name: "0")
    with pytest.raises(DataError, match="other versions"):
        write(SMALL, made)


def test_pictures_open_without_headway(made):
    row = rows(made, "eval")[0]
    with Image.open(io.BytesIO((made / row["image"]).read_bytes())) as image:
        image.load()
        assert image.format == "JPEG"
