"""The uploader's own journal: what was sent, skipped, refused and deleted, and when.

Nothing depends on it: what is in the bucket is asked of the bucket. It says what happened, where
(each line has the bucket's URL), and it spares a restart from comparing again what was verified.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from headway.upload.layout import Copy, Parcel, lacking
from headway.upload.sending import Unsendable

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadEvent:
    """Something the run's journal and terminal should know."""

    kind: Literal["sent", "failed", "skipped", "deleted", "warning"]
    step: int
    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a person who waits is shown."""

    steps: tuple[int, ...]
    """Checkpoints that are not verified in the bucket yet; the one being sent is the first."""
    left_bytes: int
    """Of all of them, less what was handed over of the one being sent."""
    bytes_per_second: float | None
    """Since this attempt's first upload; None before one."""
    waiting_for: str = ""
    """The last answer of a bucket that does not work."""


class Ledger:
    """Appends JSON lines from any thread. A torn last line of a killed process is cut off."""

    def __init__(self, path: Path, url: str = "") -> None:
        """``url``: the bucket that the lines are about."""
        self.path = path
        self._about = {"url": url} if url else {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o666)
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._fd, whole)

    def append(self, event: str, *, sync: bool = False, **facts: Any) -> None:
        """One line; ``sync``: wait until the disk has it. A full disk costs the line, no more."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = (
            json.dumps({"event": event, "at": at, **self._about, **facts}, separators=(",", ":"))
            + "\n"
        )
        with self._lock:
            if self._fd < 0:
                return
            with contextlib.suppress(OSError):
                os.write(self._fd, line.encode())
                if sync:
                    os.fsync(self._fd)

    def close(self) -> None:
        """Sync and close; closing twice is harmless."""
        with self._lock:
            if self._fd >= 0:
                with contextlib.suppress(OSError):
                    os.fsync(self._fd)
                os.close(self._fd)
                self._fd = -1


class Known:
    """What one bucket holds, as far as its uploader knows. The uploader's lock guards it."""

    def __init__(self, path: Path, url: str) -> None:
        self.claims = verified_copies(read_ledger(path), url)
        """Prefix -> step of what the ledger says is there, until the bucket was asked."""
        self.claimed: dict[int, Parcel] = {}
        """By step: submitted, and to be sent if its claim is wrong."""
        self.verified: dict[int, str] = {}
        """Step -> prefix."""
        self._uncompared: dict[str, Copy] = {}
        """By prefix: listed before its checkpoint was submitted, so only its manifest counted."""
        self._places: set[tuple[int, int]] = set()
        """(attempt, step) of what is or was verified there."""
        self._unsendable: dict[tuple[int, int], Unsendable] = {}

    def add(self, copy: Copy | Parcel) -> None:
        """A copy is verified."""
        self.verified[copy.step] = copy.prefix
        self._places.add((copy.attempt, copy.step))

    def refuse(self, parcel: Parcel, why: Unsendable) -> None:
        """A checkpoint cannot be sent."""
        self._unsendable[parcel.attempt, parcel.step] = why

    def forget(self, copy: Copy) -> None:
        """A copy was deleted."""
        if self.verified.get(copy.step) == copy.prefix:
            del self.verified[copy.step]

    def lost(self) -> dict[int, Unsendable]:
        """Step -> why it cannot be sent, where nothing newer is in the bucket instead."""
        newest = max(self._places, default=(-1, -1))
        places = sorted(self._unsendable)
        return {place[1]: self._unsendable[place] for place in places if place > newest}

    def holds(self, parcel: Parcel) -> bool:
        """Whether a copy of it is verified; one that was listed too early is compared now."""
        if self.verified.get(parcel.step) != parcel.prefix:
            return False
        copy = self._uncompared.pop(parcel.prefix, None)
        if copy is None or not lacking(parcel.files, copy.files):
            return True
        del self.verified[copy.step]
        self._places.discard((copy.attempt, copy.step))
        return False

    def confirm(self, listed: Iterable[Copy]) -> list[Parcel]:
        """The bucket was asked: what is listed of the claims is there; returns what is not."""
        there = {copy.prefix: copy for copy in listed if copy.committed}
        for copy in (there[prefix] for prefix in self.claims if prefix in there):
            parcel = self.claimed.get(copy.step)
            ours = parcel if parcel and parcel.prefix == copy.prefix else None
            if ours is None:
                self._uncompared[copy.prefix] = copy
            if ours is None or not lacking(ours.files, copy.files):
                self.add(copy)
        missing = [p for step, p in self.claimed.items() if self.verified.get(step) != p.prefix]
        self.claims, self.claimed = {}, {}
        return missing


def read_ledger(path: Path) -> list[Entry]:
    """Every readable line, oldest first; empty if there is none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def highest_token(entries: list[Entry], url: str) -> int:
    """The highest token of a lease on this bucket that a process here ever held; 0: none did."""
    ours = (entry for entry in entries if entry.get("url") == url)
    return max((int(e["token"]) for e in ours if e.get("event") == "leased"), default=0)


def verified_copies(entries: list[Entry], url: str | None = None) -> dict[str, int]:
    """Prefix -> step of every copy that was verified in a bucket and not deleted since.

    ``url``: that bucket; None: any. A line without a URL says nothing about a certain bucket.
    """
    there: dict[str, int] = {}
    for entry in entries:
        if url is not None and entry.get("url") != url:
            continue
        if entry.get("event") == "sent":
            there[str(entry["prefix"])] = int(entry["step"])
        elif entry.get("event") == "deleted":
            there.pop(str(entry["prefix"]), None)
    return there
