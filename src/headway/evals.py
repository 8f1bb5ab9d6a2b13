"""Evaluations on disk: ``evals/step-…/metrics.json`` and ``worst.jsonl``, one row a line.

*Promises.* What the journal leaves out of an evaluation to stay small is here in full.

*Does not promise.* Durability: an evaluation that is lost is made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

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
