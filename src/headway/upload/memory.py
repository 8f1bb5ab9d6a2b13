"""A store in this process's memory, through fsspec: for tests, and for trying things."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator

from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from headway.upload.faults import Changed, Exists, Refused
from headway.upload.objects import Abilities, Moved, RemoteFile, Source, opened, size_of

_CHANGING = threading.Lock()  # fsspec's own store is one for the whole process


class MemoryStore:
    """All of ``memory://``, which lives as long as the process."""

    def __init__(self) -> None:
        self.abilities = Abilities(
            create_only=True, checksums=False, ranges=True, compare_and_swap=True
        )
        self._files: dict[str, MemoryFile] = MemoryFileSystem.store

    def put(self, name: str, source: Source, create_only: bool, sent: Moved) -> RemoteFile:
        """Keep a copy."""
        with opened(source) as file:
            data = file.read()
        sent(size_of(source))
        with _CHANGING:
            if create_only and f"/{name}" in self._files:
                raise Exists(f"memory://{name} already exists")
            return self._kept(name, data)

    def head(self, name: str) -> RemoteFile | None:
        """What is there."""
        file = self._files.get(f"/{name}")
        return self._described(name, file) if file is not None else None

    def read(self, name: str) -> tuple[bytes, str]:
        """The bytes."""
        file = self._files.get(f"/{name}")
        if file is None:
            raise Refused(f"memory://{name} is not there", code="404")
        return file.getvalue(), _tag(file)

    def fetch(self, file: RemoteFile, start: int, stop: int, take: Callable[[bytes], None]) -> None:
        """A stretch of them."""
        take(self.read(file.key)[0][start:stop])

    def files(self, prefix: str) -> Iterator[RemoteFile]:
        """Those whose name begins so."""
        for name, file in sorted(self._files.items()):
            if name.startswith(f"/{prefix}"):
                yield self._described(name[1:], file)

    def delete(self, name: str) -> None:
        """Forget it."""
        self._files.pop(f"/{name}", None)

    def swap(self, name: str, data: bytes, tag: str | None) -> RemoteFile:
        """Under a lock."""
        with _CHANGING:
            file = self._files.get(f"/{name}")
            if (_tag(file) if file is not None else None) != tag:
                raise Changed(f"memory://{name} is not what was expected")
            return self._kept(name, data)

    def is_copy(self, file: RemoteFile, source: Source) -> bool | None:
        """Nothing is kept but the bytes."""
        return None

    def abandon(self, prefix: str, before: float) -> list[str]:
        """Nothing is ever half there."""
        return []

    def _kept(self, name: str, data: bytes) -> RemoteFile:
        file = self._files[f"/{name}"] = MemoryFile(None, f"/{name}", data)
        file.tag = secrets.token_hex(8)
        return self._described(name, file)

    def _described(self, name: str, file: MemoryFile) -> RemoteFile:
        return RemoteFile(name, len(file.getvalue()), None, file.modified.timestamp(), _tag(file))


def _tag(file: MemoryFile) -> str:
    """Which version it is; another program's files have none."""
    return str(getattr(file, "tag", ""))


__all__ = ["MemoryStore"]
