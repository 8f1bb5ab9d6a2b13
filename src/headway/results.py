"""``results.json``: what came of a run, in one file that a program or a paper can take from.

Told from the journal and the manifests, so it can be made again at any time and says nothing that
they do not. It is there exactly when the run is finished: an attempt that trains takes it away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from headway.checkpoint import Checkpoint
from headway.report.checkpoint_view import best_checkpoint
from headway.report.summary import summarise
from headway.report.timeline import Event
from headway.report.words import instant
from headway.system import fsync_directory
from headway.viewing import RunView, config_tree, open_run, tested

RESULTS_FILE = "results.json"
FORMAT = 1
MEASURED = ("rows", "of_rows", "weight", "metrics", "baselines", "seconds")
"""What of an evaluation is told here; the rest is in ``evals/``."""


def write_results(run: str | Path) -> Path | None:
    """Write the file, whole or not at all; None, and none written, where the run is not finished.

    Raises OSError where it cannot be written.
    """
    view = open_run(run)
    if summarise(view.told).state != "finished":
        return None
    path = view.path / RESULTS_FILE
    partial = path.with_name(f".partial-{RESULTS_FILE}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(results(view), indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    fsync_directory(view.path)
    return path


def take_away(run: Path) -> None:
    """Of an attempt that begins: what was true of the finished run may not be any more."""
    (run / RESULTS_FILE).unlink(missing_ok=True)


def results(view: RunView) -> dict[str, Any]:
    """Plain JSON; every field is described in ``docs/run-directory.md``."""
    told, total = view.told, summarise(view.told, name=view.name)
    there = {checkpoint.step: checkpoint for checkpoint in view.checkpoints()}
    last = there[max(there)] if there else None
    best_step = best_checkpoint(told, list(there))
    best = there[best_step] if best_step is not None else None
    facts = last.manifest.facts if last else {}
    attempt = told.attempts[-1] if told.attempts else {}
    return {
        "format": FORMAT,
        "run": view.name,
        "recipe": config_tree(view.path).get("recipe"),
        "ended": total.reason,
        "ended_at": (told.stop or {}).get("at"),
        "steps": total.step,
        "steps_planned": total.steps,
        "tokens": total.tokens,
        "best": _state(view, best),
        "last": _state(view, last),
        "cost_usd": total.cost_usd,
        "training_seconds": total.training_seconds,
        "wall_seconds": wall_seconds(view.events),
        "attempts": total.attempts,
        "redone_steps": total.redone_steps,
        "fingerprint": facts.get("fingerprint"),
        "identities": facts.get("identities"),
        "hardware": attempt.get("hardware"),
        "versions": attempt.get("versions"),
    }


def wall_seconds(events: Iterable[Event]) -> float:
    """From the first line of each attempt to its last, summed: waiting between them is not in it.

    Loading, saving and measuring are, unlike in the time of the steps.
    """
    begun: dict[Any, datetime] = {}
    ended: dict[Any, datetime] = {}
    for event in events:
        at = instant(event.get("at"))
        if at is not None:
            begun.setdefault(event.get("attempt"), at)
            ended[event.get("attempt")] = at
    return sum(((ended[number] - begun[number]).total_seconds() for number in begun), 0.0)


def _state(view: RunView, checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """One checkpoint: where it is, and what was measured of it; None where there is none."""
    if checkpoint is None:
        return None
    step, manifest = checkpoint.step, checkpoint.manifest
    own = next((e for e in view.told.evaluations if e["step"] == step), None)
    return {
        "step": step,
        "checkpoint": str(checkpoint.path.relative_to(view.path)),
        "sha256": manifest.sha256,
        "training_loss": manifest.facts.get("loss"),
        "eval": _measured(own),
        "test": _measured(tested(view.path, checkpoint)),
    }


def _measured(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if evaluation is None else {key: evaluation.get(key) for key in MEASURED}
