"""What a tracker should have of a journal: a pure function of the lines that were read.

A restart goes back to a checkpoint and does the steps after it again. Training repeats itself to
the bit on one machine, so most steps that are done again are there already; only where one comes
out otherwise must a tracker forget it and what follows. That rule is applied to every line in
order, whenever a tracker is fed, so what it has never depends on when it was.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from headway.track.records import Event, Measurement, Note, Record, Row, translate

UNKNOWN = -math.inf
"""The loss of a step that a tracker has, but of which nobody here remembers it."""


ORDER: Mapping[type, int] = {Row: 0, Measurement: 1, Note: 2}
"""Of records of one step."""


@dataclass(frozen=True, slots=True)
class Back:
    """Forget everything after ``step``: what comes next is otherwise than it was."""

    step: int


class Sent:
    """Which steps a tracker has, with which loss, and which evaluations."""

    def __init__(self, tolerance: float = 0.0) -> None:
        """``tolerance``: relative difference of a loss up to which a redone step is the same."""
        self._losses = array("d")
        self._measured: set[int] = set()
        self._tolerance = tolerance
        self._now = 0

    @property
    def step(self) -> int:
        """The last that it has; 0: none."""
        return len(self._losses)

    def take(self, event: Event) -> list[Record | Back]:
        """What to tell the tracker of the next line of the journal."""
        if event.get("event") == "attempt":
            restored = event.get("restored_step")
            self._now = restored if isinstance(restored, int) else 0
        record = translate(event, self._now)
        told: list[Record | Back] = []
        if isinstance(record, Row):
            self._now = record.step
            told = self._take_row(record)
        elif isinstance(record, Measurement) and record.step not in self._measured:
            self._measured.add(record.step)
            told = [record]
        elif isinstance(record, Note):
            told = [record]
        return told + self._over(event)

    def extend(self, step: int) -> None:
        """It has every step up to ``step``, whatever their losses are: it says so itself."""
        if step > self.step:
            self._measured |= set(range(self.step + 1 if self.step else 0, step + 1))
            self._losses.extend([UNKNOWN] * (step - self.step))

    def _take_row(self, row: Row) -> list[Record | Back]:
        told: list[Record | Back] = []
        if row.step <= self.step:
            if self._same(self._losses[row.step - 1], row.loss):
                return []
            told.append(self._back(row.step - 1))
        # a journal that lost lines to a damaged disk has gaps
        self._losses.extend([UNKNOWN] * (row.step - 1 - self.step))
        self._losses.append(row.loss)
        return [*told, row]

    def _over(self, event: Event) -> list[Record | Back]:
        """What the end of a run takes back: steps of an earlier attempt that never came again."""
        ended = event.get("event") == "stop" and event.get("reason") in ("finished", "early stop")
        step = event.get("step")
        return [self._back(step)] if ended and isinstance(step, int) and step < self.step else []

    def _back(self, step: int) -> Back:
        del self._losses[step:]
        self._measured = {s for s in self._measured if s <= step}
        return Back(step)

    def _same(self, had: float, now: float) -> bool:
        if had == UNKNOWN or (math.isnan(had) and math.isnan(now)):
            return True
        return math.isclose(had, now, rel_tol=self._tolerance)


class Past:
    """The records behind what a tracker should have, for one that lacks some of them."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self._measured: dict[int, Measurement] = {}
        self._notes: list[Note] = []
        self._since: list[Record] = []
        self._lowest: int | None = None

    def take(self, told: Record | Back) -> None:
        """What ``Sent.take`` gave, in order."""
        if isinstance(told, Back):
            self._lowest = told.step if self._lowest is None else min(told.step, self._lowest)
            self._rows = {s: row for s, row in self._rows.items() if s <= told.step}
            self._measured = {s: m for s, m in self._measured.items() if s <= told.step}
            return
        if isinstance(told, Row):
            self._rows[told.step] = told
        elif isinstance(told, Measurement):
            self._measured[told.step] = told
        else:
            self._notes.append(told)
        if not isinstance(told, Row):
            self._since.append(told)

    def noted(self) -> None:
        """The tracker had all of it once."""
        self._since, self._lowest = [], None

    @property
    def lowest(self) -> int | None:
        """How far back it went since ``noted``; None: not at all."""
        return self._lowest

    def after(self, step: int | None) -> Iterator[Record]:
        """What a tracker lacks that has everything up to ``step`` that was there when ``noted``.

        By step; at each the row, what was measured, the notes. None: all there is.
        """
        first = -1 if step is None else step
        notes = [r for r in (self._notes if step is None else self._since) if isinstance(r, Note)]
        late = {r.step for r in self._since if isinstance(r, Measurement)}
        measured = [m for s, m in self._measured.items() if s > first or s in late]
        rows = [row for s, row in self._rows.items() if s > first]
        found: list[Record] = [*rows, *measured, *notes]
        yield from sorted(found, key=lambda r: (r.step, ORDER[type(r)], r.at))
