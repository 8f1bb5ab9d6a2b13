"""The small files beside the checkpoints: config and evaluations, whole, the journal in pieces.

The journal only grows, so each piece holds the whole lines since the last one, under a name that
says from which byte to which. What restores as the journal is the pieces that follow on each other
from byte 0: a prefix of it, whatever was interrupted.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.system import write_whole
from headway.upload.layout import (
    DIGEST_DIGITS,
    RUN_FILES,
    Segment,
    Version,
    chain,
    first_attempt,
    is_safe,
    newest_versions,
    segments,
)
from headway.upload.line import Line
from headway.upload.objects import RemoteFile
from headway.upload.remote import Remote
from headway.upload.sending import TRIES_PER_FILE, held, is_same, of_bytes, put, read_regular


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
    seen: tuple[int, int] | None = None
    """Its time and size when it was read last."""


class RunFiles:
    """The files of one attempt. ``add`` from any thread; ``send`` from one."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self._files: dict[str, _Growing | _Whole] = {}
        self._folders: dict[str, Path] = {}
        self._there: dict[str, str] | None = None
        """File -> digest of what would come back of it; None: the bucket was not asked yet."""
        self._lock = threading.Lock()

    def add(self, key: str, path: Path, *, grows: bool) -> None:
        """``grows``: lines are only ever appended to it."""
        with self._lock:
            if key not in self._files:
                self._files[key] = _Growing(path) if grows else _Whole(path)

    def add_folder(self, key: str, path: Path) -> None:
        """Every file below it, also those that come later. None of them needs to be sent."""
        with self._lock:
            self._folders[key] = path

    def send(self, remote: Remote, line: Line) -> int:
        """Send what is new in each file; returns how many bytes. Raises RemoteError, Cut."""
        with self._lock:
            for folder, path in self._folders.items():
                for file in sorted(path.rglob("*")):
                    key = f"{folder}/{file.relative_to(path).as_posix()}"
                    if key not in self._files and is_safe(key) and is_regular(file):
                        self._files[key] = _Whole(file)
            files = list(self._files.items())
        return sum(
            self._send_growth(key, file, remote, line)
            if isinstance(file, _Growing)
            else self._send_whole(key, file, remote, line)
            for key, file in files
            if file.path.exists()
        )

    def _send_whole(self, key: str, file: _Whole, remote: Remote, line: Line) -> int:
        found = file.path.stat()
        seen = (found.st_mtime_ns, found.st_size)
        if seen == file.seen:
            return 0
        data = read_regular(file.path)
        digest = short(data)
        if digest == (file.digest or self._known(remote, line).get(key)):
            file.digest, file.seen = digest, seen
            return 0
        version = Version(
            file=key, attempt=self.attempt, number=file.number + 1, digest=digest
        )  # fmt: skip
        put(version.key, of_bytes(data), remote, line, lambda what: None)
        file.number, file.digest, file.seen = version.number, digest, seen
        return len(data)

    def _known(self, remote: Remote, line: Line) -> dict[str, str]:
        if self._there is None:
            objects = line.ask(lambda: remote.list(""))
            versions = newest_versions(objects, first_attempt(objects))
            self._there = {name: version.digest for name, version in versions.items()}
        return self._there

    def _send_growth(self, key: str, file: _Growing, remote: Remote, line: Line) -> int:
        if file.sent_bytes is None or file.sent_bytes > file.path.stat().st_size:
            file.sent_bytes = already_sent(key, read_regular(file.path), remote, line)
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


def already_sent(key: str, data: bytes, remote: Remote, line: Line) -> int:
    """How much of a growing file the bucket holds already, piece by piece the same as here.

    A piece that a killed process left damaged ends it: this attempt's own then takes its place.
    """
    there = {file.key: file for file in held(remote, line, f"{RUN_FILES}{key}/").values()}
    same = 0
    for piece in chain(segments(there.values())):
        mine = data[piece.start : piece.end]
        if piece.end > len(data) or short(mine) != piece.digest:
            break
        if not is_same(there[piece.key], of_bytes(mine), remote, line):
            break
        same = piece.end
    return same


def is_regular(path: Path) -> bool:
    """A readable file that is no link."""
    return path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)


def short(data: bytes) -> str:
    """The first digits of the SHA-256, as names hold them."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]


# ------------------------------------------------------------------ the way back


def bring(
    objects: Sequence[RemoteFile],
    since: int,
    remote: Remote,
    line: Line,
    run_folder: Path,
    show: Callable[[str], None],
) -> dict[str, int]:
    """The config if there is none here, and the journal as far as its pieces follow on."""
    came: dict[str, int] = {}
    for version in newest_versions(objects, since).values():
        target = run_folder / version.file
        if not is_safe(version.file) or target.exists():
            continue
        data = read_small(version.key, version.digest, remote, line)
        if data is None:
            show(f"WARNING: {version.key} is damaged: not restored")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, data)
        came[version.file] = len(data)
    pieces = segments([o for o in objects if o.key.startswith(RUN_FILES)], since)
    for name in sorted({piece.file for piece in pieces}):
        if not is_safe(name):
            continue
        whole_lines = b""
        for piece in chain(p for p in pieces if p.file == name):
            data = read_small(piece.key, piece.digest, remote, line)
            if data is None:
                show(f"WARNING: {piece.key} is damaged: {name} ends before it")
                break
            whole_lines += data
        if merged(run_folder / name, whole_lines):
            came[name] = len(whole_lines)
    return came


def read_small(key: str, digest: str, remote: Remote, line: Line) -> bytes | None:
    """A small object, read again when it came out other than its name says; None: always."""
    for _ in range(TRIES_PER_FILE):
        data = line.ask(lambda: remote.read(key))
        if short(data) == digest:
            return data
    return None


def merged(target: Path, data: bytes) -> bool:
    """Make a growing file at least as long as the bucket's; False if it was already.

    Where the two went different ways the bucket's counts, and the local one is kept beside it.
    """
    there = target.read_bytes() if target.exists() else b""
    if not data or there.startswith(data):
        return False
    if not data.startswith(there):
        target.rename(target.with_name(f"{target.name}.replaced-{secrets.token_hex(4)}"))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, data)
    return True
