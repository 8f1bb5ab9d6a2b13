"""A language model that reads a latent and an instruction, and says how the latent changes.

The latent goes through an MLP and stands as one token or more before the instruction. What the
model has understood is read at the instruction's last token and at its numbers, once they have
looked at the whole row in both directions: two layers of attention over the row's hidden states and
over one place for each dimension, which finds there whether it is to change, and by how much if so
(``models.amounts``). (A causal model has not read "taller" where it reads the 2 of "2 mm taller",
and a small one is slow to carry what it read to the last token.) The change of
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

from headway.models.amounts import BY_NUMBER, WITHOUT, Candidates, Meant, candidates
from headway.models.attention import hidden_states
from headway.models.backbone import backbone, base_model
from headway.models.graph_vae import Layer

SIZES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""A value is given as tanh(value / size) for each: exact near a size, and never large."""

LAYERS, HEADS = 2, 8
"""Of the attention over a row's hidden states."""


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
    head: int = Field(default=256, ge=8, multiple_of=8)
    """Width of the layers between what is read and what is said of it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """In these layers."""


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
        width = shape.head
        self.reading = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))
        self.places = nn.Parameter(torch.randn(names, width))
        self.part = nn.Linear(latent, width)
        self.looking = nn.ModuleList(Layer(width, HEADS, shape.dropout) for _ in range(LAYERS))
        self.looked = nn.LayerNorm(width)
        self.of_place = nn.Linear(width, 4 + WITHOUT)
        self.asking, self.asked = nn.Linear(width, width), nn.Linear(width, width)
        self.of_number = nn.Linear(width, BY_NUMBER)
        self.direction = nn.Linear(width, 1)
        for last in (self.of_place, self.of_number, self.direction):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.change = nn.Sequential(
            nn.Linear(latent + names, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, latent),
        )
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
            places, words = self._looked(words, row_ends, scaled)
            found = self.of_place(places)
            named, regressed, no_number, not_listed = found[..., :4].unbind(-1)
            if self.numbers is None:
                numbers = Numbers(*(tensor[:0] for tensor in numbers))
            there = words[numbers.at]
            about = torch.einsum("mw,mkw->mk", self.asking(there), self.asked(places)[numbers.row])
            meant = Meant(
                no_number, found[..., 4:], not_listed,
                about / there.shape[-1] ** 0.5, self.of_number(there),
            )  # fmt: skip
            choice = candidates(
                numbers.value.float(), numbers.row, current.float(), regressed, self.amount_scale,
                meant,
            )  # fmt: skip
            chosen = torch.where(named > 0, choice.likeliest(), 0.0) * self.amount_scale
            delta = self.changed(scaled, chosen)
            taught = delta if amounts is None else self.changed(scaled, amounts)
            return Told(delta, taught, named, choice, chosen, self.direction(words[last_at])[:, 0])

    def changed(self, scaled: Tensor, amounts: Tensor) -> Tensor:
        """What amounts [n, names] in mm do to latents [n, latent]; nothing, where they are 0."""
        over = amounts.float() / self.amount_scale
        change = self.change(torch.cat([scaled, over], -1))
        unchanged = self.change(torch.cat([scaled, torch.zeros_like(over)], -1))
        found: Tensor = (change - unchanged) * self.delta_scale
        return found

    def _looked(
        self, words: Tensor, row_ends: Sequence[int], scaled: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the dimensions' places [n, names, width] and all words [tokens, width] find."""
        lengths = [end - start for start, end in zip([0, *row_ends[:-1]], row_ends, strict=True)]
        names, together = len(self.places), nn.utils.rnn.pad_sequence
        padded = together(words.split(lengths), batch_first=True)
        places = self.places + self.part(scaled)[:, None]
        found = torch.cat([places, padded + _positions(padded[0])], 1)
        true = [words.new_ones(names + length, dtype=torch.bool) for length in lengths]
        there = together(true, batch_first=True)
        for layer in self.looking:
            found = layer(found, there, None)
        found = self.looked(found)
        own = [row[names : names + length] for row, length in zip(found, lengths, strict=True)]
        return found[:, :names], torch.cat(own)


def _positions(words: Tensor) -> Tensor:
    """Sines and cosines of each place in a row [tokens, width] (arXiv 1706.03762, section 3.5)."""
    places, width = words.shape
    rate = torch.arange(0, width, 2, device=words.device, dtype=words.dtype) * (-9.2 / width)
    angle = torch.arange(places, device=words.device, dtype=words.dtype)[:, None] * rate.exp()
    return torch.cat([angle.sin(), angle.cos()], -1)


def _as_words(inside: int, width: int, words: int, hidden: int) -> nn.Sequential:
    """[n, inside] -> [n, words, hidden], each as large as ``start_at`` says."""
    return nn.Sequential(
        nn.Linear(inside, width),
        nn.GELU(),
        nn.Linear(width, words * hidden),
        nn.Unflatten(-1, (words, hidden)),
        nn.LayerNorm(hidden),
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
