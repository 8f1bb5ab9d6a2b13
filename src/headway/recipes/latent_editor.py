"""Teach a language model to change a part's latent as a sentence asks.

The labels are the latents of the part before and after. The autoencoder that made them travels with
the data; one that is not the same, weight for weight, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.data.cad import EditRows
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
from headway.errors import DataError
from headway.models.attention import recompute
from headway.models.backbone import base_model
from headway.models.graph_vae import GraphVae, weights_sha256
from headway.models.hub import load_tokenizer
from headway.models.latent_editor import LatentEditor, Told
from headway.recipes.batching import drawn, groups, longest_rows, part_of, rows_of_step
from headway.recipes.cad_view import worst_edits
from headway.recipes.checks import pretrained_checks
from headway.recipes.edit_metrics import figures_of, measure
from headway.recipes.edit_rows import (
    NAMES,
    WHAT_A_MODEL_READS,
    EditText,
    WrittenEdits,
    edits_as_read,
    load_edits,
    longest_edits,
    split_off,
    surveyed,
)
from headway.recipes.edit_use import asked, edited
from headway.recipes.editor_config import LatentEditorConfig
from headway.recipes.editor_files import dimensions_of, export_editor, saved_editor
from headway.recipes.graph_use import load_vae
from headway.recipes.language_model import counts, load_model, untouched_base
from headway.records import Check, Evaluation, Finding


@dataclass
class LatentEditorTask:
    """An editor and the edits it learns from."""

    model: LatentEditor
    text: EditText
    config: LatentEditorConfig
    context: BuildContext
    vae: GraphVae | None = None
    """Frozen; no part of ``model``."""
    vae_sha256: str | None = None
    train: WrittenEdits | None = None
    held: WrittenEdits | None = None
    test: WrittenEdits | None = None
    described: dict[str, Any] = field(default_factory=dict)

    @property
    def rows_per_epoch(self) -> int:
        """Training edits."""
        return len(self.train) if self.train else 0

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of all training edits."""
        return int(self.train.lengths.sum()) if self.train else 0

    def batch_at(self, step: int, halvings: int = 0) -> list[Microbatch]:
        """This rank's share of the batch after ``step``: a pure function."""
        assert self.train is not None
        total, seed = len(self.train), self.context.seed
        rows = rows_of_step(lambda at: rows_at(seed, at, total), step, self.context)
        return list(self._cut(self.train, rows, halvings))

    def held_out(self, halvings: int = 0) -> Iterator[Microbatch]:
        """This rank's held-out edits, or those drawn by the seed."""
        if self.held is not None:
            rows = drawn(len(self.held), self.context)[self.context.rank :: self.context.ranks]
            yield from self._cut(self.held, rows.tolist(), halvings)

    def tested(self) -> LatentEditorTask | None:
        """The same editor over all test edits; None where there are none."""
        if self.test is None:
            return None
        return replace(self, held=self.test, context=replace(self.context, held_out_rows=None))

    def longest(self, rows: int) -> Microbatch:
        """The longest training edits together, or made-up ones where none were read."""
        source = self.train or longest_edits(self.text, self.config.latent)
        return source.microbatch(longest_rows(source.lengths, rows))

    def _cut(
        self, source: WrittenEdits, rows: Sequence[int], halvings: int
    ) -> Iterator[Microbatch]:
        def length_of(row: int) -> int:
            return int(source.lengths[row])

        for group in groups(rows, length_of, self.model.language, self.context, halvings):
            yield source.microbatch(group)

    def loss(self, model: Any, inputs: Inputs) -> RowSums:
        """One loss unit an edit: ``loss``, and what it is made of."""
        return self._measured(model, inputs)[0]

    def observe(self, model: Any, inputs: Inputs) -> tuple[RowSums, Tensor]:
        """Also [n, k] figures of each edit, for ``edit_metrics.measure``."""
        sums, told = self._measured(model, inputs)
        return sums, figures_of(inputs, told)

    def _measured(self, model: Any, inputs: Inputs) -> tuple[RowSums, Told]:
        told = told_by(model, inputs, inputs["amounts"])
        head, weights = self.model.head, self.config.weights
        amounts, changes = inputs["amounts"] / head.amount_scale, inputs["amounts"] != 0
        direction = inputs["direction"]
        decided = (direction != 0.5).float()
        which_way = F.binary_cross_entropy_with_logits(told.direction, direction, reduction="none")
        named = F.binary_cross_entropy_with_logits(told.named, changes.float(), reduction="none")
        off = (told.taught - inputs["delta"]) / head.delta_scale
        parts = {
            "delta_scaled": off.square().mean(1),
            "amounts": mean_where(changes, told.choice.surprise(amounts)),
            "named": named.mean(1),
            "direction": which_way * decided,
        }
        loss = parts["delta_scaled"] + weights.amounts * parts["amounts"]
        loss = loss + weights.named * parts["named"] + weights.direction * parts["direction"]
        if weights.dimensions and self.vae is not None:
            parts["dimensions"] = dimension_errors(self.vae, inputs, told)
            loss = loss + weights.dimensions * parts["dimensions"]
        also = {name: value.detach() for name, value in parts.items()}
        delta_mse = (told.delta - inputs["delta"]).square().mean(1).detach()
        return {"loss": loss, "delta_mse": delta_mse, **also}, told

    def recompute_activations(self) -> bool:
        """Keep each layer's input only, from now on."""
        return recompute(self.model.language)

    def saved(self) -> SavedModel:
        """Adapter or whole model, tokenizer, head, and the autoencoder it belongs to."""
        return saved_editor(self)

    def facts(self) -> dict[str, Any]:
        """Counts of parameters and data, and the identities that must not change within a run."""
        return {**counts(self.model), **self.described}


def told_by(model: nn.Module, inputs: Inputs, amounts: Tensor | None = None) -> Told:
    """What the editor says of a microbatch; ``amounts``: the labels, to learn from."""
    told: Told = model(**{name: inputs[name] for name in WHAT_A_MODEL_READS}, amounts=amounts)
    return told


def dimension_errors(vae: GraphVae, inputs: Inputs, told: Told) -> Tensor:
    """[n]: mean squared error of the shares that are read from the edited latents."""
    _, shares = vae.read(inputs["z"] + told.taught)
    family = inputs["family"].clamp(min=0)
    read = shares[torch.arange(len(family), device=family.device), family]
    wanted = inputs["targets"]
    known = wanted.isfinite() & (inputs["family"] >= 0)[:, None]
    return mean_where(known, (read - wanted.nan_to_num()).square())


def mean_where(there: Tensor, values: Tensor) -> Tensor:
    """[n]: the mean of each row's values [n, k] at the places ``there``, 0 where there are none."""
    return torch.where(there, values, 0.0).sum(1) / there.sum(1).clamp(min=1)


class LatentEditorRecipe:
    """The recipe ``latent_editor``."""

    Config = LatentEditorConfig

    def build(self, config: LatentEditorConfig, context: BuildContext) -> LatentEditorTask:
        """Tokenizer, model, head, edits and autoencoder. Raises ConfigError or DataError."""
        tokenizer = load_tokenizer(
            config.base_model, config.revision, context.cache, weights=context.weights
        )
        text = edit_text(config, tokenizer)
        edits = read_training(config) if context.data else None
        vae = open_vae(config, context) if context.weights else None
        found = weights_sha256(vae) if vae else None
        if edits is not None and vae:
            same_vae(config, found, edits.vae_sha256)
        language, described = load_model(config, context, tokenizer, layers=config.layers)
        torch.manual_seed(context.seed)
        model = LatentEditor(language, config.latent, len(NAMES), config.editor)
        model.dimensions_of = dimensions_of(vae) if vae else None
        made_with = found or (edits.vae_sha256 if edits else None)
        if made_with:
            described["identities"]["vae"] = made_with[:16]
        task = LatentEditorTask(model, text, config, context, vae, made_with, described=described)
        return with_edits(task, WrittenEdits(edits, text)) if edits is not None else task

    def checks(self, config: LatentEditorConfig, context: BuildContext) -> list[Check]:
        """The model's files, its tokenizer, and the edits."""
        return pretrained_checks(config, context, None, lambda: look_at_edits(config, context))

    def rows_as_read(self, config: LatentEditorConfig, cache: Path) -> Iterator[RowAsRead]:
        """Training edits, each with what it changes."""
        yield from edits_as_read(load_edits(config.data.train, max_unreadable=1.0)[0])

    def survey(self, config: LatentEditorConfig, seed: int, cache: Path) -> Survey:
        """Training edits by kind, part and dimension, and labels that are not in their texts."""
        edits, _ = load_edits(config.data.train, max_unreadable=1.0)
        return surveyed(edits, config.data.max_unreadable)

    def measure(self, task: LatentEditorTask, evaluation: Evaluation, go_on: GoOn) -> Evaluation:
        """Every metric beside trivial answers, and the worst edits, drawn."""
        assert task.held is not None and task.train is not None
        metrics, baselines, rows = measure(task.held, task.train, evaluation.observed, task.vae)
        return replace(
            evaluation,
            metrics={"loss": evaluation.metrics["loss"], **metrics, **evaluation.metrics},
            baselines={**evaluation.baselines, **baselines},
            worst=worst_edits(task.held, evaluation.worst, rows, task.vae),
            of_rows=part_of(len(task.held), evaluation),
            observed=(),
        )

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise ConfigError for what ``predict`` does not take."""
        asked(request)

    def predict(self, task: LatentEditorTask, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``instruction``, and ``part`` (a STEP or JSON file), ``family`` and ``parameters``, or
        ``z_src`` -> the changed latent, and the part that it is; ``out``: a file to write it to."""
        task.model.eval()
        return edited(task, asked(request))

    def export(
        self, task: LatentEditorTask, config: LatentEditorConfig, to: Path, format: str
    ) -> Mapping[str, Any]:
        """``adapter``, ``merged`` or ``full``, the head beside it; reloaded and compared."""
        base = untouched_base(config, task.context, layers=config.layers)
        return export_editor(task, base, to, format)


def edit_text(config: LatentEditorConfig, tokenizer: Any) -> EditText:
    """How this config writes an edit."""
    tokens = config.editor.latent_tokens
    return EditText(tokenizer, config.text_format, tokens, config.max_tokens)


def read_training(config: LatentEditorConfig) -> EditRows:
    """The training edits. Raises DataError where their latents have another length."""
    edits, _ = load_edits(config.data.train, config.data.max_unreadable)
    there = edits.z_src.shape[1]
    if there != config.latent:
        raise DataError(
            f"{config.data.train} has latents of {there} numbers, and task.latent is "
            f"{config.latent}: write {there}"
        )
    return edits


def open_vae(config: LatentEditorConfig, context: BuildContext) -> GraphVae | None:
    """The autoencoder that made the latents, frozen; None where none is named or lies beside."""
    beside = Path(config.data.train) / "vae"
    folder = Path(config.vae) if config.vae else beside if beside.is_dir() else None
    if folder is not None:
        return load_vae(folder).requires_grad_(False).to(torch.device(context.device))
    if config.weights.dimensions:
        raise DataError(
            "task.weights.dimensions needs the autoencoder that made the latents; give task.vae, "
            "or set it to 0"
        )
    return None


def same_vae(config: LatentEditorConfig, found: str | None, stated: str | None) -> None:
    """Raise DataError where the autoencoder is not the one that the data's latents are from."""
    if found is None or found == stated:
        return
    place = config.vae or f"{config.data.train}/vae"
    if stated is None:
        raise DataError(
            f"{config.data.train} does not say which autoencoder made its latents, so nobody knows "
            f"whether it was {place}: leave task.vae out, or make the edits with headway data "
            "cad-edits"
        )
    raise DataError(
        f"{place} is not the autoencoder that made the latents of {config.data.train}: its weights "
        f"are {found[:16]}, the data's {stated[:16]}. Make the edits again with this one, or name "
        "the other"
    )


def with_edits(task: LatentEditorTask, read: WrittenEdits) -> LatentEditorTask:
    """The task with its rows; the head's scales are taken from the training edits."""
    data, text = task.config.data, task.text
    train, held, test = read, None, None
    if data.eval_fraction is not None:
        mine, others = split_off(len(read), data.eval_fraction, data.split)
        train = WrittenEdits(read.edits.where(mine), text)
        held = WrittenEdits(read.edits.where(others), text)
    if data.eval is not None:
        held = another(data.eval, task, read)
    if data.test is not None:
        test = another(data.test, task, read)
    if task.context.weights:
        fit_scales(task.model, train)
    identities = {"data": train.sha256[:16]}
    for name, rows in (("held_out", held), ("test", test)):
        if rows is not None:
            identities[name] = rows.sha256[:16]
    described = {
        **task.described,
        "data": edit_lines(train, held, test),
        "identities": {**task.described["identities"], **identities},
    }
    return replace(task, train=train, held=held, test=test, described=described)


def another(place: str, task: LatentEditorTask, train: WrittenEdits) -> WrittenEdits:
    """Rows of another file, made with the same autoencoder. Raises DataError."""
    edits, _ = load_edits(place, task.config.data.max_unreadable)
    if edits.vae_sha256 != train.edits.vae_sha256 or edits.z_src.shape[1] != task.config.latent:
        raise DataError(
            f"{place}: its latents were made by another autoencoder than those of "
            f"{task.config.data.train}; they mean different things"
        )
    return WrittenEdits(edits, task.text)


@torch.no_grad()
def fit_scales(model: LatentEditor, train: WrittenEdits) -> None:
    """Means and deviations of what the head reads and says."""
    z, head = train.edits.z_src, model.head
    delta = train.edits.z_tgt - z
    amounts = train.amounts
    often = np.maximum((amounts != 0).sum(0), 1)
    for buffer, values in (
        (head.latent_mean, z.mean(0)),
        (head.latent_scale, z.std(0)),
        (head.delta_scale, np.sqrt(np.square(delta).mean(0))),
        (head.amount_scale, np.sqrt(np.square(amounts).sum(0) / often)),
    ):
        found = torch.from_numpy(np.asarray(values, dtype=np.float32))
        if buffer is not head.latent_mean:  # what never varies is scaled as what varies most
            varies = found > 1e-6
            found = torch.where(varies, found, found.max() if varies.any() else 1.0)
        buffer.copy_(found)
    table = base_model(model.language).get_input_embeddings().weight
    head.start_at(float(table[:4096].float().square().mean().sqrt()))


def edit_lines(
    train: WrittenEdits, held: WrittenEdits | None, test: WrittenEdits | None
) -> list[str]:
    """How many edits of each kind there are."""
    lines = []
    for split, rows in (("train", train), ("held-out", held), ("test", test)):
        if rows is not None:
            kinds = sorted(set(rows.edits.kinds))
            each = ", ".join(f"{rows.edits.kinds.count(kind):,} {kind}" for kind in kinds)
            tokens = int(rows.lengths.sum())
            lines.append(f"{split}: {len(rows):,} edits ({each}), {tokens:,} tokens")
    return lines


def look_at_edits(config: LatentEditorConfig, context: BuildContext) -> Iterator[Finding]:
    """What preflight finds in the edits: how many, and one of them."""
    tokenizer = load_tokenizer(config.base_model, config.revision, context.cache)
    edits = read_training(config)
    vae = open_vae(config, context)
    same_vae(config, weights_sha256(vae) if vae else None, edits.vae_sha256)
    written = WrittenEdits(edits, edit_text(config, tokenizer))
    for line in edit_lines(written, None, None):
        yield Finding(level="note", name="data", what=line)
    changes = ", ".join(f"{name} {mm:+g} mm" for name, mm in edits.changes[0].items())
    what = f"the first edit: {edits.instructions[0]!r}, which is {changes or 'no change'}"
    yield Finding(level="note", name="data", what=what)


RECIPE = LatentEditorRecipe()
