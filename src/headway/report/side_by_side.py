"""Several runs beside each other: which is best by which figure, and what a result cost.

Figures are compared only where they are of the same held-out rows, and those of a run are of its
best checkpoint. What a result cost is the price of the loss that all of them reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from headway.errors import ConfigError
from headway.report.charts import Chart
from headway.report.curves import run_charts
from headway.report.figures import Figures, direction, figures
from headway.report.summary import Summary, best_evaluation, held_out_loss
from headway.report.timeline import Event, Timeline, measured

LOSS, TEST = "loss", "test: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A held-out loss, and what had been spent when it was measured."""

    step: int
    loss: float
    cost_usd: float | None
    """Over all attempts, as the journal counts it."""
    seconds: float
    """Time of the steps that led there, each once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """What a comparison needs of one run: no more, for there may be many of a hundred thousand
    steps."""

    name: str
    folder: str
    summary: Summary
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    """Identities, hardware and versions, nested."""
    charts: Sequence[Chart]
    results: Sequence[Result]
    """By step."""
    best: Event | None
    tested: Event | None
    """What was measured on test rows of the newest checkpoint that was."""

    @property
    def recipe(self) -> str:
        """Its name; empty where the config does not say."""
        return str(self.config.get("recipe") or "")

    @property
    def held_out(self) -> Any:
        """Which rows its figures are of; None where nothing was measured."""
        if self.best is None:
            return None
        of_rows = self.best.get("of_rows")
        drawn = (self.config.get("run") or {}).get("seed") if of_rows else None
        which = (self.facts.get("identities") or {}).get("held_out")
        return (which, self.best.get("rows"), self.best.get("weight"), of_rows, drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All of it, in the order in which the runs were named."""

    runs: Sequence[Contender]
    config: Mapping[str, Sequence[str]]
    """Key -> its value in each run, for those that differ."""
    same_rows: bool
    """Whether what was measured was measured on the same held-out rows."""
    values: Mapping[str, Sequence[float | None]]
    """Main figure -> its value in each run. Those of test rows begin with ``test: ``."""
    best: Mapping[str, int]
    """Figure -> the run where it is best; not there where that cannot be said."""
    level: float | None = None
    """The lowest loss that all of them reached; None where they are not of the same rows."""
    reached: Sequence[Result] = field(default=())
    """Where each run first was at ``level`` or below."""


def contender(
    told: Timeline,
    *,
    name: str,
    folder: str,
    summary: Summary,
    config: Mapping[str, Any],
    tested: Event | None = None,
) -> Contender:
    """One run, ready to be compared."""
    last = told.attempts[-1] if told.attempts else {}
    identities = (told.plan.get("facts") or {}).get("identities") or {}
    return Contender(
        name=name,
        folder=folder,
        summary=summary,
        config=config,
        facts={
            "identities": identities,
            "hardware": last.get("hardware") or {},
            "versions": last.get("versions") or {},
        },
        charts=run_charts(told),
        results=results(told),
        best=best_evaluation(told.evaluations),
        tested=tested,
    )


def results(told: Timeline) -> list[Result]:
    """Each finite held-out loss of a run with its price."""
    seconds = [0.0, *accumulate(measured(step.get("seconds")) or 0.0 for step in told.steps)]
    found, done, cost = [], 0, 0.0 if told.cost_usd is not None else None
    for evaluation in told.evaluations:
        while done < len(told.steps) and told.steps[done]["step"] <= evaluation["step"]:
            cost = measured(told.steps[done].get("cost_usd")) or cost
            done += 1
        loss = held_out_loss(evaluation)
        if loss is not None and math.isfinite(loss):
            step = int(evaluation["step"])
            found.append(Result(step=step, loss=loss, cost_usd=cost, seconds=seconds[done]))
    return found


def comparison(runs: Sequence[Contender], config: Mapping[str, Sequence[str]]) -> Comparison:
    """Compare them. ConfigError where there is nothing to compare; it says why."""
    refuse_incomparable(runs)
    where = {run.held_out for run in runs if run.best is not None}
    same_rows = len(where) == 1 and sum(run.best is not None for run in runs) > 1
    values = _values(runs)
    losses = {str((run.config.get("task") or {}).get("loss")) for run in runs}
    same_loss = same_rows and len(losses) == 1
    best = {
        name: at
        for name, row in values.items()
        if same_rows
        and (name.removeprefix(TEST) != LOSS or same_loss)
        and (at := _best(name.removeprefix(TEST), row)) is not None
    }
    level, reached = _shared_level(runs) if same_loss else (None, [])
    return Comparison(
        runs=runs, config=config, same_rows=same_rows, values=values, best=best, level=level,
        reached=reached,
    )  # fmt: skip


def refuse_incomparable(runs: Sequence[Contender]) -> None:
    """Raise ConfigError unless two of them have something in common to look at."""
    recipes = {run.recipe: run for run in runs if run.recipe}
    if len(recipes) > 1:
        each = ", ".join(f"{run.name} is {recipe}" for recipe, run in recipes.items())
        raise ConfigError(
            f"these runs cannot be compared: {each}; their losses are measured in different units. "
            "Name runs of one recipe"
        )
    begun = [run for run in runs if run.charts]
    if len(begun) < 2:
        waiting = ", ".join(run.folder for run in runs if not run.charts)
        raise ConfigError(
            f"there is nothing to compare: no step has been recorded yet in {waiting}. "
            "Name two runs that have begun"
        )


def _values(runs: Sequence[Contender]) -> dict[str, list[float | None]]:
    """The main figures at each run's best checkpoint, then those on test rows."""
    found: dict[str, list[float | None]] = {}
    for prefix, events in (("", [r.best for r in runs]), (TEST, [r.tested for r in runs])):
        each = [figures(event or {}) for event in events]
        for name in dict.fromkeys(name for one in each for name in one.main):
            found[prefix + name] = [_value(one, name) for one in each]
    return found


def _value(found: Figures, name: str) -> float | None:
    return found.values.get(("", name))


def _best(name: str, values: Sequence[float | None]) -> int | None:
    """Which is best; None where the name does not say which way, or no two differ."""
    sign = direction(name)
    finite = [(sign * v, -n) for n, v in enumerate(values) if v is not None and math.isfinite(v)]
    if sign == 0 or len({value for value, _ in finite}) < 2:
        return None
    return -max(finite)[1]


def _shared_level(runs: Sequence[Contender]) -> tuple[float | None, list[Result]]:
    lowest = [min((result.loss for result in run.results), default=None) for run in runs]
    if len(runs) < 2 or any(loss is None for loss in lowest):
        return None, []
    level = max(loss for loss in lowest if loss is not None)
    return level, [_first(run.results, level) for run in runs]


def _first(results: Iterable[Result], level: float) -> Result:
    return next(result for result in results if result.loss <= level)


def as_tree(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values, for a program."""
    names = [run.name for run in found.runs]
    return {
        "runs": [
            {
                "name": run.name,
                "folder": run.folder,
                "step": run.summary.step,
                "best_step": run.summary.best_step,
                "tokens": run.summary.tokens,
                "training_seconds": run.summary.training_seconds,
                "cost_usd": run.summary.cost_usd,
            }
            for run in found.runs
        ],
        "same_held_out_rows": found.same_rows,
        "figures": {name: dict(zip(names, row, strict=True)) for name, row in found.values.items()},
        "best": {name: names[at] for name, at in found.best.items()},
        "config": {key: dict(zip(names, row, strict=True)) for key, row in found.config.items()},
        "loss_that_all_reached": found.level,
        "reached": dict(zip(names, found.reached, strict=True)) if found.reached else None,
    }
