"""A language model with a small head that reads a number off chosen tokens.

The head is an MLP in fp32 whatever the model computes in. It ends in a sigmoid, and its last layer
begins at zero with the training labels' mean as its bias: at step 0 the model answers that mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from headway.errors import ConfigError
from headway.models.attention import hidden_states
from headway.models.backbone import backbone, base_model

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


class ScoreHead(nn.Module):
    """Hidden state [n, width] -> logit [n]; the sigmoid of it is the score in [0, 1]."""

    def __init__(self, width: int, shape: HeadShape) -> None:
        super().__init__()
        layers: list[nn.Module] = []
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

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [n] in fp32, outside of autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits: Tensor = self.layers(hidden.float())[..., 0]
        return logits


class Scorer(nn.Module):
    """A causal language model, whose output head is never asked, and a score head."""

    def __init__(self, language: nn.Module, shape: HeadShape) -> None:
        """Raises ConfigError where the model has no hidden states to read."""
        super().__init__()
        config = base_model(language).config.get_text_config()
        self.language = language
        self.head = ScoreHead(config.hidden_size, shape)
        self.head.to(next(language.parameters()).device)
        read = {id(p) for p in base_model(language).get_input_embeddings().parameters()}
        for parameter in backbone(language).head.parameters():
            if id(parameter) not in read:  # tied weights, and a new token's row, are read too
                parameter.requires_grad_(False)  # the rest has no part in the loss

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, row_ends: Sequence[int], at: Tensor
    ) -> Tensor:
        """Logits [n] at the places ``at`` [n] of a flat microbatch [1, tokens]."""
        hidden = hidden_states(self.language, input_ids, position_ids, row_ends)
        logits: Tensor = self.head(hidden[at])
        return logits


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
