"""From the ``data:`` section to rows in memory: tokens, and where their pictures lie.

Every picture is unpacked once, to know its size and that it can be read, and what was found is kept
by content, so that the next attempt only hashes it. Its pixels stay where they are: a row of memory
is a few kilobytes, however large the pages. Pictures that rows hold themselves go to the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headway.data.pictures.images import (
    RULES,
    Picture,
    Reading,
    content,
    decoded_bytes,
    kept,
    named,
)
from headway.data.pictures.prompt import PromptWriter, is_blank
from headway.data.pictures.records import ImageRow, recognise
from headway.data.pictures.section import ImageData
from headway.data.prepare import SPLITS, Tallies, chance, refuse_unusable
from headway.data.report import DataReport, Tally
from headway.data.sources import Source, read_records
from headway.errors import DataError

UNREADABLE = "a picture that cannot be read"
UNTAKEN = "a picture that the model cannot take"
LEAVE_OUT = (
    "leave out the row, or set data.images.unreadable: skip to leave such rows out and count them"
)
Size = tuple[int, int]


class Measures(Protocol):
    """How many features a model makes of a picture."""

    def features(self, height: int, width: int) -> int:
        """Of a picture of this size. ValueError where the model takes none such."""
        ...

    def scaled(self, height: int, width: int) -> Size:
        """The height and width that the model sees."""
        ...


@dataclass(frozen=True, slots=True)
class ImageExample:
    """A row as the model sees it, its pictures not yet decoded."""

    row: ImageRow
    ids: NDArray[np.int32]
    """[tokens] with a picture's token as often as it has features."""
    supervised: NDArray[np.bool_]
    """[tokens] which of them the assistant says."""
    features: tuple[int, ...]
    """Of each picture."""
    sizes: tuple[Size, ...]
    """(height, width) of each picture, upright and cropped."""
    prompt_tokens: int
    """Tokens before the first that is learned."""
    full_tokens: int
    """Tokens before anything was cut."""

    @property
    def weight(self) -> int:
        """Supervised tokens."""
        return int(self.supervised.sum())


@dataclass(frozen=True, slots=True)
class ImageSplits:
    """Rows of each split (held out, test: or None), and what became of all that was read."""

    train: list[ImageExample]
    held_out: list[ImageExample] | None
    test: list[ImageExample] | None
    sizes: tuple[int, ...]
    """Training rows of each source."""
    report: DataReport
    identities: dict[str, str]
    """Names the content of each split that there is: its rows, and every picture's bytes."""


@dataclass(frozen=True, slots=True)
class _Looked:
    """A row whose pictures were looked at."""

    row: ImageRow
    hashes: tuple[str, ...]
    sizes: tuple[Size, ...]
    problem: str = ""

    @property
    def kind(self) -> str:
        return self.row.kind

    @property
    def where(self) -> str:
        return self.row.where

    @property
    def content(self) -> str:
        """Equal for the same question about the same pictures, whatever the answer."""
        return json.dumps([self.hashes, self.row.asked])


def prepare_images(
    data: ImageData,
    writer: PromptWriter,
    measures: Measures,
    *,
    max_tokens: int,
    seed: int,
    cache: Path,
) -> ImageSplits:
    """The rows of a ``data:`` section. DataError for unreadable data, and beyond its limits."""
    splits = read_images(data, writer, measures, max_tokens=max_tokens, seed=seed, cache=cache)
    refuse_unusable(data, splits.report, splits.sizes, held_out=splits.held_out is not None)
    return splits


def read_images(
    data: ImageData,
    writer: PromptWriter,
    measures: Measures,
    *,
    max_tokens: int,
    seed: int,
    cache: Path,
) -> ImageSplits:
    """As ``prepare_images``, refusing no share of lost rows: what ``headway data lint`` shows."""
    tallies = Tallies(data)
    found: dict[str, list[ImageExample]] = {split: [] for split in SPLITS}
    hashes = {split: hashlib.sha256() for split in SPLITS}
    sizes = [0] * len(data.train)
    share = data.eval_fraction or 0.0
    with _Album(cache, data.images) as album:
        for split, index, source in places(data):
            for looked in album.rows(source, data.instruction):
                held = split == "train" and chance(json.dumps(looked.hashes), seed) < share
                side = "held-out" if held else split
                tally = tallies.read(side, index, looked)
                example = _example(looked, data, writer, measures, max_tokens, tally)
                if example is None:
                    continue
                found[side].append(example)
                named = [looked.hashes, example.ids.tolist(), example.prompt_tokens]
                hashes[side].update(json.dumps(named).encode())
                if side == "train":
                    sizes[index] += 1
    held_out, test = found["held-out"], found["test"]
    named_by = {"train": "data", "held-out": "held_out", "test": "test"}
    return ImageSplits(
        found["train"],
        held_out or None,
        test or None,
        tuple(sizes),
        tallies.report(),
        {named_by[s]: hashes[s].hexdigest()[:16] for s in SPLITS if found[s] or s == "train"},
    )


def places(data: ImageData) -> list[tuple[str, int, Source]]:
    """(split, index, source) of everything that is read, the training sources first."""
    found = [("train", i, s) for i, s in enumerate(data.train)]
    found += [("held-out", i, s) for i, s in enumerate(data.eval or ())]
    return found + [("test", i, s) for i, s in enumerate(data.test or ())]


def _example(
    looked: _Looked,
    data: ImageData,
    writer: PromptWriter,
    measures: Measures,
    max_tokens: int,
    tally: Tally,
) -> ImageExample | None:
    """The row as the model sees it, counted; None where nothing is learned from it."""
    row = looked.row
    if looked.problem:
        tally.drop(UNREADABLE, looked.problem)
        return None
    if is_blank(row.messages):
        tally.drop("nothing to learn: no answer, or an empty one", row.where)
        return None
    try:
        features = _features(looked, measures)
    except ValueError as error:
        if data.images.unreadable == "error":
            raise DataError(f"{error}. Crop it, {LEAVE_OUT}") from error
        tally.drop(UNTAKEN, str(error))
        return None
    ids, supervised = writer.example(row.messages, features, row.where)
    full, pictured = len(ids), np.flatnonzero(ids == writer.image_id)
    tally.longest_tokens = max(tally.longest_tokens, full)
    if full > max_tokens:
        if data.overlong == "error":
            raise DataError(
                f"{row.where}: {full} tokens, {len(pictured)} of them for pictures, more than "
                f"max_tokens: {max_tokens}. Raise it, lower task.max_pixels, or set overlong: to "
                "truncate or drop"
            )
        if data.overlong == "drop" or (len(pictured) and pictured[-1] >= max_tokens):
            tally.drop("longer than max_tokens", row.where)
            return None
        ids, supervised = ids[:max_tokens], supervised[:max_tokens]
        tally.truncated += 1
        tally.cut_tokens += full - max_tokens
        tally.note("truncated", row.where)
    if not supervised.any():
        tally.drop("no supervised token is left after truncation", row.where)
        return None
    tally.kept += 1
    tally.tokens += len(ids)
    tally.supervised_tokens += int(supervised.sum())
    start = int(np.flatnonzero(supervised)[0])
    return ImageExample(row, ids, supervised, features, looked.sizes, start, full)


def _features(looked: _Looked, measures: Measures) -> tuple[int, ...]:
    """Of each picture. ValueError that names the one of which the model makes none."""
    found = []
    for picture, (height, width) in zip(looked.row.pictures, looked.sizes, strict=True):
        try:
            found.append(measures.features(height, width))
        except ValueError as error:
            raise ValueError(
                f"{named(picture)}: {width} x {height} pixels, which this model cannot take: "
                f"{error}"
            ) from error
    return tuple(found)


class _Album:
    """What is known of pictures by their content: their size, or why they cannot be read."""

    def __init__(self, cache: Path, reading: Reading) -> None:
        shown = f"{RULES} {reading.model_dump_json(exclude={'unreadable'})}"
        self.reading = reading
        self.folder = cache / "pictures"
        self.file = self.folder / f"{hashlib.sha256(shown.encode()).hexdigest()[:24]}.json"
        self.known: dict[str, list[int]] = {}
        self.before = 0

    def __enter__(self) -> _Album:
        try:
            tree = json.loads(self.file.read_text(encoding="utf-8"))
            self.known = {k: [int(v[0]), int(v[1])] for k, v in tree.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            self.known = {}
        self.before = len(self.known)
        return self

    def __exit__(self, *_: object) -> None:
        if len(self.known) == self.before:
            return
        partial = self.file.with_name(f".partial-{self.file.name}-{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self.known), encoding="utf-8")
            partial.replace(self.file)
        except OSError:
            pass  # the next attempt looks at them again

    def rows(self, source: Source, instruction: str | None) -> Iterator[_Looked]:
        """The rows of a source, each picture looked at. DataError unless ``unreadable: skip``."""
        for record in read_records(source):
            try:
                yield self._looked(recognise(record, instruction))
            except _Unreadable as error:
                if self.reading.unreadable == "error":
                    raise DataError(f"{error}. Repair it, {LEAVE_OUT}") from error
                yield _Looked(error.row, (str(error),), (), str(error))

    def _looked(self, row: ImageRow) -> _Looked:
        hashes, sizes, pictures = [], [], []
        for picture in row.pictures:
            try:
                raw = content(picture)
                digest = hashlib.sha256(raw).hexdigest() + (f"-{picture.page}" * bool(picture.page))
                size = self._size(picture, raw, digest)
            except DataError as error:
                raise _Unreadable(row, str(error)) from error
            hashes.append(digest)
            sizes.append(size)
            pictures.append(kept(picture, raw, self.folder))
        stored = replace(row, pictures=tuple(pictures))
        return _Looked(stored, tuple(hashes), tuple(sizes))

    def _size(self, picture: Picture, raw: bytes, digest: str) -> Size:
        if digest not in self.known:
            image = decoded_bytes(raw, picture, self.reading)
            self.known[digest] = [image.height, image.width]
        height, width = self.known[digest]
        return height, width


class _Unreadable(Exception):
    """A row of which a picture cannot be read."""

    def __init__(self, row: ImageRow, why: str) -> None:
        super().__init__(why)
        self.row = row


def budget_lines(
    splits: Sequence[tuple[str, list[ImageExample] | None]], measures: Measures
) -> list[str]:
    """Of each split: how large pictures are, as the model sees them, and what they cost in
    tokens."""
    lines = []
    for name, rows in splits:
        sizes = [size for row in rows or () for size in row.sizes]
        if not rows or not sizes:
            continue
        seen = [measures.scaled(*size) for size in sizes]
        per_row = np.array([sum(row.features) for row in rows])
        total = sum(len(row.ids) for row in rows)
        smaller = sum(s[0] * s[1] < 0.9 * b[0] * b[1] for s, b in zip(seen, sizes, strict=True))
        lines.append(
            f"{name}: {len(sizes):,} pictures, {_span(sizes)} pixels, seen as {_span(seen)}; "
            f"{int(per_row.min()):,} to {int(per_row.max()):,} picture tokens a row (half up to "
            f"{int(np.median(per_row)):,}), {100 * int(per_row.sum()) / total:.0f} % of all tokens"
            + (f"; {smaller:,} pictures are scaled down" if smaller else "")
        )
    return lines


def _span(sizes: Sequence[Size]) -> str:
    """Width x height of the smallest and the largest."""
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    small, large = by_area[0], by_area[-1]
    first, last = f"{small[1]}x{small[0]}", f"{large[1]}x{large[0]}"
    return first if first == last else f"{first} to {last}"
