"""What counts of a journal, and what of it a tracker still lacks: the rules about restarts.

A restart goes back to a checkpoint and does the steps after it again. Training repeats itself to
the bit on one machine, so most steps that are done again are there already; only where one comes
out otherwise must a tracker forget it and what follows.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from headway.track.records import Event, Measurement, Note, Record, Row, translate

UNKNOWN = -math.inf
"""The loss of a step that a tracker has, but of which nobody here remembers it."""


@dataclass(frozen=True, slots=True)
class Back:
    """Forget everything after ``step``: what comes next is otherwise than it was."""

    step: int


class Standing:
    """The records that count: of a journal's events, in order, as far as it was taken in."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self._measured: dict[int, Measurement] = {}
        self._notes: list[Note] = []
        self.step = 0
        """The newest."""
        self.stop: Event = {}
        """How the newest attempt ended; empty while it has not."""

    def take(self, event: Event) -> None:
        """The next event; an ``attempt`` takes back what lies after its restored step."""
        if event.get("event") == "attempt":
            self.step, self.stop = restored_step(event), {}
            self._rows = {s: row for s, row in self._rows.items() if s <= self.step}
            self._measured = {s: m for s, m in self._measured.items() if s <= self.step}
            return
        if event.get("event") == "stop":
            self.stop = event
        record = translate(event, self.step)
        if isinstance(record, Row):
            self.step = record.step
            self._rows[record.step] = record
        elif isinstance(record, Measurement):
            self._measured[record.step] = record
        elif record is not None:
            self._notes.append(record)

    @property
    def notes(self) -> int:
        """How many there are."""
        return len(self._notes)

    def records(self, first_note: int = 0) -> Iterator[Record]:
        """By step; at each the row first, then what was measured, then the notes.

        Of the notes, in the order they came, only those from ``first_note`` on.
        """
        notes = deque(sorted(self._notes[first_note:], key=lambda note: (note.step, note.at)))
        for step in sorted({*self._rows, *self._measured}):
            while notes and notes[0].step < step:
                yield notes.popleft()
            for found in (self._rows.get(step), self._measured.get(step)):
                if found is not None:
                    yield found
        yield from notes


class Sent:
    """What a tracker has: which steps with which loss, which evaluations."""

    def __init__(self, tolerance: float = 0.0) -> None:
        """``tolerance``: relative difference of a loss up to which a redone step is the same."""
        self._losses = array("d")
        self._measured: set[int] = set()
        self._tolerance = tolerance

    @property
    def step(self) -> int:
        """The last that it has; 0: none."""
        return len(self._losses)

    def cut(self, step: int) -> None:
        """It has nothing after ``step``."""
        del self._losses[step:]
        self._measured = {s for s in self._measured if s <= step}

    def has(self, step: int | None) -> None:
        """It has exactly the steps up to ``step``; losses that nobody here knows count as equal.

        None: it has nothing, not even what was measured before step 1.
        """
        self.cut(step or 0)
        if step is None:
            self._measured.clear()
            return
        self._measured |= set(range(self.step + 1, step + 1))
        self._losses.extend([UNKNOWN] * (step - self.step))

    def offer(self, record: Record) -> list[Record | Back]:
        """What to tell the tracker so that it has this record too; nothing if it has it."""
        if isinstance(record, Row):
            return self._offer_row(record)
        if isinstance(record, Measurement):
            if record.step in self._measured:
                return []
            self._measured.add(record.step)
        return [record]

    def end(self, event: Event) -> list[Record | Back]:
        """What the end of a run takes back: steps of an earlier attempt that never came again."""
        over = event.get("reason") in ("finished", "early stop")
        step = event.get("step")
        if over and isinstance(step, int) and step < self.step:
            self.cut(step)
            return [Back(step)]
        return []

    def _offer_row(self, row: Row) -> list[Record | Back]:
        told: list[Record | Back] = []
        if row.step <= self.step:
            if self._same(self._losses[row.step - 1], row.loss):
                return []
            told.append(Back(row.step - 1))
            self.cut(row.step - 1)
        # a journal that lost lines to a damaged disk has gaps
        self._losses.extend([UNKNOWN] * (row.step - 1 - self.step))
        self._losses.append(row.loss)
        return [*told, row]

    def _same(self, had: float, now: float) -> bool:
        if had == UNKNOWN or (math.isnan(had) and math.isnan(now)):
            return True
        return math.isclose(had, now, rel_tol=self._tolerance)


def restored_step(event: Event) -> int:
    """Where an attempt goes on from."""
    step = event.get("restored_step")
    return step if isinstance(step, int) else 0
