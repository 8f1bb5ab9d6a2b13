"""Edits as the editor reads them: the latent's places first, then the instruction, end to end.

Rows lie flat and nothing is padded, so there is no side to pad on: a row's last token is the last
of its own tokens, in a batch and alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from headway.data.cad import EditRows, read_edits, read_json_edits
from headway.data.cad.edits import Readings
from headway.data.cad.families import FAMILIES, MOST_PARAMETERS, normalised
from headway.data.cad.reading import Unreadable, read
from headway.data.order import rows_at
from headway.engine.task import Microbatch, RowAsRead, Survey
from headway.errors import DataError

NAMES = tuple(dict.fromkeys(name for family in FAMILIES for name in family.names))
"""Every dimension that some family has, in the order of their tables."""
WHAT_A_MODEL_READS = (
    "input_ids", "position_ids", "row_ends", "latent_at", "last_at",
    "number_at", "number_row", "number_value", "z",
)  # fmt: skip
"""Of a microbatch's inputs."""
PLACEHOLDER = 0
"""The token id that stands where the latent's embedding goes."""


NUMBER = re.compile(r"(?<![\w.])[+\-\N{MINUS SIGN}]?\d+(?:\.\d+)?")
"""A number of an instruction, with its sign; not the 1 of "leg1"."""


class WrittenEdit(NamedTuple):
    """An edit's tokens."""

    ids: NDArray[np.int32]
    numbers: Sequence[tuple[int, float]]
    """(place of its last token, value) of each number."""


@dataclass(frozen=True, slots=True)
class EditText:
    """How an edit is written."""

    tokenizer: PreTrainedTokenizerBase
    text_format: str
    latent_tokens: int
    max_tokens: int

    def write(self, instructions: Sequence[str]) -> list[WrittenEdit]:
        """Each instruction in tokens. Raises DataError for one that is too long.

        What looks like a special token in an instruction is text, never the token.
        """
        texts = [self.text_format.replace("{instruction}", text.strip()) for text in instructions]
        found = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        rows = []
        for text, ids, spans in zip(
            texts, found["input_ids"], found["offset_mapping"], strict=True
        ):
            whole = [PLACEHOLDER] * self.latent_tokens + list(ids)
            if len(whole) > self.max_tokens:
                raise DataError(
                    f"{text!r} has {len(whole)} tokens with the latent's, more than "
                    f"task.max_tokens ({self.max_tokens}): raise it; cutting an instruction would "
                    "change its meaning"
                )
            numbers = []
            for number in NUMBER.finditer(text):
                last = max(n for n, (start, _) in enumerate(spans) if start < number.end())
                value = float(number[0].replace("\N{MINUS SIGN}", "-"))
                numbers.append((self.latent_tokens + last, value))
            rows.append(WrittenEdit(np.array(whole, dtype=np.int32), numbers))
        return rows


@dataclass(frozen=True)
class WrittenEdits:
    """Edits of one split, tokenised."""

    edits: EditRows
    text: EditText

    def __len__(self) -> int:
        return len(self.edits)

    @cached_property
    def written(self) -> list[WrittenEdit]:
        """The tokens of each row."""
        return self.text.write(self.edits.instructions)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[n] tokens of each row."""
        return np.array([len(row.ids) for row in self.written], dtype=np.int64)

    @cached_property
    def amounts(self) -> NDArray[np.float32]:
        """[n, NAMES]: the labelled change of each dimension, in mm."""
        return amounts_of(self.edits.changes)

    @cached_property
    def targets(self) -> NDArray[np.float32]:
        """[n, MOST_PARAMETERS]: dimensions after the edit as shares of their ranges; NaN where the
        part has no more, or the data does not say the part."""
        found = np.full((len(self.edits), MOST_PARAMETERS), np.nan, dtype=np.float32)
        for row in range(len(self.edits)):
            family = self.edits.family_of(row)
            if family:
                changes = self.edits.changes[row]
                n = len(family.parameters)
                after = [
                    value + changes.get(name, 0.0)
                    for name, value in zip(family.names, self.edits.values[row, :n], strict=True)
                ]
                found[row, :n] = normalised(family, np.array([after]))[0, :n]
        return found

    @cached_property
    def parsed(self) -> NDArray[np.float32]:
        """[n, NAMES]: what a reader without a model finds in the texts, in mm; 0 where nothing."""
        found = []
        for row, text in enumerate(self.edits.instructions):
            family = self.edits.family_of(row) or FAMILIES[0]
            values = dict(zip(family.names, self.edits.values[row].tolist(), strict=False))
            try:
                found.append(read(text, family, values))
            except Unreadable:
                found.append({})
        return amounts_of(found)

    @property
    def sha256(self) -> str:
        """Names the content: ids, latents and changes of every row."""
        digest = hashlib.sha256()
        for ids, _ in self.written:
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        for part in (self.edits.z_src, self.edits.z_tgt, self.amounts):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def microbatch(self, rows: Sequence[int]) -> Microbatch:
        """Rows end to end, one loss unit each.

        Inputs: ``input_ids``, ``position_ids`` [1, tokens], ``row_ends``, ``latent_at``
        [n, latent_tokens], ``last_at`` [n], ``z`` and ``delta`` [n, latent], ``amounts`` [n, NAMES]
        in mm, ``direction`` [n] (1, 0, or 0.5: neither), ``family`` [n] (-1: not said), ``targets``
        [n, MOST_PARAMETERS], ``number`` [n].
        """
        at = np.asarray(rows, dtype=np.int64)
        parts = [self.written[row] for row in rows]
        lengths = [len(part.ids) for part in parts]
        ends = np.cumsum(lengths, dtype=np.int64)
        starts: NDArray[np.int64] = ends - np.array(lengths, dtype=np.int64)
        amounts = self.amounts[at]
        edits = self.edits
        tensors: dict[str, Any] = {
            "input_ids": np.concatenate([part.ids for part in parts])[None].astype(np.int64),
            "position_ids": np.concatenate([np.arange(n) for n in lengths])[None],
            **numbers_of(parts, starts),
            "latent_at": starts[:, None] + np.arange(self.text.latent_tokens),
            "last_at": ends - 1,
            "z": edits.z_src[at],
            "delta": edits.z_tgt[at] - edits.z_src[at],
            "amounts": amounts,
            "direction": directions(amounts),
            "family": edits.family[at],
            "targets": self.targets[at],
            "number": at,
        }
        return Microbatch(
            inputs={
                **{name: torch.from_numpy(value) for name, value in tensors.items()},
                "row_ends": ends.tolist(),
            },
            rows=tuple(int(row) for row in rows),
            weights=(1.0,) * len(rows),
            tokens=sum(lengths),
        )


def numbers_of(parts: Sequence[WrittenEdit], starts: NDArray[np.int64]) -> dict[str, Any]:
    """``number_at`` in rows end to end, ``number_row`` and ``number_value``, [m] each."""
    found = [
        (start + place, row, value)
        for row, (part, start) in enumerate(zip(parts, starts, strict=True))
        for place, value in part.numbers
    ]
    at, rows, values = zip(*found, strict=True) if found else ((), (), ())
    return {
        "number_at": np.array(at, dtype=np.int64),
        "number_row": np.array(rows, dtype=np.int64),
        "number_value": np.array(values, dtype=np.float32),
    }


def longest_edits(text: EditText, latent: int) -> WrittenEdits:
    """One made-up edit as long as an edit may be: for the plan."""
    made = EditRows(
        instructions=("",),
        z_src=np.zeros((1, latent), np.float32),
        z_tgt=np.zeros((1, latent), np.float32),
        changes=({},),
        kinds=("noop",),
        family=np.array([-1]),
        values=np.zeros((1, 9)),
        vae_sha256=None,
    )
    written = WrittenEdits(made, text)
    long = np.zeros(text.max_tokens, dtype=np.int32)
    numbers = [(place, 1.0) for place in range(text.latent_tokens, text.max_tokens, 8)]
    written.__dict__["written"] = [WrittenEdit(long, numbers)]
    return written


def amounts_of(changes: Sequence[Mapping[str, float]]) -> NDArray[np.float32]:
    """[n, NAMES] in mm. Raises DataError for a dimension that no family has."""
    found = np.zeros((len(changes), len(NAMES)), dtype=np.float32)
    for row, named in enumerate(changes):
        for name, change in named.items():
            if name not in NAMES:
                raise DataError(
                    f"an edit changes {name!r}, which no family has; they have {', '.join(NAMES)}"
                )
            found[row, NAMES.index(name)] = change
    return found


def directions(amounts: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n]: 1 where every change is to more, 0 to less, 0.5 where there is none, or both."""
    more, less = (amounts > 0).any(1), (amounts < 0).any(1)
    return np.where(more == less, 0.5, np.where(more, 1.0, 0.0)).astype(np.float32)


# ------------------------------------------------------------------ reading files


def load_edits(place: str, max_unreadable: float) -> tuple[EditRows, str]:
    """(edits, hash of their files) of a folder of `headway data cad-edits`, or of a JSON file.

    Raises DataError where more labels than the share ``max_unreadable`` cannot be read from their
    texts to within 1 mm (published data rounds its numbers to whole mm), and the part is known, or
    the text gives a number.
    """
    path = Path(place)
    edits, sha256 = read_json_edits(path) if path.is_file() else read_edits(path)
    looked_at(edits).refuse_beyond(max_unreadable)
    return edits, sha256


def looked_at(edits: EditRows) -> Readings:
    """Which labels can be read from their texts."""
    readings = Readings()
    for row in range(len(edits)):
        readings.look(_edit(edits, row), tolerance_mm=1.0)
    return readings


def edits_as_read(edits: EditRows) -> Iterator[RowAsRead]:
    """Each edit as a person looks at it: its part, its text, and behind it what it changes."""
    for row, text in enumerate(edits.instructions):
        family = edits.family_of(row)
        label = ", ".join(f"{name} {mm:+.4g} mm" for name, mm in edits.changes[row].items())
        about = f"a {family.name}, " if family else ""
        facts = f"{about}{edits.kinds[row]}"
        yield RowAsRead(where=f"edit {row}", facts=facts, runs=((text, label or "nothing", 1.0),))


def surveyed(edits: EditRows, max_unreadable: float) -> Survey:
    """All edits counted: kinds, dimensions that change, labels that are not in their texts."""
    readings = looked_at(edits)
    kinds = Counter(edits.kinds)
    changed = Counter(name for changes in edits.changes for name in changes)
    families = Counter(
        f.name if (f := edits.family_of(n)) else "not said" for n in range(len(edits))
    )
    lines = [f"{len(edits):,} edits, latents of {edits.z_src.shape[1]} numbers"]
    for title, counts in (("kinds", kinds), ("parts", families), ("changed", changed)):
        lines.append(
            f"  {title}: " + ", ".join(f"{n:,} {name}" for name, n in counts.most_common())
        )
    lines.append(f"  labels read from their texts: {readings.read:,}, not: {readings.unreadable:,}")
    lines += [f"    {reason}: {text}" for reason, text in readings.first.items()]
    refusal = ""
    try:
        readings.refuse_beyond(max_unreadable)
    except DataError as error:
        refusal = str(error)
    tree = {
        "edits": len(edits),
        "kinds": dict(kinds),
        "parts": dict(families),
        "changed": dict(changed),
        "unreadable": readings.unreadable,
    }
    return Survey(lines=lines, tree=tree, refusal=refusal)


def _edit(edits: EditRows, row: int) -> Any:
    """A row as ``Readings`` looks at it; where no part is said, it is a bracket of unknown size."""
    from headway.data.cad.edits import Edit

    family = edits.family_of(row) or FAMILIES[0]
    values = tuple(edits.values[row, : len(family.parameters)].tolist())
    return Edit(row, family, values, dict(edits.changes[row]), edits.instructions[row], "single")


def split_off(rows: int, share: float, split: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training rows, held-out rows), both sorted: ``split`` numbers the ways to draw them."""
    held = max(1, round(rows * share))
    order = rows_at(split, np.arange(rows), rows, stream=-3)
    return np.sort(order[held:]), np.sort(order[:held])
