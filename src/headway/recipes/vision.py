"""Teach a vision-language model to read pictures: pages, forms, headers, anything with an answer.

Loss on the answer alone; LoRA, QLoRA or all weights of the language model, the vision tower or
both; rows without padding. Held-out pages are read greedily and compared letter by letter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, model_validator
from transformers import PreTrainedTokenizerBase

from headway.config import CLOSED
from headway.data.order import Mixture, rows_at
from headway.data.pictures import (
    ImageData,
    ImageSplits,
    PromptWriter,
    chosen_template,
    prepare_images,
    recognise,
)
from headway.data.pictures.augment import Augmentation
from headway.data.pictures.load import places
from headway.data.sources import read_records
from headway.engine.task import BuildContext, GoOn, RowAsRead, Survey
from headway.models.eyes import Eyes, load_eyes
from headway.models.hub import load_tokenizer
from headway.models.tuning import Full, Lora, Tuning
from headway.recipes import vision_view
from headway.recipes.batching import drawn, part_of
from headway.recipes.ocr_metrics import measure, score_page, without_looking
from headway.recipes.vision_export import export_vision
from headway.recipes.vision_model import Part, load_vision_model, untouched_base
from headway.recipes.vision_reading import check, predict, read_held
from headway.recipes.vision_scratch import Scratch, new_eyes, new_tokenizer
from headway.recipes.vision_task import VisionTask
from headway.records import Check, Evaluation, Finding


class VisionConfig(BaseModel):
    """What to train, which part of it, and on which pictures."""

    model_config = CLOSED

    base_model: str | None = None
    """A hub name or a folder of a vision-language model; or give `scratch`."""
    revision: str | None = None
    """Commit or tag on the hub; left out: the newest."""
    scratch: Scratch | None = None
    """Train a new small model from random weights, in place of `base_model`."""
    tuning: Tuning = Field(default=Lora(), validate_default=True)
    """Which parameters train: `full`, `lora` or `qlora`. A new model trains whole."""
    adapt: Part = "both"
    """Which part trains: `language`, `vision` (tower and projector) or `both`."""
    max_tokens: int = Field(default=2048, ge=8)
    """Longest row in tokens, pictures included; what happens to a longer one is `data.overlong`."""
    min_pixels: int | None = Field(default=None, ge=1)
    """Smaller pictures are scaled up to this; left out: the model's own. A picture costs as many
    tokens as it has pixels in a token's square."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Larger pictures are scaled down to this; left out: the model's own."""
    augmentation: Augmentation | None = None
    """Show each training picture a little different each time; left out: as it is."""
    read_rows: int = Field(default=32, ge=0)
    """Held-out rows that each evaluation reads aloud, for the error rates: always the same. The
    rows of highest error rate are looked for among these: read at least `evaluate.worst_rows`."""
    answer_tokens: int = Field(default=1024, ge=1)
    """Longest answer that is read aloud at an evaluation, in tokens."""
    data: ImageData
    """Where rows come from, how pictures are read, and what to refuse."""

    @model_validator(mode="after")
    def _one_model(self) -> VisionConfig:
        if (self.base_model is None) == (self.scratch is None):
            raise ValueError("give base_model, or scratch for a new model, and not both")
        if self.scratch is not None:
            if not isinstance(self.tuning, Full):
                raise ValueError("a new model trains whole: set tuning: {kind: full}")
            if self.revision is not None:
                raise ValueError("revision has no effect with scratch; leave it out")
        return self


class VisionRecipe:
    """The recipe ``vision``."""

    Config = VisionConfig

    def build(self, config: VisionConfig, context: BuildContext) -> VisionTask:
        """Tokenizer, eyes, model and rows. Raises ConfigError or DataError with what to do."""
        tokenizer, eyes, writer = parts(config, context.cache, context.weights)
        model, described = load_vision_model(config, context, tokenizer, eyes)
        task = VisionTask(
            model=model,
            tokenizer=tokenizer,
            writer=writer,
            eyes=eyes,
            reading=config.data.images,
            context=context,
            base_model=config.base_model or "",
            instruction=config.data.instruction,
            augmentation=config.augmentation,
            read_limit=(config.read_rows, config.answer_tokens),
            described=described,
            most_tokens=config.max_tokens,
        )
        return with_rows(task, config, context) if context.data else task

    def checks(self, config: VisionConfig, context: BuildContext) -> list[Check]:
        """The model's files, and the rows."""
        return vision_view.checks(config, lambda: self._look(config, context))

    def _look(self, config: VisionConfig, context: BuildContext) -> Iterator[Finding]:
        tokenizer, eyes, writer = parts(config, context.cache)
        splits = splits_of(config, writer, eyes, context.seed, context.cache)
        return vision_view.findings(splits, eyes, tokenizer)

    def named_by_rows(self, config: VisionConfig) -> Iterator[Path]:
        """The files of all pictures. Raises DataError for a row of another shape."""
        for _, _, source in places(config.data):
            for record in read_records(source):
                for picture in recognise(record, config.data.instruction or "").pictures:
                    yield from [Path(picture.path)] if picture.path else []

    def rows_as_read(self, config: VisionConfig, cache: Path) -> Iterator[RowAsRead]:
        """Training rows as the model reads them, a picture's tokens counted."""
        tokenizer, eyes, writer = parts(config, cache)
        splits = vision_view.read(config, writer, eyes, 0, cache)
        return (vision_view.as_read(row, tokenizer, eyes) for row in splits.train)

    def survey(self, config: VisionConfig, seed: int, cache: Path) -> Survey:
        """All rows of all splits counted, and what pictures cost."""
        _, eyes, writer = parts(config, cache)
        return vision_view.survey(config, writer, eyes, seed, cache)

    def measure(self, task: VisionTask, evaluation: Evaluation, go_on: GoOn) -> Evaluation:
        """Some held-out rows read aloud and compared; the worst by loss and by error, as they are
        seen."""
        return with_reading(task, evaluation, go_on)

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise ConfigError for what ``predict`` does not take."""
        check(request)

    def predict(self, task: VisionTask, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``image`` -> ``text`` that the model reads in it, and its ``fields``."""
        return predict(task, request)

    def export(
        self, task: VisionTask, config: VisionConfig, to: Path, format: str
    ) -> Mapping[str, Any]:
        """``adapter``, ``merged`` or ``full``, reloaded and compared on a picture."""
        base = untouched_base(config, task.context, task.tokenizer, task.eyes)
        return export_vision(task, base, to, format)


def parts(
    config: VisionConfig, cache: Path, weights: bool = True
) -> tuple[PreTrainedTokenizerBase, Eyes, PromptWriter]:
    """Tokenizer, eyes and the one writer of prompts that this config means."""
    if config.scratch is not None:
        answers = (
            recognise(record, config.data.instruction or "").answer
            for source in config.data.train
            for record in read_records(source)
        )
        tokenizer = new_tokenizer(answers, config.scratch.vocabulary)
        eyes = new_eyes(config.scratch, tokenizer, config.min_pixels, config.max_pixels)
    else:
        assert config.base_model is not None
        name, revision = config.base_model, config.revision
        tokenizer = load_tokenizer(name, revision, cache, weights=weights)
        eyes = load_eyes(
            name,
            revision,
            cache,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            weights=weights,
        )
    mark = str(tokenizer.convert_ids_to_tokens(eyes.image_id))
    if mark == "<|image_pad|>":
        mark = f"<|vision_start|>{mark}<|vision_end|>"
    template = chosen_template(config.data.chat_template, tokenizer)
    return tokenizer, eyes, PromptWriter(tokenizer, template, mark, eyes.image_id)


def splits_of(
    config: VisionConfig, writer: PromptWriter, eyes: Eyes, seed: int, cache: Path
) -> ImageSplits:
    """The prepared rows. Raises DataError where they are not what the config allows."""
    return prepare_images(
        config.data, writer, eyes, max_tokens=config.max_tokens, seed=seed, cache=cache
    )


def with_rows(task: VisionTask, config: VisionConfig, context: BuildContext) -> VisionTask:
    """The task with its training and held-out rows, in their order."""
    splits = splits_of(config, task.writer, task.eyes, context.seed, context.cache)
    mixture = Mixture(splits.sizes, config.data.weights, context.seed)
    held = splits.held_out
    return replace(
        task,
        train=splits.train,
        held=[held[row] for row in drawn(len(held), context)] if held else None,
        held_total=len(held or ()),
        test=splits.test,
        order=mixture.rows_at,
        rows_per_epoch=mixture.rows_per_epoch,
        tokens_per_epoch=sum(len(row.ids) for row in splits.train),
        described={
            **task.described,
            "data": vision_view.data_lines(splits, task.eyes),
            "identities": {**task.described["identities"], **splits.identities},
        },
    )


# ------------------------------------------------------------------ reading aloud


def with_reading(task: VisionTask, evaluation: Evaluation, go_on: GoOn) -> Evaluation:
    """The evaluation with error rates over some rows, and its worst rows as a person sees them."""
    held = task.held
    assert held is not None
    limit, new_tokens = task.read_limit
    rows = read_choice(len(held), limit, task.context.seed)
    started = time.perf_counter()
    read = read_held(task, rows, new_tokens, go_on)
    scores = [
        score_page(found.text, held[row].row.answer) for row, found in zip(rows, read, strict=True)
    ]
    metrics, baselines = dict(evaluation.metrics), dict(evaluation.baselines)
    if rows:
        metrics |= measure(scores)
        metrics["unfinished"] = sum(not found.finished for found in read) / len(read)
        metrics["reading_seconds"] = time.perf_counter() - started
        known = [row.row.answer for row in task.train]
        baselines |= without_looking([held[row].row.answer for row in rows], known)
    by_row = {
        row: (found.text, score) for row, found, score in zip(rows, read, scores, strict=True)
    }
    return replace(
        evaluation,
        metrics=metrics,
        baselines=baselines,
        worst=vision_view.worst(task, evaluation, by_row, new_tokens, go_on),
        of_rows=part_of(task.held_total, evaluation),
    )


def read_choice(total: int, limit: int, seed: int) -> list[int]:
    """Which of the measured rows are read: all, or ``limit`` of them, always the same."""
    if limit >= total:
        return list(range(total))
    return sorted(int(row) for row in rows_at(seed, np.arange(limit), total, stream=-3))


RECIPE = VisionRecipe()
