"""Bytes that reach the disk, or an error that says why not: write, fsync, hash, never twice."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from headway import system
from headway.checkpoint.manifest import FileFact
from headway.errors import CheckpointError, HeadwayError, StorageFull

CHUNK_BYTES = 4 << 20
"""Large enough that write and hash run outside the interpreter's lock, small enough to share it."""

Data = bytes | bytearray | memoryview

_LFS = b"version https://git-lfs.github.com/spec/"
_FULL = {
    errno.ENOSPC: "the disk is full (ENOSPC)",
    errno.EDQUOT: "your quota on this disk is used up (EDQUOT)",
}


def write_new_file(path: Path, data: Iterable[Data]) -> FileFact:
    """Write ``data`` to a file that must not exist yet, and wait until the disk has it.

    Hashes while writing. Raises StorageFull or CheckpointError; what lies at ``path`` is then worth
    nothing. A failed fsync is never tried again: the kernel marks the lost pages clean, and the
    second try "succeeds" (Rebello et al., Can Applications Recover from fsync Failures?, ATC 2020).
    """
    digest, size = hashlib.sha256(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o666)
        try:
            for chunk in _chunks(data):
                digest.update(chunk)
                _write_all(fd, chunk)
                size += len(chunk)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise explained(error, f"writing {path}") from error
    return FileFact(bytes=size, sha256=digest.hexdigest())


def fsync_directory(path: Path) -> None:
    """Wait until the names in a directory are on disk."""
    try:
        system.fsync_directory(path)
    except OSError as error:
        raise explained(error, f"syncing the directory {path}") from error


def explained(error: OSError, doing: str) -> HeadwayError:
    """The error a person can act on; the OSError stays its cause."""
    if error.errno in _FULL:
        return StorageFull(
            f"{_FULL[error.errno]} while {doing}. Committed checkpoints are untouched. Free space, "
            "or keep fewer checkpoints (checkpoint.keep_last, keep_best), and run the same command."
        )
    return CheckpointError(
        f"the disk refused {doing}: {error.strerror or error}. This save is void; committed "
        "checkpoints are untouched. Check the disk (dmesg, permissions, mount)."
    )


def damage(path: Path, expected: FileFact, *, hashes: bool = True) -> str | None:
    """What is wrong with one file, in words; None when it is what the manifest says."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        return "is a symbolic link" if is_link else f"cannot be opened: {error.strerror}"
    try:
        with os.fdopen(fd, "rb", buffering=0) as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return "is not a regular file"
            if found.st_size != expected.bytes:
                if file.read(len(_LFS)) == _LFS:
                    return "is a Git LFS pointer, not the file itself (git lfs pull fetches it)"
                return f"has {found.st_size} bytes instead of {expected.bytes}"
            if hashes and hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
                return "has other content than was saved (SHA-256 differs)"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _chunks(data: Iterable[Data]) -> Iterator[memoryview]:
    for block in data:
        view = memoryview(block)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


def _write_all(fd: int, chunk: memoryview) -> None:
    written = 0
    while written < len(chunk):
        written += os.write(fd, chunk[written:])
