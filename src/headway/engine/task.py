"""The seam between the engine and everything that can be trained.

A recipe is how one kind of model is trained; it builds a task. A task is a model, a batch that is a
pure function of the step, and a loss that returns **sums per row**, never means: sums over rows,
microbatches and ranks all add up to the same number, however the batch was split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel
from torch import Tensor, nn

from headway.records import Check, Evaluation

Inputs = Mapping[str, Any]
RowSums = dict[str, Tensor]
"""Name -> [rows] sums over each row's loss units. ``loss`` is the one that is differentiated."""
GoOn = Callable[[], None]
"""A sign of life; raises Interrupted where the run stops."""


class Interrupted(Exception):
    """The run stops, so what is being measured is left; the next attempt measures it whole."""


def no_stop() -> None:
    """The GoOn of a measurement that nothing stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatch:
    """Rows that go through the model together."""

    inputs: Inputs
    """What ``Task.loss`` reads; tensors on the CPU, moved to the device by the engine. ``shapes``,
    where it is there, names those whose numbers are shapes to the model, for the plan."""
    rows: tuple[int, ...]
    """Which rows of the data these are, in order; names the guilty when a step goes wrong."""
    weights: tuple[float, ...]
    """Loss units of each row."""
    tokens: int
    """Real tokens (or the recipe's unit of input); padding is not counted."""

    @property
    def weight(self) -> float:
        """Loss units in this microbatch."""
        return float(sum(self.weights))


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """Exactly what a checkpoint's ``model/`` folder holds, in the layout other tools read."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    """File name (``adapter_model.safetensors``) -> tensor name -> the live tensor."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Small files beside them: ``adapter_config.json``, tokenizer files …"""


class Task(Protocol):
    """What a recipe builds and the engine trains."""

    model: nn.Module
    rows_per_epoch: int
    tokens_per_epoch: int

    def batch_at(self, step: int, halvings: int = 0) -> Sequence[Microbatch]:
        """This rank's share of the global batch that leads from ``step`` to ``step + 1``. Pure.

        The same rows in the same order whatever ``halvings`` is: after each lack of memory the
        engine asks for microbatches half as large, down to one row each.
        """
        ...

    def held_out(self, halvings: int = 0) -> Iterator[Microbatch]:
        """This rank's share of the held-out rows, always the same, in a fixed order."""
        ...

    def longest(self, rows: int) -> Microbatch:
        """``rows`` rows at once, as long as this run will see them: what needs the most memory.

        The longest training rows, from the first again when there are fewer; where no rows were
        read, made-up ones of the greatest length that the config allows, wholly supervised.
        """
        ...

    def loss(self, model: nn.Module, inputs: Inputs) -> RowSums:
        """Named sums over each row's loss units. Differentiable in ``loss``."""
        ...

    def recompute_activations(self) -> bool:
        """From now on keep less for backward and compute it again; False if it cannot, or does."""
        ...

    def saved(self) -> SavedModel:
        """What a checkpoint holds of the model: live tensors and the small files beside them."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a person should see before step 1: parameters, data counts, the mix as sampled.

        ``vocabulary``, where the loss makes logits: their width, which the plan counts apart.
        ``layers``: see ``BuildContext.layers``.
        """
        ...


@runtime_checkable
class Observing(Protocol):
    """A task whose metrics need every loss unit's own figures, not only their sums."""

    def observe(self, model: nn.Module, inputs: Inputs) -> tuple[RowSums, Tensor]:
        """What ``loss`` returns and [n, k] figures: ``Evaluation.observed`` gathers them."""
        ...


@runtime_checkable
class Tested(Protocol):
    """A task that may have test rows: those that choose nothing, not when to stop, not which
    checkpoint is the best. They are measured when somebody asks, never while training."""

    def tested(self) -> Task | None:
        """The same model, its ``held_out`` all test rows; None where the config names none."""
        ...


@runtime_checkable
class Shortening(Protocol):
    """A task whose rows can be cut, where memory leaves no other way and the config allows it."""

    def cut_rows(self, tokens: int, since_step: int) -> None:
        """Batches from ``since_step`` on (counted from 0) have rows of at most so many tokens.

        Held-out rows are measured whole.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """What a recipe may know of the run and the machine when it builds its task."""

    seed: int
    batch_size: int
    """Rows per optimizer step over all ranks."""
    microbatch_size: int | None
    """Rows per forward pass on one rank; None: the task chooses by tokens."""
    precision: str
    device: str
    rank: int
    ranks: int
    activation_checkpointing: bool
    compile: bool
    held_out_rows: int | None
    """Measure on this many held-out rows, chosen by seed; None: on all."""
    cache: Path
    """Where prepared data and converted models may be kept between attempts."""
    data: bool = True
    """False where only the model is used (predict, export): read no rows."""
    weights: bool = True
    """False where only the model's shape is used (plan): build the architecture from its config,
    and read or download no weights. ``build`` is then called within ``engine.fake.weightless``:
    whatever it makes with torch has a shape and no numbers."""
    tokens_at_once: int | None = None
    """With no ``microbatch_size``: what the plan found to fit this GPU; None: nobody planned."""
    layers: int | None = None
    """With ``weights`` false: build only so many of the model's layers. A recipe whose layers are
    all alike may follow it, and then says how many there really are in ``facts()["layers"]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAsRead:
    """A training row for a person to look at."""

    where: str
    facts: str
    """How long it is, and what of it was cut or left away."""
    runs: Sequence[tuple[str, str, float | None]]
    """(text, what the model should say at its end, where that lies in its range from 0 to 1);
    ``""`` and None where it should say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All the data of a config, counted."""

    lines: Sequence[str]
    tree: Mapping[str, Any]
    """The same as plain JSON."""
    refusal: str = ""
    """Why a run would refuse this data; empty where it would not."""


@runtime_checkable
class Surveying(Protocol):
    """A recipe that can show its data without loading a model: ``headway data show`` and ``lint``.

    Recipes whose ``task.data`` is a ``TextData`` need not.
    """

    def rows_as_read(self, config: Any, cache: Path) -> Iterator[RowAsRead]:
        """Training rows in the order of the files, read as they are asked for."""
        ...

    def survey(self, config: Any, seed: int, cache: Path) -> Survey:
        """Everything counted. Raises DataError for data that cannot be read at all."""
        ...


class Recipe(Protocol):
    """How one kind of model is trained."""

    Config: type[BaseModel]
    """Validates the config's ``task:`` section."""

    def build(self, config: Any, context: BuildContext) -> Task:
        """Load data and model; raise a HeadwayError that says what to do when either is
        unusable."""
        ...

    def checks(self, config: Any, context: BuildContext) -> list[Check]:
        """What preflight asks about this kind of run, before and without loading the model."""
        ...

    def measure(self, task: Any, evaluation: Evaluation, go_on: GoOn) -> Evaluation:
        """Add metrics, baselines and what is shown of the worst rows to the engine's evaluation.

        What takes longer than a second calls ``go_on`` as it proceeds and lets through what it
        raises: the run's limits, signals and watchdog do not wait for a long answer.
        """
        ...

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise ConfigError for what ``predict`` does not take, before anything is answered."""
        ...

    def predict(self, task: Any, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """One answer of the trained model; keys are the recipe's own (``prompt`` -> ``text``)."""
        ...

    def export(self, task: Any, config: Any, to: Path, format: str) -> Mapping[str, Any]:
        """Write weights for use elsewhere into the empty folder ``to``; read them back, compare.

        Raises ConfigError for a format this recipe does not have, CheckpointError where the export
        does not answer as the trained model does.
        """
        ...
