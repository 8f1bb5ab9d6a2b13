"""A run at a glance: the head and the tail of its journal, so that 200 runs take a blink."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

HEAD_BYTES = 32_768
TAIL_BYTES = 131_072


def head_and_tail(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The first and last events of a journal, and whether that is all of them."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= HEAD_BYTES + TAIL_BYTES:
            return _events(file.read(), whole_first=True), True
        head = _events(file.read(HEAD_BYTES), whole_first=True)
    return [*head, *tail_events(path)], False


def tail_events(path: Path, tail_bytes: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """The events that lie whole in the journal's last ``tail_bytes``; a torn last line is dropped.

    An event longer than that is looked for further back, so the newest event is never missed.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while True:
            start = max(0, size - tail_bytes)
            file.seek(start)
            events = _events(file.read(size - start), whole_first=start == 0)
            if events or start == 0:
                return events
            tail_bytes *= 4


def _events(data: bytes, *, whole_first: bool) -> list[dict[str, Any]]:
    """The complete lines in ``data`` that are JSON objects."""
    end = data.rfind(b"\n") + 1
    lines = data[:end].splitlines()
    events = []
    for line in lines if whole_first else lines[1:]:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
