"""A run at a glance: the head and the tail of its journal, so that 200 runs take a blink."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HEAD_BYTES = 16_384
TAIL_BYTES = 49_152
FAR_BYTES = 1 << 20
"""How far back the newest evaluation is looked for, without parsing what lies between."""
STEPS = 50
"""Steps that the rate is the median of."""

Events = list[dict[str, Any]]


def head_and_tail(path: Path) -> tuple[Events, bool]:
    """A journal's first events, up to the plan, and its last; and whether that is all of them."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= HEAD_BYTES + TAIL_BYTES:
            return list(_parsed(_lines(file.read()))), True
        head: Events = []
        for event in _parsed(_lines(file.read(HEAD_BYTES))):
            head.append(event)
            if event.get("event") == "plan":
                break
    tail = tail_events(path, steps=STEPS)
    if any(event.get("event") == "evaluation" for event in tail):
        return [*head, *tail], False
    return [*head, *_since_evaluation(path, size), *tail], False


def _since_evaluation(path: Path, size: int) -> Events:
    """The newest evaluation, and everything since but the steps."""
    with path.open("rb") as file:
        start = max(HEAD_BYTES, size - FAR_BYTES)
        file.seek(start)
        far = file.read(size - start)
    at = far.rfind(b'\n{"event":"evaluation"')
    lines = _lines(far[at + 1 :]) if at >= 0 else []
    return list(_parsed(line for line in lines if not line.startswith(b'{"event":"step"')))


def tail_events(path: Path, tail_bytes: int = TAIL_BYTES, steps: int | None = None) -> Events:
    """The events that lie whole in the journal's last ``tail_bytes``; a torn last line is dropped.

    An event longer than that is looked for further back, so the newest event is never missed. With
    ``steps``, only as many as hold that many steps: the rest is not parsed.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while True:
            start = max(0, size - tail_bytes)
            file.seek(start)
            # A first line that is cut is no JSON object: its last brace closes nothing.
            events = _last(_parsed(reversed(_lines(file.read(size - start)))), steps)
            if events or start == 0:
                return events[::-1]
            tail_bytes *= 4


def _last(newest_first: Iterator[dict[str, Any]], steps: int | None) -> Events:
    """Events until there are so many steps among them; None: all."""
    taken: Events = []
    seen = 0
    for event in newest_first:
        taken.append(event)
        seen += event.get("event") == "step"
        if steps is not None and seen >= steps:
            break
    return taken


def _lines(data: bytes) -> list[bytes]:
    """The complete lines: what follows the last newline is torn."""
    return data.split(b"\n")[:-1]


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects."""
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            yield event
