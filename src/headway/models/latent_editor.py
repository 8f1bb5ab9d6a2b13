"""A language model that reads a latent and an instruction, and says how the latent changes.

The latent goes through an MLP and stands as one token or more before the instruction. What the
model has understood is read at the instruction's last token, which looks back once more at all
tokens of its row (a small model is slow to carry "shorter" to the end of a sentence). A head says
of each dimension whether it is to change, and by how much if so (``models.amounts``). The change of
the latent follows from the amounts and the latent alone:
f(latent, amounts) - f(latent, 0), f an MLP, trained on the amounts of the labels. So amounts of
zero change nothing, whatever the latent. (Fitted to 800 of the published edits with the numbers
that a reader finds in their texts, 5 splits: held-out MSE .0021; .0046 where most of the change was
a sum over amounts and their squares, each times a vector linear in the latent. docs/results/cad.md)

A small model is slow to learn what digits are worth. So each number of an instruction is also given
by its value: an embedding of it is added to that of the number's last token (as in xVal, arXiv
2310.02989).

Head and projector compute in fp32, whatever the language model computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from headway.models.amounts import BY_NUMBER, WITHOUT, Candidates, candidates
from headway.models.attention import hidden_states
from headway.models.backbone import backbone, base_model

SIZES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""A value is given as tanh(value / size) for each: exact near a size, and never large."""

LOOKS = 8
"""Attention heads with which the last token looks back."""


class EditorShape(BaseModel):
    """What stands around the language model."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    latent_tokens: int = Field(default=1, ge=1)
    """Embeddings that stand for the latent, before the instruction."""
    numbers: bool = True
    """Give each number of an instruction by its value too, and choose amounts among what it may
    mean; without, they are regressed."""
    projector: int = Field(default=512, ge=1)
    """Width of the layer between latent and embeddings."""
    head: int = Field(default=512, ge=1)
    """Width of the layers between what is read and what is said of it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """In what reads amounts, after each activation."""


class Told(NamedTuple):
    """What the editor says of each row."""

    delta: Tensor
    """[n, latent]: the change of the latent, in its own unit."""
    taught: Tensor
    """[n, latent]: the same for the amounts of the labels, where they were given."""
    named: Tensor
    """[n, names] logits of "this dimension changes"."""
    choice: Candidates
    """By how much it changes if it does."""
    amounts: Tensor
    """[n, names]: by how much it changes, in mm: the likeliest where it is likely to, else 0."""
    direction: Tensor
    """[n] logits of "more"."""


class Numbers(NamedTuple):
    """The numbers in the instructions of some rows."""

    at: Tensor
    """[m] each number's last token."""
    row: Tensor
    """[m] whose it is."""
    value: Tensor
    """[m]"""


class EditorHead(nn.Module):
    """Reads hidden state and latent; also holds the scales that the data has."""

    latent_mean: Tensor
    latent_scale: Tensor
    delta_scale: Tensor
    amount_scale: Tensor

    def __init__(self, hidden: int, latent: int, names: int, shape: EditorShape) -> None:
        super().__init__()
        self.register_buffer("latent_mean", torch.zeros(latent))
        for name, size in (("latent", latent), ("delta", latent), ("amount", names)):
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.projector = _as_words(latent, shape.projector, shape.latent_tokens, hidden)
        self.numbers = _as_words(len(SIZES), shape.projector, 1, hidden) if shape.numbers else None
        self.reading = nn.Sequential(
            nn.LayerNorm(hidden),
            nn.Linear(hidden, shape.head),
            nn.GELU(),
            nn.Dropout(shape.dropout),
        )
        self.looking_back = nn.MultiheadAttention(shape.head, LOOKS, batch_first=True)
        both = shape.head + latent
        self.named = _mlp(both, shape.head, names, shape.dropout)
        self.regressed = _mlp(both, shape.head, names, shape.dropout)
        self.by_row = _mlp(both, shape.head, 2 * names + WITHOUT, shape.dropout)
        self.by_number = None
        if shape.numbers:
            self.by_number = _mlp(shape.head + both, shape.head, names + BY_NUMBER, shape.dropout)
        self.direction = nn.Linear(shape.head, 1)
        self.change = _mlp(latent + names, shape.head, latent)
        heads = [self.named, self.regressed, self.by_row]
        heads += [self.by_number] if self.by_number else []
        for last in (self.direction, *(part[-1] for part in heads)):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.float()

    def start_at(self, embedding_size: float) -> None:
        """Make our embeddings as large as those of words: their root mean square."""
        for part in (self.projector, self.numbers):
            if part is not None:
                nn.init.constant_(part[-1].weight, embedding_size)  # type: ignore[arg-type]

    def scaled(self, z: Tensor) -> Tensor:
        """Latents over their deviation among the training rows."""
        return (z.float() - self.latent_mean) / self.latent_scale

    def embeddings(self, z: Tensor) -> Tensor:
        """[n, latent] -> [n, latent_tokens, hidden]."""
        with torch.autocast(z.device.type, enabled=False):
            found: Tensor = self.projector(self.scaled(z))
        return found

    def with_values(self, words: Tensor, at: Tensor, values: Tensor) -> Tensor:
        """Embeddings [tokens, hidden], those of ``values`` [m] added ``at`` [m]."""
        if self.numbers is None:
            return words
        with torch.autocast(words.device.type, enabled=False):
            sizes = torch.tanh(values.float()[:, None] / values.new_tensor(SIZES))
            added = self.numbers(sizes)[:, 0]
        return words.index_add(0, at, added.to(words.dtype))

    def forward(
        self,
        hidden: Tensor,
        row_ends: Sequence[int],
        last_at: Tensor,
        z: Tensor,
        current: Tensor,
        numbers: Numbers,
        amounts: Tensor | None = None,
    ) -> Told:
        """Hidden states [tokens, hidden] of rows end to end, their last tokens [n], latents
        [n, latent], present dimensions [n, names] in mm; numbers [m]; labels [n, names] in mm."""
        with torch.autocast(hidden.device.type, enabled=False):
            scaled = self.scaled(z)
            words = self.reading(hidden.float().tanh())  # a few hidden numbers dwarf all others
            read = self._read(words, row_ends, last_at)
            both = torch.cat([read, scaled], -1)
            named, choice = self.named(both), self._choice(words, both, current.float(), numbers)
            chosen = torch.where(named > 0, choice.likeliest(), 0.0) * self.amount_scale
            delta = self.changed(scaled, chosen)
            taught = delta if amounts is None else self.changed(scaled, amounts)
            return Told(delta, taught, named, choice, chosen, self.direction(read)[:, 0])

    def changed(self, scaled: Tensor, amounts: Tensor) -> Tensor:
        """What amounts [n, names] in mm do to latents [n, latent]; nothing, where they are 0."""
        over = amounts.float() / self.amount_scale
        change = self.change(torch.cat([scaled, over], -1))
        unchanged = self.change(torch.cat([scaled, torch.zeros_like(over)], -1))
        found: Tensor = (change - unchanged) * self.delta_scale
        return found

    def _choice(self, words: Tensor, both: Tensor, current: Tensor, numbers: Numbers) -> Candidates:
        if self.by_number is None:
            numbers = Numbers(*(tensor[:0] for tensor in numbers))
            by_number = words.new_zeros(0, current.shape[1] + BY_NUMBER)
        else:
            there = torch.cat([words[numbers.at], both[numbers.row]], -1)
            by_number = self.by_number(there)
        return candidates(
            numbers.value.float(), numbers.row, current, self.regressed(both), self.amount_scale,
            self.by_row(both), by_number,
        )  # fmt: skip

    def _read(self, words: Tensor, row_ends: Sequence[int], last_at: Tensor) -> Tensor:
        """[n, head]: the last token's reading, and what it finds looking back at [tokens, head]."""
        starts = [0, *row_ends[:-1]]
        rows = [words[start:end] for start, end in zip(starts, row_ends, strict=True)]
        lengths = torch.tensor([len(row) for row in rows], device=words.device)
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        beyond = torch.arange(padded.shape[1], device=words.device) >= lengths[:, None]
        last = words[last_at]
        found, _ = self.looking_back(
            last[:, None], padded, padded, key_padding_mask=beyond, need_weights=False
        )
        read: Tensor = last + found[:, 0]
        return read


def _as_words(inside: int, width: int, words: int, hidden: int) -> nn.Sequential:
    """[n, inside] -> [n, words, hidden], each as large as ``start_at`` says."""
    return nn.Sequential(
        nn.Linear(inside, width),
        nn.GELU(),
        nn.Linear(width, words * hidden),
        nn.Unflatten(-1, (words, hidden)),
        nn.LayerNorm(hidden),
    )


def _mlp(inside: int, width: int, outside: int, dropout: float = 0.0) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inside, width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(width, outside),
    )


class LatentEditor(nn.Module):
    """A causal language model, whose output head is never asked, and an editor's head."""

    dimensions_of: Callable[[Tensor], Tensor] | None = None
    """Latents [n, latent] -> the part's dimensions [n, names] in mm, where they can be read."""

    def __init__(self, language: nn.Module, latent: int, names: int, shape: EditorShape) -> None:
        """Raises ConfigError where the model has no hidden states to read."""
        super().__init__()
        self.language = language
        hidden = base_model(language).config.get_text_config().hidden_size
        self.head = EditorHead(hidden, latent, names, shape)
        table = base_model(language).get_input_embeddings()
        self.head.to(next(language.parameters()).device)
        read = {id(p) for p in table.parameters()}
        for parameter in backbone(language).head.parameters():
            if id(parameter) not in read:  # tied weights are read too
                parameter.requires_grad_(False)  # the rest has no part in the loss

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        row_ends: Sequence[int],
        latent_at: Tensor,
        last_at: Tensor,
        number_at: Tensor,
        number_row: Tensor,
        number_value: Tensor,
        z: Tensor,
        amounts: Tensor | None = None,
    ) -> Told:
        """Rows end to end, ids [1, tokens]; those at ``latent_at`` [n, latent_tokens] stand for the
        latents ``z`` [n, latent]; numbers end at ``number_at`` [m]; read at ``last_at`` [n].
        ``amounts``: the labels."""
        words = base_model(self.language).get_input_embeddings()(input_ids)
        latents = self.head.embeddings(z).to(words.dtype)
        given = self.head.with_values(words[0], number_at, number_value)
        given = given.index_copy(0, latent_at.flatten(), latents.flatten(0, 1))
        hidden = hidden_states(self.language, given[None], position_ids, row_ends)
        numbers = Numbers(number_at, number_row, number_value)
        names = self.head.amount_scale.shape[0]
        current = z.new_zeros(len(z), names)
        if self.dimensions_of is not None:
            current = self.dimensions_of(z)
        told: Told = self.head(hidden, row_ends, last_at, z, current, numbers, amounts)
        return told
