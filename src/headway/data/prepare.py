"""From the ``data:`` section to rows ready for training: each record tokenised once, ever.

The rows are kept in a cache folder named by a hash of all they depend on (the content of the files,
the tokenizer, the template, the settings), written beside it and renamed when complete, and used by
the next attempt. Rows of one source stand together, in the order of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from headway.data import chat
from headway.data.formats import Record
from headway.data.report import DataReport, Tally, refuse_beyond
from headway.data.rows import Prepared, RowsWriter
from headway.data.sources import Source, TextData, fingerprint, read_records
from headway.data.tokenizers import identity
from headway.errors import DataError

_FORMAT = 3
_BATCH = 512
SPLITS = ("train", "held-out", "test")


class HasSources(Protocol):
    """What a data section says of where rows come from."""

    @property
    def train(self) -> Sequence[Source]: ...  # noqa: D102
    @property
    def eval(self) -> Sequence[Source] | None: ...  # noqa: D102
    @property
    def test(self) -> Sequence[Source] | None: ...  # noqa: D102
    @property
    def eval_fraction(self) -> float | None: ...  # noqa: D102


class HasLimits(HasSources, Protocol):
    """Also what share of the rows may be lost."""

    @property
    def max_truncated(self) -> float: ...  # noqa: D102
    @property
    def max_dropped(self) -> float: ...  # noqa: D102
    @property
    def max_leaked(self) -> float: ...  # noqa: D102


class HasContent(Protocol):
    """What is counted of a row: its shape, its place, and a text that is equal for equal rows."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def where(self) -> str: ...  # noqa: D102
    @property
    def content(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows of each split (held out, test: or None), and what became of all that was read."""

    train: Prepared
    held_out: Prepared | None
    test: Prepared | None
    report: DataReport


def prepare(data: TextData, tokenizer: Any, *, max_tokens: int, seed: int, cache: Path) -> Splits:
    """The rows of a ``data:`` section, from the cache when nothing they depend on has changed.

    Several processes may prepare the same rows at once; the first to finish is kept. DataError for
    unreadable data, and for more truncated, dropped or leaked rows than the section allows.
    """
    settings = _settings(data, tokenizer, max_tokens, seed)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = cache / f"rows-{key[:24]}"
    splits = _opened(folder, verify=True)
    if splits is None:
        _build(folder, data, tokenizer, max_tokens, seed)
        splits = _opened(folder)
        if splits is None:
            raise DataError(
                f"{folder}: the rows just written cannot be read back; is the disk bad?"
            )
    refuse_unusable(data, splits.report, splits.train.sizes, held_out=splits.held_out is not None)
    return splits


def refuse_unusable(
    data: HasLimits, report: DataReport, sizes: Sequence[int], *, held_out: bool
) -> None:
    """DataError where the rows are not what the section allows; ``sizes``: of training sources."""
    total = sum(sizes)
    if not held_out and data.eval_fraction is not None and total:
        raise DataError(
            f"eval_fraction: {data.eval_fraction} of {total} rows holds out no row; "
            "raise it, or give eval:"
        )
    refuse_beyond(
        report,
        max_truncated=data.max_truncated,
        max_dropped=data.max_dropped,
        max_leaked=data.max_leaked,
    )
    for source, size in zip(data.train, sizes, strict=True):
        if size == 0:
            raise DataError(
                f"{source.path}: none of its rows can be trained on; mend the source or leave it "
                "out:\n  " + "\n  ".join(report.lines())
            )


def survey(data: TextData, tokenizer: Any, *, max_tokens: int, seed: int) -> DataReport:
    """The report alone, writing nothing and refusing nothing: what ``headway data lint`` shows."""
    tallies = Tallies(data)
    for _ in _examples(data, tokenizer, max_tokens, seed, tallies):
        pass
    return tallies.report()


def _settings(data: TextData, tokenizer: Any, max_tokens: int, seed: int) -> dict[str, Any]:
    """All that the prepared rows are a function of. Limits and weights are not among it."""
    return {
        "format": _FORMAT,
        "train": [fingerprint(source) for source in data.train],
        "eval": [fingerprint(source) for source in data.eval or ()],
        "test": [fingerprint(source) for source in data.test or ()],
        "eval_fraction": [data.eval_fraction, seed] if data.eval_fraction else None,
        "tokenizer": identity(tokenizer),
        "template": chat.chosen_template(data.chat_template, tokenizer),
        "train_on": data.train_on,
        "overlong": data.overlong,
        "max_tokens": max_tokens,
    }


def _opened(folder: Path, *, verify: bool = False) -> Splits | None:
    """The rows in a finished folder; None when there is none, or it is damaged."""
    try:
        tree = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        train, held_out, test = (Prepared(folder / split, verify=verify) for split in SPLITS)
        report = DataReport.from_tree(tree)
        return Splits(
            train, held_out if len(held_out) else None, test if len(test) else None, report
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _build(folder: Path, data: TextData, tokenizer: Any, max_tokens: int, seed: int) -> None:
    """Write everything into a partial folder, then give it its name."""
    partial = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    tallies = Tallies(data)
    writers: dict[str, RowsWriter] = {}
    try:
        for split in SPLITS:
            writers[split] = RowsWriter(partial / split, len(tokenizer))
        for split, source, example in _examples(data, tokenizer, max_tokens, seed, tallies):
            writers[split].add(example, source)
        writers["train"].finish(len(data.train))
        writers["held-out"].finish()
        writers["test"].finish()
        report = json.dumps(tallies.report().tree(), indent=1)
        (partial / "report.json").write_text(report, encoding="utf-8")
        if _opened(folder, verify=True) is None:
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    except FileExistsError:
        pass  # another process was first, with the same content
    except OSError as error:
        if _opened(folder) is None:
            raise DataError(f"{folder}: prepared rows cannot be stored: {error}") from error
    finally:
        for writer in writers.values():
            writer.close()
        shutil.rmtree(partial, ignore_errors=True)


class Tallies:
    """The tally of each (split, source), and which contents each split has had."""

    def __init__(self, data: HasSources) -> None:
        self.by_key: dict[tuple[str, int], Tally] = {}
        for index, source in enumerate(data.train):
            self.by_key["train", index] = Tally(source=source.path, split="train")
        held_out = data.train if data.eval_fraction else data.eval or ()
        for index, source in enumerate(held_out):
            self.by_key["held-out", index] = Tally(source=source.path, split="held-out")
        for index, source in enumerate(data.test or ()):
            self.by_key["test", index] = Tally(source=source.path, split="test")
        self.contents: dict[str, set[int]] = {split: set() for split in SPLITS}

    def read(self, split: str, source: int, row: HasContent) -> Tally:
        """Count a row that was read, its shape, and whether it was seen before."""
        tally = self.by_key[split, source]
        tally.read += 1
        tally.formats[row.kind] = tally.formats.get(row.kind, 0) + 1
        content = _number(row.content)
        if content in self.contents[split]:
            tally.duplicates += 1
            tally.note("duplicate", row.where)
        self.contents[split].add(content)
        # The training rows are all read before the first other source, the test rows last.
        if split != "train" and content in self.contents["train"]:
            tally.leaked += 1
            tally.note("leaked", row.where)
        if split == "test" and content in self.contents["held-out"]:
            tally.chosen_by += 1
            tally.note("chosen_by", row.where)
        return tally

    def report(self) -> DataReport:
        """All tallies, in the order of the sources."""
        return DataReport(tuple(self.by_key.values()))


def _examples(
    data: TextData, tokenizer: Any, max_tokens: int, seed: int, tallies: Tallies
) -> Iterator[tuple[str, int, chat.Example]]:
    """(split, index of the source, example) for every row that is kept."""
    template = chat.chosen_template(data.chat_template, tokenizer)
    share = data.eval_fraction or 0.0
    places: list[tuple[str, int, Source]] = [("train", i, s) for i, s in enumerate(data.train)]
    places += [("held-out", i, s) for i, s in enumerate(data.eval or ())]
    places += [("test", i, s) for i, s in enumerate(data.test or ())]
    for split, index, source in places:
        for records in _batches(read_records(source)):
            rows = [chat.recognise(record) for record in records]
            written = [chat.write(row, tokenizer, template, train_on=data.train_on) for row in rows]
            examples = chat.encode(
                written, tokenizer, max_tokens=max_tokens, overlong=data.overlong
            )
            for row, example in zip(rows, examples, strict=True):
                held_out = split == "train" and chance(row.content, seed) < share
                side = "held-out" if held_out else split
                tally = tallies.read(side, index, row)
                if _counted(tally, row, example, data):
                    yield side, index, example


def _counted(tally: Tally, row: chat.Row, example: chat.Example, data: TextData) -> bool:
    """Count the example; whether it is kept."""
    tally.longest_tokens = max(tally.longest_tokens, example.full_tokens)
    if example.truncated and data.overlong == "drop":
        tally.drop("longer than max_tokens", row.where)
        return False
    if example.truncated:
        tally.truncated += 1
        tally.cut_tokens += example.full_tokens - len(example.ids)
        tally.note("truncated", row.where)
    if row.is_empty(data.train_on):
        tally.drop("nothing to learn: no answer, or an empty one", row.where)
        return False
    if example.weight == 0:
        tally.drop("no supervised token is left after truncation", row.where)
        return False
    tally.kept += 1
    tally.tokens += len(example.ids)
    tally.supervised_tokens += example.weight
    return True


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, _BATCH)):
        yield batch


def _number(content: str) -> int:
    """64 bits that stand for a content: two of ten million differ with certainty 1 - 3e-6."""
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest())


def chance(content: str, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and the content alone."""
    return _number(f"{seed}\n{content}") / 2**64
