"""Whether a copy is, byte by byte, what its manifest says: the slow question, for who asks it.

Where this disk has the same file, its MD5 is compared with the store's own; where it has not, or
the store keeps none, every byte is read back and hashed. Nothing is written.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from headway.upload.layout import Bad, Copy, FileFact, archive_fact, archive_of
from headway.upload.line import Line
from headway.upload.objects import RemoteFile
from headway.upload.remote import RANGE_BYTES, Remote
from headway.upload.restoring import missing_is_bad, whole
from headway.upload.sending import Unsendable, hashed, is_same


def damage_in(copy: Copy, remote: Remote, line: Line, here: Path | None = None) -> tuple[str, ...]:
    """What is wrong with a committed copy; empty if nothing is.

    ``here``: the directory of the same checkpoint on this disk, which saves reading back. Raises
    RemoteError when the bucket cannot be asked.
    """
    try:
        _, files = whole(copy, remote, line)
        archive = archive_of(copy.files)
        facts: dict[str, FileFact] = {archive: archive_fact(archive)} if archive else {**files}
        local = None if archive else here
        return tuple(
            f"{name} has other bytes than its manifest says"
            for name, fact in sorted(facts.items())
            if not is_good(copy.files[name], fact, local / name if local else None, remote, line)
        )
    except Bad as error:
        return (str(error),)


def is_good(
    file: RemoteFile, fact: FileFact, here: Path | None, remote: Remote, line: Line
) -> bool:
    """Whether an object has the bytes of ``fact``. Raises Bad when it is gone."""
    with missing_is_bad():
        if here is not None:
            with contextlib.suppress(Unsendable):  # the local one is damaged: read the other
                return is_same(file, hashed(here, fact), remote, line)
        return sha256_there(file, remote, line) == fact.sha256


def sha256_there(file: RemoteFile, remote: Remote, line: Line) -> str:
    """Hex, of what the store sends; in memory one range at a time."""
    digest = hashlib.sha256()
    step = RANGE_BYTES if remote.abilities.ranges else max(1, file.bytes)
    for start in range(0, file.bytes, step):
        stop = min(start + step, file.bytes)
        digest.update(line.ask(lambda a=start, b=stop: remote.read_part(file, a, b)))  # type: ignore[misc]
    return digest.hexdigest()
