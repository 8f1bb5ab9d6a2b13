"""What a run needs of the disk under it, tried out in a folder of its own that is deleted again.

A checkpoint exists by one rename, survives by fsync, and belongs to one writer by ``lockf``. There
are disks (network mounts, FUSE, shared folders of a host) on which one of them is not so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from headway.records import Finding
from headway.system import fsync_directory

TRIED = ".preflight-"
LEFT_SECONDS = 3600.0
"""What is older was left by a process that was killed."""
SLOW_SYNC_SECONDS = 1.0
LOCKED, FREE, FAILED = 3, 4, 5
TRY_TO_LOCK = f"""
import fcntl, sys
try:
    fcntl.lockf(open(sys.argv[1], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except (BlockingIOError, PermissionError):
    sys.exit({LOCKED})
except OSError:
    sys.exit({FAILED})
sys.exit({FREE})
"""
"""Another process: a process is never refused what it holds itself."""


def _refused_elsewhere(path: Path) -> bool:
    command = [sys.executable, "-I", "-S", "-c", TRY_TO_LOCK, str(path)]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == LOCKED


@dataclass(frozen=True)
class Disk:
    """What the kernel is asked for; a test gives one that does something else."""

    rename: Callable[[Path, Path], object] = os.rename
    sync: Callable[[Path], object] = fsync_directory
    lock: Callable[[int], object] = lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    refused_elsewhere: Callable[[Path], bool] = _refused_elsewhere


def prove_folder(folder: Path, disk: Disk | None = None) -> Iterator[Finding]:
    """Make, write, sync, rename and lock in ``folder``; leaves nothing, not even ``folder``.

    Reads back what was written. Yields one blocker for the first thing that does not work.
    """
    made = _missing(folder)
    place = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        place = Path(tempfile.mkdtemp(prefix=TRIED, dir=folder))
        yield from _proved(place, disk or Disk())
    except OSError as error:
        yield _refused(folder, error)
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
        for path in made:
            try:
                path.rmdir()
            except OSError:  # somebody else uses it by now
                break


def sync_seconds(place: Path, size_bytes: int = 1 << 20, times: int = 5) -> float:
    """Median time in which one more file of ``size_bytes`` reaches the disk. Raises OSError."""
    took = []
    for number in range(times):
        started = time.perf_counter()
        _write(place / f"sync-{number}", secrets.token_bytes(size_bytes))
        took.append(time.perf_counter() - started)
    return sorted(took)[times // 2]


def _proved(place: Path, disk: Disk) -> Iterator[Finding]:
    folder, content = place.parent, secrets.token_bytes(4096)
    before, after = place / "before", place / "after"
    before.mkdir()
    seconds = sync_seconds(before, size_bytes=4096, times=3)
    _write(before / "file", content)
    disk.sync(before)
    disk.rename(before, after)
    disk.sync(place)
    if before.exists() or (after / "file").read_bytes() != content:
        yield _cannot(folder, "does not rename a folder in one piece")
        return
    if not _refuses_to_overwrite(place, after, disk):
        yield _cannot(folder, "renames a folder over another one that is not empty")
        return
    if why := _no_lock(after / "file", disk):
        yield Finding(
            level="blocker",
            name="folder",
            what=f"{folder}: {why}",
            why="two processes could write one run at the same time",
            fix="Put run.root on a disk that knows POSIX locks (a local disk does); for NFS mount "
            "with locks, not nolock or local_lock",
        )
        return
    usage = shutil.disk_usage(folder)
    if seconds > SLOW_SYNC_SECONDS:
        yield Finding(
            level="warning",
            name="folder",
            what=f"{folder}: a file of 4 kB takes {seconds:.1f} s to reach the disk",
            why="each checkpoint waits for the disk a dozen times",
            fix="Put run.root on a local disk, and a copy elsewhere with upload.to",
        )
    yield Finding(
        level="note",
        name="folder",
        what=f"{folder}: writes, syncs ({1000 * seconds:.1f} ms), renames and locks; "
        f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f} GB",
    )


def _sweep(folder: Path) -> None:
    for left in folder.glob(f"{TRIED}*"):
        if time.time() - left.stat().st_mtime > LEFT_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _refuses_to_overwrite(place: Path, taken: Path, disk: Disk) -> bool:
    other = place / "other"
    other.mkdir()
    (other / "file").write_bytes(b"")
    try:
        disk.rename(other, taken)
    except OSError as error:
        return error.errno in (errno.ENOTEMPTY, errno.EEXIST)
    return False


def _no_lock(path: Path, disk: Disk) -> str:
    """Why a lock on this disk is none; empty if it is one."""
    with path.open("r+b") as stream:
        try:
            disk.lock(stream.fileno())
        except OSError as error:
            return f"this disk gives no lock (lockf: {error.strerror})"
        if not disk.refused_elsewhere(path):
            return "this disk gives one lock to two processes"
    return ""


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _missing(folder: Path) -> list[Path]:
    """The folder and its parents that are not there yet, the deepest first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _cannot(folder: Path, what: str) -> Finding:
    return Finding(
        level="blocker",
        name="folder",
        what=f"{folder}: this disk {what}",
        why="a checkpoint becomes one by a rename that happens wholly or not at all",
        fix="Put run.root on a local disk, and a copy elsewhere with upload.to",
    )


def _refused(folder: Path, error: OSError) -> Finding:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return Finding(
        level="blocker",
        name="folder",
        what=f"{folder}: {error.strerror or error} ({error.filename or folder})",
        why="the run's journal and checkpoints are written there",
        fix="Free space there, or set run.root to a disk with room"
        if full
        else "Give this user the right to write there, or set run.root to another folder",
    )


__all__ = ["Disk", "prove_folder", "sync_seconds"]
