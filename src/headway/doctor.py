"""``headway doctor``: what is wrong with this machine, before there is a config.

Each question is answered by the operating system or by trying, never by a table of known machines.
"""

from __future__ import annotations

import importlib.metadata
import locale
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from headway.devices import (
    gpu_findings,
    own_threads,
    product_findings,
    seen_torch,
    torch_findings,
)
from headway.machine import cpu_name
from headway.preflight import prove_folder
from headway.preflight.folder import sync_seconds
from headway.preflight.host import (
    environment,
    first_process,
    limit_findings,
    locale_findings,
    memory_findings,
    shared_memory,
    usable_cpus,
)
from headway.preflight.network import reach, sane_clock
from headway.records import Check, Finding

HUB = "https://huggingface.co"
EXTRAS = {
    "bitsandbytes": "qlora and 8-bit optimizers",
    "gguf": "GGUF models",
    "datasets": "Hugging Face data sets",
    "botocore": "s3:// buckets",
    "google-auth": "gs:// buckets",
    "zstandard": "upload.archive: tar.zst",
}
"""Package -> what it is for; none is needed without."""


def checks(
    folder: Path | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Check]:
    """Questions about this machine; ``folder``: whose disk, left out: the working directory's."""
    place = folder or Path.cwd()
    set_here = os.environ if variables is None else variables
    yield Check("python", python_findings)
    yield Check("torch", lambda: torch_findings(seen_torch()))
    yield Check("gpu", gpus)
    yield Check("product", product)
    yield Check("cpu", own_threads)
    yield Check("memory", memory_findings)
    yield Check("disk", lambda: disk_findings(place))
    yield Check("network", lambda: network_findings(set_here))
    yield Check("clock", lambda: sane_clock([Path(__file__)]))
    yield Check("process 1", first_process)
    yield Check("locale", lambda: locale_findings(encodings()))
    yield Check("limits", lambda: limit_findings(open_files()))
    yield Check("shared memory", shared_memory)
    yield Check("environment", lambda: environment(set_here, usable_cpus()))


def python_findings() -> Iterator[Finding]:
    """Which Python, and which of the libraries that change what headway can do."""
    apart = "its own environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    yield note(
        "python",
        f"Python {platform.python_version()} ({8 * struct.calcsize('P')} bit), {apart}; "
        f"{platform.system()} {platform.release()}; {cpu_name()}",
    )
    named = ("headway", "transformers", "peft", "safetensors")
    yield note("python", ", ".join(f"{n} {importlib.metadata.version(n)}" for n in named))
    extras = {name: installed(name) for name in EXTRAS}
    there = [f"{name} {version}" for name, version in extras.items() if version]
    missing = [f"{name} ({EXTRAS[name]})" for name, version in extras.items() if not version]
    if there:
        yield note("python", f"also {', '.join(there)}")
    if missing:
        yield note("python", f"not installed: {', '.join(missing)}")


def installed(package: str) -> str:
    """Its version; empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def gpus() -> Iterator[Finding]:
    """Each GPU that torch sees."""
    seen = seen_torch()
    for gpu in seen.gpus:
        yield from gpu_findings(gpu, "bf16")
    if not seen.gpus:
        yield note("gpu", "none" + (" (CUDA_VISIBLE_DEVICES hides it)" if seen.hidden else ""))


def product() -> Iterator[Finding]:
    """A small product of matrices on each device."""
    yield from product_findings(torch.device("cpu"))
    for index in range(torch.cuda.device_count()):
        yield from product_findings(torch.device("cuda", index))


def disk_findings(place: Path) -> Iterator[Finding]:
    """What the disk of a folder does, and how fast a MiB gets there."""
    import tempfile

    found = list(prove_folder(place))
    yield from found
    if any(finding.level == "blocker" for finding in found):
        return
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as folder:
        seconds = sync_seconds(Path(folder))
    yield note("disk", f"1 MiB written and synced in {1000 * seconds:.1f} ms (median of 5)")


def network_findings(variables: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the hub that is configured answers."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if variables.get(name, "").upper() in ("1", "TRUE", "YES", "ON"):
            yield note("network", f"{name} is set: the hub is not asked")
            return
    yield from reach(variables.get("HF_ENDPOINT") or HUB)


def encodings() -> dict[str, str]:
    """What file names, texts and the screen are written in here."""
    return {
        "file names": sys.getfilesystemencoding(),
        "texts": locale.getpreferredencoding(False),
        "screen": getattr(sys.stdout, "encoding", None) or "",
    }


def open_files() -> int:
    """How many files this process may open; -1 for any number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return -1 if soft == resource.RLIM_INFINITY else soft


def note(name: str, what: str) -> Finding:
    """Something that is as it is."""
    return Finding(level="note", name=name, what=what)
