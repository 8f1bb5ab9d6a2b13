"""Data that no config describes: what it is, and as much of it as can be seen without a model.

Token shards are read with the tokenizer beside them, rows with pictures as what stands in them.
What only a config can explain is said to be so, with the command that makes one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from headway.errors import ConfigError, DataError

if TYPE_CHECKING:
    from headway.data.formats import Record
    from headway.data.pictures import ImageRow
    from headway.data.tokens import TokenStream

Kind = Literal["text", "tokens", "pictures", "regression", "graph_vae", "latent_editor"]
"""The last three are the recipes that read such data."""
PICTURE_FIELDS = {"image", "image_base64", "image_path", "bytes", "images"}
NAMED_PROBLEMS = 3
WHAT = {
    "regression": "chains of steps",
    "graph_vae": "parts for a graph VAE",
    "latent_editor": "edits of parts",
}


def kind_of(what: str) -> Kind:
    """What a file or folder holds, by its names or its first record. Raises DataError."""
    from headway.data.sources import read_records

    folder = Path(what)
    if folder.is_dir():
        made = _manifest_kind(folder)
        if made is not None:
            return made
        if (folder / "index.json").exists() or any(folder.glob("*.npz")):
            return "tokens"
    return _kind_of_record(next(read_records(what)).data)


def _manifest_kind(folder: Path) -> Kind | None:
    try:
        tree = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        kinds: dict[str, Kind] = {"parts": "graph_vae", "edits": "latent_editor"}
        return kinds.get(str(tree["kind"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _kind_of_record(record: Mapping[str, Any]) -> Kind:
    if PICTURE_FIELDS & set(record) or "image" in _parts_said(record.get("messages")):
        return "pictures"
    if isinstance(record.get("steps"), list):
        return "regression"
    return "latent_editor" if {"z_src", "z_tgt"} <= set(record) else "text"


def _parts_said(messages: Any) -> set[str]:
    """The kinds of content parts in a conversation."""
    said = messages if isinstance(messages, list) else []
    contents = [m.get("content") for m in said if isinstance(m, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return {str(part.get("type")) for part in parts if isinstance(part, Mapping)}


def show_bare(what: str, *, rows: int, start: int, tokenizer: Any, most_tokens: int) -> bool:
    """Show rows of a file or folder; False, and nothing shown, for rows of text: these need a
    model's eyes.

    ``tokenizer``: a loaded one, or None. Raises ConfigError for what only a config explains.
    """
    kind = kind_of(what)
    if kind == "tokens":
        _show_tokens(Path(what), rows, start, tokenizer, most_tokens)
    elif kind == "pictures":
        for row in islice(_picture_rows(what), start, start + rows):
            _show_pictures(row)
    elif kind != "text":
        raise ConfigError(_needs_a_config(what, kind, "show"))
    return kind != "text"


def lint_bare(what: str, *, tokenizer: Any, as_json: bool) -> bool:
    """Count what a file or folder holds; False, and nothing counted, for rows of text.

    Raises DataError where it is unusable, ConfigError for what only a config explains.
    """
    kind = kind_of(what)
    if kind == "tokens":
        _count_tokens(Path(what), tokenizer, as_json)
    elif kind == "pictures":
        _count_pictures(what, as_json)
    elif kind != "text":
        raise ConfigError(_needs_a_config(what, kind, "lint"))
    return kind != "text"


def _needs_a_config(what: str, recipe: Kind, verb: str) -> str:
    return (
        f"{what} holds {WHAT[recipe]}, and how they are read stands in a config: `headway init "
        f"{recipe}`, write task.data.train: {what} there, then `headway data {verb} {recipe}.yaml`"
    )


# ------------------------------------------------------------------ token shards


def _opened(folder: Path, tokenizer: Any, verify: bool) -> tuple[TokenStream, Any]:
    """The stream, and the tokenizer that lies beside it where none was given."""
    from headway.data.tokens import TokenStream
    from headway.machine import cache_folder
    from headway.models.hub import load_tokenizer

    beside = folder / "tokenizer"
    if tokenizer is None and beside.is_dir():
        tokenizer = load_tokenizer(str(beside.resolve()), None, cache_folder())
    return TokenStream.open(folder, tokenizer, verify=verify), tokenizer


def _show_tokens(folder: Path, rows: int, start: int, tokenizer: Any, most_tokens: int) -> None:
    stream, model = _opened(folder, tokenizer, verify=False)
    for number, ids in enumerate(islice(stream.each_document(start), rows), start):
        typer.secho(f"{folder}, document {number:,}  ({len(ids):,} tokens)", bold=True)
        some = ids[:most_tokens].tolist()
        typer.echo(model.decode(some) if model is not None else " ".join(map(str, some)), nl=False)
        if len(ids) > most_tokens:
            typer.secho(f" … {len(ids) - most_tokens:,} more tokens (--max-tokens)", dim=True)
        typer.echo("\n")
    if model is None:
        typer.echo("(ids: no tokenizer lies beside them; give --tokenizer MODEL)", err=True)


def _count_tokens(folder: Path, tokenizer: Any, as_json: bool) -> None:
    """Every shard is hashed, every document read."""
    from headway.cli.tables import show_json
    from headway.data.token_survey import counted

    stream, model = _opened(folder, tokenizer, verify=True)
    found = counted(stream, getattr(model, "eos_token_id", None))
    if as_json:
        show_json(found.tree())
    else:
        typer.echo("\n".join(found.lines(str(folder))))


# ------------------------------------------------------------------ rows with pictures


def _picture_rows(what: str) -> Iterator[ImageRow]:
    from headway.data.sources import read_records

    for record in read_records(what):
        yield recognised(record)


def recognised(record: Record) -> ImageRow:
    """A record's row; one without an instruction is asked nothing. Raises DataError."""
    from headway.data.pictures import recognise

    asked = record.data.get("instruction")
    return recognise(record, None if isinstance(asked, str) else "")


def _show_pictures(row: ImageRow) -> None:
    from headway.data.pictures import Reading, decoded

    pictures = [decoded(picture, Reading()) for picture in row.pictures]
    sizes = iter([f"[picture {picture.width}x{picture.height}]" for picture in pictures])
    typer.secho(f"{row.where}  ({row.kind}, {len(pictures)} pictures)", bold=True)
    for message in row.messages:
        learned = message["role"] == "assistant"
        typer.secho(f"{message['role']}: ", dim=True, nl=False)
        for part in message["content"]:
            text = part["text"] if part["type"] == "text" else next(sizes)
            typer.secho(text, fg="green" if learned else None, nl=False)
        typer.echo()
    typer.echo()


def _count_pictures(what: str, as_json: bool) -> None:
    """Every picture is opened; what cannot be read is named and refused."""
    from headway.cli.tables import show_json
    from headway.data.pictures import Reading, decoded
    from headway.data.sources import read_records

    kinds: Counter[str] = Counter()
    sides, problems, read = [], [], 0
    for record in read_records(what):
        read += 1
        try:
            row = recognised(record)
            sizes = [decoded(picture, Reading()).size for picture in row.pictures]
        except DataError as error:
            problems.append(str(error))
            continue
        kinds[row.kind] += 1
        sides += sizes
    named = ", ".join(f"{kind} {n:,}" for kind, n in sorted(kinds.items()))
    lines = [
        f"{what}: {read - len(problems):,} of {read:,} rows ({named}), {len(sides):,} pictures"
    ]
    if sides:
        small, large = min(sides, key=_area), max(sides, key=_area)
        lines.append(f"  from {small[0]}x{small[1]} to {large[0]}x{large[1]} pixels")
    lines.append(
        "  tokens, cuts and leaks depend on the model: `headway init vision`, write "
        f"task.data.train: {what} there, then `headway data lint vision.yaml`"
    )
    if as_json:
        show_json({"rows": read, "kinds": kinds, "pictures": len(sides), "unreadable": problems})
    else:
        typer.echo("\n".join(lines))
    if problems:
        some = "; ".join(problems[:NAMED_PROBLEMS])
        raise DataError(f"{what}: {len(problems):,} of {read:,} rows cannot be read: {some}")


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
