"""The uploader's own journal: what was sent, skipped, refused and deleted, and when.

Nothing depends on it: what is in the bucket is asked of the bucket. It says what happened, and it
spares a restart from asking again about what was verified.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Ledger:
    """Appends JSON lines from any thread. A torn last line of a killed process is cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
        line = json.dumps({"event": event, "at": at, **facts}, separators=(",", ":")) + "\n"
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


def verified_copies(entries: list[Entry]) -> dict[str, int]:
    """Prefix -> step of every copy that was verified and not deleted since."""
    there: dict[str, int] = {}
    for entry in entries:
        if entry.get("event") == "sent":
            there[str(entry["prefix"])] = int(entry["step"])
        elif entry.get("event") == "deleted":
            there.pop(str(entry["prefix"]), None)
    return there
