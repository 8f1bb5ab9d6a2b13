"""The language-model loss without the logits: only supervised positions, a chunk at a time.

For 4 rows of 500 tokens and a vocabulary of 150 000 the logits and their gradient would take 2.4 GB
in fp32. Here the head is applied only where a supervised token is predicted, and each chunk's
gradient is computed right after its loss, in the forward pass, so that no chunk outlives its turn
(the idea of Liger Kernel, Hsu et al. 2024, arXiv:2410.10989, section 3.2, and of Cut Cross-Entropy,
Wijmans et al. 2024, arXiv:2411.09009). Sums are per row: they add up however rows are split.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from headway.engine.fake import kind_of
from headway.models.backbone import Backbone, shape_logits

CHUNK_BYTES = 24 * 2**20
"""Of one fp32 chunk of logits on CPU; a GPU gets four times that."""

NO_LOGIT = -1e4
"""Of a token that is left out: no probability in any precision, and finite when squared."""


def lm_row_sums(
    hidden: Tensor,
    parts: Backbone,
    positions: Tensor,
    targets: Tensor,
    row_of_target: Tensor,
    rows: int,
    *,
    chunk_tokens: int | None = None,
    without: int | None = None,
) -> dict[str, Tensor]:
    """Sum of -log p(target) in nats over the supervised tokens of each row: ``{"loss": [rows]}``.

    ``hidden`` [tokens, hidden] as the body returned it; ``positions`` [n] index it, each at most
    once: hidden[positions[i]] predicts token ``targets[i]`` of row ``row_of_target[i]``.
    Differentiable in ``hidden`` and, when it trains, the head. While the head trains, the gradient
    that arrives must be the same for all rows, as in ``(sums.sum() / weight).backward()``; else
    RuntimeError. ``without``: a token that has no part in the softmax, and is no target.
    """
    weight, bias = parts.head.weight, getattr(parts.head, "bias", None)
    if chunk_tokens is None:
        budget = CHUNK_BYTES * (4 if kind_of(hidden) == "cuda" else 1)
        chunk_tokens = max(32, budget // (4 * weight.shape[0]))
    options = {
        "scale": parts.scale,
        "softcap": parts.softcap,
        "chunk": chunk_tokens,
        "without": without,
        "dtype": _matmul_dtype(hidden, weight),
    }
    sums = _RowSums.apply(hidden, weight, bias, positions, targets, row_of_target, rows, options)
    return {"loss": sums}


@torch.no_grad()
def judged_tokens(
    hidden: Tensor,
    parts: Backbone,
    positions: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int = 256,
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p(target) in nats of each supervised token [n], the likeliest token there [n], and its
    -log p [n]. For display: no gradient."""
    weight, bias = parts.head.weight, getattr(parts.head, "bias", None)
    dtype = _matmul_dtype(hidden, weight)
    weight = weight.to(dtype)
    found = []
    for at, wanted in zip(positions.split(chunk_tokens), targets.split(chunk_tokens), strict=True):
        logits = _logits(hidden[at].to(dtype), weight, bias)
        logits = shape_logits(logits.float(), parts.scale, parts.softcap)
        losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
        top, choice = logits.max(dim=1)
        found.append((losses, choice, logits.logsumexp(dim=1) - top))
    if not found:
        return (hidden.new_zeros(0, dtype=torch.float32), targets, hidden.new_zeros(0))
    losses, choices, of_choices = (torch.cat(column) for column in zip(*found, strict=True))
    return losses, choices, of_choices


class _RowSums(torch.autograd.Function):
    """Loss and gradient in one walk over the chunks; backward only scales what forward found."""

    @staticmethod
    def forward(
        ctx: Any, hidden, weight, bias, positions, targets, row_of_target, rows, options
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        chunk, dtype = options["chunk"], options["dtype"]
        matrix = weight.to(dtype)
        sums = torch.zeros(rows, dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty(len(positions), hidden.shape[1], dtype=dtype, device=hidden.device)
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for start in range(0, len(positions), chunk):
            part = slice(start, start + chunk)
            inputs = hidden[positions[part]].to(dtype)
            raw = _logits(inputs, matrix, bias)
            losses, d_raw = _cross_entropy(
                raw, targets[part], options, needs_hidden or needs_weight or needs_bias
            )
            sums.index_add_(0, row_of_target[part], losses)
            if d_raw is None:
                continue
            if d_bias is not None:
                d_bias += d_raw.sum(0)
            d_raw = d_raw.to(dtype)
            if needs_hidden:
                torch.mm(d_raw, matrix, out=d_hidden[part])
            if d_weight is not None:
                d_weight += d_raw.T @ inputs
        ctx.save_for_backward(positions, row_of_target, d_hidden, d_weight, d_bias)
        ctx.like = (hidden, weight.dtype)
        ctx.needs = (needs_hidden, needs_weight, needs_bias)
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (upstream,) = grads
        positions, row_of_target, d_picked, d_weight, d_bias = ctx.saved_tensors
        like, weight_dtype = ctx.like
        d_hidden = None
        if ctx.needs[0]:
            d_hidden = torch.zeros_like(like)
            factor = upstream[row_of_target].unsqueeze(1)
            d_hidden[positions] = (d_picked * factor).to(like.dtype)
        if d_weight is not None or d_bias is not None:
            if upstream.numel() > 1 and upstream.stride(0) != 0:
                raise RuntimeError(
                    "the head trains, so every row must get the same gradient: "
                    "use (sums.sum() / weight).backward(), not a weighted sum over rows"
                )
            d_weight = None if d_weight is None else (d_weight * upstream[0]).to(weight_dtype)
            d_bias = None if d_bias is None else d_bias * upstream[0]
        return d_hidden, d_weight, d_bias, None, None, None, None, None


def _cross_entropy(
    raw: Tensor, wanted: Tensor, options: dict[str, Any], with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Losses [n] and, in fp32, their gradient in the head's raw output [n, vocabulary].

    The log of the normaliser is read off the largest probability, which is at least 1/vocabulary,
    so one softmax gives the loss and the gradient.
    """
    scale, softcap = options["scale"], options["softcap"]
    logits = shape_logits(raw.float(), scale, softcap) if softcap or scale != 1.0 else raw
    if options.get("without") is not None:
        logits[:, options["without"]] = NO_LOGIT
    index = wanted.unsqueeze(1)
    top, top_at = logits.max(dim=1, keepdim=True)
    probabilities = torch.softmax(logits, dim=1, dtype=torch.float32)
    # torch's CPU softmax misses its denominator by 5e-6 over 49,152 tokens (same-mathematics.md).
    total = probabilities.sum(dim=1, keepdim=True)
    log_total = top.float() - (probabilities.gather(1, top_at) / total).log()
    losses = (log_total - logits.gather(1, index).float()).squeeze(1)
    if not with_gradient:
        return losses, None
    probabilities /= total
    d_logits = probabilities.scatter_add_(1, index, torch.full_like(log_total, -1.0))
    if softcap is not None:
        d_logits *= 1 - (logits / softcap) ** 2
    if scale != 1.0:
        d_logits *= scale
    return losses, d_logits


def _logits(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(inputs, weight, None if bias is None else bias.to(inputs.dtype))


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Autocast's type where autocast is on: said aloud, since a backward runs outside of it."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
