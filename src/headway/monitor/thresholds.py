"""Where each rule draws its line; the config's ``monitor`` section says it."""

from __future__ import annotations

from typing import Protocol


class Thresholds(Protocol):
    """Shares are of the run's own median; no loss is compared with a fixed number, so a loss in
    another unit is judged the same."""

    @property
    def window_steps(self) -> int:
        """Steps that a step's loss and gradient are compared with."""
        ...

    @property
    def spike_score(self) -> float:
        """Robust standard deviations above the window's median that are a spike."""
        ...

    @property
    def throughput_share(self) -> float:
        """Of the attempt's own median tokens per second."""
        ...

    @property
    def gpu_share(self) -> float:
        """Of the time, computing."""
        ...

    @property
    def disk_minutes(self) -> float:
        """Until the disk is full."""
        ...

    @property
    def waiting_checkpoints(self) -> int:
        """Not in the bucket yet."""
        ...
