"""Amounts are chosen among what the numbers of a sentence may mean (decision 0015)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headway.models.amounts import (
    BY_NUMBER,
    EXACT,
    REGRESSED,
    WITHOUT,
    Candidates,
    Meant,
    candidates,
)

NAMES = 3


def meant(values: Tensor, row: list[int], current: Tensor, **logits: Tensor) -> Candidates:
    """Candidates of dimensions whose usual change is 10 mm; all equally likely unless said."""
    n, m = len(current), len(values)
    shapes = {
        "no_number": (n, NAMES), "without": (n, NAMES, WITHOUT), "not_listed": (n, NAMES),
        "about": (m, NAMES), "done": (m, BY_NUMBER),
    }  # fmt: skip
    return candidates(
        values,
        torch.tensor(row, dtype=torch.long),
        current,
        torch.full((n, NAMES), 7.0),
        torch.full((NAMES,), 10.0),
        Meant(**{name: logits.get(name, torch.zeros(shape)) for name, shape in shapes.items()}),
    )


HUNDRED, NONE = torch.full((1, NAMES), 100.0), torch.zeros(0)


@pytest.mark.parametrize(
    ("mm", "said"),
    [(20, "20 mm"), (-20, "20 mm less"), (200, "20 cm"), (508, "20 inches"), (-80, "to 20 mm"),
     (100, "to 20 cm"), (408, "to 20 inches"), (-20, "20 percent less"), (10, "more"),
     (-25, "a lot less"), (5, "a bit more"), (70, "what only a regression says")],
)  # fmt: skip
def test_what_a_sentence_with_20_may_mean_for_100_mm_is_there_and_exact(mm: int, said: str) -> None:
    found = meant(torch.tensor([20.0]), [0], HUNDRED)
    every = torch.cat([found.of_row[0, 0], found.of_number[0, 0]]) * 10
    assert (every - mm).abs().min() < 1e-4, said


@given(st.lists(st.integers(0, 3), max_size=6), st.randoms(use_true_random=False))
def test_each_row_is_judged_by_its_own_numbers(rows: list[int], rng: object) -> None:
    """Rows together say what each says alone: surprise and choice."""
    torch.manual_seed(len(rows))
    values, current, amounts = (
        torch.randn(len(rows)) * 20,
        torch.rand(4, NAMES) * 90,
        torch.randn(4, NAMES),
    )
    of_rows = {"no_number": torch.randn(4, NAMES), "without": torch.randn(4, NAMES, WITHOUT)}
    of_numbers = {"about": torch.randn(len(rows), NAMES), "done": torch.randn(len(rows), BY_NUMBER)}
    together = meant(values, rows, current, **of_rows, **of_numbers)
    for row in range(4):
        mine = [n for n, of in enumerate(rows) if of == row]
        its = {name: logits[row : row + 1] for name, logits in of_rows.items()}
        its |= {name: logits[mine] for name, logits in of_numbers.items()}
        alone = meant(values[mine], [0] * len(mine), current[row : row + 1], **its)
        torch.testing.assert_close(
            together.surprise(amounts)[row : row + 1], alone.surprise(amounts[row : row + 1])
        )
        torch.testing.assert_close(together.likeliest()[row : row + 1], alone.likeliest())


def test_a_choice_that_is_sure_and_right_is_no_surprise_and_is_the_answer() -> None:
    about, done = torch.zeros(2, NAMES), torch.zeros(2, BY_NUMBER)
    about[0, 0] = about[1, 1] = 50.0  # the first number is about the first dimension
    done[0, 0] = done[1, 3] = 50.0  # more; less
    found = meant(torch.tensor([20.0, 4.0]), [0, 0], HUNDRED, about=about, done=done)
    assert (found.likeliest()[0, :2] * 10).tolist() == pytest.approx([20.0, -4.0])
    surprise = found.surprise(torch.tensor([[2.0, -0.4, 0.0]]))[0]
    assert surprise[:2].tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    wrong = found.surprise(torch.tensor([[-2.0, 0.4, 0.0]]))[0]
    assert (wrong[:2] > 1.0).all()


def test_a_regressed_amount_is_never_as_good_as_an_exact_one() -> None:
    """Else it would be chosen for everything: it may be off by more."""
    sure = torch.full((1, NAMES), 50.0)
    surprise = meant(NONE, [], HUNDRED, not_listed=sure).surprise(torch.full((1, NAMES), 0.7))
    assert (surprise > math.log(REGRESSED / EXACT)).all()
    best = meant(NONE, [], HUNDRED, not_listed=sure).surprise(torch.full((1, NAMES), 7.0))
    torch.testing.assert_close(best, torch.full((1, NAMES), REGRESSED / EXACT).log())


def test_what_is_learned_is_the_choice_that_the_label_agrees_with() -> None:
    """Nobody says which candidate is right: the amounts of two sentences do."""
    about = torch.zeros(1, NAMES, requires_grad=True)
    done = torch.zeros(1, BY_NUMBER, requires_grad=True)
    for mm in (20.0, 3.0):
        found = meant(torch.tensor([mm]), [0], HUNDRED, about=about, done=done)
        found.surprise(torch.full((1, NAMES), mm / 10)).sum().backward()
    assert about.grad is not None and done.grad is not None
    assert done.grad.argmin() == 0 and (about.grad < 0).all()
