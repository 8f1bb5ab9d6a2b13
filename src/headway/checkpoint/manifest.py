"""The manifest: what a checkpoint holds, file by file, and the proof that the list is whole.

It is the one file that makes a directory a checkpoint, so it is written last and read first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.errors import CheckpointError

FORMAT = 1
MANIFEST_NAME = "manifest.json"
LARGEST_BYTES = 64 << 20
"""A manifest lists files and a few facts; whatever is larger is something else."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:]")
_KEYS = {"format", "step", "attempt", "created_at", "files", "facts", "sha256"}


class NewerFormat(CheckpointError):
    """Written by a newer headway: not damaged, and never to be moved aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFact:
    """One file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one checkpoint holds."""

    step: int
    attempt: str
    created_at: str
    """UTC, ISO 8601. For people: nothing is ever ordered by a clock."""
    files: Mapping[str, FileFact]
    """Relative name (``model/adapter_config.json``) -> size and hash; without the manifest."""
    facts: Mapping[str, Any]
    """Plain JSON: loss, learning rate, tokens, fingerprint …"""
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(fact.bytes for fact in self.files.values())

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON (sorted keys, no spaces) of everything but this hash."""
        return hashlib.sha256(_canonical(_tree(self))).hexdigest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it lies on disk: readable JSON, and the same bytes every time.

    Raises CheckpointError for an unsafe file name or a fact that is not plain JSON.
    """
    for name in manifest.files:
        check_name(name)
    try:
        tree = _tree(manifest) | {"sha256": manifest.sha256}
        return (json.dumps(tree, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the facts of the checkpoint at step {manifest.step} are not plain JSON: {error}. "
            "Give numbers, text, lists and dicts only."
        ) from error


def read_manifest(directory: Path) -> Manifest:
    """Read and check ``directory/manifest.json``; the files it lists are not touched.

    Raises CheckpointError when it is missing, damaged, unsafe or a link; NewerFormat when it comes
    from a newer headway.
    """
    path = directory / MANIFEST_NAME
    data = _read(path)
    try:
        tree = json.loads(data)
        if not isinstance(tree, dict):
            raise ValueError("not a JSON object")
        if isinstance(tree.get("format"), int) and tree["format"] > FORMAT:
            raise NewerFormat(
                f"{path} has format {tree['format']}, this headway reads up to {FORMAT}: "
                "upgrade headway to use this checkpoint."
            )
        manifest = _manifest(tree)
        # Byte for byte, because a flipped bit can leave the same JSON: 1e-05 and 1E-05.
        if tree["sha256"] != manifest.sha256 or data != manifest_bytes(manifest):
            raise ValueError("its own hash does not match")
    except NewerFormat:
        raise
    except (CheckpointError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return manifest


def check_name(name: str) -> None:
    """Raise CheckpointError unless ``name`` stays inside its directory on every file system."""
    parts = name.split("/")
    if (
        not name
        or _UNSAFE.search(name)
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
        or name == MANIFEST_NAME
    ):
        raise CheckpointError(
            f"{name!r} cannot be the name of a file in a checkpoint: it must be relative, without "
            f"'..', links, colons, backslashes or control characters, and not {MANIFEST_NAME!r}."
        )


def plain(facts: Any) -> Any:
    """A copy of ``facts`` as JSON can hold it: NaN and infinity become text, tuples lists.

    Raises CheckpointError, with the key, for what has no plain form. Called before anything is
    written, so that a wrong fact cannot cost a save.
    """
    if isinstance(facts, float) and not math.isfinite(facts):
        return str(facts)
    if facts is None or isinstance(facts, str | bool | int | float):
        return facts
    if isinstance(facts, Mapping) and all(isinstance(key, str) for key in facts):
        return {key: _plain_at(key, value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [plain(value) for value in facts]
    raise CheckpointError(f"{type(facts).__name__} is not plain JSON")


def _plain_at(key: str, value: Any) -> Any:
    try:
        return plain(value)
    except CheckpointError as error:
        raise CheckpointError(f"fact {key!r}: {error}") from None


def _read(path: Path) -> bytes:
    """All of a regular file; never through a link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: this is not a committed checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_BYTES:
        raise CheckpointError(f"{path} is larger than {LARGEST_BYTES} bytes: not a manifest")
    return data


def _tree(manifest: Manifest) -> dict[str, Any]:
    files = {name: {"bytes": f.bytes, "sha256": f.sha256} for name, f in manifest.files.items()}
    return {
        "format": manifest.format,
        "step": manifest.step,
        "attempt": manifest.attempt,
        "created_at": manifest.created_at,
        "files": files,
        "facts": dict(manifest.facts),
    }


def _manifest(tree: Mapping[str, Any]) -> Manifest:
    """The manifest in ``tree``; ValueError, TypeError or KeyError when its shape is wrong."""
    if set(tree) != _KEYS:
        raise ValueError(f"its keys are {sorted(tree)}, not {sorted(_KEYS)}")
    if not isinstance(tree["step"], int) or tree["step"] < 0 or tree["format"] != FORMAT:
        raise ValueError("its step or format is not a number in range")
    if not isinstance(tree["files"], dict) or not isinstance(tree["facts"], dict):
        raise ValueError("files and facts must be objects")
    files = {}
    for name, entry in tree["files"].items():
        check_name(name)
        size, sha256 = entry["bytes"], entry["sha256"]
        if not isinstance(size, int) or size < 0 or not _SHA256.fullmatch(sha256):
            raise ValueError(f"the entry of {name!r} is not a size and a SHA-256")
        files[name] = FileFact(bytes=size, sha256=sha256)
    return Manifest(
        step=tree["step"],
        attempt=str(tree["attempt"]),
        created_at=str(tree["created_at"]),
        files=files,
        facts=tree["facts"],
    )


def _canonical(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
