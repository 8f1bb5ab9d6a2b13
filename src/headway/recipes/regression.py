"""Teach a language model to put a number on each step of a chain, or on a whole text.

The number is read off the hidden state at a special token after the step (or at the step's last
token) by a small MLP; the model trains whole, by LoRA or by QLoRA. A text with one score is a chain
of one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, field_validator, model_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from headway.config import CLOSED
from headway.data.chains import Chain, ChainData
from headway.data.chains.checks import doubts
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
from headway.models.attention import recompute
from headway.models.backbone import backbone
from headway.models.hub import load_tokenizer
from headway.models.score import HeadShape, LossName, Scorer, read_of, score_loss
from headway.models.surprise import StepTokens, alphabet_of, means_of_steps, output_width
from headway.models.tuning import Lora, Tuning
from headway.recipes import chain_survey
from headway.recipes.batching import Order, drawn, groups, longest_rows, part_of, rows_of_step
from headway.recipes.chain_rows import ChainRows, ChainText, full_chains
from headway.recipes.chain_view import (
    answered,
    asked,
    predictions_of,
    scored_of,
    scores_of,
    shown,
)
from headway.recipes.checks import chain_findings, pretrained_checks
from headway.recipes.language_model import counts, load_model, untouched_base
from headway.recipes.score_export import export_scorer, saved_scorer
from headway.recipes.score_metrics import measure, reliability
from headway.records import Check, Evaluation, Finding


class RegressionConfig(BaseModel):
    """What to train, on which labels, and where the numbers are read."""

    model_config = CLOSED

    base_model: str
    """A hub name, a folder, a GGUF file, or `package:NAME/FILE` inside an installed package."""
    revision: str | None = None
    """Commit or tag on the hub; left out: the newest."""
    tuning: Tuning = Field(default=Lora(), validate_default=True)
    """Which parameters of the language model train: `full`, `lora` or `qlora`. The head always
    does."""
    head: HeadShape = HeadShape()
    """The MLP between a hidden state and its number."""
    read_at: Literal["token", "last"] = "token"
    """Where a step's number is read: at a special token after it, or at its own last token."""
    token: str = "<CONFIDENCE>"
    """The special token; its embedding row trains in every mode, whether it is new or not."""
    loss: LossName = "bce"
    """`mse`, `huber`, or `bce`: cross-entropy against the target as a soft label."""
    huber_delta: float = Field(default=0.1, gt=0)
    """`huber` only: errors above this, as a share of the range, count linearly."""
    lm_weight: float = Field(default=0.0, ge=0)
    """Also learn to write what is right: so much of the mean surprise at a step's tokens, in nats,
    times its label as a share of the range, is added to its loss while training (Cobbe et al.
    2021, arXiv:2110.14168, section 4.2). It keeps the surprise that the head may be given true."""
    target_range: tuple[float, float] = Field(default=(0.0, 1.0), strict=False)
    """Lowest and highest number there can be. A target outside of it is an error."""
    max_tokens: int = Field(default=1024, ge=8)
    """Longest row in tokens; labelled steps beyond it are counted and not trained on."""
    max_steps: int | None = Field(default=None, ge=1)
    """Longer chains are split into rows of so many steps, the later ones with the steps before
    them as context; left out: never."""
    problem_format: str = "Problem: {problem}\n\nSolution:\n"
    """What stands before the steps; `{problem}` is filled in. Left away where there is none."""
    evidence_format: str = "Evidence:\n{evidence}\n\n"
    """Stands before the problem where a source gives evidence."""
    data: ChainData
    """Where labelled chains come from."""

    @field_validator("target_range")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"the lowest number comes first, and they differ: not {list(value)}")
        return value

    @field_validator("problem_format", "evidence_format")
    @classmethod
    def _has_its_place(cls, value: str, info: Any) -> str:
        place = "{" + info.field_name.removesuffix("_format") + "}"
        if value.count(place) != 1:
            raise ValueError(f"must hold {place} once")
        return value

    @field_validator("token")
    @classmethod
    def _is_a_token(cls, value: str) -> str:
        if not value or any(map(str.isspace, value)):
            raise ValueError(f"must be a text without blanks, such as <CONFIDENCE>: not {value!r}")
        return value

    @model_validator(mode="after")
    def _has_effect(self) -> RegressionConfig:
        fields = type(self).model_fields
        if self.loss != "huber" and self.huber_delta != fields["huber_delta"].default:
            raise ValueError(f"huber_delta has no effect with loss {self.loss}; leave it out")
        if self.read_at != "token" and self.token != fields["token"].default:
            raise ValueError(f"token has no effect with read_at {self.read_at}; leave it out")
        return self

    @property
    def makes_logits(self) -> bool:
        """Whether the output head is asked."""
        return self.head.surprise or self.lm_weight > 0

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Tokens whose rows train."""
        return (self.token,) if self.read_at == "token" else ()


@dataclass
class RegressionTask:
    """A scorer and the chains it learns from."""

    model: Scorer
    text: ChainText
    config: RegressionConfig
    context: BuildContext
    train: ChainRows | None = None
    held: ChainRows | None = None
    test: ChainRows | None = None
    order: Order = field(default=lambda positions: positions)
    rows_per_epoch: int = 0
    tokens_per_epoch: int = 0
    train_mean: float | None = None
    """Mean training label, in the labels' own unit: what a constant would answer."""
    described: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one that chains are written with."""
        return self.text.tokenizer

    def batch_at(self, step: int, halvings: int = 0) -> list[Microbatch]:
        """This rank's share of the batch after ``step``: a pure function."""
        assert self.train is not None
        return list(self._cut(self.train, rows_of_step(self.order, step, self.context), halvings))

    def held_out(self, halvings: int = 0) -> Iterator[Microbatch]:
        """This rank's held-out rows in file order, or those of chains drawn by the seed.

        A drawn chain comes with all its pieces: its first error is a matter of the whole.
        """
        if self.held is not None:
            chains = np.unique(self.held.chain_of)
            chosen = chains[drawn(len(chains), self.context)]
            rows = np.flatnonzero(np.isin(self.held.chain_of, chosen))
            mine = rows[self.context.rank :: self.context.ranks]
            yield from self._cut(self.held, mine.tolist(), halvings)

    def tested(self) -> RegressionTask | None:
        """The same scorer over all test chains; None where there are none."""
        if self.test is None:
            return None
        return replace(self, held=self.test, context=replace(self.context, held_out_rows=None))

    def longest(self, rows: int) -> Microbatch:
        """The longest training rows together, or a made-up one where none were read."""
        source = self.train or full_chains(self.text)
        lengths = np.array([len(row.ids) for row in source.rows])
        return source.microbatch(longest_rows(lengths, rows))

    def _cut(
        self, source: ChainRows, rows: Sequence[int], halvings: int = 0
    ) -> Iterator[Microbatch]:
        def length_of(row: int) -> int:
            return len(source.rows[row].ids)

        for group in groups(rows, length_of, self.model.language, self.context, halvings):
            yield source.microbatch(group)

    def loss(self, model: Any, inputs: Inputs) -> RowSums:
        """Sums over each row's scores: ``loss``, and ``absolute_error`` in the labels' unit.

        With ``lm_weight`` the loss holds that part too, and ``surprise`` is what it is made of: the
        mean surprise at each step's tokens times its label.
        """
        if not self.config.lm_weight:
            return self.observe(model, inputs)[0]
        steps = StepTokens.of(inputs)
        logits, surprise = model.read(*read_of(inputs), steps, teach=True)
        sums, _ = self._judged(logits, inputs)
        written = means_of_steps(surprise, steps) * inputs["targets"]
        taught = torch.zeros_like(sums["loss"]).index_add(0, inputs["row_of_target"], written)
        loss = sums["loss"] + self.config.lm_weight * taught
        return {**sums, "loss": loss, "surprise": taught.detach()}

    def observe(self, model: Any, inputs: Inputs) -> tuple[RowSums, Tensor]:
        """Also [n, 4]: number of the row, step in its chain, predicted, target. Of the scores
        alone, whatever ``lm_weight`` is."""
        steps = StepTokens.of(inputs) if self.config.head.surprise else None
        return self._judged(model(*read_of(inputs), steps=steps), inputs)

    def _judged(self, logits: Tensor, inputs: Inputs) -> tuple[RowSums, Tensor]:
        targets = inputs["targets"]
        losses = score_loss(logits, targets, self.config.loss, self.config.huber_delta)
        low, high = self.config.target_range
        predicted = low + (high - low) * logits.detach().sigmoid()
        truth = low + (high - low) * targets
        zeros = torch.zeros(inputs["rows"], device=logits.device)
        rows = inputs["row_of_target"]
        sums = {
            "loss": zeros.index_add(0, rows, losses),
            "absolute_error": zeros.index_add(0, rows, (predicted - truth).abs()),
        }
        units = inputs["units"].double()
        return sums, torch.cat([units, torch.stack([predicted, truth], 1).double()], 1)

    def recompute_activations(self) -> bool:
        """Keep each layer's input only, from now on."""
        return recompute(self.model.language)

    def saved(self) -> SavedModel:
        """Adapter or whole model, tokenizer, head, and what the head's number means."""
        return saved_scorer(self)

    def facts(self) -> dict[str, Any]:
        """Counts of parameters and data, and the identities that must not change within a run."""
        width = output_width(backbone(self.model.language)) if self.config.makes_logits else None
        return {**counts(self.model), **({"vocabulary": width} if width else {}), **self.described}

    def scores(self, chains: Sequence[Chain]) -> list[list[float | None]]:
        """A number for each step of each chain, in the labels' unit; None beyond max_tokens."""
        return scores_of(self.model, self.text, chains, self.context.precision)


class RegressionRecipe:
    """The recipe ``regression``."""

    Config = RegressionConfig

    def build(self, config: RegressionConfig, context: BuildContext) -> RegressionTask:
        """Tokenizer, model, head and rows. Raises ConfigError or DataError with what to do."""
        tokenizer = load_tokenizer(
            config.base_model, config.revision, context.cache, weights=context.weights
        )
        language, described = load_model(config, context, tokenizer)
        torch.manual_seed(context.seed)
        text = chain_text(config, tokenizer)
        alphabet = alphabet_of(tokenizer, text.token) if config.makes_logits else None
        task = RegressionTask(
            model=Scorer(language, config.head, alphabet),
            text=text,
            config=config,
            context=context,
            described=described,
        )
        return with_chains(task) if context.data else task

    def checks(self, config: RegressionConfig, context: BuildContext) -> list[Check]:
        """The model's files, its tokenizer, and the chains."""
        return pretrained_checks(config, context, None, lambda: look_at_chains(config, context))

    def rows_as_read(self, config: RegressionConfig, cache: Path) -> Iterator[RowAsRead]:
        """Training chains as the model reads them, one after the other."""
        return chain_survey.rows_as_read(config.data, self._text(config, cache))

    def survey(self, config: RegressionConfig, seed: int, cache: Path) -> Survey:
        """Labels, lengths, duplicates and leaks of all splits."""
        return chain_survey.survey(config.data, self._text(config, cache), seed)

    def _text(self, config: RegressionConfig, cache: Path) -> ChainText:
        tokenizer = load_tokenizer(config.base_model, config.revision, cache)
        tokenizer.add_tokens(list(config.special_tokens), special_tokens=True)
        return chain_text(config, tokenizer)

    def measure(self, task: RegressionTask, evaluation: Evaluation, go_on: GoOn) -> Evaluation:
        """Every metric beside a constant's, the predictions, and the worst chains as text."""
        held = task.held
        assert held is not None
        low, high = task.config.target_range
        scored = scored_of(held, evaluation.observed)
        metrics, baselines = measure(scored, low=low, high=high, train_mean=task.train_mean)
        predictions = predictions_of(held, scored)
        by_row = {(line["chain"], line["step"]): line for line in predictions}
        return replace(
            evaluation,
            metrics={"loss": evaluation.metrics["loss"], **metrics},
            baselines={**evaluation.baselines, **baselines},
            worst=tuple(
                replace(row, shown=shown(held, row.row, by_row)) for row in evaluation.worst
            ),
            tables={"predictions": predictions, "reliability": reliability(scored, low, high)},
            of_rows=part_of(len(held), evaluation),
            observed=(),
        )

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise ConfigError for what ``predict`` does not take."""
        asked(request)

    def predict(self, task: RegressionTask, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``problem`` and ``steps`` (or ``prompt``: one text) -> a score each, the first doubtful
        step, and with ``head.checks`` what was found that speaks against steps."""
        chain = asked(request)
        task.model.eval()
        middle = sum(task.config.target_range) / 2
        return answered(chain, task.scores([chain])[0], middle, doubts(task.text.checked(chain)))

    def export(
        self, task: RegressionTask, config: RegressionConfig, to: Path, format: str
    ) -> Mapping[str, Any]:
        """``adapter``, ``merged`` or ``full``, the head beside it; reloaded and compared."""
        return export_scorer(task, untouched_base(config, task.context), to, format)


def chain_text(config: RegressionConfig, tokenizer: PreTrainedTokenizerBase) -> ChainText:
    """How this config writes a chain."""
    return ChainText(
        tokenizer=tokenizer,
        problem_format=config.problem_format,
        evidence_format=config.evidence_format,
        token=config.token if config.read_at == "token" else None,
        max_tokens=config.max_tokens,
        low=config.target_range[0],
        high=config.target_range[1],
        max_steps=config.max_steps,
        checks=config.head.checks,
    )


def look_at_chains(config: RegressionConfig, context: BuildContext) -> Iterator[Finding]:
    """What preflight finds in the chains."""
    tokenizer = load_tokenizer(config.base_model, config.revision, context.cache)
    tokenizer.add_tokens(list(config.special_tokens), special_tokens=True)
    read = chain_survey.as_rows(config.data, chain_text(config, tokenizer), context.seed)
    return chain_findings(read.train, read.report, read.lines)


def with_chains(task: RegressionTask) -> RegressionTask:
    """The task with its training and held-out rows; the head starts at the mean label."""
    config, context = task.config, task.context
    read = chain_survey.as_rows(config.data, task.text, context.seed)
    train, held, test, mixture, report = (
        read.train, read.held, read.test, read.mixture, read.report,
    )  # fmt: skip
    low, high = config.target_range
    mean = train.mean_target([share for _, share in report.sampled])
    task.model.head.start_at(mean)
    return replace(
        task,
        train=train,
        held=held,
        test=test,
        order=mixture.rows_at,
        rows_per_epoch=mixture.rows_per_epoch,
        tokens_per_epoch=train.tokens,
        train_mean=low + (high - low) * mean,
        described={
            **task.described,
            "warnings": list(report.warnings),
            "data": read.lines,
            "identities": {
                **task.described["identities"],
                "data": train.sha256[:16],
                **({"held_out": held.sha256[:16]} if held else {}),
                **({"test": test.sha256[:16]} if test else {}),
            },
        },
    )


RECIPE = RegressionRecipe()
