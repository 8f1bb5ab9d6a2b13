"""Another process still wants to read these: what a live follower has not settled is not pruned.

A follower (the upload sidecar) holds a lock beside the checkpoints while it lives, and lists what
it is done with. A checkpoint that it has not seen yet is therefore safe from the moment of its
commit; and a follower that was killed holds nothing, because the kernel drops its lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from headway.checkpoint.disk import explained
from headway.errors import RunLocked

LOCK_NAME = "follower.lock"
SETTLED_NAME = "follower.json"
TRIES = 20
PAUSE_SECONDS = 0.02

Place = tuple[int, str]
"""(step, attempt): what names one committed checkpoint of a run."""


class Follower:
    """One process that reads a run's checkpoints while another writes them; a context manager."""

    def __init__(self, root: Path) -> None:
        """``root``: the run directory."""
        self.root = root
        self._fd = -1
        self._settled: frozenset[Place] | None = None

    def __enter__(self) -> Follower:
        """From now on nothing is pruned that is not settled. Raises RunLocked, CheckpointError."""
        path = self.root / LOCK_NAME
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise explained(error, f"opening {path}") from error
        if not self._is_locked():
            self._close()
            raise RunLocked(
                f"{self.root} is followed by another process, which holds {path}: one is enough"
            )
        self.settle(())  # what an earlier follower was done with may have gone to another bucket
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def settle(self, places: Iterable[Place]) -> None:
        """Nothing is wanted of these any more; of every other one it is. Replaces the last list.

        Written in place: half a list counts as none. A full disk keeps what is listed pinned.
        """
        settled = frozenset(places)
        if settled == self._settled:
            return
        with contextlib.suppress(OSError):
            (self.root / SETTLED_NAME).write_text(json.dumps(sorted(settled)) + "\n")
            self._settled = settled

    def _is_locked(self) -> bool:
        for _ in range(TRIES):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(PAUSE_SECONDS)  # it may only be a trainer that asks who follows
                continue
            return True
        return False

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1


def awaited(root: Path, places: Collection[Place]) -> list[Place]:
    """Those of ``places`` that a live follower of the run still wants; none where none lives."""
    if not is_followed(root):
        return []
    try:
        settled = _listed(root / SETTLED_NAME)
    except (OSError, ValueError, TypeError):  # being written, or the disk was full: keep all
        settled = set()
    return [place for place in places if place not in settled]


def is_followed(root: Path) -> bool:
    """Whether a follower of this run is alive."""
    try:
        fd = os.open(root / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared: two that ask at the same time do not take each other for a follower.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _listed(path: Path) -> set[Place]:
    return {(int(step), str(attempt)) for step, attempt in json.loads(path.read_text())}


__all__ = ["Follower", "Place", "awaited", "is_followed"]
