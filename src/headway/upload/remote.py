"""One prefix in one bucket: a folder, S3 and what speaks like it, Google Cloud Storage, or memory.

*Promises*: an object appears whole or not at all. Where the store keeps checksums, ``put`` returns
only after they were compared. A request is asked once: who calls decides whether to ask again
(``Temporary``) or to stop (``Refused``). No request waits for ever. Credentials come from the
environment or the provider's own chain, and are in no URL and no message.

*Does not promise*: that what is read back is what was written (compare with a manifest), an order
between writers, or use across a fork: make one per process. It may be shared by threads.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from headway.errors import ConfigError
from headway.upload.faults import Changed, Exists, Refused, Temporary
from headway.upload.objects import (
    Abilities,
    Moved,
    RemoteFile,
    Source,
    Store,
    md5_of,
    opened,
    size_of,
)
from headway.upload.parallel import Stopped, run_all

RANGE_BYTES = 32 << 20
PARALLEL_RANGES = 4
TRIES_WITHOUT_A_BYTE = 3
"""A download goes on after a broken connection; it ends when so many in a row brought nothing."""

LONGEST_KEY_BYTES = 900
"""Of prefix and key; S3 and GCS allow 1,024."""

Files = list[RemoteFile]
Keys = list[str]

_CREDENTIALS = re.compile(r"://(?:[^/]*@|[^@]*:[^@]*@)")
"""Anything before an @ in the host's place, or a colon before one: a secret may hold slashes."""
_HOST = re.compile(r"[\w-]+(?:\.[\w-]+)*\.?|[0-9a-f:.]+", re.IGNORECASE | re.ASCII)
_PART = re.compile(r"[^\x00-\x1f\x7f\\/]+")


class Remote:
    """The objects under one URL. Keys are relative to it."""

    def __init__(self, url: str, *, patience_seconds: float = 60.0) -> None:
        """``url``: ``s3://bucket/prefix``, ``gs://…``, ``/folder``, ``file://…``, ``memory://…``.

        ``patience_seconds``: how long a connection may stand still. Sends nothing. Raises
        ConfigError for another scheme, a missing extra, or a URL with credentials in it.
        """
        self.url, self._prefix, self._store = _opened(url, patience_seconds)

    @property
    def abilities(self) -> Abilities:
        """What the store does, as known by now: see ``probe``."""
        return self._store.abilities

    def learn(self, abilities: Abilities) -> None:
        """Believe this of the store from now on."""
        self._store.abilities = abilities

    def put(
        self,
        key: str,
        source: Path | bytes,
        *,
        create_only: bool = True,
        sent: Moved | None = None,
    ) -> RemoteFile:
        """Store a finished file, or bytes. Raises Exists, Temporary, Refused.

        ``sent(bytes)`` is called as bytes leave, by several threads for a large file; it may block
        (a bandwidth limit) or raise (which ends the upload). What is sent again counts again.
        """
        file = self._store.put(self._name(key), source, create_only, sent or _nothing)
        return replace(file, key=key)

    def head(self, key: str) -> RemoteFile | None:
        """What is there; None if nothing is."""
        file = self._store.head(self._name(key))
        return replace(file, key=key) if file else None

    def read(self, key: str) -> bytes:
        """A small object, whole."""
        return self._store.read(self._name(key))[0]

    def holds(self, key: str, source: Path | bytes) -> bool:
        """Whether the object is there and is a copy of ``source``.

        By the store's checksum where it has one, also for objects sent in parts; else by reading
        every byte back.
        """
        file = self._store.head(self._name(key))
        if file is None or file.bytes != size_of(source):
            return False
        answer = self._store.is_copy(file, source)
        return self._is_read_back(file, source) if answer is None else answer

    def download(self, key: str, to: Path, *, got: Moved | None = None) -> None:
        """Write the object to a new file ``to`` and fsync it; a failed one leaves no file.

        In parallel ranges, each going on where a broken connection ended. ``got(bytes)`` is called
        as bytes arrive, by several threads; it may block or raise. Nothing is verified here.
        Raises OSError for the local disk, and never follows a link at ``to``.
        """
        file = self._store.head(self._name(key))
        if file is None:
            raise Refused(f"{self.url}/{key} is not there", code="404")
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        try:
            try:
                self._fill(fd, file, got or _nothing)
                os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            to.unlink(missing_ok=True)
            raise

    def list(self, prefix: str = "") -> Files:
        """Every object whose key begins with ``prefix``, by key.

        Keys that are no relative path (``..``, control characters) are not ours and are left out.
        """
        start = self._prefix
        found = self._store.files(start + prefix)
        files = (replace(file, key=file.key.removeprefix(start)) for file in found)
        return sorted((f for f in files if _is_key(f.key)), key=lambda file: file.key)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete in the order given, each before the next; a missing one is fine."""
        for key in keys:
            self._store.delete(self._name(key))

    def replace(self, key: str, source: bytes, expected: str | None) -> RemoteFile:
        """Write only if the object is still what the caller read. Raises Changed.

        ``expected``: the MD5 (hex) of the bytes that must be there now, None: nothing may be
        there. Where ``abilities.compare_and_swap`` is false, another writer can come between.
        """
        name = self._name(key)
        tag = None
        if expected is not None:
            if self._store.head(name) is None:
                raise Changed(f"{self.url}/{key} is not there any more")
            found, tag = self._store.read(name)
            if md5_of(found).hex() != expected:
                raise Changed(f"{self.url}/{key} is not what was expected")
        return replace(self._store.swap(name, source, tag), key=key)

    def abandon(self, before: float, prefix: str = "") -> Keys:
        """Throw away uploads that began before an instant and were never finished; their keys.

        They are in no listing, and a store bills them. On Google they lapse after a week.
        """
        gone = self._store.abandon(self._prefix + prefix, before)
        return [name.removeprefix(self._prefix) for name in gone]

    def read_part(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)`` of this version of an object, in one request."""
        blocks: list[bytes] = []
        self._store.fetch(replace(file, key=self._name(file.key)), start, stop, blocks.append)
        return b"".join(blocks)

    def refuses_a_stale_replace(self, key: str) -> bool:
        """Write the object twice, the second time as if the first had not been: for ``probe``."""
        name = self._name(key)
        before = self._store.head(name)
        self._store.put(name, secrets.token_bytes(16), False, _nothing)
        try:
            self._store.swap(name, b"stale", before.tag if before else None)
        except Changed:
            return True
        return False

    def _name(self, key: str) -> str:
        """The whole name of a key. Raises ConfigError for one that is no plain relative path."""
        name = self._prefix + key
        if not _is_key(key) or len(name.encode()) > LONGEST_KEY_BYTES:
            raise ConfigError(
                f"{key!r} cannot be a key: parts between single slashes, no '.' or '..', no "
                f"control characters, at most {LONGEST_KEY_BYTES} bytes with the prefix"
            )
        return name

    def _fill(self, fd: int, file: RemoteFile, got: Moved) -> None:
        """Download every range, as many at a time as are allowed."""
        ranges = [
            (start, min(start + RANGE_BYTES, file.bytes))
            for start in range(0, file.bytes, RANGE_BYTES)
        ]
        if not self.abilities.ranges:
            ranges = [(0, file.bytes)]
        stopped = threading.Event()
        jobs = [partial(_fill_range, self._store, fd, file, *part, got, stopped) for part in ranges]
        run_all(jobs, PARALLEL_RANGES, stopped, "download")

    def _is_read_back(self, file: RemoteFile, source: Source) -> bool:
        """Compare every byte that the store sends with the source."""
        at, same = 0, True
        with opened(source) as local:
            while at < file.bytes and same:
                stop = min(at + RANGE_BYTES, file.bytes) if self.abilities.ranges else file.bytes

                def take(block: bytes) -> None:
                    nonlocal same
                    same = same and local.read(len(block)) == block

                self._store.fetch(file, at, stop, take)
                at = stop
        return same


def _fill_range(
    store: Store,
    fd: int,
    file: RemoteFile,
    start: int,
    stop: int,
    got: Callable[[int], None],
    stopped: threading.Event,
) -> None:
    at, in_vain = start, 0

    def take(block: bytes) -> None:
        nonlocal at
        if stopped.is_set():
            raise Stopped
        block = block[: stop - at]
        written = 0
        while written < len(block):
            written += os.pwrite(fd, block[written:], at + written)
        at += len(block)
        got(len(block))

    while at < stop:
        begun = at
        try:
            store.fetch(file, at, stop, take)
            if at < stop:
                raise Temporary(f"reading {file.key}: {stop - at} bytes of a range are missing")
        except Temporary as error:
            in_vain = in_vain + 1 if at == begun else 0
            if in_vain == TRIES_WITHOUT_A_BYTE or error.retry_after_seconds:
                raise
            if not store.abilities.ranges:
                at = start


def _opened(url: str, patience_seconds: float) -> tuple[str, str, Store]:
    """(URL without a slash at its end, prefix with one or empty, store)."""
    if "://" in url and (_CREDENTIALS.search(url) or "?" in url or "#" in url):
        raise ConfigError(
            f"a bucket URL ({shown(url)}) may hold no credentials, '?' or '#': they would be "
            "written to configs and logs. Set credentials in the environment"
        )
    parts = urlsplit(url)
    scheme = parts.scheme if "://" in url else ""
    place = parts.netloc + parts.path
    if scheme in ("", "file"):
        return _folder(url if not scheme else place)
    clean = f"{scheme}://{place.strip('/')}"
    bucket, _, prefix = place.strip("/").partition("/")
    if not parts.netloc or (prefix and not _is_key(prefix)):
        raise ConfigError(f"{url} is not {scheme}://BUCKET/PREFIX with a plain path as its prefix")
    prefix = prefix + "/" if prefix else ""
    if scheme == "s3":
        from headway.upload.s3 import S3Store

        _refuse_odd_endpoint()
        return clean, prefix, S3Store(bucket, patience_seconds)
    if scheme in ("gs", "gcs"):
        from headway.upload.gcs import GoogleStore

        return clean, prefix, GoogleStore(bucket, patience_seconds)
    if scheme == "memory":
        from headway.upload.memory import MemoryStore

        return clean, f"{bucket}/{prefix}", MemoryStore()
    raise ConfigError(
        f"{scheme}:// is not a place that headway can send to: use s3://BUCKET/PREFIX (other S3 "
        "servers too: AWS_ENDPOINT_URL_S3), gs://BUCKET/PREFIX or a folder"
    )


def shown(url: str) -> str:
    """The URL without what may be a secret: ``s3://…@bucket``."""
    return re.sub(r"[?#].*", "?…", re.sub(r"(?<=://).*@", "…@", url))


def folder_of(url: str) -> Path | None:
    """The folder that a URL means; None if it is no folder."""
    scheme, found, place = url.rpartition("://")
    return Path(place).expanduser().absolute() if scheme == "file" or not found else None


def _refuse_odd_endpoint() -> None:
    """ConfigError for an S3 address that is none or holds credentials; never shows it."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        value = os.environ.get(name)
        if not value:
            continue
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and bool(_HOST.fullmatch(parts.hostname or ""))
            good = good and (parts.port is None or parts.port > 0)
        except ValueError:  # its text would show the address
            good = False
        if not good or "@" in value or "?" in value or "#" in value:
            raise ConfigError(
                f"the environment variable {name} is not the address of a server: it must be "
                "https://HOST or https://HOST:PORT, without credentials (these belong in "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )


def _folder(path: str) -> tuple[str, str, Store]:
    from headway.upload.folder import FolderStore

    if not path or ".." in Path(path).parts:
        raise ConfigError(f"{path!r} is not a folder to send to: give its path without '..'")
    root = Path(path).expanduser().absolute()
    return str(root), "", FolderStore(root)


def _is_key(key: str) -> bool:
    parts = key.split("/")
    return all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)


def _nothing(count: int) -> None:
    return None


__all__ = ["Abilities", "Changed", "Exists", "Refused", "Remote", "RemoteFile", "Temporary"]
