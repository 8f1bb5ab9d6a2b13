"""What the operating system tells of this machine, read where Linux writes it down.

Everything takes the root of the file system, so that a test can write another machine down.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from headway.records import Finding

ROOT = Path("/")
DEAF = {"sh", "bash", "dash", "ash", "zsh", "fish", "busybox", "sleep", "tail", "sshd", "jupyter"}
"""What, as the first process, does not pass signals on to training."""
MANY_DEAD = 10
OPEN_FILES, SHARED_MEMORY_BYTES = 4096, 1 << 30
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
WATCHED = {
    "CUDA_VISIBLE_DEVICES": "which GPUs a process sees",
    "NVIDIA_VISIBLE_DEVICES": "which GPUs a container sees",
    "HF_HUB_OFFLINE": "models and data sets are taken from the cache only",
    "TRANSFORMERS_OFFLINE": "models are taken from the cache only",
    "HF_DATASETS_OFFLINE": "data sets are taken from the cache only",
    "HF_ENDPOINT": "another hub than huggingface.co",
    "HF_HOME": "where downloads are kept",
    "HF_TOKEN": "who you are on the hub",
    "HEADWAY_CACHE": "where headway keeps prepared data",
    "OMP_NUM_THREADS": "CPU threads of torch",
    "MKL_NUM_THREADS": "CPU threads of torch",
    "PYTORCH_CUDA_ALLOC_CONF": "how torch keeps GPU memory",
    "PYTORCH_ALLOC_CONF": "how torch keeps GPU memory",
    "CUDA_LAUNCH_BLOCKING": "every GPU kernel is waited for: for finding errors, and slow",
    "CUBLAS_WORKSPACE_CONFIG": "whether matrix products can be repeatable",
    "LD_PRELOAD": "a library in every process",
    "LD_LIBRARY_PATH": "where libraries come from, CUDA's too",
    "PYTHONPATH": "where Python modules come from",
    "PYTHONHASHSEED": "the order of sets",
    "RANK": "this process counts as one of several (torchrun)",
    "WORLD_SIZE": "this process counts as one of several (torchrun)",
    "NCCL_DEBUG": "what NCCL says",
    "NCCL_P2P_DISABLE": "GPUs do not talk to each other directly",
    "HTTP_PROXY": "the way to the network",
    "HTTPS_PROXY": "the way to the network",
    "https_proxy": "the way to the network",
    "AWS_ENDPOINT_URL_S3": "another store than Amazon's",
    "AWS_ACCESS_KEY_ID": "who you are at S3",
    "AWS_SECRET_ACCESS_KEY": "who you are at S3",
    "GOOGLE_APPLICATION_CREDENTIALS": "who you are at Google",
    "WANDB_API_KEY": "who you are at Weights & Biases",
}


# ------------------------------------------------------------------ memory and processors


def memory_bytes(root: Path = ROOT) -> int | None:
    """Memory of the machine; None where Linux does not say."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """What this process's control group may use, of memory; None without a limit."""
    names = ("memory.max", "memory/memory.limit_in_bytes", "memory.limit_in_bytes")
    limits = [int(t) for t in _of_cgroups(root, names) if t.strip().isdigit()]
    # cgroup v1 writes "no limit" as the largest number of whole pages.
    return min((limit for limit in limits if limit < 1 << 60), default=None)


def usable_memory_bytes(root: Path = ROOT) -> int | None:
    """The smaller of the machine's memory and the control group's limit."""
    known = [n for n in (memory_bytes(root), memory_limit_bytes(root)) if n is not None]
    return min(known, default=None)


def cpu_limit(root: Path = ROOT) -> float | None:
    """Processors' worth of time that the control group may use; None without a limit."""
    shares = []
    for text in _of_cgroups(root, ("cpu.max",)):
        quota, _, period = text.strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            shares.append(int(quota) / int(period))
    v1 = root / "sys/fs/cgroup/cpu"
    quota, period = _text(v1 / "cpu.cfs_quota_us"), _text(v1 / "cpu.cfs_period_us")
    if quota.strip().isdigit() and period.strip().isdigit():  # -1: no limit
        shares.append(int(quota) / int(period))
    return min(shares, default=None)


def usable_cpus(root: Path = ROOT) -> int:
    """Processors on which this process may run."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def swap_bytes(root: Path = ROOT) -> int:
    """Swap in use now."""
    text = _text(root / "proc/meminfo")
    sizes = dict(re.findall(r"^(Swap\w+):\s+(\d+) kB", text, re.MULTILINE))
    return 1024 * (int(sizes.get("SwapTotal", 0)) - int(sizes.get("SwapFree", 0)))


def memory_findings(root: Path = ROOT) -> Iterator[Finding]:
    """Memory, and a control group that gives less than the machine has."""
    total, limit = memory_bytes(root), memory_limit_bytes(root)
    if total is None:
        yield Finding(level="note", name="memory", what="how much memory there is, is not known")
        return
    if limit is not None and limit < total:
        yield Finding(
            level="warning",
            name="memory",
            what=f"this container may use {limit / 1e9:.1f} GB of the machine's "
            f"{total / 1e9:.1f} GB",
            why="beyond it the process is killed without a word (exit code 137)",
            fix="Count with the smaller number; rent more, or lower hardware.microbatch_size",
        )
    else:
        yield Finding(level="note", name="memory", what=f"{total / 1e9:.1f} GB")
    if (used := swap_bytes(root)) > 1 << 30:
        yield Finding(
            level="warning",
            name="memory",
            what=f"{used / 1e9:.1f} GB of swap are in use",
            why="training that swaps is many times slower",
            fix="End what else runs here",
        )


# ------------------------------------------------------------------ processes and limits


def first_process(root: Path = ROOT) -> Iterator[Finding]:
    """Whether the first process passes signals on and collects the dead."""
    name = _text(root / "proc/1/comm").strip()
    dead = zombies(root)
    shown = f"the first process is {name or 'not known'}" + (
        f"; {dead} dead processes are not collected" if dead else ""
    )
    if name not in DEAF and dead < MANY_DEAD:
        yield Finding(level="note", name="process 1", what=shown)
    else:
        yield Finding(
            level="warning",
            name="process 1",
            what=shown,
            why="it does not pass SIGTERM on, so training is killed without its last save when the "
            "machine is taken away; and nobody collects dead processes",
            fix="Start the container with --init, or let `headway train CONFIG --supervise` be "
            "its first process",
        )


def zombies(root: Path = ROOT) -> int:
    """Processes that ended and that nobody has asked about."""
    found = 0
    for stat in (root / "proc").glob("[0-9]*/stat"):
        found += _text(stat).rpartition(")")[2].split()[:1] == ["Z"]
    return found


def limit_findings(open_files: int, root: Path = ROOT) -> Iterator[Finding]:
    """``open_files``: the soft limit of this process, -1 for none; and shared memory's size."""
    if 0 <= open_files < OPEN_FILES:
        yield Finding(
            level="warning",
            name="limits",
            what=f"this process may open {open_files} files",
            why="data with many files, many GPUs and uploads need more, and fail in odd places",
            fix=f"ulimit -n {16 * OPEN_FILES} before training, or --ulimit nofile in docker",
        )
    else:
        yield Finding(
            level="note",
            name="limits",
            what=f"{open_files if open_files >= 0 else 'any number of'} open files",
        )


def shared_memory(root: Path = ROOT) -> Iterator[Finding]:
    """The size of /dev/shm."""
    place = root / "dev/shm"
    try:
        size = os.statvfs(place)
    except OSError:
        yield Finding(level="note", name="shared memory", what=f"there is no {place}")
        return
    yield from shared_memory_of(size.f_blocks * size.f_frsize)


def shared_memory_of(total_bytes: int) -> Iterator[Finding]:
    """Whether so much is enough."""
    size = f"{total_bytes / 1e9:.2f} GB of shared memory"
    if total_bytes >= SHARED_MEMORY_BYTES:
        yield Finding(level="note", name="shared memory", what=size)
        return
    yield Finding(
        level="warning",
        name="shared memory",
        what=size,
        why="several GPUs talk through it, and die with a bus error when it is full; one GPU "
        "needs none",
        fix="Start the container with --shm-size=8g, or --ipc=host",
    )


# ------------------------------------------------------------------ language and environment


def locale_findings(encodings: Mapping[str, str]) -> Iterator[Finding]:
    """``encodings``: what files' names, texts and the screen are written in."""
    other = {k: v for k, v in encodings.items() if v.lower().replace("-", "") not in ("utf8", "")}
    if not other:
        yield Finding(level="note", name="locale", what="UTF-8 everywhere")
        return
    named = ", ".join(f"{kind}: {encoding}" for kind, encoding in other.items())
    yield Finding(
        level="warning",
        name="locale",
        what=f"not everything is UTF-8 here ({named})",
        why="text with other letters than English ones can fail when it is shown or read",
        fix="export LC_ALL=C.UTF-8, or PYTHONUTF8=1",
    )


def environment(variables: Mapping[str, str], cpus: int) -> Iterator[Finding]:
    """Settings that surprise later; what is secret is only said to be set."""
    if variables.get("CUDA_LAUNCH_BLOCKING") == "1":
        yield _surprise("CUDA_LAUNCH_BLOCKING=1", "each GPU kernel is waited for: slow", "unset it")
    if "RANK" in variables or "WORLD_SIZE" in variables:
        yield _surprise(
            "RANK or WORLD_SIZE is set",
            "training would wait for other processes that nobody starts",
            "unset them, unless this is torchrun",
        )
    threads = variables.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > cpus:
        yield _surprise(
            f"OMP_NUM_THREADS={threads}",
            f"that is more than the {cpus} processors here: threads wait for each other",
            f"set it to {cpus}, or unset it",
        )
    set_here = [f"{name}={shown(name, variables[name])}" for name in WATCHED if name in variables]
    what = ", ".join(set_here) or "nothing that changes training is set"
    yield Finding(level="note", name="environment", what=what)


def shown(name: str, value: str) -> str:
    """A variable's value as it may be printed: secrets and credentials in addresses are not."""
    if SECRET.search(name):
        return "(set)"
    if "://" in value:
        parts = urlsplit(value)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else "")
    return value if value else '""'


def _surprise(what: str, why: str, fix: str) -> Finding:
    return Finding(level="warning", name="environment", what=what, why=why, fix=fix)


# ------------------------------------------------------------------ reading


def _of_cgroups(root: Path, names: tuple[str, ...]) -> Iterator[str]:
    """The content of these files in this process's control group and in all above it."""
    top = root / "sys/fs/cgroup"
    own = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    place = top / own[1] if own else top
    for folder in (place, *place.parents):
        if folder == top or top in folder.parents:
            yield from (text for name in names if (text := _text(folder / name)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


__all__ = [
    "cpu_limit",
    "environment",
    "first_process",
    "limit_findings",
    "locale_findings",
    "memory_bytes",
    "memory_findings",
    "memory_limit_bytes",
    "shared_memory",
    "shared_memory_of",
    "shown",
    "swap_bytes",
    "usable_cpus",
    "usable_memory_bytes",
    "zombies",
]
