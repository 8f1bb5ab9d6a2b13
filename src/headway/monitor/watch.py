"""The monitor: looks at each step, block, evaluation and gauge with the rules that judge it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from headway.monitor import learning, running
from headway.monitor.alerts import Alert, Episodes, Over
from headway.monitor.history import Gauges, History
from headway.monitor.thresholds import Thresholds
from headway.records import AlertKind, StepReport

Rule = Callable[[History, Thresholds], Alert | None]


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that look at the same moments."""

    rules: Mapping[AlertKind, Rule]
    calm: int
    """Looks in a row without the sign after which it is over."""


AT_STEPS = Group(
    {
        "loss_spike": learning.loss_spike,
        "gradient_exploding": learning.gradient_exploding,
        "gradient_zero": learning.gradient_zero,
        "learning_rate_zero": learning.learning_rate_zero,
    },
    calm=50,
)
AT_BLOCKS = Group(
    {
        "loss_rising": learning.loss_rising,
        "loss_flat": learning.loss_flat,
        "gradient_vanishing": learning.gradient_vanishing,
    },
    calm=20,  # a curve at the edge of a verdict crosses it again and again
)
SPEED_AT_BLOCKS = Group(
    {
        "throughput_drop": running.throughput_drop,
        "memory_growing": running.memory_growing,
    },
    calm=6,
)
AT_EVALUATIONS = Group({"evaluation_gap": learning.evaluation_gap}, calm=2)
AT_GAUGES = Group(
    {
        "gpu_idle": running.gpu_idle,
        "disk_filling": running.disk_filling,
        "upload_backlog": running.upload_backlog,
    },
    calm=20,
)
RULES: Mapping[AlertKind, Rule] = {
    kind: rule
    for group in (AT_STEPS, AT_BLOCKS, SPEED_AT_BLOCKS, AT_EVALUATIONS, AT_GAUGES)
    for kind, rule in group.rules.items()
}
"""All rules on a history. Refusals, silence and roll backs are told by those who see them."""


class Monitor:
    """What the rules have seen of one run. Every method returns what there is to say now."""

    def __init__(
        self,
        thresholds: Thresholds,
        *,
        num_steps: int = 0,
        memory_limit_bytes: int | None = None,
        mute: Collection[str] = (),
    ) -> None:
        """``mute``: kinds that are not looked for."""
        self.history = History(num_steps=num_steps, memory_limit_bytes=memory_limit_bytes)
        self.spiked: int | None = None
        """The newest step, if its loss was a spike: asked of every step, said once an episode."""
        self._thresholds = thresholds
        self._mute = frozenset(mute)
        self._episodes = Episodes({})

    @property
    def going_on(self) -> tuple[AlertKind, ...]:
        """The alerts that are not over."""
        return tuple(self._episodes.going_on)

    def step(self, report: StepReport) -> list[Alert | Over]:
        """After each step. A refused one is an alert of its own and no part of the history."""
        self.spiked = None
        sign = learning.non_finite(report)
        kinds: list[AlertKind] = ["non_finite", "silence", "roll_back"]
        said = self._looked(report.step, kinds, [sign] if sign else [], AT_STEPS.calm)
        if report.refused is not None:
            return said
        self.history = self.history.after(report)
        said += self._look(AT_STEPS)
        if self.history.in_block == 0:
            said += self._look(AT_BLOCKS) + self._look(SPEED_AT_BLOCKS)
        return said

    def evaluation(self, step: int, loss: float) -> list[Alert | Over]:
        """After each evaluation: the held-out loss."""
        self.history = self.history.after_evaluation(step, loss)
        return self._look(AT_EVALUATIONS)

    def gauges(self, gauges: Gauges) -> list[Alert | Over]:
        """After each look at the machine."""
        self.history = self.history.after_gauges(gauges)
        return self._look(AT_GAUGES) if self.history.steps else []

    def other(self, alert: Alert) -> list[Alert | Over]:
        """A sign that somebody else saw: silence, a roll back. Over after some quiet steps."""
        return self._looked(alert.step, [alert.kind], [alert], AT_STEPS.calm)

    def remember(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take the standing ``step`` and ``evaluation`` events of earlier attempts from a journal.

        Afterwards every rule is where it would be had the run not been interrupted, and an alert
        that goes on is not said again.
        """
        for event in events:
            if event["event"] == "evaluation":
                loss = event["metrics"]["loss"]
                if isinstance(loss, float):
                    self.evaluation(event["step"], loss)
            elif not event.get("refused"):
                self.step(report_of(event))
        self.spiked = None
        self.history = self.history.in_new_attempt()
        lasting = {*AT_STEPS.rules, *AT_BLOCKS.rules, *AT_EVALUATIONS.rules}
        going_on = self._episodes.going_on
        self._episodes = Episodes({kind: going_on[kind] for kind in going_on if kind in lasting})

    def _look(self, group: Group) -> list[Alert | Over]:
        step = self.history.steps[-1].step if self.history.steps else 0
        found = [rule(self.history, self._thresholds) for rule in group.rules.values()]
        signs = [alert for alert in found if alert]
        if any(alert.kind == "loss_spike" for alert in signs):
            self.spiked = step
        return self._looked(step, list(group.rules), signs, group.calm)

    def _looked(
        self, step: int, kinds: Collection[AlertKind], found: list[Alert], calm: int
    ) -> list[Alert | Over]:
        wanted = [kind for kind in kinds if kind not in self._mute]
        self._episodes, said = self._episodes.looked(
            step, wanted, [replace(a, step=step) for a in found if a.kind in wanted], calm
        )
        return said


def report_of(event: Mapping[str, Any]) -> StepReport:
    """A journal's ``step`` line as the report it was made from."""
    names = ("step", "loss", "learning_rate", "grad_norm", "weight", "rows", "tokens", "seconds")
    return StepReport(
        **{name: event[name] for name in names}, memory_bytes=event.get("memory_bytes", 0)
    )
