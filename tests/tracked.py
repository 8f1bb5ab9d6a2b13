"""Journals with restarts, trackers that are lists, and what TensorBoard and W&B files hold."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headway.journal import read, timeline
from headway.track import About, Measurement, Note, Record, Row, StartAgain

ABOUT = About(identity="a" * 16, name="run", config={"train": {"learning_rate": 1e-3}})


class Killed(BaseException):
    """Nothing of the process runs any more."""


class Disk:
    """What survives a kill: a tracker's rows, as far as they were handed over."""

    def __init__(self) -> None:
        self.rows: list[Record] = []
        self.numbers: dict[int, list[Record]] = {}


class ListSink:
    """A tracker in memory that can be cut back to what was noted, as a file can."""

    tolerance = 0.0
    knows = False

    def __init__(self, disk: Disk, kill_at: int | None = None) -> None:
        self.disk, self._kill_at, self._calls = disk, kill_at, 0

    def begin(self, about: About, noted: Mapping[str, Any]) -> int | None:
        self._count()
        del self.disk.rows[noted.get("rows", 0) :]
        return noted.get("step")

    def write(self, record: Record) -> None:
        self._count()
        self.disk.rows.append(record)
        self._count()

    def back(self, step: int) -> None:
        self._count()
        self.disk.rows[:] = [row for row in self.disk.rows if row.step <= step]

    def flush(self) -> Mapping[str, Any]:
        self._count()
        step = max((r.step for r in self.disk.rows if isinstance(r, Row)), default=None)
        measured = 0 if any(isinstance(r, Measurement) for r in self.disk.rows) else None
        return {"rows": len(self.disk.rows), "step": step if step is not None else measured}

    def end(self) -> Mapping[str, Any]:
        return self.flush()

    def _count(self) -> None:
        self._calls += 1
        if self._calls == self._kill_at:
            raise Killed


class ServerSink(ListSink):
    """A tracker that only grows and is asked for its last step, as W&B's server is.

    A row is there once a later one is begun, or the run is closed.
    """

    knows = True

    def begin(self, about: About, noted: Mapping[str, Any]) -> int | None:
        self._count()
        self._number = noted.get("number", 1)
        self.disk.rows = self.disk.numbers.setdefault(self._number, [])
        self._open: list[Record] = []
        steps = [row.step for row in self.disk.rows]
        return max(steps) if steps else None

    def write(self, record: Record) -> None:
        self._count()
        if isinstance(record, Note):
            return
        if self._open and self._open[0].step < record.step:
            self._close()
        self._open.append(record)
        self._count()

    def back(self, step: int) -> None:
        self._count()
        raise StartAgain({"number": self._number + 1})

    def flush(self) -> Mapping[str, Any]:
        self._count()
        return {"number": self._number}

    def end(self) -> Mapping[str, Any]:
        self._close()
        return self.flush()

    def _close(self) -> None:
        self.disk.rows += self._open
        self._open = []


class NaiveSink(ListSink):
    """As many trainers log: whatever comes is appended."""

    def begin(self, about: About, noted: Mapping[str, Any]) -> int | None:
        return noted.get("step")

    def back(self, step: int) -> None:
        return


def standing(journal: Path) -> list[tuple[int, float]]:
    """(step, loss) of each step that counts."""
    return [(event["step"], event["loss"]) for event in timeline(read(journal))]


def measured(journal: Path) -> list[tuple[int, float]]:
    """(step, held-out loss) of each evaluation that counts."""
    found = timeline(read(journal), "evaluation")
    return [(event["step"], event["metrics"]["loss"]) for event in found]


def single(pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """As TensorBoard keeps numbers: in single precision."""
    return [(step, struct.unpack("f", struct.pack("f", value))[0]) for step, value in pairs]


def tensorboard_scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """As TensorBoard itself reads them; all of them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    if tag not in found.Tags()["scalars"]:
        return []
    return [(scalar.step, scalar.value) for scalar in found.Scalars(tag)]


def raw_scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """As a reader that knows nothing of restarts sees them."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    return [
        (event.step, value.simple_value)
        for file in sorted(folder.glob("events.*"))
        for data in RawEventFileLoader(str(file)).Load()
        for event in [Event.FromString(data)]
        for value in event.summary.value
        if value.tag == tag
    ]


def wandb_folders(run: Path) -> list[Path]:
    """What `wandb sync` would send."""
    return sorted((run / "track" / "wandb").glob("offline-run-*"))


BLOCK_BYTES, HEAD_BYTES = 32_768, 7


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of W&B's file: a LevelDB log (blocks of 32 KiB) after seven bytes of its own.

    Since wandb 0.31 only its Go core can read it; a record that is torn or damaged is an error.
    """
    assert data[:4] == b":W&B"
    at, parts = HEAD_BYTES, b""
    while at < len(data):
        if BLOCK_BYTES - at % BLOCK_BYTES < HEAD_BYTES:
            at += BLOCK_BYTES - at % BLOCK_BYTES
            continue
        checksum, size, kind = struct.unpack("<IHB", data[at : at + HEAD_BYTES])
        part = data[at + HEAD_BYTES : at + HEAD_BYTES + size]
        assert len(part) == size and zlib.crc32(bytes([kind]) + part) == checksum
        at += HEAD_BYTES + size
        parts = part if kind in (1, 2) else parts + part
        if kind in (1, 4):
            yield parts


def wandb_records(folder: Path) -> Iterator[Any]:
    """Every record of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

    for data in log_records(next(folder.glob("*.wandb")).read_bytes()):
        yield WandbRecord.FromString(data)


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """The history rows of an offline run."""
    rows = []
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append(items)
    return rows
