"""Files that mean harm, and checkpoints that hold them with hashes that are right."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import torch

from headway.checkpoint import read_manifest
from headway.checkpoint.manifest import FileFact, manifest_bytes

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10240\n"


class Bomb:
    """Whoever unpickles it makes a folder: the sign that code ran."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.sign),)


def pickled(sign: Path) -> bytes:
    """A plain pickle."""
    return pickle.dumps(Bomb(sign))


def torch_saved(sign: Path) -> bytes:
    """The same as ``torch.save`` packs it, as in ``pytorch_model.bin``."""
    out = io.BytesIO()
    torch.save({"weight": Bomb(sign)}, out)
    return out.getvalue()


def with_header(header: object, body: bytes = bytes(64), claim: int | None = None) -> bytes:
    """A safetensors file with this header; ``claim``: the length that it gives for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if claim is None else claim).to_bytes(8, "little") + text + body


def tensor(begin: int, end: int, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> object:
    """A header's entry."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


LYING_HEADERS = {
    "a length of 2^62": with_header({}, claim=1 << 62),
    "a length of 90 MB": with_header({}, claim=90_000_000),
    "no JSON": with_header(b"not json at all"),
    "deep JSON": with_header(b"[" * 50_000),
    "tensors that overlap": with_header({"a": tensor(0, 16), "b": tensor(8, 24)}),
    "a tensor beyond the end": with_header({"a": tensor(0, 1 << 40, (1 << 38,))}),
    "an end before its begin": with_header({"a": tensor(16, 0)}),
    "a shape that its bytes do not hold": with_header({"a": tensor(0, 16, (1 << 40,))}),
    "a shape whose product overflows": with_header({"a": tensor(0, 16, (1 << 62, 1 << 62))}),
    "a type that is none": with_header({"a": tensor(0, 16, dtype="PICKLE")}),
    "bytes that no tensor owns": with_header({"a": tensor(0, 16)}),
    "eight bytes and no more": bytes(8),
}


def put_in_checkpoint(folder: Path, name: str, data: bytes) -> None:
    """Put ``data`` under ``name`` in a checkpoint, and forge the manifest so that it verifies."""
    manifest = read_manifest(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    fact = FileFact(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    forged = dataclasses.replace(manifest, files={**manifest.files, name: fact})
    (folder / "manifest.json").write_bytes(manifest_bytes(forged))


def take_from_checkpoint(folder: Path, name: str) -> None:
    """Remove a file, and forge the manifest so that nothing is missed."""
    manifest = read_manifest(folder)
    (folder / name).unlink()
    files = {other: fact for other, fact in manifest.files.items() if other != name}
    (folder / "manifest.json").write_bytes(
        manifest_bytes(dataclasses.replace(manifest, files=files))
    )
