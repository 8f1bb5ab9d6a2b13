"""Crash tests fill one table, printed at the end, for docs/results/reliability.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # sweep.py and child.py, which are no tests

ROWS = pytest.StashKey[list]()


@pytest.fixture
def table(request):
    """Call it with a line's cells: fault, where, runs, fired, lost, corrupt."""
    return request.config.stash.setdefault(ROWS, []).append


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("crash table")
        head = ("fault", "where", "runs", "fault fired", "checkpoints lost", "corrupt loads")
        for row in [head, ("---",) * len(head), *rows]:
            terminalreporter.write_line("| " + " | ".join(map(str, row)) + " |")
