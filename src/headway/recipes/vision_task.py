"""What the engine trains in the recipe ``vision``: a model with eyes, and rows with pictures.

A microbatch is flat: rows end to end without padding, their pictures too. Pictures are decoded when
a batch is made, by the thread that makes the next batch while this one is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from headway.data.pictures import ImageExample, ImageRow, PromptWriter, Reading, decoded
from headway.data.pictures.augment import Augmentation, augmented
from headway.engine.fake import with_numbers
from headway.engine.task import BuildContext, Inputs, Microbatch, RowSums, SavedModel
from headway.errors import DataError
from headway.models.attention import recompute
from headway.models.backbone import backbone
from headway.models.eyes import Arrays, Eyes
from headway.models.tuning import saved_model
from headway.models.vision import flat_pictures, picture_states
from headway.recipes.batching import Order, groups, longest_rows
from headway.recipes.language_model import counts
from headway.recipes.text import JudgedRow, judged_row, row_sums

SHAPES = ("input_ids", "image_grid_thw")
"""Inputs whose numbers are shapes: which tokens stand for a picture, and how large it is."""
LEAST_WORDS = 8
"""Tokens of a made-up row that are no picture."""


@dataclass
class VisionTask:
    """A vision-language model and the rows it learns from."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    writer: PromptWriter
    eyes: Eyes
    reading: Reading
    context: BuildContext
    base_model: str
    instruction: str | None
    """Asked where a request asks nothing."""
    augmentation: Augmentation | None = None
    train: Sequence[ImageExample] = ()
    held: Sequence[ImageExample] | None = None
    """Those that are measured."""
    held_total: int = 0
    test: Sequence[ImageExample] | None = None
    order: Order = field(default=lambda positions: positions)
    rows_per_epoch: int = 0
    tokens_per_epoch: int = 0
    described: dict[str, Any] = field(default_factory=dict)
    most_tokens: int = 0
    """The longest that a row may be."""
    read_limit: tuple[int, int] = (0, 0)
    """Held-out rows that an evaluation reads aloud, and tokens of the longest answer."""

    def batch_at(self, step: int, halvings: int = 0) -> list[Microbatch]:
        """This rank's share of the batch after ``step``: a pure function, augmentation included."""
        size = self.context.batch_size
        every = np.arange(step * size, (step + 1) * size, dtype=np.int64)
        positions = every[self.context.rank :: self.context.ranks]
        rows = [int(row) for row in self.order(positions)]
        return list(self._cut(self.train, rows, positions.tolist(), halvings))

    def held_out(self, halvings: int = 0) -> Iterator[Microbatch]:
        """This rank's held-out rows in file order, their pictures as they are."""
        if self.held is not None:
            mine = list(range(self.context.rank, len(self.held), self.context.ranks))
            yield from self._cut(self.held, mine, None, halvings)

    def tested(self) -> VisionTask | None:
        """The same model over all test rows; None where there are none."""
        if self.test is None:
            return None
        return replace(self, held=self.test, held_total=len(self.test))

    def longest(self, rows: int) -> Microbatch:
        """The longest training rows together, or made-up ones where none were read."""
        if not self.train:
            return made_up(self, rows)
        lengths = np.array([self._length(row) for row in self.train])
        return self.microbatch(self.train, longest_rows(lengths.astype(np.int64), rows), None)

    def _length(self, row: ImageExample) -> int:
        """What a row costs, in tokens of the language model."""
        return len(row.ids) + int(self.eyes.work(sum(row.features)))

    def _room(self) -> BuildContext:
        """The context; tokens that were planned for, of rows as full of pictures as can be, in the
        measure of ``_length``."""
        planned = self.context.tokens_at_once
        if planned is None:
            return self.context
        _, count = largest_picture(self)
        share = 1 + self.eyes.work(count) / self.most_tokens
        return replace(self.context, tokens_at_once=int(planned * share))

    def _cut(
        self,
        source: Sequence[ImageExample],
        rows: Sequence[int],
        positions: Sequence[int] | None,
        halvings: int,
    ) -> Iterator[Microbatch]:
        def length_of(place: int) -> int:
            return self._length(source[rows[place]])

        for group in groups(range(len(rows)), length_of, self.model, self._room(), halvings):
            at = None if positions is None else [positions[place] for place in group]
            yield self.microbatch(source, [rows[place] for place in group], at)

    def microbatch(
        self,
        source: Sequence[ImageExample],
        rows: Sequence[int],
        positions: Sequence[int] | None,
    ) -> Microbatch:
        """Rows end to end; ``positions``: where in the training order each stands, to augment."""
        parts = [source[row] for row in rows]
        seen = [
            self.pictures(part, None if positions is None else positions[n])
            for n, part in enumerate(parts)
        ]
        places = [
            self.eyes.positions(self.model, part.ids, pictures)
            for part, pictures in zip(parts, seen, strict=True)
        ]
        return flatten(parts, places, seen, rows)

    def pictures(self, row: ImageExample, position: int | None) -> list[Arrays]:
        """The row's pictures as the model reads them. DataError where one is not what it was."""
        found = []
        for number, picture in enumerate(row.row.pictures):
            image = decoded(picture, self.reading)
            if (image.height, image.width) != row.sizes[number]:
                raise DataError(
                    f"{picture.where} ({picture.path}): the picture has changed since the run "
                    "began: it has another size"
                )
            if position is not None and self.augmentation is not None:
                seed = self.context.seed
                image = augmented(image, self.augmentation, seed, position, number)
            found.append(self.eyes.pixels(image))
        return found

    def loss(self, model: nn.Module, inputs: Inputs) -> RowSums:
        """Sum of -log p over each row's answer, in nats: ``{"loss": [rows]}``."""
        return row_sums(model, inputs, picture_states)

    def recompute_activations(self) -> bool:
        """Keep each layer's input only, from now on."""
        return recompute(self.model)

    def saved(self) -> SavedModel:
        """PEFT's or transformers' layout, with the tokenizer and the image processor."""
        if self._files is None:
            files = dict(saved_model(self.model, self.tokenizer, self.base_model).files)
            files["preprocessor_config.json"] = self.eyes.processor.to_json_string().encode()
            self._files = files
        return SavedModel(
            tensors=saved_model(self.model, None, self.base_model).tensors, files=self._files
        )

    _files: dict[str, bytes] | None = field(default=None, init=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """Counts of parameters and data, and the identities that must not change within a run."""
        vocabulary = backbone(self.model).head.weight.shape[0]
        return {**counts(self.model), "vocabulary": vocabulary, **self.described}

    def judged(self, row: int) -> JudgedRow:
        """A held-out row's answer token by token, as the evaluation read it."""
        assert self.held is not None
        inputs = self.microbatch(self.held, [row], None).inputs
        whole = judged_row(self.model, inputs, picture_states, self.context.precision)
        return replace(whole, ids=whole.targets, at=list(range(len(whole.targets))))


def flatten(
    parts: Sequence[ImageExample],
    places: Sequence[NDArray[np.int64]],
    seen: Sequence[Sequence[Arrays]],
    rows: Sequence[int],
) -> Microbatch:
    """Rows end to end as one microbatch. All index tensors are int64, on the CPU.

    Inputs: ``input_ids`` [1, tokens]; ``position_ids`` [k, 1, tokens], each row's own;
    ``row_ends``; the pictures' arrays with ``picture_keys`` and ``picture_ends``; ``positions`` [n]
    (hidden state that predicts), ``targets`` [n] (token predicted), ``row_of_target`` [n],
    ``rows``; ``shapes``, what a model must know as numbers to know its shapes.
    """
    lengths = [len(part.ids) for part in parts]
    starts = np.cumsum([0, *lengths])[:-1]
    said = [np.flatnonzero(part.supervised) for part in parts]
    weights = [len(at) for at in said]
    tensors = {
        "input_ids": np.concatenate([part.ids for part in parts])[None],
        "position_ids": np.concatenate(places, axis=1)[:, None],
        "positions": np.concatenate([s + at - 1 for s, at in zip(starts, said, strict=True)]),
        "targets": np.concatenate([p.ids[at] for p, at in zip(parts, said, strict=True)]),
        "row_of_target": np.repeat(np.arange(len(parts)), weights),
    }
    inputs: dict[str, Any] = {"shapes": SHAPES}
    with with_numbers():
        inputs |= {k: torch.from_numpy(v.astype(np.int64)) for k, v in tensors.items()}
        inputs |= flat_pictures(seen)
    return Microbatch(
        inputs={**inputs, "row_ends": np.cumsum(lengths).tolist(), "rows": len(parts)},
        rows=tuple(rows),
        weights=tuple(float(weight) for weight in weights),
        tokens=sum(lengths),
    )


def largest_picture(task: VisionTask) -> tuple[tuple[int, int], int]:
    """Height and width of the largest picture that a row can have, and its features; 0 features
    where none fits into a row."""
    room = task.most_tokens - LEAST_WORDS
    size = task.eyes.largest(room)
    count = task.eyes.features(*size)
    return size, count if count <= room else 0


def made_up(task: VisionTask, rows: int) -> Microbatch:
    """Rows of the greatest length, each a picture as large as the budget and the row allow, and
    words that are all supervised."""
    from PIL import Image

    eyes, most = task.eyes, task.most_tokens
    (high, wide), count = largest_picture(task)
    ids = np.full(most, (eyes.image_id + 1) % len(task.tokenizer), dtype=np.int32)
    ids[1 : 1 + count] = eyes.image_id
    seen = [eyes.pixels(Image.new("RGB", (wide, high)))] if count else []
    said = np.arange(most) > count
    row = ImageExample(ImageRow("", "", (), ()), ids, said, (count,), ((high, wide),), 1, most)
    places = eyes.positions(task.model, ids, seen)
    return flatten([row] * rows, [places] * rows, [seen] * rows, [0] * rows)
