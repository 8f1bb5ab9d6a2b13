"""Going back to an earlier checkpoint, and leaving out what led to the trouble.

A roll back is a line in the journal: it names the checkpoint and the steps that are left out. The
next opening obeys it, so a kill at any instant changes nothing, and the attempt that follows takes
back what came after that checkpoint as every other attempt does.

Steps are repeated bit for bit, so going back alone would lead into the same trouble. The whole
stretch from the checkpoint to the trouble is left out: PaLM's rule for loss spikes
(arXiv:2204.02311, 5.1), where the batches were harmless from other weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from headway.errors import CheckpointError, NonFiniteStep
from headway.journal import read_events
from headway.monitor import Alert
from headway.records import StepReport
from headway.viewing import JOURNAL_FILE

if TYPE_CHECKING:
    from headway.run import Run

EVENTS = frozenset({"rollback", "attempt"})
NONE, OTHER_RANK = -1, -2

Event = Mapping[str, Any]


def rolls_back(run: Run, report: StepReport) -> bool:
    """Whether the run must be opened again at an earlier checkpoint; the journal says at which.

    The same on every rank. Raises NonFiniteStep: too many steps were refused, and it cannot go back
    (``roll_back.times`` is used up, or no checkpoint is old enough).
    """
    first, why, fatal = trouble(run, report)
    if not first:
        return False
    run.saves.saver.wait()
    target = chosen(run, first) if run.world.leads else OTHER_RANK
    back_to = run.world.agree(target)[0]
    if back_to < 0 and not fatal:
        return False
    if back_to < 0:
        raise NonFiniteStep(
            f"step {report.step}: {why}. The run cannot go back: monitor.roll_back.times is "
            f"{run.config.monitor.roll_back.times}, and a checkpoint before step {first - 1} is "
            "needed. The weights are those of the last good step; the newest checkpoint is "
            "untouched. Look at the rows (headway data show), lower train.learning_rate, or set "
            "train.max_grad_norm, in a new run that begins with run.warm_start"
        )
    if run.journal:
        run.journal.append("rollback", step=report.step, back_to=back_to, why=why)
        run.journal.flush()
        run.monitor.rolls_back(
            Alert(
                kind="roll_back",
                level="critical",
                what=f"going back to step {back_to}; steps {back_to + 1} to {report.step} are left "
                "out from now on",
                why=why,
                advice="nothing, if it stays at one; if not, lower train.learning_rate in a new "
                "run with run.warm_start",
                step=report.step,
            )
        )
    return True


def trouble(run: Run, report: StepReport) -> tuple[int, str, bool]:
    """(first step of it, why, whether the run cannot go on without going back); 0: none."""
    section = run.config.monitor
    if report.refused and not report.refused.left_out:
        since = report.step - section.non_finite.window_steps
        recent = [step for step in run.state.refused if step > since]
        if len(recent) > section.non_finite.refuse_steps:
            named = f" (rows {list(report.refused.rows)})" if report.refused.rows else ""
            steps = ", ".join(map(str, recent[-8:]))
            why = f"steps {steps} were refused, the last with {report.refused.why}{named}"
            return recent[0], why, True
    elif section.on_spike == "rollback" and run.world.agree(int(run.monitor.spiked))[0]:
        return report.step, f"the loss of step {report.step} was a spike", False
    return 0, "", False


def chosen(run: Run, first: int) -> int:
    """The newest good checkpoint far enough before step ``first``, or the nearest; NONE if none.

    At least one good step must lie between, or leaving steps out would change nothing.
    """
    section = run.config.monitor.roll_back
    if len(read_events(run.folder / JOURNAL_FILE, {"rollback"})) >= section.times:
        return NONE
    for at_or_before in (first - 1 - section.back_steps, first - 2):
        try:
            found, _ = run.saves.store.newest_good(at_or_before)
        except CheckpointError:
            continue
        if found:
            return found.step
    return NONE


def left_out(events: Iterable[Event]) -> list[tuple[int, int]]:
    """(first, last) of the steps that each roll back in a journal leaves out."""
    rolled = (event for event in events if event.get("event") == "rollback")
    return [(int(event["back_to"]) + 1, int(event["step"])) for event in rolled]


def pending(events: Iterable[Event], steps: Collection[int]) -> int | None:
    """The checkpoint that a roll back asked for and no attempt has opened; None: nothing to obey.

    ``steps``: the checkpoints that are there; one that is gone is not asked for again.
    """
    wanted = None
    for event in events:
        if event["event"] in EVENTS:
            wanted = event["back_to"] if event["event"] == "rollback" else None
    return wanted if wanted in steps else None
