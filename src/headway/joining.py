"""A bucket that is down when a run begins: the run goes on from this disk and joins it later.

*Promises.* Nothing is sent before the lease is held and every question was answered that is asked
at the start otherwise: is this the same run, and has nobody gone further than this disk knew? Where
one is answered with no, this attempt never sends anything, and the run stops after a save, as when
it loses its lease. What it saved meanwhile has a number above all that this disk ever saw.

*Does not promise.* That the time until then was not wasted: another machine may have been further.
So a disk without a checkpoint does not begin: it may be a machine that lost its disk, and starting
over is never silent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headway.bucket import leased, newest_here
from headway.config import Upload
from headway.errors import ConfigError, RemoteError, RunLocked
from headway.journal import next_attempt
from headway.upload import Lease, LeaseLost, Line, Remote
from headway.upload.layout import standing_in
from headway.upload.ledger import highest_token, read_ledger
from headway.upload.probe import NO_ANSWER, probe
from headway.upload.restoring import UPLOAD_JOURNAL
from headway.viewing import JOURNAL_FILE

Say = Callable[[str], None]
Refuse = Callable[..., object]
"""(remote) -> raises ConfigError if another run lies in the bucket."""


def trouble(remote: Remote, say: Say) -> RemoteError | None:
    """None if the bucket does what is needed, the error if it does not answer; warnings are said.

    Raises RemoteError for one that answers and will not do: a person must change something.
    """
    for finding in probe(remote):
        line = ". ".join(part for part in (finding.what, finding.why, finding.fix) if part)
        if finding.name == NO_ANSWER:
            return RemoteError(f"upload: {line}")
        if finding.level == "blocker":
            raise RemoteError(f"upload: {line}")
        if finding.level == "warning":
            say(f"WARNING: {finding.name}: {line}")
    return None


@dataclass(frozen=True, kw_only=True)
class Absent:
    """What an attempt knew when it began without its bucket."""

    remote: Remote
    section: Upload
    folder: Path
    refuse_another: Refuse
    newest: tuple[int, int]
    """(attempt, step) of the newest good checkpoint on this disk."""
    held: contextlib.ExitStack
    """Gives the lease back when it is closed: after the uploader."""

    def attempt(self) -> int:
        """A number above every attempt and every lease that this disk knows of."""
        token = highest_token(read_ledger(self.folder / UPLOAD_JOURNAL), self.remote.url)
        return max(next_attempt(self.folder / JOURNAL_FILE), 1 + token)

    def join(self, attempt: int, line: Line, say: Say) -> Lease:
        """The lease. Raises RemoteError (not yet), LeaseLost (never); Cut."""
        if (why := trouble(self.remote, say)) is not None:
            raise why
        try:
            self.refuse_another(self.remote)
            with contextlib.ExitStack() as now:
                lease = now.enter_context(leased(self.remote, self.section, attempt, say))
                self._refuse_gone_on(lease, attempt, line)
                self.held.push(now.pop_all())
        except (RunLocked, ConfigError) as error:
            raise LeaseLost(
                f"this attempt began while the bucket did not answer. {error}"
            ) from None
        say(f"{self.remote.url} answers: what is on this disk is being sent")
        return lease

    def _refuse_gone_on(self, lease: Lease, attempt: int, line: Line) -> None:
        """LeaseLost if another attempt went further than this disk knew. Holds the lease.

        The token is higher than asked for if anybody held a lease, or wrote, with this number.
        """
        objects = line.ask(lambda: self.remote.list(""))
        newer = [c for c in standing_in(objects) if (c.attempt, c.step) > self.newest]
        if not newer and lease.token == attempt:
            return
        there = f"has {newer[-1].name} of attempt {newer[-1].attempt}" if newer else "had a writer"
        raise LeaseLost(
            f"this attempt ({attempt}) began while the bucket did not answer, and "
            f"{self.remote.url} {there} that this disk did not know of. Nothing was sent from "
            "here. The same command goes on from the newest state of the two"
        )


def without(
    remote: Remote,
    section: Upload,
    folder: Path,
    why: RemoteError,
    *,
    refuse_another: Refuse,
    going_back: bool,
    held: contextlib.ExitStack,
    say: Say,
) -> Absent:
    """Begin without the bucket. Raises RemoteError where that is not allowed or not safe.

    ``going_back``: ``--fresh`` or ``--from``, which must be known there before anything is moved.
    """
    if section.required:
        raise RemoteError(f"{why}. upload.required: not starting without it") from why
    if going_back:
        raise RemoteError(f"{why}. --fresh and --from must be written there first") from why
    newest = newest_here(folder)
    if newest is None:
        raise RemoteError(
            f"{why}. Not starting without it, because {folder} has no checkpoint and the bucket "
            "may have one: try again when it answers, or train without one: upload=null"
        ) from why
    say(
        f"WARNING: {why}. Training goes on from step {newest[1]} on this disk, and NOTHING IS IN "
        "THE BUCKET until it answers: it is asked again after each save and every minute"
    )
    return Absent(
        remote=remote,
        section=section,
        folder=folder,
        refuse_another=refuse_another,
        newest=newest,
        held=held,
    )
