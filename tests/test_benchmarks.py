"""Benchmarks are run seldom, so that what they import is still there is tested always."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def missing(source: str) -> list[str]:
    """What a file imports from headway, at its top or within a function, and is not there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headway"):
            module = importlib.import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                own = f"{node.module}.{name}"
                room = hasattr(module, "__path__") and importlib.util.find_spec(own)
                if not hasattr(module, name) and not room:
                    found.append(own)
    return found


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda f: f.name)
def test_what_a_benchmark_imports_is_there(file: Path) -> None:
    assert missing(file.read_text(encoding="utf-8")) == []


def test_a_name_that_moved_is_seen() -> None:
    """Negative control."""
    assert missing("def f():\n    from headway.journal import nowhere\n") == [
        "headway.journal.nowhere"
    ]
