"""The files of ``benchmarks`` as modules: the repository's root is not on the path of tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    """``benchmarks/name.py``, loaded once."""
    full = f"benchmarks.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, ROOT / "benchmarks" / f"{name}.py")
        assert spec and spec.loader
        sys.modules[full] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full]
