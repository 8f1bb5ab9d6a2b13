"""What an uploader has before it: the queue, the one being sent, and what happened to the others.

No thread and no lock of its own: the uploader's lock guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from headway.errors import RemoteError
from headway.upload.layout import Copy, Parcel
from headway.upload.ledger import Known, Progress, UploadEvent
from headway.upload.pruning import Expendable
from headway.upload.sending import Unsendable

RECENT = 5
"""The rate is that of so many uploads: a line changes over a run of days."""


class Pace:
    """Bytes a second over the last uploads, their waits and retries included."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)

    def add(self, count_bytes: int, seconds: float) -> None:
        """One upload succeeded; one of which everything was there already says nothing."""
        if count_bytes > 0:
            self._recent.append((count_bytes, seconds))

    def rate(self, moved_bytes: int, seconds: float) -> float | None:
        """With the one under way; None while nothing was moved yet."""
        count = moved_bytes + sum(each for each, _ in self._recent)
        total = seconds + sum(each for _, each in self._recent)
        return count / total if count and total > 0 else None


class Outbox:
    """Checkpoints on their way. ``in_flight`` was taken from the queue by ``take``."""

    def __init__(self, journal: Path, url: str, skippable: Expendable | None) -> None:
        """``skippable`` says what of the queue need not be sent; None: all but the newest."""
        self.known = Known(journal, url)
        self.in_flight: Parcel | None = None
        self.scores: dict[int, float] = {}
        self.pace = Pace()
        self._queue: dict[int, Parcel] = {}
        self._skippable = skippable or all_but_newest
        self._events: list[UploadEvent] = []
        self._unwritten: list[tuple[str, dict[str, Any]]] = []

    def __bool__(self) -> bool:
        """Whether something can be taken."""
        return bool(self._queue)

    def add(self, parcel: Parcel, scores: Mapping[int, float] | None) -> bool:
        """Queue it; False if it is verified there already, or being sent."""
        if scores is not None:
            self.scores = dict(scores)
        if self.known.holds(parcel) or parcel == self.in_flight:
            return False
        claimed = parcel.prefix in self.known.claims
        (self.known.claimed if claimed else self._queue)[parcel.step] = parcel
        self.skip()
        return True

    def confirm(self, listed: Iterable[Copy]) -> None:
        """The bucket was asked what is there: queue what is not."""
        self._queue = {parcel.step: parcel for parcel in self.known.confirm(listed)} | self._queue
        self.skip()

    def take(self) -> Parcel:
        """The newest: it is in flight now."""
        self.in_flight = self._queue.pop(max(self._queue))
        return self.in_flight

    def sent(self, parcel: Parcel, event: UploadEvent) -> None:
        """It is verified there."""
        self.in_flight = None
        self.known.add(parcel)
        self.pace.add(event.bytes, event.seconds)
        self._events.append(event)

    def put_back(self) -> int:
        """Nothing is in flight any more; the step that was, or the newest that waits."""
        parcel, self.in_flight = self.in_flight, None
        if parcel is None:
            return max(self.pending(), default=0)
        self._queue.setdefault(parcel.step, parcel)
        return parcel.step

    def failed(self, parcel: Parcel, failure: RemoteError | None, event: UploadEvent) -> None:
        """It is not there: queued again, unless it cannot be sent. None: the line was cut."""
        self.in_flight = None
        if isinstance(failure, Unsendable):
            self.known.refuse(parcel, failure)
        else:
            self._queue.setdefault(parcel.step, parcel)
            self.skip()
        if failure is not None:
            self.note(event, written=True)

    def skip(self) -> None:
        """Drop from the queue what need not be sent any more."""
        steps = [*self._queue, *([self.in_flight.step] if self.in_flight else [])]
        for step in self._skippable(steps, self.scores):
            if self._queue.pop(step, None):
                self.note(UploadEvent(kind="skipped", step=step), written=True)

    def note(self, event: UploadEvent, *, written: bool = False) -> None:
        """Something happened; ``written``: the ledger should have it."""
        self._events.append(event)
        if written:
            why = {"why": event.why} if event.why else {}
            self._unwritten.append((event.kind, {"step": event.step, **why}))

    def collect(self) -> list[UploadEvent]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def to_write(self) -> list[tuple[str, dict[str, Any]]]:
        """Lines for the ledger since the last call."""
        lines, self._unwritten = self._unwritten, []
        return lines

    def pending(self) -> frozenset[int]:
        """Steps queued or in flight."""
        flying = {self.in_flight.step} if self.in_flight else set()
        return frozenset(self._queue.keys() | self.known.claimed.keys() | flying)

    def progress(self, moved_bytes: int, seconds: float, waiting_for: str) -> Progress:
        """``moved_bytes`` and ``seconds``: of the one in flight."""
        flying = [self.in_flight] if self.in_flight else []
        queued = self.known.claimed | self._queue
        waiting = [queued[step] for step in sorted(queued, reverse=True)]
        left = sum(p.bytes for p in waiting) + sum(max(0, p.bytes - moved_bytes) for p in flying)
        return Progress(
            steps=tuple(parcel.step for parcel in (*flying, *waiting)),
            left_bytes=left,
            bytes_per_second=self.pace.rate(moved_bytes if flying else 0, seconds if flying else 0),
            waiting_for=waiting_for,
        )


def all_but_newest(steps: Collection[int], scores: Mapping[int, float]) -> list[int]:
    """Of what waits, only the newest is worth sending."""
    return sorted(steps)[:-1]
