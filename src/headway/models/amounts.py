"""By how much each dimension changes: chosen among what can be done with the numbers of a sentence.

"20 mm longer", "to 8 mm", "by 2 cm", "10 percent more", "a bit": each is an exact sum over a number
of the sentence and the dimension's present length. A language model is good at telling which is
meant, and slow to learn the sum (docs/decisions/0015-an-amount-is-chosen.md). So the candidates are
computed, and the model gives each its probability. One candidate more is regressed, for what none
of the others say.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

UNITS_MM = (1.0, 10.0, 25.4)
"""What a number may be given in: mm, cm, inches."""
PERCENT = (5.0, 10.0, 25.0)
"""What no number at all may mean: a bit, something, a lot; each to more or to less."""
BY_NUMBER, WITHOUT = 3 * len(UNITS_MM) + 2, 2 * len(PERCENT)
"""How many candidates a number has for each dimension, and a sentence without any."""
EXACT, REGRESSED = 0.05, 0.5
"""How far off, over a dimension's usual change, a candidate may be that is computed, or regressed:
widths of Laplace distributions."""


class Candidates(NamedTuple):
    """Amounts that a sentence may mean, over ``amount_scale``, and how likely each is."""

    of_row: Tensor
    """[n, names, WITHOUT + 1]: without a number; the last is regressed."""
    of_row_logits: Tensor
    """[n, names, WITHOUT + 1]"""
    of_number: Tensor
    """[m, names, BY_NUMBER]"""
    of_number_logits: Tensor
    """[m, names, BY_NUMBER]"""
    row: Tensor
    """[m]: whose number it is."""

    def surprise(self, amounts: Tensor) -> Tensor:
        """[n, names]: -log of how likely the amounts [n, names] are, 0 where one candidate is sure
        and exact: never less."""
        total = self._log_sum(self.of_row_logits, self.of_number_logits)
        width = amounts.new_full((WITHOUT + 1,), EXACT)
        width[-1] = REGRESSED
        off = (self.of_row - amounts[:, :, None]).abs() / width - (EXACT / width).log()
        number_off = (self.of_number - amounts[self.row][:, :, None]).abs() / EXACT
        right = self._log_sum(self.of_row_logits - off, self.of_number_logits - number_off)
        return total - right

    @torch.no_grad()
    def likeliest(self) -> Tensor:
        """[n, names]: the candidate with the highest probability; of equal ones, their mean."""
        top = self._top(self.of_row_logits, self.of_number_logits)
        mine = (self.of_row_logits == top[:, :, None]).to(top.dtype)
        others = (self.of_number_logits == top[self.row][:, :, None]).to(top.dtype)
        amounts = (mine * self.of_row).sum(-1)
        amounts = amounts.index_add(0, self.row, (others * self.of_number).sum(-1))
        return amounts / mine.sum(-1).index_add(0, self.row, others.sum(-1))

    def _top(self, of_row: Tensor, of_number: Tensor) -> Tensor:
        at = self.row[:, None].expand(-1, of_row.shape[1])
        return of_row.amax(-1).scatter_reduce(0, at, of_number.amax(-1), "amax")

    def _log_sum(self, of_row: Tensor, of_number: Tensor) -> Tensor:
        top = self._top(of_row, of_number).detach()
        total = (of_row - top[:, :, None]).exp().sum(-1)
        numbers = (of_number - top[self.row][:, :, None]).exp().sum(-1)
        return top + total.index_add(0, self.row, numbers).log()


class Meant(NamedTuple):
    """Logits of what a sentence means, before its numbers are known."""

    no_number: Tensor
    """[n, names]: by none of the numbers."""
    without: Tensor
    """[n, names, WITHOUT]: by how much then."""
    not_listed: Tensor
    """[n, names]: by what is regressed."""
    about: Tensor
    """[m, names]: by this number."""
    done: Tensor
    """[m, BY_NUMBER]: what is done with it."""


def candidates(
    values: Tensor, row: Tensor, current: Tensor, regressed: Tensor, scale: Tensor, meant: Meant
) -> Candidates:
    """All that the numbers ``values`` [m] of rows ``row`` [m] may mean for dimensions that now are
    ``current`` [n, names] in mm (0: not known; then "to 8 mm" and percentages mean nothing).

    ``scale`` [names] in mm, ``regressed`` [n, names] over it.
    """
    names = current.shape[1]
    value, now = values[:, None, None], current[row][:, :, None]
    in_mm = value * value.new_tensor(UNITS_MM)
    change = torch.cat([in_mm, -in_mm], -1).expand(-1, names, -1)
    percent = value / 100 * now * value.new_tensor((1.0, -1.0))
    of_number = torch.cat([change, in_mm - now, percent], -1) / scale[:, None]
    share = current.new_tensor(PERCENT) / 100
    without = current[:, :, None] * torch.cat([share, -share]) / scale[:, None]
    without_logits = meant.no_number[:, :, None] + meant.without
    return Candidates(
        torch.cat([without, regressed[:, :, None]], -1),
        torch.cat([without_logits, meant.not_listed[:, :, None] - 1.0], -1),
        of_number,
        meant.about[:, :, None] + meant.done[:, None],
        row,
    )
