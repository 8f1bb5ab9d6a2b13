"""Evaluations: on disk (``evals/step-…/metrics.json``, ``worst.jsonl``), and what they decide.

*Promises.* What the journal leaves out of an evaluation to stay small is here in full.

*Does not promise.* Durability: an evaluation that is lost is made again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headway.errors import NonFiniteStep
from headway.records import Evaluation

LONG = ("tokens",)
"""What is shown of a worst row but is too long for the journal."""


def place(run: Path, step: int) -> Path:
    """The folder of the evaluation at a step."""
    return run / "evals" / f"step-{step:08d}"


def write(run: Path, evaluation: Evaluation) -> None:
    """Write the evaluation; one at the same step before it is replaced."""
    folder = place(run, evaluation.step)
    folder.mkdir(parents=True, exist_ok=True)
    facts = asdict(evaluation)
    rows = facts.pop("worst")
    (folder / "metrics.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "worst.jsonl").write_text(lines, encoding="utf-8")


def brief(evaluation: Evaluation) -> Evaluation:
    """The evaluation as the journal keeps it."""
    worst = tuple(
        replace(row, shown={k: v for k, v in row.shown.items() if k not in LONG})
        for row in evaluation.worst
    )
    return replace(evaluation, worst=worst)


def whole(run: Path, event: Mapping[str, Any]) -> Mapping[str, Any]:
    """A journal's evaluation with its worst rows in full, as far as they are on disk."""
    try:
        file = place(run, int(event["step"])) / "worst.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines()
        return {**event, "worst": [json.loads(line) for line in lines]}
    except (OSError, ValueError):
        return event


def refuse_no_number(evaluation: Evaluation) -> None:
    """Raise NonFiniteStep when the held-out loss is NaN or infinite; name the rows."""
    if not math.isfinite(evaluation.metrics["loss"]):
        rows = [row.row for row in evaluation.worst if not math.isfinite(row.loss)]
        raise NonFiniteStep(
            f"the held-out loss at step {evaluation.step} is {evaluation.metrics['loss']} "
            f"(rows {rows}); look at these rows (headway data show), or lower train.learning_rate"
        )


def stale(losses: Sequence[float], patience: int, min_delta: float) -> bool:
    """Whether the last ``patience`` losses brought no improvement of at least ``min_delta``."""
    best, since = math.inf, 0
    for loss in losses:
        if loss < best - min_delta:
            best, since = loss, 0
        else:
            since += 1
    return since >= patience
