"""The order is a pure function of (seed, position): permutations, exact mixtures."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.data.order import Mixture, apportion, row_at, rows_at
from headway.errors import DataError

seeds = st.integers(min_value=-(2**63), max_value=2**63)


@given(seed=seeds, rows=st.integers(1, 3000), epoch=st.integers(0, 10**6))
@settings(deadline=None, max_examples=150)
def test_every_epoch_has_every_row_exactly_once(seed, rows, epoch):
    positions = epoch * rows + np.arange(rows)
    assert sorted(rows_at(seed, positions, rows).tolist()) == list(range(rows))


@given(seed=seeds, rows=st.integers(1, 3000), positions=st.lists(st.integers(0, 10**12)))
@settings(deadline=None, max_examples=50)
def test_a_row_does_not_depend_on_what_is_asked_beside_it(seed, rows, positions):
    together = rows_at(seed, np.array(positions, dtype=np.int64), rows).tolist()
    assert together == [row_at(seed, position, rows) for position in positions]


def test_a_billion_rows_do_not_repeat_in_a_long_stretch_and_stay_inside():
    rows = rows_at(5, 10**9 + np.arange(200_000), 10**9)
    assert len(np.unique(rows)) == 200_000
    assert rows.min() >= 0 and rows.max() < 10**9


def test_seeking_to_the_billionth_position_costs_no_more_than_to_the_first():
    """Work needs somewhere to happen: a listed permutation would take 8 GB, this takes 100 kB."""
    tracemalloc.start()
    row_at(0, 10**9, 10**9)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000


def test_epochs_seeds_and_streams_have_orders_of_their_own():
    first = rows_at(1, np.arange(500), 500)
    for other in (
        rows_at(1, 500 + np.arange(500), 500),
        rows_at(2, np.arange(500), 500),
        rows_at(1, np.arange(500), 500, stream=1),
    ):
        assert (first == other).sum() < 15


@pytest.mark.parametrize("rows", [2, 3, 4, 5])
def test_all_orders_of_a_few_rows_are_about_equally_likely(rows):
    draws = 24_00
    seen = Counter(tuple(rows_at(seed, np.arange(rows), rows).tolist()) for seed in range(draws))
    orders = int(np.prod(np.arange(1, rows + 1)))
    assert len(seen) == orders
    expected = draws / orders
    chi2 = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi2 < orders - 1 + 5 * np.sqrt(2 * orders)


def test_neighbours_are_uncorrelated():
    rows = rows_at(11, np.arange(20_000), 20_000)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(rows, np.arange(20_000))[0, 1]) < 0.03


def test_negative_positions_and_empty_data_are_refused():
    with pytest.raises(ValueError, match="start at 0"):
        rows_at(0, [-1], 10)
    with pytest.raises(DataError, match="at least one row"):
        rows_at(0, [0], 0)


@given(
    seed=seeds,
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    epoch=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_without_weights_an_epoch_has_each_row_of_each_source_once(seed, sizes, epoch):
    mixture = Mixture(sizes, None, seed)
    positions = epoch * mixture.rows_per_epoch + np.arange(mixture.rows_per_epoch)
    source, row = mixture.at(positions)
    expected = [(s, r) for s, size in enumerate(sizes) for r in range(size)]
    assert sorted(zip(source.tolist(), row.tolist(), strict=True)) == expected
    assert sorted(mixture.rows_at(positions).tolist()) == list(range(sum(sizes)))


weighted = st.lists(
    st.tuples(st.integers(1, 300), st.floats(0.05, 20, allow_nan=False)), min_size=1, max_size=5
)


@given(seed=seeds, sources=weighted, block=st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_every_block_of_a_thousand_has_exactly_the_configured_shares(seed, sources, block):
    sizes, weights = zip(*sources, strict=True)
    mixture = Mixture(sizes, weights, seed)
    source, _ = mixture.at(block * 1000 + np.arange(1000))
    counts = np.bincount(source, minlength=len(sizes))
    exact = 1000 * np.array(weights) / sum(weights)
    assert counts.sum() == 1000
    assert (np.abs(counts - exact) < 1).all()


@given(seed=seeds, sources=weighted)
@settings(deadline=None, max_examples=25)
def test_the_kth_draw_of_a_source_is_the_kth_row_of_its_own_order(seed, sources):
    sizes, weights = zip(*sources, strict=True)
    source, row = Mixture(sizes, weights, seed).at(np.arange(3000))
    for index, size in enumerate(sizes):
        mine = row[source == index]
        assert (mine == rows_at(seed, np.arange(len(mine)), size, stream=index + 1)).all()


def test_what_is_sampled_is_counted_not_configured():
    mixture = Mixture([10, 1000, 20], [7, 2, 1], seed=3)
    assert mixture.as_sampled(5000) == [3500, 1000, 500]
    assert sum(mixture.as_sampled(1234)) == 1234
    assert mixture.rows_per_epoch == 1030


def test_sizes_alone_would_sample_another_mix():
    """The negative control: ignoring the weights, the small source almost disappears."""
    assert Mixture([10, 1000, 20], None, seed=3).as_sampled(1030) == [10, 1000, 20]


def test_a_weight_that_would_never_be_drawn_is_refused():
    with pytest.raises(DataError, match="would never be drawn"):
        apportion([1.0, 1e-6], 1000)
    with pytest.raises(DataError, match="positive"):
        Mixture([5, 5], [1.0, 0.0], seed=0)
    with pytest.raises(DataError, match="one to each"):
        Mixture([5, 5], [1.0], seed=0)
    with pytest.raises(DataError, match="at least one row"):
        Mixture([5, 0], None, seed=0)
