"""One reader per file format. Each yields records with the place they came from, or says what is
wrong there: file, line, column, and what to do.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from headway.errors import DataError

_LFS = b"version https://git-lfs.github.com/spec/"
_MAX_FIELD = 2**31 - 1
_PACKED = (".gz", ".bz2", ".xz")


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it stands in the data, and where: ``train.jsonl:17``, ``data.json[16]``."""

    data: Mapping[str, Any]
    where: str


def format_of(path: str) -> str:
    """The format that a file's name says: ``a.jsonl.gz`` is jsonl; '' when it says none."""
    name = path.rsplit("/", 1)[-1].lower()
    for ending in _PACKED:
        name = name.removesuffix(ending)
    _, dot, suffix = name.rpartition(".")
    same = {"ndjson": "jsonl", "txt": "text", "md": "text", "pq": "parquet"}
    return same.get(suffix, suffix) if dot else ""


def read_file(path: str, kind: str) -> Iterator[Record]:
    """The records of one file, local or remote, packed or not."""
    with opened(path) as stream:
        yield from FORMATS[kind](stream, path)


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked. DataError when it is missing, damaged, or a Git-LFS pointer."""
    import fsspec

    try:
        with fsspec.open(path, "rb", compression="infer") as stream:
            head = stream.read(len(_LFS))
            if head == _LFS:
                raise DataError(
                    f"{path}: this is a Git-LFS pointer, not the data. Run `git lfs pull` where it "
                    "was cloned, or download the file itself."
                )
            stream.seek(0)
            yield stream
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file or folder") from error
    except ImportError as error:
        raise DataError(f"{path}: {error}") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}") from error


def read_rows(rows: Iterable[Any], path: str) -> Iterator[Record]:
    """The rows of an in-memory table, such as a Hugging Face dataset."""
    for index, row in enumerate(rows):
        yield Record(row, f"{path}[{index}]")


def _lines(stream: IO[bytes], path: str) -> Iterator[tuple[int, str]]:
    """Line number (from 1) and text of each line, its newline kept. UTF-8, strictly."""
    for number, raw in enumerate(stream, start=1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(_not_utf8(f"{path}:{number}", raw, error)) from error


def _not_utf8(where: str, raw: bytes, error: UnicodeDecodeError) -> str:
    return (
        f"{where}: not UTF-8: byte 0x{raw[error.start]:02x} at byte {error.start + 1}. Convert the "
        "file (iconv -f latin1 -t utf-8), or repair the line."
    )


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise DataError(
            f"{where}: a {kind} where an object with named fields was expected, like "
            '{"question": …, "answer": …}'
        )
    return value


def _jsonl(stream: IO[bytes], path: str) -> Iterator[Record]:
    for number, line in _lines(stream, path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            column = getattr(error, "colno", 1)
            reason = getattr(error, "msg", str(error))
            raise DataError(
                f"{where}: column {column}: not JSON: {reason}. Repair or delete the line; each "
                "line must be one whole object."
            ) from error
        yield Record(_object(value, where), where)


def _json(stream: IO[bytes], path: str) -> Iterator[Record]:
    """A list of objects, or ``{"data": [...]}``; JSON Lines under a .json name are read as such."""
    raw = stream.read().removeprefix(b"\xef\xbb\xbf")
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(_not_utf8(f"{path}:{line}", raw, error)) from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and raw.lstrip()[:1] == b"{":
            stream.seek(0)
            yield from _jsonl(stream, path)
            return
        raise DataError(
            f"{path}:{error.lineno}: column {error.colno}: not JSON: {error.msg}."
        ) from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        raise DataError(
            f'{path}: a JSON file must be a list of objects or {{"data": [...]}}, not a single '
            f"{type(value).__name__}"
        )
    for index, item in enumerate(value):
        where = f"{path}[{index}]"
        yield Record(_object(item, where), where)


def _delimited(delimiter: str) -> Callable[[IO[bytes], str], Iterator[Record]]:
    def read(stream: IO[bytes], path: str) -> Iterator[Record]:
        csv.field_size_limit(_MAX_FIELD)  # the default of 131,072 cuts real documents
        lines = (line for _, line in _lines(stream, path))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            where = f"{path}:{reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{where}: {error}. Is a quote not closed, or doubled?") from error
            if not fields:
                continue
            if header is None:
                header = _header(fields, where)
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{where}: {len(fields)} fields, but the header names {len(header)}. Quote "
                    "fields that hold the delimiter or a line break."
                )
            yield Record(dict(zip(header, fields, strict=True)), where)

    return read


def _header(fields: list[str], where: str) -> list[str]:
    if len(set(fields)) < len(fields):
        raise DataError(f"{where}: the header names a column twice: {', '.join(fields)}")
    return fields


def _parquet(stream: IO[bytes], path: str) -> Iterator[Record]:
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError as error:
        raise DataError(f"{path}: Parquet needs: pip install 'headway[data]'") from error
    index = 0
    try:
        for batch in parquet.ParquetFile(stream).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield Record(row, f"{path}[{index}]")
                index += 1
    except ArrowException as error:
        raise DataError(f"{path}: not readable as Parquet after row {index}: {error}") from error


def _text(stream: IO[bytes], path: str) -> Iterator[Record]:
    """The whole file as one document."""
    raw = stream.read().removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(_not_utf8(f"{path}:{line}", raw, error)) from error
    if text.strip():
        yield Record({"text": text}, path)


FORMATS: Mapping[str, Callable[[IO[bytes], str], Iterator[Record]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "parquet": _parquet,
    "text": _text,
}
