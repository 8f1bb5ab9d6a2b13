"""Chains as the model reads them, and the places where it is asked for a number.

One function writes a chain for training, for evaluation and for predict. Each step is followed by a
special token, or ends at its own last token, and the score of the step is read there: a causal
model has then seen the problem, all steps before, and this one, never the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from headway.data.chains import Chain, ChainReport, pieces
from headway.data.chains.checks import CHECKS, checked
from headway.data.order import Mixture
from headway.engine.task import Microbatch
from headway.errors import DataError

BATCH = 2048
"""Chains that go through the tokenizer together."""


@dataclass(frozen=True, slots=True)
class ChainText:
    """How a chain is written."""

    tokenizer: PreTrainedTokenizerBase
    problem_format: str
    evidence_format: str
    token: str | None
    """Stands after each step and is where its score is read; None: the step's own last token."""
    max_tokens: int
    low: float
    high: float
    max_steps: int | None = None
    """Longer chains are read in pieces of so many steps."""
    checks: bool = False
    """Whether rows also say what was checked of each step."""

    def prompt(self, chain: Chain) -> str:
        """What stands before the first step."""
        evidence = self.evidence_format.replace("{evidence}", "\n".join(chain.evidence))
        problem = self.problem_format.replace("{problem}", chain.problem)
        return (evidence if chain.evidence else "") + (problem if chain.problem else "")

    def encode(self, chains: Sequence[Chain]) -> list[ChainRow]:
        """One row per chain. Steps that do not fit into ``max_tokens`` have no score.

        What looks like a special token in the data is text, never the token.
        """
        texts: list[str] = []
        for chain in chains:
            texts += [self.prompt(chain), *(step.strip() for step in chain.steps)]
        ids = iter(self._ids(texts) if texts else ())
        begin = [self.tokenizer.bos_token_id] if _adds_bos(self.tokenizer) else []
        mark = [] if self.token is None else [self.tokenizer.convert_tokens_to_ids(self.token)]
        newline = self._ids(["\n"])[0]
        return [
            self._row(chain, begin + next(ids), [next(ids) for _ in chain.steps], mark, newline)
            for chain in chains
        ]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return found

    def _row(
        self,
        chain: Chain,
        prompt: list[int],
        steps: list[list[int]],
        mark: list[int],
        newline: list[int],
    ) -> ChainRow:
        written = [step + mark + newline for step in steps]
        first = self._first_that_fits(len(prompt), written, chain)
        ids, at, targets, places, spans = prompt, [], [], [], []
        lost = 0
        for place in range(first, len(steps)):
            # What nothing stands before is not predicted.
            span = (max(1, len(ids)), len(ids) + len(steps[place]))
            spans.append([min(edge, self.max_tokens) for edge in span])
            ids = ids + written[place]
            target = chain.targets[place]
            if target is None:
                continue
            read_at = len(ids) - len(newline) - 1
            if read_at >= self.max_tokens:
                lost += 1
                continue
            at.append(read_at)
            places.append(place)
            targets.append(self._scaled(target, chain, place))
        return ChainRow(
            ids=np.array(ids[: self.max_tokens], dtype=np.int32),
            at=np.array(at, dtype=np.int64),
            targets=np.array(targets, dtype=np.float32),
            steps=np.array(places, dtype=np.int64),
            spans=np.array(spans[: places[-1] - first + 1] if places else [], dtype=np.int64),
            checks=np.zeros((len(at), 0), dtype=np.float32),
            lost=lost,
            dropped=first,
        )

    def checked(self, chain: Chain) -> NDArray[np.float32]:
        """[steps, CHECKS], or [steps, 0]: see ``data.chains.checks``."""
        if not self.checks:
            return np.zeros((len(chain.steps), 0), dtype=np.float32)
        return checked("\n".join((*chain.evidence, chain.problem)), chain.steps)

    def _first_that_fits(self, before: int, written: list[list[int]], chain: Chain) -> int:
        """Steps without a label at the beginning are context: the oldest make room."""
        first, tokens = 0, before + sum(map(len, written))
        while (
            tokens > self.max_tokens and chain.targets[first] is None and first < len(written) - 1
        ):
            tokens -= len(written[first])
            first += 1
        return first

    def _scaled(self, target: float, chain: Chain, place: int) -> float:
        if not self.low <= target <= self.high:
            raise DataError(
                f"{chain.where}: step {place + 1} has the target {target:g}, outside of "
                f"task.target_range [{self.low:g}, {self.high:g}]; widen the range or mend the data"
            )
        return (target - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class ChainRow:
    """One chain as tokens."""

    ids: NDArray[np.int32]
    """[tokens]"""
    at: NDArray[np.int64]
    """[n] where a score is read."""
    targets: NDArray[np.float32]
    """[n] in [0, 1]."""
    steps: NDArray[np.int64]
    """[n] which step of the chain each is."""
    spans: NDArray[np.int64]
    """[steps, 2] first token and end of each up to the last that is read, labelled or not. The
    first of them is step ``dropped`` of the chain."""
    checks: NDArray[np.float32]
    """[n, CHECKS] what was checked of each, or [n, 0]."""
    lost: int
    """Labelled steps that did not fit."""
    dropped: int
    """Unlabelled steps at the beginning that made room."""


@dataclass
class ChainRows:
    """The chains of one split as rows, long ones in pieces. A row without a label is left out."""

    chains: Sequence[Chain]
    text: ChainText
    source_sizes: Sequence[int] = ()
    """Chains of each source, in order."""
    rows: list[ChainRow] = field(default_factory=list, init=False)
    chain_of: list[int] = field(default_factory=list, init=False)
    """Which chain each row is, or is a piece of."""
    first_step: list[int] = field(default_factory=list, init=False)
    """Which step of its chain a row's first step is."""
    sizes: list[int] = field(default_factory=list, init=False)
    """Rows of each source."""
    lost_steps: int = field(default=0, init=False)
    first_lost: str = field(default="", init=False)
    """Where the first chain with a lost step stands."""
    dropped_steps: int = field(default=0, init=False)
    """Unlabelled first steps left away so that the labelled ones fit."""
    split_chains: int = field(default=0, init=False)
    emptied: int = field(default=0, init=False)
    """Rows left out because no label fits into ``max_tokens``."""

    def __post_init__(self) -> None:
        parts: list[tuple[int, int, Chain]] = []
        checks: list[NDArray[np.float32]] = []
        for number, chain in enumerate(self.chains):
            found = pieces(chain, max_steps=self.text.max_steps or len(chain.steps))
            checks.append(self.text.checked(chain))
            self.split_chains += len(found) > 1
            parts += [(number, first, piece) for first, piece in found if piece.labels]
        for start in range(0, len(parts), BATCH):
            batch = parts[start : start + BATCH]
            for (number, offset, piece), row in zip(
                batch, self.text.encode([piece for *_, piece in batch]), strict=True
            ):
                self.lost_steps += row.lost
                self.dropped_steps += row.dropped
                if row.lost and not self.first_lost:
                    self.first_lost = piece.where
                if len(row.at) == 0:
                    self.emptied += 1
                    continue
                self.rows.append(replace(row, checks=checks[number][offset + row.steps]))
                self.chain_of.append(number)
                self.first_step.append(offset)
        ends = np.cumsum(self.source_sizes or [len(self.chains)])
        owner = np.searchsorted(ends, self.chain_of, side="right")
        self.sizes = np.bincount(owner, minlength=len(ends)).tolist()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(len(row.ids) for row in self.rows)

    def mean_target(self, drawn: Sequence[float]) -> float:
        """Mean label in [0, 1] where so many rows are drawn of each source, each equally often."""
        total = units = 0.0
        ends = np.cumsum(self.sizes)
        for end, size, count in zip(ends, self.sizes, drawn, strict=True):
            targets = np.concatenate([row.targets for row in self.rows[end - size : end]])
            total += count / size * float(targets.sum(dtype=np.float64))
            units += count / size * len(targets)
        return total / units

    @property
    def sha256(self) -> str:
        """Names the content: ids, places, targets and checks of every row."""
        digest = hashlib.sha256()
        for row in self.rows:
            parts: list[NDArray[Any]] = [row.ids, row.at, row.targets]
            for part in parts + [row.checks] * self.text.checks:
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part.tobytes())
        return digest.hexdigest()

    def lines(self, split: str, unused: str) -> list[str]:
        """What became of the chains of ``split`` that are too long; the lost are ``unused``."""
        found = []
        if self.split_chains:
            found.append(
                f"  {split}: {self.split_chains:,} chains of more than {self.text.max_steps} "
                "steps split"
            )
        if self.dropped_steps:
            found.append(
                f"  {split}: {self.dropped_steps:,} unlabelled first steps are left away so that "
                f"what follows fits into max_tokens ({self.text.max_tokens})"
            )
        if self.lost_steps:
            found.append(
                f"  {split}: {self.lost_steps:,} labelled steps beyond max_tokens "
                f"({self.text.max_tokens}) are not {unused}, {self.emptied:,} rows of them with "
                f"nothing left; the first is in {self.first_lost}"
            )
        return found

    def microbatch(self, rows: Sequence[int]) -> Microbatch:
        """Rows end to end. Index tensors are int64, all on the CPU.

        Inputs: ``input_ids``, ``position_ids`` [1, tokens], ``row_ends``, ``at`` [n] (where scores
        are read), ``targets`` [n] in [0, 1], ``checks`` [n, CHECKS or 0], ``row_of_target`` [n],
        ``rows``, and ``units`` [n, 2]: the number of the row, and of the step in its chain; and
        what ``StepTokens.of`` reads.
        """
        parts = [self.rows[row] for row in rows]
        lengths = [len(part.ids) for part in parts]
        ends = np.cumsum(lengths)
        starts = ends - lengths
        counts = [len(part.at) for part in parts]
        tensors: dict[str, Any] = {
            "input_ids": np.concatenate([part.ids for part in parts])[None].astype(np.int64),
            "position_ids": np.concatenate([np.arange(n) for n in lengths])[None],
            "at": np.concatenate([s + part.at for s, part in zip(starts, parts, strict=True)]),
            "targets": np.concatenate([part.targets for part in parts]),
            "checks": np.concatenate([part.checks for part in parts]),
            "row_of_target": np.repeat(np.arange(len(rows)), counts),
            "units": np.concatenate(
                [
                    np.stack([np.full(len(part.at), row), self.first_step[row] + part.steps], 1)
                    for row, part in zip(rows, parts, strict=True)
                ]
            ),
        }
        return Microbatch(
            inputs={
                **{name: torch.from_numpy(value) for name, value in tensors.items()},
                **step_tokens(parts, starts.tolist()),
                "row_ends": ends.tolist(),
                "rows": len(rows),
            },
            rows=tuple(rows),
            weights=tuple(float(count) for count in counts),
            tokens=sum(lengths),
        )


def step_tokens(rows: Sequence[ChainRow], starts: Sequence[int]) -> dict[str, Any]:
    """The tokens of all steps of rows that begin at ``starts``: see ``models.surprise``."""
    spans = np.concatenate([row.spans + start for row, start in zip(rows, starts, strict=True)])
    lengths = np.maximum(0, spans[:, 1] - spans[:, 0])
    before = np.cumsum(lengths) - lengths
    firsts = np.cumsum([0, *(len(row.spans) for row in rows[:-1])])
    tensors = {
        "step_tokens": np.repeat(spans[:, 0] - before, lengths) + np.arange(lengths.sum()),
        "step_of_token": np.repeat(np.arange(len(spans)), lengths),
        "step_of_score": np.concatenate(
            [first + row.steps - row.dropped for first, row in zip(firsts, rows, strict=True)]
        ),
        "first_step": np.repeat(firsts, [len(row.at) for row in rows]),
    }
    return {
        **{name: torch.from_numpy(value) for name, value in tensors.items()},
        "steps": len(spans),
    }


def full_chains(text: ChainText) -> ChainRows:
    """One made-up row as long as a row may be, with a score at its end: for the plan."""
    chains = ChainRows((), text)
    tokens = text.max_tokens
    chains.rows.append(
        ChainRow(
            ids=np.zeros(tokens, dtype=np.int32),
            at=np.array([tokens - 1]),
            targets=np.zeros(1, dtype=np.float32),
            steps=np.zeros(1, dtype=np.int64),
            spans=np.array([[1, tokens]]),
            checks=np.zeros((1, len(CHECKS) if text.checks else 0), dtype=np.float32),
            lost=0,
            dropped=0,
        )
    )
    chains.chain_of.append(0)
    chains.first_step.append(0)
    return chains


def as_sampled(
    mixture: Mixture, report: ChainReport, weights: Sequence[float] | None
) -> tuple[tuple[str, float], ...]:
    """Each source's share of the rows drawn: counted in an epoch, or in the first 10,000."""
    counts = mixture.sizes if weights is None else mixture.as_sampled(10_000)
    names = [name for name, _ in report.sampled]
    return tuple((name, n / sum(counts)) for name, n in zip(names, counts, strict=True))


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether this tokenizer begins a text with its own token."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
