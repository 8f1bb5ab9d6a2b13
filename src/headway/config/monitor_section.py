"""The config's ``monitor`` section: what is watched while a run trains, and what is done about it.

Unlike other rooms it is there when the section is left out: a NaN must be refused in every run, and
the rules cost a small part of a millisecond a step. Only the webhook, which reaches outside, is
absent until it is named.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from headway.config.sections import CLOSED, Count
from headway.records import AlertKind


class NonFinite(BaseModel):
    """Steps whose loss or gradient is NaN or infinite. Each is refused: the weights stay as they
    were, its rows are named, and training goes on with the next batch."""

    model_config = CLOSED

    refuse_steps: int = Field(default=3, ge=0)
    """How many may be refused within `window_steps`; one more, and the run rolls back."""
    window_steps: Count = 100
    """Optimizer steps over which they are counted."""


class RollBack(BaseModel):
    """Going back to an earlier checkpoint and leaving out the steps from there to the trouble.

    Going back alone would repeat the same steps bit for bit, into the same trouble.
    """

    model_config = CLOSED

    times: int = Field(default=2, ge=0)
    """How often a run may roll back, over all attempts; then it stops with an error."""
    back_steps: Count = 20
    """The checkpoint lies at least so many optimizer steps before the trouble, if there is one."""


class Watchdog(BaseModel):
    """What happens when training shows no sign of life: no step, no held-out microbatch."""

    model_config = CLOSED

    alert_seconds: float = Field(default=300.0, gt=0)
    """Silence after which all stacks are written to `hang-1.txt` and an alert is sent; 10 median
    steps if that is longer, and four times that before the first step."""
    end_seconds: float | None = Field(default=1800.0, gt=0)
    """Silence after which the process ends with exit code 70 (the same command goes on); 20 median
    steps if that is longer, four times that before the first step; null: never."""


class Monitor(BaseModel):
    """Warning signs while a run trains. Left out: all of this with its defaults.

    An alert goes to the terminal, the journal, the report and, where `webhook_env` is given, to a
    webhook. Thresholds are relative to the run's own medians.
    """

    model_config = CLOSED

    non_finite: NonFinite = NonFinite()
    """When the loss or the gradient is NaN or infinite."""
    on_spike: Literal["none", "rollback"] = "none"
    """What follows a loss spike besides the alert: nothing, or a roll back that leaves it out."""
    roll_back: RollBack = RollBack()
    """How far and how often the run goes back."""
    watchdog: Watchdog = Watchdog()
    """When training hangs."""
    mute: tuple[AlertKind, ...] = Field(default=(), strict=False)
    """Kinds of alerts that are not given."""
    webhook_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable that holds the address alerts are posted to, as
    `{"text": ...}` (Slack's form). The address is a secret and never stands here."""
    window_steps: Annotated[int, Field(ge=32, le=250)] = 128
    """Steps that a step's loss and gradient are compared with."""
    spike_score: float = Field(default=8.0, gt=0)
    """Robust standard deviations that the loss must rise at once to be a spike."""
    throughput_share: float = Field(default=0.6, ge=0, lt=1)
    """Alert below this share of the attempt's own median tokens per second."""
    gpu_share: float = Field(default=0.5, ge=0, le=1)
    """Alert when the GPU computes less than this share of the time."""
    disk_minutes: float = Field(default=60.0, ge=0)
    """Alert when at the present rate the run's disk is full within so many minutes."""
    waiting_checkpoints: Count = 3
    """Alert when so many checkpoints wait for the bucket."""
