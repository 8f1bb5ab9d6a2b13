"""Fine-tune a chat model on conversations, instructions, questions, or plain text.

Loss on the assistant's tokens, LoRA, QLoRA or all weights, rows without padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerBase

from headway.config import CLOSED
from headway.data.chat import chosen_template
from headway.data.order import Mixture
from headway.data.packing import pack
from headway.data.prepare import Splits, prepare
from headway.data.rows import Prepared
from headway.data.sources import TextData
from headway.engine.task import BuildContext, GoOn
from headway.models.hub import load_tokenizer
from headway.models.tuning import Lora, Tuning
from headway.recipes.batching import drawn
from headway.recipes.checks import pretrained_checks, split_findings
from headway.recipes.export import export_model
from headway.recipes.generate import check, generate
from headway.recipes.language_model import load_model, untouched_base
from headway.recipes.text import TextTask, TokenRow, TokenRows
from headway.records import Check, Evaluation, Finding


class SftConfig(BaseModel):
    """What to fine-tune, how, and on what."""

    model_config = CLOSED

    base_model: str
    """A hub name, a folder, a GGUF file, or `package:NAME/FILE` inside an installed package."""
    revision: str | None = None
    """Commit or tag on the hub; left out: the newest."""
    tuning: Tuning = Field(default=Lora(), validate_default=True)
    """Which parameters train: `full`, `lora` or `qlora`."""
    max_tokens: int = Field(default=2048, ge=8)
    """Longest row in tokens; what happens to a longer one is `data.overlong`."""
    packing: bool = False
    """Join short rows to rows of up to `max_tokens`, attention isolated per example. A step then
    sees `batch_size` packed rows."""
    special_tokens: tuple[str, ...] = Field(default=(), strict=False)
    """New tokens; their embedding rows train in every mode."""
    data: TextData
    """Where rows come from, and what to refuse."""


@dataclass(frozen=True)
class ExampleRows:
    """Prepared examples as training rows: one each, or several packed into one."""

    examples: Prepared
    tokenizer: PreTrainedTokenizerBase
    bins: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.bins)

    def __getitem__(self, row: int) -> TokenRow:
        parts = [self.examples[i] for i in self.bins[row]]
        for _, supervised in parts:
            supervised[:1] = False  # nothing in its own example predicts a first token
        ids = np.concatenate([ids for ids, _ in parts])
        targets = np.flatnonzero(np.concatenate([supervised for _, supervised in parts]))
        ends = tuple(np.cumsum([len(part) for part, _ in parts]).tolist())
        return TokenRow(ids=ids, ends=ends, at=targets - 1, targets=ids[targets])

    def shown(self, row: int) -> dict[str, Any]:
        """File and line, what the model is given, and what it should say."""
        first = self.bins[row][0]
        ids, supervised = self.examples[first]
        answers = np.flatnonzero(supervised)
        start = int(answers[0]) if len(answers) else len(ids)
        return {
            "where": self.examples.where(first),
            "prompt": self.tokenizer.decode(ids[:start].tolist()),
            "reference": self.tokenizer.decode(ids[start:].tolist()),
        }

    def lengths(self) -> NDArray[np.int64]:
        """[rows] tokens of each row, its examples together."""
        sizes = self.examples.lengths
        return np.array([sizes[list(row)].sum() for row in self.bins], dtype=np.int64)


class SftRecipe:
    """The recipe ``sft``."""

    Config = SftConfig

    def build(self, config: SftConfig, context: BuildContext) -> TextTask:
        """Tokenizer, model and rows. Raises ConfigError or DataError with what to do."""
        tokenizer = load_tokenizer(
            config.base_model, config.revision, context.cache, weights=context.weights
        )
        model, described = load_model(config, context, tokenizer)
        task = TextTask(
            model=model,
            tokenizer=tokenizer,
            context=context,
            base_model=config.base_model,
            template=chosen_template(config.data.chat_template, tokenizer),
            described=described,
            most_tokens=config.max_tokens,
        )
        return with_rows(task, config, context, tokenizer) if context.data else task

    def checks(self, config: SftConfig, context: BuildContext) -> list[Check]:
        """The model's files, tokenizer and chat template, and the rows."""
        template = config.data.chat_template
        return pretrained_checks(config, context, template, lambda: look_at_rows(config, context))

    def measure(self, task: TextTask, evaluation: Evaluation, go_on: GoOn) -> Evaluation:
        """Perplexity, and the worst rows as text with each token's loss."""
        perplexity = math.exp(min(evaluation.metrics["loss"], 700.0))
        metrics = {**evaluation.metrics, "perplexity": perplexity}
        return task.show_worst(replace(evaluation, metrics=metrics))

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise ConfigError for what ``predict`` does not take."""
        check(request)

    def predict(self, task: TextTask, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``prompt`` or ``messages`` -> ``text``; greedy unless ``temperature`` is given."""
        return generate(task, request, chat=True)

    def export(self, task: TextTask, config: SftConfig, to: Path, format: str) -> Mapping[str, Any]:
        """``adapter`` (PEFT) or ``merged`` (transformers), reloaded and compared."""
        return export_model(task, untouched_base(config, task.context), to, format)


def look_at_rows(config: SftConfig, context: BuildContext) -> Iterator[Finding]:
    """What preflight finds in the rows. They are prepared once: the build finds them ready."""
    tokenizer = load_tokenizer(config.base_model, config.revision, context.cache)
    return split_findings(splits_of(config, tokenizer, context), tokenizer)


def splits_of(
    config: SftConfig, tokenizer: PreTrainedTokenizerBase, context: BuildContext
) -> Splits:
    """The prepared rows. Raises DataError where they are not what the config allows."""
    return prepare(
        config.data,
        tokenizer,
        max_tokens=config.max_tokens,
        seed=context.seed,
        cache=context.cache,
    )


def with_rows(
    task: TextTask, config: SftConfig, context: BuildContext, tokenizer: PreTrainedTokenizerBase
) -> TextTask:
    """The task with its training and held-out rows, in their order."""
    splits = splits_of(config, tokenizer, context)
    bins, sizes = training_rows(splits.train, config)
    mixture = Mixture(sizes, config.data.weights, context.seed)
    return replace(
        task,
        train=ExampleRows(splits.train, tokenizer, bins),
        held=held_rows(splits, tokenizer, context),
        held_total=len(splits.held_out) if splits.held_out else 0,
        test=ExampleRows(splits.test, tokenizer, one_each(splits.test)) if splits.test else None,
        order=mixture.rows_at,
        rows_per_epoch=mixture.rows_per_epoch,
        tokens_per_epoch=int(splits.train.lengths.sum()),
        described={
            **task.described,
            "data": data_lines(splits, mixture, config),
            "identities": {
                **task.described["identities"],
                "data": splits.train.sha256[:16],
                **({"held_out": splits.held_out.sha256[:16]} if splits.held_out else {}),
                **({"test": splits.test.sha256[:16]} if splits.test else {}),
            },
        },
    )


def training_rows(rows: Prepared, config: SftConfig) -> tuple[list[list[int]], list[int]]:
    """(examples of each row, rows of each source): one example a row, or packed within a source."""
    bins: list[list[int]] = []
    sizes = []
    start = 0
    for size in rows.sizes:
        mine = range(start, start + size)
        if config.packing:
            packed = pack(rows.lengths[start : start + size].tolist(), config.max_tokens)
            found = [[start + i for i in row] for row in packed]
        else:
            found = [[i] for i in mine]
        bins += found
        sizes.append(len(found))
        start += size
    return bins, sizes


def one_each(rows: Prepared) -> list[list[int]]:
    """Every example as a row of its own."""
    return [[example] for example in range(len(rows))]


def held_rows(
    splits: Splits, tokenizer: PreTrainedTokenizerBase, context: BuildContext
) -> TokenRows | None:
    """The held-out examples; with ``held_out_rows`` a part of them, drawn by the seed."""
    if splits.held_out is None:
        return None
    chosen = drawn(len(splits.held_out), context)
    return ExampleRows(splits.held_out, tokenizer, [[int(i)] for i in chosen])


def data_lines(splits: Splits, mixture: Mixture, config: SftConfig) -> list[str]:
    """The data report, and the mix as it will really be sampled."""
    lines = splits.report.lines()
    if config.packing:
        lines.append(f"{len(splits.train):,} examples packed into {mixture.rows_per_epoch:,} rows")
    if len(mixture.sizes) > 1:
        counts = mixture.as_sampled(min(mixture.rows_per_epoch, 100_000))
        shares = [f"{100 * count / sum(counts):.1f} %" for count in counts]
        named = zip((s.path for s in config.data.train), shares, strict=True)
        lines.append("as sampled: " + ", ".join(f"{path} {share}" for path, share in named))
    return lines


RECIPE = SftRecipe()
