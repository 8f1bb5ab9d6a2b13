"""TensorBoard's event files: written record by record, cut back to what was noted after a kill.

Each attempt to feed writes a file of its own, which begins by saying from which step on it counts
(``SessionLog.START``): readers that saw what was cut off forget it. One proto a step keeps a
run of 100,000 steps small.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headway.track.records import About, Measurement, Note, Record, Row
from headway.track.tables import as_markdown, pictures

NAME = "events.out.tfevents."


class TensorBoardFiles:
    """Event files in one folder; needs the package ``tensorboard``, no TensorFlow."""

    tolerance = 0.0
    knows = False

    def __init__(self, folder: Path, run: Path) -> None:
        """``folder``: ours alone. ``run``: whose evaluations hold the pictures of worst rows."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._protos, self._summary, self._writer_of = event_pb2, summary_pb2, RecordWriter
        self._folder, self._run = folder, run
        self._step = 0
        self._empty = True

    def begin(self, about: About, noted: Mapping[str, Any]) -> int | None:
        """Cut back to what was noted, and begin a new file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = self._cut_back(noted)
        number = max([int(time.time()), *(1 + _number(file) for file in self._files())])
        self._path = self._folder / f"{NAME}{number:010d}.headway"
        self._file = self._path.open("xb")
        self._records = self._writer_of(self._file)
        self._event(file_version="brain.Event:2")
        if kept is not None:
            self._step, self._empty = kept, False
            self.back(kept)
        else:
            config = "\n".join(f"    {line}" for line in _lines(about.config))
            self._text("config", f"{about.name}\n\n{config}", 0, time.time())
        return kept

    def write(self, record: Record) -> None:
        """A step's values as one event; an evaluation's with its worst rows; a note as text."""
        if isinstance(record, Note):
            text = f"**{record.title}** (step {record.step}): {record.text}"
            self._text("notes", text, record.step, record.at)
            return
        self._empty = False
        values = [
            self._summary.Summary.Value(tag=tag, simple_value=value)
            for tag, value in record.values.items()
        ]
        summary = self._summary.Summary(value=values)
        self._event(record.at, step=record.step, summary=summary)
        if isinstance(record, Row):
            self._step = record.step
        elif isinstance(record, Measurement) and record.worst:
            self._text("worst rows", as_markdown(record.worst), record.step, record.at)
            self._pictures(record)

    def back(self, step: int) -> None:
        """Say that what is later than ``step`` does not count."""
        log = self._protos.SessionLog(status=self._protos.SessionLog.START)
        self._event(step=step + 1, session_log=log)
        self._step = step

    def flush(self) -> Mapping[str, Any]:
        """Hand over to the system: from then on a kill of this process costs nothing."""
        self._file.flush()
        empty = {"step": None} if self._empty else {"step": self._step}
        return {"file": self._path.name, "bytes": self._file.tell(), **empty}

    def end(self) -> Mapping[str, Any]:
        """Close the file."""
        noted = self.flush()
        self._file.close()
        return noted

    def _cut_back(self, noted: Mapping[str, Any]) -> int | None:
        """Make the files what they were when that was noted; where they are not there, remove all.

        Returns the step they then reach; None: they are gone.
        """
        files = self._files()
        last = self._folder / str(noted.get("file"))
        whole = last in files and last.stat().st_size >= noted["bytes"]
        keep = whole and noted["step"] is not None
        for file in files:
            if not keep or file > last:
                file.unlink()
        if keep:
            with last.open("r+b") as opened:
                opened.truncate(noted["bytes"])
        return int(noted["step"]) if keep else None

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{NAME}*.headway"))

    def _event(self, at: float | None = None, **fields: Any) -> None:
        event = self._protos.Event(wall_time=time.time() if at is None else at, **fields)
        self._records.write(event.SerializeToString())

    def _text(self, tag: str, text: str, step: int, at: float) -> None:
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        value = self._summary.Summary.Value(
            tag=f"{tag}/text_summary",
            metadata=self._summary.SummaryMetadata(plugin_data=plugin),
            tensor=TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[text.encode()]),
        )
        self._event(at, step=step, summary=self._summary.Summary(value=[value]))

    def _pictures(self, record: Measurement) -> None:
        for n, (path, width, height) in enumerate(pictures(self._run, record)):
            image = self._summary.Summary.Image(
                width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
            )
            value = self._summary.Summary.Value(tag=f"worst/{n}", image=image)
            self._event(record.at, step=record.step, summary=self._summary.Summary(value=[value]))


def _number(file: Path) -> int:
    digits = file.name.removeprefix(NAME).partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def _lines(tree: Mapping[str, Any], under: str = "") -> list[str]:
    """``train.learning_rate: 0.0002``, one a key."""
    found: list[str] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _lines(value, f"{under}{key}.")
        else:
            found.append(f"{under}{key}: {value}")
    return found
