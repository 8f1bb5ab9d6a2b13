"""Sizes: a file fits in the head, a function on a screen, and everything says what it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "src" / "headway").rglob("*.py"))
LARGEST_FILE, LARGEST_FUNCTION = 400, 60
FORBIDDEN = {
    "manager", "handler", "helper", "helpers", "utils", "common", "misc", "base", "wrapper", "v2",
    "enhanced", "final",
}  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_files_and_functions_are_short_and_documented(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= LARGEST_FILE
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says its one idea"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= LARGEST_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_names_say_what_a_thing_is(file: Path) -> None:
    tree = ast.parse(file.read_text())
    named = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert file.stem not in FORBIDDEN
    for node in named:
        words = set(node.name.lower().strip("_").split("_"))
        assert not words & (FORBIDDEN - {"base", "final"}), node.name


def test_the_two_pages_to_read_first_stay_short() -> None:
    for name, limit in (("run.py", 340), ("engine/steps.py", 200)):
        assert (ROOT / "src/headway" / name).read_text().count("\n") <= limit
