"""Writing token shards: documents become tokens once, in parallel, and a kill loses little.

A shard is ``shard-00000.bin`` (ids, one document after the other, each ended by EOS) with
``shard-00000.idx`` (int64, where each document ends). What goes into which shard depends on the
documents alone, so any number of workers, killed any number of times, writes the same files.
``index.json`` appears last; a folder without it is unfinished, and the same call finishes it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.data.formats import Record
from headway.data.sources import Source, fingerprint, read_records
from headway.data.tokenizers import identity
from headway.errors import DataError
from headway.system import write_whole

_VERSION = 1
_CHUNK_CHARACTERS = 1_000_000
_CHUNK_DOCUMENTS = 2_000
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One finished pair of files. ``file`` is the name of the ids."""

    file: str
    tokens: int
    documents: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What a folder of shards holds; ``index.json``."""

    version: int
    dtype: str
    tokenizer: str
    """Its name, for people."""
    tokenizer_identity: str
    vocab_size: int
    eos_id: int | None
    plan: str
    """A hash of everything the shards are a function of."""
    shards: tuple[Shard, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens in all shards, EOS included."""
        return sum(shard.tokens for shard in self.shards)

    @classmethod
    def read(cls, folder: Path) -> Index:
        """The index of a finished folder. DataError when there is none or it is not understood."""
        file = folder / "index.json"
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
            shards = tuple(Shard(**shard) for shard in tree.pop("shards"))
            index = cls(**tree, shards=shards)
        except FileNotFoundError as error:
            raise DataError(
                f"{folder}: no index.json: not token shards, or `headway data tokenize` was "
                "interrupted; run the same command again to finish it"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: damaged ({error}); tokenise again") from error
        if index.version != _VERSION:
            raise DataError(f"{file}: version {index.version}; this headway reads {_VERSION}")
        return index


def tokenize(
    sources: Sequence[Source],
    tokenizer: Any,
    to: Path,
    *,
    workers: int = 1,
    shard_tokens: int = 100_000_000,
) -> Index:
    """Write the ``text`` of every record as token shards into ``to``; go on where it stopped.

    A shard closes after the document that brings it to ``shard_tokens``. The tokenizer is saved
    beside the shards, in ``tokenizer/``. DataError when ``to`` holds something else.
    """
    wanted = _index(sources, tokenizer, shard_tokens)
    if (to / "index.json").exists():
        _same(to, Index.read(to).plan, wanted.plan)
        return Index.read(to)
    _begin(to, wanted, tokenizer)
    done = _finished_shards(to)
    records = islice(documents_of(sources), sum(shard.documents for shard in done), None)
    writer = _ShardWriter(to, np.dtype(wanted.dtype), shard_tokens, done)
    encode = partial(_encoded, str(to / "tokenizer" / "tokenizer.json"), wanted.eos_id)
    for documents in _mapped(encode, _chunks(records), workers):
        for ids in documents:
            writer.add(ids)
    shards = tuple(writer.close())
    if wanted.eos_id is None and sum(shard.documents for shard in shards) > 1:
        raise DataError("the tokenizer has no EOS token to stand between documents; give it one")
    index = Index(**{**asdict(wanted), "shards": shards})
    write_whole(to / "index.json", json.dumps(asdict(index), indent=1).encode())
    for leftover in [to / "plan.json", *to.glob("shard-*.json")]:
        leftover.unlink()
    return index


def _index(sources: Sequence[Source], tokenizer: Any, shard_tokens: int) -> Index:
    """The index the finished folder will have, still without shards."""
    size = len(tokenizer)
    facts = {
        "version": _VERSION,
        "dtype": "uint16" if size <= 1 << 16 else "uint32",
        "tokenizer_identity": identity(tokenizer),
        "vocab_size": size,
        "eos_id": tokenizer.eos_token_id,
    }
    read = [fingerprint(source) for source in sources]
    plan = json.dumps([facts, read, shard_tokens], sort_keys=True)
    name = Path(tokenizer.name_or_path).name or "made by headway"
    return Index(**facts, tokenizer=name, plan=hashlib.sha256(plan.encode()).hexdigest())


def _begin(to: Path, wanted: Index, tokenizer: Any) -> None:
    """Claim the folder for this plan, or see that it already is."""
    plan = to / "plan.json"
    if plan.exists():
        _same(to, json.loads(plan.read_text(encoding="utf-8"))["plan"], wanted.plan)
    elif to.exists() and any(not file.name.startswith(".partial-") for file in to.iterdir()):
        raise DataError(f"{to}: not empty, and not begun by this command; choose another folder")
    else:
        to.mkdir(parents=True, exist_ok=True)
        write_whole(plan, json.dumps({"plan": wanted.plan}).encode())
    tokenizer.save_pretrained(to / "tokenizer")
    for unfinished in to.glob(".partial-*"):
        unfinished.unlink()


def _same(to: Path, there: str, wanted: str) -> None:
    if there != wanted:
        raise DataError(
            f"{to}: holds shards of other data, another tokenizer or another shard size. Choose "
            "another folder, or delete this one."
        )


def _finished_shards(to: Path) -> list[Shard]:
    """Shards already committed: the unbroken run of them from the first."""
    done: list[Shard] = []
    while (mark := to / f"shard-{len(done):05d}.json").exists():
        done.append(Shard(**json.loads(mark.read_text(encoding="utf-8"))))
    return done


def documents_of(sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
    """(where, text) of every document."""
    for source in sources:
        for record in read_records(source):
            yield record.where, _text_of(record)


def _text_of(record: Record) -> str:
    text = record.data.get("text")
    if not isinstance(text, str):
        raise DataError(
            f"{record.where}: no field 'text' holding text; the fields are "
            f"{', '.join(map(repr, record.data))}. Name it with columns: {{text: …}}"
        )
    return text


Chunk = list[tuple[str, str]]


def _chunks(documents: Iterable[tuple[str, str]]) -> Iterator[Chunk]:
    """Documents in lists that take about a second to tokenise."""
    chunk: Chunk = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document[1])
        if characters >= _CHUNK_CHARACTERS or len(chunk) >= _CHUNK_DOCUMENTS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _mapped(encode: Any, chunks: Iterator[Chunk], workers: int) -> Iterator[list[Any]]:
    """``encode`` of each chunk, in order, at most a few chunks per worker in memory."""
    if workers == 1:
        yield from map(encode, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        while some := list(islice(chunks, 4 * workers)):
            yield from pool.imap(encode, some)


def _encoded(tokenizer_file: str, eos_id: int | None, chunk: Chunk) -> list[NDArray[np.uint32]]:
    """Ids [tokens] of each document with EOS; runs in a worker process."""
    backend, pieces = _backend(tokenizer_file)
    ending = [] if eos_id is None else [eos_id]
    encoded = []
    for where, text in chunk:
        step = _PIECE if pieces else max(1, len(text))
        parts = [text[at : at + step] for at in range(0, len(text), step)]
        try:
            found = backend.encode_batch_fast(parts, add_special_tokens=False)
        except Exception as error:  # the tokenizers library raises plain Exception
            raise DataError(f"{where}: cannot be tokenised: {error}") from error
        ids = [part.ids for part in found]
        encoded.append(np.concatenate([np.array(part, np.uint32) for part in [*ids, ending]]))
    return encoded


@lru_cache(maxsize=1)
def _backend(tokenizer_file: str) -> tuple[Any, bool]:
    """The tokenizer, and whether a text may be cut anywhere: true for character tokens."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(tokenizer_file)
    backend.no_padding()
    backend.no_truncation()
    return backend, json.loads(backend.to_str())["model"]["type"] == "WordLevel"


class _ShardWriter:
    """Appends documents; commits a shard when it is long enough."""

    def __init__(self, to: Path, dtype: Any, shard_tokens: int, done: list[Shard]) -> None:
        self.to, self.dtype, self.shard_tokens, self.done = to, dtype, shard_tokens, list(done)
        self.documents: list[NDArray[Any]] = []
        self.tokens = 0

    def add(self, ids: NDArray[np.uint32]) -> None:
        self.documents.append(ids.astype(self.dtype))
        self.tokens += len(ids)
        if self.tokens >= self.shard_tokens:
            self._commit()

    def close(self) -> list[Shard]:
        if self.documents:
            self._commit()
        return self.done

    def _commit(self) -> None:
        """Ids, then ends, then the mark that says both are whole."""
        stem = f"shard-{len(self.done):05d}"
        raw = np.concatenate(self.documents).tobytes()
        ends = np.cumsum([len(ids) for ids in self.documents], dtype=np.int64)
        write_whole(self.to / f"{stem}.bin", raw)
        write_whole(self.to / f"{stem}.idx", ends.tobytes())
        shard = Shard(
            file=f"{stem}.bin",
            tokens=self.tokens,
            documents=len(ends),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
        write_whole(self.to / f"{stem}.json", json.dumps(asdict(shard)).encode())
        self.done.append(shard)
        self.documents, self.tokens = [], 0
