"""What may go from the bucket: by retention, and what dead uploads left behind.

A copy loses its manifest first, so that a deletion killed half-way leaves nothing that looks whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from headway.upload.layout import (
    CHECKPOINTS,
    FRESH,
    FROM,
    MANIFEST_NAME,
    Copy,
    copies,
    standing_in,
)
from headway.upload.line import Line
from headway.upload.remote import Remote

Expendable = Callable[[Collection[int], Mapping[int, float]], Collection[int]]
"""(steps there are, step -> held-out loss) -> the steps that may be deleted."""
ORPHAN_SECONDS = 24 * 3600.0
"""An upload that has not added a file for a day is dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something in the bucket that no restore would use."""

    copy: Copy
    why: str


def copies_in(remote: Remote, line: Line) -> tuple[list[Copy], list[Copy]]:
    """(every copy, whole or not; those that stand), oldest first."""
    files = line.ask(lambda: remote.list(CHECKPOINTS))
    for marks in (FRESH, FROM):
        files = [*files, *line.ask(lambda prefix=marks: remote.list(prefix))]  # type: ignore[misc]
    return copies(files), standing_in(files)


def prune(
    remote: Remote,
    line: Line,
    expendable: Expendable,
    scores: Mapping[int, float],
    is_verified: Callable[[Copy], bool],
    before_delete: Callable[[], None],
) -> list[Copy]:
    """Delete the copies that the policy does not keep; returns them.

    Deletes nothing unless the newest copy is one that this uploader verified. ``before_delete``
    raises to prevent everything (a lost lease).
    """
    _, stand = copies_in(remote, line)
    if not stand or not is_verified(stand[-1]):
        return []
    doomed = set(expendable([copy.step for copy in stand], scores)) - {stand[-1].step}
    gone = [copy for copy in stand if copy.step in doomed]
    if gone:
        before_delete()
    for copy in gone:
        delete(copy, remote, line)
    return gone


def delete(copy: Copy, remote: Remote, line: Line) -> None:
    """The manifest first, then the files. Raises RemoteError, Cut."""
    if copy.committed:
        line.ask(lambda: remote.delete([copy.prefix + MANIFEST_NAME]))
    rest = [file.key for name, file in sorted(copy.files.items()) if name != MANIFEST_NAME]
    if rest:
        line.ask(lambda: remote.delete(rest))


def leftovers(
    remote: Remote,
    line: Line,
    *,
    now: float,
    older_than_seconds: float = ORPHAN_SECONDS,
    damaged: Collection[str] = (),
    superseded: bool = False,
) -> list[Leftover]:
    """What ``clean`` would delete: orphans by age and, if asked for, damaged and superseded copies.

    ``now``: seconds since 1970, compared with the store's clock. ``damaged``: prefixes of copies
    that are known to be bad. An object without a date counts as young.
    """
    every, stand = copies_in(remote, line)
    kept = {copy.prefix for copy in stand}
    found = []
    for copy in every:
        age = now - (copy.modified_at if copy.modified_at is not None else now)
        if not copy.committed and age > older_than_seconds:
            found.append(Leftover(copy=copy, why="no manifest: the upload died, or a deletion"))
        elif copy.prefix in damaged:
            found.append(Leftover(copy=copy, why="damaged"))
        elif copy.committed and superseded and copy.prefix not in kept:
            found.append(Leftover(copy=copy, why="training went back behind it"))
    return found


def clean(
    found: Sequence[Leftover], remote: Remote, line: Line, before_delete: Callable[[], None]
) -> None:
    """Delete what ``leftovers`` found, under the lease: whoever sends could be using it.

    ``before_delete`` raises to prevent the next deletion (a lost lease).
    """
    for leftover in found:
        before_delete()
        delete(leftover.copy, remote, line)
