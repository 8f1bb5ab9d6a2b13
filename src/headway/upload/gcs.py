"""Google Cloud Storage: its JSON API, one request a call, through google-auth and requests.

Why not gcsfs itself: it retries six times inside every call, asks a second service about the bucket
first (a minute's wait where that cannot be reached), refreshes credentials on its event loop, and
unpickles a file of the home directory when it is imported. https://cloud.google.com/storage/docs
/json_api describes the requests.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

from headway.errors import ConfigError, RemoteError
from headway.upload import google
from headway.upload.faults import Changed, Exists, Refused, Temporary, answered
from headway.upload.objects import (
    BLOCK_BYTES,
    Abilities,
    Moved,
    RemoteFile,
    Source,
    Stretch,
    md5_of,
    opened,
    size_of,
)

CHUNK_BYTES = 16 << 20
"""A larger file is sent in chunks of this size (a multiple of 256 KiB, as the protocol asks)."""

TRIES_PER_CHUNK = 3
PAGE_OBJECTS = 1000
_FIELDS = "name,size,md5Hash,generation,updated"


class GoogleStore:
    """One bucket. Credentials are Google's application default ones."""

    def __init__(self, bucket: str, patience_seconds: float) -> None:
        """Sends nothing. Raises ConfigError where google-auth is missing.

        ``STORAGE_EMULATOR_HOST`` names another server, which is asked without credentials.
        """
        self.bucket = bucket
        self.abilities = Abilities(
            create_only=True, checksums=True, ranges=True, compare_and_swap=True
        )
        self._patience_seconds = patience_seconds
        self._opening = threading.Lock()
        self._session: Any = None
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
        self._emulated = bool(emulator)
        host = emulator if "://" in emulator or not emulator else f"http://{emulator}"
        self._host = host.rstrip("/") or "https://storage.googleapis.com"
        if not google.is_installed():
            raise ConfigError(
                f"gs://{bucket} needs a package that is not installed: pip install 'headway[gcs]'"
            )

    def put(self, name: str, source: Source, create_only: bool, sent: Moved) -> RemoteFile:
        """Send it with its MD5, which Google compares before the object appears."""
        condition = {}
        if create_only:
            if self.abilities.create_only:
                condition = {"ifGenerationMatch": "0"}
            elif self.head(name) is not None:
                raise Exists(f"{self._doing('writing', name)}: it already exists")
        return self._put(name, source, condition, sent)

    def head(self, name: str) -> RemoteFile | None:
        """objects.get. A missing bucket cannot be told from a missing object here."""
        doing = self._doing("looking for", name)
        try:
            answer = self._ask("GET", doing, self._object(name))
        except Refused as error:
            if error.code == "404":
                return None
            raise
        return self._described(google.json_of(answer, doing))

    def read(self, name: str) -> tuple[bytes, str]:
        """objects.get of the media, of the version that is there now."""
        doing = self._doing("reading", name)
        file = self.head(name)
        if file is None:
            raise Refused(f"{doing}: it is not there", code="404")
        blocks: list[bytes] = []
        self.fetch(file, 0, file.bytes, blocks.append)
        return b"".join(blocks), file.tag

    def fetch(self, file: RemoteFile, start: int, stop: int, take: Callable[[bytes], None]) -> None:
        """objects.get of a range of the media, of exactly the version in ``file``."""
        doing = self._doing("reading", file.key)
        if start == stop:
            return
        headers = {"Accept-Encoding": "identity"}
        is_part = self.abilities.ranges and (start, stop) != (0, file.bytes)
        if is_part:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        asked = {"alt": "media", "generation": file.tag}
        answer = self._ask(
            "GET", doing, self._object(file.key), asked, headers=headers, stream=True
        )
        with contextlib.closing(answer):
            if is_part and answer.status_code != 206:
                self.abilities = replace(self.abilities, ranges=False)
                raise Temporary(f"{doing}: the store ignores ranges; it is read whole from now on")
            blocks = answer.iter_content(BLOCK_BYTES)
            while True:
                with google.explained(doing):
                    block = next(blocks, None)
                if block is None:
                    return
                take(block)

    def files(self, prefix: str) -> Iterator[RemoteFile]:
        """objects.list, page after page."""
        asked = {
            "prefix": prefix,
            "maxResults": str(PAGE_OBJECTS),
            "fields": f"items({_FIELDS}),nextPageToken",
        }
        doing = self._doing("listing", prefix)
        while True:
            url = f"{self._host}/storage/v1/b/{quote(self.bucket, safe='')}/o"
            page = google.json_of(self._ask("GET", doing, url, asked), doing)
            for found in page.get("items", ()):
                yield self._described(found)
            if not page.get("nextPageToken"):
                return
            asked["pageToken"] = page["nextPageToken"]

    def delete(self, name: str) -> None:
        """objects.delete."""
        try:
            self._ask("DELETE", self._doing("deleting", name), self._object(name))
        except Refused as error:
            if error.code != "404":
                raise

    def swap(self, name: str, data: bytes, tag: str | None) -> RemoteFile:
        """Insert under the condition that the generation is still the one that was read."""
        if not self.abilities.compare_and_swap:
            found = self.head(name)
            if (found.tag if found else None) != tag:
                raise Changed(f"{self._doing('replacing', name)}: it is not what was expected")
            return self._put(name, data, {}, lambda count: None)
        try:
            return self._put(name, data, {"ifGenerationMatch": tag or "0"}, lambda count: None)
        except Exists as error:
            raise Changed(str(error)) from None

    def is_copy(self, file: RemoteFile, source: Source) -> bool | None:
        """By MD5, which every object has that was not composed of others."""
        if file.bytes != size_of(source):
            return False
        return None if file.md5 is None else md5_of(source).hex() == file.md5

    def abandon(self, prefix: str, before: float) -> list[str]:
        """They cannot be listed, cost nothing, and lapse after a week."""
        return []

    def _put(self, name: str, source: Source, condition: dict[str, str], sent: Moved) -> RemoteFile:
        doing, size = self._doing("writing", name), size_of(source)
        digest = md5_of(source)
        about = {"name": name, "md5Hash": base64.b64encode(digest).decode()}
        send = self._send_whole if size <= CHUNK_BYTES else self._send_chunks
        file = self._described(send(doing, about, source, size, condition, sent))
        if file.bytes != size or (file.md5 is not None and file.md5 != digest.hex()):
            with contextlib.suppress(RemoteError):
                self.delete(name)
            raise Temporary(f"{doing}: the store received other bytes than were sent")
        return file

    def _send_whole(
        self,
        doing: str,
        about: dict[str, str],
        source: Source,
        size: int,
        condition: dict[str, str],
        sent: Moved,
    ) -> dict[str, Any]:
        """Description and bytes in one request (upload type multipart)."""
        mark = f"headway-{secrets.token_hex(16)}"
        with opened(source) as file:
            body = (
                f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
                f"{json.dumps(about)}\r\n--{mark}\r\nContent-Type: application/octet-stream\r\n\r\n"
            ).encode() + file.read()
        body += f"\r\n--{mark}--".encode()
        asked = {"uploadType": "multipart", "fields": _FIELDS, **condition}
        headers = {"Content-Type": f"multipart/related; boundary={mark}"}
        left = size

        def count(moved: int) -> None:  # the envelope's bytes are not the file's
            nonlocal left
            moved = min(moved, left)
            left -= moved
            sent(moved)

        answer = self._send(
            "POST", doing, self._upload(), asked, body, (0, len(body)), headers, count
        )
        return google.json_of(answer, doing)

    def _send_chunks(
        self,
        doing: str,
        about: dict[str, str],
        source: Source,
        size: int,
        condition: dict[str, str],
        sent: Moved,
    ) -> dict[str, Any]:
        """A resumable session: after a broken chunk Google says how much it has."""
        asked = {"uploadType": "resumable", "fields": _FIELDS, **condition}
        begun = self._ask("POST", doing, self._upload(), asked, json=about)
        session = begun.headers["Location"]
        at = tries = 0
        try:
            while True:
                stop = min(at + CHUNK_BYTES, size)
                try:
                    span = {"Content-Range": f"bytes {at}-{stop - 1}/{size}"}
                    answer = self._send("PUT", doing, session, {}, source, (at, stop), span, sent)
                    tries = 0
                except Temporary as error:
                    tries += 1
                    if tries == TRIES_PER_CHUNK or error.retry_after_seconds:
                        raise
                    time.sleep(tries * random.random())
                    answer = self._ask(
                        "PUT", doing, session, headers={"Content-Range": f"bytes */{size}"}
                    )
                if answer.status_code != 308:
                    return google.json_of(answer, doing)
                at = int(answer.headers.get("Range", "0-").rpartition("-")[2] or -1) + 1
        except BaseException:
            with contextlib.suppress(RemoteError):
                self._ask("DELETE", doing, session)  # answered with 499
            raise

    def _send(
        self,
        method: str,
        doing: str,
        url: str,
        asked: dict[str, str],
        source: Source,
        part: tuple[int, int],
        headers: dict[str, str],
        sent: Moved,
    ) -> Any:
        """One request with a body."""
        with contextlib.closing(Stretch(source, *part, sent)) as body:
            body.leaving = True  # nothing reads it before it leaves: it is not signed
            try:
                return self._ask(method, doing, url, asked, headers=headers, data=body)
            except RemoteError:
                if body.error is not None:
                    raise body.error from None
                raise

    def _ask(
        self, method: str, doing: str, url: str, asked: dict[str, str] | None = None, **options: Any
    ) -> Any:
        """The answer to one request, if it is a success or 308 (go on sending)."""
        with google.explained(doing):
            answer = self._connected().request(
                method,
                url,
                params=asked,
                timeout=(self._patience_seconds, self._patience_seconds),
                allow_redirects=False,
                **options,
            )
            if answer.status_code < 300 or answer.status_code == 308:
                return answer
            with contextlib.closing(answer):
                said = google.message_of(answer.content)
        if answer.status_code in (404, 410) and "upload_id=" in url:
            raise Temporary(f"{doing}: the store forgot this upload; begin it again")
        if answer.status_code == 400 and "MD5 hash" in said:
            raise Temporary(f"{doing}: the store refused bytes that changed on the way")
        raise answered(doing, answer.status_code, "", said, answer.headers.get("Retry-After"))

    def _connected(self) -> Any:
        """The session, which threads share; made at the first request."""
        with self._opening:
            if self._session is None:
                self._session = google.connected(self._emulated)
            return self._session

    def _object(self, name: str) -> str:
        return f"{self._host}/storage/v1/b/{quote(self.bucket, safe='')}/o/{quote(name, safe='')}"

    def _upload(self) -> str:
        return f"{self._host}/upload/storage/v1/b/{quote(self.bucket, safe='')}/o"

    def _described(self, found: dict[str, Any]) -> RemoteFile:
        md5 = None
        if self.abilities.checksums and found.get("md5Hash"):
            with contextlib.suppress(binascii.Error):
                md5 = base64.b64decode(found["md5Hash"]).hex()
        changed = found.get("updated")
        return RemoteFile(
            found["name"],
            int(found["size"]),
            md5,
            datetime.fromisoformat(changed).timestamp() if changed else None,
            str(found.get("generation", "")),
        )

    def _doing(self, verb: str, name: str) -> str:
        return f"{verb} gs://{self.bucket}/{name}"


__all__ = ["GoogleStore"]
