"""How good predicted scores are, each number beside what a constant prediction would get.

Every figure is computed from all labelled values at once: no mean of batch means anywhere. A figure
that is not defined on these values (R² of targets that are all equal, an AUC with one class) is
left out, never NaN, 0 or infinity; ``undefined`` names those. The middle of the range parts errors
from the rest: a step is one where its target, or its prediction, is below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.errors import DataError, NonFiniteStep

Values = NDArray[np.float64]
Figures = dict[str, float | None]

MEASURES = (
    "r2", "mae", "ece", "error_auc", "first_error_accuracy", "mse", "rmse", "pearson",
    "mae_low", "mae_medium", "mae_high",
    "first_error_accuracy_with_error", "first_error_accuracy_without_error",
)  # fmt: skip
"""The main figures first: that is the order in which they are shown."""
COUNTS = ("n", "n_chains", "n_errors", "n_low", "n_medium", "n_high", "n_chains_with_error",
          "n_chains_without_error", "n_chains_partial")  # fmt: skip
"""``n``: labelled values; ``n_errors``: those below the middle; ``n_X``: what ``…_X`` is over.
``n_chains_partial`` is there when it is not 0: chains of which a label is not among the values, so
that nobody knows their first error. They are in no other count of chains."""
CONSTANT, MAJORITY = "constant mean", "majority answer"
BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One labelled value each; all arrays [n]."""

    chain: NDArray[np.int64]
    """Which held-out chain."""
    step: NDArray[np.int64]
    """Place of the step in its chain."""
    source: NDArray[np.int64]
    """Index into ``sources``."""
    predicted: Values
    target: Values
    sources: tuple[str, ...]
    whole: NDArray[np.bool_] | None = None
    """Whether all labels of this value's chain are among the values. None: of all chains."""

    def where(self, chosen: NDArray[Any]) -> Scored:
        """The values that a mask [n] or indices choose."""
        names = ("chain", "step", "source", "predicted", "target")
        whole = None if self.whole is None else self.whole[chosen]
        return replace(self, whole=whole, **{name: getattr(self, name)[chosen] for name in names})

    def whole_chains(self) -> Scored:
        """The values of chains of which every label is here."""
        if self.whole is None:
            return self
        return self.where(~np.isin(self.chain, self.chain[~self.whole]))


def measure(
    scored: Scored, *, low: float = 0.0, high: float = 1.0, train_mean: float | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """(metrics, baselines): ``r2``, and ``SOURCE/r2`` for each of several sources.

    Baselines are named ``METRIC/constant mean``: the same metric of one constant, ``train_mean`` or
    else the held-out mean of the same values; ``first_error…/majority answer``: of the first-error
    place (or "none") that most of these chains have. Raises DataError where there is nothing to
    measure or a step is there twice, NonFiniteStep where a prediction is not a number.
    """
    _refuse(scored, low, high)
    metrics: dict[str, float] = {}
    baselines: dict[str, float] = {}
    for prefix, part in _parts(scored):
        metrics |= {prefix + name: value for name, value in _counted(part, low, high).items()}
        if len(part.target) == 0:
            continue
        constant = float(part.target.mean()) if train_mean is None else train_mean
        flat = replace(part, predicted=np.full(len(part.target), constant))
        metrics |= _defined(prefix, {**_values(part, low, high), **_first_errors(part, low, high)})
        # All values of a constant are in one bin: its ECE without the rounding of two sums.
        trivial = _values(flat, low, high) | {"ece": abs(constant - float(part.target.mean()))}
        baselines |= _defined(prefix, trivial, f"/{CONSTANT}")
        baselines |= _defined(prefix, _majority(part, low, high), f"/{MAJORITY}")
    order = [prefix + name for prefix, _ in _parts(scored) for name in (*MEASURES, *COUNTS)]
    return {name: metrics[name] for name in order if name in metrics}, baselines


def undefined(scored: Scored, metrics: dict[str, float]) -> list[str]:
    """Names that ``measure`` left out because they are not defined on these values."""
    names = (prefix + name for prefix, _ in _parts(scored) for name in MEASURES)
    return [name for name in names if name not in metrics]


def reliability(
    scored: Scored, low: float = 0.0, high: float = 1.0, bins: int = BINS
) -> list[dict[str, Any]]:
    """Equal-width bins of the predicted value, the last one closed; the means of an empty one None.

    Keys ``low``, ``high``, ``n``, ``mean_predicted``, ``mean_target``.
    """
    _refuse(scored, low, high)
    edges = np.linspace(low, high, bins + 1)
    counts, predicted, target = _binned(scored, edges)
    return [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "n": int(counts[b]),
            "mean_predicted": float(predicted[b] / counts[b]) if counts[b] else None,
            "mean_target": float(target[b] / counts[b]) if counts[b] else None,
        }
        for b in range(bins)
    ]


def _parts(scored: Scored) -> list[tuple[str, Scored]]:
    """All values without a prefix; where there are several sources, then each under its name."""
    parts = [("", scored)]
    if len(scored.sources) > 1:
        for index, name in enumerate(scored.sources):
            parts.append((f"{name}/", scored.where(scored.source == index)))
    return parts


def _defined(prefix: str, figures: Figures, suffix: str = "") -> dict[str, float]:
    return {
        f"{prefix}{name}{suffix}": float(value)
        for name, value in figures.items()
        if value is not None and math.isfinite(value)
    }


def _counted(scored: Scored, low: float, high: float) -> dict[str, float]:
    middle = (low + high) / 2
    known = scored.whole_chains()
    chains = len(np.unique(known.chain))
    with_error = len(np.unique(known.chain[known.target < middle]))
    partial = len(np.unique(scored.chain)) - chains
    buckets = _buckets(scored.target, low, high)
    return {
        "n": float(len(scored.target)),
        "n_chains": float(chains),
        "n_errors": float((scored.target < middle).sum()),
        **{f"n_{name}": float(chosen.sum()) for name, chosen in buckets.items()},
        "n_chains_with_error": float(with_error),
        "n_chains_without_error": float(chains - with_error),
        **({"n_chains_partial": float(partial)} if partial else {}),
    }


def _values(scored: Scored, low: float, high: float) -> Figures:
    """What is measured over single values, whatever chain they stand in."""
    predicted, target = scored.predicted, scored.target
    error = predicted - target
    with np.errstate(over="ignore"):  # what overflows is infinite, and left out as undefined
        mse = float(np.mean(error**2))
    counts, sums, targets = _binned(scored, np.linspace(low, high, BINS + 1))
    buckets = _buckets(target, low, high)
    return {
        "mse": mse,
        "mae": float(np.mean(np.abs(error))),
        "rmse": math.sqrt(mse),
        "r2": _r2(predicted, target),
        "pearson": _pearson(predicted, target),
        # Σ n_b/N · |mean predicted − mean target|: the counts cancel.
        "ece": float(np.sum(np.abs(sums - targets)) / counts.sum()),
        "error_auc": _auc(-predicted, target < (low + high) / 2),
        **{
            f"mae_{name}": float(np.mean(np.abs(error[chosen]))) if chosen.any() else None
            for name, chosen in buckets.items()
        },
    }


def _buckets(target: Values, low: float, high: float) -> dict[str, NDArray[np.bool_]]:
    """The first quarter of the range, the middle, the last quarter; the quarters are closed."""
    quarter = (high - low) / 4
    is_low, is_high = target <= low + quarter, target >= high - quarter
    return {"low": is_low, "medium": ~is_low & ~is_high, "high": is_high}


def _binned(scored: Scored, edges: Values) -> tuple[Values, Values, Values]:
    """Per bin of the predicted value: count, sum of predicted, sum of target. [bins] each.

    What lies outside of the edges belongs to the first or the last bin.
    """
    place = np.searchsorted(edges[1:-1], scored.predicted, side="right")
    bins = len(edges) - 1
    counts = np.bincount(place, minlength=bins).astype(np.float64)
    sums, targets = (np.bincount(place, v, bins) for v in (scored.predicted, scored.target))
    return counts, sums.astype(np.float64), targets.astype(np.float64)


def _r2(predicted: Values, target: Values) -> float | None:
    """1 − SS_res / SS_tot; None where all targets are equal."""
    with np.errstate(over="ignore"):
        total = float(np.sum((target - target.mean()) ** 2))
        left = float(np.sum((predicted - target) ** 2))
    # Asked of the targets themselves: their rounded mean may differ from each of them.
    if target.min() == target.max() or total == 0.0:
        return None
    return 1.0 - left / total


def _pearson(predicted: Values, target: Values) -> float | None:
    if predicted.min() == predicted.max() or target.min() == target.max():
        return None
    # Scaled to at most 1 first, so that no square is lost to underflow.
    x, y = (v - v.mean() for v in (predicted, target))
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip(np.sum(x * y) / math.sqrt(np.sum(x * x) * np.sum(y * y)), -1.0, 1.0))


def _auc(score: Values, positive: NDArray[np.bool_]) -> float | None:
    """Chance that a positive's score is above a negative's, a tie counted half (Mann–Whitney)."""
    positives = int(positive.sum())
    negatives = len(score) - positives
    if positives == 0 or negatives == 0:
        return None
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    ranks = float(midranks[place][positive].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def _first_errors(scored: Scored, low: float, high: float) -> Figures:
    """Share of whole chains whose first predicted error is at the true one ("none" where there is
    none)."""
    middle, scored = (low + high) / 2, scored.whole_chains()
    true = _first(scored, scored.target < middle)
    return _split(true, _first(scored, scored.predicted < middle) == true)


def _majority(scored: Scored, low: float, high: float) -> Figures:
    """As ``_first_errors``, for the answer that most chains have."""
    scored = scored.whole_chains()
    true = _first(scored, scored.target < (low + high) / 2)
    if not len(true):
        return {}
    answers, counts = np.unique(true, return_counts=True)
    return _split(true, true == answers[counts.argmax()])


def _first(scored: Scored, below: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place of the first step that is below, per chain in order of chain; none: the largest int."""
    none = np.iinfo(np.int64).max
    chains, chain = np.unique(scored.chain, return_inverse=True)
    first = np.full(len(chains), none, np.int64)
    np.minimum.at(first, chain[below], scored.step[below])
    return first


def _split(true: NDArray[np.int64], right: NDArray[np.bool_]) -> Figures:
    has_error = true != np.iinfo(np.int64).max
    name = "first_error_accuracy"
    return {
        name: float(right.mean()) if len(right) else None,
        f"{name}_with_error": float(right[has_error].mean()) if has_error.any() else None,
        f"{name}_without_error": float(right[~has_error].mean()) if not has_error.all() else None,
    }


def _refuse(scored: Scored, low: float, high: float) -> None:
    arrays: Sequence[NDArray[Any]] = (
        scored.chain, scored.step, scored.source, scored.predicted, scored.target,
    )  # fmt: skip
    if scored.whole is not None:
        arrays = (*arrays, scored.whole)
    if len({array.shape for array in arrays}) != 1 or scored.target.ndim != 1:
        raise DataError(f"scored values differ in shape: {[array.shape for array in arrays]}")
    if len(scored.target) == 0:
        raise DataError("there is no labelled value to measure; look at task.data.eval")
    if not low < high:
        raise DataError(f"the targets' range is [{low:g}, {high:g}]: the first must be smaller")
    if not np.isfinite(scored.target).all():
        at = int(np.flatnonzero(~np.isfinite(scored.target))[0])
        raise DataError(f"{_place(scored, at)}: the target is {scored.target[at]}; correct the row")
    if not np.isfinite(scored.predicted).all():
        at = int(np.flatnonzero(~np.isfinite(scored.predicted))[0])
        raise NonFiniteStep(
            f"{_place(scored, at)}: the prediction is {scored.predicted[at]}; "
            "lower train.learning_rate, or go back to an earlier checkpoint (--from)"
        )
    pairs = np.stack([scored.chain, scored.step])
    seen, counts = np.unique(pairs, axis=1, return_counts=True)
    if counts.max() > 1:
        chain, step = seen[:, counts.argmax()]
        raise DataError(f"held-out chain {chain}, step {step} is measured {counts.max()} times")


def _place(scored: Scored, at: int) -> str:
    return f"held-out chain {scored.chain[at]}, step {scored.step[at]}"
