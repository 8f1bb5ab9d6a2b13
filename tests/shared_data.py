"""Real data, where this machine has it: a test that needs it skips visibly where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("HEADWAY_DATA") or ROOT.parent / "shared" / "data")


def shared(path: str) -> Path:
    """A file of the shared data."""
    if not (DATA / path).exists():
        pytest.skip(f"no {DATA / path}: set HEADWAY_DATA to the folder of shared data")
    return DATA / path
