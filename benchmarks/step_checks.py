"""What can be said of steps without any language model: the baseline of ``head.checks``.

    python -m benchmarks.step_checks runs/step-labels/train.jsonl runs/step-labels/test.jsonl

A logistic regression of the checks (``data/chains/checks.py``) and of their products in pairs,
fitted to the first ``--first`` chains of one file, asked about all of the other. AUC of each kind
of error is that of its steps against all right steps.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations
from pathlib import Path

import numpy as np
from benchmarks.step_limit import Values, auc, chance, fitted

from headway.data.chains.checks import CHECKS, checked


def main() -> None:
    """Print how often each check fires for each kind of step, then R² and AUC."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--first", type=int, default=6000)
    arguments = parser.parse_args()
    began = time.process_time()
    given, right, _ = read(arguments.train, arguments.first)
    seconds = time.process_time() - began
    others, truth, kinds = read(arguments.test)
    cost = 1e3 * seconds / arguments.first
    print(f"{len(right):,} steps to fit ({cost:.2f} ms a chain), {len(truth):,} to ask")
    names = sorted(set(kinds) - {"right"})
    print(f"{'mean over the steps of a kind':42}", *(f"{name:>10}" for name in ("right", *names)))
    for number, check in enumerate(CHECKS):
        shares = [others[kinds == name, number].mean() for name in ("right", *names)]
        print(f"{check:50}", *(f"{share:10.2f}" for share in shares))
    score = chance(pairs(others), fitted(pairs(given), right))
    r2 = 1 - np.square(score - truth).mean() / truth.var()
    print(f"R2 {r2:.3f}  AUC {auc(score, truth):.3f}")
    for name in names:
        chosen = (kinds == name) | (truth > 0.5)
        print(f"  AUC of {name:12} {auc(score[chosen], truth[chosen]):.3f}")


def read(file: Path, first: int | None = None) -> tuple[Values, Values, np.ndarray]:
    """(checks [n, CHECKS], labels [n], kinds of error [n]) of every labelled step."""
    rows, labels, kinds = [], [], []
    for line in file.read_text().strip("\n").split("\n")[:first]:
        chain = json.loads(line)
        found = checked(chain["problem"], chain["steps"])
        said = chain.get("kinds") or [None] * len(found)
        for row, label, kind in zip(found, chain["targets"], said, strict=True):
            if label is not None:
                rows.append(row)
                labels.append(label)
                kinds.append(kind or ("right" if label > 0.5 else "wrong"))
    return np.array(rows, float), np.array(labels, float), np.array(kinds)


def pairs(given: Values) -> Values:
    """The columns, and the product of every two."""
    products = [given[:, i] * given[:, j] for i, j in combinations(range(given.shape[1]), 2)]
    return np.c_[given, np.stack(products, 1)]


if __name__ == "__main__":
    main()
