"""The journal: one JSON line for everything that happened in a run, only ever appended.

*Promises.* Every line is valid JSON with ``event``, ``at`` (UTC) and ``attempt``. A kill can cost
at most the line being written, and that half line never harms a reader or the next attempt. A
damaged line is skipped and counted, never fatal. Two attempts never share a number.

*Does not promise.* That the last seconds survive a power loss without ``flush``; exclusion of a
second writer (the run lock's).
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from headway.errors import HeadwayError, StorageFull
from headway.records import Evaluation, Finding, StepReport

Event = dict[str, Any]
Record = StepReport | Evaluation | Finding

_NAMES: Mapping[type, str] = {StepReport: "step", Evaluation: "evaluation", Finding: "finding"}
_HEAD = re.compile(rb'^\{"event":"([^"\\]*)","at":"[^"\\]*","attempt":(\d{1,9})[,}]', re.MULTILINE)
_BLOCK_BYTES = 1 << 16
_READ_BYTES = 1 << 23
_KNOWN_BYTES = 256
_LATE_BYTES = 1 << 17
_STEP = b'{"event":"step",'


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a journal says, and how much of it could not be read."""

    events: list[Event]
    damaged_lines: int
    """Complete lines that are not JSON objects: skipped."""
    torn_bytes: int
    """Bytes of a last line without its newline: an attempt was killed while writing it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What a journal has said since it was read before."""

    events: list[Event]
    anew: bool
    """It is another journal than before (``--fresh``, or cut below what was read): what earlier
    readings gave does not count any more, and ``events`` begin at its beginning."""


class Tail:
    """Reads a journal as it grows, without reading anything twice. Nothing is held open."""

    def __init__(self, path: Path, offset_bytes: int = 0) -> None:
        """``offset_bytes``: of an earlier reading, to go on from there."""
        self.path = path
        self.offset_bytes = offset_bytes
        """Where the last whole line ends that was read."""
        self._known = b""

    def read(self, sparse_steps: int | None = None, *, at_most_bytes: int | None = None) -> Growth:
        """The whole lines since the last call; a torn one waits, a damaged one is skipped.

        ``sparse_steps``: of many new ``step`` lines about so many are parsed, evenly spread, those
        before another event, and all of the last 128 KiB; other events are always parsed.
        ``at_most_bytes``: stop after the line that reaches so many. A journal that is not there
        just now has not grown. Raises OSError.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return Growth(events=[], anew=False)
        try:
            size_bytes = os.fstat(fd).st_size
            anew = not self._goes_on(fd, size_bytes)
            if anew:
                self.offset_bytes = 0
            end = size_bytes if at_most_bytes is None else self.offset_bytes + at_most_bytes
            events = self._new_events(fd, size_bytes, end, sparse_steps)
            known_bytes = min(_KNOWN_BYTES, self.offset_bytes)
            self._known = os.pread(fd, known_bytes, self.offset_bytes - known_bytes)
        finally:
            os.close(fd)
        return Growth(events=events, anew=anew)

    def _goes_on(self, fd: int, size_bytes: int) -> bool:
        """Whether the file still is what was read; by its size, and the bytes that ended there."""
        known = os.pread(fd, len(self._known), self.offset_bytes - len(self._known))
        return size_bytes >= self.offset_bytes and known == self._known

    def _new_events(
        self, fd: int, size_bytes: int, end: int, sparse_steps: int | None
    ) -> list[Event]:
        events: list[Event] = []
        begin, torn = self.offset_bytes, b""
        stride_bytes = (size_bytes - begin) // sparse_steps if sparse_steps else 0
        next_at, passed = 0, b""  # where the next step line is taken; one that was not
        while begin < end and begin + len(torn) < size_bytes:
            at = begin + len(torn)
            block = os.pread(fd, min(_READ_BYTES, size_bytes - at), at)
            if not block:
                break  # it was cut meanwhile
            *lines, torn = (torn + block).split(b"\n")
            for line in lines:
                is_step, here = line.startswith(_STEP), begin
                begin += len(line) + 1
                if is_step and here < min(next_at, size_bytes - _LATE_BYTES):
                    passed = line
                    continue
                if is_step:
                    next_at = here + stride_bytes
                elif passed:  # where an attempt, or a stretch of training, ended
                    events += _parsed(passed)
                events += _parsed(line)
                passed = b""
                if begin >= end:
                    break
        self.offset_bytes = begin
        return events


class Journal:
    """Appends to a run's journal. The next attempt may open it after any kill."""

    def __init__(self, path: Path, attempt: int) -> None:
        """Open for writing; a torn last line is cut off. ``attempt``: from ``next_attempt``."""
        self.path = path
        self.attempt = attempt
        self._one_writer = threading.Lock()  # the watchdog's last words come from its own thread
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise self._refused(error) from error
        size_bytes = os.fstat(self._fd).st_size
        self._end = _good_end(self._fd, size_bytes)
        self.cut_bytes = size_bytes - self._end
        """What a kill left of its last line, and opening cut off."""
        if self.cut_bytes:
            os.ftruncate(self._fd, self._end)

    def append(self, what: str | Record, /, **facts: Any) -> None:
        """Add one line: an event by name with its facts, or a record (``step`` …) and more facts.

        NaN and infinity are written as text. Raises StorageFull when the disk is full; the journal
        then ends with its last whole line.
        """
        head = {
            "event": what if isinstance(what, str) else _NAMES[type(what)],
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "attempt": self.attempt,
        }
        body = {} if isinstance(what, str) else _fields(what)
        if taken := sorted({*head} & {*body, *facts} | {*body} & {*facts}):
            raise ValueError(f"the facts {taken} of event {head['event']!r} are already taken")
        line = _json(head | body | facts) + b"\n"
        with self._one_writer:
            self._write(line)

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._fd, line)
            if written < len(line):  # the disk filled up within the line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._fd, self._end)
            raise self._refused(error) from error
        self._end += written

    def flush(self) -> None:
        """Wait until every line is on disk."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Flush and close; closing twice is harmless."""
        if self._fd >= 0:
            try:
                self.flush()
            finally:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refused(self, error: OSError) -> HeadwayError:
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else HeadwayError
        return kind(
            f"cannot write the journal {self.path}: {error.strerror}. Its whole lines are safe. "
            "Free space or repair the disk, then run the same command."
        )


def read(path: Path) -> list[Event]:
    """Every readable line, oldest first; empty if there is no journal."""
    return scan(path).events


def read_events(path: Path, events: Collection[str]) -> list[Event]:
    """Only the named events: fast, because the other lines are not parsed."""
    return scan(path, events).events


def scan(path: Path, events: Collection[str] | None = None) -> Scan:
    """Read a journal, or only the named events of it, and say what could not be read."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Scan(events=[], damaged_lines=0, torn_bytes=0)
    *lines, torn = data.split(b"\n")
    if events is not None:
        wanted = {event.encode() for event in events}
        lines = [line for line in lines if _may_be(line, wanted)]
    lines = [line for line in lines if line]
    parsed = [event for line in lines if (event := _parse(line)) is not None]
    damaged_lines = len(lines) - len(parsed)
    if events is not None:
        parsed = [event for event in parsed if event.get("event") in events]
    return Scan(events=parsed, damaged_lines=damaged_lines, torn_bytes=len(torn))


def timeline(events: Iterable[Event], event: str = "step") -> list[Event]:
    """One line for each step as it finally stands, by step.

    An ``attempt`` event with ``restored_step`` takes back what earlier attempts did after that step
    (None: it began at 0). ``event``: ``step``, or another that has a step (``evaluation``).
    """
    standing: dict[int, Event] = {}
    for line in events:
        if line.get("event") == "attempt" and "restored_step" in line:
            restored = line["restored_step"] or 0
            standing = {step: kept for step, kept in standing.items() if step <= restored}
        elif line.get("event") == event and isinstance(line.get("step"), int):
            standing[line["step"]] = line
    return [standing[step] for step in sorted(standing)]


def next_attempt(path: Path) -> int:
    """A number no line in the journal has, torn ones included. The first attempt is 1."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 1
    return 1 + max((int(match[2]) for match in _HEAD.finditer(data)), default=0)


def _fields(record: Any) -> Event:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _json(event: Event) -> bytes:
    """Compact JSON; the slow path is only for NaN, infinity and odd keys."""
    try:
        text = json.dumps(event, separators=(",", ":"), allow_nan=False, default=_plain)
    except (ValueError, TypeError):
        text = json.dumps(_plain(event), separators=(",", ":"), allow_nan=False)
    return text.encode()


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it; what JSON has no form for becomes its text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Enum):
        return _plain(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(_fields(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if getattr(value, "ndim", None) == 0:  # a NumPy or torch scalar
        return _plain(value.item())
    return str(value)


def _may_be(line: bytes, wanted: set[bytes]) -> bool:
    """False only if the line is surely another event: our own lines begin with their event."""
    if not line.startswith(b'{"event":"'):
        return True
    return line[10 : line.find(b'"', 10)] in wanted


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _parsed(line: bytes) -> list[Event]:
    """The event of a line; nothing for one that is empty or damaged."""
    event = _parse(line) if line else None
    return [] if event is None else [event]


def _good_end(fd: int, size_bytes: int) -> int:
    """Where the last whole line ends, without a torn line or one last line that is not JSON."""
    end = _after_newline_before(fd, size_bytes)
    start = _after_newline_before(fd, end - 1)
    if end > 0 and _parse(os.pread(fd, end - start, start)) is None:
        return start
    return end


def _after_newline_before(fd: int, end: int) -> int:
    """The offset just after the last newline in the first ``end`` bytes; 0 if there is none."""
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
