"""From the ``data:`` section to chains in memory: recognised, read, split by problem, and counted.

The shape of a source is recognised from its first record, and every record must have it. Chains of
one problem fall on the same side of a held-out fraction: a model would otherwise be measured on
problems whose other solutions it was trained on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import chain as joined
from itertools import count, islice
from pathlib import PurePosixPath

from headway.data.chains import eqasc, plain, prm800k, reveal
from headway.data.chains.chain import Chain, Drop, Item, Note
from headway.data.chains.report import (
    LEAKED,
    ChainReport,
    ChainTally,
    SplitTally,
    known_problems,
    labels_of,
    remember,
    warnings_of,
)
from headway.data.chains.section import ChainData, ChainSource
from headway.data.formats import Record
from headway.data.order import Mixture
from headway.data.sources import Source, read_records
from headway.errors import DataError

Contents = dict[int, tuple[float | None, ...]]
"""Hash of a chain's problem and steps -> the targets that it came with first."""
_COUNTED_ROWS = 10_000
_SHAPES = {
    "prm800k": "question: {problem: …}, label: {steps: [{completions: [{text, rating}], …}]}",
    "reveal": "question, answer_id, step, attribution_label (and evidence)",
    "eqasc": "question: {stem: …, choices: [{text, chains: [[{text, score}, …], …]}, …]}",
    "chains": "problem, steps: […], targets: […]",
    "table": "text, target; or any columns, named under columns:",
}
_SCORES = (
    "the labels are retrieval scores, which the chains of wrong answers have too: they do not say "
    "whether a step is correct (label: human does)"
)
_USED_BY = {
    "columns": ("chains", "table"),
    "labels": ("chains", "table"),
    "label": ("eqasc",),
    "with_evidence": ("reveal", "chains"),
    "accept_terms": ("reveal",),
}


@dataclass(slots=True)
class ChainSplits:
    """Chains of each split (held out, test: or None), and what became of all that was read."""

    train: list[Chain]
    """Those of one source stand together, in the order of the file."""
    held_out: list[Chain] | None
    test: list[Chain] | None
    sizes: list[int]
    """Training chains of each source, in the order of the section."""
    report: ChainReport


def load_chains(
    data: ChainData, *, seed: int, target_range: tuple[float, float] | None = None
) -> ChainSplits:
    """Read everything. DataError for unreadable data, terms not accepted, empty or leaky splits.

    ``target_range``: what a label may be, for the report; None: as the labels of a source have it.
    """
    splits = survey_chains(data, seed=seed, target_range=target_range)
    refuse_leaks(splits.report, data.max_leaked)
    return splits


def survey_chains(
    data: ChainData, *, seed: int, target_range: tuple[float, float] | None = None
) -> ChainSplits:
    """As ``load_chains``, leaks counted and not refused: what ``headway data lint`` shows."""
    train_tallies, train = _read_all(data.train, to_train=True)
    held_tallies, held_out = _read_all(data.eval or (), to_train=False)
    test_tallies, test = _read_all(data.test or (), to_train=False)
    names, held_names, test_names = (
        [tally.source for tally in tallies]
        for tallies in (train_tallies, held_tallies, test_tallies)
    )
    if data.eval_fraction is not None:
        train, held_out = _divided(train, data, seed)
        held_names = names
    sides = {
        "train": (names, train),
        "held-out": (held_names, held_out),
        "test": (test_names, test),
    }
    sizes = [len(chains) for chains in train]
    return ChainSplits(
        train=list(joined.from_iterable(train)),
        held_out=list(joined.from_iterable(held_out)) if held_out else None,
        test=list(joined.from_iterable(test)) if test else None,
        sizes=sizes,
        report=ChainReport(
            (*train_tallies, *held_tallies, *test_tallies),
            _counted(sides, target_range),
            _as_sampled(names, sizes, data.weights, seed),
        ),
    )


def read_chains(
    source: ChainSource, tally: ChainTally, taken: Set[str] = frozenset()
) -> Iterator[Chain]:
    """Every chain of a source, in order; what is dropped or changed is counted in ``tally``.

    A name that is ``taken`` gets a number. Terms of use are not asked about here, as reading is
    not training.
    """
    records = read_records(Source(path=source.path, split=source.split))
    first = next(records)
    kind = recognised(first, source)
    _refuse_unused(source, kind)
    tally.format = kind
    usual = _name(source, kind)
    numbered = (f"{usual}#{number}" for number in count(2))
    tally.source = name = next(n for n in joined([usual], numbered) if n not in taken)
    if name != usual:
        tally.count(
            Note(
                f"named {name}, as another source is {usual}; name: gives a better one", source.path
            )
        )
    all_records = joined([first], records)
    if kind == "eqasc" and source.label == "score":
        tally.warnings.append(_SCORES)
    batches: Iterable[list[Record]] = ([record] for record in all_records)
    if kind == "reveal":
        batches = reveal.grouped(all_records)
    read = _reader(source, kind, name)
    for batch in islice(batches, source.limit):
        items = list(read(batch))
        found = [item for item in items if isinstance(item, Chain)]
        dropped = [item for item in items if isinstance(item, Drop) and item.unit == "record"]
        if not found and not dropped:
            items += [Drop("no step has a label", record.where) for record in batch]
        tally.read += len(batch)
        tally.kept += len(batch) - len(dropped) if found else 0
        for item in items:
            tally.count(item)
        yield from found


def recognised(record: Record, source: ChainSource) -> str:
    """The format that the fields of a record say, or the one the source states."""
    if source.format != "auto":
        return source.format
    has = record.data
    nested = {key: value for key, value in has.items() if isinstance(value, dict)}
    found = []
    if "label" in nested and "steps" in nested["label"]:
        found.append("prm800k")
    if {"step", "attribution_label"} <= set(has):
        found.append("reveal")
    if "question" in nested and "choices" in nested["question"]:
        found.append("eqasc")
    if {"steps", "targets"} <= set(has):
        found.append("chains")
    if source.columns is not None or {"text", "target"} <= set(has):
        found.append("table")
    if source.columns is not None and "table" in found:
        return "table"
    if len(found) == 1:
        return found[0]
    shapes = "".join(f"\n  {name}: {fields}" for name, fields in _SHAPES.items())
    state = f"fits {' and '.join(found)}" if found else "fits none of the known formats"
    raise DataError(
        f"{record.where}: a record with {', '.join(map(repr, has)) or 'no fields'} {state}; set "
        f"format: on this source, or columns: for a table. The formats are{shapes}"
    )


def _read_all(
    sources: Sequence[ChainSource], *, to_train: bool
) -> tuple[list[ChainTally], list[list[Chain]]]:
    """The tally and the chains of each source. DataError when one has none left."""
    tallies: list[ChainTally] = []
    found = []
    for source in sources:
        tally = ChainTally(source=source.name or "", path=source.path)
        chains = []
        for chain in read_chains(source, tally, {earlier.source for earlier in tallies}):
            if to_train and tally.format == "reveal" and not source.accept_terms:
                raise DataError(f"{source.path}: {reveal.TERMS}")
            chains.append(chain)
        if not chains:
            raise DataError("no chain is left of a source. " + "\n".join(tally.lines()))
        tallies.append(tally)
        found.append(chains)
    return tallies, found


def _reader(
    source: ChainSource, kind: str, name: str
) -> Callable[[Sequence[Record]], Iterator[Item]]:
    """What turns a record, or for REVEAL all rows of an answer, into chains."""
    if kind == "reveal":
        return partial(reveal.chains, name=name, with_evidence=source.with_evidence)
    if kind == "prm800k":
        return lambda batch: prm800k.chains(batch[0], name)
    if kind == "eqasc":
        return lambda batch: eqasc.chains(batch[0], name, label=source.label or "human")
    usual = plain.CHAIN_COLUMNS if kind == "chains" else plain.TABLE_COLUMNS
    return lambda batch: plain.chains(
        batch[0],
        name,
        columns=source.columns or usual,
        labels=source.labels,
        with_evidence=source.with_evidence,
    )


def _refuse_unused(source: ChainSource, kind: str) -> None:
    """A key that this format does not use would be ignored in silence."""
    for key, formats in _USED_BY.items():
        if getattr(source, key) and kind not in formats:
            raise DataError(
                f"{source.path}: {key} is of use for {' and '.join(formats)} only, and this is "
                f"{kind}: leave it out"
            )


def _name(source: ChainSource, kind: str) -> str:
    """What metrics call this source."""
    if source.name:
        return source.name
    file = PurePosixPath(source.path).name.partition(".")[0]
    return kind if kind in ("prm800k", "reveal", "eqasc") else file or kind


def _divided(
    train: list[list[Chain]], data: ChainData, seed: int
) -> tuple[list[list[Chain]], list[list[Chain]]]:
    """Chains kept and chains held out, by source: the side is a hash of the group."""
    share = data.eval_fraction or 0.0
    first, last = data.eval_fold * share, (data.eval_fold + 1) * share
    if last > 1 - 1e-9:
        last = 1.0  # 5 * 0.2 and the like, whose rounding could leave a problem in no fold
    kept: list[list[Chain]] = [[] for _ in train]
    held: list[list[Chain]] = [[] for _ in train]
    for index, chains in enumerate(train):
        for chain in chains:
            chance = _hash(f"{seed}\n{chain.group}") / 2**64
            side = held if first <= chance < last else kept
            side[index].append(chain)
    for source, chains in zip(data.train, kept, strict=True):
        if not chains:
            raise DataError(f"{source.path}: eval_fraction: {share} leaves no chain to train on")
    if not any(held):
        raise DataError(f"eval_fraction: {share} holds out no chain: raise it, or give eval:")
    return kept, held


def _counted(
    sides: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Chain]]]],
    target_range: tuple[float, float] | None,
) -> tuple[SplitTally, ...]:
    """The tallies of all sources, split by split: training, what chooses, then the test.

    A content that an earlier split has is counted; ``sides``: names of the sources, their chains.
    """
    seen: dict[str, Contents] = {}
    problems: set[str] = set()
    tallies = []
    for split, (names, sources) in sides.items():
        mine: Contents = {}
        for name, chains in zip(names, sources, strict=True):
            counted = _tally(split, name, chains, mine, seen, problems, target_range)
            tallies.append(counted)
        seen[split] = mine
        if split == "train":
            problems = {chain.group for chains in sources for chain in chains}
    return tuple(tallies)


def _tally(
    split: str,
    name: str,
    chains: Sequence[Chain],
    mine: Contents,
    earlier: Mapping[str, Contents],
    problems: Set[str],
    target_range: tuple[float, float] | None,
) -> SplitTally:
    """Count the chains of one source; ``mine`` holds the contents of its split so far, ``earlier``
    those of the splits before, ``problems`` the groups of the training chains."""
    counts: Counter[str] = Counter()
    first: dict[str, list[str]] = {}
    for chain in chains:
        content = _hash("\0".join((chain.problem, *chain.steps)))
        happened = []
        if content in mine:
            happened.append("seen before in this split")
            if mine[content] != chain.targets:
                happened.append("seen before with other targets")
        happened += [LEAKED[other] for other, theirs in earlier.items() if content in theirs]
        if chain.group in problems:
            happened.append("of a problem that training chains have too")
        mine.setdefault(content, chain.targets)
        for what in happened:
            counts[what] += 1
            remember(first, what, chain.where)
    labels = labels_of([label for chain in chains for label in chain.labels], target_range)
    known = counts["of a problem that training chains have too"]
    warnings = (
        *warnings_of(name, split, labels), *known_problems(name, split, known, len(chains))
    )  # fmt: skip
    return SplitTally(
        source=name,
        split=split,
        chains=len(chains),
        steps=sum(len(chain.steps) for chain in chains),
        labels=labels,
        duplicates=counts["seen before in this split"],
        contradicting=counts["seen before with other targets"],
        leaked=counts[LEAKED["train"]],
        chosen_by=counts[LEAKED["held-out"]],
        known=known,
        first=first,
        warnings=warnings,
    )


def refuse_leaks(report: ChainReport, max_leaked: float) -> None:
    """DataError when a larger share of a split is among the chains of one before it."""
    for split in ("held-out", "test"):
        mine = [tally for tally in report.splits if tally.split == split]
        chains = sum(tally.chains for tally in mine)
        for leaked, what in (
            (sum(tally.leaked for tally in mine), LEAKED["train"]),
            (sum(tally.chosen_by for tally in mine), LEAKED["held-out"]),
        ):
            if leaked > max_leaked * chains:
                places = [place for tally in mine for place in tally.first.get(what, [])]
                raise DataError(
                    f"{leaked} of {chains} {split} chains ({100 * leaked / chains:.1f} %) are "
                    f"{what}, and max_leaked allows {100 * max_leaked:g} %. First: "
                    f"{', '.join(places[:5])}. Remove them from one side, or raise max_leaked."
                )


def _as_sampled(
    names: Sequence[str], sizes: Sequence[int], weights: Sequence[float] | None, seed: int
) -> tuple[tuple[str, float], ...]:
    """Each source's share of the first rows of the order: counted, not configured."""
    mixture = Mixture(sizes, weights, seed)
    rows = mixture.rows_per_epoch if weights is None else _COUNTED_ROWS
    drawn = mixture.as_sampled(min(rows, _COUNTED_ROWS))
    return tuple((name, count / sum(drawn)) for name, count in zip(names, drawn, strict=True))


def _hash(content: str) -> int:
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest())
