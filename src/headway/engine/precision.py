"""In which numbers the model computes, which it stores, and what makes a step repeatable.

| precision | weights that train | frozen weights | matrix products |
|---|---|---|---|
| ``fp32`` | fp32 | fp32 | fp32 |
| ``bf16`` | fp32 (the master copy) | bf16 where only products read them | bf16, by autocast |
| ``bf16_pure`` | bf16 | bf16 | bf16 |

fp16 is not offered: it needs loss scaling, and on CPUs it was measured 180 times slower than fp32.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context a forward pass runs in."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def weights_dtype(precision: str) -> torch.dtype:
    """The type in which trained weights are stored."""
    return torch.bfloat16 if precision == "bf16_pure" else torch.float32


def make_deterministic(wanted: bool) -> None:
    """Choose repeatable kernels; an operation that has none raises RuntimeError and says so.

    Never ``warn_only``: under it PyTorch keeps the faster, unrepeatable backward of flash and of
    memory-efficient attention (``attention_backward.cu``). Call it before the first CUDA product:
    cuBLAS reads its workspace setting then.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    memory: Any = torch.utils.deterministic  # a module whose switch is a property
    memory.fill_uninitialized_memory = False  # it would cost a pass over every new tensor


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Make every draw of torch in this step a function of (seed, step, rank): dropout and noise.

    splitmix64's mixing (Steele et al., OOPSLA 2014) keeps neighbouring steps' streams apart.
    """
    value = _mix(_mix(_mix(seed) ^ step) ^ rank) >> 1
    # Not torch.manual_seed: where CUDA is not in use it queues a stack trace at every call, which
    # costs 0.7 ms a step and never ends.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(value)


def _mix(value: int) -> int:
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
