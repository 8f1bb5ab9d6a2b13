"""Best-fit decreasing packing: every example once, never over capacity, little waste."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.data.packing import filled, pack
from headway.errors import DataError

problems = st.integers(1, 300).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=200), st.just(capacity))
)


@given(problems)
@settings(deadline=None, max_examples=200)
def test_every_example_is_in_exactly_one_row_and_no_row_is_over_capacity(problem):
    lengths, capacity = problem
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)


@given(problems)
@settings(deadline=None, max_examples=200)
def test_it_is_best_fit_decreasing_as_the_plain_quadratic_loop_does_it(problem):
    lengths, capacity = problem
    rows, free = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [row for row in range(len(rows)) if free[row] >= lengths[index]]
        if fits:
            row = min(fits, key=lambda row: free[row])
        else:
            row = len(rows)
            rows.append(0)
            free.append(capacity)
        rows[row] += 1
        free[row] -= lengths[index]
    assert len(pack(lengths, capacity)) == len(rows)


@given(problems)
@settings(deadline=None, max_examples=100)
def test_no_two_rows_could_have_been_one(problem):
    lengths, capacity = problem
    used = sorted(sum(lengths[index] for index in row) for row in pack(lengths, capacity))
    assert len(used) < 2 or used[0] + used[1] > capacity


def test_equal_input_gives_equal_rows_in_the_order_they_were_opened():
    lengths = [3, 9, 4, 6, 1, 7]
    assert pack(lengths, 10) == pack(list(lengths), 10) == [[1, 4], [5, 0], [3, 2]]


def test_many_rows_pack_tightly_and_quickly_enough_to_test():
    lengths = np.random.default_rng(0).integers(20, 900, 100_000)
    rows = pack(lengths, 1024)
    assert filled(lengths, rows, 1024) > 0.98
    assert len(rows) >= math.ceil(lengths.sum() / 1024)


def test_what_cannot_fit_is_refused_and_nothing_packs_to_nothing():
    with pytest.raises(DataError, match="example 1 has 11 tokens"):
        pack([3, 11], 10)
    with pytest.raises(DataError, match="example 0 has 0 tokens"):
        pack([0, 11], 10)
    assert pack([], 10) == []
    assert filled([], [], 10) == 0.0
