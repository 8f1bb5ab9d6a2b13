"""What a reader who neither computes nor understands can tell about generated errors: little.

Each figure is the AUC of a logistic regression on lengths, digits, signs and a few words, trained
on one half of the questions and measured on the other, both ways. On 6,359 pairs of GSM8K (all of
train.jsonl): an edited step against the author's own at the same place, arithmetic 0.576, operand
0.568, carry 0.530; against all right steps at its position 0.61, 0.58, 0.59, and 0.69 for dropped
and swapped, whose texts are the author's own: there the place gives away, not the text.
"""

import re
from collections import Counter

import numpy as np
import pytest

from headway.data.step_labels import DEFAULT_KINDS
from headway.data.step_labels.arithmetic import split_numbers
from worked_solutions import made, twins

WORDS = ("so", "then", "total", "altogether", "therefore", "thus", "left", "each", "in", "this")


def surface(step):
    """What a reader sees who neither computes nor understands [features]."""
    _, numbers = split_numbers(step)
    raws = [number.raw for number in numbers]
    logs = [float(np.log1p(float(number.value))) for number in numbers] or [0.0]
    last = raws[-1] if raws else "0"
    end = last.replace(".", "").rstrip("0")[-1:] or "0"
    return [
        len(step), len(step.split()), len(raws), sum(map(len, raws)), len(set(raws)) - len(raws),
        sum("." in raw for raw in raws), sum("," in raw for raw in raws),
        sum("." in raw and raw.endswith("0") for raw in raws), "=" in step, "$" in step,
        "%" in step, *(step.count(sign) for sign in "+-*/x"),
        step.endswith("."), step[:1].isupper(),
        len(last), logs[-1], max(logs), min(logs), logs[-1] < 2.4, last.endswith("0"),
        last.endswith("00"), sum(raw[-1] in "13579" for raw in raws),
        *(end == digit for digit in "123456789"),
        *(word in re.findall("[a-z]+", step.lower()) for word in WORDS),
    ]  # fmt: skip


def auc(scores, wrong):
    """Area under the ROC curve, ties counted half."""
    _, inverse, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[inverse]
    positives, negatives = wrong.sum(), (1 - wrong).sum()
    return (ranks[wrong == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives)


def held_out_auc(features, wrong, fold, strata=None):
    """Of a logistic regression, trained on one half of the questions, on the other; both ways."""
    x = np.array(features, float)
    x = np.hstack([(x - x.mean(0)) / (x.std(0) + 1e-9), np.ones((len(x), 1))])
    wrong = np.array(wrong, float)
    found = []
    for side in (0, 1):
        train, test = fold == side, fold != side
        share = wrong[train].mean()
        weight = np.where(wrong[train] == 1, 0.5 / share, 0.5 / (1 - share))
        theta = np.zeros(x.shape[1])
        for _ in range(20):
            p = 1 / (1 + np.exp(-np.clip(x[train] @ theta, -30, 30)))
            gradient = x[train].T @ (weight * (p - wrong[train])) + 3 * theta
            hessian = (x[train] * (weight * p * (1 - p))[:, None]).T @ x[train]
            theta -= np.linalg.solve(hessian + 3 * np.eye(len(theta)), gradient)
        found.append(_stratified(x[test] @ theta, wrong[test], strata, test))
    return float(np.mean(found))


def _stratified(scores, wrong, strata, rows):
    """The AUC within each stratum, averaged by its wrong steps."""
    strata = np.zeros(len(scores)) if strata is None else strata[rows]
    parts = []
    for stratum in np.unique(strata):
        inside = strata == stratum
        if 0 < wrong[inside].sum() < inside.sum():
            parts.append((auc(scores[inside], wrong[inside]), wrong[inside].sum()))
    return np.average([a for a, _ in parts], weights=[n for _, n in parts])


def against_itself(pairs, kind, disguise=str):
    """AUC of telling an edited step from the author's own at the same place."""
    rows = [
        (surface(text), label, int(right.group, 16) % 2)
        for right, wrong in pairs
        for at, found in enumerate(wrong.kinds)
        if found == kind
        for text, label in ((right.steps[at], 0), (disguise(wrong.steps[at]), 1))
    ]
    features, labels, fold = zip(*rows, strict=True)
    return held_out_auc(features, labels, np.array(fold)), len(rows) // 2


@pytest.fixture(scope="module")
def two_thousand():
    return twins(made(1200)[0])[:1000]


@pytest.mark.parametrize("kind", ["arithmetic", "operand", "carry"])
def test_an_edited_step_cannot_be_told_from_the_authors_by_its_surface(two_thousand, kind):
    found, rows = against_itself(two_thousand, kind)
    assert found < 0.63, f"N={rows} pairs"


def test_the_surface_reader_would_see_a_clumsy_edit(two_thousand):
    """Negative control: the same wrong numbers, written with a decimal that the author has not."""
    clumsy, _ = against_itself(
        two_thousand,
        "arithmetic",
        lambda step: re.sub(r"(= \$?[\d,]+)(?![\d.,]*\d)", r"\1.0", step),
    )
    assert clumsy > 0.8


@pytest.mark.parametrize("kind", DEFAULT_KINDS)
def test_a_first_error_is_hard_to_find_by_surface_among_steps_at_its_place(two_thousand, kind):
    """Which steps *can* take an error is not hidden (a first step cannot lack a step before it);
    so steps are compared at equal positions, those with an equation apart from those without.
    """
    rows = [
        (surface(step), found == kind, int(chain.group, 16) % 2, 2 * min(at, 8) + ("=" in step))
        for pair in two_thousand
        for chain in pair
        for at, (step, found) in enumerate(zip(chain.steps, chain.kinds, strict=True))
        if found in (None, kind)
    ]
    features, wrong, fold, strata = zip(*rows, strict=True)
    found = held_out_auc(features, wrong, np.array(fold), np.array(strata))
    assert found < (0.68 if kind in ("dropped", "swapped") else 0.63), f"N={sum(wrong)}"


def test_kinds_are_mixed_and_wrong_chains_are_no_longer_than_right_ones(two_thousand):
    kinds = Counter(next(k for k in wrong.kinds if k) for _, wrong in two_thousand)
    assert set(kinds) == set(DEFAULT_KINDS) and min(kinds.values()) > 100
    value_kinds = [p for p in two_thousand if "dropped" not in p[1].kinds]
    assert all(len(right.steps) == len(wrong.steps) for right, wrong in value_kinds)
