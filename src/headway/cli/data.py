"""``headway data``: rows as the model sees them, what is wrong with them, and token shards."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway.cli.bare_data import lint_bare, show_bare
from headway.cli.cad import cad_edits, cad_parts
from headway.cli.crop_headers import crop_headers
from headway.cli.step_labels import step_labels
from headway.cli.well_log_headers import well_log_headers
from headway.errors import ConfigError, DataError, StorageFull

if TYPE_CHECKING:
    from headway.config import RunConfig
    from headway.data.sources import TextData
    from headway.engine.task import RowAsRead, Surveying

app = typer.Typer(help="Look at training data, check it, and make token shards.")
app.command("step-labels")(step_labels)
app.command("well-log-headers")(well_log_headers)
app.command("crop-headers")(crop_headers)
app.command("cad-parts")(cad_parts)
app.command("cad-edits")(cad_edits)

_What = Annotated[str, typer.Argument(help="A config, or a data file or folder.")]
_Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value of a config, as often as needed.")
]
_Tokenizer = Annotated[
    str | None, typer.Option(help="Model or folder the tokenizer is of; a config names its own.")
]
_MaxTokens = Annotated[int, typer.Option(help="Longest row, where no config says it.")]


@app.command()
def show(
    what: _What,
    overrides: _Overrides = None,
    rows: Annotated[int, typer.Option(help="How many rows.")] = 3,
    start: Annotated[int, typer.Option(help="The first of them, counted from 0.")] = 0,
    tokenizer: _Tokenizer = None,
    max_tokens: _MaxTokens = 2048,
) -> None:
    """Rows as the model reads them: what is supervised is green, what is not is dim.

    Of chains: where a number is read, and its target behind it, red below the middle of the range,
    green in its highest quarter.
    """
    from itertools import islice

    from headway.data.chat import render, spans
    from headway.data.sources import read_records

    config = _config(what, overrides)
    own = _surveying(config, what, tokenizer)
    if own:
        recipe, config, cache = own
        for row in islice(recipe.rows_as_read(config.task, cache), start, start + rows):
            _show_row(row)
        return
    if config is None:
        loaded = _loaded(tokenizer, None) if tokenizer else None
        if show_bare(what, rows=rows, start=start, tokenizer=loaded, most_tokens=max_tokens):
            return
    data, model, longest = _opened(config, what, tokenizer, max_tokens)
    records = (record for source in data.train for record in read_records(source))
    for record in islice(records, start, start + rows):
        example = render(
            record,
            model,
            max_tokens=longest,
            train_on=data.train_on,
            overlong=data.overlong,
            chat_template=data.chat_template,
        )
        cut = f", cut from {example.full_tokens:,}" if example.truncated else ""
        facts = f"{example.kind}, {len(example.ids):,} tokens{cut}, {example.weight:,} supervised"
        typer.secho(f"{example.where}  ({facts})", bold=True)
        for text, supervised in spans(example, model):
            typer.secho(text, fg="green" if supervised else None, dim=not supervised, nl=False)
        typer.echo("\n")


@app.command()
def lint(
    what: _What,
    overrides: _Overrides = None,
    tokenizer: _Tokenizer = None,
    max_tokens: _MaxTokens = 2048,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Count all rows: shapes, lengths, what is dropped, cut, double or leaked; 65 if refused."""
    from headway.cli.tables import show_json
    from headway.data.prepare import survey
    from headway.data.report import refuse_beyond

    config = _config(what, overrides)
    own = _surveying(config, what, tokenizer)
    if own:
        recipe, config, cache = own
        found = recipe.survey(config.task, config.run.seed, cache)
        if json:
            show_json(found.tree)
        else:
            typer.echo("\n".join(found.lines))
        if found.refusal:
            raise DataError(found.refusal)
        return
    if config is None:
        loaded = _loaded(tokenizer, None) if tokenizer else None
        if lint_bare(what, tokenizer=loaded, as_json=json):
            return
    data, model, longest = _opened(config, what, tokenizer, max_tokens)
    report = survey(data, model, max_tokens=longest, seed=config.run.seed if config else 0)
    if json:
        show_json(report.tree())
    else:
        typer.echo("\n".join(report.lines()))
    refuse_beyond(
        report,
        max_truncated=data.max_truncated,
        max_dropped=data.max_dropped,
        max_leaked=data.max_leaked,
    )


@app.command()
def tokenize(
    sources: Annotated[list[str], typer.Argument(help="Files, folders, hf:… or remote paths.")],
    to: Annotated[Path, typer.Option(help="Folder for the shards; the same call continues it.")],
    tokenizer: Annotated[
        str, typer.Option(help="A model or folder; `characters`; or `bpe:SIZE` to train one.")
    ],
    text: Annotated[str, typer.Option(help="The field that holds the text.")] = "text",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    shard_tokens: Annotated[int, typer.Option(min=1, help="Tokens in a shard.")] = 100_000_000,
) -> None:
    """Documents to token shards for pretraining, in parallel; interrupted, it goes on."""
    from headway.data.shards import tokenize as write_shards
    from headway.data.sources import Source

    columns = None if text == "text" else {"text": text}
    read = [Source(path=path, columns=columns) for path in sources]
    model = _made(tokenizer, read, to)
    try:
        index = write_shards(read, model, to, workers=workers, shard_tokens=shard_tokens)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (StorageFull if full else ConfigError)(
            f"--to {to}: {error.strerror} ({error.filename or to}). Free space, or give a folder "
            "that can be made and written; the same call goes on"
        ) from error
    documents = sum(shard.documents for shard in index.shards)
    typer.echo(
        f"{to}: {index.tokens:,} tokens of {documents:,} documents in {len(index.shards)} shards, "
        f"vocabulary {index.vocab_size:,}"
    )


def _surveying(
    config: RunConfig | None, what: str, tokenizer: str | None
) -> tuple[Surveying, RunConfig, Path] | None:
    """The recipe of a config whose data is no rows of text, to show it; None for all others."""
    from headway.config import find_recipe
    from headway.data.sources import TextData
    from headway.engine.task import Surveying
    from headway.machine import cache_folder

    if config is None or isinstance(getattr(config.task, "data", None), TextData):
        return None
    recipe = find_recipe(config.recipe)
    if not isinstance(recipe, Surveying):
        raise ConfigError(
            f"{what}: the recipe {config.recipe} trains on other data than rows of text, and has "
            "no way to show it"
        )
    if tokenizer is not None:
        raise ConfigError(f"--tokenizer: {what} names its own, and its rows are read with that")
    return recipe, config, cache_folder()


def _show_row(row: RowAsRead) -> None:
    """A row's text in runs, and what should be said at the end of each."""
    typer.secho(f"{row.where}  ({row.facts})", bold=True)
    for text, target, share in row.runs:
        colour = None if share is None else "red" if share < 0.5 else "yellow"
        colour = "green" if share is not None and share >= 0.75 else colour
        typer.secho(text, fg=colour, dim=share is None or None, nl=False)
        if target:
            typer.secho(f"[{target}]", fg=colour, bold=True, nl=False)
    typer.echo("\n")


def _opened(
    config: RunConfig | None, what: str, tokenizer: str | None, max_tokens: int
) -> tuple[TextData, Any, int]:
    """The data section, the tokenizer and the longest row, of a config or for a bare file."""
    from headway.data.sources import TextData

    if config is None:
        if tokenizer is None:
            raise ConfigError(
                f"{what}: rows are shown as a model sees them: give --tokenizer MODEL"
            )
        return TextData.model_validate({"train": what}), _loaded(tokenizer, None), max_tokens
    task: Any = config.task
    model = _loaded(tokenizer or task.base_model, getattr(task, "revision", None))
    return task.data, model, task.max_tokens


def _is_config(what: str) -> bool:
    suffix = Path(what).suffix
    return suffix in (".yaml", ".yml", ".toml", ".py") or (suffix == ".json" and _has_recipe(what))


def _has_recipe(what: str) -> bool:
    """Whether a JSON file is a config: rows come as a list, and have no recipe."""
    import json

    try:
        tree = json.loads(Path(what).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False  # whoever reads it as data says what is wrong
    return isinstance(tree, dict) and "recipe" in tree


def _config(what: str, overrides: list[str] | None) -> RunConfig | None:
    """The config that is asked about; None for a bare file, which has nothing to override."""
    from headway.config import load_config

    if _is_config(what):
        return load_config(what, overrides or [])
    if overrides:
        raise ConfigError(
            f"{overrides[0]}: {what} is data, not a config; nothing can be overridden"
        )
    return None


def _loaded(name: str, revision: str | None) -> Any:
    from headway.machine import cache_folder
    from headway.models.hub import load_tokenizer

    return load_tokenizer(name, revision, cache_folder())


def _made(name: str, sources: list[Any], to: Path) -> Any:
    """The tokenizer: trained on the sources, or loaded. One already beside shards is kept."""
    from headway.data.shards import documents_of
    from headway.data.tokenizers import train_bpe, train_characters

    if name != "characters" and not name.startswith("bpe:"):
        return _loaded(name, None)
    if (to / "tokenizer").is_dir():
        return _loaded(str((to / "tokenizer").resolve()), None)
    texts = (text for _, text in documents_of(sources))
    if name == "characters":
        characters: set[str] = set()
        documents = 0
        for document in texts:
            characters |= set(document)
            documents += 1
        return train_characters("".join(characters), "<|endoftext|>" if documents > 1 else None)
    size = name.removeprefix("bpe:")
    if not (size.isascii() and size.isdigit()):
        raise ConfigError(f"--tokenizer {name}: write the size of the vocabulary, as in bpe:8192")
    return train_bpe(texts, int(size))
