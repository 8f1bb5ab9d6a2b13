"""The report in a real browser: its buttons, its silence, what it looks like where."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_run
from browser import Browser
from headway.comparing import write_comparison
from headway.evals import brief, write
from headway.journal import Journal
from headway.recipes.compared import compared
from headway.records import Evaluation, Picture, RowLoss
from headway.viewing import write_report

HOSTILE = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'>"
ROWS = "[...document.querySelectorAll('article.row')]"
SHOWN = f"{ROWS}.filter(row => row.offsetParent).map(row => row.dataset.loss).join()"


def press(key: str) -> str:
    return f"document.querySelector('#orders button[value={key}]').click()"


def png(width: int = 320, height: int = 200) -> bytes:
    """A grey picture, without a library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress((b"\0" + b"\xb0" * width) * height)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", body), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rows() -> list[dict[str, Any]]:
    """Four rows, each first by something else."""
    chain = [
        {"text": f"step {n} {HOSTILE}", "target": 1.0, "predicted": 0.9 - 0.3 * n} for n in range(3)
    ]
    return [
        {"prompt": "highest loss", "reference": HOSTILE, "error": 0.1, "length": 3},
        {"prompt": HOSTILE, "prediction": compared("a b", "a c"), "error": 0.7, "length": 2},
        {"page": Picture(data=png(), says="a page"), "error": 0.2, "length": 900},
        {"steps": [*chain, {"text": "x", "target": 0.0, "predicted": 1.0}], "error": 0.3},
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose last evaluation has those rows."""
    folder = fake_run.make_run(tmp_path_factory.mktemp("browser"), steps=120, every=40)
    worst = tuple(
        RowLoss(row=n, loss=4.0 - n, weight=2.0, shown=shown) for n, shown in enumerate(rows())
    )
    found = Evaluation(
        step=120,
        rows=40,
        weight=80.0,
        metrics={"loss": 1.0},
        baselines={},
        seconds=1.0,
        worst=worst,
    )
    write(folder, found)
    with Journal(folder / "journal.jsonl", attempt=2) as journal:
        journal.append(brief(found))
    return folder


@pytest.fixture
def page(browser: Browser, run: Path) -> Iterator[Browser]:
    """The report, opened as on a desktop; no test may leave a complaint behind."""
    browser.looks()
    browser.open(write_report(run))
    yield browser
    assert browser.complaints == []


def test_each_button_puts_the_rows_in_its_own_order_and_back(page: Browser) -> None:
    assert page.run(SHOWN) == "4.0,3.0,2.0,1.0"
    titles = page.run("[...document.querySelectorAll('#orders button')].map(b => b.value).join()")
    assert titles == "loss,error,length,suspicious"
    for key, order in (
        ("error", "3.0,1.0,2.0,4.0"),
        ("length", "2.0,1.0,4.0,3.0"),
        ("suspicious", "1.0"),
        ("loss", "4.0,3.0,2.0,1.0"),
    ):
        page.run(press(key))
        assert page.run(SHOWN) == order, key
        pressed = "document.querySelectorAll('[aria-pressed=true]')"
        assert page.run(f"[...{pressed}].map(b => b.value).join()") == key


def test_a_click_of_the_mouse_does_the_same(page: Browser) -> None:
    where = page.run(
        "(() => { const b = document.querySelector('[value=suspicious]'); b.scrollIntoView();"
        "const r = b.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        at = {"x": where[0], "y": where[1], "button": "left", "clickCount": 1}
        page.ask("Input.dispatchMouseEvent", type=kind, **at)
    assert page.run(SHOWN) == "1.0"


def test_nothing_of_the_data_acts_and_nothing_is_asked_of_the_network(page: Browser) -> None:
    assert page.run("window.hit") is None
    assert page.run("document.body.textContent.includes('window.hit = 2')"), "no hostile row there"
    assert [r for r in page.requests if not r.startswith(("file:", "data:"))] == []
    assert page.run("document.querySelector('article img').naturalWidth") == 320


def test_a_script_of_somebody_else_is_refused_and_complained_of(
    browser: Browser, run: Path
) -> None:
    """Negative control: of the policy, and of the complaints that every test here looks at."""
    text = write_report(run).read_text()
    other = run / "other.html"
    other.write_text(text.replace("<main>", "<main><script>window.hit = 3</script>"))
    browser.open(other)
    assert browser.run("window.hit") is None and len(browser.complaints) == 1
    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    other.write_text(without.replace("<main>", "<main><script>throw 1</script>"))
    browser.open(other)
    assert len(browser.complaints) == 1 and "Uncaught" in browser.complaints[0]


def test_without_scripts_every_row_is_there_and_no_dead_button(page: Browser, run: Path) -> None:
    page.ask("Emulation.setScriptExecutionDisabled", value=True)
    page.open(run / "report.html")
    try:
        assert page.run(SHOWN) == "4.0,3.0,2.0,1.0"
        assert page.run("document.getElementById('orders').offsetParent") is None
    finally:
        page.ask("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("width", [360, 390, 768, 1200])
def test_nothing_sticks_out_of_a_narrow_window(page: Browser, width: int) -> None:
    page.looks(width=width)
    assert page.run("document.scrollingElement.scrollWidth") <= width
    wide = page.run("[...document.querySelectorAll('.wide')].filter(w => w.offsetParent).length")
    assert wide == (1 if width > 740 else 0)


def test_the_page_is_dark_where_that_is_asked_for_and_white_on_paper(page: Browser) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.run(colour)
    page.looks(dark=True)
    dark = page.run(colour)
    assert sum(map(int, dark[4:-1].split(","))) < 150 < sum(map(int, light[4:-1].split(",")))
    page.looks(dark=True, media="print")
    assert page.run(colour) == light
    assert page.run("getComputedStyle(document.getElementById('orders')).display") == "none"


def test_a_comparison_is_as_silent_and_as_narrow(browser: Browser, run: Path) -> None:
    other = fake_run.make_run(run.parent, name="second", steps=90, every=30)
    browser.looks(width=390)
    browser.open(write_comparison([run, other]))
    assert browser.run("document.scrollingElement.scrollWidth") <= 390
    assert browser.run("document.querySelectorAll('svg').length") >= 7
    assert browser.complaints == [] and browser.run("document.scripts.length") == 0
    assert [r for r in browser.requests if not r.startswith(("file:", "data:"))] == []
