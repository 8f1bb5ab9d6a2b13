"""The uploader: a thread beside training that has a verified copy of what was saved in the bucket.

Training hands over a checkpoint and goes on. Newest first; where the bucket is slower than the
saves, what is neither the newest nor among the best is skipped.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from headway.errors import RemoteError
from headway.system import lower_priority
from headway.upload.layout import CHECKPOINTS, Copy, Parcel, copies
from headway.upload.lease import Lease, LeaseLost
from headway.upload.ledger import Known, Ledger, Progress, UploadEvent
from headway.upload.line import Cut, Line
from headway.upload.pruning import Expendable, prune
from headway.upload.remote import Remote
from headway.upload.run_files import RunFiles
from headway.upload.sending import Unsendable, send

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

        ``expendable`` says what may go from the bucket (None: nothing), ``skippable`` what of the
        queue need not be sent any more (None: all but the newest). ``clock``, ``pause`` and
        ``chance`` are for tests.
        """
        self.remote = remote
        self.attempt = attempt
        self._lease = lease
        self._threads = parallel_files
        self._archive = archive
        self._expendable = expendable
        self._skippable = skippable or all_but_newest
        self._clock = clock
        self._line = Line(
            patience_seconds=patience_seconds,
            bytes_per_second=bandwidth_bytes_per_second,
            clock=clock,
            pause=pause,
            chance=chance,
        )
        self._ledger = Ledger(journal, remote.url)
        self._known = Known(journal, remote.url)
        self._run_files = RunFiles(attempt)
        self._changed = threading.Condition()
        self._queue: dict[int, Parcel] = {}
        self._in_flight: Parcel | None = None
        self._sent_before = 0
        self._busy_seconds = 0.0
        self._scores: dict[int, float] = {}
        self._events: list[UploadEvent] = []
        self._unwritten: list[tuple[str, dict[str, Any]]] = []
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
            if scores is not None:
                self._scores = dict(scores)
            known = self._known.verified.get(parcel.step) == parcel.prefix
            if self._closing or known or parcel == self._in_flight:
                return
            claimed = parcel.prefix in self._known.claims
            (self._known.claimed if claimed else self._queue)[parcel.step] = parcel
            self._skip()
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

    def pending(self) -> frozenset[int]:
        """Steps queued or in flight: not to be pruned. What was skipped is not among them."""
        with self._changed:
            flying = {self._in_flight.step} if self._in_flight else set()
            return frozenset(self._queue.keys() | self._known.claimed.keys() | flying)

    def unsendable(self) -> frozenset[int]:
        """Steps that cannot be sent, and nothing newer is in the bucket instead."""
        with self._changed:
            return frozenset(self._known.lost())

    def verified(self) -> frozenset[int]:
        """Steps of which the bucket holds a verified copy."""
        with self._changed:
            return frozenset(self._known.verified)

    def collect(self) -> list[UploadEvent]:
        """What happened since the last call."""
        with self._changed:
            events, self._events = self._events, []
            return events

    def failure(self) -> RemoteError | None:
        """Why the newest is not in the bucket; None again when a later try succeeded.

        Unsendable: this checkpoint never will be, a newer one can be.
        """
        with self._changed:
            return self._failure or next(iter(self._known.lost().values()), None)

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
            flying = [self._in_flight] if self._in_flight else []
            queued = self._known.claimed | self._queue
            waiting = [queued[step] for step in sorted(queued, reverse=True)]
            moved = self._line.sent_bytes - self._sent_before if flying else 0
            left = sum(p.bytes for p in waiting) + sum(max(0, p.bytes - moved) for p in flying)
            rate = self._line.sent_bytes / self._busy_seconds if self._busy_seconds else None
            return Progress(
                steps=tuple(parcel.step for parcel in (*flying, *waiting)),
                left_bytes=left,
                bytes_per_second=rate,
                waiting_for=str(self._failure or ""),
            )

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

    def _confirm(self) -> None:
        """Ask the bucket which of the copies that the ledger claims stand there; queue the others.

        Once, before anything is sent: somebody may have deleted them.
        """
        listed: list[Copy] = []
        if self._known.claims:
            with contextlib.suppress(RemoteError):  # then each is asked for, which says why not
                listed = copies(self._line.ask(lambda: self.remote.list(CHECKPOINTS)))
        with self._changed:
            missing = {parcel.step: parcel for parcel in self._known.confirm(listed)}
            self._queue = missing | self._queue
            self._skip()
            self._changed.notify_all()

    def _next(self) -> Parcel | None:
        """The newest in the queue, as soon as there is one to try; None at the end."""
        with self._changed:
            while True:
                lost = isinstance(self._failure, LeaseLost)
                if self._line.is_cut or (self._closing and (self._resting or not self._queue)):
                    return None
                if self._queue and not self._resting and not lost:
                    self._in_flight = self._queue.pop(max(self._queue))
                    self._sent_before = self._line.sent_bytes
                    return self._in_flight
                rests = bool(self._queue) and not lost
                if not self._changed.wait(REST_SECONDS if rests else None):
                    self._resting = False

    def _send(self, parcel: Parcel) -> None:
        started, retries, sent = self._clock(), self._line.retries, self._line.sent_bytes
        failure: RemoteError | None = None
        outcome, why = "sent", ""
        try:
            send(
                parcel,
                self.remote,
                self._line,
                threads=self._threads,
                archive=self._archive,
                before_commit=self._before_commit,
                on_wrong=lambda what: self._note(UploadEvent(
                    kind="warning", step=parcel.step, why=what)),
            )  # fmt: skip
            self._ledger.append(
                "sent",
                sync=True,
                step=parcel.step,
                prefix=parcel.prefix,
                bytes=parcel.bytes,
                seconds=round(self._clock() - started, 3),
            )
        except Cut:
            outcome = "cut"
        except RemoteError as error:
            outcome, why, failure = "failed", str(error), error
        event = UploadEvent(
            kind="failed" if outcome == "failed" else "sent",
            step=parcel.step,
            bytes=self._line.sent_bytes - sent,
            seconds=self._clock() - started,
            retries=self._line.retries - retries,
            why=why,
        )
        with self._changed:
            self._busy_seconds += event.seconds
            self._failure = None if isinstance(failure, Unsendable) else failure
            self._in_flight = None
            if outcome == "sent":
                self._known.add(parcel)
            elif isinstance(failure, Unsendable):
                self._known.refuse(parcel, failure)
            else:
                self._queue.setdefault(parcel.step, parcel)
                self._resting = True
                self._skip()
            if outcome != "cut":
                self._events.append(event)
            if outcome == "failed":
                self._unwritten.append(("failed", {"step": parcel.step, "why": why}))
            self._changed.notify_all()
        if outcome == "sent":
            self._prune(parcel.step)

    def _before_commit(self) -> None:
        """The journal up to this save, then the lease; only then the manifest may be sent."""
        self._run_files.send(self.remote, self._line)
        if self._lease:
            self._lease.check()

    def _prune(self, step: int) -> None:
        if self._expendable is None:
            return
        known = set(self._known.verified.values())
        try:
            gone = prune(
                self.remote,
                self._line,
                self._expendable,
                dict(self._scores),
                lambda copy: copy.prefix in known,
                self._lease.check if self._lease else lambda: None,
            )
        except RemoteError as error:
            self._note(UploadEvent(kind="warning", step=step, why=f"nothing was deleted: {error}"))
            return
        for copy in gone:
            self._forget(copy)

    def _forget(self, copy: Copy) -> None:
        self._ledger.append("deleted", step=copy.step, prefix=copy.prefix)
        with self._changed:
            self._known.forget(copy)
            self._events.append(UploadEvent(kind="deleted", step=copy.step, bytes=copy.bytes))
            self._changed.notify_all()

    def _skip(self) -> None:
        """Drop from the queue what need not be sent any more. Holds the lock already."""
        steps = [*self._queue, *([self._in_flight.step] if self._in_flight else [])]
        for step in self._skippable(steps, self._scores):
            if self._queue.pop(step, None):
                self._events.append(UploadEvent(kind="skipped", step=step))
                self._unwritten.append(("skipped", {"step": step}))

    def _note(self, event: UploadEvent) -> None:
        with self._changed:
            self._events.append(event)

    def _write_down(self) -> None:
        """Put what happened meanwhile into the ledger; here, because training never waits."""
        with self._changed:
            entries, self._unwritten = self._unwritten, []
        for name, facts in entries:
            self._ledger.append(name, **facts)

    def _give_up(self, error: BaseException) -> None:
        """A fault of our own (or of the disk): said at the next step boundary, never swallowed."""
        failure = RemoteError(f"the uploader stopped: {type(error).__name__}: {error}")
        failure.__cause__ = error
        with self._changed:
            step = self._in_flight.step if self._in_flight else max(self.pending(), default=0)
            if self._in_flight:
                self._queue.setdefault(step, self._in_flight)
            self._in_flight = None
            self._events.append(UploadEvent(kind="failed", step=step, why=str(failure)))
            self._unwritten.append(("failed", {"step": step, "why": str(failure)}))
            self._failure = failure
            self._resting = True
            self._thread = None  # the next save begins another
            self._changed.notify_all()


def all_but_newest(steps: Collection[int], scores: Mapping[int, float]) -> list[int]:
    """Of what waits, only the newest is worth sending."""
    return sorted(steps)[:-1]
