"""Retention is a pure function: whatever the numbers, the best and the newest stay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.checkpoint.retention import Retention, expendable

STEPS = st.lists(st.integers(0, 10_000), min_size=1, max_size=30, unique=True)
SCORES = st.dictionaries(
    st.integers(0, 10_000),
    st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 5)),
    max_size=40,
)
POLICIES = st.builds(
    Retention,
    keep_last=st.integers(0, 5),
    keep_best=st.integers(0, 5),
    keep_every_steps=st.one_of(st.none(), st.integers(1, 500)),
)


def finite(steps, scores):
    return [s for s in steps if scores.get(s) is not None and math.isfinite(scores[s])]


@given(STEPS, SCORES, POLICIES, st.sets(st.integers(0, 10_000), max_size=5))
def test_the_newest_the_best_and_the_pinned_are_never_expendable(steps, scores, policy, pinned):
    gone = expendable(steps, scores, policy, pinned)
    assert max(steps) not in gone
    if scored := finite(steps, scores):
        assert min(scored, key=lambda s: (scores[s], s)) not in gone
    assert not set(gone) & pinned
    assert gone == sorted(gone) and set(gone) <= set(steps)


@given(STEPS, SCORES, POLICIES)
def test_what_is_kept_is_exactly_what_the_policy_names(steps, scores, policy):
    kept = set(steps) - set(expendable(steps, scores, policy))
    last = set(sorted(steps)[-max(1, policy.keep_last) :])
    best = set(
        sorted(finite(steps, scores), key=lambda s: (scores[s], s))[: max(1, policy.keep_best)]
    )
    every = policy.keep_every_steps
    multiples = {s for s in steps if every and s % every == 0}
    assert kept == last | best | multiples


@given(STEPS, SCORES, POLICIES)
def test_deleting_what_is_expendable_leaves_nothing_more_to_delete(steps, scores, policy):
    kept = set(steps) - set(expendable(steps, scores, policy))
    assert expendable(kept, scores, policy) == []


@pytest.mark.fault(19)
def test_nan_and_none_are_never_the_best():
    scores = {1: math.nan, 2: None, 3: 2.0, 4: -math.inf, 5: 9.0}
    policy = Retention(keep_last=1, keep_best=1)
    assert expendable([1, 2, 3, 4, 5, 6], scores, policy) == [1, 2, 4, 5]


def test_of_equal_scores_the_earlier_stays():
    assert expendable([1, 2, 3], {1: 0.5, 2: 0.5}, Retention(keep_last=1, keep_best=1)) == [2]


def test_the_naive_rule_loses_the_best():
    """Negative control: keep-last alone, as in HF Trainer's save_total_limit, deletes step 1."""
    steps, scores = [1, 2, 3, 4], {1: 0.1, 2: 0.5, 3: 0.6, 4: 0.7}
    assert 1 in sorted(steps)[:-2]
    assert 1 not in expendable(steps, scores, Retention(keep_last=2, keep_best=0))


@pytest.mark.parametrize("steps", [[], [7]])
def test_nothing_or_one_checkpoint_is_left_alone(steps):
    assert expendable(steps, {}, Retention(keep_last=0, keep_best=0)) == []
