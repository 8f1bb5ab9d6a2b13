"""Crash tests fill one table, printed at the end, for docs/results/reliability.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # sweep.py, child.py …, which are no tests

from attempts import TOY, Forks, run_of, said, toy_run

ROWS = pytest.StashKey[list]()


@pytest.fixture
def table(request):
    """Call it with a line's cells: fault, where, runs, fired, lost, corrupt, other end.

    The last one only where training was continued to its end.
    """
    return request.config.stash.setdefault(ROWS, []).append


@pytest.fixture(scope="session")
def forks():
    """Starts attempts without paying for the imports each time."""
    parent = Forks()
    yield parent
    parent.close()


@pytest.fixture(scope="session")
def whole(forks, tmp_path_factory):
    """The folder of a run of ``TOY`` that nothing interrupted."""
    config = toy_run(tmp_path_factory.mktemp("whole"), **TOY)
    assert forks.finish(config) == 0, said(config)
    return run_of(config)


def pytest_sessionfinish(session):
    """A worker of several hands its lines to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        rows = session.config.stash.get(ROWS, [])
        session.config.workeroutput["crash rows"] = [[str(cell) for cell in row] for row in rows]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Take a worker's lines; one that died has none."""
    rows = getattr(node, "workeroutput", {}).get("crash rows", [])
    node.config.stash.setdefault(ROWS, []).extend(rows)


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("crash table")
        head = ("fault", "where", "runs", "fault fired", "lost", "corrupt loads", "other end")
        for row in [head, ("---",) * len(head), *rows]:
            cells = [*row, *["–"] * (len(head) - len(row))]
            terminalreporter.write_line("| " + " | ".join(map(str, cells)) + " |")
