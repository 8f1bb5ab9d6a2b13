"""What a small model learns from people's judgements, beside what was there before it.

    python -m benchmarks.human_labels eobqa [--folds 5] [--threads 2]
    python -m benchmarks.human_labels vader [--threads 2]

``eobqa`` trains configs/eobqa.yaml once per fold, and pools the held-out predictions: every chain
is judged by a model that has not seen its question. The retrieval score is measured on the same
rows. ``vader`` fetches the sentences, trains configs/vader.yaml and measures it on the held-out
tenth beside the lexicon, and beside what the raters' own noise allows. Both go on where they were
stopped, and print Markdown. ``--set key=value`` overrides the config.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
FOLDS = 5
REPEATS, SEED = 2000, 0
"""Of the bootstrap."""

Values = NDArray[np.float64]
Line = Mapping[str, Any]

# ---------------------------------------------------------------- figures


def auc(score: Values, positive: NDArray[np.bool_]) -> float:
    """Chance that a positive's score is above a negative's, a tie counted half; NaN: one class."""
    if positive.all() or not positive.any():
        return np.nan
    difference = score[positive][:, None] - score[~positive]
    return float(np.mean(difference > 0) + np.mean(difference == 0) / 2)


def average_precision(score: Values, positive: NDArray[np.bool_]) -> float:
    """Mean over the positives of the precision at their score, ties taken together."""
    if not positive.any():
        return np.nan
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)
    found = np.cumsum(positive[order])[ends]
    return float(np.sum(np.diff(found, prepend=0) * found / (ends + 1)) / found[-1])


def interval(
    figure: Callable[[NDArray[np.int64]], float], groups: Sequence[str]
) -> tuple[float, float]:
    """95 % of ``figure(rows)`` when whole groups are drawn with replacement: what another sample
    of problems might have shown. Two figures of the same groups see the same draws. Draws where it
    is not defined are left out; NaN when there is no other."""
    _, group = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
    random = np.random.default_rng(SEED)
    found = []
    for _ in range(REPEATS):
        drawn = random.integers(len(members), size=len(members))
        found.append(figure(np.concatenate([members[number] for number in drawn])))
    defined = [value for value in found if np.isfinite(value)]
    low, high = np.percentile(defined, [2.5, 97.5]) if defined else (np.nan, np.nan)
    return float(low), float(high)


def shown(figure: float) -> str:
    """Three places; a dash where it is not defined."""
    return "–" if np.isnan(figure) else f"{figure:.3f}"


def with_interval(figure: Callable[[NDArray[np.int64]], float], groups: Sequence[str]) -> str:
    """``0.584 (0.520, 0.649)``"""
    low, high = interval(figure, groups)
    return f"{shown(figure(np.arange(len(groups))))} ({shown(low)}, {shown(high)})"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


# ---------------------------------------------------------------- runs


def config_of(name: str, overrides: Sequence[str]) -> Any:
    from headway import load_config

    return load_config(ROOT / "configs" / f"{name}.yaml", overrides)


def train(name: str, overrides: Sequence[str]) -> Path:
    """``headway train``, which goes on where it was stopped; the run's folder once finished."""
    file = ROOT / "configs" / f"{name}.yaml"
    done = subprocess.run([sys.executable, "-m", "headway.cli", "train", str(file), *overrides])
    if done.returncode:
        sys.exit(done.returncode)  # it has said why, and the same command continues it
    run = config_of(name, overrides).run
    return Path(run.root) / run.name


def predictions(run: Path) -> list[Line]:
    """What the newest evaluation of a run predicted."""
    file = max(run.glob("evals/step-*/predictions.jsonl"))
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def facts_of(runs: Sequence[Path]) -> str:
    """What the figures cost: steps, tokens, minutes and machine, as the journals say."""
    from headway.journal import read_events, timeline

    journals = [read_events(run / "journal.jsonl", {"attempt", "step"}) for run in runs]
    steps = [step for journal in journals for step in timeline(journal)]
    tokens, seconds = (sum(step[key] for step in steps) for key in ("tokens", "seconds"))
    machines = [e["hardware"] for journal in journals for e in journal if e["event"] == "attempt"]
    named = dict.fromkeys(
        f"{m.get('gpu') or m.get('cpu')}, threads: {m.get('threads')}" for m in machines
    )
    return (
        f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(steps):,} steps, {tokens:,} "
        f"tokens in {seconds / 60:.1f} minutes of steps ({tokens / seconds:.0f} tokens/s). "
        f"{'; '.join(named)}. Intervals: 95 %, bootstrap over groups, {REPEATS:,} draws."
    )


# ---------------------------------------------------------------- human labels


@dataclass(frozen=True)
class Judged:
    """Held-out chains of all folds, each predicted once. Arrays are [n]."""

    fold: NDArray[np.int64]
    predicted: Values
    retrieval: Values
    valid: NDArray[np.bool_]
    groups: tuple[str, ...]


def pooled(folds: Sequence[Sequence[Line]], group_at: Mapping[str, str]) -> Judged:
    """The folds' predictions together. ``group_at``: place of a chain -> its question.

    Raises ValueError where a chain, or a question, is held out twice.
    """
    lines = [(fold, line) for fold, part in enumerate(folds) for line in part]
    places = [line["where"] for _, line in lines]
    groups = tuple(group_at[place] for place in places)
    if len(set(places)) < len(places):
        raise ValueError("a chain is held out by two folds")
    if len({(group, fold) for group, (fold, _) in zip(groups, lines, strict=True)}) > len(
        set(groups)
    ):
        raise ValueError("a question is held out by two folds")
    return Judged(
        fold=np.array([fold for fold, _ in lines]),
        predicted=np.array([line["predicted"] for _, line in lines]),
        retrieval=np.array([line["score"] for _, line in lines]),
        valid=np.array([line["target"] >= 0.5 for _, line in lines]),
        groups=groups,
    )


def judged_table(judged: Judged) -> str:
    """Model and retrieval score on the same rows: pooled with intervals, and by fold."""
    model, retrieval, valid = judged.predicted, judged.retrieval, judged.valid
    rows = []
    for title, figure in (("AUC", auc), ("average precision", average_precision)):

        def of(score: Values, figure=figure):
            return lambda rows: figure(score[rows], valid[rows])

        def gain(rows, figure=figure):
            return figure(model[rows], valid[rows]) - figure(retrieval[rows], valid[rows])

        chance = 0.5 if figure is auc else valid.mean()
        columns = [with_interval(f, judged.groups) for f in (of(model), of(retrieval), gain)]
        rows.append([f"{title}, all", len(valid), valid.sum(), *columns, shown(chance)])
    for fold in np.unique(judged.fold):
        at = judged.fold == fold
        ours, theirs = auc(model[at], valid[at]), auc(retrieval[at], valid[at])
        figures = map(shown, (ours, theirs, ours - theirs, 0.5))
        rows.append([f"AUC, fold {fold}", at.sum(), valid[at].sum(), *figures])
    head = ["held out", "chains", "valid", "model", "retrieval score", "difference", "chance"]
    return table(head, rows)


def eobqa(folds: int, overrides: Sequence[str]) -> str:
    """Train every fold that is not trained yet; the table."""
    from headway.data.chains import read_chains
    from headway.data.chains.report import ChainTally

    name = config_of("eobqa", overrides).run.name
    runs = [
        train("eobqa", [*overrides, f"run.name={name}-fold-{k}", f"task.data.eval_fold={k}"])
        for k in range(folds)
    ]
    [source] = config_of("eobqa", overrides).task.data.train
    chains = read_chains(source, ChainTally(source=source.name or "", path=source.path))
    group_at = {chain.where: chain.group for chain in chains}
    judged = pooled([predictions(run) for run in runs], group_at)
    if folds == FOLDS and len(judged.valid) != len(group_at):
        raise ValueError(f"{len(group_at)} labelled chains, but {len(judged.valid)} were held out")
    return f"{facts_of(runs)}\n\n{judged_table(judged)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=["eobqa", "vader"])
    parser.add_argument("--folds", type=int, default=FOLDS, choices=range(1, FOLDS + 1))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    os.chdir(ROOT)  # the configs' paths are relative to it
    overrides = list(arguments.set)
    if arguments.threads:
        overrides.append(f"hardware.threads={arguments.threads}")
    if arguments.what == "eobqa":
        print(eobqa(arguments.folds, overrides))
    else:
        from benchmarks.human_scores import vader

        print(vader(overrides))


if __name__ == "__main__":
    main()
