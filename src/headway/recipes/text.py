"""What every recipe that trains a causal language model on tokens shares: rows in, sums per row
out.

A microbatch is flat: its rows lie end to end without padding, attention is cut at their ends, and
logits exist only where a supervised token is predicted (``models.attention``, ``models.lm_loss``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from headway.engine.evaluate import undisturbed
from headway.engine.precision import autocast
from headway.engine.task import BuildContext, Inputs, Microbatch, RowSums, SavedModel
from headway.models.attention import hidden_states, recompute
from headway.models.backbone import backbone
from headway.models.lm_loss import judged_tokens, lm_row_sums
from headway.models.tuning import saved_model
from headway.recipes.batching import Order, groups, longest_rows, part_of, rows_of_step
from headway.recipes.language_model import counts
from headway.records import Evaluation, RowLoss

SURE_NATS, UNLIKELY_NATS = 0.051, 6.9
"""-log of 0.95 and of 0.001: of a token the model is sure, and of one it holds unlikely."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One training sequence."""

    ids: NDArray[np.integer]
    """[tokens] that the model reads."""
    ends: tuple[int, ...]
    """Where each document of the row ends; attention does not cross."""
    at: NDArray[np.int64]
    """[n] places in ``ids`` that predict something."""
    targets: NDArray[np.integer]
    """[n] what they should predict."""


class TokenRows(Protocol):
    """Rows by number."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, row: int) -> TokenRow:
        """One of them; reading it twice gives the same."""
        ...

    def shown(self, row: int) -> dict[str, Any]:
        """What a person should see of the row: ``where``, ``prompt``, ``reference`` …"""
        ...

    def lengths(self) -> NDArray[np.int64]:
        """[rows] tokens of each row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRow:
    """What the model makes of each supervised token of a row, all before it being given."""

    ids: list[int]
    """[tokens] of the row."""
    at: list[int]
    """[n] places of the supervised ones; one after the last is only predicted."""
    targets: list[int]
    """[n] the tokens that should be there."""
    losses: list[float]
    """[n] -log p of the token that is there, in nats."""
    choices: list[int]
    """[n] the token that the model holds likeliest."""
    of_choices: list[float]
    """[n] -log p of that."""


def cut_row(row: TokenRow, tokens: int) -> TokenRow:
    """The last ``tokens`` of a row up to its last supervised one: of a chat, the answer stays."""
    if len(row.ids) <= tokens:
        return row
    end = int(row.at[-1]) + 1
    start = max(0, end - tokens)
    kept = (row.at >= start) & (row.at < end)
    ends = sorted({min(e, end) - start for e in row.ends if e > start})
    return TokenRow(
        ids=row.ids[start:end],
        ends=tuple(ends),
        at=row.at[kept] - start,
        targets=row.targets[kept],
    )


class CutRows:
    """Rows of at most so many tokens."""

    def __init__(self, rows: TokenRows, tokens: int) -> None:
        self._rows, self._tokens = rows, tokens

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> TokenRow:
        return cut_row(self._rows[row], self._tokens)

    def shown(self, row: int) -> dict[str, Any]:
        """The whole row's."""
        return self._rows.shown(row)

    def lengths(self) -> NDArray[np.int64]:
        """At most so many."""
        return np.minimum(self._rows.lengths(), self._tokens)


class NoRows:
    """Where only the model is used."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, row: int) -> TokenRow:
        raise IndexError(row)

    def shown(self, row: int) -> dict[str, Any]:
        """There is nothing to show."""
        return {}

    def lengths(self) -> NDArray[np.int64]:
        """There is nothing to measure."""
        return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class FullRows:
    """Made-up rows of one length, each token supervised but the first: the most a row can be."""

    tokens: int

    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> TokenRow:
        ids = np.zeros(self.tokens, dtype=np.int64)
        at = np.arange(self.tokens - 1)
        return TokenRow(ids=ids, ends=(self.tokens,), at=at, targets=ids[1:])

    def shown(self, row: int) -> dict[str, Any]:
        """There is nothing to show."""
        return {}

    def lengths(self) -> NDArray[np.int64]:
        """One row."""
        return np.array([self.tokens])


@dataclass
class TextTask:
    """A causal language model and the rows it learns from."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    context: BuildContext
    base_model: str
    train: TokenRows = field(default_factory=NoRows)
    held: TokenRows | None = None
    """Those that are measured."""
    held_total: int = 0
    """Held-out rows there are; more than are measured where ``evaluate.max_rows`` is less."""
    test: TokenRows | None = None
    """Those that never choose anything."""
    order: Order = field(default=lambda positions: positions)
    rows_per_epoch: int = 0
    tokens_per_epoch: int = 0
    described: dict[str, Any] = field(default_factory=dict)
    template: str | None = None
    """The chat template that rows were written with; None where they were plain text."""
    saves_tokenizer: bool = True
    most_tokens: int = 0
    """The longest that a row may be: what ``longest`` makes up where no rows were read."""
    cuts: tuple[tuple[int, int], ...] = ()
    """(step, tokens): from the batch after that step on, training rows are cut to so many."""

    def batch_at(self, step: int, halvings: int = 0) -> list[Microbatch]:
        """This rank's share of the batch after ``step``: a pure function, and of ``cuts``."""
        limits = [tokens for since, tokens in self.cuts if step >= since]
        source = CutRows(self.train, min(limits)) if limits else self.train
        return list(self._flat(source, rows_of_step(self.order, step, self.context), halvings))

    def cut_rows(self, tokens: int, since_step: int) -> None:
        """From that batch on, rows keep their last ``tokens``; see ``cut_row``."""
        self.cuts = (*self.cuts, (since_step, tokens))

    def held_out(self, halvings: int = 0) -> Iterator[Microbatch]:
        """This rank's held-out rows in file order."""
        if self.held is not None:
            mine = list(range(self.context.rank, len(self.held), self.context.ranks))
            yield from self._flat(self.held, mine, halvings)

    def tested(self) -> TextTask | None:
        """The same model over all test rows; None where there are none."""
        if self.test is None:
            return None
        return replace(self, held=self.test, held_total=len(self.test))

    def longest(self, rows: int) -> Microbatch:
        """The longest training rows together, or made-up ones where none were read."""
        source = self.train if len(self.train) else FullRows(self.most_tokens)
        return flatten(source, longest_rows(source.lengths(), rows))

    def _flat(
        self, source: TokenRows, rows: Sequence[int], halvings: int = 0
    ) -> Iterator[Microbatch]:
        def length_of(row: int) -> int:
            return len(source[row].ids)

        for group in groups(rows, length_of, self.model, self.context, halvings):
            yield flatten(source, group)

    def loss(self, model: nn.Module, inputs: Inputs) -> RowSums:
        """Sum of -log p over each row's supervised tokens, in nats: ``{"loss": [rows]}``."""
        return row_sums(model, inputs, flat_states)

    def recompute_activations(self) -> bool:
        """Keep each layer's input only, from now on."""
        return recompute(self.model)

    def saved(self) -> SavedModel:
        """PEFT's or transformers' layout."""
        if self._files is None:
            tokenizer = self.tokenizer if self.saves_tokenizer else None
            self._files = dict(saved_model(self.model, tokenizer, self.base_model).files)
        return SavedModel(
            tensors=saved_model(self.model, None, self.base_model).tensors, files=self._files
        )

    _files: dict[str, bytes] | None = field(default=None, init=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """Counts of parameters and data, and the identities that must not change within a run."""
        vocabulary = backbone(self.model).head.weight.shape[0]
        return {**counts(self.model), "vocabulary": vocabulary, **self.described}

    # ---------------------------------------------------------------- looking at rows

    def judged(self, row: int) -> JudgedRow:
        """A held-out row token by token, as the evaluation read it."""
        assert self.held is not None
        inputs = flatten(self.held, [row]).inputs
        return judged_row(self.model, inputs, flat_states, self.context.precision)

    def show_worst(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with what a person should see of its worst rows."""
        assert self.held is not None
        worst = tuple(
            replace(row, shown={**self.held.shown(row.row), **self._shaded(row)})
            for row in evaluation.worst
        )
        return replace(evaluation, worst=worst, of_rows=part_of(self.held_total, evaluation))

    def _shaded(self, row: RowLoss) -> dict[str, Any]:
        return {} if self.tokenizer is None else shaded(self.judged(row.row), self.tokenizer)


States = Callable[[nn.Module, Inputs], Tensor]
"""Last hidden states [tokens, hidden] of a flat microbatch."""


def flat_states(model: nn.Module, inputs: Inputs) -> Tensor:
    """Of rows of tokens."""
    return hidden_states(model, inputs["input_ids"], inputs["position_ids"], inputs["segment_ends"])


def row_sums(model: nn.Module, inputs: Inputs, states: States) -> RowSums:
    """Sum of -log p over each row's ``targets``, in nats: ``{"loss": [rows]}``."""
    return lm_row_sums(
        states(model, inputs),
        backbone(model),
        inputs["positions"],
        inputs["targets"],
        inputs["row_of_target"],
        inputs["rows"],
    )


def judged_row(model: nn.Module, inputs: Inputs, states: States, precision: str) -> JudgedRow:
    """The one row of a microbatch token by token, the model left as it was."""
    device = next(model.parameters()).device
    sent = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    with undisturbed(model, device), autocast(precision, device):
        figures = judged_tokens(
            states(model, sent), backbone(model), sent["positions"], sent["targets"]
        )
    losses, choices, of_choices = (figure.tolist() for figure in figures)
    return JudgedRow(
        ids=inputs["input_ids"][0].tolist(),
        at=(inputs["positions"] + 1).tolist(),
        targets=inputs["targets"].tolist(),
        losses=losses,
        choices=choices,
        of_choices=of_choices,
    )


def shaded(row: JudgedRow, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """``tokens`` with their losses, the model's own ``choices``, the part of these that is another
    token (``error``), and where the label may be what is wrong (``suspicious``)."""

    def text(token: int) -> str:
        return str(tokenizer.decode([token]))

    loss_at = dict(zip(row.at, row.losses, strict=True))
    pairs = list(zip(row.choices, row.targets, strict=True))
    predicted_only = [t for t, at in zip(row.targets, row.at, strict=True) if at >= len(row.ids)]
    found: dict[str, Any] = {
        "tokens": [
            (text(token), round(loss_at[at], 3) if at in loss_at else None)
            for at, token in enumerate([*row.ids, *predicted_only])
        ],
        "choices": [(text(c), "changed" if c != wanted else None) for c, wanted in pairs],
        "length": len(row.ids),
    }
    if pairs:
        found["error"] = sum(choice != wanted for choice, wanted in pairs) / len(pairs)
    sure = [
        (text(choice), text(wanted))
        for (choice, wanted), loss, of_choice in zip(pairs, row.losses, row.of_choices, strict=True)
        if of_choice < SURE_NATS and loss > UNLIKELY_NATS
    ]
    if sure:
        said, wanted = sure[0]
        found["suspicious"] = (
            f"at {len(sure)} of {len(pairs)} tokens the model is sure of another than is there; "
            f"first of {said!r} in place of {wanted!r}"
        )
    return found


def flatten(source: TokenRows, rows: Sequence[int]) -> Microbatch:
    """Rows end to end as one microbatch. All index tensors are int64, on the CPU.

    Inputs: ``input_ids``, ``position_ids`` [1, tokens] (positions restart at every segment),
    ``segment_ends`` (where attention is cut), ``positions`` [n] (hidden state that predicts),
    ``targets`` [n] (token predicted), ``row_of_target`` [n], ``rows``.
    """
    parts = [source[row] for row in rows]
    lengths = [len(part.ids) for part in parts]
    starts = np.cumsum([0, *lengths])[:-1]
    ends = np.concatenate([start + p.ends for start, p in zip(starts, parts, strict=True)])
    pieces = np.diff(ends, prepend=0)
    position_ids = np.arange(sum(lengths)) - np.repeat(ends - pieces, pieces)
    weights = [len(part.at) for part in parts]
    tensors = {
        "input_ids": np.concatenate([part.ids for part in parts])[None],
        "position_ids": position_ids[None],
        "positions": np.concatenate([s + p.at for s, p in zip(starts, parts, strict=True)]),
        "targets": np.concatenate([part.targets for part in parts]),
        "row_of_target": np.repeat(np.arange(len(rows)), weights),
    }
    inputs: dict[str, Any] = {k: torch.from_numpy(v.astype(np.int64)) for k, v in tensors.items()}
    return Microbatch(
        inputs={**inputs, "segment_ends": ends.tolist(), "rows": len(rows)},
        rows=tuple(rows),
        weights=tuple(float(weight) for weight in weights),
        tokens=sum(lengths),
    )
