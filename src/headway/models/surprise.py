"""How surprised a language model is by the tokens of a step: what its hidden states do not say.

48 + 17 = 75 leaves a hidden state much like that of 48 + 17 = 65, but the model gives the digit 7
less probability than the digit 6. The surprise at a token is -log p of it, in nats, given all
before it, by the model as it is now. The special token at which scores are read is left out of the
softmax: it is no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from headway.models.backbone import Backbone, own_layer
from headway.models.lm_loss import lm_row_sums

EVIDENCE = 12
"""Numbers that ``evidence`` gives for each score."""
SCALE = 16.0
"""A head that begins beside hundreds of hidden numbers of size 1 hardly looks at twelve of that
size: after 60 updates its AUC was 0.57 without them, 0.60 with them, 0.69 with them four times,
0.72 sixteen times as large (docs/results/step-confidence.md)."""


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Which tokens of a flat microbatch belong to which step, and which score to which step."""

    at: Tensor
    """[m] place of each token; the place before it is in the same row."""
    step: Tensor
    """[m] its step, counted through the microbatch."""
    of_score: Tensor
    """[n] the step of each score."""
    first: Tensor
    """[n] the first step of that score's row."""
    count: int
    """Steps in the microbatch."""

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> StepTokens:
        """From a microbatch's inputs."""
        return cls(
            at=inputs["step_tokens"],
            step=inputs["step_of_token"],
            of_score=inputs["step_of_score"],
            first=inputs["first_step"],
            count=inputs["steps"],
        )


@dataclass(frozen=True, slots=True)
class Alphabet:
    """What is to be known of a tokenizer's tokens."""

    digits: Tensor
    """[tokens] whether each holds a digit."""
    mark: int | None
    """The special token, if there is one."""


def alphabet_of(tokenizer: PreTrainedTokenizerBase, token: str | None) -> Alphabet:
    """Of all tokens; ``token`` is where scores are read."""
    pieces = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    mark = None if token is None else int(tokenizer.convert_tokens_to_ids(token))
    digits = torch.tensor([any(map(str.isdigit, piece)) for piece in pieces])
    return Alphabet(digits, mark)


def surprise(
    hidden: Tensor, parts: Backbone, input_ids: Tensor, steps: StepTokens, mark: int | None
) -> Tensor:
    """-log p in nats of each token [m] of the steps. Differentiable in ``hidden`` [tokens, width].

    ``input_ids`` [1, tokens]. The output head gets no gradient.
    """
    count = len(steps.at)
    numbers = torch.arange(count, device=hidden.device)
    found = lm_row_sums(
        hidden, frozen(parts), steps.at - 1, input_ids[0, steps.at], numbers, count, without=mark
    )
    return found["loss"]


def frozen(parts: Backbone) -> Backbone:
    """The same with the output head's own weights and no gradient for them.

    The row that trains in another mode than ``full`` is the special token's: it has no part here.
    """
    head = own_layer(parts.head)
    bias = getattr(head, "bias", None)
    weights = {"weight": head.weight.detach(), "bias": None if bias is None else bias.detach()}
    return replace(parts, head=SimpleNamespace(**weights))


def evidence(found: Tensor, digit: Tensor, steps: StepTokens) -> Tensor:
    """[n, EVIDENCE] of the surprise [m] at the tokens, of which ``digit`` [m] hold a digit.

    For the score's own step: mean and highest over its tokens, over those with a digit, and over
    its last number; and of each the highest in its row so far: what follows from a wrong step is no
    surprise any more. Each as SCALE * (log(1 + nats) - 1); over no token the surprise is 0.
    """
    found = found.clamp(min=0)
    zeros = found.new_zeros(steps.count)

    def pooled(chosen: Tensor) -> list[Tensor]:
        counted = chosen.to(found.dtype)
        total = zeros.index_add(0, steps.step, found * counted)
        number = zeros.index_add(0, steps.step, counted)
        highest = zeros.scatter_reduce(0, steps.step, found * counted, "amax")
        return [total / number.clamp(min=1), highest]

    kinds = (torch.ones_like(digit), digit, last_numbers(digit, steps))
    own = torch.stack([values for chosen in kinds for values in pooled(chosen)], 1).log1p()
    numbers = torch.arange(steps.count, device=found.device)
    seen = (numbers >= steps.first[:, None]) & (numbers <= steps.of_score[:, None])
    so_far = torch.where(seen[:, :, None], own, 0.0).amax(1)
    return SCALE * (torch.cat([own[steps.of_score], so_far], 1) - 1)


def last_numbers(digit: Tensor, steps: StepTokens) -> Tensor:
    """[m] which tokens are in the last unbroken run of tokens with a digit of their step: where a
    step says its result."""
    places = torch.arange(len(digit), device=digit.device)
    last = places.new_zeros(steps.count).scatter_reduce(0, steps.step, places * digit, "amax")
    others_before = (~digit).long().cumsum(0)
    return digit & (others_before == others_before[last[steps.step]])


def means_of_steps(found: Tensor, steps: StepTokens) -> Tensor:
    """[n] mean surprise at the tokens of each score's step; 0 over no token. Differentiable."""
    zeros = found.new_zeros(steps.count)
    number = zeros.index_add(0, steps.step, torch.ones_like(found))
    total = zeros.index_add(0, steps.step, found)
    return (total / number.clamp(min=1))[steps.of_score]


def output_width(parts: Backbone) -> int:
    """Tokens in the softmax."""
    return int(frozen(parts).head.weight.shape[0])
