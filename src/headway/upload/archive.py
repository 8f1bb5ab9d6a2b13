"""A checkpoint as one object, for stores where every object costs: ``tar`` or ``tar.zst``.

The price: as much free local disk as the checkpoint, no part of it can be sent again or fetched by
itself. Packing the same checkpoint twice gives the same bytes, so a retry finds its own object.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from headway.errors import ConfigError
from headway.upload.layout import Bad, FileFact, Parcel

Kind = Literal["tar", "tar.zst"]
ZSTD_LEVEL = 3
_BLOCK_BYTES = 4 << 20


@contextlib.contextmanager
def packed(parcel: Parcel, kind: Kind) -> Iterator[Path]:
    """The archive of a checkpoint, named by its size and hash; deleted afterwards.

    Raises OSError; ConfigError without the package for ``tar.zst``. What a killed process leaves,
    the checkpoint store sweeps: it is called ``.partial-…``.
    """
    place = parcel.folder.parent / f".partial-archive-{secrets.token_hex(4)}"
    place.mkdir()
    try:
        unnamed = place / "archive"
        with unnamed.open("xb") as file, compressing(file, kind) as out:
            with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for name, fact in sorted(parcel.files.items()):
                    info = tarfile.TarInfo(name)  # no owner, no date: the same bytes every time
                    info.size = fact.bytes
                    with (parcel.folder / name).open("rb") as source:
                        tar.addfile(info, source)
        with unnamed.open("rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
        yield unnamed.rename(place / f"archive-{unnamed.stat().st_size}-{digest}.{kind}")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def unpacked(archive: Path, to: Path, facts: Mapping[str, FileFact]) -> None:
    """Write exactly the files of ``facts`` below ``to``; never a link, never another name.

    Their content is for the caller to verify. Raises Bad when the archive has another
    member, or one of another size.
    """
    left = dict(facts)
    kind: Kind = "tar.zst" if archive.name.endswith(".zst") else "tar"
    damage: tuple[type[Exception], ...] = (tarfile.TarError, EOFError, *zstd_errors(kind))
    try:
        with archive.open("rb") as file, decompressing(file, kind) as data:
            with tarfile.open(fileobj=data, mode="r|") as tar:
                for member in tar:
                    fact = left.pop(member.name, None)
                    source = tar.extractfile(member) if member.isreg() else None
                    if fact is None or source is None or member.size != fact.bytes:
                        raise Bad(f"{archive.name} holds an unexpected {member.name!r}")
                    target = to / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("xb") as out:
                        shutil.copyfileobj(source, out, _BLOCK_BYTES)
    except damage as error:
        raise Bad(f"{archive.name} is damaged: {error}") from error
    if left:
        raise Bad(f"{archive.name} lacks {sorted(left)[:3]}")


@contextlib.contextmanager
def compressing(file: IO[bytes], kind: Kind) -> Iterator[Any]:
    """What is written to it goes to ``file``, compressed for ``tar.zst``."""
    if kind == "tar":
        yield file
        return
    writer = zstandard().ZstdCompressor(level=ZSTD_LEVEL).stream_writer(file, closefd=False)
    with contextlib.closing(writer):
        yield writer


@contextlib.contextmanager
def decompressing(file: IO[bytes], kind: Kind) -> Iterator[Any]:
    """The way back."""
    if kind == "tar":
        yield file
        return
    reader = zstandard().ZstdDecompressor().stream_reader(file)
    with contextlib.closing(io.BufferedReader(reader, _BLOCK_BYTES)) as buffered:
        yield buffered


def zstd_errors(kind: Kind) -> tuple[type[Exception], ...]:
    """What reading or writing an archive of this kind raises besides; the package has its own."""
    return () if kind == "tar" else (zstandard().ZstdError,)


def zstandard() -> Any:
    """The package, or a ConfigError that names it."""
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise ConfigError(
            "upload.archive: tar.zst needs the package zstandard (pip install 'headway[zstd]'); "
            "tar needs none"
        ) from error
