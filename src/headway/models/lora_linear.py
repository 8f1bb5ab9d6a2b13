"""LoRA's arithmetic with its gradient written out: fewer passes over memory, fewer tensors kept.

PEFT injects the adapters and saves them; ``fuse_lora`` only replaces how an adapted layer computes
y = x W^T + s (x A^T) B^T (Hu et al. 2021, arXiv:2106.09685, section 4.1). One autograd node a layer
keeps x and x A^T, adds the low-rank term inside the matrix product and never thinks about a
gradient for W. ``store_frozen_in_bf16`` holds frozen matrices in the type that autocast would cast
them to in every step: the same products bit for bit, from half the memory. The SwiGLU of a gated
feed-forward layer becomes one node too, which recomputes it in backward.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.engine.fake import is_fake
from headway.models.backbone import base_model


def fuse_lora(model: nn.Module) -> int:
    """Give every eligible adapted layer the fused arithmetic; returns how many got it.

    Eligible: PEFT's plain ``lora.Linear`` over ``nn.Linear`` with one active adapter, no dropout,
    no variant (DoRA …), no LoRA bias, a frozen base. Others keep PEFT's own forward, and so does a
    fused layer while its adapter is disabled or merged.
    """
    from peft.tuners.lora.layer import Linear as PeftLinear

    fused = 0
    for module in model.modules():
        if type(module) is PeftLinear and _eligible(module):
            module.forward = MethodType(_lora_forward, module)
            fused += 1
    return fused


def fuse_swiglu(model: nn.Module) -> int:
    """Make act(gate) * up of gated feed-forward layers one autograd node; returns how many.

    Llama, Qwen, Mistral and SmolLM write ``down(act(gate(x)) * up(x))``: found by those names and a
    SiLU, and by the class's own forward giving the same numbers.
    """
    fused = 0
    for module in model.modules():
        names = ("gate_proj", "up_proj", "down_proj", "act_fn")
        gated = all(hasattr(module, name) for name in names) and _is_silu(module.act_fn)
        if gated and _same_swiglu(module):
            module.forward = MethodType(_swiglu_forward, module)
            fused += 1
    return fused


def fuse_gelu(model: nn.Module) -> int:
    """Compute GPT-2's ``gelu_new`` with PyTorch's own kernel; returns how many were replaced.

    The same function (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2, the tanh form), which
    Transformers writes as eight passes over memory: a fifth of a step of a small GPT-2 on CPU.
    """
    fused = 0
    for module in model.modules():
        for name, child in module.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, nn.GELU(approximate="tanh"))
                fused += 1
    return fused


def store_frozen_in_bf16(model: nn.Module) -> int:
    """Hold every frozen fp32 ``nn.Linear`` weight in bf16; returns the bytes saved.

    For runs under bf16 autocast. Embeddings and norms stay fp32; a head tied to the embedding gets
    a bf16 copy of its own, so that it is not cast in every step. Merging adapters into a base
    stored like this would round the base: export reloads it in fp32.
    """
    saved = 0
    base = base_model(model)
    embedding = base.get_input_embeddings()
    # Looked at once: where peft trains some tokens, each look makes a whole new weight.
    embedded = None if embedding is None else embedding.weight
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.dtype != torch.float32:
            continue
        if module.weight.requires_grad:
            continue
        size = module.weight.numel() * 2
        tied = module.weight is embedded
        saved += -size if tied else size
        kept = module.weight.detach().to(torch.bfloat16)
        module.weight = nn.Parameter(kept, requires_grad=False)
    for parameter in base.parameters():
        if parameter.dtype == torch.float32 and not parameter.requires_grad:
            # One tensor still in the mapped safetensors file would keep all of it in memory.
            parameter.data = parameter.data.clone()
    return saved


def _eligible(module: Any) -> bool:
    if len(module.active_adapters) != 1 or type(module.base_layer) is not nn.Linear:
        return False
    name = module.active_adapters[0]
    plain = name in module.lora_A and name not in module.lora_variant
    if not plain or module.fan_in_fan_out or module.lora_bias.get(name):
        return False
    return _dropout(module, name) == 0.0 and not module.base_layer.weight.requires_grad


def _dropout(module: Any, name: str) -> float:
    return float(getattr(module.lora_dropout[name], "p", 0.0))


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Replaces ``peft.tuners.lora.Linear.forward`` on one instance. [..., in] -> [..., out]."""
    if args or kwargs or self.disable_adapters or self.merged or not _eligible(self):
        plain: Tensor = type(self).forward(self, x, *args, **kwargs)
        return plain
    name = self.active_adapters[0]
    base = self.base_layer
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    out: Tensor = _LoraLinear.apply(x, base.weight, base.bias, a, b, self.scaling[name])
    return out


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + c + s (x A^T) B^T, W and c frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight, bias, a, b, scaling: float) -> Tensor:
        dtype = _compute_dtype(x, weight)
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        w, down, up = weight.to(dtype), a.to(dtype), b.to(dtype) * scaling
        low = flat @ down.T
        y = F.linear(flat, w, None if bias is None else bias.to(dtype))
        y.addmm_(low, up.T)
        ctx.save_for_backward(flat, weight, down, up, low)
        ctx.scaling, ctx.x_dtype, ctx.shape = scaling, x.dtype, x.shape
        ctx.types = (a.dtype, b.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        flat, weight, down, up, low = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1]).to(flat.dtype)
        d_low = dy @ up
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (dy @ weight.to(dy.dtype)).addmm_(d_low, down)
            d_x = d_x.to(ctx.x_dtype).view(ctx.shape)
        d_a = (d_low.T @ flat).to(ctx.types[0])
        d_b = (low.T @ dy).T.to(ctx.types[1]) * ctx.scaling
        return d_x, None, None, d_a, d_b, None


def _swiglu_forward(self: Any, x: Tensor) -> Tensor:
    """Replaces the forward of a gated feed-forward layer on one instance."""
    out: Tensor = self.down_proj(_SwiGlu.apply(self.gate_proj(x), self.up_proj(x)))
    return out


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up, keeping only its inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        gate, up = ctx.saved_tensors
        d_up = F.silu(gate).mul_(grads[0])
        d_gate = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return d_gate, d_up


def _is_silu(function: Any) -> bool:
    return isinstance(function, nn.SiLU) or type(function).__name__ == "SiLUActivation"


@torch.no_grad()
def _same_swiglu(module: Any) -> bool:
    """Whether the class's own forward is down(silu(gate(x)) * up(x)), on two random tokens."""
    floating = [p for p in module.gate_proj.parameters() if p.is_floating_point()]
    features = getattr(module.gate_proj, "in_features", None)
    if not isinstance(features, int) or not floating:
        return False
    weight = floating[0]  # the first parameter of a 4-bit layer is packed bytes
    if is_fake(weight):
        return True  # named and shaped like one; the run compares the numbers
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, features, generator=generator).to(weight.device, weight.dtype)
    try:
        own = type(module).forward(module, x)
        rtol, atol = (1e-3, 1e-5) if own.dtype == torch.float32 else (2e-2, 1e-2)
        return bool(torch.allclose(own, _swiglu_forward(module, x), rtol=rtol, atol=atol))
    except (TypeError, RuntimeError):
        return False


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Autocast's type where it is on, else the stored weight's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
