"""S3, and what speaks like it: one request a call, through botocore, the client beneath s3fs.

Why not s3fs itself: it retries inside botocore's retries, an exception while writing commits a cut
object, and its event loop does not survive a fork. Every body is sent with its MD5, which the store
checks; what it then says it holds is compared here too, because some stores only pretend to check.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from headway.errors import ConfigError, RemoteError
from headway.upload import boto
from headway.upload.faults import Changed, Exists, Refused, Temporary
from headway.upload.objects import (
    BLOCK_BYTES,
    Abilities,
    Moved,
    RemoteFile,
    Source,
    Stretch,
    md5_of,
    size_of,
)
from headway.upload.parallel import Stopped, run_all

PART_BYTES = 16 << 20
"""A larger file is sent in parts of this size; of more where that would make more than 9,000 (the
limit is 10,000: Amazon S3 User Guide, Multipart upload limits)."""

PAGE_OBJECTS = 1000
PARALLEL_PARTS = 4
TRIES_PER_PART = 3
"""A part that failed does not cost the parts that are there. Nothing else is tried again here."""

_MD5 = re.compile(r"[0-9a-f]{32}")
_MD5_OF_PARTS = re.compile(r"[0-9a-f]{32}-\d+")


class S3Store:
    """One bucket. Endpoint, region and credentials come from botocore's own chain."""

    def __init__(self, bucket: str, patience_seconds: float) -> None:
        """Sends nothing. Raises ConfigError where botocore is missing."""
        self.bucket = bucket
        self.abilities = Abilities(
            create_only=True, checksums=True, ranges=True, compare_and_swap=True
        )
        self._patience_seconds = patience_seconds
        self._opening = threading.Lock()
        self._client: Any = None
        if not boto.is_installed():
            raise ConfigError(
                f"s3://{bucket} needs a package that is not installed: pip install 'headway[s3]'"
            )

    def put(self, name: str, source: Source, create_only: bool, sent: Moved) -> RemoteFile:
        """In one request, or in parts that become an object only with the last request."""
        doing = self._doing("writing", name)
        if create_only and self.abilities.create_only:
            try:
                return self._put(name, source, {"IfNoneMatch": "*"}, sent)
            except Refused as error:
                if error.code != "NotImplemented":
                    raise
                self._lacks_conditions(create_only=False, compare_and_swap=False)
        if create_only and self.head(name) is not None:
            raise Exists(f"{doing}: it already exists")
        return self._put(name, source, {}, sent)

    def head(self, name: str) -> RemoteFile | None:
        """HeadObject. A missing bucket cannot be told from a missing object here."""
        try:
            found = self._ask("head_object", self._doing("looking for", name), Key=name)
        except Refused as error:
            if error.code in ("404", "NoSuchKey"):
                return None
            raise
        return self._described(
            name, found["ContentLength"], found.get("ETag"), found.get("LastModified")
        )

    def read(self, name: str) -> tuple[bytes, str]:
        """GetObject."""
        doing = self._doing("reading", name)
        found = self._ask("get_object", doing, Key=name)
        with boto.explained(doing), contextlib.closing(found["Body"]) as body:
            return body.read(), found.get("ETag", "")

    def fetch(self, file: RemoteFile, start: int, stop: int, take: Callable[[bytes], None]) -> None:
        """GetObject of a range, of exactly the version in ``file``."""
        doing = self._doing("reading", file.key)
        wanted: dict[str, Any] = {"IfMatch": file.tag} if file.tag else {}
        if self.abilities.ranges and (start, stop) != (0, file.bytes):
            wanted["Range"] = f"bytes={start}-{stop - 1}"
        found = self._ask("get_object", doing, Key=file.key, **wanted)
        with contextlib.closing(found["Body"]) as body:
            if "Range" in wanted and not found.get("ContentRange", "").startswith(
                f"bytes {start}-"
            ):
                self.abilities = replace(self.abilities, ranges=False)
                raise Temporary(f"{doing}: the store ignores ranges; it is read whole from now on")
            blocks = body.iter_chunks(BLOCK_BYTES)
            while True:
                with boto.explained(doing):
                    block = next(blocks, None)
                if block is None:
                    return
                take(block)

    def files(self, prefix: str) -> Iterator[RemoteFile]:
        """ListObjectsV2, page after page."""
        doing = self._doing("listing", prefix)
        more: dict[str, Any] = {}
        while True:
            page = self._ask("list_objects_v2", doing, Prefix=prefix, MaxKeys=PAGE_OBJECTS, **more)
            for found in page.get("Contents", ()):
                yield self._described(
                    found["Key"], found["Size"], found.get("ETag"), found.get("LastModified")
                )
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, name: str) -> None:
        """DeleteObject."""
        try:
            self._ask("delete_object", self._doing("deleting", name), Key=name)
        except Refused as error:
            if error.code != "NoSuchKey":  # Swift says it, Amazon does not
                raise

    def swap(self, name: str, data: bytes, tag: str | None) -> RemoteFile:
        """PutObject with If-Match or If-None-Match; where the store has neither, after asking."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        if self.abilities.compare_and_swap:
            try:
                return self._put(name, data, condition, lambda count: None)
            except Exists as error:
                raise Changed(str(error)) from None
            except Refused as error:
                if error.code in ("NoSuchKey", "404"):  # Amazon's answer to If-Match on nothing
                    raise Changed(str(error)) from None
                if error.code != "NotImplemented":
                    raise
                self._lacks_conditions(compare_and_swap=False)
        found = self.head(name)
        if (found.tag if found else None) != tag:
            raise Changed(f"{self._doing('replacing', name)}: it is not what was expected")
        return self._put(name, data, {}, lambda count: None)

    def is_copy(self, file: RemoteFile, source: Source) -> bool | None:
        """By MD5, or by the MD5 of the parts' MD5s where it was sent in our parts."""
        size = size_of(source)
        if file.bytes != size:
            return False
        if file.md5 is not None:
            return md5_of(source).hex() == file.md5
        tag = file.tag.strip('"')
        parts = _parts(size)
        if not self.abilities.checksums or not _MD5_OF_PARTS.fullmatch(tag):
            return None
        if tag.rpartition("-")[2] != str(len(parts)):
            return None  # somebody else's parts
        return _md5_of_parts([md5_of(source, *part) for part in parts]) == tag

    def abandon(self, prefix: str, before: float) -> list[str]:
        """AbortMultipartUpload for those under the prefix that began before."""
        doing, gone, more = self._doing("cleaning", prefix), [], dict[str, str]()
        while True:
            page = self._ask("list_multipart_uploads", doing, Prefix=prefix, **more)
            for upload in page.get("Uploads", ()):
                if upload["Initiated"].timestamp() < before:
                    self._abort(upload["Key"], upload["UploadId"])
                    gone.append(upload["Key"])
            if not page.get("IsTruncated"):
                return gone
            more = {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }

    def _put(self, name: str, source: Source, condition: dict[str, str], sent: Moved) -> RemoteFile:
        doing = self._doing("writing", name)
        parts = _parts(size_of(source))
        if len(parts) > 1:
            found, expected = self._put_parts(name, source, parts, condition, sent)
        else:
            found, expected = self._send(
                "put_object", doing, source, parts[0], sent, Key=name, **condition
            )
        self._compare(name, found, expected, doing)
        return self._described(name, parts[-1][1], found.get("ETag"), _date_of(found))

    def _put_parts(
        self,
        name: str,
        source: Source,
        parts: list[tuple[int, int]],
        condition: dict[str, str],
        sent: Moved,
    ) -> tuple[dict[str, Any], str]:
        """A multipart upload, aborted if anything fails: the answer, and the ETag it must have."""
        doing = self._doing("writing", name)
        upload_id = self._ask("create_multipart_upload", doing, Key=name)["UploadId"]
        stopped = threading.Event()

        def send(number: int, part: tuple[int, int]) -> tuple[str, str]:
            for tries in range(1, TRIES_PER_PART + 1):
                try:
                    found, digest = self._send(
                        "upload_part", doing, source, part, sent,
                        Key=name, UploadId=upload_id, PartNumber=number,
                    )  # fmt: skip
                    self._compare("", found, digest, doing)
                    return found["ETag"], digest
                except Temporary as error:
                    if tries == TRIES_PER_PART or error.retry_after_seconds:
                        raise
                if stopped.wait(tries * random.random()):
                    raise Stopped
            raise AssertionError("the last try returns or raises")

        try:
            jobs = [partial(send, number, part) for number, part in enumerate(parts, 1)]
            done = run_all(jobs, PARALLEL_PARTS, stopped, "upload-part")
            listed = [{"ETag": tag, "PartNumber": n} for n, (tag, _) in enumerate(done, 1)]
            found = self._ask(
                "complete_multipart_upload", doing, Key=name, UploadId=upload_id,
                MultipartUpload={"Parts": listed}, **condition,
            )  # fmt: skip
        except BaseException:
            with contextlib.suppress(RemoteError):
                self._abort(name, upload_id)
            raise
        return found, _md5_of_parts([bytes.fromhex(digest) for _, digest in done])

    def _send(
        self,
        request: str,
        doing: str,
        source: Source,
        part: tuple[int, int],
        sent: Moved,
        **options: Any,
    ) -> tuple[dict[str, Any], str]:
        """One request with a body, and its MD5 in hex."""
        digest = md5_of(source, *part)
        md5 = base64.b64encode(digest).decode()
        with contextlib.closing(Stretch(source, *part, sent)) as body:
            try:
                found = self._ask(request, doing, Body=body, ContentMD5=md5, **options)
            except RemoteError:
                if body.error is not None:
                    raise body.error from None
                raise
        return found, digest.hex()

    def _compare(self, name: str, found: dict[str, Any], expected: str, doing: str) -> None:
        """Raise Temporary if the store holds other bytes; the object ``name`` is then deleted."""
        tag = found.get("ETag", "").strip('"').lower()
        encryption = found.get("ServerSideEncryption", "AES256")
        if encryption != "AES256" or "SSECustomerAlgorithm" in found:
            self.abilities = replace(self.abilities, checksums=False)  # then no ETag is an MD5
        if not self.abilities.checksums or len(tag) != len(expected) or tag == expected:
            return
        if name:
            with contextlib.suppress(RemoteError):
                self.delete(name)
        raise Temporary(f"{doing}: the store received other bytes than were sent ({tag})")

    def _lacks_conditions(self, **lost: bool) -> None:
        """Remember it. Swift closes the connection then, which the next request must not meet."""
        self.abilities = replace(self.abilities, **lost)
        self._connected().close()  # the idle connections; the client opens others

    def _described(self, name: str, size: int, tag: str | None, changed: Any) -> RemoteFile:
        plain = (tag or "").strip('"').lower()
        md5 = plain if self.abilities.checksums and _MD5.fullmatch(plain) else None
        return RemoteFile(name, size, md5, changed.timestamp() if changed else None, tag or "")

    def _abort(self, name: str, upload_id: str) -> None:
        try:
            self._ask(
                "abort_multipart_upload",
                self._doing("cleaning", name),
                Key=name,
                UploadId=upload_id,
            )
        except Temporary as error:
            if "NoSuchUpload" not in str(error):
                raise

    def _doing(self, verb: str, name: str) -> str:
        return f"{verb} s3://{self.bucket}/{name}"

    def _ask(self, request: str, doing: str, **options: Any) -> dict[str, Any]:
        with boto.explained(doing):
            answer: dict[str, Any] = getattr(self._connected(), request)(
                Bucket=self.bucket, **options
            )
        return answer

    def _connected(self) -> Any:
        """The client, which threads may share; made at the first request."""
        with self._opening:
            if self._client is None:
                self._client = boto.connected(self._patience_seconds)
            return self._client


def _parts(size: int) -> list[tuple[int, int]]:
    """(start, stop) of each part: a function of the size, so that a checksum can be repeated."""
    part = max(PART_BYTES, -(-size // 9000 >> 20) << 20) if size > PART_BYTES else PART_BYTES
    return [(start, min(start + part, size)) for start in range(0, max(size, 1), part)]


def _md5_of_parts(digests: list[bytes]) -> str:
    """The ETag of an object that was sent in parts, as Amazon, Swift and MinIO compute it."""
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return f"{whole}-{len(digests)}"


def _date_of(found: dict[str, Any]) -> Any:
    """The store's clock, from the answer's Date."""
    date = found.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return parsedate_to_datetime(date) if date else None
    except ValueError:
        return None


__all__ = ["S3Store"]
