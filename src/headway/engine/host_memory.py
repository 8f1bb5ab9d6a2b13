"""What a CPU process holds beside its tensors is kept small: one heap, and few compiled kernels.

glibc gives each thread a heap of its own that keeps what the thread freed. With the threads of
torch and of the data, LoRA of SmolLM2-135M peaked at 2.65 GB; with one heap at 2.47 GB, no slower.
That heap keeps up to 128 MB it could give back: the kernel clears every page that it gives again,
and freeing the gradients of 1 M weights cost a step 1.2 ms (docs/results/speed.md).

In bf16, oneDNN compiles every matrix product for its shape, and rows differ in length, so each step
brings new shapes. Two caches, torch's and oneDNN's own, keep 1024 each, 0.55 MB a shape in small
pieces all over the heap, which then cannot give back what lies between them (docs/results/speed.md,
"Memory over many steps"; https://github.com/pytorch/pytorch/issues/29893).
"""

from __future__ import annotations

import ctypes
import os
import sys

MIB = 2**20
HEAP = {
    "M_ARENA_MAX": (-8, 1),
    "M_TRIM_THRESHOLD": (-1, 128 * MIB),
    "M_TOP_PAD": (-2, 16 * MIB),
    "M_MMAP_THRESHOLD": (-3, 32 * MIB),
}
"""Options of glibc's ``mallopt``: number, value."""
KERNELS = 128
"""Kept by each cache. A microbatch of 15 rows of different lengths reuses fewer than 64 (replayed
from oneDNN's trace). Too small a cache would compile every product anew, in 0.5 ms each."""
CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


def use_one_heap() -> bool:
    """One heap for all threads, that keeps up to 128 MB; False where glibc is not there."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        return False
    return all(set_option(number, value) == 1 for number, value in HEAP.values())


def keep_few_kernels(kernels: int = KERNELS) -> None:
    """Bound both caches of compiled matrix products, unless the user's environment does.

    They read it at the process's first such product: later it changes nothing.
    """
    for name in CACHES:
        os.environ.setdefault(name, str(kernels))
