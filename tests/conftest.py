"""What tests of several files start from."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data and converted models of this test alone."""
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
