"""Causal attention on CPU as a few matrix products, for rows of ordinary length.

PyTorch's flash kernel for CPU is made for long sequences; on rows of 100 to 1000 tokens its
backward runs at a tenth of what matrix products reach. Here the query heads that share a key head
become rows of one product (no repeated keys), scores and their softmax are fp32, and a block of
queries never meets the keys of its future. Measured on SmolLM2's shape (9 heads, 3 key heads, width
64), CPU time of forward and backward in bf16 against ``scaled_dot_product_attention``: 2.2 times
faster for 4 rows of 226 tokens and for 2 of 400, 1.35 for one of 1000, and no less exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

QUERY_BLOCK = 128
KEPT_TOKENS = 512
"""Segments up to this length keep their probabilities for backward; longer ones recompute them."""


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    scaling: float,
    dtype: torch.dtype,
) -> Tensor:
    """Causal attention within each of ``lengths``, which lie end to end along the tokens.

    ``query`` [heads, tokens, width], ``key`` and ``value`` [kv heads, tokens, width], multiplied in
    ``dtype``; returns [heads, tokens, width] of ``dtype``. Differentiable in all three.
    """
    out: Tensor = _Grouped.apply(query, key, value, lengths, scaling, dtype)
    return out


class _Grouped(torch.autograd.Function):
    """Softmax attention; d scores = p * (d p - sum(p * d p)), as in any softmax."""

    @staticmethod
    def forward(ctx: Any, query, key, value, lengths, scaling, dtype) -> Tensor:
        groups = query.shape[0] // key.shape[0]
        q = _group(query, key.shape[0], dtype)
        k, v = key.to(dtype).contiguous(), value.to(dtype).contiguous()
        future = _future(lengths, groups, q.device)
        out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=dtype, device=q.device)
        kept = []
        for keys, rows in _blocks(lengths, groups):
            p = _probabilities(q[:, rows], k[:, keys], future, groups, scaling)
            torch.bmm(p, v[:, keys], out=out[:, rows])
            kept.append(p)
        if max(lengths) > KEPT_TOKENS:
            kept = []
        ctx.save_for_backward(q, k, v, *kept)
        ctx.plan = (lengths, scaling, groups)
        ctx.types = (query.dtype, key.dtype, value.dtype)
        return _ungroup(out, query.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        q, k, v, *kept = ctx.saved_tensors
        lengths, scaling, groups = ctx.plan
        d_out = _group(grads[0], k.shape[0], q.dtype)
        d_q = torch.empty_like(q)
        d_k, d_v = (torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (k, v))
        future = None if kept else _future(lengths, groups, q.device)
        for block, (keys, rows) in enumerate(_blocks(lengths, groups)):
            if future is None:
                p = kept[block]
            else:
                p = _probabilities(q[:, rows], k[:, keys], future, groups, scaling)
            d_p = torch.bmm(d_out[:, rows], v[:, keys].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype)
            torch.bmm(d_scores, k[:, keys], out=d_q[:, rows])
            d_k[:, keys] += torch.bmm(d_scores.transpose(1, 2), q[:, rows])
            d_v[:, keys] += torch.bmm(p.transpose(1, 2), d_out[:, rows])
        kinds = ctx.types
        d_query = _ungroup(d_q, k.shape[1]).to(kinds[0]) * scaling
        return d_query, d_k.mul_(scaling).to(kinds[1]), d_v.to(kinds[2]), None, None, None


def _group(heads_first: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """[heads, tokens, width] -> [kv heads, tokens * group, width]: a token's queries together."""
    grouped = heads_first.unflatten(0, (kv_heads, -1)).transpose(1, 2)
    return grouped.to(dtype).reshape(kv_heads, -1, heads_first.shape[-1])


def _ungroup(grouped: Tensor, tokens: int) -> Tensor:
    """The inverse: [kv heads, tokens * group, width] -> [heads, tokens, width]."""
    return grouped.unflatten(1, (tokens, -1)).transpose(1, 2).flatten(0, 1)


def _blocks(lengths: list[int], groups: int) -> Iterator[tuple[slice, slice]]:
    """(keys, rows of the grouped queries) of each block; the keys end where its own tokens do."""
    start = 0
    for length in lengths:
        for begin in range(start, start + length, QUERY_BLOCK):
            end = min(begin + QUERY_BLOCK, start + length)
            yield slice(start, end), slice(begin * groups, end * groups)
        start += length


def _future(lengths: list[int], groups: int, device: torch.device) -> Tensor:
    """[block * group, keys] of 0 and minus infinity, of which every block's mask is a view."""
    block = min(QUERY_BLOCK, max(lengths))
    before = (max(lengths) - 1) // QUERY_BLOCK * QUERY_BLOCK
    triangle = torch.full((block, block), float("-inf"), device=device).triu_(1)
    past = torch.zeros(block * groups, before, device=device)
    return torch.cat([past, triangle.repeat_interleave(groups, 0)], dim=1)


def _probabilities(q: Tensor, k: Tensor, future: Tensor, groups: int, scaling: float) -> Tensor:
    """Softmax of the scaled scores, in fp32, rounded to the products' type at the end."""
    rows, keys = q.shape[1], k.shape[1]
    own = rows // groups
    triangle_at = future.shape[1] - future.shape[0] // groups
    mask = future[:rows, triangle_at - (keys - own) : triangle_at + own]
    scores = torch.baddbmm(mask, q.float(), k.float().transpose(1, 2), alpha=scaling)
    return torch.softmax(scores, dim=-1).to(q.dtype)
