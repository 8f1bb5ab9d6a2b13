"""What tests of several files start from."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from browser import Browser, find_chromium

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")  # no test times anything: a busy machine is no failure


def pytest_configure(config: pytest.Config) -> None:
    """Signals are asked for here as in a terminal, also where a shell began the tests with ``&``.

    Such a shell lets them ignore Ctrl-C, and headway leaves alone what is ignored on purpose.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, own)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data and converted models of this test alone."""
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser for the tests of a file; without one they skip by name."""
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium on this machine: nothing was looked at in a browser")
    found = Browser(program)
    yield found
    found.close()
