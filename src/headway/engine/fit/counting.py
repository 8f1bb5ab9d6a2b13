"""Counts what a piece of work holds in memory, and the arithmetic it does, operation by operation.

Works alike on real tensors and on tensors without numbers: every operation's results are looked at,
a storage counts from the moment it is first seen until nothing refers to it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from headway.engine.fake import kind_of

GPU_BLOCK_BYTES = 512
"""CUDA's caching allocator rounds every request up to this (c10/cuda/CUDACachingAllocator.h)."""


def _hidden_gemm_4bit(a: Tensor, packed: Tensor, shape: Any, *rest: Any, **more: Any) -> int:
    """bitsandbytes unpacks the weight inside of its product."""
    return int(math.prod(shape)) * a.element_size()


def _flops_gemm_4bit(a: Tensor, packed: Tensor, shape: Any, *rest: Any, **more: Any) -> int:
    return 2 * (a.numel() // a.shape[-1]) * int(math.prod(shape))


def _flops_cpu_attention(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    """Scores and their use; the flash kernel skips what is masked, so a causal one does half."""
    batch, heads, tokens, width = query.shape
    causal = (more.get("is_causal") or (len(rest) > 1 and rest[1])) is True
    done = 2 * batch * heads * tokens * key.shape[2] * (width + value.shape[3])
    return int(done // 2 if causal else done)


def _flops_cpu_attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any
) -> int:
    batch, heads, tokens, width = query.shape
    causal = any(each is True for each in rest)
    done = 2 * batch * heads * tokens * key.shape[2] * (3 * width + 2 * value.shape[3])
    return int(done // 2 if causal else done)


HIDDEN_BYTES: Mapping[str, Callable[..., int]] = {"bitsandbytes::gemm_4bit": _hidden_gemm_4bit}
"""What an operation holds while it runs and never shows, by its name."""
OWN_FLOPS: Mapping[str, Callable[..., int]] = {
    "bitsandbytes::gemm_4bit": _flops_gemm_4bit,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _flops_cpu_attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _flops_cpu_attention_backward,
}
"""Arithmetic of operations that torch's own table of FLOPs does not have."""


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes alive and at most alive, and floating point operations, while it is entered."""

    def __init__(self, watch_width: int | None = None) -> None:
        """``watch_width``: also count tables of this last width apart (logits: the vocabulary)."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self.timeline: list[tuple[str, int]] = []
        """Each operation in order: its name, and the bytes alive when it was done."""
        self.watched_bytes = 0
        """At most alive of the tables that are counted apart."""
        self.flops = 0
        self._width = watch_width
        self._watched_live = 0
        self._seen: dict[int, tuple[int, bool, weakref.ref[Any]]] = {}

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count what was there before; the bytes that were new here."""
        before = self.live_bytes
        for tensor in tensors:
            self._see(tensor, watch=False)
        return self.live_bytes - before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do it, and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name
        hidden = HIDDEN_BYTES[name](*args, **kwargs) if name in HIDDEN_BYTES else 0
        if name in OWN_FLOPS:
            self.flops += OWN_FLOPS[name](*args, **kwargs)
        elif func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket]
            self.flops += int(count(*args, **kwargs, out_val=out))
        for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor, watch=True)
        self.timeline.append((name, self.live_bytes + hidden))
        self.peak_bytes = max(self.peak_bytes, self.live_bytes + hidden)
        return out

    def _see(self, tensor: Tensor, *, watch: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        if kind_of(tensor) == "cuda":
            size = -(-size // GPU_BLOCK_BYTES) * GPU_BLOCK_BYTES
        watched = watch and tensor.ndim == 2 and tensor.shape[1] == self._width
        # Autograd keeps tensors that Python no longer holds; torch keeps the storage's Python
        # object, and so this reference, for as long as the storage itself.
        gone = weakref.ref(storage, lambda _: self._forget(key))
        self._seen[key] = (size, watched, gone)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        if watched:
            self._watched_live += size
            self.watched_bytes = max(self.watched_bytes, self._watched_live)

    def _forget(self, key: int) -> None:
        size, watched, _ = self._seen.pop(key)
        self.live_bytes -= size
        if watched:
            self._watched_live -= size


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What these tensors take, each storage once."""
    return Counted().hold(tensors)
