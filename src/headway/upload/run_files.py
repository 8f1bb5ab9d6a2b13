"""The small files beside the checkpoints: the config, whole, and the journal, piece by piece.

The journal only grows, so each piece holds the whole lines since the last one, under a name that
says from which byte to which. What restores as the journal is the pieces that follow on each other
from byte 0: a prefix of it, whatever was interrupted.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

from headway.upload.layout import DIGEST_DIGITS, RUN_FILES, Segment, Version, chain, segments
from headway.upload.line import Line
from headway.upload.remote import Remote
from headway.upload.sending import held, of_bytes, put, read_regular


@dataclass
class _Growing:
    """How far a growing file was sent."""

    path: Path
    sent_bytes: int | None = None
    """None: the bucket was not asked yet."""


@dataclass
class _Whole:
    """What was sent last of a file that is replaced."""

    path: Path
    number: int = 0
    digest: str = ""


class RunFiles:
    """The files of one attempt. ``add`` from any thread; ``send`` from one."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self._files: dict[str, _Growing | _Whole] = {}
        self._lock = threading.Lock()

    def add(self, key: str, path: Path, *, grows: bool) -> None:
        """``grows``: lines are only ever appended to it."""
        with self._lock:
            if key not in self._files:
                self._files[key] = _Growing(path) if grows else _Whole(path)

    def send(self, remote: Remote, line: Line) -> int:
        """Send what is new in each file; returns how many bytes. Raises RemoteError, Cut."""
        with self._lock:
            files = list(self._files.items())
        return sum(
            self._send_growth(key, file, remote, line)
            if isinstance(file, _Growing)
            else self._send_whole(key, file, remote, line)
            for key, file in files
            if file.path.exists()
        )

    def _send_whole(self, key: str, file: _Whole, remote: Remote, line: Line) -> int:
        data = read_regular(file.path)
        digest = short(data)
        if digest == file.digest:
            return 0
        version = Version(
            file=key, attempt=self.attempt, number=file.number + 1, digest=digest
        )  # fmt: skip
        put(version.key, of_bytes(data), remote, line, lambda what: None)
        file.number, file.digest = version.number, digest
        return len(data)

    def _send_growth(self, key: str, file: _Growing, remote: Remote, line: Line) -> int:
        if file.sent_bytes is None or file.sent_bytes > file.path.stat().st_size:
            file.sent_bytes = common_bytes(key, read_regular(file.path), remote, line)
        start = file.sent_bytes
        piece = read_regular(file.path, start)
        piece = piece[: piece.rfind(b"\n") + 1]  # a half line is still being written
        if not piece:
            return 0
        segment = Segment(
            file=key,
            attempt=self.attempt,
            start=start,
            end=start + len(piece),
            digest=short(piece),
        )
        put(segment.key, of_bytes(piece), remote, line, lambda what: None)
        file.sent_bytes = segment.end
        return len(piece)


def common_bytes(key: str, data: bytes, remote: Remote, line: Line) -> int:
    """How much of a growing file the bucket holds already, piece by piece the same as here."""
    there = held(remote, line, f"{RUN_FILES}{key}/")
    same = 0
    for piece in chain(segments(there.values())):
        if piece.end > len(data) or short(data[piece.start : piece.end]) != piece.digest:
            break
        same = piece.end
    return same


def short(data: bytes) -> str:
    """The first digits of the SHA-256, as names hold them."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]
