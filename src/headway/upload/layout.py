"""Where everything of a run lies under its prefix in the bucket, and which of it still stands.

::

    lease.json                                        who writes this run (lease.py)
    fresh/0004                                        attempts before 4 are of a replaced run
    from/0005-00000200                                attempt 5 went back to step 200
    run/config.yaml/0002-0001-3fa9c1d20b7e            one whole version of a small file
    run/journal.jsonl/0002-000000000000-000000012345-3fa9c1d20b7e      bytes [0, 12345) of it
    checkpoints/step-00000500/0002-3fa9c1d20b7e/model/adapter_model.safetensors
    checkpoints/step-00000500/0002-3fa9c1d20b7e/manifest.json          the commit

No name is ever used for two contents: each holds the attempt that wrote it and the first digits of
a SHA-256 (for a checkpoint its manifest's, which lists the hash of every file). So a retry finds
its own object, two machines cannot overwrite each other, and a name proves its content.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

from headway.errors import RemoteError
from headway.upload.objects import RemoteFile

MANIFEST_NAME = "manifest.json"
LEASE_KEY = "lease.json"
CHECKPOINTS, RUN_FILES, FRESH, FROM = "checkpoints/", "run/", "fresh/", "from/"
DIGEST_DIGITS = 12

_COPY = re.compile(r"checkpoints/step-(\d{8,})/(\d{4,})-([0-9a-f]{12})/(.+)", re.DOTALL)
_VERSION = re.compile(r"run/(.+)/(\d{4,})-(\d{4,})-([0-9a-f]{12})")
_SEGMENT = re.compile(r"run/(.+)/(\d{4,})-(\d{12,})-(\d{12,})-([0-9a-f]{12})")
_FRESH = re.compile(r"fresh/(\d{4,})")
_FROM = re.compile(r"from/(\d{4,})-(\d{8,})")
_ATTEMPT = re.compile(
    r"(?:checkpoints/step-\d{8,}|run/.+|fresh|from)/(\d{4,})(?:[-/].*)?", re.DOTALL
)
_ARCHIVE = re.compile(r"archive-(\d+)-([0-9a-f]{64})\.(tar|tar\.zst)")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:]")


class Bad(RemoteError):
    """One copy in the bucket is not what it should be; another may be."""


class FileFact(Protocol):
    """Size and hash of one file."""

    @property
    def bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """Hex, of all its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Size and hash of one file, as a manifest in the bucket says them."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One committed checkpoint, as the uploader needs to know it. Its files never change."""

    name: str
    """``step-00000500``."""
    step: int
    attempt: int
    """Which attempt made it: a later attempt's state is newer whatever its step."""
    digest: str
    """SHA-256 of the manifest file: names the copy, so that a name has one content for ever."""
    folder: Path
    files: Mapping[str, FileFact]
    """Without the manifest."""
    manifest: str = MANIFEST_NAME

    @property
    def prefix(self) -> str:
        """Where its copy lies: ``checkpoints/step-00000500/0002-3fa9c1d20b7e/``."""
        return f"{CHECKPOINTS}{self.name}/{self.attempt:04d}-{self.digest[:DIGEST_DIGITS]}/"

    @property
    def bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(fact.bytes for fact in self.files.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What lies in the bucket of one checkpoint. It counts only if its manifest is there."""

    step: int
    attempt: int
    digest: str
    """The first digits of the manifest's SHA-256."""
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    """Name inside the checkpoint -> object; the manifest among them."""

    @property
    def name(self) -> str:
        """``step-00000500``."""
        return f"step-{self.step:08d}"

    @property
    def prefix(self) -> str:
        """Where it lies."""
        return f"{CHECKPOINTS}{self.name}/{self.attempt:04d}-{self.digest}/"

    @property
    def committed(self) -> bool:
        """Whether its manifest is there: it is the last file sent and the first one deleted."""
        return MANIFEST_NAME in self.files

    @property
    def bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(f.bytes for name, f in self.files.items() if name != MANIFEST_NAME)

    @property
    def modified_at(self) -> float | None:
        """When the last of its objects was written, by the store's clock; None: it does not say."""
        known = [file.modified_at for file in self.files.values() if file.modified_at is not None]
        return max(known) if len(known) == len(self.files) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Some whole lines of a file that only grows."""

    file: str
    attempt: int
    start: int
    end: int
    digest: str

    @property
    def key(self) -> str:
        """Where it lies."""
        span = f"{self.start:012d}-{self.end:012d}"
        return f"{RUN_FILES}{self.file}/{self.attempt:04d}-{span}-{self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One whole version of a small file."""

    file: str
    attempt: int
    number: int
    """Counts the versions of one attempt."""
    digest: str

    @property
    def key(self) -> str:
        """Where it lies."""
        return f"{RUN_FILES}{self.file}/{self.attempt:04d}-{self.number:04d}-{self.digest}"


def is_safe(name: str) -> bool:
    """Whether a file of this name stays inside its directory on every file system."""
    parts = name.split("/")
    odd = any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
    return bool(name) and not odd and not _UNSAFE.search(name)


def archive_of(names: Iterable[str]) -> str | None:
    """The one object that holds all files, for a copy that was sent as an archive."""
    return next((name for name in sorted(names) if _ARCHIVE.fullmatch(name)), None)


def archive_fact(name: str) -> Fact:
    """Size and hash of an archive, which its name says. ``name``: from ``archive_of``."""
    match = _ARCHIVE.fullmatch(name)
    assert match
    return Fact(bytes=int(match[1]), sha256=match[2])


def lacking(facts: Mapping[str, FileFact], there: Mapping[str, RemoteFile]) -> list[str]:
    """The files that are not in the bucket with the size that the manifest says."""
    archive = archive_of(there)
    if archive is not None:
        return [] if there[archive].bytes == archive_fact(archive).bytes else [archive]
    return sorted(
        name for name, fact in facts.items() if name not in there or there[name].bytes != fact.bytes
    )


def copies(files: Iterable[RemoteFile]) -> list[Copy]:
    """Every checkpoint, whole or not, among the objects of a prefix; by attempt, then step."""
    found: dict[tuple[int, int, str], dict[str, RemoteFile]] = {}
    for file in files:
        if match := _COPY.fullmatch(file.key):
            place = (int(match[2]), int(match[1]), match[3])
            found.setdefault(place, {})[match[4]] = file
    return [
        Copy(step=step, attempt=attempt, digest=digest, files=held)
        for (attempt, step, digest), held in sorted(found.items())
    ]


def standing(
    all_copies: Sequence[Copy], since_attempt: int = 0, back: Iterable[tuple[int, int]] = ()
) -> list[Copy]:
    """The committed copies that training did not go back behind, oldest first.

    An attempt begins from some checkpoint, so its first one takes back whatever earlier attempts
    committed at that step or later: training went back on purpose, or another machine took over.
    Attempts before ``since_attempt`` belong to a run that ``--fresh`` replaced. ``back``: (attempt,
    step) of each ``--from``, which takes back what earlier attempts committed after that step, from
    before its own first commit.
    """
    marks = list(back)
    kept: list[Copy] = []
    taken_back: float = math.inf
    whole = [c for c in all_copies if c.committed and c.attempt >= since_attempt]
    for attempt, made in groupby(sorted(whole, key=lambda c: -c.attempt), key=lambda c: c.attempt):
        taken_back = min([taken_back, *(step + 1 for later, step in marks if later > attempt)])
        mine = [copy for copy in made if copy.step < taken_back]
        kept += mine
        taken_back = min([taken_back, *(copy.step for copy in mine)])
    return sorted(kept, key=lambda copy: (copy.attempt, copy.step))


def first_attempt(files: Iterable[RemoteFile]) -> int:
    """The attempt that the run now in this prefix began with: what is older was replaced."""
    return max((int(m[1]) for f in files if (m := _FRESH.fullmatch(f.key))), default=0)


def went_back(files: Iterable[RemoteFile]) -> list[tuple[int, int]]:
    """(attempt, step) of every ``--from``."""
    return [(int(m[1]), int(m[2])) for f in files if (m := _FROM.fullmatch(f.key))]


def standing_in(files: Sequence[RemoteFile]) -> list[Copy]:
    """``standing``, by all that lies under the run's prefix."""
    return standing(copies(files), first_attempt(files), went_back(files))


def highest_attempt(files: Iterable[RemoteFile]) -> int:
    """The highest number of an attempt that ever wrote here; 0: none did."""
    return max((int(m[1]) for f in files if (m := _ATTEMPT.fullmatch(f.key))), default=0)


def fresh_key(attempt: int) -> str:
    """Says that this attempt began another run."""
    return f"{FRESH}{attempt:04d}"


def from_key(attempt: int, step: int) -> str:
    """Says that this attempt went back to a step."""
    return f"{FROM}{attempt:04d}-{step:08d}"


def segments(files: Iterable[RemoteFile], since_attempt: int = 0) -> list[Segment]:
    """Every piece of every growing file."""
    return [
        Segment(
            file=m[1], attempt=int(m[2]), start=int(m[3]), end=int(m[4]), digest=m[5]
        )
        for file in files
        if (m := _SEGMENT.fullmatch(file.key)) and int(m[2]) >= since_attempt
    ]  # fmt: skip


def chain(pieces: Iterable[Segment]) -> list[Segment]:
    """The pieces of one file that follow on each other from its first byte.

    Where two machines went on from the same byte, the later attempt is the one that counts.
    """
    by_start: dict[int, list[Segment]] = {}
    for piece in pieces:
        by_start.setdefault(piece.start, []).append(piece)
    found: list[Segment] = []
    at = 0
    while at in by_start:
        best = max(by_start[at], key=lambda piece: (piece.attempt, piece.end))
        if best.end <= at:
            break
        found.append(best)
        at = best.end
    return found


def newest_versions(files: Iterable[RemoteFile], since_attempt: int = 0) -> dict[str, Version]:
    """File name -> its newest version."""
    found: dict[str, Version] = {}
    for file in files:
        if match := _VERSION.fullmatch(file.key):
            version = Version(
                file=match[1], attempt=int(match[2]), number=int(match[3]), digest=match[4]
            )
            before = found.get(version.file)
            newer = not before or (version.attempt, version.number) > (
                before.attempt, before.number,
            )  # fmt: skip
            if newer and version.attempt >= since_attempt:
                found[version.file] = version
    return found
