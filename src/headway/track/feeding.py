"""Feeds one tracker from one journal: what it lacks first, then what comes, until the run is over.

How far it was fed is kept beside the run. A kill at any instant costs nothing: the tracker is asked
what it has, or is cut back to what was noted, and is fed from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from headway.track.records import About, Event, Record
from headway.track.standing import Back, Past, Sent

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
    knows: bool
    """It can say itself what it has (a server); else what ``flush`` gave last is what it has."""

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
    about: Callable[[], About]
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
            Mark(identity=given.about().identity, noted=noted).write(given.mark_file)


class _Feeding:
    """One try."""

    def __init__(self, given: Feed) -> None:
        self._given, self._about = given, given.about()
        self._journal = given.opened()
        self._sink = given.sink()
        self._sent = Sent(self._sink.tolerance)

    def run(self) -> int:
        mark = Mark.read(self._given.mark_file)
        if mark.identity != self._about.identity:
            mark = Mark()
        if not self._catch_up(mark):
            return self._sent.step
        while True:
            last = self._given.over()
            grown = self._journal.read()
            if grown.anew:
                raise StartAgain
            if grown.events:
                self._tell([told for event in grown.events for told in self._sent.take(event)])
            if last:
                break
            self._given.wait()
        self._note(self._sink.end(), ended=True)
        return self._sent.step

    def _catch_up(self, mark: Mark) -> bool:
        """Tell the tracker what it lacks of what the journal says until now; False: nothing."""
        past = Past()
        self._take(past, mark.offset_bytes)
        if self._journal.offset_bytes < mark.offset_bytes:
            raise StartAgain  # a journal that is shorter than what was read of it
        past.noted()
        self._take(past, None)
        if mark.ended and self._journal.offset_bytes == mark.offset_bytes:
            return False
        has = self._sink.begin(self._about, mark.noted)
        lowest = past.lowest if mark.offset_bytes else None
        back = has is not None and lowest is not None and lowest < has
        start = lowest if back else has
        self._tell([*([Back(lowest or 0)] if back else []), *past.after(start)])
        self._sent.extend(has or 0)
        return True

    def _take(self, past: Past, until_bytes: int | None) -> None:
        """Read on in pieces, up to ``until_bytes`` or to the end."""
        journal = self._journal
        while until_bytes is None or journal.offset_bytes < until_bytes:
            began = journal.offset_bytes
            rest = PIECE_BYTES if until_bytes is None else until_bytes - began
            grown = journal.read(at_most_bytes=min(rest, PIECE_BYTES))
            if grown.anew:
                raise StartAgain
            for event in grown.events:
                for told in self._sent.take(event):
                    past.take(told)
            if journal.offset_bytes == began:
                return

    def _tell(self, told: Sequence[Record | Back]) -> None:
        """All of this, and the note that it was told: before where the tracker itself knows what
        came of it, after where only what was noted is sure to be there."""
        if self._sink.knows:
            for one in told:
                if isinstance(one, Back):
                    self._sink.back(one.step)  # what is noted below must not be what was before
            self._note(self._sink.flush())
        for one in told:
            if not isinstance(one, Back):
                self._sink.write(one)
            elif not self._sink.knows:
                self._sink.back(one.step)
        self._note(self._sink.flush())

    def _note(self, noted: Mapping[str, Any], *, ended: bool = False) -> None:
        mark = Mark(
            identity=self._about.identity,
            offset_bytes=self._journal.offset_bytes,
            ended=ended,
            noted=noted,
        )
        mark.write(self._given.mark_file)
