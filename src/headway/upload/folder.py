"""A folder on this machine, or on a disk that several share, as a store.

An object appears whole or not at all: it is written beside its place, synced, and linked there,
which fails when the name is taken. The file system keeps no checksum: the caller reads back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from headway.system import fsync_directory
from headway.upload.faults import Changed, Exists, Refused, Temporary
from headway.upload.objects import READ_BYTES, Abilities, Moved, RemoteFile, Source, opened

PARTIAL = ".partial-"
_LOCK = ".lock"
_PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EBUSY, errno.EINTR}


class FolderStore:
    """The files under one folder. A name is a relative path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.abilities = Abilities(
            create_only=True, checksums=False, ranges=True, compare_and_swap=True
        )
        self._swapping = threading.Lock()

    def put(self, name: str, source: Source, create_only: bool, sent: Moved) -> RemoteFile:
        """Write, fsync, link (or rename, if it may replace), fsync the folder."""
        with _explained(f"writing {self.root / name}"):
            path = self._inside(name)
            self._make_folder(path.parent)
            partial = path.parent / f"{PARTIAL}{path.name}-{secrets.token_hex(4)}"
            try:
                _write(partial, source, sent)
                if create_only:
                    self._link(partial, path)
                else:
                    partial.replace(path)
                fsync_directory(path.parent)
            finally:
                partial.unlink(missing_ok=True)
            return self._described(name, path)

    def head(self, name: str) -> RemoteFile | None:
        """What the file system says of a regular file."""
        with _explained(f"looking for {self.root / name}"):
            path = self._inside(name)
            return self._described(name, path) if path.is_file() else None

    def read(self, name: str) -> tuple[bytes, str]:
        """The whole file."""
        with _explained(f"reading {self.root / name}"):
            with self._inside(name).open("rb") as file:
                return file.read(), _tag(os.fstat(file.fileno()))

    def fetch(self, file: RemoteFile, start: int, stop: int, take: Callable[[bytes], None]) -> None:
        """Read a stretch of it."""
        doing = f"reading {self.root / file.key}"
        with contextlib.ExitStack() as stack:
            with _explained(doing):
                source = stack.enter_context(self._inside(file.key).open("rb"))
                source.seek(start)
            while start < stop:
                with _explained(doing):
                    block = source.read(min(READ_BYTES, stop - start))
                if not block:
                    raise Temporary(f"{doing}: it became shorter")
                take(block)  # its errors are not the folder's: this machine's disk may be full
                start += len(block)

    def files(self, prefix: str) -> Iterator[RemoteFile]:
        """Every regular file whose relative path begins so; what is being written is none."""
        folder, _, start = prefix.rpartition("/")
        with _explained(f"listing {self.root / prefix}"):
            top = self._inside(folder) if folder else self.root
            for parent, folders, files in os.walk(top, onerror=_raise_unless_missing):
                folders[:] = sorted(folders)
                for file in sorted(files):
                    path = Path(parent, file)
                    name = path.relative_to(self.root).as_posix()
                    within = path.relative_to(top).as_posix()
                    if within.startswith(start) and not file.startswith((PARTIAL, _LOCK)):
                        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                            if path.is_file() and not path.is_symlink():
                                yield self._described(name, path)

    def delete(self, name: str) -> None:
        """Unlink it, and the folders that this leaves empty."""
        with _explained(f"deleting {self.root / name}"):
            path = self._inside(name)
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.root or not folder.is_relative_to(self.root):
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break

    def swap(self, name: str, data: bytes, tag: str | None) -> RemoteFile:
        """Compare and replace under a lock that every process on this folder takes."""
        with _explained(f"replacing {self.root / name}"):
            path = self._inside(name)
            self._make_folder(path.parent)
            with self._swapping, (path.parent / _LOCK).open("a") as lock:
                fcntl.lockf(lock, fcntl.LOCK_EX)  # released when the file is closed
                found = _tag(path.stat()) if path.exists() else None
                if found != tag:
                    raise Changed(f"{path} is not what was expected")
                return self.put(name, data, False, lambda count: None)

    def is_copy(self, file: RemoteFile, source: Source) -> bool | None:
        """A file system keeps no checksum."""
        return None

    def abandon(self, prefix: str, before: float) -> list[str]:
        """Remove partial files that nothing has written to since ``before``."""
        gone = []
        with _explained(f"cleaning {self.root / prefix}"):
            for path in sorted((self.root / prefix).rglob(f"{PARTIAL}*")):
                if path.stat().st_mtime < before:
                    path.unlink(missing_ok=True)
                    gone.append(path.relative_to(self.root).as_posix())
        return gone

    def _described(self, name: str, path: Path) -> RemoteFile:
        found = path.stat()
        return RemoteFile(name, found.st_size, None, found.st_mtime, _tag(found))

    def _inside(self, name: str) -> Path:
        """The path of a name, refusing one that a symbolic link leads out of the root."""
        path = self.root / name
        folder = path.parent.resolve()
        if path.is_symlink() or not folder.is_relative_to(self.root.resolve()):
            raise Refused(f"{path} leads out of {self.root} by a symbolic link")
        return path

    def _make_folder(self, folder: Path) -> None:
        """Make it and its parents durable, as far up as they were missing."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        fsync_directory(folder.parent)

    def _link(self, partial: Path, path: Path) -> None:
        try:
            os.link(partial, path)
        except FileExistsError:
            raise Exists(f"{path} already exists") from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            # FAT and some FUSE disks have no hard links.
            self.abilities = Abilities(
                create_only=False, checksums=False, ranges=True, compare_and_swap=True
            )
            if path.exists():
                raise Exists(f"{path} already exists") from None
            partial.rename(path)


def _write(path: Path, source: Source, sent: Moved) -> None:
    with path.open("xb") as file, opened(source) as data:
        while block := data.read(READ_BYTES):
            file.write(block)
            sent(len(block))
        file.flush()
        os.fsync(file.fileno())


def _tag(found: os.stat_result) -> str:
    """A replaced file has another inode, or the inode another time."""
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


@contextlib.contextmanager
def _explained(doing: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Refused(f"{doing}: {error.strerror}", code="404") from error
    except OSError as error:
        if error.errno in _PASSING:
            raise Temporary(f"{doing}: {error.strerror}") from error
        raise Refused(f"{doing}: {error.strerror or error}", "Check the disk and its rights") from (
            error
        )


__all__ = ["FolderStore"]
