"""Reading tokens for pretraining: one long stream, mapped from disk, cut into rows by arithmetic.

A stream is what :func:`headway.data.shards.tokenize` wrote, or a folder of NPZ files with padded
rows (``input_ids``, ``attention_mask``, ``sequence_lengths``). Padding is dropped *by length*: id 0
may be padding and a real token at once. Where documents begin is kept, so that attention can be
kept inside them and no loss is taken on guessing the next document's first token.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.data.formats import opened
from headway.data.shards import Index, Shard, tokenize
from headway.data.tokenizers import identity
from headway.errors import DataError


@dataclass(frozen=True, slots=True)
class Window:
    """One row: ``ids`` int32 [n + 1], to be read as inputs ``ids[:-1]`` and targets ``ids[1:]``."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    """Places in ``ids`` where a document begins, in order; 0 only if one begins there."""

    @property
    def segments(self) -> NDArray[np.int32]:
        """Which document each token belongs to [n + 1]: 0, 1, 2 … within this row."""
        marks = np.zeros(len(self.ids), dtype=np.int32)
        marks[self.starts[self.starts > 0]] = 1
        return np.cumsum(marks, dtype=np.int32)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Place of each token in its document, counted from where the row sees it begin [n + 1]."""
        places = np.arange(len(self.ids))
        begun = np.zeros(len(self.ids), dtype=np.int64)
        begun[self.starts] = self.starts
        return places - np.maximum.accumulate(begun)


@dataclass(frozen=True, slots=True)
class _Part:
    """Consecutive documents: ``ids`` [tokens], and where each ends, ``ends`` int64 [documents]."""

    ids: NDArray[Any]
    ends: NDArray[np.int64]


class TokenStream:
    """Tokens first to last as one sequence, wherever the shards are cut."""

    def __init__(self, parts: Sequence[_Part], first: int = 0, last: int | None = None) -> None:
        """``first`` and ``last`` bound the part of the stream that this object shows."""
        self._parts = tuple(part for part in parts if len(part.ids))
        if not self._parts:
            raise DataError("a token stream needs at least one token; the shards hold none")
        self._cuts = np.cumsum([0, *(len(part.ids) for part in self._parts)], dtype=np.int64)
        self.first = first
        self.last = int(self._cuts[-1]) if last is None else last

    @classmethod
    def open(cls, path: Path, tokenizer: Any = None, *, verify: bool = False) -> TokenStream:
        """The shards, or NPZ files, of a folder; ``tokenizer`` must be the one they are of.

        ``verify`` hashes every shard. DataError says what is missing, damaged or of another kind.
        """
        if not path.is_dir():
            raise DataError(f"{path}: no such folder of token shards or NPZ files")
        npz = sorted(path.glob("*.npz"))
        if npz and not (path / "index.json").exists():
            return cls([read_npz(file, len(tokenizer) if tokenizer else None) for file in npz])
        index = Index.read(path)
        if tokenizer is not None and identity(tokenizer) != index.tokenizer_identity:
            raise DataError(
                f"{path}: these tokens were made by another tokenizer ({index.tokenizer}, "
                f"{index.vocab_size} tokens) than the one in use "
                f"({tokenizer.name_or_path or 'made'}, {len(tokenizer)} tokens). Use the one in "
                f"{path / 'tokenizer'}, or tokenise again."
            )
        return cls([_mapped(path, shard, index.dtype, verify) for shard in index.shards])

    def __len__(self) -> int:
        """Tokens in this stream."""
        return self.last - self.first

    @property
    def identity(self) -> str:
        """A hash of the length and of 64 samples of 1024 tokens over the whole stream."""
        total = hashlib.sha256(f"{self.first} {self.last}".encode())
        for begin in np.linspace(self.first, max(self.first, self.last - 1024), 64).astype(int):
            total.update(self._ids(begin, min(begin + 1024, self.last)).tobytes())
        return total.hexdigest()

    @property
    def documents(self) -> int:
        """Documents that begin in this stream."""
        return len(self._starts(self.first, self.last))

    def each_document(self, start: int = 0) -> Iterator[NDArray[np.int32]]:
        """Ids [tokens] of each document from number ``start`` on, with its EOS; the first and the
        last as far as they lie in this stream."""
        begins = self._starts(self.first, self.last)
        cuts = np.union1d(begins, [self.first, self.last])
        for begin, end in zip(cuts[start:-1], cuts[start + 1 :], strict=True):
            yield self._ids(int(begin), int(end))

    def part(self, first: int, last: int) -> TokenStream:
        """Tokens ``first`` to ``last`` of this stream as a stream of their own, nothing copied."""
        if not 0 <= first < last <= len(self):
            raise DataError(f"tokens {first} to {last} are not inside a stream of {len(self)}")
        return TokenStream(self._parts, self.first + first, self.first + last)

    def rows(self, length: int) -> int:
        """Rows of ``length`` targets each; the last may be shorter. Every token but the very first
        is a target exactly once.
        """
        return -(-(len(self) - 1) // length)

    def window(self, row: int, length: int) -> Window:
        """Row ``row``: tokens ``row * length`` to ``row * length + length``, both included."""
        if not 0 <= row < self.rows(length):
            raise IndexError(f"row {row} of {self.rows(length)}")
        begin = self.first + row * length
        end = min(begin + length + 1, self.last)
        return Window(self._ids(begin, end), self._starts(begin, end) - begin)

    def _ids(self, begin: int, end: int) -> NDArray[np.int32]:
        pieces = [part.ids[a:b] for part, a, b, _ in self._covering(begin, end)]
        return np.concatenate(pieces).astype(np.int32)

    def _starts(self, begin: int, end: int) -> NDArray[np.int64]:
        """Where documents begin in [begin, end), counted from the start of all parts."""
        found = [np.empty(0, dtype=np.int64)]
        for part, a, b, offset in self._covering(begin, end):
            if a == 0:
                found.append(np.array([offset], dtype=np.int64))
            first, last = np.searchsorted(part.ends, [max(a, 1), b])
            found.append(part.ends[first:last] + offset)
        return np.concatenate(found)

    def _covering(self, begin: int, end: int) -> list[tuple[_Part, int, int, int]]:
        """(part, from, to, offset of the part) for each part that has tokens of [begin, end)."""
        at = int(np.searchsorted(self._cuts, begin, side="right")) - 1
        covering = []
        while at < len(self._parts) and self._cuts[at] < end:
            offset = int(self._cuts[at])
            part = self._parts[at]
            covering.append(
                (part, max(begin - offset, 0), min(end - offset, len(part.ids)), offset)
            )
            at += 1
        return covering


def read_npz(file: Path, vocab_size: int | None = None) -> _Part:
    """One NPZ file of right-padded rows, each row a document, without its padding.

    ``sequence_lengths`` [N] says how long each row of ``input_ids`` [N, L] is; ``attention_mask``
    [N, L], where there is one, must agree. The array is read whole: NPZ cannot be mapped.
    """
    arrays = _npz_arrays(file)
    ids, lengths = arrays.get("input_ids"), arrays.get("sequence_lengths")
    mask = arrays.get("attention_mask")
    if ids is None or ids.ndim != 2 or (lengths is None and mask is None):
        raise DataError(
            f"{file}: needs input_ids [N, L] and sequence_lengths [N] or attention_mask [N, L]; "
            f"it has {', '.join(f'{k} {list(v.shape)}' for k, v in arrays.items()) or 'nothing'}"
        )
    if lengths is None:
        lengths = mask.sum(axis=1) if mask is not None else None
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.shape != ids.shape[:1] or (lengths < 0).any() or (lengths > ids.shape[1]).any():
        raise DataError(f"{file}: sequence_lengths do not fit input_ids {list(ids.shape)}")
    real = np.arange(ids.shape[1]) < lengths[:, None]
    if mask is not None and not np.array_equal(mask.astype(bool), real):
        row = int(np.argmax((mask.astype(bool) != real).any(axis=1))) if mask.ndim == 2 else 0
        raise DataError(
            f"{file}: row {row}: attention_mask does not say the same as sequence_lengths "
            "(right-padded); which tokens are real cannot be told"
        )
    flat = ids[real]
    if flat.size and (flat.min() < 0 or (vocab_size is not None and flat.max() >= vocab_size)):
        raise DataError(
            f"{file}: ids from {flat.min()} to {flat.max()} do not fit a vocabulary of "
            f"{vocab_size}; these tokens are of another tokenizer"
        )
    small = flat.size == 0 or flat.max() < 1 << 16
    ends = np.cumsum(lengths[lengths > 0])
    return _Part(flat.astype(np.uint16 if small else np.uint32), ends)


def _npz_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """All arrays of the file. DataError when it is damaged, or holds pickled objects."""
    try:
        with opened(str(file)) as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file}: not readable as NPZ: {error}. Pickled (object) arrays are never loaded; a "
            "damaged file must be fetched or made again, not skipped."
        ) from error


def _mapped(folder: Path, shard: Shard, dtype: str, verify: bool) -> _Part:
    """One shard, mapped; its sizes are compared with the index, with ``verify`` its hash too."""
    file = folder / shard.file
    try:
        ids = np.memmap(file, dtype, mode="r")
        ends = np.fromfile(file.with_suffix(".idx"), dtype=np.int64)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: missing or unreadable ({error}); tokenise again") from error
    if len(ids) != shard.tokens or len(ends) != shard.documents or ends[-1] != shard.tokens:
        raise DataError(f"{file}: not as long as index.json says; copy or tokenise it again")
    if verify:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != shard.sha256:
            raise DataError(f"{file}: its content changed (SHA-256); copy or tokenise it again")
    return _Part(np.asarray(ids), ends)


__all__ = ["Index", "TokenStream", "Window", "read_npz", "tokenize"]
