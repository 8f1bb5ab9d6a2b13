"""One writer per run directory: a lock that names its holder and dies with it.

*Promises.* A second process is refused with the holder's pid, host and start. A holder that is
killed holds nothing, even while a worker it forked lives on: that is why this is ``lockf`` (per
process) and not ``flock`` (inherited over fork). A second lock in one process is refused too.

*Does not promise.* Exclusion between machines on a network disk without locks, where the kernel's
answer is what it is; the lock file stays after the run and means nothing by itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from headway.errors import RunLocked

_LARGEST_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who writes a run."""

    pid: int
    host: str
    started_at: str
    """UTC, ISO 8601."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started_at}"


class RunLock:
    """Holds ``path`` while the ``with`` block runs. Raises RunLocked if another holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def __enter__(self) -> RunLock:
        if _open_here(self.path) is not None:
            # Opening and closing the file again would drop this process's own lock (fcntl(2)).
            raise RunLocked(
                f"this process already holds {self.path} (process {os.getpid()}): a run is trained "
                "once at a time. End the first training before starting the second."
            )
        who = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._is_locked_in_place():
                pass
        except OSError as error:
            if self._fd >= 0:
                who = _written(self._fd)
                self._close()
            raise _refused(self.path, who, error) from error
        who = Holder(
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with contextlib.suppress(OSError):  # on a full disk the lock holds, without a name
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(asdict(who)).encode() + b"\n", 0)
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)  # a reader then sees that nobody claims to hold it
        self._close()

    def _is_locked_in_place(self) -> bool:
        """Lock the file; False if it was moved away meanwhile (``--fresh``) and another is due."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._fd), self.path.stat()):
                return True
        self._close()
        return False

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


def holder(path: Path) -> Holder | None:
    """Who holds the lock now; None if nobody does. For ``headway status``; takes nothing."""
    here = _open_here(path)
    if here is not None:
        return _written(here)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        who = _written(fd)
        return who if who is not None and _is_locked(fd, who) else None
    finally:
        os.close(fd)


def _refused(path: Path, who: Holder | None, error: OSError) -> RunLocked:
    if error.errno in (errno.EACCES, errno.EAGAIN):
        by = str(who) if who else "another process"
        kill = f" (kill {who.pid} on {who.host})" if who else ""
        return RunLocked(
            f"this run is being written by {by}; the lock is {path}. Wait for it, stop it{kill}, "
            "or give this run another name (run.name). A killed process holds nothing: no file "
            "needs to be deleted."
        )
    return RunLocked(
        f"cannot lock {path}: {error.strerror}. Put the run directory (run.root) on a disk that "
        "can be written and that supports POSIX locks."
    )


def _written(fd: int) -> Holder | None:
    """What the holder wrote about itself; None while it is writing, or when nobody holds it."""
    try:
        tree = json.loads(os.pread(fd, _LARGEST_BYTES, 0))
        return Holder(pid=int(tree["pid"]), host=tree["host"], started_at=tree["started_at"])
    except (ValueError, TypeError, KeyError):
        return None


def _open_here(path: Path) -> int | None:
    """A descriptor by which this process has the file open already: lockf knows processes only."""
    try:
        wanted = path.stat()
        numbers = [int(entry.name) for entry in Path("/dev/fd").iterdir()]
    except (FileNotFoundError, ValueError):
        return None
    for fd in numbers:
        try:
            found = os.fstat(fd)
        except OSError:  # the descriptor that listed the directory
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return fd
    return None


def _is_locked(fd: int, who: Holder) -> bool:
    """Whether another process holds the lock, asked without taking it."""
    if sys.platform == "linux":
        query = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind: int = struct.unpack("@hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, query))[0]
        return kind != fcntl.F_UNLCK
    try:
        os.kill(who.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
