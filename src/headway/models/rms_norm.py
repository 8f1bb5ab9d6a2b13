"""RMSNorm as one autograd node that keeps its input and one number a token.

Transformers writes it as five passes whose intermediate results all stay for backward. Here the
output also comes in bf16 where autocast would turn it into bf16 at the next linear layer anyway, so
that the layers that read it share one copy. Zhang and Sennrich 2019, arXiv:1910.07467.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from headway.engine.fake import is_fake


def fuse_rms_norm(model: nn.Module) -> int:
    """Give every RMSNorm of the model the fused arithmetic; returns how many got it.

    Found by its name, ``weight`` and ``variance_epsilon``, and by the class's own forward giving
    the same numbers on random input; a norm with another arithmetic keeps its own.
    """
    fused = 0
    for module in model.modules():
        named = type(module).__name__.endswith("RMSNorm")
        if named and hasattr(module, "variance_epsilon") and _same(module):
            module.forward = MethodType(_forward, module)
            fused += 1
    return fused


def _forward(self: Any, x: Tensor) -> Tensor:
    """Replaces the forward of one instance. [..., width] -> [..., width]."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    out: Tensor = _RmsNorm.apply(x, self.weight, self.variance_epsilon, dtype)
    return out


class _RmsNorm(torch.autograd.Function):
    """y = w * x / sqrt(mean(x^2) + eps); with n = x / rms: dx = (g - n * mean(g * n)) / rms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        upstream = grads[0].float()
        normed = x.float() * scale
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (upstream * normed).flatten(0, -2).sum(0).to(weight.dtype)
        d_x = None
        if ctx.needs_input_grad[0]:
            g = upstream * weight
            along = torch.linalg.vecdot(g, normed, dim=-1).div_(x.shape[-1]).unsqueeze(-1)
            d_x = g.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype)
        return d_x, d_weight, None, None


@torch.no_grad()
def _same(module: Any) -> bool:
    """Whether the class's own forward is this arithmetic."""
    weight = module.weight
    if is_fake(weight):
        return True  # named and shaped like one; the run compares the numbers
    x = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0))
    x = x.to(weight.device, weight.dtype)
    own = type(module).forward(module, x).float()
    rtol = 1e-5 if weight.dtype == torch.float32 else 2e-2
    ours = _RmsNorm.apply(x, weight, module.variance_epsilon, x.dtype).float()
    return bool(torch.allclose(own, ours, rtol=rtol, atol=rtol))
