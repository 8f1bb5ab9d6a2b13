"""A language model with a small head that reads a number off chosen tokens.

The head is an MLP in fp32 whatever the model computes in. It ends in a sigmoid, and its last layer
begins at zero with the training labels' mean as its bias: at step 0 the model answers that mean.
It may also be given how surprised the model is by each step (``surprise``), and what was checked of
the step without a model (``data.chains.checks``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from headway.errors import ConfigError
from headway.models.attention import hidden_states
from headway.models.backbone import backbone, base_model
from headway.models.surprise import EVIDENCE, SCALE, Alphabet, StepTokens, evidence, surprise

CHECKS = 10
"""Numbers that ``data.chains.checks`` gives for each step, in [0, 1]."""
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class HeadShape(BaseModel):
    """The MLP between a hidden state and its number."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(256,), strict=False)
    """Width of each hidden layer; none at all is a linear head."""
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    """Between the layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """After each activation."""
    surprise: bool = False
    """Also give the head the model's surprise at the step, -log p of its tokens: mean and highest,
    over all tokens, those with a digit and the last number, of this step and the highest so far. It
    costs the output head's product at the tokens of steps."""
    checks: bool = False
    """Also give the head what a calculator and a search for each number find: equations that do not
    hold, numbers from nowhere, and steps that use what is doubtful. For steps of arithmetic."""


class ScoreHead(nn.Module):
    """Hidden state [n, width] and perhaps evidence [n, EVIDENCE] and checks [n, CHECKS] -> logit
    [n]; the sigmoid of it is the score in [0, 1]."""

    def __init__(self, width: int, shape: HeadShape) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width += EVIDENCE * shape.surprise + CHECKS * shape.checks
        for size in shape.hidden:
            layers += [nn.Linear(width, size), ACTIVATIONS[shape.activation]()]
            layers += [nn.Dropout(shape.dropout)] if shape.dropout else []
            width = size
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last).float()

    def start_at(self, mean: float) -> None:
        """Make the untrained head answer ``mean``, a score in (0, 1), whatever it reads."""
        mean = min(max(mean, 1e-3), 1 - 1e-3)
        nn.init.constant_(self.layers[-1].bias, math.log(mean / (1 - mean)))  # type: ignore[arg-type]

    def forward(self, hidden: Tensor, *also: Tensor) -> Tensor:
        """Logits [n] in fp32, outside of autocast; ``also``: the evidence, the checks."""
        with torch.autocast(hidden.device.type, enabled=False):
            read = torch.cat([part.float() for part in (hidden, *also)], 1)
            logits: Tensor = self.layers(read)[..., 0]
        return logits


class Scorer(nn.Module):
    """A causal language model and a score head.

    Its output head is asked only for the surprise at the tokens of steps, and does not train.
    """

    digits: Tensor

    def __init__(
        self, language: nn.Module, shape: HeadShape, alphabet: Alphabet | None = None
    ) -> None:
        """``alphabet``: needed for surprise. Raises ConfigError where the model has no hidden
        states to read."""
        super().__init__()
        config = base_model(language).config.get_text_config()
        self.language = language
        self.head = ScoreHead(config.hidden_size, shape)
        device = next(language.parameters()).device
        self.head.to(device)
        self.surprise = shape.surprise
        self.mark = alphabet.mark if alphabet else None
        if alphabet:
            self.register_buffer("digits", alphabet.digits.to(device), persistent=False)
        read = {id(p) for p in base_model(language).get_input_embeddings().parameters()}
        for parameter in backbone(language).head.parameters():
            if id(parameter) not in read:  # tied weights, and a new token's row, are read too
                parameter.requires_grad_(False)  # the rest has no part in the loss

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        row_ends: Sequence[int],
        at: Tensor,
        checks: Tensor,
        steps: StepTokens | None = None,
    ) -> Tensor:
        """Logits [n] at the places ``at`` [n] of a flat microbatch [1, tokens].

        ``checks`` [n, CHECKS], or [n, 0] where the head is not given them. ``steps`` must be there
        where it is given the surprise, else it has no effect.
        """
        return self.read(input_ids, position_ids, row_ends, at, checks, steps, teach=False)[0]

    def read(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        row_ends: Sequence[int],
        at: Tensor,
        checks: Tensor,
        steps: StepTokens | None,
        *,
        teach: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """What ``forward`` returns, and the surprise [m] at the steps' tokens, where it was read.

        The head sees its value only; ``teach``: it is read in any case and can be learned from.
        """
        hidden = hidden_states(self.language, input_ids, position_ids, row_ends)
        checks = SCALE * (2 * checks - 1)
        if not (self.surprise or teach):
            return self.head(hidden[at], checks), None
        if steps is None:
            raise ValueError("a head that is given the surprise needs to know the steps' tokens")
        parts = backbone(self.language)
        found = surprise(hidden if teach else hidden.detach(), parts, input_ids, steps, self.mark)
        if not self.surprise:
            return self.head(hidden[at], checks), found
        digit = self.digits[input_ids[0, steps.at]]
        return self.head(hidden[at], evidence(found.detach(), digit, steps), checks), found


def read_of(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Sequence[int], Tensor, Tensor]:
    """What a scorer reads of a microbatch's inputs, beside the steps' tokens."""
    keys = ("input_ids", "position_ids", "row_ends", "at", "checks")
    ids, positions, ends, at, checks = (inputs[key] for key in keys)
    return ids, positions, ends, at, checks


LossName = Literal["mse", "huber", "bce"]


def score_loss(logits: Tensor, targets: Tensor, kind: LossName, huber_delta: float) -> Tensor:
    """The loss of each score [n] against its target [n] in [0, 1], in fp32.

    ``mse`` and ``huber`` of the sigmoid; ``bce`` is cross-entropy against a soft target.
    """
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    scores = logits.sigmoid()
    if kind == "mse":
        return (scores - targets).square()
    if kind == "huber":
        return F.huber_loss(scores, targets, reduction="none", delta=huber_delta)
    raise ConfigError(f"unknown loss {kind!r}")
