"""Does this bucket do what a run needs of it? Asked before a GPU is paid for, with one object.

*Promises*: what cannot work is a blocker that says what to do; what works with less safety is a
warning; the remote knows its store's abilities afterwards; the object is deleted again.

*Does not promise*: that the rights last, or that a large file goes through.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from headway.errors import RemoteError
from headway.records import Finding
from headway.upload.remote import Changed, Exists, Refused, Remote, Temporary

NO_ANSWER = "upload: no answer"
"""The name of the finding that may be another one in a minute: the bucket is down."""
TRIES = 3
PAUSE_SECONDS = 1.0

T = TypeVar("T")


class _Blocked(Exception):
    """The rest need not be asked."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding


def probe(remote: Remote) -> list[Finding]:
    """Put, put again, look, list, read, read a part, replace and delete one object.

    Takes about ten small requests. Never raises for what a store does.
    """
    key = f".probe-{secrets.token_hex(8)}"
    content = f"headway probe {secrets.token_hex(32)}".encode()
    findings: list[Finding] = []
    try:
        findings += _writing(remote, key, content)
        findings += _reading(remote, key)
        findings += _replacing(remote, key)
        _deleting(remote, key)
    except _Blocked as blocked:
        return [*findings, blocked.finding]
    finally:
        with contextlib.suppress(RemoteError):
            remote.delete([key])
    can = ", ".join(
        name.replace("_", " ")
        for name in ("create_only", "checksums", "ranges", "compare_and_swap")
        if getattr(remote.abilities, name)
    )
    works = f"{remote.url}: write, list, read and delete work; {can or 'nothing else'}"
    return [*findings, Finding(level="note", name="upload", what=works)]


def _writing(remote: Remote, key: str, content: bytes) -> list[Finding]:
    """A new object, and then the same key again, which must be refused."""
    _asked("list", lambda: remote.list(key))  # a HEAD's error would not say why
    with contextlib.suppress(Exists):  # the answer to our own first try was lost
        _asked("write to", lambda: remote.put(key, content))
    try:
        _asked("write to", lambda: remote.put(key, content[::-1]))
    except Exists:
        if remote.abilities.create_only:
            return []
    else:
        remote.learn(replace(remote.abilities, create_only=False))
    return [
        Finding(
            level="warning",
            name="upload: create only",
            what=f"{remote.url} does not refuse to overwrite an object (If-None-Match)",
            why="an object is looked for before it is written; a second machine could come between",
            fix="Let one machine write a run; headway gives every attempt its own keys anyway",
        )
    ]


def _reading(remote: Remote, key: str) -> list[Finding]:
    """What was stored is listed, described, and sent back, whole and in part."""
    findings = []
    data = _asked("read from", lambda: remote.read(key))
    file = _asked("look into", lambda: remote.head(key))
    if file is None or file.bytes != len(data):
        raise _Blocked(_wrong(remote, "says another size than it holds, or no object at all"))
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if file.md5 != md5:
        expected = remote.abilities.checksums
        remote.learn(replace(remote.abilities, checksums=False))
        findings.append(
            Finding(
                level="warning" if expected else "note",
                name="upload: checksums",
                what=f"{remote.url} says no MD5 of what it holds",
                why="small files are read back to verify them; of large ones the size is known, "
                "and that the store did not refuse a part's checksum",
                fix="Let `headway upload list` verify, or restore once before you rely on it",
            )
        )
    if key not in [listed.key for listed in _asked("list", lambda: remote.list(key[:8]))]:
        raise _Blocked(_wrong(remote, "does not list an object that it has just stored"))
    try:
        part = _asked("read from", lambda: remote.read_part(file, 5, 25))
    except Temporary:
        part = b""
    if part != data[5:25]:
        remote.learn(replace(remote.abilities, ranges=False))
        findings.append(
            Finding(
                level="warning",
                name="upload: ranges",
                what=f"{remote.url} does not send a part of an object (Range)",
                why="a download that breaks starts over",
                fix="Nothing to do, but expect slow restores",
            )
        )
    return findings


def _replacing(remote: Remote, key: str) -> list[Finding]:
    """Replace what is there, and be refused when it is not what was expected."""
    before = hashlib.md5(_asked("read from", lambda: remote.read(key)), usedforsecurity=False)
    with contextlib.suppress(Changed):  # the answer to our own first try was lost
        _asked("replace an object in", lambda: remote.replace(key, b"second", before.hexdigest()))
    if remote.abilities.compare_and_swap:
        if _asked("replace an object in", lambda: remote.refuses_a_stale_replace(key)):
            return []
        remote.learn(replace(remote.abilities, compare_and_swap=False))
    return [
        Finding(
            level="warning",
            name="upload: lease",
            what=f"{remote.url} cannot replace an object only if it is unchanged (If-Match)",
            why="two machines that write one run at the same time can both believe to be alone",
            fix="Let one machine write a run",
        )
    ]


def _deleting(remote: Remote, key: str) -> None:
    try:
        _asked("delete from", lambda: remote.delete([key]))
    except _Blocked as blocked:
        why = "copies that the retention drops could not be deleted, and would be billed for ever"
        raise _Blocked(replace(blocked.finding, why=why)) from None
    if _asked("look into", lambda: remote.head(key)) is not None:
        raise _Blocked(_wrong(remote, "still has an object that was deleted"))


def _asked(doing: str, request: Callable[[], T]) -> T:
    """The answer; a busy store is asked again a few times. Raises _Blocked, Exists."""
    for tries in range(1, TRIES + 1):
        try:
            return request()
        except Exists:
            raise
        except Refused as error:
            raise _Blocked(
                Finding(
                    level="blocker",
                    name="upload",
                    what=error.what,
                    why=f"headway must be able to {doing} the bucket, and cannot",
                    fix=error.fix,
                )
            ) from None
        except Temporary as error:
            if tries == TRIES:
                raise _Blocked(
                    Finding(
                        level="blocker",
                        name=NO_ANSWER,
                        what=str(error),
                        why=f"the bucket did not answer {TRIES} times in a row",
                        fix="Check the network, the endpoint (AWS_ENDPOINT_URL_S3) and the store",
                    )
                ) from None
            time.sleep(error.retry_after_seconds or PAUSE_SECONDS)
    raise AssertionError("the last try returns or raises")


def _wrong(remote: Remote, what: str) -> Finding:
    return Finding(
        level="blocker",
        name="upload",
        what=f"{remote.url} {what}",
        why="a copy could not be found again, or would not be what was saved",
        fix="Use a store that reads what it wrote (S3, Google Cloud Storage, Swift, MinIO …)",
    )


__all__ = ["probe"]
