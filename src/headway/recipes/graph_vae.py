"""Teach an autoencoder to put a part's face graph into a few numbers, and to read it back.

What the KL divergence weighs grows over the first steps; how much is a function of the step alone,
so it travels with the batch and nothing of it is stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor

from headway.config import CLOSED
from headway.data.cad.faces import Graphs, graphs_of
from headway.data.cad.families import FAMILIES
from headway.data.cad.rows import read_parts
from headway.data.cad.sampling import parts
from headway.data.order import rows_at
from headway.engine.task import (
    BuildContext,
    GoOn,
    Inputs,
    Microbatch,
    RowAsRead,
    RowSums,
    SavedModel,
    Survey,
)
from headway.errors import ConfigError
from headway.models.graph_vae import (
    FACE_TYPES,
    Decoded,
    GraphVae,
    VaeShape,
    kl_nats,
    weights_sha256,
)
from headway.recipes.batching import drawn, part_of, rows_of_step
from headway.recipes.cad_view import part_lines, parts_as_read, worst_parts
from headway.recipes.graph_metrics import figures_of, measure
from headway.recipes.graph_rows import GraphRows, groups
from headway.recipes.graph_use import (
    MODEL_FILE,
    asked,
    described_part,
    export_vae,
    latents,
    shape_file,
)
from headway.records import Check, Evaluation, Finding

SCALED_BY = 20_000


class Generated(BaseModel):
    """Parts that are made when the run begins: a few seconds for 100,000."""

    model_config = CLOSED

    count: int = Field(ge=1)
    """How many."""
    seed: int = Field(default=0, ge=0)
    """Other seeds give other parts."""


class GraphData(BaseModel):
    """Where parts come from."""

    model_config = CLOSED

    train: str | Generated
    """A folder of `headway data cad-parts`, or `{count, seed}` to make them here."""
    eval: str | Generated | None = None
    """The same, held out."""


class Kl(BaseModel):
    """How strongly the latent is held to a standard normal distribution."""

    model_config = CLOSED

    weight: float = Field(default=1e-4, ge=0)
    """Of the KL divergence in nats, from the end of the warm-up on and in every evaluation."""
    free_bits: float = Field(default=0.1, ge=0)
    """Nats that each dimension of each graph has for nothing."""
    warmup_steps: int = Field(default=500, ge=0)
    """The weight rises from 0 to the whole over so many steps."""


class Weights(BaseModel):
    """What each part of the loss weighs; the type of each face weighs 1."""

    model_config = CLOSED

    faces: float = Field(default=1.0, ge=0)
    """Squared error of the faces' numbers, each over its deviation among the training parts."""
    edges: float = Field(default=1.0, ge=0)
    """Which faces meet, and along what."""
    family: float = Field(default=1.0, ge=0)
    """Which family the part is of."""
    dimensions: float = Field(default=20.0, ge=0)
    """Squared error of the dimensions, as shares of their ranges."""


class GraphVaeConfig(BaseModel):
    """What to train, and on which parts."""

    model_config = CLOSED

    model: VaeShape = VaeShape()
    """Size of encoder, latent and decoder."""
    kl: Kl = Kl()
    """How the latent is held together."""
    weights: Weights = Weights()
    """What counts how much."""
    least_active: int = Field(default=4, ge=0)
    """Fewer latent dimensions than this in use is a collapse, and an alert: an active one varies by
    more than 0.01 over the held-out parts."""
    data: GraphData
    """Where parts come from."""


@dataclass
class GraphVaeTask:
    """An autoencoder and the parts it learns from."""

    model: GraphVae
    config: GraphVaeConfig
    context: BuildContext
    train: GraphRows | None = None
    held: GraphRows | None = None
    described: dict[str, Any] = field(default_factory=dict)

    @property
    def rows_per_epoch(self) -> int:
        """Training parts."""
        return len(self.train) if self.train else 0

    @property
    def tokens_per_epoch(self) -> int:
        """Faces of all training parts."""
        return self.train.faces if self.train else 0

    def kl_weight_at(self, step: int) -> float:
        """Of the KL divergence in the step that follows ``step``."""
        kl = self.config.kl
        return kl.weight * min(1.0, step / kl.warmup_steps) if kl.warmup_steps else kl.weight

    def batch_at(self, step: int, halvings: int = 0) -> list[Microbatch]:
        """This rank's share of the batch after ``step``: a pure function."""
        assert self.train is not None
        total, seed = len(self.train), self.context.seed
        rows = rows_of_step(lambda at: rows_at(seed, at, total), step, self.context)
        weight = self.kl_weight_at(step)
        return [self.train.microbatch(g, weight) for g in groups(rows, self.context, halvings)]

    def held_out(self, halvings: int = 0) -> Iterator[Microbatch]:
        """This rank's held-out parts, or those drawn by the seed; the KL weighs as at the end."""
        if self.held is not None:
            rows = drawn(len(self.held), self.context)[self.context.rank :: self.context.ranks]
            for group in groups(rows.tolist(), self.context, halvings):
                yield self.held.microbatch(group, self.config.kl.weight)

    def longest(self, rows: int) -> Microbatch:
        """Made-up parts with as many faces as there can be: brackets with a fillet."""
        dimensions = np.array([[100.0, 100.0, 40.0, 6.0, 4.0, 8.0, 30.0, 8.0, 30.0]])
        family = np.zeros(rows, dtype=np.int64)
        made = GraphRows.of(graphs_of(family, np.repeat(dimensions, rows, 0)))
        return made.microbatch(range(rows), self.config.kl.weight)

    def loss(self, model: Any, inputs: Inputs) -> RowSums:
        """One loss unit a graph: ``loss``, and what it is made of."""
        return self._measured(model, inputs)[0]

    def observe(self, model: Any, inputs: Inputs) -> tuple[RowSums, Tensor]:
        """Also [n, k] figures of each graph, for ``graph_metrics.measure``."""
        sums, mu, log_sigma, decoded = self._measured(model, inputs)
        return sums, figures_of(self.model, inputs, mu, log_sigma, decoded)

    def _measured(self, model: Any, inputs: Inputs) -> tuple[RowSums, Tensor, Tensor, Decoded]:
        mu, log_sigma, decoded = model(inputs)
        parts, weights = reconstruction(self.model, inputs, decoded), self.config.weights
        kl = kl_nats(mu, log_sigma).clamp(min=self.config.kl.free_bits).sum(1)
        loss = inputs["kl_weight"] * kl + parts["types"]
        for name in ("faces", "edges", "family", "dimensions"):
            loss = loss + getattr(weights, name) * parts[name]
        also = {name: value.detach() for name, value in {**parts, "kl_nats": kl}.items()}
        return {"loss": loss, **also}, mu, log_sigma, decoded

    def encode(self, graphs: Graphs) -> NDArray[np.float32]:
        """[n, latent] posterior means of graphs."""
        return latents(self.model, graphs)

    def weights_sha256(self) -> str:
        """Names the weights and scales: the meaning of a latent depends on all of them."""
        return weights_sha256(self.model)

    def recompute_activations(self) -> bool:
        """Keep each layer's input only, from now on; False if it does so already."""
        before, self.model.recomputes = self.model.recomputes, True
        return not before

    def saved(self) -> SavedModel:
        """Weights and scales, and what they mean."""
        return SavedModel(
            tensors={MODEL_FILE: dict(self.model.state_dict())},
            files=shape_file(self.config.model),
        )

    def facts(self) -> dict[str, Any]:
        """Counts of parameters and data, and the identities that must not change within a run."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {
            "model": f"graph VAE, {self.config.model.latent} numbers in a latent",
            "parameters": parameters,
            "trainable": parameters,
            **self.described,
        }


def reconstruction(model: GraphVae, inputs: Inputs, decoded: Decoded) -> dict[str, Tensor]:
    """Name -> [n]: how far what was decoded is from each graph, in fp32.

    ``types``, ``family``: cross-entropy in nats (types: mean over slots). ``faces``: mean squared
    scaled error of the faces that are there. ``edges``: cross-entropy of which slots meet, mean
    over pairs, plus mean squared scaled error of the edges. ``dimensions``: mean squared error of
    shares.
    """
    types, pairs, family = inputs["types"], inputs["pairs"], inputs["family"]
    there = (types >= 0).float()
    wanted = torch.where(types >= 0, types, FACE_TYPES)
    by_slot = F.cross_entropy(decoded.types.transpose(1, 2), wanted, reduction="none")
    rows, edges = model.scaled(inputs["faces"], pairs)
    wrong = (decoded.faces - rows[..., : decoded.faces.shape[-1]]).square().mean(-1)
    joined = pairs[..., 0]
    meet = F.binary_cross_entropy_with_logits(decoded.joined, joined, reduction="none")
    along = (decoded.edges - edges).square().mean(-1) * joined
    shares = _of_family(decoded.shares, family)
    known = _dimensions(family)
    return {
        "types": by_slot.mean(1),
        "faces": (wrong * there).sum(1) / there.sum(1).clamp(min=1),
        "edges": meet.mean((1, 2)) + along.sum((1, 2)) / joined.sum((1, 2)).clamp(min=1),
        "family": F.cross_entropy(decoded.family, family, reduction="none"),
        "dimensions": ((shares - inputs["shares"]).square() * known).sum(1) / known.sum(1),
    }


def _of_family(shares: Tensor, family: Tensor) -> Tensor:
    """[n, FAMILIES, PARAMETERS] -> [n, PARAMETERS] of each graph's own family."""
    return shares[torch.arange(len(family), device=family.device), family]


def _dimensions(family: Tensor) -> Tensor:
    """[n, PARAMETERS]: 1 where the family has such a dimension."""
    counts = torch.tensor([len(f.parameters) for f in FAMILIES], device=family.device)
    width = max(len(f.parameters) for f in FAMILIES)
    return (torch.arange(width, device=family.device) < counts[family][:, None]).float()


class GraphVaeRecipe:
    """The recipe ``graph_vae``."""

    Config = GraphVaeConfig

    def build(self, config: GraphVaeConfig, context: BuildContext) -> GraphVaeTask:
        """Parts, and a model with random weights drawn from the run's seed."""
        if config.model.width % config.model.heads:
            raise ConfigError(
                f"task.model: width {config.model.width} is not divisible by {config.model.heads} "
                "heads"
            )
        if context.compile:
            raise ConfigError("hardware.compile: this model is small; set it to false")
        torch.manual_seed(context.seed)
        model = GraphVae(config.model).to(torch.device(context.device))
        model.recomputes = context.activation_checkpointing
        task = GraphVaeTask(model, config, context)
        return with_parts(task) if context.data else task

    def checks(self, config: GraphVaeConfig, context: BuildContext) -> list[Check]:
        """The parts."""
        return [Check("data", lambda: look_at_parts(config))]

    def rows_as_read(self, config: GraphVaeConfig, cache: Path) -> Iterator[RowAsRead]:
        """Training parts, each with its dimensions."""
        yield from parts_as_read(load_parts(config.data.train)[0])

    def survey(self, config: GraphVaeConfig, seed: int, cache: Path) -> Survey:
        """Parts by family and split."""
        lines = lines_of(config)
        return Survey(lines=lines, tree={"lines": lines})

    def measure(self, task: GraphVaeTask, evaluation: Evaluation, go_on: GoOn) -> Evaluation:
        """Every metric beside a trivial one's, dimensions in use, and the worst parts."""
        assert task.held is not None and task.train is not None
        measured = measure(task.held, task.train, evaluation.observed)
        metrics, baselines, rows = measured
        return replace(
            evaluation,
            metrics={"loss": evaluation.metrics["loss"], **metrics, **evaluation.metrics},
            baselines={**evaluation.baselines, **baselines},
            worst=worst_parts(task.model, task.held, evaluation.worst, rows),
            of_rows=part_of(len(task.held), evaluation),
            observed=(),
            findings=collapsed(task.config, evaluation.step, metrics),
        )

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise ConfigError for what ``predict`` does not take."""
        asked(request)

    def predict(self, task: GraphVaeTask, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``family`` and ``parameters`` {name: mm} -> ``latent``, and what is read back from it."""
        task.model.eval()
        return described_part(task.model, asked(request))

    def export(
        self, task: GraphVaeTask, config: GraphVaeConfig, to: Path, format: str
    ) -> Mapping[str, Any]:
        """``full``: weights, scales and shape in a folder, reloaded and compared."""
        return export_vae(task.model, to, format)


def collapsed(
    config: GraphVaeConfig, step: int, metrics: Mapping[str, float]
) -> tuple[Finding, ...]:
    """What is wrong with the latent after the warm-up; nothing where it is in use."""
    active = int(metrics["active_dimensions"])
    if step <= config.kl.warmup_steps or active >= config.least_active:
        return ()
    return (
        Finding(
            level="warning",
            name="latent collapse",
            what=f"{active} of {config.model.latent} latent dimensions are in use, fewer than "
            f"task.least_active ({config.least_active}); the KL divergence is "
            f"{metrics['kl_nats']:.3g} nats",
            why="the posterior is as good as the prior: the decoder does without the latent, and "
            "whatever is trained on such latents learns nothing",
            fix="lower task.kl.weight, raise task.kl.warmup_steps or task.kl.free_bits",
        ),
    )


def load_parts(source: str | Generated) -> tuple[Graphs, str]:
    """(graphs, what names them) of a source."""
    if isinstance(source, Generated):
        graphs = graphs_of(*parts(source.seed, np.arange(source.count)))
        return graphs, json.dumps(["generated", source.seed, source.count])
    return read_parts(Path(source))


def with_parts(task: GraphVaeTask) -> GraphVaeTask:
    """The task with its parts; the model's scales are taken from the first SCALED_BY of them."""
    data = task.config.data
    graphs, identity = load_parts(data.train)
    train, held, identities = GraphRows.of(graphs), None, {"data": identity[:64]}
    if data.eval is not None:
        graphs, identity = load_parts(data.eval)
        held = GraphRows.of(graphs)
        identities["held_out"] = identity[:64]
    if task.context.weights:
        sample = train.tensors(np.arange(min(len(train), SCALED_BY)))
        task.model.fit_scales(sample["types"], sample["faces"], sample["pairs"])
    return replace(
        task,
        train=train,
        held=held,
        described={"data": part_lines(train, held), "identities": identities},
    )


def look_at_parts(config: GraphVaeConfig) -> Iterator[Finding]:
    """What preflight finds in the parts."""
    for line in lines_of(config):
        yield Finding(level="note", name="data", what=line)


def lines_of(config: GraphVaeConfig) -> list[str]:
    """``part_lines`` of the parts that a config names."""
    sources = (config.data.train, config.data.eval)
    train, held = (GraphRows.of(load_parts(s)[0]) if s is not None else None for s in sources)
    assert train is not None
    return part_lines(train, held)


RECIPE = GraphVaeRecipe()
