"""One part of each family, as numbers and as a solid; tests that need the kernel skip by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from headway.data.cad import find_family

KERNEL = importlib.util.find_spec("build123d") is not None
needs_kernel = pytest.mark.skipif(not KERNEL, reason="no CAD kernel: pip install 'headway[cad]'")
EXAMPLES: dict[str, tuple[float, ...]] = {
    "bracket": (100.0, 80.0, 40.0, 6.0, 4.0, 8.0, 30.0, 6.0, 20.0),
    "tube": (90.0, 40.0, 20.0),
    "channel": (60.0, 40.0, 120.0, 5.0),
    "block": (90.0, 60.0, 30.0),
    "cylinder": (80.0, 30.0),
    "blockhole": (90.0, 60.0, 30.0, 12.0, 10.0, -5.0),
}


def solid(name: str) -> Any:
    from headway.data.cad.kernel import build

    return build(find_family(name), EXAMPLES[name])


def named(name: str) -> dict[str, float]:
    return dict(zip(find_family(name).names, EXAMPLES[name], strict=True))


def on_its_side(cad: Any, part: Any, file: Path) -> None:
    cad.export_step(cad.Rot(90, 0, 90) * part, file)
