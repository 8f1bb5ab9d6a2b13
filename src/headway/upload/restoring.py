"""Bringing a run back from the bucket: the newest whole checkpoint, the config and the journal.

A checkpoint that is not what its manifest says is named and the one before it is taken. A bucket
that refuses, or does not answer, is an error instead: the newest may well be whole. What is being
fetched lies in ``.partial-…`` until every byte was compared, and is renamed last: a kill leaves
nothing that looks like a checkpoint, and the same command begins again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from headway.errors import CheckpointError, StorageFull
from headway.system import fsync_directory, fsync_file
from headway.upload.archive import unpacked
from headway.upload.faults import Refused
from headway.upload.layout import (
    MANIFEST_NAME,
    Bad,
    Copy,
    Fact,
    archive_fact,
    archive_of,
    copies,
    first_attempt,
    is_safe,
    lacking,
    standing_in,
)
from headway.upload.ledger import Ledger
from headway.upload.line import Line
from headway.upload.objects import RemoteFile
from headway.upload.parallel import run_all
from headway.upload.remote import Remote
from headway.upload.run_files import bring, read_small
from headway.upload.sending import TRIES_PER_FILE

LARGEST_MANIFEST_BYTES = 64 << 20
RESERVE_BYTES = 256 << 20
UPLOAD_JOURNAL = "upload.jsonl"

_SHA256 = re.compile(r"[0-9a-f]{64}")

Verify = Callable[[Path], list[str]]
"""What is wrong with a checkpoint's directory, in words; empty if it is good."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCheckpoint:
    """A committed copy, and what is known of it without fetching its files."""

    copy: Copy
    stands: bool
    """False: training went back behind it; it is not restored by itself."""
    problems: tuple[str, ...]
    """Empty: its manifest is whole and every file is there with its size."""

    @property
    def step(self) -> int:
        """After how many updates."""
        return self.copy.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What came back."""

    step: int
    name: str
    bytes: int
    run_files: Mapping[str, int]
    """File -> its size: config.yaml, journal.jsonl."""
    passed_over: tuple[str, ...]
    """Newer checkpoints that could not be used, and why."""


def remote_checkpoints(remote: Remote, line: Line | None = None) -> list[RemoteCheckpoint]:
    """Every committed copy in the bucket, oldest first; uploads in progress are not there yet."""
    line = line or Line()
    objects = line.ask(lambda: remote.list(""))
    every = copies(objects)
    stand = {copy.prefix for copy in standing_in(objects)}
    found = []
    for copy in every:
        if not copy.committed:
            continue
        problems: tuple[str, ...] = ()
        try:
            whole(copy, remote, line)
        except Bad as error:
            problems = (str(error),)
        found.append(
            RemoteCheckpoint(copy=copy, stands=copy.prefix in stand, problems=problems)
        )  # fmt: skip
    return found


def restore(
    remote: Remote,
    run_folder: Path,
    verify: Verify,
    show: Say,
    *,
    newer_than: tuple[int, int] | None = None,
    reserve_bytes: int = RESERVE_BYTES,
    threads: int = 4,
    line: Line | None = None,
    objects: Sequence[RemoteFile] | None = None,
) -> Restored | None:
    """Bring back the newest whole state; None if the bucket has none that is ``newer_than``.

    ``newer_than``: (attempt, step) of the newest good local checkpoint: a later attempt's state is
    newer whatever its step. ``objects``: all that lies there, where that was listed just before.
    Local checkpoints that the restored one takes back are moved to
    ``superseded/``. Raises CheckpointError if there are copies, none is whole and nothing good is
    here; StorageFull before anything is fetched; RemoteError when the bucket cannot be asked.
    """
    line = line or Line()
    if objects is None:
        objects = line.ask(lambda: remote.list(""))
    since = first_attempt(objects)
    candidates = [
        copy
        for copy in reversed(standing_in(objects))
        if newer_than is None or (copy.attempt, copy.step) > newer_than
    ]
    passed_over: list[str] = []
    for copy in candidates:
        try:
            fetched = fetch(copy, remote, line, run_folder, verify, show, reserve_bytes, threads)
        except Bad as error:
            passed_over.append(f"{copy.name} (attempt {copy.attempt}) in the bucket: {error}")
            show(f"WARNING: {passed_over[-1]}; trying the one before it")
            continue
        came = bring(objects, since, remote, line, run_folder, show)
        put_in_place(copy, fetched, run_folder)
        ledger = Ledger(run_folder / UPLOAD_JOURNAL, remote.url)
        ledger.append("sent", sync=True, step=copy.step, prefix=copy.prefix, restored=True)
        ledger.close()
        return Restored(
            step=copy.step,
            name=copy.name,
            bytes=copy.bytes,
            run_files=came,
            passed_over=tuple(passed_over),
        )
    if passed_over and newer_than is None:
        raise CheckpointError(
            f"no checkpoint in {remote.url} is whole: {'; '.join(passed_over)}. Not starting over "
            "by itself: put a whole copy back, or start again with --fresh"
        )
    return None


# ------------------------------------------------------------------ one checkpoint


def whole(copy: Copy, remote: Remote, line: Line) -> tuple[bytes, dict[str, Fact]]:
    """The manifest's bytes, and what it lists; Bad unless every file is there with its size."""
    listed = copy.files[MANIFEST_NAME]
    if listed.bytes > LARGEST_MANIFEST_BYTES:
        raise Bad(f"its manifest has {listed.bytes} bytes: not a manifest")
    with missing_is_bad():
        data = read_small(listed.key, copy.digest, remote, line)
    if data is None:
        raise Bad("its manifest is damaged (its folder is named after another)")
    facts = parsed(data, copy)
    missing = lacking(facts, copy.files)
    if missing:
        raise Bad(f"{len(missing)} files are missing or have another size: {missing[:3]}")
    return data, facts


@contextlib.contextmanager
def missing_is_bad() -> Iterator[None]:
    """An object that is gone is the copy's fault; whatever else is refused is not."""
    try:
        yield
    except Refused as error:
        if error.code not in ("404", "NoSuchKey"):
            raise
        raise Bad(str(error)) from error


@contextlib.contextmanager
def full_disk_is_said(to: Path) -> Iterator[None]:
    """The disk here can fill up after it was measured: other processes write too."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFull(
            f"{to.parent} is full: nothing was brought back. Free space, then the same command"
        ) from error


def parsed(data: bytes, copy: Copy) -> dict[str, Fact]:
    """The files that a manifest lists. Raises Bad."""
    try:
        tree: dict[str, Any] = json.loads(data)
        if tree["step"] != copy.step:
            raise Bad(f"its manifest is that of step {tree['step']}")
        facts = {
            str(name): Fact(bytes=entry["bytes"], sha256=entry["sha256"])
            for name, entry in tree["files"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Bad(f"its manifest cannot be read: {type(error).__name__}: {error}") from error
    for name, fact in facts.items():
        if not is_safe(name) or name == MANIFEST_NAME or archive_of([name]):
            raise Bad(f"its manifest names a file {name!r}, which could leave its directory")
        size_is_good = type(fact.bytes) is int and fact.bytes >= 0
        if not size_is_good or not isinstance(fact.sha256, str) or not _SHA256.fullmatch(
            fact.sha256
        ):  # fmt: skip
            raise Bad(f"its manifest's entry of {name!r} is not a size and a SHA-256")
    return facts


def fetch(
    copy: Copy,
    remote: Remote,
    line: Line,
    run_folder: Path,
    verify: Verify,
    show: Say,
    reserve_bytes: int,
    threads: int,
) -> Path:
    """Fetch a copy into ``checkpoints/.partial-restore-…/step-…``, every byte compared and synced.

    Only what the manifest lists is fetched, whatever else lies there.
    """
    manifest, facts = whole(copy, remote, line)
    refuse_full_disk(copy, facts, run_folder, reserve_bytes)
    strangers = sorted(copy.files.keys() - facts.keys() - {MANIFEST_NAME, archive_of(copy.files)})
    if strangers:
        show(f"WARNING: {copy.prefix} holds {strangers[:3]}, not in its manifest: not fetched")
    show(f"fetching {copy.name} ({copy.bytes / 1e6:.1f} MB) from {remote.url}")
    unfinished = run_folder / "checkpoints" / f".partial-restore-{copy.name}-{secrets.token_hex(4)}"
    place = unfinished / copy.name
    place.mkdir(parents=True)
    try:
        archive = archive_of(copy.files)
        if archive:
            packed = unfinished / archive
            fetch_file(copy.files[archive].key, archive_fact(archive), packed, remote, line)
            unpacked(packed, place, facts)
        else:
            run_all(
                [
                    partial(fetch_file, copy.files[name].key, fact, place / name, remote, line)
                    for name, fact in facts.items()
                ],
                threads,
                threading.Event(),
                "restore",
            )
        (place / MANIFEST_NAME).write_bytes(manifest)
        sync_tree(place)
        problems = verify(place)
        if problems:
            raise Bad("; ".join(problems))
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return place


def fetch_file(key: str, fact: Fact, to: Path, remote: Remote, line: Line) -> None:
    """One file, fetched again when it came out wrong. Raises Bad."""
    to.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(TRIES_PER_FILE):
        to.unlink(missing_ok=True)
        with missing_is_bad(), full_disk_is_said(to):
            line.ask(lambda: remote.download(key, to))
        if to.is_symlink() or not to.is_file():
            raise Bad(f"{key} did not come as a regular file")
        with to.open("rb") as file:
            good = hashlib.file_digest(file, "sha256").hexdigest() == fact.sha256
        if good and to.stat().st_size == fact.bytes:
            return
    raise Bad(f"{key} came {TRIES_PER_FILE} times with other bytes than its manifest says")


def put_in_place(copy: Copy, fetched: Path, run_folder: Path) -> None:
    """Move what it takes back out of the way, then rename it: from then on it is a checkpoint."""
    directory = run_folder / "checkpoints"
    for old in sorted(directory.glob("step-*")):
        digits = old.name.removeprefix("step-")
        if digits.isdigit() and int(digits) >= copy.step:
            aside = run_folder / "superseded" / f"{old.name}-{secrets.token_hex(4)}"
            aside.parent.mkdir(exist_ok=True)
            old.rename(aside)
    fetched.rename(directory / copy.name)
    fsync_directory(directory)
    fsync_directory(run_folder)
    shutil.rmtree(fetched.parent, ignore_errors=True)


def refuse_full_disk(
    copy: Copy, facts: Mapping[str, Fact], run_folder: Path, reserve_bytes: int
) -> None:
    """StorageFull, with figures, if it would not fit."""
    run_folder.mkdir(parents=True, exist_ok=True)
    needed = sum(fact.bytes for fact in facts.values()) + reserve_bytes
    if archive := archive_of(copy.files):
        needed += archive_fact(archive).bytes
    free = shutil.disk_usage(run_folder).free
    if free < needed:
        raise StorageFull(
            f"{copy.name} from the bucket needs {needed / 1e6:.0f} MB (a reserve of "
            f"{reserve_bytes / 1e6:.0f} MB included), but {run_folder} has {free / 1e6:.0f} MB "
            "free. Nothing was fetched. Free space, or restore to another disk (--to)"
        )


def sync_tree(root: Path) -> None:
    """Wait until every file and name below ``root`` is on disk."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            fsync_file(Path(folder, name))
        fsync_directory(Path(folder))
