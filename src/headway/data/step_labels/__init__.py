"""Step labels that mean what they say: worked solutions become chains with known, placed errors.

Each solution is recomputed exactly and used only if everything checkable in it holds
(``solutions``). It yields its untouched chain, all steps 1.0, and chains with one error each
(``errors`` has the kinds and the one rule of the labels). A chain is a pure function of (seed,
question, answer): the file's order and the number of processes change nothing in it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

from headway.data.formats import Record
from headway.data.step_labels.errors import DEFAULT_KINDS, KINDS, Faulty, inject
from headway.data.step_labels.solutions import Refused, Solution, Step, parse
from headway.errors import ConfigError, DataError

SOURCE = "step-labels"
_CHUNK = 200
_DETAILS_KEPT = 5
_TRIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to generate. ConfigError from ``checked`` when it cannot be."""

    seed: int = 0
    per_solution: int = 2
    """Chains of each solution."""
    wrong_share: float = 0.5
    """Share of chains with an error. At most one chain of a solution is untouched."""
    kinds: tuple[str, ...] = DEFAULT_KINDS
    after_error: Literal["propagate", "stop"] = "propagate"
    """Go on from the wrong value, or end the chain at its first error as PRM800K does."""
    final_step: bool = True
    """Close with ``The answer is 72.``"""

    def checked(self) -> Options:
        """Itself. ConfigError names the option that cannot be."""
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ConfigError(f"--kinds {unknown[0]}: no such kind; there are {', '.join(KINDS)}")
        if not self.kinds:
            raise ConfigError("--kinds: name at least one")
        if not 0 <= self.wrong_share <= 1:
            raise ConfigError(f"--wrong-share {self.wrong_share}: a share is between 0 and 1")
        if self.per_solution * (1 - self.wrong_share) > 1 + 1e-9:
            # In whole hundredths and upwards: a share rounded down would be refused again.
            hundredths = -(-100 * (self.per_solution - 1) // self.per_solution)
            raise ConfigError(
                f"--per-solution {self.per_solution} --wrong-share {self.wrong_share}: would write "
                "the same untouched chain more than once; raise the wrong share to "
                f"{hundredths / 100:.2f} or more"
            )
        return self


@dataclass(frozen=True, slots=True)
class Chain:
    """One labelled chain, as it is written to the file."""

    problem: str
    steps: tuple[str, ...]
    targets: tuple[float, ...]
    kinds: tuple[str | None, ...]
    group: str
    """The same for all chains of a question: keep a group on one side of a split."""
    source: str = SOURCE

    def line(self) -> bytes:
        """One JSON object and a newline."""
        tree = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(tree, ensure_ascii=False).encode() + b"\n"


@dataclass(slots=True)
class Counts:
    """What was read, refused and made."""

    read: int = 0
    used: int = 0
    chains: int = 0
    untouched: int = 0
    steps: int = 0
    zeros: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    """For each reason the first few places and what was seen there."""
    examples: dict[str, dict[str, str]] = field(default_factory=dict)
    """For each kind one error: the problem, the true step before, the wrong one after."""

    def refuse(self, where: str, refusal: Refused) -> None:
        """Count a solution that is not used."""
        self.refused[refusal.reason] += 1
        seen = self.places.setdefault(refusal.reason, [])
        if len(seen) < _DETAILS_KEPT:
            seen.append(f"{where}: {refusal.detail}" if refusal.detail else where)

    def tree(self) -> dict[str, Any]:
        """All of it as plain values, with the shares."""
        wrong = self.chains - self.untouched
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "wrong_share": wrong / self.chains if self.chains else 0.0,
            "zero_share": self.zeros / self.steps if self.steps else 0.0,
        }

    def add(self, made: Made) -> None:
        """Count the chains of one solution."""
        self.used += 1
        for chain, example in made:
            self.chains += 1
            self.steps += len(chain.steps)
            self.zeros += chain.targets.count(0.0)
            self.untouched += example is None
            if example:
                self.by_kind[example["kind"]] += 1
                self.examples.setdefault(example["kind"], example)


Made = list[tuple[Chain, dict[str, str] | None]]
"""The chains of a solution, each with the error that was put into it."""


def generate(
    records: Iterable[Record], options: Options, counts: Counts, *, workers: int = 1
) -> Iterator[Chain]:
    """The chains of every usable record, in the records' order; ``counts`` is filled on the way.

    DataError, at the end, when every record was refused.
    """
    seen: set[str] = set()
    for record, made in _mapped(records, options.checked(), workers):
        counts.read += 1
        if isinstance(made, Refused):
            counts.refuse(record.where, made)
            continue
        group = made[0][0].group
        if group in seen:
            counts.refuse(record.where, Refused("the question was there before"))
            continue
        seen.add(group)
        counts.add(made)
        yield from (chain for chain, _ in made)
    if counts.read and not counts.used:
        raise DataError(_all_refused(counts))


def _all_refused(counts: Counts) -> str:
    reasons = "".join(
        f"\n  {number:,} × {reason}: {counts.places[reason][0]}"
        for reason, number in counts.refused.most_common()
    )
    return (
        f"none of the {counts.read:,} solutions can be used, so nothing is written. Worked "
        f"solutions in GSM8K's format are needed, with calculator notes that hold:{reasons}"
    )


def write(chains: Iterable[Chain], to: Path, *, force: bool = False) -> bool:
    """The chains as JSONL: the whole file or nothing. False when it was already there, the same.

    DataError when another file is there, unless ``force``; it is not touched.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    partial_file = to.with_name(f".partial-{to.name}")
    digest = hashlib.sha256()
    try:
        with partial_file.open("wb") as stream:
            for chain in chains:
                line = chain.line()
                digest.update(line)
                stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        if to.exists():
            if hashlib.sha256(to.read_bytes()).digest() == digest.digest():
                return False
            if not force:
                raise DataError(
                    f"{to}: holds something else already. Choose another name, or replace it with "
                    "--force"
                )
        partial_file.rename(to)
    finally:
        partial_file.unlink(missing_ok=True)
    return True


def chains_of(question: str, answer: str, options: Options) -> Made:
    """The chains of one solution. Refused when it cannot be vouched for, or takes no error."""
    solution = parse(question, answer, final_step=options.final_step)
    digest = hashlib.sha256(f"{options.seed}\n{question}\n{answer}".encode()).digest()
    rng = Random(int.from_bytes(digest[:8], "big"))
    wanted = options.per_solution * options.wrong_share
    num_wrong = int(wanted) + (rng.random() < wanted - int(wanted))
    wrong = _distinct_errors(solution, num_wrong, options, rng)
    made: Made = []
    if num_wrong < options.per_solution:
        steps = solution.steps
        if options.after_error == "stop":  # as long as a chain with an error would be
            steps = steps[: _distinct_errors(solution, 1, options, rng)[0][1].at + 1]
        made.append((_chain(solution, steps, [None] * len(steps)), None))
    for kind, faulty in wrong:
        end = faulty.at + 1 if options.after_error == "stop" else None
        chain = _chain(solution, faulty.steps[:end], faulty.kinds[:end])
        made.append((chain, _example(kind, faulty, question)))
    return made


def _distinct_errors(
    solution: Solution, count: int, options: Options, rng: Random
) -> list[tuple[str, Faulty]]:
    """So many different wrong versions, kinds in turn. Refused when there are not so many."""
    found: dict[tuple[str, ...], tuple[str, Faulty]] = {}
    for _ in range(_TRIES):
        for kind in sorted(options.kinds, key=lambda _: rng.random()):
            if len(found) == count:
                return list(found.values())
            if faulty := inject(solution, kind, rng):
                found.setdefault(tuple(step.text for step in faulty.steps), (kind, faulty))
    if len(found) < count:
        raise Refused("no place for so many errors of these kinds")
    return list(found.values())


def _chain(solution: Solution, steps: Sequence[Step], kinds: Sequence[str | None]) -> Chain:
    return Chain(
        problem=solution.problem,
        steps=tuple(step.text for step in steps),
        targets=tuple(1.0 if kind is None else 0.0 for kind in kinds),
        kinds=tuple(kinds),
        group=hashlib.sha256(" ".join(solution.problem.split()).encode()).hexdigest()[:16],
    )


def _example(kind: str, faulty: Faulty, problem: str) -> dict[str, str]:
    return {"kind": kind, "problem": problem, "before": faulty.before, "after": faulty.after}


def _mapped(
    records: Iterable[Record], options: Options, workers: int
) -> Iterator[tuple[Record, Made | Refused]]:
    """Each record with its chains, in order, at most a few chunks per worker in memory."""
    work = partial(_chunk_made, options)
    chunks = _chunks(records)
    if workers == 1:
        for chunk in chunks:
            yield from zip(chunk, work(chunk), strict=True)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        while some := list(islice(chunks, 4 * workers)):
            for chunk, made in zip(some, pool.imap(work, some), strict=True):
                yield from zip(chunk, made, strict=True)


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    rest = iter(records)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


def _chunk_made(options: Options, chunk: list[Record]) -> list[Made | Refused]:
    """The chains of some records; runs in a worker process."""
    made: list[Made | Refused] = []
    for record in chunk:
        question, answer = _text(record, "question"), _text(record, "answer")
        try:
            made.append(chains_of(question, answer, options))
        except Refused as refusal:
            made.append(Refused(refusal.reason, refusal.detail))
    return made


def _text(record: Record, name: str) -> str:
    value: Any = record.data.get(name)
    if not isinstance(value, str):
        raise DataError(
            f"{record.where}: no field {name!r} holding text; a worked solution has question and "
            f"answer, this record has {', '.join(map(repr, record.data)) or 'none'}"
        )
    return value


__all__ = ["DEFAULT_KINDS", "KINDS", "Chain", "Counts", "Options", "chains_of", "generate", "write"]
