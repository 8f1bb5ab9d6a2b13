"""Layer 0: the plain facts that the engine yields and the rooms pass on. Standard library only.

``step`` counts completed steps: the first report is step 1, a checkpoint at step N holds the
weights after N steps, and ``batch_at(N)`` is the batch that leads from step N to step N + 1. A step
is one optimizer update, unless it was refused: then the weights are as before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

AlertKind = Literal[
    "non_finite",
    "loss_spike",
    "loss_rising",
    "loss_flat",
    "gradient_exploding",
    "gradient_vanishing",
    "gradient_zero",
    "learning_rate_zero",
    "evaluation_gap",
    "throughput_drop",
    "memory_growing",
    "gpu_idle",
    "disk_filling",
    "upload_backlog",
    "silence",
    "roll_back",
]
"""Of warning signs: what a monitor, a watchdog or a roll back can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a step was no update: the optimizer was not run."""

    why: str
    """``loss nan, gradient norm nan``, or that a roll back leaves it out."""
    rows: tuple[int, ...] = ()
    """The rows whose loss is not finite."""
    left_out: bool = False
    """The step was not even computed, because the run went back to before it once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimizer step did, over the whole global batch."""

    step: int
    loss: float
    """Mean over the batch's loss units (supervised tokens, values, graphs), in the loss's own
    unit (nats for text)."""
    learning_rate: float
    grad_norm: float
    """Euclidean norm of the whole gradient, before clipping."""
    weight: float
    """Loss units in the global batch."""
    rows: int
    tokens: int
    """Real tokens (or the recipe's own unit of input) in the global batch; padding is not
    counted."""
    seconds: float
    """Wall time of the step, waiting for data included."""
    memory_bytes: int
    """Highest memory so far: of the GPU's allocator, or of the process where there is no GPU."""
    also: Mapping[str, float] = field(default_factory=dict)
    """Other means that the recipe's loss names."""
    refused: Refusal | None = None
    """None: the optimizer was run."""


PICTURE_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg"}
"""How a picture's file begins, and how its name ends."""

Mark = Literal["added", "missing", "changed"]
"""Of a piece of text: said but not wanted, wanted but not said, other than it should be."""
Piece = tuple[str, float | Mark | None]
"""A part of a text and what is to be seen of it: a loss in nats (the higher, the warmer), a mark,
or None for nothing. A list of them (in JSON ``[text, mark]``) is shown as one running text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture of a held-out row: a scanned page, a rendered part. ValueError if it is none."""

    data: bytes = field(repr=False)
    """A PNG or JPEG file. Up to 200 kB is best: a report leaves out what it has no room for."""
    says: str = ""
    """What there is to see, in a few words: stands below it, and for those who cannot see it."""

    def __post_init__(self) -> None:
        if not self.kind:
            raise ValueError(f"a picture must be PNG or JPEG; these bytes begin {self.data[:8]!r}")

    @property
    def kind(self) -> str:
        """``png`` or ``jpg``."""
        return picture_kind(self.data)


def picture_kind(data: bytes) -> str:
    """``png`` or ``jpg``, by its first bytes; empty for anything else."""
    return next((kind for begin, kind in PICTURE_KINDS.items() if data.startswith(begin)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLoss:
    """One held-out row and how badly the model did on it: what a person is shown."""

    row: int
    loss: float
    """Mean over the row's loss units."""
    weight: float
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What the recipe can show of the row, by title: ``prompt``, ``reference``, ``prediction``, …
    Each is a text or a number, a list of ``Piece``, a ``Picture`` or a list of them (side by side),
    or a chain (``docs/writing-a-recipe.md``). Four names are not shown as they are but used:
    ``where`` the row came from, how large its ``error`` is and its ``length`` (numbers to sort by),
    and ``suspicious``: in a few words, why its label may be what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Measurements on held-out rows at one step; ``metrics['loss']`` is always there."""

    step: int
    rows: int
    weight: float
    metrics: Mapping[str, float]
    """The main figures first. ``SOURCE/metric`` is over one source of the data; ``n`` and ``n_…``
    count. What is not defined on these rows is absent."""
    baselines: Mapping[str, float]
    """The same metrics for something trivial, named ``metric/baseline`` (``loss/untrained``)."""
    seconds: float
    worst: tuple[RowLoss, ...] = ()
    samples: tuple[tuple[str, str], ...] = ()
    """(prompt, what the model went on with), greedily, where the recipe makes them."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Rows to keep beside the metrics, written as NAME.jsonl: predictions, reliability …"""
    split: Literal["eval", "test"] = "eval"
    """``eval``: the rows that choose the best checkpoint. ``test``: those that choose nothing."""
    of_rows: int | None = None
    """How many held-out rows there are, where only ``rows`` of them were measured
    (``evaluate.max_rows``)."""
    observed: tuple[tuple[float, ...], ...] = ()
    """Each loss unit's own figures, where the recipe's metrics need them; never written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One answer of a check: what is the case, why it matters, what to do."""

    level: Literal["blocker", "warning", "note"]
    name: str
    what: str
    why: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One question that is asked before money is spent, by whoever knows how to answer it."""

    name: str
    run: Callable[[], Iterable[Finding]]
    """What is wrong is a finding or an exception; a HeadwayError is its own message."""
    needs: tuple[str, ...] = ()
    """Checks without whose answer this one cannot be asked: those that found no blocker."""
    quick: bool = False
    """Takes far less than a second and asks no network: ``headway train`` asks it too."""


class StopReason(Enum):
    """Why an attempt ended. The value is what the journal says."""

    FINISHED = "finished"
    EARLY_STOP = "early stop"
    SIGNAL = "signal"
    BUDGET = "budget"
    DEADLINE = "deadline"
    ROLL_BACK = "roll back"
    """An earlier checkpoint is to be opened, as the journal says; the same command does it."""
    ERROR = "error"

    @property
    def exit_code(self) -> int:
        """0: nothing left to do. 75: stopped with a checkpoint, run it again. 76: the money or the
        time is spent."""
        return {
            "finished": 0,
            "early stop": 0,
            "signal": 75,
            "budget": 76,
            "deadline": 76,
            "roll back": 75,
            "error": 1,
        }[self.value]
