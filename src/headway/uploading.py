"""A run's bucket as training uses it: opened first, told of each save, waited for at the end.

Without torch, and nothing here waits for the bucket except opening and draining.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from headway.bucket import (
    begin_fresh,
    go_back,
    leased,
    newest_here,
    open_uploader,
    parcel_of,
    refuse_lost,
    restore_run,
    url_of,
)
from headway.checkpoint import Checkpoint
from headway.config import Upload
from headway.errors import RemoteError
from headway.joining import Absent, trouble, without
from headway.journal import Journal, next_attempt
from headway.report.words import duration, size
from headway.signals import asked_to_leave
from headway.upload import Lease, LeaseLost, Line, Progress, Remote, Uploader
from headway.upload.layout import highest_attempt, standing_in
from headway.upload.objects import RemoteFile
from headway.upload.sending import Unsendable
from headway.viewing import JOURNAL_FILE

SHOW_EVERY_SECONDS = 5.0
UNMEASURED_BYTES_PER_SECOND = 10e6
"""How fast the bucket is taken to be before anything was sent."""
LAST_CHANCE_SECONDS = 60.0
"""How long an attempt that an error ends waits for its newest save."""

Say = Callable[[str], None]


class Uploading:
    """One attempt's side of the bucket. Begins to send with ``begin``."""

    def __init__(
        self,
        section: Upload,
        remote: Remote,
        lease: Lease | Absent,
        folder: Path,
        *,
        fresh: bool = False,
        above: int = 0,
    ) -> None:
        """``lease``: Absent where the bucket did not answer; it is joined when it does.

        ``above``: the highest attempt of which the bucket holds anything.
        """
        self.remote = remote
        self._section, self._lease, self._folder, self._fresh = section, lease, folder, fresh
        self._number = above
        self._uploader: Uploader | None = None
        self._stopped_by: RemoteError | None = None
        self._until_closed = contextlib.ExitStack()
        self._told = False
        """Whether the end has said what is missing."""

    def attempt(self) -> int:
        """The number of this attempt: the lease's token, above every number in the journal.

        On every machine, so that what a replaced one still writes is older. Raises RemoteError.
        """
        if isinstance(self._lease, Absent):
            self._number = self._lease.attempt()
        else:
            above = max(next_attempt(self._folder / JOURNAL_FILE), 1 + self._number)
            self._lease.renew(at_least=above)
            self._number = self._lease.token
        return self._number

    def go_back(self, step: int) -> None:
        """Before anything is moved here: later copies no longer come back. Raises RemoteError."""
        go_back(self.remote, self._number, step)

    def claim(self) -> None:
        """Before the new run's first line: a run that it replaces no longer comes back.

        Raises RemoteError.
        """
        if self._fresh:
            begin_fresh(self.remote, self._number)

    def begin(self, checkpoints: Iterable[Checkpoint], scores: Mapping[int, float]) -> None:
        """The run is open: send what is here and not there. Raises RemoteError."""
        absent = self._lease if isinstance(self._lease, Absent) else None
        self._uploader = open_uploader(
            self.remote,
            self._section,
            self._folder,
            None if isinstance(self._lease, Absent) else self._lease,
            attempt=self._number,
            join=partial(absent.join, self._number) if absent else None,
        )
        self._uploader.start()
        for checkpoint in checkpoints:
            self.submit(checkpoint, scores)

    def submit(self, checkpoint: Checkpoint, scores: Mapping[int, float]) -> None:
        """Send a committed checkpoint; returns at once."""
        if self._uploader:
            self._uploader.submit(parcel_of(checkpoint), scores)

    def pending(self) -> frozenset[int]:
        """Steps that must not be pruned here, because they are being sent or wait for it."""
        return self._uploader.pending() if self._uploader else frozenset()

    def tell(self, journal: Journal, say: Say) -> None:
        """Write what happened since the last call to the journal, and say what a person needs."""
        for event in self._uploader.collect() if self._uploader else ():
            journal.append("upload", **asdict(event))
            if event.kind == "sent":
                say(f"step {event.step} is in the bucket ({self._pace(event.seconds)})")
            elif event.kind in ("failed", "warning"):
                say(f"WARNING: upload of step {event.step}: {event.why}")
            elif event.kind == "skipped":
                say(
                    f"step {event.step} was not sent: newer saves came before its turn, because "
                    "the bucket is slower than checkpoint.every_steps"
                )

    def _pace(self, seconds: float) -> str:
        """``1.2 s; 85 MB/s``, and what waits behind it: ``; 2 more wait, 340 MB, about 4 s``."""
        progress = self._uploader.progress() if self._uploader else None
        said = f"{seconds:.1f} s"
        if progress and progress.bytes_per_second:
            said += f"; {size(progress.bytes_per_second)}/s"
            if progress.steps:
                left = duration(progress.left_bytes / progress.bytes_per_second)
                said += (
                    f"; {len(progress.steps)} more wait, {size(progress.left_bytes)}, about {left}"
                )
        return said

    def drain_seconds(self, coming_bytes: int = 0) -> float:
        """How long the end would wait for the bucket, by the rate of the last uploads.

        For what is not there yet and ``coming_bytes`` more: the last save. A bucket that fails is
        tried once more. Before the first upload it is taken to be slow; never more than ``drain``
        waits.
        """
        if self._uploader is None:
            return 0.0
        progress = self._uploader.progress()
        rate = progress.bytes_per_second or UNMEASURED_BYTES_PER_SECOND
        seconds = (progress.left_bytes + coming_bytes) / rate
        if progress.waiting_for:
            seconds = max(seconds, 60 * self._section.patience_minutes)
        return min(seconds, 60 * self._section.drain_minutes)

    def failure(self) -> RemoteError | None:
        """Why the run must stop: a bucket that is required and fails, or a lost lease.

        While others are under way, a checkpoint that cannot be sent may still be superseded.
        """
        failure = self._uploader.failure() if self._uploader else None
        if not (self._section.required or isinstance(failure, LeaseLost)):
            return None
        if isinstance(failure, Unsendable) and self.pending():
            return None
        self._stopped_by = failure or self._stopped_by
        return failure

    def finish(self, until: Callable[[], bool], journal: Journal, say: Say) -> None:
        """``drain``, ``tell``, and raise if the bucket is required and lacked something."""
        whole = self.drain(until, say)
        self.tell(journal, say)
        if failure := self.failure():
            raise failure
        if not whole and self._section.required:
            raise RemoteError(f"upload.required: {self._missing()}")
        if self._stopped_by:
            raise RemoteError(
                f"upload.required: training stopped, because {self._stopped_by}. The bucket has "
                "the newest checkpoint now: the same command goes on"
            )

    def cut_short(self, error: BaseException, say: Say) -> None:
        """An error ends the attempt: say what is not in the bucket.

        The newest save has LAST_CHANCE_SECONDS to get there, where the bucket works.
        """
        if self._uploader is None or self._told:
            return
        waits = isinstance(error, Exception) and not isinstance(error, RemoteError)
        if waits and self._uploader.failure() is None and (left := self.pending()):
            say(f"{type(error).__name__} ends training; waiting for step {max(left)} to be sent")
            began = time.monotonic()
            with asked_to_leave() as leaving:
                self._uploader.drain(
                    until=lambda: (
                        leaving()
                        or max(left) not in self.pending()
                        or time.monotonic() - began > LAST_CHANCE_SECONDS
                    ),
                    show=lambda progress: None,
                )
        if missing := self._missing():
            say(missing)

    def _missing(self) -> str:
        """What is not in the bucket, and what to do; empty if nothing is missing."""
        uploader = self._uploader
        left = sorted(uploader.pending() | uploader.unsendable()) if uploader else []
        if uploader is None or not left:
            return ""
        why = uploader.failure()
        return (
            f"NOT IN THE BUCKET: step {', '.join(map(str, left))}{f' ({why})' if why else ''}. It "
            f"is on this disk; `headway upload push {self._folder} --all` sends it, and the same "
            "command once the run may go on"
        )

    def drain(self, until: Callable[[], bool], say: Say) -> bool:
        """Wait, visibly and for ``drain_minutes`` at most, until the bucket has everything.

        False, in words, when it has not; the next attempt, or ``headway upload push``, goes on.
        A signal ends the waiting, and what the attempt still has to write is written.
        """
        if self._uploader is None:
            return True
        leaving = self._until_closed.enter_context(asked_to_leave())
        began, said = time.monotonic(), -SHOW_EVERY_SECONDS
        limit_seconds = 60 * self._section.drain_minutes

        def passed() -> float:
            return time.monotonic() - began

        def show(progress: Progress) -> None:
            nonlocal said
            if passed() - said >= SHOW_EVERY_SECONDS:
                said = passed()
                say(waiting(progress, limit_seconds - said))

        def ended() -> bool:
            return until() or leaving() or passed() > limit_seconds

        if self._uploader.drain(until=ended, show=show):
            return True
        say(self._missing())
        self._told = True
        return False

    def close(self) -> None:
        """Send the end of the journal and stop."""
        with self._until_closed:
            if self._uploader:
                self._uploader.close()
                self._uploader = None

    def leave(self) -> None:
        """This process ends at once: nothing more is sent, and the lease is given back."""
        if self._uploader:
            self._uploader.cut()
        if isinstance(self._lease, Absent):
            self._lease.held.close()
        else:
            self._lease.release()


@contextlib.contextmanager
def uploading(
    section: Upload,
    folder: Path,
    *,
    refuse_another: Callable[..., object],
    fresh: bool,
    from_step: int | None,
    say: Say,
) -> Iterator[Uploading]:
    """The bucket of the run in ``folder``: proved to work, leased, and brought back if newer.

    Enter it before the folder is claimed, so that what comes back is there to be checked, and leave
    it after the journal is closed. ``refuse_another(remote, objects=…)`` raises if another run lies
    there: it is asked before anything here is touched, unless ``fresh``. ``fresh`` and
    ``from_step``: nothing is brought back. One that does not answer is joined later, where that is
    safe (``without``). Raises RemoteError (the bucket does not do what is needed), RunLocked
    (another machine), CheckpointError (its copies are gone), and what ``refuse_another`` and
    ``restore_run`` raise.
    """
    remote = Remote(url_of(section, folder))
    highest = 0
    with contextlib.ExitStack() as held:
        down = trouble(remote, say)
        if down is not None:
            lease: Lease | Absent = without(
                remote,
                section,
                folder,
                down,
                refuse_another=refuse_another,
                going_back=fresh or from_step is not None,
                held=held,
                say=say,
            )
        else:
            number = next_attempt(folder / JOURNAL_FILE)
            lease = held.enter_context(leased(remote, section, number, say, looks=False))
            objects = Line().ask(lambda: remote.list(""))
            highest = highest_attempt(objects)
            if not fresh:
                refuse_another(remote, objects=objects)
            if not fresh and from_step is None:
                bring_back(remote, folder, objects, say)
        here = Uploading(section, remote, lease, folder, fresh=fresh, above=highest)
        try:
            yield here
        except BaseException as error:
            here.cut_short(error, say)
            raise
        finally:
            here.close()


def bring_back(remote: Remote, folder: Path, objects: Sequence[RemoteFile], say: Say) -> None:
    """The newer state of the two sides; and a word if there is none, which may be a mistake.

    Raises CheckpointError if the bucket's copies are gone, and what ``restore_run`` raises.
    """
    if standing_in(objects):
        if found := restore_run(remote, folder, say, objects):
            say(f"restored {found.name} from {remote.url}")
    elif newest_here(folder) is None:
        refuse_lost(remote, objects)
        say(f"{remote.url} holds no checkpoint: the run starts at 0")


def waiting(progress: Progress, left_seconds: float) -> str:
    """``waiting for the bucket: step 500, 1200 MB, about 40 s; gives up in 29 min``."""
    rate = progress.bytes_per_second
    eta = f", about {progress.left_bytes / rate:.0f} s" if rate else ""
    trouble = f" ({progress.waiting_for})" if progress.waiting_for else ""
    steps = ", ".join(map(str, progress.steps))
    return (
        f"waiting for the bucket: step {steps}, {progress.left_bytes / 1e6:.0f} MB{eta}{trouble}; "
        f"gives up in {left_seconds / 60:.0f} min, Ctrl-C leaves at once"
    )
