"""Amounts are chosen among what the numbers of a sentence may mean (decision 0015)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headway.models.amounts import BY_NUMBER, EXACT, REGRESSED, WITHOUT, Candidates, candidates

NAMES = 3


def meant(
    values: list[float],
    row: list[int],
    current: list[list[float]],
    by_row: Tensor | None = None,
    by_number: Tensor | None = None,
) -> Candidates:
    """Candidates of dimensions whose usual change is 10 mm; all equally likely unless said."""
    n, m = len(current), len(values)
    return candidates(
        torch.tensor(values),
        torch.tensor(row, dtype=torch.long),
        torch.tensor(current),
        torch.full((n, NAMES), 7.0),
        torch.full((NAMES,), 10.0),
        torch.zeros(n, 2 * NAMES + WITHOUT) if by_row is None else by_row,
        torch.zeros(m, NAMES + BY_NUMBER) if by_number is None else by_number,
    )


@pytest.mark.parametrize(
    ("mm", "said"),
    [(20, "20 mm"), (-20, "20 mm less"), (200, "20 cm"), (508, "20 inches"), (-80, "to 20 mm"),
     (100, "to 20 cm"), (408, "to 20 inches"), (-20, "20 percent less"), (10, "more"),
     (-25, "a lot less"), (5, "a bit more"), (70, "what only a regression says")],
)  # fmt: skip
def test_what_a_sentence_with_20_may_mean_for_100_mm_is_there_and_exact(mm: int, said: str) -> None:
    found = meant([20.0], [0], [[100.0] * NAMES])
    every = torch.cat([found.of_row[0, 0], found.of_number[0, 0]]) * 10
    assert (every - mm).abs().min() < 1e-4, said


@given(st.lists(st.integers(0, 3), max_size=6), st.randoms(use_true_random=False))
def test_each_row_is_judged_by_its_own_numbers(rows: list[int], rng: object) -> None:
    """Rows together say what each says alone: surprise and choice."""
    torch.manual_seed(len(rows))
    values, by_row = torch.randn(len(rows)) * 20, torch.randn(4, 2 * NAMES + WITHOUT)
    by_number, current = torch.randn(len(rows), NAMES + BY_NUMBER), torch.rand(4, NAMES) * 90
    amounts = torch.randn(4, NAMES)
    together = meant(values.tolist(), rows, current.tolist(), by_row, by_number)
    for row in range(4):
        mine = [n for n, of in enumerate(rows) if of == row]
        alone = meant(
            values[mine].tolist(), [0] * len(mine), current[row : row + 1].tolist(),
            by_row[row : row + 1], by_number[mine],
        )  # fmt: skip
        torch.testing.assert_close(
            together.surprise(amounts)[row : row + 1], alone.surprise(amounts[row : row + 1])
        )
        torch.testing.assert_close(together.likeliest()[row : row + 1], alone.likeliest())


def test_a_choice_that_is_sure_and_right_is_no_surprise_and_is_the_answer() -> None:
    by_number = torch.zeros(2, NAMES + BY_NUMBER)
    by_number[0, 0] = by_number[1, 1] = 50.0  # the first number is about the first dimension
    by_number[0, NAMES], by_number[1, NAMES + 3] = 50.0, 50.0  # more; less
    found = meant([20.0, 4.0], [0, 0], [[100.0] * NAMES], by_number=by_number)
    assert (found.likeliest()[0, :2] * 10).tolist() == pytest.approx([20.0, -4.0])
    surprise = found.surprise(torch.tensor([[2.0, -0.4, 0.0]]))[0]
    assert surprise[:2].tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    wrong = found.surprise(torch.tensor([[-2.0, 0.4, 0.0]]))[0]
    assert (wrong[:2] > 1.0).all()


def test_a_regressed_amount_is_never_as_good_as_an_exact_one() -> None:
    """Else it would be chosen for everything: it may be off by more."""
    by_row = torch.zeros(1, 2 * NAMES + WITHOUT)
    by_row[:, NAMES : 2 * NAMES] = 50.0
    surprise = meant([], [], [[100.0] * NAMES], by_row=by_row).surprise(torch.full((1, NAMES), 7.0))
    torch.testing.assert_close(surprise, torch.full((1, NAMES), REGRESSED / EXACT).log())


def test_what_is_learned_is_the_choice_that_the_label_agrees_with() -> None:
    """Nobody says which candidate is right: the amounts of two sentences do."""
    by_number = torch.zeros(1, NAMES + BY_NUMBER, requires_grad=True)
    for mm in (20.0, 3.0):
        found = meant([mm], [0], [[100.0] * NAMES], by_number=by_number)
        found.surprise(torch.full((1, NAMES), mm / 10)).sum().backward()
    assert by_number.grad is not None
    assert by_number.grad[0, NAMES:].argmin() == 0 and (by_number.grad[0, :NAMES] < 0).all()
