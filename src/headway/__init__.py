"""Train models on rented GPUs and lose nothing: not a step, not a dollar, not an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.api import load_run, train
    from headway.config import RunConfig, load_config
    from headway.errors import HeadwayError
    from headway.records import StopReason

__all__ = ["HeadwayError", "RunConfig", "StopReason", "load_config", "load_run", "train"]

_HOMES = {
    "HeadwayError": "headway.errors",
    "RunConfig": "headway.config",
    "StopReason": "headway.records",
    "load_config": "headway.config",
    "load_run": "headway.api",
    "train": "headway.api",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: ``import headway`` must not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'headway' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
