"""What torch can compute on here, judged in words: for ``headway check`` and ``headway doctor``.

Asking and judging are apart: what is judged are plain records, so that another machine's GPU, or a
driver that does not fit, can be judged on any machine.
"""

from __future__ import annotations

import os
import platform
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from headway.preflight.host import ROOT, cpu_limit, usable_cpus, usable_memory_bytes
from headway.records import Finding

BF16_CAPABILITY = (8, 0)
"""From Ampere on products of bfloat16 are done in hardware (CUDA C++ Programming Guide, table of
arithmetic instructions); before, torch imitates them in fp32."""
TAKEN_SHARE = 0.1
PROOF_WIDTH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as torch sees it."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]

    @property
    def has_bf16(self) -> bool:
        """Whether products of bfloat16 are done in hardware."""
        return self.capability >= BF16_CAPABILITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """What torch was built for, and what it finds."""

    version: str
    cuda_version: str | None
    """What it was built for; None: for CPUs only."""
    gpus: tuple[Gpu, ...]
    said: str = ""
    """What CUDA said when it could not begin."""
    driver: str | None = None
    """Version of NVIDIA's driver, where there is one."""
    hidden: bool = False
    """CUDA_VISIBLE_DEVICES says that no GPU is to be used."""


def seen_torch(root: Path = ROOT) -> Torch:
    """What torch finds on this machine; loads CUDA where there is one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = torch.cuda.is_available()
    said = " ".join(str(w.message).split(" (Triggered")[0] for w in caught)
    return Torch(
        version=torch.__version__,
        cuda_version=torch.version.cuda,
        gpus=tuple(map(seen_gpu, range(torch.cuda.device_count()))) if found else (),
        said=said,
        driver=driver_version(root),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
    )


def seen_gpu(index: int) -> Gpu:
    """One GPU of those that torch sees."""
    about = torch.cuda.get_device_properties(index)
    free_bytes, memory_bytes = torch.cuda.mem_get_info(index)
    return Gpu(
        name=about.name,
        memory_bytes=memory_bytes,
        free_bytes=free_bytes,
        capability=(about.major, about.minor),
    )


def driver_version(root: Path = ROOT) -> str | None:
    """Of NVIDIA's kernel driver; ``unknown`` where there is a GPU's device and no more."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
        found = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", text)
        return found[1] if found else "unknown"
    except OSError:
        return "unknown" if list((root / "dev").glob("nvidia[0-9]*")) else None


# ------------------------------------------------------------------ judging


def device_findings(
    device: str,
    precision: str,
    seen: Torch | None = None,
    root: Path = ROOT,
    idle_gpu: Literal["blocker", "warning"] = "blocker",
) -> Iterator[Finding]:
    """Whether training can run where ``hardware.device`` says, and what there is of it.

    ``idle_gpu``: what it is that ``auto`` would train on the CPU beside a GPU torch cannot use.
    """
    seen = seen or seen_torch(root)
    if seen.gpus and device != "cpu":
        for gpu in seen.gpus[:1]:
            yield from gpu_findings(gpu, precision)
        return
    if device == "cuda":
        yield _no_gpu(seen, asked=True)
        return
    if device == "auto" and seen.driver and not seen.hidden:
        yield replace(_no_gpu(seen, asked=False), level=idle_gpu)
        if idle_gpu == "blocker":
            return
    yield from cpu_findings(precision, cpu_has_bf16(), usable_cpus(root), usable_memory_bytes(root))


def gpu_findings(gpu: Gpu, precision: str) -> Iterator[Finding]:
    """One GPU: its memory, who else uses it, and whether it computes in the run's precision."""
    bf16 = "bf16" if gpu.has_bf16 else "no bf16"
    yield Finding(
        level="note",
        name="machine",
        what=f"{gpu.name}, {gpu.memory_bytes / 1e9:.1f} GB ({gpu.free_bytes / 1e9:.1f} GB free), "
        f"compute capability {gpu.capability[0]}.{gpu.capability[1]}, {bf16}",
    )
    taken_bytes = gpu.memory_bytes - gpu.free_bytes
    if taken_bytes > TAKEN_SHARE * gpu.memory_bytes:
        yield Finding(
            level="warning",
            name="machine",
            what=f"{taken_bytes / 1e9:.1f} GB of the GPU's memory are taken already",
            why="what another process holds is missing here, and it takes time too",
            fix="nvidia-smi names the processes; end those that are left over",
        )
    if precision != "fp32" and not gpu.has_bf16:
        yield Finding(
            level="warning",
            name="machine",
            what=f"hardware.precision is {precision}, and {gpu.name} has no bfloat16",
            why="torch imitates it: it works, and is slower than fp32",
            fix="Set hardware.precision: fp32, or rent an Ampere GPU or a newer one",
        )


def cpu_findings(
    precision: str, has_bf16: bool | None, cpus: int, memory_bytes: int | None
) -> Iterator[Finding]:
    """Processors, memory, and whether they compute in bfloat16 (None: not known)."""
    memory = f", {memory_bytes / 1e9:.1f} GB" if memory_bytes else ""
    bf16 = "" if has_bf16 is None else ", bf16" if has_bf16 else ", no bf16"
    yield Finding(
        level="note", name="machine", what=f"no GPU is used: {cpus} CPU cores{memory}{bf16}"
    )
    if precision != "fp32" and has_bf16 is False:
        yield Finding(
            level="warning",
            name="machine",
            what=f"hardware.precision is {precision}, and these CPUs have no bfloat16",
            why="it is imitated: it works, and is slower than fp32",
            fix="Set hardware.precision: fp32",
        )


def torch_findings(seen: Torch) -> Iterator[Finding]:
    """torch's build against the driver."""
    built = f"built for CUDA {seen.cuda_version}" if seen.cuda_version else "built for CPUs only"
    driver = f", NVIDIA driver {seen.driver}" if seen.driver else ""
    if seen.driver and not seen.gpus and not seen.hidden:
        yield _no_gpu(seen, asked=False)
    else:
        yield Finding(level="note", name="torch", what=f"torch {seen.version}, {built}{driver}")


def _no_gpu(seen: Torch, asked: bool) -> Finding:
    if seen.hidden:
        fix = "unset CUDA_VISIBLE_DEVICES, or set hardware.device: cpu"
    elif seen.driver and seen.cuda_version is None:
        fix = "Install a torch that is built for CUDA (https://pytorch.org/get-started/locally)"
    elif seen.driver:
        fix = f"Install a torch for an older CUDA than {seen.cuda_version}, or a newer driver; if "
        fix += "nvidia-smi fails too, ask the provider for another machine"
    else:
        fix = "Set hardware.device: auto or cpu; if this machine has a GPU, look at nvidia-smi, "
        fix += "and in a container at --gpus all"
    found = f"there is a GPU (driver {seen.driver})" if seen.driver else "there is no GPU"
    built = f"CUDA {seen.cuda_version}" if seen.cuda_version else "CPUs only"
    heard = f". CUDA says: {seen.said}" if seen.said else ""
    return Finding(
        level="blocker",
        name="machine",
        what=f"{found}, and torch {seen.version} (for {built}) cannot use it{heard}"
        if seen.driver
        else f"hardware.device is cuda, and {found}{heard}",
        why="training would not run"
        if asked
        else "training would run on the CPU, many times slower, while the GPU is paid for",
        fix=fix + ("" if asked or not seen.driver else "; or set hardware.device: cpu"),
    )


# ------------------------------------------------------------------ trying


def cpu_has_bf16() -> bool | None:
    """Whether products of bfloat16 are done in hardware; None where torch cannot tell."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    answers = [getattr(torch.cpu, name, None) for name in CPU_QUESTIONS]
    known = [answer() for answer in answers if answer is not None]
    return any(known) if known else None


CPU_QUESTIONS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def product_findings(device: torch.device) -> Iterator[Finding]:
    """One small product of matrices, compared with what it must be."""
    a = torch.arange(PROOF_WIDTH**2, dtype=torch.float32).view(PROOF_WIDTH, -1).remainder_(7)
    expected = a.double() @ a.double()
    started = time.perf_counter()
    there = a.to(device)
    found = (there @ there).cpu()  # small whole numbers: exact in fp32 and in TF32
    took = 1000 * (time.perf_counter() - started)
    if not torch.equal(found.double(), expected):
        yield Finding(
            level="blocker",
            name="product",
            what=f"{device} multiplies two matrices wrongly",
            why="nothing that is trained here could be trusted",
            fix="Give this machine back; it is broken",
        )
        return
    yield Finding(level="note", name="product", what=f"{device} multiplies, {took:.0f} ms")


def thread_findings(threads: int, cpus: int, limit: float | None) -> Iterator[Finding]:
    """Processors against what the control group gives, and against torch's threads."""
    model = f"{cpus} CPU cores, torch uses {threads} threads"
    usable = min(float(cpus), limit or float(cpus))
    if threads > usable + 0.5:
        yield Finding(
            level="warning",
            name="cpu",
            what=f"{model}, and this container may use {usable:g} cores' time",
            why="threads that have no core wait for each other: slower than fewer threads",
            fix=f"Set hardware.threads: {max(1, int(usable))}",
        )
    else:
        yield Finding(level="note", name="cpu", what=model)


def own_threads(root: Path = ROOT) -> Iterator[Finding]:
    """``thread_findings`` of this process."""
    yield from thread_findings(torch.get_num_threads(), usable_cpus(root), cpu_limit(root))
