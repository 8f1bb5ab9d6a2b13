"""Made-up scans: the answer says exactly what was drawn, all of it is on the page and legible."""

import hashlib
import io
import re
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("PIL", reason="the extra vision is not installed")

from PIL import Image

from headway.data.page_text import EMPTY_BOX, HEADING, TICKED_BOX, fields_of
from headway.data.well_log import Options, drawing, las, page_at, pages, scan, sources_of
from headway.data.well_log.drawing import SMALLEST, Text, width_px
from headway.data.well_log.invented import MOST_WELLS, like, place_of
from headway.data.well_log.wells import Sources
from shared_data import shared

SIDES = ("train", "eval")
LAS = """~Version
 VERS.   2.0 : CWLS LOG ASCII STANDARD
~Well
 STRT.FT  1783.5 : START DEPTH
 NULL.   -999.25 : NULL VALUE
 COMP.  AMOCO & SONS : COMPANY
 WELL.  {well} : WELL
 FLD .  NICHOLAS <A : FIELD
 DATE.  31-MAY-94 : LOG DATE
 API .  151872074300 : API NUMBER
~Parameter
 BHT .DEGF  125.0 : BOTTOM HOLE TEMPERATURE
 TLAB.hh:mm 23:15 23-JAN-2001 : Time logger at bottom
 RMF .OHMM  {rmf} : MUD FILTRATE RESISTIVITY
 MUD .      GEL : MUD TYPE
~A
 1 2 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LAS files of three wells, and one that is none."""
    folder = tmp_path_factory.mktemp("las")
    for i, well in enumerate(("OAK 1-28", "ELM 2", "ASH #12")):
        (folder / f"{i}.las").write_text(LAS.format(well=well, rmf=f"0.{i}16"))
    (folder / "none.LAS").write_bytes(bytes(range(256)))
    return folder


def said(page):
    """Every text that the answer's fields are made of."""
    texts = set()
    for name, value in fields_of(page.answer):
        if name != HEADING:
            texts |= set(name.split(" / "))
        if value not in (EMPTY_BOX, TICKED_BOX, ""):
            texts.add(value)
    return texts


def drawn(page):
    """Every text on the page, without the colons behind labels."""
    return {text.removesuffix(":") for text in page.strings}


def corners(answer):
    """First cells of tables with column headings: drawn, and part of no field."""
    return set(re.findall(r"<tr><th>([^<]*)</th><th>", answer))


def check_page(page):
    assert fields_of(page.answer) == list(page.fields)
    assert said(page) <= drawn(page), said(page) - drawn(page)
    assert drawn(page) - said(page) <= corners(page.answer)
    assert page.fields


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**63),
    index=st.integers(0, pages.MOST_PAGES - 1),
    side=st.sampled_from(SIDES),
    size=st.sampled_from(["page", "crop", "strip", "field"]),
    real=st.booleans(),
)
def test_the_answer_says_what_is_drawn_and_nothing_else(folder, seed, index, side, size, real):
    las_folder = str(folder) if real else None
    options = Options(train=1, eval=1, size=size, seed=seed, noise=0, lines=2, las=las_folder)
    check_page(page_at(options, sources_of(options)[side], side, index))


def test_a_text_drawn_otherwise_would_be_seen(monkeypatch):
    """Negative control."""
    write = drawing.Sheet.write
    monkeypatch.setattr(drawing.Sheet, "write", lambda s, text, *a: write(s, text[:-1] + "?", *a))
    with pytest.raises(AssertionError):
        check_page(page_at(Options(train=1, eval=0, noise=0), Sources(), "train", 0))


@pytest.mark.parametrize("size", ["page", "crop"])
def test_every_page_says_which_well_it_is(size):
    for name in (None, str(shared("las"))):
        options = Options(train=1, eval=1, noise=0, size=size, las=name)
        sources = sources_of(options)["train"]
        for index in range(20):
            page = page_at(options, sources, "train", index)
            assert page.well.name in {value for _, value in page.fields}, page.answer


def capture(monkeypatch):
    """(sheet, size, corner) of every page painted from now on."""
    seen = []
    paint = pages.paint

    def look(sheet, size, at, rng):
        seen.append((sheet, size, at))
        return paint(sheet, size, at, rng)

    monkeypatch.setattr(pages, "paint", look)
    return seen


def boxes_of(sheet, at):
    """(left, top, right, bottom) of each line of text, from the baseline to its capitals."""
    for mark in sheet.marks:
        if isinstance(mark, Text):
            x, y = mark.x + at[0], mark.y + at[1]
            wide = width_px(mark.font, mark.size, mark.text)
            yield mark.text, (x, y - 0.6 * mark.size, x + wide, y), mark.size


@pytest.mark.parametrize("size", ["page", "crop", "strip", "field"])
def test_every_text_is_on_the_page_and_on_no_other_text(size, monkeypatch, folder):
    options = Options(train=1, eval=0, size=size, noise=0, lines=2, las=str(folder))
    seen = capture(monkeypatch)
    sources = sources_of(options)["train"]
    for index in range(25):
        page_at(options, sources, "train", index)
    assert len(seen) == 25
    for sheet, (width, height), at in seen:
        texts = list(boxes_of(sheet, at))
        room = 3 if size in ("strip", "field") else 15
        for text, (left, top, right, bottom), pixels in texts:
            assert left >= room and right <= width - room, (text, left, right, width)
            assert top >= 2 and bottom <= height - 3, text
            assert pixels >= SMALLEST
        for i, (text, a, _) in enumerate(texts):
            for other, b, _ in texts[i + 1 :]:
                apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
                assert apart, (text, other)


def test_what_the_years_did_left_the_text_legible(monkeypatch):
    """Ink is darker than the paper around it under every line, stains and copies included."""
    seen = capture(monkeypatch)
    monkeypatch.setattr(scan, "_tilted", lambda image, *_: image)
    options = Options(train=1, eval=0, size="crop")
    faint, lines = [], 0
    for index in range(30):
        page = page_at(options, Sources(), "train", index)
        grey = np.asarray(Image.open(io.BytesIO(page.image)), float)
        sheet, size, at = seen[-1]
        ink = np.asarray(drawing.paint(sheet, size, at, Random(0))) < 90
        for text, (left, top, right, bottom), _ in boxes_of(sheet, at):
            window = np.s_[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
            here = ink[window]
            contrast = grey[window][~here].mean() - grey[window][here].mean()
            lines += 1
            if contrast < 30:
                faint.append((index, text, contrast))
    assert lines > 500
    assert not faint, faint


def test_a_copier_that_ignores_the_paper_loses_text_under_stains():
    """Negative control: why ``_copied`` is told how light the paper is."""
    rng = np.random.default_rng(0)
    light = np.full((60, 200), 235.0, np.float32)
    light[:, 100:] *= 0.55  # a stain on the right half
    ink = np.zeros((60, 200), bool)
    ink[20:40:4] = True
    grey = np.where(ink, 110, 255).astype(np.float32) * light / 255
    for known, kept in ((light, True), (np.full_like(light, 235), False)):
        right = scan._copied(grey, known, rng)[:, 110:]
        assert (right[~ink[:, 110:]].mean() - right[ink[:, 110:]].mean() > 60) == kept


def digest(options, side="train", index=3, sources=None):
    page = page_at(options, sources or Sources(), side, index)
    return hashlib.sha256(page.image + page.answer.encode()).hexdigest()


@pytest.mark.parametrize("size", ["page", "crop", "strip", "field"])
def test_a_page_depends_on_seed_side_and_index_alone(size):
    options = Options(train=9, eval=9, size=size, seed=5)
    more = Options(train=900, eval=90, size=size, seed=5)
    assert digest(options) == digest(options) == digest(more)
    others = {
        digest(options),
        digest(Options(train=9, eval=9, size=size, seed=6)),
        digest(options, side="eval"),
        digest(options, index=4),
        digest(Options(train=9, eval=9, size=size, seed=5, noise=0.5)),
    }
    assert len(others) == 5


def test_sizes_are_those_promised():
    for index in range(12):
        crop = page_at(Options(train=1, eval=0, size="crop", noise=0), Sources(), "train", index)
        assert crop.width_px == round(crop.height_px * 4 / 3)
        strip = page_at(Options(train=1, eval=0, size="strip", lines=2), Sources(), "train", index)
        assert strip.height_px in (32, 64) and strip.width_px in pages.STRIP_WIDTHS_PX
        assert strip.answer.isascii() and strip.answer.count("\n") <= 3
        assert strip.suffix == ".jpg" and crop.suffix == ".png"
        field = page_at(Options(train=1, eval=0, size="field"), Sources(), "train", index)
        assert field.height_px == 32 and field.width_px in range(64, 513, 32)
        assert len(field.fields) == 1 and "\n" not in field.answer
        assert Image.open(io.BytesIO(crop.image)).size == (crop.width_px, crop.height_px)


def test_no_two_pages_share_a_template_by_accident():
    options = Options(train=1, eval=0, size="page", noise=0)
    found = [page_at(options, Sources(), "train", index).template for index in range(60)]
    assert len(set(found)) == len(found)


# ------------------------------------------------------------------ wells


@given(st.integers(0, MOST_WELLS - 1), st.integers(0, MOST_WELLS - 1), st.integers(0, 99))
def test_two_serial_numbers_are_two_wells(one, other, seed):
    a, b = place_of(one, Random(seed)), place_of(other, Random(seed + 1))
    assert (a.name == b.name) == (one == other)
    if one != other:
        assert a.api[:12] != b.api[:12]


def test_neighbouring_serial_numbers_are_different_wells_too():
    rng = Random(0)
    places = [place_of(serial, rng) for start in (0, 99_990, 999_000) for serial in
              range(start, start + 1000)]  # fmt: skip
    assert len({p.name for p in places}) == len({p.api[:12] for p in places}) == len(places)


@given(st.text("0123456789.,- @ABC°", max_size=12), st.integers(0, 99))
def test_a_value_like_another_keeps_its_shape(example, seed):
    assume(not re.search("-[A-Z]{3}-", example))  # a day is another day
    made = like(example, Random(seed))
    assert re.sub(r"\d", "0", made) == re.sub(r"\d", "0", example)


# ------------------------------------------------------------------ LAS


@given(st.text() | st.lists(st.sampled_from(LAS.splitlines())).map("\n".join))
def test_any_text_can_be_read_as_a_header(text):
    assert all(item.label for item in las.parse_header(text).items)


def test_a_header_is_read_as_it_stands():
    header = las.parse_header(LAS.format(well="OAK 1-28", rmf="0.216"))
    read = {item.label: (item.value, item.unit) for item in header.items}
    assert header.well == "OAK 1-28"
    assert read["START DEPTH"] == ("1783.5", "FT")
    assert read["COMPANY"] == ("AMOCO & SONS", "")
    assert read["Time logger at bottom"] == ("23:15 23-JAN-2001", "")
    assert read["BOTTOM HOLE TEMPERATURE"] == ("125.0", "DEGF")
    assert not {"NULL VALUE", "FIELD"} & set(read)  # no field, and one that looks like HTML


def test_the_well_section_of_version_1_2_is_the_other_way_round():
    text = "~W\nSTRT.M 5 :\nWELL. WELL: OAK 1\nFLD . FIELD: EDAM\n~P\nBS.MM 200: BIT SIZE\n"
    header = las.parse_header(text)
    assert [(i.label, i.value) for i in header.items] == [
        ("STRT", "5"), ("WELL", "OAK 1"), ("FIELD", "EDAM"), ("BIT SIZE", "200"),
    ]  # fmt: skip


def test_real_files_give_forms_and_wells():
    headers = las.read_headers(shared("las"))
    assert len(headers) >= 70
    assert len(las.forms(headers)) >= 15
    names = {header.well for header in las.wells(headers)}
    assert {"1-28", "Scorpio E1", "GUSHER", "ANY ET AL OIL WELL #12"} <= names
    labels = {item.label for header in headers for item in header.items}
    assert not {"EDAM", "SASKATCHEWAN", "25-DEC-1988"} & labels, "values taken for labels"


def test_pages_of_real_headers_say_what_is_drawn():
    options = Options(train=1, eval=1, noise=0, size="crop", las=str(shared("las")))
    sources = sources_of(options)
    for side in SIDES:
        for index in range(25):
            check_page(page_at(options, sources[side], side, index))


def test_a_real_well_is_on_one_side_only(folder):
    options = Options(train=1, eval=1, las=str(folder))
    sources = sources_of(options)
    names = {side: {header.well for header in sources[side].real} for side in SIDES}
    assert not names["train"] & names["eval"]
    assert names["train"] | names["eval"] == {"OAK 1-28", "ELM 2", "ASH #12"}
    assert names["eval"]
