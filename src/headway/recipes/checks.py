"""What the recipes that train on text ask before anything is built: model, tokenizer, rows.

Nothing here refuses what the build does not refuse; it asks sooner, and shows what a person must
see with their own eyes: one row as the model reads it, with what it learns from marked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from headway.data.chains import ChainReport
from headway.data.chat import Example, chosen_template, render, spans
from headway.data.formats import Record
from headway.data.prepare import Splits
from headway.data.report import DataReport, Tally
from headway.engine.task import BuildContext
from headway.errors import DataError
from headway.models.files import model_files
from headway.models.hub import load_shape, load_tokenizer
from headway.recipes.chain_rows import ChainRows
from headway.recipes.language_model import ModelConfig
from headway.records import Check, Finding

OPEN, CLOSE = "⟦", "⟧"
"""Stand around what is learned."""
SHOWN_CHARACTERS = 600
NOTABLE = 0.05
"""A larger share of rows cut, dropped or doubled is a warning."""
MARKER = re.compile(r"<\|[^|<>\s]+\|>")

Findings = Callable[[], Iterable[Finding]]


def pretrained_checks(
    config: ModelConfig, context: BuildContext, template: str | None, rows: Findings
) -> list[Check]:
    """For a recipe that begins with a pretrained model: its files, its tokenizer, and the rows.

    ``template``: the config's ``chat_template``, or None where no conversation is written.
    """
    name, revision = config.base_model, config.revision
    on_this_disk = name.startswith(("package:", "./", "../", "/", "~"))
    return [
        Check("model files", lambda: model_files(name, revision), quick=on_this_disk),
        Check(
            "tokenizer",
            lambda: tokenizer_findings(config, context, template),
            needs=("model files",),
        ),
        Check("data", rows, needs=("tokenizer",)),
    ]


# ------------------------------------------------------------------ the tokenizer


def tokenizer_findings(
    config: ModelConfig, context: BuildContext, template: str | None
) -> Iterator[Finding]:
    """Whether tokenizer, chat template and embedding belong together. Raises DataError."""
    tokenizer = load_tokenizer(config.base_model, config.revision, context.cache)
    table_rows = load_shape(config.base_model, config.revision, context.cache).vocab_size
    if template is not None and tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no EOS token, so the model would never learn to stop: set eos_token "
            "in its tokenizer_config.json"
        )
    yield _note("tokenizer", f"{len(tokenizer):,} tokens, the model has {table_rows:,} rows")
    if all(token in tokenizer.get_vocab() for token in config.special_tokens):
        yield from range_findings(tokenizer, table_rows, config.special_tokens)
    # else the table grows for a new token, and then covers all before it
    if template is not None:
        yield from template_findings(tokenizer, template)


def range_findings(
    tokenizer: PreTrainedTokenizerBase, table_rows: int, own: Sequence[str]
) -> Iterator[Finding]:
    """DataError for a token that is used and has no row in the model's embedding table."""
    beyond = {token: id for token, id in tokenizer.get_vocab().items() if id >= table_rows}
    if not beyond:
        return
    token = min(beyond, key=beyond.__getitem__)
    written = str(getattr(tokenizer, "chat_template", None) or "")
    used = {*own, tokenizer.eos_token, tokenizer.bos_token}
    if needed := sorted(t for t in beyond if t in used or t in written):
        raise DataError(
            f"the token {needed[0]} is number {beyond[needed[0]]:,}, and the model has only "
            f"{table_rows:,} rows: tokenizer and model are not of one kind. Take both from the "
            "same place"
        )
    yield Finding(
        level="warning",
        name="tokenizer",
        what=f"{len(beyond):,} tokens have no row in the model, the first is {token}",
        why="a row of data that has one of them ends training",
        fix="Take tokenizer and model from the same place",
    )


def template_findings(tokenizer: PreTrainedTokenizerBase, choice: str) -> Iterator[Finding]:
    """A small conversation through the template, as the rows will go. Raises DataError."""
    template = chosen_template(choice, tokenizer)
    if template is None:
        yield Finding(
            level="note",
            name="chat template",
            what="the tokenizer has none",
            why='only {"text"} rows can be read without one',
            fix="For conversations set task.data.chat_template: plain, or the path of a Jinja file",
        )
        return
    example = render(_greeting(), tokenizer, max_tokens=2048, chat_template=choice)
    text = tokenizer.decode(example.ids.tolist(), skip_special_tokens=False)
    torn = [m for m in sorted(set(MARKER.findall(text))) if m not in tokenizer.get_vocab()]
    if torn:
        yield Finding(
            level="warning",
            name="chat template",
            what=f"the template writes {', '.join(torn)}, which the tokenizer does not know",
            why="each becomes several ordinary tokens, and where a turn ends is hard to learn",
            fix="Use the template that belongs to this model, or task.data.chat_template: plain",
        )
    yield _note("chat template", f"writes a conversation: {marked(example, tokenizer)}")


def _greeting() -> Record:
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    return Record({"messages": turns}, "a conversation made for this check")


# ------------------------------------------------------------------ rows of conversations


def split_findings(splits: Splits, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """What became of the rows, in shares, and one of them as the model reads it."""
    for line in splits.report.lines():
        yield _note("data", line)
    yield from share_findings(splits.report)
    ids, supervised = splits.train[0]
    example = Example(ids, supervised, splits.train.where(0), "", len(ids))
    yield _note(
        "data",
        f"{example.where} as the model reads it, {len(ids):,} tokens, {example.weight:,} learned "
        f"({OPEN}so{CLOSE}):\n{marked(example, tokenizer)}",
    )


def share_findings(report: DataReport) -> Iterator[Finding]:
    """A warning for each thing that happened to more than a few rows of a split."""
    for split in dict.fromkeys(tally.split for tally in report.tallies):
        tallies = report.of(split)
        read = max(1, sum(tally.read for tally in tallies))
        for count, what, why, fix in _shares(tallies):
            if count > NOTABLE * read:
                yield Finding(
                    level="warning",
                    name="data",
                    what=f"{split}: {100 * count / read:.1f} % of the rows {what}",
                    why=why,
                    fix=fix,
                )


def _shares(tallies: Sequence[Tally]) -> Iterator[tuple[int, str, str, str]]:
    """(rows, what happened to them, why that matters, what to do)."""
    yield (
        sum(tally.truncated for tally in tallies),
        "are cut at task.max_tokens",
        "the end of an answer, and that it ends, is not learned from them",
        "Raise task.max_tokens, or set task.data.overlong: drop",
    )
    yield (
        sum(sum(tally.dropped.values()) for tally in tallies),
        "teach nothing and are dropped",
        "no answer, or none within task.max_tokens",
        "`headway data lint` names them; mend them or leave them out",
    )
    yield (
        sum(tally.duplicates for tally in tallies),
        "were there before, word for word",
        "the model learns these by heart, and a held-out loss over them says less",
        "Leave doubled rows out of the file; `headway data lint` names the first",
    )
    yield (
        sum(tally.leaked for tally in tallies),
        "are also among the training rows",
        "the held-out loss then measures what was learned by heart",
        "Leave them out of one of the two",
    )


def marked(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The example as text, what is learned between marks, the middle of what is long left out."""
    parts = [(text, learned) for text, learned in spans(example, tokenizer)]
    room = max(60, SHOWN_CHARACTERS // max(1, len(parts)))
    return "".join(
        f"{OPEN}{shortened(text, room)}{CLOSE}" if learned else shortened(text, room)
        for text, learned in parts
    )


def shortened(text: str, room: int) -> str:
    """At most ``room`` characters: the beginning and the end."""
    if len(text) <= room:
        return text
    return f"{text[: room // 2]} […] {text[-(room // 2) :]}"


# ------------------------------------------------------------------ chains with scores


def chain_findings(
    train: ChainRows, report: ChainReport, lines: Sequence[str]
) -> Iterator[Finding]:
    """What became of the chains, what cannot be learned from them, and one with its scores."""
    for line in lines:
        yield _note("data", line)
    for warning in report.warnings:
        yield Finding(level="warning", name="data", what=warning)
    row, text = train.rows[0], train.text
    pieces, before = [], 0
    for at, target in zip(row.at.tolist(), row.targets.tolist(), strict=True):
        written = text.tokenizer.decode(row.ids[before : at + 1].tolist())
        label = text.low + (text.high - text.low) * target
        pieces.append(f"{shortened(written, 160)}{OPEN}{label:g}{CLOSE}")
        before = at + 1
    pieces.append(shortened(text.tokenizer.decode(row.ids[before:].tolist()), 160))
    where = train.chains[train.chain_of[0]].where
    yield _note(
        "data",
        f"{where} as the model reads it, {len(row.ids):,} tokens, {len(row.at)} scores learned "
        f"({OPEN}score{CLOSE} where it is read):\n{''.join(pieces)}",
    )


def _note(name: str, what: str) -> Finding:
    return Finding(level="note", name=name, what=what)
