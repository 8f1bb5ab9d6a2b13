"""Reads the machine beside training: free disk, GPU use. A thread of its own, because a network
disk or a driver may take seconds to answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from headway.monitor.history import Gauges
from headway.system import lower_priority

EVERY_SECONDS = 15.0
ANSWER_SECONDS = 10.0
ASK_GPU = ("nvidia-smi", "--query-gpu=index,uuid,utilization.gpu", "--format=csv,noheader,nounits")


class Sampler:
    """Looks every few seconds; ``newest`` gives each look once. A context manager."""

    def __init__(
        self,
        look: Callable[[], Gauges],
        *,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._look = look
        self._every_seconds = every_seconds
        self._found: Gauges | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headway-gauges", daemon=True)

    def newest(self) -> Gauges | None:
        """The last look, if there was one since this was last asked."""
        found, self._found = self._found, None
        return found

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()  # a look that hangs is left behind: the thread is a daemon

    def _run(self) -> None:
        lower_priority()
        while not self._ended.wait(self._every_seconds):
            self._found = self._look()


def look_at(folder: Path, *, gpu: bool) -> Gauges:
    """Disk and GPU now. What cannot be read is None."""
    return Gauges(
        at_seconds=time.monotonic(),
        disk_free_bytes=disk_free_bytes(folder),
        gpu_share=gpu_share() if gpu else None,
    )


def disk_free_bytes(folder: Path) -> int | None:
    """What this user may still write there."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def gpu_share(ask: tuple[str, ...] = ASK_GPU) -> float | None:
    """How busy the least busy of this process's GPUs was in the last second, 0 to 1.

    Asked of nvidia-smi; None where that does not answer.
    """
    try:
        asked = subprocess.run(
            ask, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    shares = [share for name, share in _parsed(asked.stdout) if _ours(name)]
    return min(shares, default=None)


def _parsed(text: str) -> list[tuple[tuple[str, str], float]]:
    """((index, uuid), share) of each line ``0, GPU-5d…, 97``; others say ``[N/A]``."""
    found = []
    for line in text.splitlines():
        index, _, rest = (part.strip() for part in line.partition(","))
        uuid, _, percent = (part.strip() for part in rest.partition(","))
        if percent.isdigit():
            found.append(((index, uuid), int(percent) / 100))
    return found


def _ours(name: tuple[str, str]) -> bool:
    """Whether CUDA_VISIBLE_DEVICES lets this process use it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return True
    return any(
        part.strip() == name[0] or name[1].startswith(part.strip() or "-")
        for part in visible.split(",")
    )
