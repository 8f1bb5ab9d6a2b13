"""Who else is training: rank, device, and sums over ranks. One process is a world of one.

torchrun sets the environment, torch.distributed does the work; nothing of the kind is written here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn

from headway.errors import ConfigError


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the ranks, and its device.

    Numbers are exchanged from host memory (gloo), so that none of them waits for a GPU.
    """

    device: torch.device
    rank: int = 0
    ranks: int = 1

    @property
    def leads(self) -> bool:
        """Rank 0 writes; the others train."""
        return self.rank == 0

    @property
    def gpus(self) -> int:
        """One a rank; 1 on a CPU, which is one machine however many ranks share it."""
        return self.ranks if self.device.type == "cuda" else 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks, in float64, exact for counts below 2**53."""
        if self.ranks == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(v) for v in total.tolist()]

    def agree(self, *values: int) -> list[int]:
        """The largest of each value on any rank: a stop seen by one rank stops all at the same
        step."""
        if self.ranks == 1:
            return list(values)
        highest = torch.tensor(values)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return [int(v) for v in highest.tolist()]

    def gather(self, rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        """All ranks' rows of numbers, in rank order. Every row has the same length."""
        if self.ranks == 1:
            return rows
        counts = torch.zeros(self.ranks, dtype=torch.int64)
        counts[self.rank] = len(rows)
        dist.all_reduce(counts)
        width = self.agree(len(rows[0]) if rows else 0)[0]
        padded = torch.zeros(int(counts.max()), width, dtype=torch.float64)
        if rows:
            padded[: len(rows)] = torch.tensor(rows, dtype=torch.float64)
        parts = [torch.zeros_like(padded) for _ in range(self.ranks)]
        dist.all_gather(parts, padded)
        return [
            tuple(row)
            for part, n in zip(parts, counts, strict=True)
            for row in part[: int(n)].tolist()
        ]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.agree(0)

    def replicate(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over ranks at its last backward of a step (DDP)."""
        if self.ranks == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            module, device_ids=ids, gradient_as_bucket_view=True
        )


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` takes a GPU where there is one. Raises ConfigError for ``cuda`` without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "hardware.device is cuda, but torch sees no GPU on this machine; "
            "set hardware.device to auto or cpu, or look at nvidia-smi"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world this process belongs to: one process, or torchrun's.

    Under torchrun a clean end leaves by ``os._exit``: gloo's threads can abort the process after
    all work is done, and torchrun would report a failure (seen in 2 of 15 runs with torch 2.13).
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        yield World(choose_device(device))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    place = choose_device(device, local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if not dist.is_initialized():  # a run that rolls back is opened twice in one process
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=timedelta(minutes=30)
        )
    yield World(place, rank, ranks)


def leave(exit_code: int) -> NoReturn:
    """End this process; under torchrun after all ranks are done, without gloo's exit race."""
    if dist.is_available() and dist.is_initialized():
        if exit_code == 0:
            dist.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
