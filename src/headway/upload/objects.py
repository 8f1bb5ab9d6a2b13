"""What the stores share: an object, what a store can do, and a stretch of a file to send."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

BLOCK_BYTES = 128 << 10
"""How often ``sent`` and ``got`` are called: a bandwidth limit is kept to within this much a
connection, and this much is read again when one breaks."""

READ_BYTES = 1 << 20

Source = Path | bytes
Moved = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One object, as the store describes it."""

    key: str
    """Relative to the remote's prefix, with ``/`` between its parts."""
    bytes: int
    md5: str | None
    """Hex, of the whole object, computed by the store; None where it says none."""
    modified_at: float | None
    """Seconds since 1970 by the store's clock."""
    tag: str = ""
    """The store's name for exactly these bytes (ETag, generation); empty where it has none."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a store does; as known for its kind until ``probe`` or an answer says otherwise."""

    create_only: bool
    """Refuses to write a key that exists. Without it: asked first, which another writer can race.
    """
    checksums: bool
    """Says an MD5 of what it holds."""
    ranges: bool
    """Sends part of an object. Without it a broken download starts over."""
    bulk_delete: bool = False
    """Not used anywhere: objects are deleted one by one, because their order is a promise."""
    compare_and_swap: bool = False
    """Replaces an object only if it is still the one that was read. Without it a lease cannot keep
    two machines apart."""


class Store(Protocol):
    """One kind of store. Names are whole (prefix and key); each call is one request, never two."""

    abilities: Abilities

    def put(self, name: str, source: Source, create_only: bool, sent: Moved) -> RemoteFile:
        """Store it; raises Exists. Returns only after comparing the store's checksums."""

    def head(self, name: str) -> RemoteFile | None:
        """What is there, None if nothing is."""

    def read(self, name: str) -> tuple[bytes, str]:
        """The bytes, and the tag of exactly these bytes. Raises Refused (404) if not there."""

    def fetch(self, file: RemoteFile, start: int, stop: int, take: Callable[[bytes], None]) -> None:
        """Hand ``take`` the bytes ``[start, stop)`` of this version, in order, as they come."""

    def files(self, prefix: str) -> Iterator[RemoteFile]:
        """Every object whose name begins so."""

    def delete(self, name: str) -> None:
        """Delete it; nothing happens if it is not there."""

    def swap(self, name: str, data: bytes, tag: str | None) -> RemoteFile:
        """Write it if the object there has this tag (None: if there is none); raises Changed."""

    def is_copy(self, file: RemoteFile, source: Source) -> bool | None:
        """Whether the store's checksum says that it holds these bytes; None if it says nothing."""

    def abandon(self, prefix: str, before: float) -> list[str]:
        """Throw away uploads that began before an instant and were never finished; their names."""


class Stretch(io.RawIOBase):
    """Bytes ``[start, stop)`` of a source, as the body of a request.

    Counts what is read only once it is ``leaving``: a client reads a body before, to sign it.
    """

    def __init__(self, source: Source, start: int, stop: int, sent: Moved) -> None:
        super().__init__()
        self.leaving = False
        self.error: BaseException | None = None
        self._file = opened(source)
        self._start, self._size = start, stop - start
        self._at = 0
        self._sent = sent
        self._uncounted = 0
        self._file.seek(start)

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return True

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes read so far."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = min(max(0, origin + offset), self._size)
        self._file.seek(self._start + self._at)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes; an error of ``sent`` is kept, because clients wrap what they catch."""
        left = self._size - self._at
        data = self._file.read(left if size is None or size < 0 else min(size, left))
        if left and size and not data:
            self.error = OSError("the file became shorter while it was sent")
            raise self.error
        self._at += len(data)
        if self.leaving:
            self._uncounted += len(data)
            if self._uncounted >= BLOCK_BYTES or self._at == self._size:
                self._count()
        return data

    def close(self) -> None:
        """Close the source."""
        self._file.close()
        super().close()

    def _count(self) -> None:
        count, self._uncounted = self._uncounted, 0
        try:
            if count:
                self._sent(count)
        except BaseException as error:
            self.error = error
            raise


def opened(source: Source) -> BinaryIO:
    """A source for reading."""
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def size_of(source: Source) -> int:
    """Its bytes."""
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def md5_of(source: Source, start: int = 0, stop: int | None = None) -> bytes:
    """MD5 of bytes ``[start, stop)`` of a source, as 16 bytes."""
    digest = hashlib.md5(usedforsecurity=False)
    left = (size_of(source) if stop is None else stop) - start
    with opened(source) as file:
        file.seek(start)
        while left > 0 and (block := file.read(min(READ_BYTES, left))):
            digest.update(block)
            left -= len(block)
    return digest.digest()


__all__ = ["Abilities", "Moved", "RemoteFile", "Source", "Store", "Stretch", "md5_of", "opened"]
