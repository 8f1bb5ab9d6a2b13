"""The documentation as a site: it builds, misses no page, leads nowhere wrong, needs no network."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from browser import Browser

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not here: pip install '.[docs]'"
)


def build(root: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """``make site`` of a checkout."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(to)],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("site") / "site"
    done = build(ROOT, to)
    assert done.returncode == 0, done.stdout + done.stderr
    return to


def test_every_page_of_the_documentation_is_in_the_site(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html")
        name = name.with_name("index.html") if name.name == "README.html" else name
        assert (site / name).is_file(), name
    for name in ("index", "contributing", "changelog", "source/src/headway/run.py"):
        assert (site / f"{name}.html").is_file(), name


def test_a_link_to_a_source_file_leads_to_a_page_that_shows_it(site: Path) -> None:
    page = (site / "architecture.html").read_text()
    assert 'href="source/src/headway/run.py.html"' in page and "../src/" not in page
    shown = re.sub(r"<[^>]+>", "", (site / "source/src/headway/run.py.html").read_text())
    assert "def train(" in shown


def fetched(page: str) -> list[str]:
    """What a browser loads by itself from somewhere else."""
    tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page)
    return [tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)]


def test_no_page_of_the_site_takes_anything_from_the_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        assert fetched(page.read_text()) == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text()), sheet.name


def test_something_taken_from_the_network_would_be_seen() -> None:
    """Negative control."""
    assert fetched('<script src="https://unpkg.com/x"></script> <a href="https://a.b">a</a>') == [
        '<script src="https://unpkg.com/x">'
    ]


# ------------------------------------------------------------------ what the strict build refuses


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the site is built from, to spoil."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("docs", ".ci"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    for name in ("src", "tests", "configs"):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.mark.parametrize(
    ("page", "text", "said"),
    [
        ("docs/lost.md", "# Nobody leads here", 'not included in the "nav"'),
        ("docs/alerts.md", "[nowhere](no-such-page.md)", "no-such-page.md"),
        ("docs/alerts.md", "[nowhere](quickstart.md#no-such-part)", "no-such-part"),
        ("docs/alerts.md", "[nowhere](../src/headway/no_such_file.py)", "no_such_file.py"),
        ("README.md", "[nowhere](docs/no-such-page.md)", "no-such-page.md"),
    ],
)
def test_a_lost_page_and_a_link_to_nothing_fail_the_build(
    checkout: Path, page: str, text: str, said: str
) -> None:
    file = checkout / page
    before = file.read_text() if file.exists() else None
    file.write_text(f"{before or ''}\n{text}\n")
    try:
        done = build(checkout, checkout / "site")
    finally:
        file.unlink() if before is None else file.write_text(before)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


# ------------------------------------------------------------------ in a browser


SEARCH = """(() => {
  const field = document.querySelector(".md-search__input");
  field.focus();
  field.value = "WORDS";
  field.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }));
})()"""
FOUND = '[...document.querySelectorAll(".md-search-result__link")].map(a => a.href).join(" ")'


def test_the_site_is_searched_from_a_folder_without_a_request(browser: Browser, site: Path) -> None:
    browser.looks()
    browser.open(site / "index.html")
    browser.run(SEARCH.replace("WORDS", "quarantine"))
    until = time.monotonic() + 30
    while not (found := browser.run(FOUND)):
        assert time.monotonic() < until, "the search answers nothing"
    assert "run-directory.html" in found
    assert browser.complaints == []
    assert [r for r in browser.requests if not r.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("name", ["index", "config", "guides/sft", "results/step-confidence"])
def test_no_page_is_wider_than_a_phone(browser: Browser, site: Path, name: str) -> None:
    browser.looks(width=390)
    browser.open(site / f"{name}.html")
    assert browser.run("document.scrollingElement.scrollWidth") <= 390
