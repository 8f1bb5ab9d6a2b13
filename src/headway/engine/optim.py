"""Optimizers: which parameters decay, and the few kinds that are worth having.

The learning rate is not here: it is a function of the step (``schedule``) that the loop sets.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from headway.errors import ConfigError


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Named parameters that train, in the model's order. Raises ConfigError when there are none."""
    found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not found:
        raise ConfigError(
            "no parameter of the model trains; check task.tuning (with lora: do its "
            "target_modules name any layer of this model?)"
        )
    return found


def decayed(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay belongs to matrices, not to biases and norm gains (GPT-3, arXiv:2005.14165,
    B)."""
    return parameter.ndim >= 2


def make_optimizer(
    kind: str,
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Optimizer:
    """AdamW (fused kernels), or bitsandbytes' with 8-bit state (arXiv:2110.02861).

    Raises ConfigError: an 8-bit kind without bitsandbytes installed.
    """
    named = list(parameters)
    groups = [
        {"params": [p for n, p in named if decayed(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not decayed(n, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "adamw":
        return AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)
    return _eight_bit(kind)(groups, lr=0.0, betas=betas, eps=eps)


def _eight_bit(kind: str) -> Callable[..., Optimizer]:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"train.optimizer is {kind}, which needs bitsandbytes: pip install 'headway[qlora]', "
            "or set train.optimizer to adamw"
        )
    import bitsandbytes

    classes = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}
    made: Callable[..., Optimizer] = getattr(bitsandbytes.optim, classes[kind])
    return made


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set every group's rate for the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip(parameters: list[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale the gradient down to ``max_norm`` if it is longer; returns its norm before. []
    float32."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
