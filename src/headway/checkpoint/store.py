"""The store: partial → fsync → manifest → rename → fsync, and the newest good one back.

``<run>/checkpoints/step-00000500/`` is a checkpoint if and only if its manifest is whole. What is
being written is called ``.partial-…``, what is being deleted ``.trash-…``; neither is ever read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headway.checkpoint.awaited import awaited
from headway.checkpoint.disk import Data, damage, explained, fsync_directory, write_new_file
from headway.checkpoint.manifest import (
    MANIFEST_NAME,
    FileFact,
    Manifest,
    NewerFormat,
    check_name,
    manifest_bytes,
    plain,
    read_manifest,
)
from headway.checkpoint.retention import Retention, expendable
from headway.errors import CheckpointError, StorageFull

RESERVE_BYTES = 256 << 20
"""Stays free after a save, so that the journal can still say why a run stopped."""

_STEP = re.compile(r"step-(\d{8,})")
_LEFTOVER = (".partial-", ".trash-")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint. Its files never change."""

    step: int
    path: Path
    manifest: Manifest
    manifest_sha256: str | None = field(default=None, compare=False)
    """Hex; known of one that was just committed, so that nobody on the way has to hash again."""

    @property
    def bytes(self) -> int:
        """Size of all files but the manifest."""
        return self.manifest.bytes


def step_name(step: int) -> str:
    """``step-00000500``: the directory of the checkpoint at one step."""
    return f"step-{step:08d}"


def verify(checkpoint: Checkpoint, *, hashes: bool = True) -> list[str]:
    """Everything that is wrong with a checkpoint on disk, in words; empty if it is good.

    Reads every byte, unless ``hashes`` is off: then only names, kinds and sizes. An extra file is a
    fault, because a loader may pick it up; an extra hidden one (``.DS_Store``, ``.nfs…``) is not.
    """
    try:
        manifest = read_manifest(checkpoint.path)
    except CheckpointError as error:
        return [str(error)]
    problems = []
    if manifest.step != checkpoint.step or checkpoint.path.name != step_name(manifest.step):
        problems.append(f"{checkpoint.path.name} holds the manifest of step {manifest.step}")
    for name, expected in sorted(manifest.files.items()):
        if wrong := damage(checkpoint.path / name, expected, hashes=hashes):
            problems.append(f"{checkpoint.path.name}/{name} {wrong}")
    return problems + _strangers(checkpoint.path, manifest)


class CheckpointStore:
    """The checkpoints of one run directory. One writer at a time: hold the run lock."""

    def __init__(self, root: Path, *, attempt: str, reserve_bytes: int = RESERVE_BYTES) -> None:
        """``root``: the run directory. ``attempt``: who writes; part of names and manifests."""
        self.root = root
        self.directory = root / "checkpoints"
        self.quarantine = root / "quarantine"
        self.superseded = root / "superseded"
        self.attempt = attempt
        self.reserve_bytes = reserve_bytes

    def open(self, step: int, expected_bytes: int) -> Partial:
        """Begin a checkpoint. Raises StorageFull, with figures, if it would not fit."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            free_bytes = shutil.disk_usage(self.directory).free
            needed_bytes = int(1.05 * expected_bytes) + self.reserve_bytes
            if free_bytes < needed_bytes:
                raise StorageFull(
                    f"the checkpoint at step {step} needs {_size(needed_bytes)} "
                    f"({_size(expected_bytes)} and a reserve of {_size(self.reserve_bytes)}), but "
                    f"{self.directory} has {_size(free_bytes)} free. Nothing was written. Free "
                    "space, or keep fewer checkpoints (checkpoint.keep_last, keep_best)."
                )
            path = self.directory / f".partial-{step_name(step)}-{self._token()}"
            path.mkdir()
        except OSError as error:
            raise explained(error, f"making a directory in {self.directory}") from error
        return Partial(self, step, path)

    def checkpoints(self) -> list[Checkpoint]:
        """The committed checkpoints by step. What has no readable manifest is not one."""
        found = []
        for step, path in self._directories():
            with contextlib.suppress(CheckpointError):
                manifest = read_manifest(path)
                if manifest.step == step:
                    found.append(Checkpoint(step, path, manifest))
        return found

    def newest_good(self, at_or_before: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that verifies, and in words what was found and done on the way.

        Damaged ones are moved to ``<run>/quarantine/``, never deleted. None only if there never was
        a checkpoint: if some exist, or lie in quarantine, and none is good: CheckpointError.
        """
        done: list[str] = []
        for step, path in reversed(self._directories()):
            if at_or_before is not None and step > at_or_before:
                continue
            checkpoint, problems = _inspect(step, path)
            if checkpoint is not None:
                return checkpoint, done
            done.append(self._set_aside(path, self.quarantine, problems))
        self._refuse_silent_restart(at_or_before, done)
        return None, done

    def supersede(self, after: int) -> list[str]:
        """Going back on purpose: move checkpoints later than ``after`` to ``<run>/superseded/``.

        Without it the next restart would take the newest of the abandoned future.
        """
        return [
            self._set_aside(path, self.superseded, [f"{path.name}: training went back to {after}"])
            for step, path in self._directories()
            if step > after
        ]

    def prune(
        self,
        policy: Retention,
        scores: Mapping[int, float | None] | None = None,
        pinned: Collection[int] = (),
    ) -> list[int]:
        """Delete what the policy does not keep; returns the steps deleted.

        Deletes nothing while the newest is not all there (names and sizes; it was hashed when it
        was written), and nothing that a live follower still wants. A directory is renamed first: a
        kill leaves trash, never half a checkpoint.
        """
        held = {checkpoint.step: checkpoint for checkpoint in self.checkpoints()}
        if not held or verify(held[max(held)], hashes=False):
            return []
        places = [(step, checkpoint.manifest.attempt) for step, checkpoint in held.items()]
        wanted = {step for step, _ in awaited(self.root, places)}
        doomed = expendable(held, scores or {}, policy, {*pinned, *wanted})
        for step in doomed:
            trash = self.directory / f".trash-{step_name(step)}-{self._token()}"
            try:
                held[step].path.rename(trash)
            except OSError as error:
                raise explained(error, f"deleting {held[step].path}") from error
            shutil.rmtree(trash, ignore_errors=True)  # what stays is trash, for sweep()
        return doomed

    def sweep(self) -> list[str]:
        """Remove what killed attempts left behind; returns the names. Only under the run lock."""
        if not self.directory.is_dir():
            return []
        left = sorted(p for p in self.directory.iterdir() if p.name.startswith(_LEFTOVER))
        for path in left:
            if path.is_symlink() or not path.is_dir():
                with contextlib.suppress(OSError):
                    path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)
        return [path.name for path in left]

    def _directories(self) -> list[tuple[int, Path]]:
        """(step, path) of everything named like a checkpoint, by step."""
        if not self.directory.is_dir():
            return []
        named = ((_STEP.fullmatch(path.name), path) for path in self.directory.iterdir())
        return sorted((int(match[1]), path) for match, path in named if match)

    def _set_aside(self, path: Path, to: Path, problems: list[str]) -> str:
        """Move a directory away under a name never used before; says so in words."""
        why = "; ".join(problems)
        target = to / f"{path.name}-{secrets.token_hex(4)}"
        try:
            to.mkdir(parents=True, exist_ok=True)
            try:
                path.rename(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # checkpoints/ is a disk of its own: what stayed would keep its step from being
                # saved again, so it only gets another name.
                target = path.with_name(f"{to.name}-{target.name}")
                path.rename(target)
        except OSError as error:
            return f"{why}. Skipped; it could not be moved to {to}: {error.strerror}"
        fsync_directory(to)
        fsync_directory(self.directory)
        return f"{why}. Moved to {target.relative_to(self.root)}"

    def _refuse_silent_restart(self, at_or_before: int | None, done: list[str]) -> None:
        names = [path.name for _, path in self._directories()]
        if self.quarantine.is_dir():
            aside = sorted(path.name for path in self.quarantine.iterdir())
            names += [f"quarantine/{name}" for name in aside if name.startswith("step-")]
        if self.directory.is_dir():
            names += sorted(path.name for path in self.directory.glob("quarantine-step-*"))
        if names or done:
            limit = "" if at_or_before is None else f" at or before step {at_or_before}"
            raise CheckpointError(
                f"no good checkpoint{limit} in {self.directory}; there are: {', '.join(names)}. "
                + "".join(f"{line}. " for line in done)
                + "Not starting over by itself: restore a copy, or start again with --fresh."
            )

    def _token(self) -> str:
        return f"{self.attempt}-{secrets.token_hex(4)}"


class Partial:
    """A checkpoint being written: invisible until ``commit``, worthless after any failure."""

    def __init__(self, store: CheckpointStore, step: int, path: Path) -> None:
        self.step = step
        self.path = path
        self._store = store
        self._files: dict[str, FileFact] = {}
        self._open = True

    def write(self, name: str, chunks: Iterable[Data]) -> FileFact:
        """Write one file, hashed and synced; ``name`` may be nested (``model/config.json``).

        Raises StorageFull or CheckpointError; nothing more can then be written to this partial.
        """
        check_name(name)
        self._must_be_open()
        self._open = False  # until this file is safe
        try:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, f"making the directory of {self.path / name}") from error
        self._files[name] = write_new_file(self.path / name, chunks)
        self._open = True
        return self._files[name]

    def commit(self, facts: Mapping[str, Any]) -> Checkpoint:
        """Make it a checkpoint; when this returns, it survives kill and power loss.

        Nothing is overwritten. If the step is already there and good, that one stays and is
        returned (a save repeated after a resume); if it is damaged, it goes to quarantine.
        """
        self._must_be_open()
        manifest = Manifest(
            step=self.step,
            attempt=self._store.attempt,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            files=dict(self._files),
            facts=plain(facts),
        )
        data = manifest_bytes(manifest)
        self._open = False
        write_new_file(self.path / MANIFEST_NAME, [data])
        directories = {p for name in self._files for p in (self.path / name).parents}
        for directory in sorted(directories, key=lambda p: len(p.parts), reverse=True):
            if directory.is_relative_to(self.path) and directory != self.path:
                fsync_directory(directory)
        fsync_directory(self.path)
        place = self._store.directory / step_name(self.step)
        digest = hashlib.sha256(data).hexdigest()
        checkpoint = Checkpoint(self.step, place, manifest, digest)
        kept = self._publish(checkpoint)
        fsync_directory(self._store.directory)
        fsync_directory(self._store.root)  # the first save also made checkpoints/
        return kept

    def discard(self) -> None:
        """Remove what was written. What cannot be removed now, ``sweep`` removes later."""
        self._open = False
        shutil.rmtree(self.path, ignore_errors=True)

    def _publish(self, checkpoint: Checkpoint) -> Checkpoint:
        """Rename to the final name, unless a good checkpoint of this step has it."""
        if checkpoint.path.exists():
            there, problems = _inspect(self.step, checkpoint.path)
            if there is not None:
                self.discard()
                return there
            self._store._set_aside(checkpoint.path, self._store.quarantine, problems)
        try:
            # A non-empty directory of that name would make this fail: never an overwrite.
            self.path.rename(checkpoint.path)
        except OSError as error:
            # A network disk may report failure for a rename that happened (rename(2), BUGS).
            if self.path.exists() or verify(checkpoint, hashes=False):
                raise explained(error, f"renaming {self.path} to {checkpoint.path}") from error
        return checkpoint

    def _must_be_open(self) -> None:
        if not self._open:
            raise CheckpointError(
                f"{self.path.name} is closed: it was committed, discarded, or a write to it "
                "failed. Begin a new one; a failed write is never tried again in place."
            )


def _inspect(step: int, path: Path) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint in a directory if it is good, else what is wrong. NewerFormat passes."""
    try:
        checkpoint = Checkpoint(step, path, read_manifest(path))
    except NewerFormat:
        raise
    except CheckpointError as error:
        return None, [str(error)]
    problems = verify(checkpoint)
    return (None, problems) if problems else (checkpoint, [])


def _strangers(root: Path, manifest: Manifest) -> list[str]:
    """Files and links in a checkpoint that its manifest does not name."""
    known = {MANIFEST_NAME, *manifest.files}
    problems = [f"{root.name} is a symbolic link"] if root.is_symlink() else []
    for folder, folders, files in os.walk(root):
        for name in files + folders:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if path.is_symlink():
                if relative not in manifest.files:  # those are reported as damaged
                    problems.append(f"{root.name}/{relative} is a symbolic link")
            elif name in files and relative not in known and not name.startswith("."):
                problems.append(f"{root.name}/{relative} is not in the manifest")
    return problems


def _size(count: float) -> str:
    """1234567 -> '1.2 MB'."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


__all__ = ["Checkpoint", "CheckpointStore", "Partial", "step_name", "verify"]
