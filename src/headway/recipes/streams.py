"""Token streams as rows of one length: opened, held out, shown, and counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from transformers import AutoTokenizer

from headway.config import CLOSED
from headway.data.shards import tokenize
from headway.data.sources import Source, fingerprint, read_records
from headway.data.token_survey import counted
from headway.data.tokenizers import identity, train_characters
from headway.data.tokens import TokenStream
from headway.engine.task import RowAsRead, Survey
from headway.errors import ConfigError, DataError
from headway.recipes.checks import shortened
from headway.recipes.text import TokenRow
from headway.records import Finding

if TYPE_CHECKING:
    from headway.recipes.pretrain import PretrainConfig


class StreamData(BaseModel):
    """Where tokens come from: folders of shards or NPZ files, or text to tokenise now."""

    model_config = CLOSED

    train: str
    """A folder of token shards (`headway data tokenize`), of NPZ files, or text files."""
    eval: str | None = None
    """The same, held out."""
    eval_tail: float | None = Field(default=None, gt=0, lt=1)
    """Hold out this share of the training tokens, at the end."""
    isolate_documents: bool = True
    """Attention does not cross from one document to the next."""


@dataclass(frozen=True)
class StreamRows:
    """Consecutive windows of a token stream; every token but the first is a target once."""

    stream: TokenStream
    length: int
    isolated: bool
    tokenizer: Any
    chosen: np.ndarray[Any, np.dtype[np.int64]] | None = None
    """Only these windows, or None: all."""

    def __len__(self) -> int:
        return self.stream.rows(self.length) if self.chosen is None else len(self.chosen)

    def __getitem__(self, row: int) -> TokenRow:
        window = self.stream.window(self._window(row), self.length)
        tokens = len(window.ids) - 1
        at = np.arange(tokens)
        cuts: list[int] = []
        if self.isolated:  # then nothing predicts a document's first token
            cuts = [int(start) for start in window.starts if 0 < start < tokens]
            at = np.setdiff1d(at, window.starts - 1)
        return TokenRow(
            ids=window.ids[:-1], ends=(*cuts, tokens), at=at, targets=window.ids[at + 1]
        )

    def shown(self, row: int) -> dict[str, Any]:
        """Which tokens of the stream, and their text."""
        start = self._window(row) * self.length
        text = self.tokenizer.decode(self[row].targets.tolist()) if self.tokenizer else ""
        return {"where": f"token {start}", "prompt": "", "reference": text}

    def lengths(self) -> NDArray[np.int64]:
        """[rows] tokens of each window; only the last of the stream may be shorter."""
        return np.full(len(self), self.length, dtype=np.int64)

    def _window(self, row: int) -> int:
        return row if self.chosen is None else int(self.chosen[row])


def load_tokenizer(name: str, data: StreamData) -> Any:
    """The configured tokenizer. Raises ConfigError or DataError when there is none."""
    if name == "characters":
        folder = Path(data.train)
        if (folder / "index.json").exists():
            raise ConfigError("task.tokenizer: shards have theirs in tokenizer/; name that folder")
        text = "".join(str(record.data["text"]) for record in read_records(data.train))
        return train_characters(text)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"task.tokenizer: {name} cannot be loaded: {error}") from error


def open_streams(
    data: StreamData, tokenizer: Any, cache: Path
) -> tuple[TokenStream, TokenStream | None]:
    """Tokens to train on, and those held out."""
    train = open_stream(data.train, tokenizer, cache)
    if data.eval_tail:
        cut = int(len(train) * (1 - data.eval_tail))
        return train.part(0, cut), train.part(cut, len(train))
    return train, open_stream(data.eval, tokenizer, cache) if data.eval else None


def stream_lines(data: StreamData, train: TokenStream, held: TokenStream | None) -> list[str]:
    """How many tokens there are."""
    lines = [f"train: {data.train}: {len(train):,} tokens, {train.documents:,} documents"]
    return lines if held is None else [*lines, f"held-out: {len(held):,} tokens"]


def open_stream(place: str, tokenizer: Any, cache: Path) -> TokenStream:
    """The tokens of a folder of shards or NPZ files; text is tokenised into the cache first."""
    folder = Path(place)
    if folder.is_dir() and ((folder / "index.json").exists() or any(folder.glob("*.npz"))):
        return TokenStream.open(folder, tokenizer)
    if not folder.exists() and "://" not in place:
        raise DataError(f"task.data: there is no file or folder {place}")
    source = Source(path=place)
    to = cache / "tokens" / tokens_key(source, tokenizer)
    tokenize([source], tokenizer, to)
    return TokenStream.open(to, tokenizer)


def tokens_key(source: Source, tokenizer: Any) -> str:
    """Names the cache folder by what the tokens are a function of."""
    return hashlib.sha256(f"{fingerprint(source)} {identity(tokenizer)}".encode()).hexdigest()[:24]


def look_at_streams(config: PretrainConfig, cache: Path) -> Iterator[Finding]:
    """What preflight finds in the tokens: how many there are, and how the first ones read."""
    tokenizer = load_tokenizer(config.tokenizer, config.data)
    train, held = open_streams(config.data, tokenizer, cache)
    for line in stream_lines(config.data, train, held):
        yield Finding(level="note", name="data", what=line)
    text = tokenizer.decode(train.window(0, config.sequence_tokens).ids.tolist())
    what = f"the first row, every token but the first learned:\n{shortened(text, 300)}"
    yield Finding(level="note", name="data", what=what)


def windows_as_read(config: PretrainConfig, cache: Path) -> Iterator[RowAsRead]:
    """Training rows as a person looks at them: every token that is a target, document by
    document where attention is kept inside them."""
    tokenizer = load_tokenizer(config.tokenizer, config.data)
    stream, _ = open_streams(config.data, tokenizer, cache)
    length = config.sequence_tokens
    rows = StreamRows(stream, length, config.data.isolate_documents, tokenizer)
    for number in range(len(rows)):
        window = stream.window(number, length)
        learned = np.zeros(len(window.ids), dtype=bool)
        learned[rows[number].at + 1] = True
        cuts = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(window.ids)]
        runs = [
            (tokenizer.decode(window.ids[a:b].tolist()), "", 1.0 if learned[a] else None)
            for a, b in pairwise(cuts)
        ]
        begun = f", {len(window.starts)} documents begin here" if len(window.starts) else ""
        yield RowAsRead(
            where=f"{config.data.train}, row {number} of {len(rows):,}",
            facts=f"{int(learned.sum()):,} tokens learned{begun}",
            runs=runs,
        )


def surveyed(config: PretrainConfig, cache: Path) -> Survey:
    """Tokens and documents counted; every one is read."""
    tokenizer = load_tokenizer(config.tokenizer, config.data)
    train, held = open_streams(config.data, tokenizer, cache)
    lines, tree = [], {}
    for split, stream in (("train", train), ("held-out", held)):
        if stream is not None:
            found = counted(stream, tokenizer.eos_token_id)
            rows = stream.rows(config.sequence_tokens)
            lines += found.lines(split)
            lines.append(f"  {rows:,} rows of {config.sequence_tokens:,} tokens")
            tree[split] = {**found.tree(), "rows": rows}
    return Survey(lines=lines, tree=tree)
