"""What a run shows while it trains: to a terminal, or to nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from headway.engine.steps import Plan
    from headway.records import Evaluation, StepReport


class Show(Protocol):
    """Where a person watches: a terminal, or nobody (``Quiet``)."""

    def step(self, report: StepReport, plan: Plan, cost_usd: float | None) -> None:
        """After each optimizer step."""
        ...

    def evaluated(self, evaluation: Evaluation) -> None:
        """After each evaluation."""
        ...

    def say(self, what: str) -> None:
        """Anything else worth one line: a save, a warning, a fall-back."""
        ...


class Quiet:
    """Shows nothing; the journal has it all."""

    def step(self, report: StepReport, plan: Plan, cost_usd: float | None) -> None:
        """Nothing."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """Nothing."""

    def say(self, what: str) -> None:
        """Nothing."""
