"""The uploader: a thread beside training that has a verified copy of what was saved in the bucket.

Training hands over a checkpoint and goes on. Newest first; where the bucket is slower than the
saves, what is neither the newest nor among the best is skipped.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from headway.errors import RemoteError
from headway.system import lower_priority
from headway.upload.layout import CHECKPOINTS, Copy, Parcel, copies
from headway.upload.lease import Lease, LeaseLost
from headway.upload.ledger import Ledger, Progress, UploadEvent
from headway.upload.line import Cut, Line
from headway.upload.outbox import Outbox
from headway.upload.pruning import Expendable, prune
from headway.upload.remote import Remote
from headway.upload.run_files import RunFiles
from headway.upload.sending import Unsendable, send

Join = Callable[[Line, Callable[[str], None]], Lease]
"""(line, what to say to a person) -> the lease, under which everything may be sent."""
REST_SECONDS = 60.0
"""After patience ran out the next try waits for the next save, or for this long."""
CLOSE_SECONDS = 30.0


class Uploader:
    """Use it as a context manager; ``drain`` before leaving it, or what is queued is left."""

    def __init__(
        self,
        remote: Remote,
        *,
        journal: Path,
        attempt: int,
        lease: Lease | None = None,
        join: Join | None = None,
        parallel_files: int = 4,
        bandwidth_bytes_per_second: float | None = None,
        archive: Literal["none", "tar", "tar.zst"] = "none",
        expendable: Expendable | None = None,
        skippable: Expendable | None = None,
        patience_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``journal``: the uploader's own, in the run directory. ``attempt``: the lease's token.

        ``join`` gets the lease later, where the bucket was down: it is called on the uploader's
        thread before anything is sent, until it returns. RemoteError: again; LeaseLost: never.
        ``expendable`` says what may go from the bucket (None: nothing), ``skippable`` what of the
        queue need not be sent any more (None: all but the newest). ``clock``, ``pause`` and
        ``chance`` are for tests.
        """
        self.remote = remote
        self.attempt = attempt
        self._lease = lease
        self._join = join
        self._threads = parallel_files
        self._archive = archive
        self._expendable = expendable
        self._clock = clock
        self._line = Line(
            patience_seconds=patience_seconds,
            bytes_per_second=bandwidth_bytes_per_second,
            clock=clock,
            pause=pause,
            chance=chance,
        )
        self._ledger = Ledger(journal, remote.url)
        self._run_files = RunFiles(attempt)
        self._outbox = Outbox(journal, remote.url, skippable)
        self._changed = threading.Condition()
        self._moved_before = 0
        self._began = 0.0
        self._failure: RemoteError | None = None
        self._resting = False
        self._closing = False
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------- training's side: never waits

    def submit(self, parcel: Parcel, scores: Mapping[int, float] | None = None) -> None:
        """Queue a committed checkpoint; one that is verified there already is nothing to do.

        ``scores``: step -> held-out loss as known now, for retention and for what to skip. Returns
        at once: nothing is read, written or asked here.
        """
        with self._changed:
            if self._closing or not self._outbox.add(parcel, scores):
                return
            self._resting = False
            self.start()
            self._changed.notify_all()

    def start(self) -> None:
        """Begin the thread, if it is not there: before training, so that no step pays for it."""
        with self._changed:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._work, name="upload")
                self._thread.start()

    def also(self, key: str, path: Path, *, grows: bool = False) -> None:
        """Send this small file before each manifest, and once more at the end.

        ``grows``: it is a journal: lines are only ever appended.
        """
        self._run_files.add(key, path, grows=grows)

    def also_below(self, key: str, folder: Path) -> None:
        """In the same way every file below ``folder`` that can be read."""
        self._run_files.add_folder(key, folder)

    def pending(self) -> frozenset[int]:
        """Steps queued or in flight: not to be pruned. What was skipped is not among them."""
        with self._changed:
            return self._outbox.pending()

    def unsendable(self) -> frozenset[int]:
        """Steps that cannot be sent, and nothing newer is in the bucket instead."""
        with self._changed:
            return frozenset(self._outbox.known.lost())

    def verified(self) -> frozenset[int]:
        """Steps of which the bucket holds a verified copy."""
        with self._changed:
            return frozenset(self._outbox.known.verified)

    def collect(self) -> list[UploadEvent]:
        """What happened since the last call."""
        with self._changed:
            return self._outbox.collect()

    def failure(self) -> RemoteError | None:
        """Why the newest is not in the bucket; None again when a later try succeeded.

        Unsendable: this checkpoint never will be, a newer one can be.
        """
        with self._changed:
            return self._failure or next(iter(self._outbox.known.lost().values()), None)

    # ------------------------------------------------------------- the end

    def drain(
        self,
        *,
        until: Callable[[], bool],
        show: Callable[[Progress], None],
        look_every_seconds: float = 0.2,
    ) -> bool:
        """Wait until everything is in the bucket; False if ``until`` said stop or it cannot be.

        A bucket that failed before is tried once more.
        """
        with self._changed:
            self._resting = False
            self._changed.notify_all()
        while True:
            with self._changed:
                if not self.pending():
                    return not self.unsendable()
                lost = isinstance(self._failure, LeaseLost)
                if self._resting or lost or self._thread is None:
                    return False
            if until():
                return False
            show(self.progress())
            with self._changed:
                self._changed.wait(look_every_seconds)

    def progress(self) -> Progress:
        """How far it is."""
        with self._changed:
            moved = self._line.sent_bytes - self._moved_before
            return self._outbox.progress(
                moved, self._clock() - self._began, str(self._failure or "")
            )

    def cut(self) -> None:
        """Send nothing more from now on; returns at once."""
        self._line.cut()

    def close(self, deadline_seconds: float = CLOSE_SECONDS) -> None:
        """Send the end of the journal if the line works, and stop; what is queued stays unsent."""
        with self._changed:
            self._closing = True
            if self.pending() or self._failure:
                self._line.cut()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(deadline_seconds)
            self._line.cut()
            self._thread.join(deadline_seconds)
        self._ledger.close()

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------- the uploader's thread

    def _work(self) -> None:
        try:
            lower_priority()
            if not self._joined():
                return
            self._confirm()
            while (parcel := self._next()) is not None:
                self._send(parcel)
                self._write_down()
            if not self._line.is_cut:
                self._run_files.send(self.remote, self._line)
        except Cut:
            return
        except BaseException as error:
            self._give_up(error)

    def _joined(self) -> bool:
        """Get the lease of a bucket that was down before; False at the end.

        Tried at each save, and after REST_SECONDS.
        """
        while self._join is not None:
            try:
                lease = self._join(self._line, self._warn)
            except RemoteError as error:
                with self._changed:
                    self._failure, self._resting = error, True
                    self._changed.notify_all()
                    if self._rested(for_ever=isinstance(error, LeaseLost)):
                        return False
                continue
            with self._changed:
                self._lease, self._join, self._failure = lease, None, None
                self._run_files.attempt = lease.token
                self._changed.notify_all()
        if self._lease:
            self._ledger.append("leased", token=self._lease.token)
        return True

    def _rested(self, for_ever: bool) -> bool:
        """Wait for the next save or for REST_SECONDS; whether it is the end. Holds the lock."""
        self._changed.wait_for(
            lambda: self._closing or not (for_ever or self._resting),
            None if for_ever else REST_SECONDS,
        )
        return self._closing

    def _confirm(self) -> None:
        """Ask the bucket which of the copies that the ledger claims stand there; queue the others.

        Once, before anything is sent: somebody may have deleted them.
        """
        listed: list[Copy] = []
        if self._outbox.known.claims:
            with contextlib.suppress(RemoteError):  # then each is asked for, which says why not
                listed = copies(self._line.ask(lambda: self.remote.list(CHECKPOINTS)))
        with self._changed:
            self._outbox.confirm(listed)
            self._changed.notify_all()

    def _next(self) -> Parcel | None:
        """The newest in the queue, as soon as there is one to try; None at the end."""
        with self._changed:
            while True:
                lost = isinstance(self._failure, LeaseLost)
                if self._line.is_cut or (self._closing and (self._resting or not self._outbox)):
                    return None
                if self._outbox and not self._resting and not lost:
                    self._moved_before, self._began = self._line.sent_bytes, self._clock()
                    return self._outbox.take()
                rests = bool(self._outbox) and not lost
                if not self._changed.wait(REST_SECONDS if rests else None):
                    self._resting = False

    def _send(self, parcel: Parcel) -> None:
        retries = self._line.retries
        failure: RemoteError | None = None
        is_sent = False
        try:
            send(
                parcel,
                self.remote,
                self._line,
                threads=self._threads,
                archive=self._archive,
                before_commit=self._before_commit,
                on_wrong=lambda what: self._warn(what, parcel.step),
            )
            self._ledger.append(
                "sent",
                sync=True,
                step=parcel.step,
                prefix=parcel.prefix,
                bytes=parcel.bytes,
                seconds=round(self._clock() - self._began, 3),
            )
            is_sent = True
        except Cut:
            pass
        except RemoteError as error:
            failure = error
        event = UploadEvent(
            kind="failed" if failure else "sent",
            step=parcel.step,
            bytes=self._line.sent_bytes - self._moved_before,
            seconds=self._clock() - self._began,
            retries=self._line.retries - retries,
            why=str(failure or ""),
        )
        with self._changed:
            unsendable = isinstance(failure, Unsendable)
            self._failure = None if unsendable else failure
            if is_sent:
                self._outbox.sent(parcel, event)
            else:
                self._outbox.failed(parcel, failure, event)
                self._resting = self._resting or not unsendable
            self._changed.notify_all()
        if is_sent:
            self._prune(parcel.step)

    def _before_commit(self) -> None:
        """The journal up to this save, then the lease; only then the manifest may be sent."""
        self._run_files.send(self.remote, self._line)
        if self._lease:
            self._lease.check()

    def _prune(self, step: int) -> None:
        if self._expendable is None:
            return
        known = set(self._outbox.known.verified.values())
        try:
            gone = prune(
                self.remote,
                self._line,
                self._expendable,
                dict(self._outbox.scores),
                lambda copy: copy.prefix in known,
                self._lease.check if self._lease else lambda: None,
            )
        except RemoteError as error:
            self._warn(f"nothing was deleted: {error}", step)
            return
        for copy in gone:
            self._forget(copy)

    def _forget(self, copy: Copy) -> None:
        self._ledger.append("deleted", step=copy.step, prefix=copy.prefix)
        with self._changed:
            self._outbox.known.forget(copy)
            self._outbox.note(UploadEvent(kind="deleted", step=copy.step, bytes=copy.bytes))
            self._changed.notify_all()

    def _warn(self, what: str, step: int | None = None) -> None:
        with self._changed:
            at = step if step is not None else max(self._outbox.pending(), default=0)
            self._outbox.note(UploadEvent(kind="warning", step=at, why=what))

    def _write_down(self) -> None:
        """Put what happened meanwhile into the ledger; here, because training never waits."""
        with self._changed:
            entries = self._outbox.to_write()
        for name, facts in entries:
            self._ledger.append(name, **facts)

    def _give_up(self, error: BaseException) -> None:
        """A fault of our own (or of the disk): said at the next step boundary, never swallowed."""
        failure = RemoteError(f"the uploader stopped: {type(error).__name__}: {error}")
        failure.__cause__ = error
        with self._changed:
            step = self._outbox.put_back()
            event = UploadEvent(kind="failed", step=step, why=str(failure))
            self._outbox.note(event, written=True)
            self._failure = failure
            self._resting = True
            self._thread = None  # the next save begins another
            self._changed.notify_all()
