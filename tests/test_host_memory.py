"""The process keeps little beside its tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from headway.engine.host_memory import CACHES, keep_few_kernels, use_one_heap

KEPT = """
import ctypes, sys, torch
from headway.engine.host_memory import keep_few_kernels

class Heap(ctypes.Structure):
    _fields_ = [(f"field_{i}", ctypes.c_size_t) for i in range(7)]
    _fields_ += [("used", ctypes.c_size_t), ("free", ctypes.c_size_t), ("top", ctypes.c_size_t)]

heap = ctypes.CDLL(None).mallinfo2
heap.restype = Heap
if sys.argv[1] == "few":
    keep_few_kernels(16)
weight = torch.randn(256, 256).bfloat16()
before = heap().used
for tokens in range(1, 129):
    torch.randn(tokens, 256).bfloat16() @ weight.T
print(heap().used - before)
"""


def kept_bytes(which: str) -> int:
    """Heap still in use in a fresh process after bf16 products of 128 shapes."""
    environment = {k: v for k, v in os.environ.items() if k not in CACHES}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", KEPT, which]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is measured through glibc")
def test_kernels_of_many_shapes_do_not_pile_up() -> None:
    many = kept_bytes("many")
    if many < 10e6:
        pytest.skip(f"nothing piles up on this processor: {many} bytes after 128 shapes")
    assert kept_bytes("few") < 0.4 * many


def test_a_capacity_that_the_user_chose_stays(monkeypatch: Any) -> None:
    monkeypatch.setenv(CACHES[0], "77")
    monkeypatch.setenv(CACHES[1], "")
    monkeypatch.delenv(CACHES[1])
    keep_few_kernels(16)
    assert [os.environ[name] for name in CACHES] == ["77", "16"]


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has this option")
def test_one_heap_is_taken_where_the_c_library_has_the_option() -> None:
    assert use_one_heap()
