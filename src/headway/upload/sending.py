"""One checkpoint goes to the bucket: files, then a comparison, then the manifest: the commit.

Killed at any point, it leaves a folder without a manifest, which nobody lists, or a whole copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from headway.errors import RemoteError
from headway.upload.archive import Kind, packed, zstd_errors
from headway.upload.faults import Exists
from headway.upload.layout import FileFact, Parcel, archive_fact, lacking
from headway.upload.line import Line
from headway.upload.objects import RemoteFile
from headway.upload.parallel import run_all
from headway.upload.remote import Remote

TRIES_PER_FILE = 3
_BLOCK_BYTES = 4 << 20


class Unsendable(RemoteError):
    """This checkpoint cannot be sent; others can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A local file as it must be in the bucket."""

    source: Path | bytes
    bytes: int
    md5: str


def send(
    parcel: Parcel,
    remote: Remote,
    line: Line,
    *,
    threads: int,
    before_commit: Callable[[], None],
    on_wrong: Callable[[str], None],
    archive: Literal["none", "tar", "tar.zst"] = "none",
) -> bool:
    """Make a verified copy of ``parcel``; False if it was there already.

    ``before_commit`` runs when all files are verified and before the manifest is sent: it raises to
    prevent the commit. ``on_wrong`` hears of each object that came out different from what was
    sent. Raises Unsendable (the local files, or a damaged committed copy), GaveUp, Refused, Cut.
    """
    manifest = read_manifest(parcel)
    there = held(remote, line, parcel.prefix)
    if parcel.manifest in there:
        key = parcel.prefix + parcel.manifest
        if line.ask(lambda: remote.read(key)) == manifest:
            refuse_damaged(parcel, there, remote)
            return False
        # Its name holds the manifest's hash, so these bytes never were a commit: damaged on the way
        # by a process that died before it could compare.
        on_wrong(f"{key}: not the manifest that its name says; deleted, sent again")
        line.ask(lambda: remote.delete([key]))
    with contextlib.ExitStack() as stack:
        sources = {name: (parcel.folder / name, fact) for name, fact in parcel.files.items()}
        if archive != "none":
            refuse_damaged_files(parcel)
            packet = stack.enter_context(packed_or_unsendable(parcel, archive))
            sources = {packet.name: (packet, archive_fact(packet.name))}
        contents: dict[str, Content] = {}

        def send_one(name: str) -> None:
            contents[name] = content = hashed(*sources[name])
            if not is_same(there.get(name), content, remote, line):
                put(parcel.prefix + name, content, remote, line, on_wrong, looks=False)

        largest_first = sorted(sources, key=lambda name: -sources[name][1].bytes)
        jobs = [partial(send_one, name) for name in largest_first]
        run_all(jobs, threads, threading.Event(), "upload")
    compare(parcel, contents, held(remote, line, parcel.prefix), remote)
    before_commit()
    put(parcel.prefix + parcel.manifest, of_bytes(manifest), remote, line, on_wrong)
    return True


def held(remote: Remote, line: Line, prefix: str) -> dict[str, RemoteFile]:
    """Name below ``prefix`` -> object."""
    return {
        file.key.removeprefix(prefix): file for file in line.ask(lambda: remote.list(prefix))
    }  # fmt: skip


def put(
    key: str,
    content: Content,
    remote: Remote,
    line: Line,
    on_wrong: Callable[[str], None],
    *,
    looks: bool = True,
) -> RemoteFile:
    """Send one object and compare it with the store's own size and checksum.

    ``looks``: by asking for the object; False where all of them are listed afterwards anyway: then
    the checksum in the store's answer to the upload is enough until then.

    An object that is already there with the same content is a success: its reply was lost, or an
    earlier process sent it. One with other content is never overwritten: it is deleted and sent
    again, which is safe because no manifest that could name it exists yet.
    """
    for _ in range(TRIES_PER_FILE):
        stored = None
        with contextlib.suppress(Exists):
            stored = line.ask(lambda: remote.put(key, content.source, sent=line.moved))
        if looks or stored is None or stored.md5 is None:
            stored = line.ask(lambda: remote.head(key))
        if stored is not None and is_same(stored, content, remote, line):
            return stored
        if stored is not None:
            on_wrong(f"{key}: the store holds other bytes than were sent; deleted, sent again")
            line.ask(lambda: remote.delete([key]))
    raise Unsendable(
        f"{remote.url}/{key}: {TRIES_PER_FILE} times the store held other bytes than were sent. "
        "Nothing refers to them. Check the network path (a proxy?) and the store"
    )


def is_same(stored: RemoteFile | None, content: Content, remote: Remote, line: Line) -> bool:
    """Whether an object is what it should be: by size, and by the store's own checksum.

    Where the store has none, by reading every byte back.
    """
    if stored is None or stored.bytes != content.bytes:
        return False
    if stored.md5 is not None:
        return stored.md5 == content.md5
    return line.ask(lambda: remote.holds(stored.key, content.source))


def compare(
    parcel: Parcel,
    contents: Mapping[str, Content],
    there: Mapping[str, RemoteFile],
    remote: Remote,
) -> None:
    """All of a copy's files once more, as the store lists them. Raises Unsendable."""
    for name, content in contents.items():
        stored = there.get(name)
        if stored is None or stored.bytes != content.bytes or stored.md5 not in (None, content.md5):
            raise Unsendable(
                f"{remote.url}/{parcel.prefix}{name} was sent and verified, and is not listed so "
                f"now ({stored}). No manifest was written; `headway upload push` tries again"
            )


def refuse_damaged(parcel: Parcel, there: Mapping[str, RemoteFile], remote: Remote) -> None:
    """A copy that is committed already must be whole; it is never changed. Raises Unsendable."""
    wrong = lacking(parcel.files, there)
    if wrong:
        raise Unsendable(
            f"{remote.url}/{parcel.prefix} has a manifest, but {wrong[:3]} are not what it says. "
            "It was left as it is: restoring skips it; `headway upload clean --damaged` deletes it"
        )


@contextlib.contextmanager
def packed_or_unsendable(parcel: Parcel, archive: Kind) -> Iterator[Path]:
    """The archive of a parcel whose files are good; Unsendable if the disk has no room for it."""
    failures: tuple[type[Exception], ...] = (OSError, *zstd_errors(archive))
    try:
        with packed(parcel, archive) as packet:
            yield packet
    except failures as error:
        why = getattr(error, "strerror", None) or error
        raise Unsendable(
            f"{parcel.name} could not be packed: {why}. An archive needs as "
            "much free disk as the checkpoint; upload.archive: none needs none"
        ) from error


def refuse_damaged_files(parcel: Parcel) -> None:
    """What goes into an archive is compared with the manifest before."""
    for name, fact in parcel.files.items():
        hashed(parcel.folder / name, fact)


def read_manifest(parcel: Parcel) -> bytes:
    """The manifest, unless it is not the one the parcel was made from."""
    data = read_regular(parcel.folder / parcel.manifest)
    if hashlib.sha256(data).hexdigest() != parcel.digest:
        raise Unsendable(f"{parcel.folder / parcel.manifest} is not the manifest that was saved")
    return data


def hashed(path: Path, fact: FileFact) -> Content:
    """Read a local file once; Unsendable unless it is what its manifest says."""
    ours, theirs = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    size = 0
    try:
        with open_regular(path) as file:
            while block := file.read(_BLOCK_BYTES):
                ours.update(block)
                theirs.update(block)
                size += len(block)
    except OSError as error:
        raise Unsendable(f"{path} cannot be read: {error.strerror}") from error
    if size != fact.bytes or ours.hexdigest() != fact.sha256:
        raise Unsendable(
            f"{path} is not what was saved (size or SHA-256 differ), so it was not sent. "
            "`headway checkpoints verify` checks the others"
        )
    return Content(source=path, bytes=size, md5=theirs.hexdigest())


def of_bytes(data: bytes) -> Content:
    """A small object."""
    return Content(source=data, bytes=len(data), md5=md5(data))


def md5(data: bytes) -> str:
    """Hex, as stores give it; against damage, not against an attacker."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def read_regular(path: Path, start: int = 0) -> bytes:
    """A regular file from byte ``start`` on. Raises Unsendable."""
    try:
        with open_regular(path) as file:
            file.seek(start)
            return file.read()
    except OSError as error:
        raise Unsendable(f"{path} cannot be read: {error.strerror}") from error


def open_regular(path: Path) -> io.FileIO:
    """Open for reading, never through a link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(fd, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        file.close()
        raise Unsendable(f"{path} is not a regular file")
    return file
