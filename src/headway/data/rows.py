"""Tokenised rows on disk: flat arrays that are mapped, not loaded, however many rows there are.

``ids`` and ``supervised`` of all rows stand one after the other; ``ends`` says where each stops.
The header is written last and holds a hash of itself and the size and hash of each file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from headway.data.chat import Example
from headway.data.order import Mixture

_VERSION = 2
_KINDS: Mapping[str, DTypeLike] = {
    "supervised": np.bool_,
    "ends": np.int64,
    "weights": np.int64,
    "sources": np.int32,
    "where": np.uint8,
    "where_ends": np.int64,
}


class RowsWriter:
    """Appends examples to the arrays of a new folder; nothing is readable before ``finish``."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Creates ``folder``. Ids are stored in two bytes where the vocabulary allows it."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.kinds = {"ids": _ids_kind(vocab_size), **_KINDS}
        self.files: dict[str, IO[bytes]] = {n: (folder / f"{n}.bin").open("wb") for n in self.kinds}
        self.hashes = {name: hashlib.sha256() for name in self.kinds}
        self.rows = self.tokens = self.where_bytes = 0

    def add(self, example: Example, source: int) -> None:
        """Append one example of the source with this index."""
        place = example.where.encode()
        self.rows += 1
        self.tokens += len(example.ids)
        self.where_bytes += len(place)
        self._append("ids", example.ids)
        self._append("supervised", example.supervised)
        self._append("ends", [self.tokens])
        self._append("weights", [example.weight])
        self._append("sources", [source])
        self._append("where", np.frombuffer(place, dtype=np.uint8))
        self._append("where_ends", [self.where_bytes])

    def finish(self, source_count: int = 0) -> None:
        """Put everything on the disk, the header last. A source without a row counts as one too."""
        for stream in self.files.values():
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        body = {
            "version": _VERSION,
            "rows": self.rows,
            "tokens": self.tokens,
            "source_count": source_count,
            "dtypes": {name: np.dtype(kind).name for name, kind in self.kinds.items()},
            "bytes": {name: (self.folder / f"{name}.bin").stat().st_size for name in self.kinds},
            "sha256": {name: digest.hexdigest() for name, digest in self.hashes.items()},
        }
        header = json.dumps({"body": body, "sha256": _hash(body)}, indent=1)
        with (self.folder / "header.json").open("w", encoding="utf-8") as text:
            text.write(header)
            text.flush()
            os.fsync(text.fileno())

    def close(self) -> None:
        """Let the files go, finished or not."""
        for stream in self.files.values():
            stream.close()

    def _append(self, name: str, values: Any) -> None:
        raw = np.asarray(values, dtype=self.kinds[name]).tobytes()
        self.files[name].write(raw)
        self.hashes[name].update(raw)


class Prepared:
    """Rows of one split as the model sees them, mapped from disk."""

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        """OSError or ValueError when the folder is incomplete or not what its header says.

        ``verify`` also hashes every file; without it sizes and the header's own hash are compared.
        """
        stored = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        body = stored["body"]
        if _hash(body) != stored["sha256"] or body["version"] != _VERSION:
            raise ValueError(f"{folder}: the header is damaged or of another version")
        arrays = {}
        for name, dtype in body["dtypes"].items():
            file = folder / f"{name}.bin"
            if file.stat().st_size != body["bytes"][name]:
                raise ValueError(f"{file}: not as long as its header says")
            if verify and hashlib.sha256(file.read_bytes()).hexdigest() != body["sha256"][name]:
                raise ValueError(f"{file}: its content changed")
            empty = body["bytes"][name] == 0
            arrays[name] = np.asarray(
                np.empty(0, dtype) if empty else np.memmap(file, dtype, mode="r")
            )
        self._arrays = arrays
        self.sha256: str = stored["sha256"]
        """Names this content: two splits with one hash hold the same rows."""
        self._starts = np.concatenate([np.zeros(1, np.int64), arrays["ends"]])
        self.lengths: NDArray[np.int64] = np.diff(self._starts)
        self.weights: NDArray[np.int64] = np.array(arrays["weights"])
        self.sizes: tuple[int, ...] = tuple(
            np.bincount(arrays["sources"], minlength=body["source_count"]).tolist()
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """``ids`` [tokens] and ``supervised`` [tokens] of a row: copies, free to change."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        span = slice(self._starts[row], self._starts[row + 1])
        ids = self._arrays["ids"][span].astype(np.int32)
        return ids, np.array(self._arrays["supervised"][span])

    def where(self, row: int) -> str:
        """File and line that a row came from."""
        ends = self._arrays["where_ends"]
        start = int(ends[row - 1]) if row else 0
        return bytes(self._arrays["where"][start : int(ends[row])]).decode()

    def mixture(self, weights: list[float] | None, seed: int) -> Mixture:
        """The order of these rows; ``Mixture.rows_at`` gives indices into this object."""
        return Mixture(self.sizes, weights, seed)


def _ids_kind(vocab_size: int) -> DTypeLike:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
