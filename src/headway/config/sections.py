"""The config's sections: what can be written, in which unit, and what it is when left out.

Sections are closed (an unknown key is an error), frozen, and strict: ``"16"`` is not 16. A section
of a room that may be absent is ``None`` when it is left out.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_serializer,
    model_validator,
)

from headway.config.presets import find_preset

CLOSED = ConfigDict(
    extra="forbid",
    frozen=True,
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
)
"""The model_config of every section, a recipe's included: closed, frozen, strict, documented."""


def _whole(value: Any) -> Any:
    """``1e9`` is how people write a budget, and YAML reads it as a float."""
    is_whole = isinstance(value, float) and math.isfinite(value) and value == int(value)
    return int(value) if is_whole else value


def _share_or_steps(value: float) -> float | int:
    if value < 1:
        return float(value)
    if isinstance(value, int):
        return value
    raise ValueError("a share of the run is below 1, a number of steps is a whole number (no '.')")


def _known_preset(name: str) -> str:
    find_preset(name)
    return name


Count = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
"""A whole number of at least 1; ``1e9`` is read as one."""
Warmup = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)],
    AfterValidator(_share_or_steps),
]


class Run(BaseModel):
    """Which run this is and where it lives."""

    model_config = CLOSED

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Name of the run and of its directory under `root`; left out: the config file's name without
    its ending. Letters, digits, `.`, `_` and `-`."""
    root: Path = Field(default=Path("runs"), strict=False)
    """Directory that holds the runs, relative to the working directory."""
    seed: int = Field(default=17, ge=0, lt=2**32)
    """Decides data order, initial weights, dropout and noise."""
    max_hours: float | None = Field(default=None, gt=0)
    """The run saves and stops before all its attempts together took longer; left out: no limit."""
    stop_at: AwareDatetime | None = Field(default=None, strict=False)
    """The run saves and stops before this instant, with its time zone: `2026-11-22T06:00:00Z`."""
    warm_start: Annotated[str, Field(pattern=r"^.+@(best|newest|\d+)$")] | None = None
    """Begin from another run's weights: `RUN@STEP`, `RUN@best` or `RUN@newest`, where RUN is a
    directory or a name under `runs/`. Step, optimizer and data order begin anew."""
    rehearse: bool | Literal["auto"] = "auto"
    """Before step 1 of a new run: two real steps, one on the longest rows, and all of it undone, to
    say the peak of memory, the time and the price. `auto`: on a GPU, where they take seconds."""


class Horizon(BaseModel):
    """How long the run trains. Exactly one of the three."""

    model_config = CLOSED

    steps: Count | None = None
    """Optimizer steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training rows; a fraction is allowed."""
    tokens: Count | None = None
    """Real tokens (padding is not counted), the last step's batch included."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [key for key in ("steps", "epochs", "tokens") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            raise ValueError(f"write exactly one of steps, epochs and tokens (found {found})")
        return self

    @model_serializer
    def _only_what_was_written(self) -> dict[str, int | float]:
        given = {"steps": self.steps, "epochs": self.epochs, "tokens": self.tokens}
        return {key: value for key, value in given.items() if value is not None}


class Train(BaseModel):
    """The mathematics of the run: everything here decides what is learned."""

    model_config = CLOSED

    horizon: Horizon
    """How long the run trains: exactly one of `steps`, `epochs` and `tokens`."""
    batch_size: Count
    """Rows per optimizer step over all GPUs. Accumulation follows from it and is never set."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate, per optimizer step."""
    warmup: Warmup = 0.0
    """Linear warm-up: below 1 a share of the steps, from 1 on a whole number of steps."""
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """Shape of the learning rate after the warm-up, over optimizer steps; `wsd` is warm-up, stable,
    decay (arXiv:2404.06395)."""
    min_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""
    decay: float = Field(default=0.2, gt=0, le=1)
    """`wsd` only: share of the steps in the decay at the end."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """AdamW with 32-bit state, or bitsandbytes' with 8-bit state (extra `qlora`)."""
    betas: tuple[
        Annotated[float, Field(ge=0, lt=1)],
        Annotated[float, Field(ge=0, lt=1)],
    ] = Field(default=(0.9, 0.999), strict=False)
    """AdamW's decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, on matrices only (not on biases and norm gains)."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients longer than this (Euclidean norm) are scaled down to it; 0 turns clipping off."""
    shorten_rows_to: Count | None = None
    """Tokens. Where a single row does not fit in memory, its activations recomputed, training rows
    are cut to half, and again, but to no fewer than this; of an answer the end stays. It changes
    what is learned, and is written down; left out: the run ends and names the row. Text only."""


class Hardware(BaseModel):
    """The mechanics: how the machine does it. Nothing here is part of the run's identity."""

    model_config = CLOSED

    preset: Annotated[str, AfterValidator(_known_preset)] | None = None
    """Start from what is known to suit a GPU (`rtx4090`; table below). Every key that
    is written here supersedes the preset's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes the GPU if there is one."""
    microbatch_size: Literal["auto"] | Count = "auto"
    """Rows per forward pass on each GPU; `auto`: as many tokens as by the plan fit the GPU, halved
    where memory runs out all the same; on a CPU as many as are fast (graphs: by faces)."""
    precision: Literal["bf16", "fp32", "bf16_pure"] = "bf16"
    """`bf16` computes in bfloat16 over fp32 weights (autocast), `fp32` in fp32; `bf16_pure` also
    keeps the weights in bfloat16."""
    activation_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the model with torch.compile."""
    threads: Count | None = None
    """CPU threads of torch; left out: torch decides."""
    deterministic: bool = True
    """Deterministic kernels: the same run twice on one machine gives the same bits."""

    @model_validator(mode="before")
    @classmethod
    def _preset_beneath(cls, given: Any) -> Any:
        try:
            beneath = find_preset(given["preset"]).hardware()
        except (TypeError, KeyError, ValueError, AttributeError):
            return given  # no preset, or an unknown one: its own field says so
        return {**beneath, **given}


class EarlyStop(BaseModel):
    """Stop when the held-out loss no longer falls."""

    model_config = CLOSED

    patience: Count
    """Evaluations without improvement before the run stops."""
    min_delta: float = Field(default=0.0, ge=0)
    """How much lower than the best a loss must be to count as better, in the loss's unit."""


class Evaluate(BaseModel):
    """Measure on held-out rows while training. Left out: no evaluation."""

    model_config = CLOSED

    every_steps: Count
    """Optimizer steps between evaluations; the last step is always evaluated."""
    at_start: bool = True
    """Evaluate before step 1 too: the number that everything later is compared with."""
    max_rows: Count | None = None
    """Held-out rows to measure, always the same ones; left out: all."""
    worst_rows: int = Field(default=20, ge=0)
    """How many of the rows with the highest loss to keep for the report."""
    early_stop: EarlyStop | None = None
    """When to stop before the horizon; left out: never."""


class Checkpoint(BaseModel):
    """When to save, and what to keep. The best and the newest are never deleted."""

    model_config = CLOSED

    every_steps: Count | None = None
    """Save every so many optimizer steps; left out: by time only."""
    every_minutes: float | None = Field(default=15.0, gt=0)
    """Save at the first step boundary after so many minutes; null: by steps only."""
    keep_last: Count = 2
    """How many of the newest checkpoints to keep."""
    keep_best: Count = 1
    """How many of the checkpoints with the lowest held-out loss to keep."""
    keep_every_steps: Count | None = None
    """Also keep each checkpoint whose step is a multiple of this, for ever; left out: none."""


def _without_credentials(to: str) -> str:
    if re.search(r"//(?:[^/]*@|[^@]*:[^@]*@)", to) or re.search(
        r"[?&][^=]*(sig|token|key|secret)", to, re.I
    ):
        raise ValueError("credentials do not belong in a config; set them in the environment")
    return to.rstrip("/")


class Upload(BaseModel):
    """A copy of the run in a bucket. Left out: none is kept.

    The run's copy lies under `to/NAME`, NAME being the run's. Credentials come from the environment
    or the provider's own chain, never from here.
    """

    model_config = CLOSED

    to: Annotated[str, Field(min_length=1), AfterValidator(_without_credentials)]
    """Where copies go: `s3://bucket/prefix`, `gs://bucket/prefix`, or a directory."""
    required: bool = False
    """Stop the run when the bucket cannot be used for longer than `patience_minutes`; else it
    trains on, says so, and tries again at the next save."""
    keep_last: Count = 3
    """How many of the newest copies to keep in the bucket."""
    keep_best: Count = 1
    """How many of the copies with the lowest held-out loss to keep in the bucket."""
    keep_every_steps: Count | None = None
    """Also keep each copy whose step is a multiple of this, for ever; left out: none."""
    parallel_files: Annotated[int, Field(ge=1, le=64)] = 4
    """Files of one checkpoint that are sent at the same time."""
    bandwidth_mb_per_second: float | None = Field(default=None, gt=0)
    """Send no faster than this, in 10^6 bytes a second; left out: as fast as it goes."""
    archive: Literal["none", "tar", "tar.zst"] = "none"
    """Send a checkpoint as one object instead of file by file: it needs as much free disk as the
    checkpoint, and cannot be sent or fetched in part."""
    patience_minutes: float = Field(default=10.0, gt=0)
    """How long a request is tried again before the bucket counts as unusable."""
    drain_minutes: float = Field(default=30.0, ge=0)
    """How long to wait at the end for what is not in the bucket yet."""
    lease_seconds: float = Field(default=60.0, ge=5)
    """Another machine may take the run over when this one has not renewed its lease for so
    long."""


class Cost(BaseModel):
    """What the machine costs. Left out: no money is counted."""

    model_config = CLOSED

    gpu: str | None = None
    """The rented hardware's name, as the report should show it. Without `usd_per_hour` the price
    table's on-demand price of one such GPU is taken, times the GPUs that the run trains on."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """Price of the whole machine, in US dollars per hour; always wins over the table's."""
    provider: Literal["runpod", "vast"] | None = None
    """Ask the provider what this machine costs now; where it does not say, the price above is
    taken. The key comes from the environment: RUNPOD_API_KEY, CONTAINER_API_KEY or VAST_API_KEY."""
    prices: str | None = None
    """A file of your own prices, laid over headway's table (`headway plan` shows it); left out: the
    one that `$HEADWAY_PRICES` names, if it is set."""
    storage_usd_per_month: float = Field(default=0.0, ge=0)
    """What is paid for disks besides, in US dollars per month of 730 hours."""
    count_idle: bool = False
    """Also count the time between attempts: the machine stays rented when nothing trains."""
    budget_usd: float | None = Field(default=None, gt=0)
    """The run saves and stops before it has cost more than this, in US dollars over all attempts;
    left out: no limit."""

    @model_validator(mode="after")
    def _has_a_price(self) -> Self:
        if self.usd_per_hour is None and self.gpu is None and self.provider is None:
            raise ValueError(
                "write usd_per_hour, gpu: a name from the price table, or provider: who rents it"
            )
        return self
