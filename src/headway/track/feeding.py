"""Feeds one tracker from one journal: what it lacks first, then what comes, until the run is over.

How far it was fed is kept beside the run, written after the tracker has what it says. A kill in
between costs nothing: the tracker is asked, or cut back to what was noted, and fed from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from headway.track.records import About, Event, Record, translate
from headway.track.standing import Back, Sent, Standing, restored_step

PIECE_BYTES = 1 << 23
"""So much of a journal is parsed at once."""


class StartAgain(Exception):
    """What the tracker has cannot be mended: it is made again from the whole journal.

    ``args[0]``, where there is one: what the next ``begin`` is given as noted.
    """


class Growth(Protocol):
    """What a journal said since it was read before."""

    @property
    def events(self) -> Sequence[Event]: ...  # noqa: D102
    @property
    def anew(self) -> bool: ...  # noqa: D102


class Journal(Protocol):
    """A journal that is read as it grows, in whole lines."""

    offset_bytes: int

    def read(self, *, at_most_bytes: int | None = None) -> Growth: ...  # noqa: D102


class Sink(Protocol):
    """One tracker. Any exception means that it does not answer now; it is opened again later."""

    tolerance: float
    """Relative difference up to which a redone step's loss counts as the same."""

    def begin(self, about: About, noted: Mapping[str, Any]) -> int | None:
        """Make ready; ``noted``: what ``flush`` gave last, empty for a new beginning.

        Returns the last step of those that it surely has; None: it is empty.
        """

    def write(self, record: Record) -> None:
        """Take a record; it may wait in memory until ``flush``."""

    def back(self, step: int) -> None:
        """Forget what is after ``step``. Raises StartAgain where a tracker cannot."""

    def flush(self) -> Mapping[str, Any]:
        """Hand over what was written; what to note beside the run, plain JSON."""

    def end(self) -> Mapping[str, Any]:
        """The same for the last time; may wait for the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How far a tracker was fed."""

    identity: str = ""
    offset_bytes: int = 0
    """Of the journal."""
    ended: bool = False
    """The tracker was closed after it."""
    noted: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Mark:
        """The one in ``file``; a new one where there is none that can be read."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, file: Path) -> None:
        """Write it beside, then rename. Raises OSError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".partial-{file.name}")
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        partial.replace(file)


@dataclass(slots=True)
class Feed:
    """One tracker being fed. ``opened`` and ``sink`` make a journal and a tracker each time."""

    opened: Callable[[], Journal]
    sink: Callable[[], Sink]
    about: About
    mark_file: Path
    over: Callable[[], bool]
    """Whether nothing more will come; asked before the journal is read for the last time."""
    wait: Callable[[], object]
    """Until the next look."""


def feed(given: Feed) -> int:
    """Feed the tracker until ``over``; returns the step it has. Raises what its sink raises."""
    while True:
        try:
            return _Feeding(given).run()
        except StartAgain as again:
            noted = again.args[0] if again.args else {}
            Mark(identity=given.about.identity, noted=noted).write(given.mark_file)


class _Feeding:
    """One try."""

    def __init__(self, given: Feed) -> None:
        self._given = given
        self._journal = given.opened()
        self._sink = given.sink()
        self._sent = Sent(self._sink.tolerance)
        self._step = 0

    def run(self) -> int:
        mark = self._catch_up()
        if mark.ended:
            return self._sent.step
        given = self._given
        while True:
            last = given.over()
            grown = self._journal.read()
            if grown.anew:
                raise StartAgain
            for event in grown.events:
                self._follow(event)
            if grown.events:
                self._note(self._sink.flush())
            if last:
                break
            given.wait()
        self._note(self._sink.end(), ended=True)
        return self._sent.step

    def _catch_up(self) -> Mark:
        """Tell the tracker what it lacks of what the journal says until now."""
        mark, standing = Mark.read(self._given.mark_file), Standing()
        if mark.identity != self._given.about.identity:
            mark = Mark()
        self._take(standing, mark.offset_bytes)
        if self._journal.offset_bytes < mark.offset_bytes:
            raise StartAgain  # a journal that is shorter than what was read of it
        old_notes = standing.notes
        self._take(standing, None)
        if mark.ended and self._journal.offset_bytes == mark.offset_bytes:
            return mark
        has = self._sink.begin(self._given.about, mark.noted)
        self._sent.has(has)
        self._step = standing.step
        for record in standing.records(0 if has is None else old_notes):
            self._offer(record)
        if standing.stop:
            self._tell(self._sent.end(standing.stop))
        self._note(self._sink.flush())
        return Mark()

    def _take(self, standing: Standing, until_bytes: int | None) -> None:
        """Read on in pieces, up to what was noted (the tracker was told of that) or to the end."""
        journal = self._journal
        while until_bytes is None or journal.offset_bytes < until_bytes:
            began = journal.offset_bytes
            rest = PIECE_BYTES if until_bytes is None else until_bytes - began
            grown = journal.read(at_most_bytes=min(rest, PIECE_BYTES))
            if grown.anew:
                raise StartAgain
            for event in grown.events:
                standing.take(event)
                record = translate(event, standing.step)
                if until_bytes is not None and record is not None:
                    self._sent.offer(record)
            if until_bytes is not None and standing.stop:
                self._sent.end(standing.stop)
            if journal.offset_bytes == began:
                return

    def _follow(self, event: Event) -> None:
        if event.get("event") == "attempt":
            self._step = restored_step(event)
        record = translate(event, self._step)
        if record is not None:
            self._step = record.step
            self._offer(record)
        if event.get("event") == "stop":
            self._tell(self._sent.end(event))

    def _offer(self, record: Record) -> None:
        self._tell(self._sent.offer(record))

    def _tell(self, told: Sequence[Record | Back]) -> None:
        for one in told:
            if isinstance(one, Back):
                self._sink.back(one.step)
            else:
                self._sink.write(one)

    def _note(self, noted: Mapping[str, Any], *, ended: bool = False) -> None:
        mark = Mark(
            identity=self._given.about.identity,
            offset_bytes=self._journal.offset_bytes,
            ended=ended,
            noted=noted,
        )
        mark.write(self._given.mark_file)
