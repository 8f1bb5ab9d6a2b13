"""What the operating system is asked for by more than one room: priorities, names on disk, files
that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

NICE = 19
"""At nice 19 Linux gives a thread what training leaves over (weight 15 of 1024): with both cores
busy a step beside a write of 628 MB took 3 % longer, at nice 10 it took 15 % longer."""


def lower_priority() -> None:
    """Let training go before this thread and those it starts. Only Linux knows such priorities."""
    if sys.platform == "linux":
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        except OSError:
            return  # a sandbox may forbid it; then the work only costs more


def fsync_directory(path: Path) -> None:
    """Wait until the names in a directory are on disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some FUSE disks cannot
            raise
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Wait until a file that somebody else wrote is on disk. Raises OSError; follows no link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, flush to the disk, rename; raises OSError.

    Whatever kills us, ``path`` is what it was, or all of ``data``.
    """
    partial = path.with_name(f".partial-{path.name}")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    fsync_directory(path.parent)
