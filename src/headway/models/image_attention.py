"""Attention within each picture, many pictures at once: those of one size share one call.

Transformers cuts Qwen's vision attention at the ends of the pictures and calls it once for each, in
each layer: for strips of text nearly all of the time goes into the calls. Here pictures of the same
number of patches are stacked, so there are as many calls as sizes. The arithmetic is unchanged.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.engine.fake import is_fake, kind_of
from headway.models.backbone import base_model

SHORT_PATCHES = 256
"""A picture of more keeps no matrix of its patches with each other."""


def stack_pictures(model: nn.Module) -> int:
    """Let every vision attention of Qwen's kind take pictures of one size together; how many.

    Found by its parts, and by the class's own forward giving the same numbers.
    """
    fused = 0
    for module in base_model(model).modules():
        parts = ("qkv", "proj", "num_heads", "scaling")
        kind = type(module).__name__
        named = kind.endswith("VisionAttention") and all(hasattr(module, part) for part in parts)
        both_ways = named and not getattr(module, "is_causal", True)
        if both_ways and (is_fake(module) or _same(module)):
            module.forward = MethodType(_stacked, module)
            fused += 1
    return fused


def _stacked(
    self: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **unused: Any,
) -> Tensor:
    """Replaces the forward of one instance. [patches, width] -> [patches, width]."""
    assert position_embeddings is not None
    patches = hidden_states.shape[0]
    qkv = self.qkv(hidden_states).reshape(patches, 3, self.num_heads, -1)
    query, key, value = qkv.unbind(1)
    cos, sin = (part.unsqueeze(-2).float() for part in position_embeddings)
    query, key = _turned(query, cos, sin), _turned(key, cos, sin)
    lengths = cu_seqlens.diff().tolist()
    order = _by_length(lengths, hidden_states.device)
    if order is not None:
        query, key, value = (part[order[0]] for part in (query, key, value))
    found, start = [], 0
    for length in sorted(set(lengths)):
        count = lengths.count(length)
        stop = start + count * length
        q, k, v = (
            part[start:stop].unflatten(0, (count, length)).transpose(1, 2)
            for part in (query, key, value)
        )
        out = _attended(q, k, v, self.scaling)
        found.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
        start = stop
    whole = found[0] if len(found) == 1 else torch.cat(found)
    done: Tensor = self.proj(whole if order is None else whole[order[1]])
    return done


def _attended(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """[pictures, heads, patches, width] each. On a CPU torch's kernel takes two to three times as
    long for sequences as short as a strip's; the matrices of long ones are not kept."""
    if kind_of(query) != "cpu" or query.shape[-2] > SHORT_PATCHES:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    return torch.softmax(query * scale @ key.mT, -1) @ value


def _turned(part: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary places on [patches, heads, width], as Transformers computes them."""
    wide = part.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(part.dtype)


def _by_length(lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """(patches with the pictures sorted by length, the way back), or None if they are already."""
    order = sorted(range(len(lengths)), key=lambda n: lengths[n])
    if order == list(range(len(lengths))):
        return None
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    there = torch.cat([torch.arange(starts[n], starts[n + 1]) for n in order])
    back = torch.empty_like(there)
    back[there] = torch.arange(len(there))
    return there.to(device), back.to(device)


@torch.no_grad()
def _same(module: Any) -> bool:
    """Whether the class's own forward gives the same for pictures of three sizes."""
    floating = [p for p in module.proj.parameters() if p.is_floating_point()]
    width = getattr(module.proj, "in_features", None)
    if not floating or not isinstance(width, int):
        return False
    weight = floating[0]
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(20, width, generator=drawn).to(weight.device, weight.dtype)
    angle = torch.randn(20, width // module.num_heads, generator=drawn).to(weight.device)
    ends = torch.tensor([0, 6, 10, 16, 20], dtype=torch.int32, device=weight.device)
    turned = (angle.cos(), angle.sin())
    try:
        own = type(module).forward(module, x, cu_seqlens=ends, position_embeddings=turned)
        ours = _stacked(module, x, ends, turned)
    except (TypeError, RuntimeError, ValueError):
        return False
    exact = 1e-4 if own.dtype == torch.float32 else 3e-2
    return bool(torch.allclose(own, ours, rtol=exact, atol=exact))
