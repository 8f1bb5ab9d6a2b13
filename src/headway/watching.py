"""A run's monitor as training uses it: it judges each step, and says what it finds where people
look: terminal, journal, webhook. The watchdog beside it judges the silence between steps.

Nothing here waits: disk and GPU are read in a thread, the webhook is called in a thread. What is
rolled back is decided in ``rollback.py``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headway.config import Monitor as Section
from headway.journal import Journal, timeline
from headway.monitor import Alert, Monitor, Over, Sampler, Webhook, look_at, webhook_text
from headway.records import Evaluation, StepReport
from headway.supervise import HEARTBEAT_FILE, SilenceLimits, Watchdog

REMEMBERED_STEPS = 2000
"""Rules look at 256 steps and at blocks of 25; what is older changes no verdict on a spike."""
NAMED_ROWS = 64


class Watching:
    """The monitor and the watchdog of one open run; other ranks have the watchdog alone."""

    def __init__(
        self,
        monitor: Monitor,
        journal: Journal | None,
        *,
        name: str,
        say: Callable[[str], None],
        rows_of: Callable[[int], Sequence[int]],
        waiting: Callable[[], int],
        webhook: Webhook | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        """``rows_of(step)``: the rows of a step's batch; ``waiting()``: checkpoints not sent."""
        self._monitor, self._journal, self._name = monitor, journal, name
        self._say, self._rows_of, self._waiting = say, rows_of, waiting
        self._webhook, self._sampler = webhook, sampler
        self._silences: list[Alert] = []
        self._save_bytes: int | None = None
        self._step = 0
        self.watchdog: Watchdog | None = None

    @property
    def spiked(self) -> bool:
        """Whether the loss of the newest step was a spike."""
        return self._monitor.spiked is not None

    @property
    def going_on(self) -> tuple[str, ...]:
        """The kinds of alerts that are not over."""
        return self._monitor.going_on

    def beat(self, step_seconds: float | None = None) -> None:
        """A sign of life, for the watchdog and for a supervisor."""
        if self.watchdog:
            self.watchdog.beat(step_seconds)

    def beating(self, ask: Callable[[], bool]) -> Callable[[], bool]:
        """The same question; each time it is asked is a sign of life."""

        def asked() -> bool:
            self.beat()
            return ask()

        return asked

    def watch(self, report: StepReport) -> None:
        """Judge a step, and the machine where there is a new look at it."""
        self._step = report.step
        if self._journal is None:
            return
        while self._silences:  # told when it happened; here it gets its line, and later its end
            self._tell(self._monitor.other(self._silences.pop(0)), aloud=False)
        self._tell(self._monitor.step(report))
        found = self._sampler.newest() if self._sampler else None
        if found:
            now = replace(found, save_bytes=self._save_bytes, waiting_checkpoints=self._waiting())
            self._tell(self._monitor.gauges(now))
        self._count_dropped()

    def evaluated(self, evaluation: Evaluation) -> None:
        """Judge an evaluation."""
        self._tell(self._monitor.evaluation(evaluation.step, evaluation.metrics["loss"]))

    def saved(self, size_bytes: int) -> None:
        """How large the newest checkpoint is."""
        self._save_bytes = size_bytes

    def rolls_back(self, alert: Alert) -> None:
        """Say that the run goes back."""
        self._tell(self._monitor.other(alert))

    def remember(self, events: Iterable[Mapping[str, Any]], until_step: int) -> None:
        """Take what earlier attempts saw from the journal: verdicts do not depend on restarts."""
        if self._journal is None:
            return
        lines = [dict(event) for event in events]
        found = [*timeline(lines, "step"), *timeline(lines, "evaluation")]
        kept = [e for e in found if until_step - REMEMBERED_STEPS < e["step"] <= until_step]
        self._monitor.remember(sorted(kept, key=lambda e: (e["step"], e["event"] != "step")))

    # ------------------------------------------------------------- saying it

    def silent(self, seconds: float, stacks: Path | None) -> None:
        """On the watchdog's thread: training has shown no sign of life."""
        where = f"where it stands: {stacks.name} in the run's folder" if stacks else "see stderr"
        alert = Alert(
            kind="silence",
            level="critical",
            what=f"no sign of life for {seconds:.0f} s after step {self._step}; {where}",
            why="a disk, a network or another rank does not answer, or one step takes that long",
            advice="the stacks name the line it waits at. Ctrl-C twice leaves; the same command "
            "goes on from the newest checkpoint",
            step=self._step,
        )
        first = "silence" not in self._monitor.going_on and not self._silences
        self._silences.append(alert)
        if first:
            self._aloud(alert)

    def hung(self, seconds: float) -> None:
        """On a thread of its own, seconds before the process ends."""
        what = f"no sign of life for {seconds:.0f} s: a hang. Its stacks are in hang-*.txt"
        with contextlib.suppress(Exception):  # the last words must not keep it alive
            self._say(f"ENDING: {what}; the same command goes on from the newest checkpoint")
            if self._webhook:
                self._webhook.send(webhook_text(self._name, "ended: it hung", what))
            if self._journal:
                for alert in self._silences:
                    self._journal.append("alert", **asdict(alert))
                self._journal.append("stop", reason="error", message=what)
                self._journal.flush()

    def _tell(self, said: Sequence[Alert | Over], *, aloud: bool = True) -> None:
        if self._journal is None:
            return
        for one in said:
            if isinstance(one, Over):
                self._journal.append("alert_over", **asdict(one))
                self._say(f"over since step {one.step}: {words(one.kind)}")
                continue
            alert = self._with_rows(one)
            self._journal.append("alert", **asdict(alert))
            if aloud:
                self._aloud(alert)

    def _with_rows(self, alert: Alert) -> Alert:
        if alert.kind != "loss_spike":
            return alert
        rows = tuple(self._rows_of(alert.step))
        what = f"step {alert.step}: {alert.what}. Its {len(rows)} rows are in the journal"
        return replace(alert, what=what, rows=rows[:NAMED_ROWS])

    def _aloud(self, alert: Alert) -> None:
        heading = f"{alert.level}: {words(alert.kind)}, step {alert.step}"
        self._say(f"ALERT {heading}: {alert.what}. {alert.why}. What to do: {alert.advice}")
        if self._webhook:
            advice = f"What to do: {alert.advice}"
            self._webhook.send(webhook_text(self._name, heading, alert.what, alert.why, advice))

    def _count_dropped(self) -> None:
        dropped, why = self._webhook.dropped() if self._webhook else (0, "")
        if dropped and self._journal:
            self._journal.append("webhook", dropped=dropped, why=why)
            self._say(f"WARNING: {dropped} alerts did not reach the webhook ({why})")


@contextlib.contextmanager
def watching(
    section: Section,
    folder: Path,
    journal: Journal | None,
    *,
    say: Callable[[str], None],
    num_steps: int,
    memory_limit_bytes: int | None,
    gpu: bool,
    rows_of: Callable[[int], Sequence[int]],
    waiting: Callable[[], int],
) -> Iterator[Watching]:
    """The monitor of the run in ``folder``, its threads running until the end of the block.

    ``journal``: None on ranks that write nothing. Raises ConfigError: the webhook's address is
    none.
    """
    with contextlib.ExitStack() as stack:
        url = os.environ.get(section.webhook_env or "", "") if journal else ""
        here = Watching(
            Monitor(
                section,
                num_steps=num_steps,
                memory_limit_bytes=memory_limit_bytes,
                mute=section.mute,
            ),
            journal,
            name=folder.name,
            say=say,
            rows_of=rows_of,
            waiting=waiting,
            webhook=stack.enter_context(Webhook(url)) if url else None,
            sampler=stack.enter_context(Sampler(lambda: look_at(folder, gpu=gpu)))
            if journal
            else None,
        )
        here.watchdog = stack.enter_context(
            Watchdog(
                folder,
                SilenceLimits(
                    alert_seconds=section.watchdog.alert_seconds,
                    end_seconds=section.watchdog.end_seconds,
                ),
                heartbeat=folder / HEARTBEAT_FILE if journal else None,
                on_silence=here.silent,
                on_end=here.hung,
            )
        )
        if section.webhook_env and journal and not url:
            line = f"monitor.webhook_env: {section.webhook_env} is not set, so alerts go nowhere"
            journal.append("warning", what=line)
            say(f"WARNING: {line}")
        yield here


def words(kind: str) -> str:
    """``loss_spike`` -> ``loss spike``."""
    return kind.replace("_", " ")
