"""What is known of a checkpoint: its manifest, and what the journal says of the steps up to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headway.report.summary import best_evaluation, held_out_loss, tokens_per_second
from headway.report.timeline import Event, Timeline, measured, trend

WINDOW = 50
"""Steps that means, deviations and rates are taken over."""


class FileFact(Protocol):
    """Size and hash of one file."""

    @property
    def bytes(self) -> int: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102


class Manifest(Protocol):
    """The part of a checkpoint's manifest that is shown."""

    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def attempt(self) -> str: ...  # noqa: D102
    @property
    def created_at(self) -> str: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102
    @property
    def files(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def facts(self) -> Mapping[str, Any]: ...  # noqa: D102


def checkpoint_rows(told: Timeline, manifests: Sequence[Manifest]) -> list[dict[str, Any]]:
    """One dict for each checkpoint, by step: losses in the loss's unit, sizes in bytes."""
    best = best_checkpoint(told, [manifest.step for manifest in manifests])
    return [
        {
            "step": manifest.step,
            "created_at": manifest.created_at,
            "attempt": manifest.attempt,
            "bytes": manifest.bytes,
            "loss": measured(manifest.facts.get("loss")),
            "held_out_loss": _held_out_at(told, manifest.step),
            "best": manifest.step == best,
        }
        for manifest in manifests
    ]


def gone_row(told: Timeline, step: int) -> dict[str, Any]:
    """The same of a checkpoint that is not on this disk, from the journal: as far as it goes."""
    saved = next((e for e in reversed(told.saves) if e["step"] == step), {})
    trained = next((e for e in reversed(told.steps) if e["step"] == step), {})
    return {
        "step": step,
        "created_at": saved.get("at"),
        "attempt": str(saved.get("attempt") or ""),
        "bytes": saved.get("bytes"),
        "loss": measured(trained.get("loss")),
        "held_out_loss": _held_out_at(told, step),
        "best": False,
        "good": None,
    }


def best_checkpoint(told: Timeline, steps: Sequence[int]) -> int | None:
    """Which of these steps was measured to have the lowest held-out loss; None if none was."""
    best = best_evaluation([e for e in told.evaluations if e["step"] in set(steps)])
    return best["step"] if best else None


def checkpoint_details(told: Timeline, manifest: Manifest) -> dict[str, Any]:
    """Everything about one checkpoint, in sections; a key ends in its unit where it has one."""
    step, facts = manifest.step, manifest.facts
    before = [event for event in told.steps if event["step"] <= step]
    attempts = [e for e in told.attempts if str(e.get("attempt")) == manifest.attempt]
    attempt = attempts[-1] if attempts else {}
    shown = {"loss", "learning_rate", "grad_norm", "epoch", "rows", "tokens", "cost_usd"}
    shown |= {"evaluations", "hardware", "versions"}
    return {
        "step": step,
        "steps_planned": told.plan.get("steps"),
        "epoch": facts.get("epoch", _epoch(told, step)),
        "created_at": manifest.created_at,
        "attempt": manifest.attempt,
        "bytes": manifest.bytes,
        "training": _training(before, facts),
        "held_out": _held_out(told, step),
        "cost": {
            "cost_usd": facts.get("cost_usd", before[-1].get("cost_usd") if before else None),
            "training_seconds": sum(measured(e.get("seconds")) or 0.0 for e in before),
        },
        "system": {
            **dict(facts.get("hardware") or attempt.get("hardware") or {}),
            **dict(facts.get("versions") or attempt.get("versions") or {}),
            "host": attempt.get("host"),
        },
        "facts": {key: value for key, value in facts.items() if key not in shown},
        "files": {
            name: {"bytes": fact.bytes, "sha256": fact.sha256}
            for name, fact in sorted(manifest.files.items())
        },
    }


def _training(before: Sequence[Event], facts: Mapping[str, Any]) -> dict[str, Any]:
    losses = [loss for e in before if (loss := measured(e.get("loss"))) is not None]
    finite = [loss for loss in losses if math.isfinite(loss)]
    recent = finite[-WINDOW:]
    last = before[-1] if before else {}
    mean = sum(recent) / len(recent) if recent else None
    spread = sum((loss - (mean or 0.0)) ** 2 for loss in recent)
    return {
        "loss": measured(facts.get("loss", last.get("loss"))),
        "lowest_loss": min(finite, default=None),
        f"mean_loss_of_{WINDOW}_steps": mean,
        f"standard_deviation_of_{WINDOW}_steps": (
            math.sqrt(spread / (len(recent) - 1)) if len(recent) > 1 else None
        ),
        "trend": trend(finite),
        "learning_rate": facts.get("learning_rate", last.get("learning_rate")),
        "grad_norm": facts.get("grad_norm", last.get("grad_norm")),
        "rows": facts.get("rows", sum(int(e.get("rows") or 0) for e in before) or None),
        "tokens": facts.get("tokens", sum(int(e.get("tokens") or 0) for e in before) or None),
        "tokens_per_second": tokens_per_second(before[-WINDOW:]),
        "memory_bytes": last.get("memory_bytes"),
    }


def _held_out(told: Timeline, step: int) -> dict[str, Any]:
    """The measurements at this very step, and where it stands among those before."""
    before = [event for event in told.evaluations if event["step"] <= step]
    here = evaluation_at(told, step)
    best = best_evaluation(before)
    found: dict[str, Any] = {}
    if here is not None:
        found |= {**here["metrics"], **here.get("baselines", {})}
        found |= {"rows": here.get("rows"), "weight": here.get("weight")}
        found |= {"of_rows": here["of_rows"]} if here.get("of_rows") else {}
    if best is not None:
        found |= {
            "best_loss_so_far": held_out_loss(best),
            "best_step_so_far": best["step"],
            "evaluations_since_best": len(before) - 1 - before.index(best),
        }
    return found


def evaluation_at(told: Timeline, step: int) -> Event | None:
    """The last evaluation of this very step; None if there was none."""
    return next((e for e in reversed(told.evaluations) if e["step"] == step), None)


def _held_out_at(told: Timeline, step: int) -> float | None:
    return next((held_out_loss(e) for e in told.evaluations if e["step"] == step), None)


def _epoch(told: Timeline, step: int) -> float | None:
    batch, rows = told.plan.get("batch_size"), told.plan.get("rows_per_epoch")
    return step * batch / rows if batch and rows else None
