from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headway.errors import DataError, NonFiniteStep
from headway.recipes.score_metrics import (
    COUNTS,
    MEASURES,
    Scored,
    measure,
    reliability,
    undefined,
)


def scored_of(
    rows: list[tuple[int, int, int, float, float]], sources: tuple[str, ...] = ("a",)
) -> Scored:
    """(chain, step, source, predicted, target) a row."""
    chain, step, source, predicted, target = (np.array(c) for c in zip(*rows, strict=True))
    return Scored(
        chain=chain.astype(np.int64),
        step=step.astype(np.int64),
        source=source.astype(np.int64),
        predicted=predicted.astype(float),
        target=target.astype(float),
        sources=sources,
    )


def values(predicted: list[float], target: list[float]) -> Scored:
    """Chains of one step each."""
    return scored_of([(i, 0, 0, p, t) for i, (p, t) in enumerate(zip(predicted, target))])  # noqa: B905


# Multiples of 1/64: sums and bin edges are exact, and ties are frequent.
scores = st.integers(0, 64).map(lambda n: n / 64)


@st.composite
def results(draw: st.DrawFn, sources: int = 2) -> Scored:
    rows = []
    for chain in range(draw(st.integers(1, 6))):
        source = draw(st.integers(0, sources - 1))
        for step in range(draw(st.integers(1, 5))):
            rows.append((chain, step, source, draw(scores), draw(scores)))
    return scored_of(rows, tuple("abc"[:sources]))


def by_definition(scored: Scored) -> dict[str, float]:
    """Every metric in plain Python, one pair at a time; what is not defined is absent."""
    pairs = list(zip(scored.predicted.tolist(), scored.target.tolist(), strict=True))
    n = len(pairs)
    mean_p, mean_t = (sum(v) / n for v in zip(*pairs, strict=True))
    found: dict[str, float] = {"n": n}
    found["mse"] = sum((p - t) ** 2 for p, t in pairs) / n
    found["rmse"] = math.sqrt(found["mse"])
    found["mae"] = sum(abs(p - t) for p, t in pairs) / n
    spread_t = sum((t - mean_t) ** 2 for _, t in pairs)
    spread_p = sum((p - mean_p) ** 2 for p, _ in pairs)
    if len({t for _, t in pairs}) > 1:
        found["r2"] = 1 - sum((p - t) ** 2 for p, t in pairs) / spread_t
        if len({p for p, _ in pairs}) > 1:
            together = sum((p - mean_p) * (t - mean_t) for p, t in pairs)
            found["pearson"] = together / math.sqrt(spread_p * spread_t)
    found["ece"] = 0.0
    for b in range(10):
        inside = [(p, t) for p, t in pairs if b / 10 <= p < (b + 1) / 10 or (b == 9 and p == 1)]
        if inside:
            means = (sum(v) / len(inside) for v in zip(*inside, strict=True))
            found["ece"] += len(inside) / n * abs(next(means) - next(means))
    for name, chosen in {
        "low": [abs(p - t) for p, t in pairs if t <= 0.25],
        "medium": [abs(p - t) for p, t in pairs if 0.25 < t < 0.75],
        "high": [abs(p - t) for p, t in pairs if t >= 0.75],
    }.items():
        found[f"n_{name}"] = len(chosen)
        if chosen:
            found[f"mae_{name}"] = sum(chosen) / len(chosen)
    errors = [p for p, t in pairs if t < 0.5]
    others = [p for p, t in pairs if t >= 0.5]
    found["n_errors"] = len(errors)
    if errors and others:
        wins = [(e < o) + (e == o) / 2 for e, o in itertools.product(errors, others)]
        found["error_auc"] = sum(wins) / len(wins)
    return found | first_errors_by_definition(scored)


def first_errors_by_definition(scored: Scored) -> dict[str, float]:
    right: dict[bool, list[bool]] = {True: [], False: []}
    for chain in sorted(set(scored.chain.tolist())):
        mine = sorted(np.flatnonzero(scored.chain == chain), key=lambda i: scored.step[i])
        true = [int(scored.step[i]) for i in mine if scored.target[i] < 0.5][:1]
        flagged = [int(scored.step[i]) for i in mine if scored.predicted[i] < 0.5][:1]
        right[bool(true)].append(true == flagged)
    both = right[True] + right[False]
    name = "first_error_accuracy"
    found = {name: sum(both) / len(both), "n_chains": len(both)}
    for has, word in ((True, "with_error"), (False, "without_error")):
        found[f"n_chains_{word}"] = len(right[has])
        if right[has]:
            found[f"{name}_{word}"] = sum(right[has]) / len(right[has])
    return found


@given(results())
def test_every_metric_is_its_definition_overall_and_for_each_source(scored: Scored) -> None:
    metrics, _ = measure(scored)
    expected = by_definition(scored)
    for index, name in enumerate(scored.sources):
        mine = scored.where(scored.source == index)
        none = {count: 0.0 for count in COUNTS if count != "n_chains_partial"}
        found = by_definition(mine) if len(mine.target) else none
        expected |= {f"{name}/{key}": value for key, value in found.items()}
    assert metrics == pytest.approx(expected, abs=1e-12)


@given(results())
def test_what_is_not_defined_is_left_out_and_named_and_no_number_is_nan(scored: Scored) -> None:
    metrics, baselines = measure(scored)
    assert all(math.isfinite(value) for value in [*metrics.values(), *baselines.values()])
    absent = undefined(scored, metrics)
    assert not set(absent) & set(metrics)
    possible = [*MEASURES, *(f"{s}/{m}" for s in scored.sources for m in MEASURES)]
    assert sorted([*absent, *(m for m in metrics if m.split("/")[-1] not in COUNTS)]) == sorted(
        possible
    )


@given(results(), st.randoms(use_true_random=False))
def test_the_order_of_the_values_does_not_matter(scored: Scored, random: Any) -> None:
    shuffled = list(range(len(scored.target)))
    random.shuffle(shuffled)
    for before, after in zip(
        measure(scored), measure(scored.where(np.array(shuffled))), strict=True
    ):
        assert before == pytest.approx(after, abs=1e-12)


@given(results(), results())
def test_sources_measured_together_are_each_what_they_are_alone(one: Scored, two: Scored) -> None:
    parts = []
    for index, part in enumerate((one, two)):
        columns = (part.chain + 100 * index, part.step, part.source * 0 + index)
        parts.append(np.stack([*columns, part.predicted, part.target]))
    rows = np.concatenate(parts, axis=1).T.tolist()
    metrics, baselines = measure(scored_of(rows, ("one", "two")))
    for name, part in (("one", one), ("two", two)):
        alone, baselines_alone = measure(scored_of(_as_one_source(part)))
        assert {f"{name}/{k}": v for k, v in alone.items()} == pytest.approx(
            {k: v for k, v in metrics.items() if k.startswith(f"{name}/")}
        )
        assert {f"{name}/{k}": v for k, v in baselines_alone.items()} == pytest.approx(
            {k: v for k, v in baselines.items() if k.startswith(f"{name}/")}
        )


def _as_one_source(part: Scored) -> Any:
    return np.stack(
        [part.chain, part.step, part.source * 0, part.predicted, part.target]
    ).T.tolist()


@given(results(sources=1))
def test_a_perfect_prediction_is_perfect_in_every_metric(scored: Scored) -> None:
    metrics, _ = measure(Scored(**_fields(scored, scored.target)))
    best = {"r2": 1, "pearson": 1, "error_auc": 1}
    for name, value in metrics.items():
        if name in MEASURES:
            ideal = 1 if name in best or name.startswith("first_error") else 0
            assert value == pytest.approx(ideal, abs=1e-12), name


def _fields(scored: Scored, predicted: Any) -> dict[str, Any]:
    names = ("chain", "step", "source", "target", "sources")
    return {"predicted": predicted, **{name: getattr(scored, name) for name in names}}


@given(results(sources=1))
def test_the_constant_mean_has_r2_zero_and_an_auc_of_one_half(scored: Scored) -> None:
    flat = Scored(**_fields(scored, np.full(len(scored.target), scored.target.mean())))
    metrics, baselines = measure(flat)
    assert metrics.get("r2", 0.0) == 0.0 and metrics.get("error_auc", 0.5) == 0.5
    assert "pearson" not in metrics
    for name, value in baselines.items():
        metric, _, kind = name.partition("/")
        if kind == "constant mean":
            assert metrics[metric] == pytest.approx(value, abs=1e-12)
    assert baselines["ece/constant mean"] == 0.0, "a rounding error is no calibration error"


@given(results(sources=1), scores)
def test_no_constant_beats_the_held_out_mean_and_the_training_mean_is_honestly_worse(
    scored: Scored, train_mean: float
) -> None:
    _, by_own = measure(scored)
    _, by_train = measure(scored, train_mean=train_mean)
    assert by_train["mse/constant mean"] >= by_own["mse/constant mean"] - 1e-12
    assert by_train.get("r2/constant mean", 0.0) <= 1e-12
    assert by_train["ece/constant mean"] == pytest.approx(abs(train_mean - scored.target.mean()))


@given(results(sources=1), st.sampled_from([0.5, 2.0, 64.0]), st.integers(-4, 4))
def test_another_target_range_scales_errors_and_nothing_else(
    scored: Scored, by: float, shift: int
) -> None:
    moved = _fields(scored, scored.predicted * by + shift)
    moved["target"] = scored.target * by + shift
    metrics, _ = measure(Scored(**moved), low=shift, high=by + shift)
    for name, value in measure(scored)[0].items():
        power = {"mse": 2, "r2": 0}.get(name, name in ("rmse", "ece") or name.startswith("mae"))
        assert metrics[name] == pytest.approx(value * by**power, rel=1e-9, abs=1e-9), name


@settings(max_examples=30)
@given(st.lists(scores, min_size=1, max_size=40))
def test_a_calibrated_prediction_has_no_calibration_error_however_blunt_it_is(
    targets: list[float],
) -> None:
    """Each value is predicted as the mean of those that are predicted alike."""
    groups = {b: [t for t in targets if int(4 * t) == b] for b in range(5)}
    predicted = [sum(groups[int(4 * t)]) / len(groups[int(4 * t)]) for t in targets]
    assert measure(values(predicted, targets))[0]["ece"] == pytest.approx(0, abs=1e-12)


@given(results(sources=1))
def test_the_reliability_bins_hold_every_value_once_and_add_up_to_the_ece(scored: Scored) -> None:
    bins = reliability(scored)
    n = sum(b["n"] for b in bins)
    assert n == len(scored.target) and len(bins) == 10
    assert (bins[0]["low"], bins[-1]["high"]) == (0.0, 1.0)
    filled = [b for b in bins if b["n"]]
    for b in bins:
        assert (b["mean_predicted"] is None) == (b["mean_target"] is None) == (b["n"] == 0)
    for b in filled:
        assert b["low"] - 1e-12 <= b["mean_predicted"] <= b["high"] + 1e-12
    gap = sum(b["n"] / n * abs(b["mean_predicted"] - b["mean_target"]) for b in filled)
    assert measure(scored)[0]["ece"] == pytest.approx(gap)


def test_the_last_bin_is_closed_and_what_lies_outside_counts_with_the_outermost() -> None:
    bins = reliability(values([1.0, 0.9, 1.2, -0.1, 0.1], [1, 1, 1, 0, 0]))
    assert [b["n"] for b in bins] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 3]


def test_the_seeds_published_result_is_what_its_labels_and_predictions_give() -> None:
    """R² −4.374, ECE .390, MAE .413, N = 163 (seed-systems 3(e)): scores near one half on a test
    set that has lost its errors."""
    wobble = [0.5 + 0.134 * (-1) ** i for i in range(24)]  # the halves' MAE of .134
    none = values([0.536] * 139 + wobble, [1.0] * 139 + [0.5] * 24)
    one = values([0.536] * 138 + wobble + [0.441], [1.0] * 138 + [0.5] * 24 + [0.0])
    assert measure(none)[0]["r2"] < -4.374 < measure(one)[0]["r2"] < -4.0
    metrics, baselines = measure(one)
    assert (metrics["n"], metrics["n_errors"]) == (163, 1)
    assert metrics["ece"] == pytest.approx(0.390, abs=0.03)
    assert metrics["mae"] == pytest.approx(0.413, abs=0.005)
    # What the number means: a constant would have been better, and one error is no test of AUC.
    assert baselines["mae/constant mean"] < metrics["mae"] / 2
    assert baselines["r2/constant mean"] == 0.0


def test_the_mean_of_batch_means_would_be_another_number() -> None:
    """Negative control for "no averaging of batch means"."""
    found = values([0.0, 0.0, 1.0, 0.5], [0.0, 0.2, 1.0, 1.0])
    batches = [found.where(np.array(rows)) for rows in ([0, 1, 2], [3])]
    naive = np.mean([measure(batch)[0]["mae"] for batch in batches])
    assert measure(found)[0]["mae"] == pytest.approx(0.175) and naive == pytest.approx(0.2833, 1e-3)


def test_a_first_error_counts_only_at_its_place_and_a_good_chain_only_unflagged() -> None:
    found = scored_of([
        (0, 0, 0, 0.9, 1.0), (0, 1, 0, 0.4, 0.0), (0, 2, 0, 0.1, 0.0),  # found where it is
        (1, 1, 0, 0.3, 0.0), (1, 0, 0, 0.3, 1.0),  # flagged too early, rows out of order
        (2, 0, 0, 0.8, 1.0), (2, 1, 0, 0.5, 0.5),  # no error, none flagged
        (3, 0, 0, 0.9, 1.0), (3, 1, 0, 0.2, 1.0),  # no error, one flagged
        (4, 0, 0, 0.9, 0.0),  # missed
    ])  # fmt: skip
    metrics, baselines = measure(found)
    assert metrics["first_error_accuracy"] == 2 / 5
    assert metrics["first_error_accuracy_with_error"] == 1 / 3
    assert metrics["first_error_accuracy_without_error"] == 1 / 2
    assert (metrics["n_chains"], metrics["n_chains_with_error"]) == (5, 3)
    # Two chains have no error, two have it at step 1: the smaller place wins the tie.
    assert baselines["first_error_accuracy/majority answer"] == 2 / 5


def test_a_chain_that_is_measured_in_part_has_no_first_error_but_its_values_count() -> None:
    """Of chain 1 the first two steps are not there, of chain 2 the last: what is seen of them says
    nothing of where their first error is."""
    rows = [
        (0, 0, 0, 0.9, 1.0), (0, 1, 0, 0.1, 0.0),
        (1, 2, 0, 0.1, 0.0), (2, 0, 0, 0.9, 1.0), (2, 1, 0, 0.8, 1.0),
    ]  # fmt: skip
    scored = scored_of(rows)
    told = replace(scored, whole=scored.chain == 0)
    metrics, baselines = measure(told)
    assert metrics["n_chains"] == metrics["n_chains_with_error"] == 1
    assert (metrics["n_chains_without_error"], metrics["n_chains_partial"]) == (0, 2)
    assert (metrics["n"], metrics["n_errors"]) == (5, 2)
    assert metrics["first_error_accuracy"] == 1.0
    assert "first_error_accuracy_without_error" in undefined(told, metrics)
    assert baselines["first_error_accuracy/majority answer"] == 1.0
    untold, _ = measure(scored)
    assert untold["n_chains"] == 3 and "n_chains_partial" not in untold, "control"
    assert measure(replace(scored, whole=np.ones(5, bool))) == measure(scored)
    none, _ = measure(replace(scored, whole=np.zeros(5, bool)))
    assert (none["n_chains"], none["n_chains_partial"]) == (0, 3)
    assert not any(name.startswith("first_error") for name in none)
    assert none["mae"] == untold["mae"]


@given(results())
def test_partial_chains_change_first_errors_as_if_they_were_not_there(scored: Scored) -> None:
    odd = scored.chain % 2 == 1
    assume(odd.any() and not odd.all())
    told = measure(replace(scored, whole=~odd))[0]
    alone = measure(scored.where(~odd))[0]
    names = [name for name in alone if "first_error" in name or "n_chains" in name]
    assert {name: told[name] for name in names} == {name: alone[name] for name in names}
    whole = measure(scored)[0]
    assert all(told[name] == whole[name] for name in whole if "error_accuracy" not in name
               and "n_chains" not in name)  # fmt: skip


@pytest.mark.parametrize(
    ("predicted", "target", "absent"),
    [
        ([0.1, 0.2, 0.4], [0.1] * 3, {"r2", "pearson", "error_auc", "mae_medium", "mae_high",
                                      "first_error_accuracy_without_error"}),
        ([0.3] * 3, [0.1, 0.6, 0.9], {"pearson"}),
        ([0.3, 0.4], [0.8, 0.9], {"error_auc", "mae_low", "mae_medium",
                                  "first_error_accuracy_with_error"}),
    ],
)  # fmt: skip
def test_r2_of_equal_targets_and_the_like_are_absent_and_never_zero(
    predicted: list[float], target: list[float], absent: set[str]
) -> None:
    found = values(predicted, target)
    assert set(undefined(found, measure(found)[0])) == absent


def test_equal_targets_whose_mean_is_not_exactly_themselves_have_no_r2() -> None:
    targets = [0.1] * 3
    assert sum((t - np.mean(targets)) ** 2 for t in targets) != 0, "the trap is not there"
    assert "r2" not in measure(values([0.2, 0.3, 0.4], targets))[0]


def test_a_square_that_overflows_is_left_out_and_the_rest_is_measured() -> None:
    found = values([3e200, -1e200], [2e200, -2e200])
    metrics, baselines = measure(found, low=-4e200, high=4e200)
    assert {"mse", "rmse", "r2"} == set(undefined(found, metrics)) - {"mae_medium"} - {
        "first_error_accuracy_without_error"
    }
    assert metrics["mae"] == 1e200 and metrics["pearson"] == 1.0
    assert all(map(math.isfinite, baselines.values()))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_pearson_stays_within_one_at_any_magnitude(targets: list[float]) -> None:
    assume(len(set(targets)) > 1)
    metrics, _ = measure(values([t * 0.5 for t in targets], targets))
    assert -1 <= metrics.get("pearson", 0) <= 1


@pytest.mark.parametrize(
    ("rows", "low", "error", "says"),
    [
        ([], 0.0, DataError, "no labelled value"),
        ([(4, 2, 0, 0.5, math.nan)], 0.0, DataError, "chain 4, step 2: the target is nan"),
        ([(4, 2, 0, math.inf, 0.5)], 0.0, NonFiniteStep, "chain 4, step 2: the prediction is inf"),
        ([(4, 2, 0, 0.5, 1), (4, 2, 0, 0.6, 1)], 0.0, DataError, "step 2 is measured 2 times"),
        ([(0, 0, 0, 0.5, 1)], 1.0, DataError, "range"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_place(
    rows: list[Any], low: float, error: type[Exception], says: str
) -> None:
    found = scored_of(rows) if rows else scored_of([(0, 0, 0, 1, 1)]).where(np.array([], int))
    with pytest.raises(error, match=says):
        measure(found, low=low)
