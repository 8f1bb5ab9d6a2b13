"""Where each rule draws its line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Thresholds. Shares are of the run's own median; no loss is compared with a fixed number, so
    a loss in another unit is judged the same."""

    window_steps: int = 128
    """Steps that a step's loss and gradient are compared with."""
    spike_score: float = 8.0
    """Robust standard deviations above the window's median that are a spike."""
    throughput_share: float = 0.6
    gpu_share: float = 0.5
    disk_minutes: float = 60.0
    waiting_checkpoints: int = 3
