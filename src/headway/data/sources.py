"""Where records come from: one spec for every place and format, and for each record where it was.

*Promises*: a record is a dict with the file and line it came from; whatever cannot be read is a
DataError that names file, line and column; files of a folder come in sorted order; nothing is
executed. *Does not promise*: that a record has a shape a recipe understands (see ``chat``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from headway.data.formats import FORMATS, Record, format_of, opened, read_file, read_rows
from headway.errors import DataError

Format = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text", "hf"]


class Source(BaseModel):
    """One place records are read from. A bare string in a config means ``path``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(
        description="A file, a folder (read recursively, in sorted order), a remote path (s3://, "
        "gs://, https://), or a Hugging Face dataset: a folder written by save_to_disk, or "
        "hf:OWNER/NAME[:CONFIG][@SPLIT]. A .gz file is unpacked while it is read."
    )
    weight: float | None = Field(
        None, gt=0, description="Relative share of this source in a mixture; all sources or none."
    )
    format: Format = Field("auto", description="auto: by the file's name.")
    split: str | None = Field(None, description="Split of a Hugging Face dataset.")
    limit: int | None = Field(None, ge=1, description="Use only the first so many records.")
    columns: Mapping[str, str] | None = Field(
        None, description="Field headway expects -> the name it has in the file (answer: reply)."
    )


def _as_sources(value: Any) -> Any:
    """A path, a spec, or a list of either -> a list of specs."""
    items = value if isinstance(value, list | tuple) else [value]
    return tuple({"path": str(i)} if isinstance(i, str | Path) else i for i in items)


Sources = Annotated[
    tuple[Source, ...],
    BeforeValidator(_as_sources, json_schema_input_type=str | Source | list[str | Source]),
]
"""One place or several; a bare string is a path."""


class TextData(BaseModel):
    """The ``data:`` section of text recipes: what to train on, what to hold out, what to refuse."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Sources = Field(
        min_length=1, description="Where training rows come from: a path, a source, or a list."
    )
    eval: Sources | None = Field(
        None, description="Where held-out rows come from. Give this or eval_fraction, or neither."
    )
    test: Sources | None = Field(
        None,
        min_length=1,
        description="Where rows come from that never choose anything: not the best checkpoint, not "
        "when to stop. `headway evaluate RUN --split test` measures on them.",
    )
    eval_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Hold out this share of the training rows, chosen by seed and content: equal "
        "rows always fall on the same side.",
    )
    train_on: Literal["assistant", "all"] = Field(
        "assistant", description="Which tokens of a conversation carry loss: the answers, or all."
    )
    overlong: Literal["truncate", "drop", "error"] = Field(
        "truncate", description="What to do with a row of more than max_tokens: keep its head, …"
    )
    chat_template: str = Field(
        "model",
        description="model: the tokenizer's own. plain: headway's '### User / ### Assistant' form, "
        "for base models. Or the path of a Jinja file.",
    )
    max_truncated: float = Field(
        0.2, ge=0, le=1, description="Refuse when a larger share of rows would be truncated."
    )
    max_dropped: float = Field(
        0.02, ge=0, le=1, description="Refuse when a larger share of rows would be dropped."
    )
    max_leaked: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Refuse when a larger share of the held-out rows is among the training rows, "
        "or of the test rows among either.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> TextData:
        refuse_contradictions(self.train, self.eval, self.test, self.eval_fraction)
        return self

    @property
    def weights(self) -> list[float] | None:
        """One weight per training source, or None."""
        return weights_of(self.train)


class Weighted(Protocol):
    """A source that may be given a weight in the mixture."""

    @property
    def weight(self) -> float | None:
        """None: by its size."""
        ...


def refuse_contradictions(
    train: Sequence[Weighted],
    eval: Sequence[Weighted] | None,
    test: Sequence[Weighted] | None,
    eval_fraction: float | None,
) -> None:
    """ValueError where a section of data says two things at once."""
    if eval is not None and eval_fraction is not None:
        raise ValueError("give eval or eval_fraction, not both")
    weighted = [source.weight is not None for source in train]
    if any(weighted) and not all(weighted):
        raise ValueError("give every training source a weight, or none")
    if any(source.weight is not None for source in (*(eval or ()), *(test or ()))):
        raise ValueError("held-out rows are all used, so a weight on them would be ignored")


def weights_of(sources: Sequence[Weighted]) -> list[float] | None:
    """One weight per source, or None."""
    return [source.weight for source in sources if source.weight is not None] or None


def read_records(source: Source | str) -> Iterator[Record]:
    """Every record of a source, in order. DataError where one cannot be read, or there is none."""
    spec = Source(path=source) if isinstance(source, str) else source
    count = 0
    for record in islice(_records(spec), spec.limit):
        count += 1
        yield _renamed(record, spec.columns) if spec.columns else record
    if count == 0:
        raise DataError(f"{spec.path}: no records. Is this the right file, and is it complete?")


def list_files(spec: Source) -> list[str]:
    """The files a source is read from, sorted. DataError when there is none."""
    if "://" in spec.path:
        fs, root = _filesystem(spec.path)
        if not fs.isdir(root):
            return [spec.path]
        prefix = spec.path.partition("://")[0] + "://"
        below = [(prefix + path, path.removeprefix(root)) for path in fs.find(root)]
    else:
        folder = Path(spec.path)
        if not folder.is_dir():
            return [spec.path]
        files = [file for file in folder.rglob("*") if file.is_file()]
        below = [(str(file), str(file.relative_to(folder))) for file in files]
    seen = sorted(path for path, inside in below if not _hidden(inside))
    usable = [path for path in seen if spec.format != "auto" or format_of(path) in FORMATS]
    if not usable:
        known = "jsonl, json, csv, tsv, parquet, txt, md, each also .gz"
        raise DataError(f"{spec.path}: a folder without a readable file ({known})")
    return usable


def fingerprint(spec: Source) -> str:
    """A hash of the spec and of everything it would read; another content has another hash."""
    total = hashlib.sha256(spec.model_dump_json(exclude={"weight"}).encode())
    if spec.path.startswith("hf:"):
        total.update(str(_hub_dataset(spec)._fingerprint).encode())
        return total.hexdigest()
    saved = _is_saved_dataset(spec.path)
    files = sorted(map(str, Path(spec.path).rglob("*.*"))) if saved else list_files(spec)
    for file in files:
        total.update(file.encode())
        if "://" in file:
            fs, at = _filesystem(file)
            total.update(str(fs.ukey(at)).encode())
        elif Path(file).is_file():
            with Path(file).open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _records(spec: Source) -> Iterator[Record]:
    if spec.path.startswith("hf:"):
        yield from read_rows(_hub_dataset(spec), spec.path)
    elif spec.format == "hf" or _is_saved_dataset(spec.path):
        yield from read_rows(_saved_dataset(spec), spec.path)
    else:
        for file in list_files(spec):
            kind = format_of(file) if spec.format == "auto" else spec.format
            if kind not in FORMATS:
                raise DataError(
                    f"{file}: the name does not say which format this is; set format: to one of "
                    f"{', '.join(FORMATS)}"
                )
            yield from read_file(file, kind)


def _renamed(record: Record, columns: Mapping[str, str]) -> Record:
    """The record with the expected field names; the file's other fields stay."""
    for expected, actual in columns.items():
        if actual not in record.data:
            raise DataError(
                f"{record.where}: no field {actual!r} (columns: maps it to {expected!r}); this "
                f"record has {', '.join(map(repr, record.data)) or 'none'}"
            )
    rest = {k: v for k, v in record.data.items() if k not in columns.values()}
    return Record({**rest, **{k: record.data[v] for k, v in columns.items()}}, record.where)


def _filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path, and the path on it."""
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    return fs, root


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _is_saved_dataset(path: str) -> bool:
    """Whether this is a folder that ``Dataset.save_to_disk`` wrote."""
    folder = Path(path)
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError("Hugging Face datasets need: pip install 'headway[data]'") from error
    return datasets


def _saved_dataset(spec: Source) -> Any:
    if not _is_saved_dataset(spec.path):
        raise DataError(f"{spec.path}: not a folder written by Dataset.save_to_disk")
    return _one_split(_datasets().load_from_disk(spec.path), spec)


def _hub_dataset(spec: Source) -> Any:
    """``hf:OWNER/NAME[:CONFIG][@SPLIT]``; a network or a filled cache is needed."""
    name, _, split = spec.path.removeprefix("hf:").partition("@")
    name, _, config = name.partition(":")
    datasets = _datasets()
    try:
        found = datasets.load_dataset(name, config or None)
    except Exception as error:  # datasets raises many kinds: not found, gated, offline, malformed
        first_line = str(error).partition("\n")[0]
        raise DataError(
            f"{spec.path}: the Hugging Face dataset cannot be loaded: {first_line} Check the name, "
            "the network, and HF_TOKEN for a gated one."
        ) from error
    return _one_split(found, spec, split or None)


def _one_split(found: Any, spec: Source, named: str | None = None) -> Any:
    """The one split asked for; without a name ``train``, or the only one there is."""
    if not hasattr(found, "keys"):
        return found
    splits = list(found.keys())
    wanted = named or spec.split or ("train" if "train" in splits else None)
    if wanted is None and len(splits) == 1:
        wanted = splits[0]
    if wanted not in splits:
        raise DataError(f"{spec.path}: no split {wanted!r}; set split: to one of {splits}")
    return found[wanted]


__all__ = ["Record", "Source", "TextData", "fingerprint", "list_files", "opened", "read_records"]
