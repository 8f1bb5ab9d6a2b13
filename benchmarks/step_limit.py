"""What holds step confidence back: finding an error, or knowing what follows from it?

    python -m benchmarks.step_limit RUN/evals/STEP runs/step-labels/test.jsonl

Reads the predictions of one evaluation and the chains they are of. A step leans on an earlier one
where the number that one ends with stands in it. Then a logistic regression, fitted to four fifths
of the chains and asked about the last (5 times), is given for each step: its own logit; also the
lowest logit of the steps it leans on; also the lowest of all steps before. At last own logits are
replaced by the truth about where the error was put (what follows from it still has to be found), so
the last line is what a perfect finder of errors would get from the same rule.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
FOLDS, SURE = 5, 6.0
Values = NDArray[np.float64]


def main() -> None:
    """Print R², and the AUC of all wrong steps and of those that follow from an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("labels", type=Path)
    arguments = parser.parse_args()
    table = read(arguments.evaluation, arguments.labels)
    own, right, kinds, chains, texts = table
    put = np.array([kind not in (None, "follows") for kind in kinds])
    print(f"{len(own)} steps, {int((right < 0.5).sum())} wrong, {int(put.sum())} errors put in")
    print(f"{'each step is given':44}     R2    AUC  AUC of what follows")
    for name, logits in (
        ("own", own),
        ("the truth about where errors are", np.where(put, -4.0, 4.0)),
    ):
        leant, before, any_leant = around(logits, chains, texts)
        show(name, logits[:, None], right, kinds, chains)
        show(f"{name}, and what it leans on", np.c_[logits, leant, any_leant], right, kinds, chains)
        both = np.c_[logits, leant, any_leant, before]
        show(f"{name}, that, and all before", both, right, kinds, chains)


def read(
    evaluation: Path, labels: Path
) -> tuple[Values, Values, list[Any], NDArray[Any], list[Any]]:
    """(logits, labels, kinds of error, chain, numbers) of each step, in order."""
    chains = [json.loads(line) for line in labels.read_text().strip("\n").split("\n")]
    lines = (evaluation / "predictions.jsonl").read_text().strip("\n").split("\n")
    said = sorted((json.loads(line) for line in lines), key=lambda p: (p["chain"], p["step"]))
    score = np.clip([p["predicted"] for p in said], 1e-4, 1 - 1e-4)
    of = [(chains[p["chain"]], p["step"]) for p in said]
    numbers = [
        [float(n.replace(",", "")) for n in NUMBER.findall(chain["steps"][step])]
        for chain, step in of
    ]
    return (
        np.log(score / (1 - score)),
        np.array([p["target"] for p in said]),
        [chain["kinds"][step] for chain, step in of],
        np.array([p["chain"] for p in said]),
        numbers,
    )


def around(logits: Values, chains: NDArray[Any], numbers: list[Any]) -> tuple[Values, ...]:
    """Lowest logit of what each leans on, and of all before it; whether it leans on any."""
    leant, before, any_leant = (
        np.full(len(logits), SURE),
        np.full(len(logits), SURE),
        np.zeros(len(logits)),
    )
    carried = logits.copy()
    for at in range(len(logits)):
        earlier = [n for n in range(at) if chains[n] == chains[at]]
        on = [n for n in earlier if numbers[n] and numbers[n][-1] in numbers[at]]
        leant[at] = min((carried[n] for n in on), default=SURE)
        before[at] = min((logits[n] for n in earlier), default=SURE)
        any_leant[at] = bool(on)
        carried[at] = min(logits[at], leant[at])
    return leant, before, any_leant


def show(name: str, given: Values, right: Values, kinds: list[Any], chains: NDArray[Any]) -> None:
    """One line of the table."""
    fold = np.unique(chains, return_inverse=True)[1] % FOLDS
    score = np.zeros(len(right))
    for held in range(FOLDS):
        weights = fitted(given[fold != held], right[fold != held])
        score[fold == held] = chance(given[fold == held], weights)
    r2 = 1 - np.square(score - right).mean() / right.var()
    follows = (right > 0.5) | np.array([kind == "follows" for kind in kinds])
    print(
        f"{name:44} {r2:6.3f} {auc(score, right):6.3f} {auc(score[follows], right[follows]):6.3f}"
    )


def fitted(given: Values, right: Values) -> Values:
    """Logistic regression by Newton's method, with a ridge of 1 on all but the constant."""
    x = np.c_[np.ones(len(given)), given]
    ridge = np.diag([0.0] + [1.0] * given.shape[1])
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-(x @ weights)))
        slope = (x * (p * (1 - p))[:, None]).T @ x + ridge + 1e-9 * np.eye(len(weights))
        weights = weights - np.linalg.solve(slope, x.T @ (p - right) + ridge @ weights)
    return weights


def chance(given: Values, weights: Values) -> Values:
    """[n] of being right."""
    return np.asarray(1 / (1 + np.exp(-(np.c_[np.ones(len(given)), given] @ weights))))


def auc(score: Values, right: Values) -> float:
    """Of telling wrong steps from right ones by a low score."""
    wrong = right < 0.5
    _, place, times = np.unique(-score, return_inverse=True, return_counts=True)
    ranks, n = (np.cumsum(times) - (times - 1) / 2)[place], wrong.sum()
    return float((ranks[wrong].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


if __name__ == "__main__":
    main()
