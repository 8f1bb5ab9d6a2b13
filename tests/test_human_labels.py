"""``benchmarks/human_labels.py`` and ``human_scores.py``: the figures, the folds, the sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark_scripts import script
from headway.data.chains import Chain
from headway.recipes.score_metrics import Scored, measure

labels = script("human_labels")
scores = script("human_scores")

ranked = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({positive for _, positive in pairs}) == 2
)


def arrays(pairs: list[tuple[int, bool]]) -> tuple[Any, Any]:
    return np.array([s / 6 for s, _ in pairs]), np.array([p for _, p in pairs])


def as_headway_measures(predicted: Any, target: Any) -> dict[str, float]:
    n = np.arange(len(target))
    values = {"predicted": predicted, "target": np.asarray(target, dtype=np.float64)}
    scored = Scored(chain=n, step=0 * n, source=0 * n, sources=("a",), **values)
    return measure(scored)[0]


# ------------------------------------------------------------------ figures


@given(ranked)
def test_the_auc_is_the_one_that_headway_measures(pairs: list[tuple[int, bool]]) -> None:
    score, positive = arrays(pairs)
    expected = as_headway_measures(score, positive)["error_auc"]
    assert labels.auc(score, positive) == pytest.approx(expected)


@given(ranked)
def test_average_precision_is_the_precision_at_each_positive(pairs: list[tuple[int, bool]]) -> None:
    score, positive = arrays(pairs)
    precisions = [positive[score >= at].mean() for at in score[positive]]
    assert labels.average_precision(score, positive) == pytest.approx(np.mean(precisions))


def test_one_class_has_no_auc() -> None:
    assert np.isnan(labels.auc(np.array([0.1, 0.2]), np.array([True, True])))
    assert np.isnan(labels.average_precision(np.array([0.1, 0.2]), np.array([False, False])))


def test_the_interval_knows_that_the_rows_of_a_group_are_no_new_evidence() -> None:
    """Each value eight times: as 20 groups the mean is as uncertain as 20 values are."""
    values = np.random.default_rng(1).normal(size=20)
    eightfold = np.repeat(values, 8)

    def width(of: Any, groups: list[str]) -> float:
        low, high = labels.interval(lambda rows: float(of[rows].mean()), groups)
        return high - low

    alone = width(values, [str(i) for i in range(20)])
    grouped = width(eightfold, [str(i // 8) for i in range(160)])
    naive = width(eightfold, [str(i) for i in range(160)])
    assert grouped == pytest.approx(alone, rel=1e-9)
    assert naive < 0.5 * grouped
    assert alone == pytest.approx(2 * 1.96 * values.std() / 20**0.5, rel=0.1)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=30))
def test_the_scores_figures_are_those_that_headway_measures(
    pairs: list[tuple[float, float]],
) -> None:
    predicted, target = np.array(pairs).T
    expected = as_headway_measures(predicted, target)
    assert scores.mae(predicted, target) == pytest.approx(expected["mae"])
    if np.ptp(target) > 1e-3 and np.ptp(predicted) > 1e-3:
        assert scores.r2(predicted, target) == pytest.approx(expected["r2"])
        assert scores.pearson(predicted, target) == pytest.approx(expected["pearson"])


def test_the_ceiling_is_what_knowing_the_true_opinion_reaches() -> None:
    random = np.random.default_rng(2)
    truth = random.normal(0, 1, 4000)
    ratings = truth[:, None] + random.normal(0, 3, (4000, 15))
    noise = np.array([scores.noise_of(given) for given in ratings])
    seen = ratings.mean(1)
    limit = scores.ceiling(seen, noise)
    assert limit == pytest.approx(scores.r2(truth, seen), abs=0.02)
    assert limit == pytest.approx(1 / (1 + 9 / 15), abs=0.02)
    # Halves of the raters agree on the same figure (Spearman and Brown).
    r = np.corrcoef(ratings[:, :7].mean(1), ratings[:, 7:14].mean(1))[0, 1]
    assert limit == pytest.approx(2 * r / (1 + r), abs=0.03)


def test_rows_of_unknown_noise_are_no_part_of_the_ceiling() -> None:
    target, noise = np.array([0.0, 1.0, 2.0, 90.0]), np.array([0.1, 0.1, 0.1, np.nan])
    assert scores.ceiling(target, noise) == pytest.approx(1 - 0.1 / np.var([0, 1, 2]))


def test_a_line_is_fitted_to_each_corpus_training_part_alone() -> None:
    def part(compound: list[float], target: list[float], source: list[str]) -> Any:
        n = len(source)
        return scores.Sentences(
            target=np.array(target),
            compound=np.array(compound),
            noise=np.zeros(n),
            source=np.array(source),
            document=tuple(map(str, range(n))),
        )

    train = part([0, 1, 0, 1], [0, 2, 5, 5], ["a", "a", "b", "b"])
    held = part([0.5, 0.5], [-4, -4], ["a", "b"])
    assert scores.fitted(train, held, 1) == pytest.approx([1, 5])
    assert scores.fitted(train, held, 0) == pytest.approx([1, 5])
    text = scores.score_tables(train, held, np.array([-4.0, -4.0]))
    assert "| a | 1 | 1 | – | – | – | – (–, –) | – |" in text, "R² of one sentence"
    assert "| all | 2 | 2 | 7.000 | 6.000 | 7.000 | 0.000 | – |" in text, "MAE"


# ------------------------------------------------------------------ folds


def line(where: str, predicted: float, target: float) -> dict[str, Any]:
    return {"where": where, "predicted": predicted, "score": 40.0, "target": target}


GROUPS = {"f:1": "q1", "f:2": "q1", "f:3": "q2"}


def test_folds_are_pooled_with_their_groups() -> None:
    judged = labels.pooled([[line("f:1", 0.9, 1), line("f:2", 0.2, 0)], [line("f:3", 0.4, 0)]],
                           GROUPS)  # fmt: skip
    assert judged.groups == ("q1", "q1", "q2")
    assert judged.fold.tolist() == [0, 0, 1]
    assert judged.valid.tolist() == [True, False, False]
    text = labels.judged_table(judged)
    assert "| AUC, all | 3 | 1 | 1.000" in text
    assert "| AUC, fold 1 | 1 | 0 | – | – | – | 0.500 |" in text


@pytest.mark.parametrize(
    ("folds", "what"),
    [
        ([["f:1"], ["f:1"]], "a chain is held out by two folds"),
        ([["f:1"], ["f:2"]], "a question is held out by two folds"),
    ],
)
def test_folds_that_overlap_are_refused(folds: list[list[str]], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        labels.pooled([[line(place, 0.5, 0) for place in fold] for fold in folds], GROUPS)


# ------------------------------------------------------------------ sentences


def test_sentences_keep_their_document_and_lose_the_noise_of_strangers() -> None:
    scored = [["1_1", "1.0", "Good."], ["1_2", "-2.0", "Bad."], ["2_1", "3", "Good."]]
    rated = [["1_1", "1", "0", "[0, 1, 2]"], ["1_2", "0", "0", "[0, 0]"], ["2_1", "3", "0", "[3]"]]
    seen: set[str] = set()
    rows, said = scores.sentence_rows("products", scored, rated, lambda text: 0.5, seen)
    assert rows == [
        ["Good.", "1.0", "0.5000", "0.333333", "products-1"],
        ["Bad.", "-2.0", "0.5000", "", "products-1"],
    ]
    assert "1 with a text seen before left out, 1 with ratings of another mean" in said
    assert scores.sentence_rows("movies", scored[:1], rated, lambda text: 0.5, seen)[0] == []


def test_another_package_than_the_one_known_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "benchmarks" / f"vaderSentiment-{scores.VERSION}.tar.gz"
    file.parent.mkdir()
    file.write_bytes(b"something else")
    with pytest.raises(SystemExit, match=r"sha256 .* expected"):
        scores.fetched(tmp_path)


def test_predictions_of_other_sentences_are_refused() -> None:
    chains = [
        Chain(problem="", steps=("a",), targets=(0.0,), source="s", where=where, group=where)
        for where in ("t:2", "t:3")
    ]
    found, predicted = scores.predicted_part([line("t:3", 0.7, 0)], chains)
    assert [chain.where for chain in found] == ["t:3"]
    assert predicted.tolist() == [0.7]
    with pytest.raises(ValueError, match="other sentences"):
        scores.predicted_part([line("t:9", 0.7, 0)], chains)
