"""The machine a run is on: how torch is set up there, and what its figures are named after."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from headway.config import RunConfig, fingerprint
from headway.engine.host_memory import keep_few_kernels, use_one_heap
from headway.engine.precision import make_deterministic
from headway.engine.task import Task
from headway.engine.world import World


def cache_folder() -> Path:
    """``$HEADWAY_CACHE``, or ``~/.cache/headway``."""
    return Path(os.environ.get("HEADWAY_CACHE") or Path.home() / ".cache" / "headway")


def prepare_torch(config: RunConfig) -> None:
    """Threads, memory, kernels, and the seed that initial weights are drawn with."""
    use_one_heap()
    keep_few_kernels()
    if config.hardware.threads:
        torch.set_num_threads(config.hardware.threads)
    make_deterministic(config.hardware.deterministic)
    torch.manual_seed(config.run.seed)


def hardware(world: World) -> dict[str, Any]:
    """What the figures of this attempt were measured on."""
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "ranks": world.ranks,
    }
    if world.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(world.device)
        found["gpu_memory_bytes"] = torch.cuda.get_device_properties(world.device).total_memory
    return found


def cpu_name() -> str:
    """The processor's own name where Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """What could change the bits of a result."""
    names = ("headway", "torch", "transformers", "peft")
    return {
        "python": platform.python_version(),
        **{n: importlib.metadata.version(n) for n in names},
    }


def facts_of(config: RunConfig, task: Task, world: World) -> dict[str, Any]:
    """What every checkpoint's manifest says of the run and the machine."""
    return {
        "fingerprint": fingerprint(config),
        "identities": task.facts().get("identities", {}),
        "hardware": hardware(world),
        "versions": versions(),
    }
