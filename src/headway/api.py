"""The Python door: train, open a trained run, use it. The command line goes through here too."""

from __future__ import annotations

from pathlib import Path

from headway.config import RunConfig
from headway.opening import opened
from headway.records import StopReason
from headway.run import Quiet, Show
from headway.run import train as train_loop


def train(config: RunConfig, *, fresh: bool = False, show: Show | None = None) -> StopReason:
    """Start or continue the run that ``config`` describes; returns why it stopped.

    Raises HeadwayError (ConfigError, DataError, CheckpointError, RunLocked …) with what to do.
    """
    return train_run(config, fresh=fresh, show=show)[1]


def train_run(
    config: RunConfig,
    *,
    fresh: bool = False,
    from_step: int | None = None,
    show: Show | None = None,
) -> tuple[Path, StopReason]:
    """As ``train``; also says where the run is."""
    with opened(config, fresh=fresh, from_step=from_step, show=show or Quiet()) as run:
        return run.folder, train_loop(run)
