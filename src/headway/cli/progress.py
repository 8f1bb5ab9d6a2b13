"""What a person sees while a run trains: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_module
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from headway.evals import as_json
from headway.records import Evaluation, StepReport, StopReason
from headway.report.figures import Figures, counts, figures
from headway.report.words import rows_in_words

PLAIN_EVERY_SECONDS = 10.0


class Screen(Protocol):
    """A ``headway.run.Show`` that also says how it ended."""

    def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None: ...
    def evaluated(self, evaluation: Evaluation) -> None: ...
    def say(self, what: str) -> None: ...
    def ended(self, folder: Path, reason: StopReason, report: Path | None) -> None: ...


@contextlib.contextmanager
def progress(json: bool) -> Iterator[Screen]:
    """The screen that fits stdout: JSON lines, a live terminal, or plain lines for a file or
    pipe."""
    out = Lasting(sys.stdout)
    console = Console(file=cast(TextIO, out), highlight=False, soft_wrap=True)
    if os.environ.get("RANK", "0") != "0":
        yield Plain(Console(quiet=True))  # rank 0 speaks for all
    elif json:
        yield JsonLines(out)
    elif console.is_terminal:
        bar = BarColumn(bar_width=24, complete_style="bold", finished_style="bold")
        with Progress(
            TextColumn("step {task.completed:>5.0f}/{task.total:.0f}"),
            bar,
            TextColumn("{task.description}"),
            console=console,
            refresh_per_second=4,
        ) as live:
            yield Live(live)
    else:
        yield Plain(console)


class Lasting:
    """An output that training outlives: once nobody reads it, what is said is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Never raises OSError."""
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Never raises OSError."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def __getattr__(self, name: str) -> Any:
        """Everything else (``isatty``, ``encoding``) is the stream's own."""
        return getattr(self._stream, name)

    def _drop(self) -> None:
        """From now on, and for what still waits in the buffer: the interpreter flushes it last."""
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), self._stream.fileno())


class Pace:
    """Rate and time left from the last steps."""

    def __init__(self) -> None:
        self.steps: deque[StepReport] = deque(maxlen=30)

    def line(self, report: StepReport, num_steps: int, cost_usd: float | None) -> str:
        """loss, rate, time left, memory and cost of the run at this step."""
        self.steps.append(report)
        seconds = sum(step.seconds for step in self.steps)
        tokens = sum(step.tokens for step in self.steps)
        left = seconds / len(self.steps) * (num_steps - report.step)
        parts = [
            f"loss {report.loss:.4f}",
            f"{tokens / max(seconds, 1e-9):,.0f} tok/s",
            f"{clock(left)} left",
            f"{report.memory_bytes / 1e9:.1f} GB",
        ]
        if cost_usd is not None:
            parts.append(f"${cost_usd:.4f}")
        return "  ".join(parts)


class Plain:
    """Lines for a pipe or a log file: the first step, then one every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()
        self._shown_at = float("-inf")

    def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
        line = self._pace.line(report, plan.num_steps, cost_usd)
        now = time.monotonic()
        if now - self._shown_at >= PLAIN_EVERY_SECONDS or report.step == plan.num_steps:
            self._shown_at = now
            self.say(f"step {report.step}/{plan.num_steps}  {line}")

    def evaluated(self, evaluation: Evaluation) -> None:
        self.say(measured(evaluation))

    def say(self, what: str) -> None:
        self._console.print(escape(what))

    def ended(self, folder: Path, reason: StopReason, report: Path | None) -> None:
        self.say(how_it_ended(folder, reason, report))


class Live:
    """A live line with a bar; everything else scrolls above it."""

    def __init__(self, live: Progress) -> None:
        self._live = live
        self._pace = Pace()
        self._task: TaskID | None = None

    def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
        line = self._pace.line(report, plan.num_steps, cost_usd)
        if self._task is None:
            self._task = self._live.add_task("", total=plan.num_steps)
        self._live.update(self._task, completed=report.step, description=escape(line))

    def evaluated(self, evaluation: Evaluation) -> None:
        self.say(measured(evaluation))

    def say(self, what: str) -> None:
        self._live.console.print(escape(what))

    def ended(self, folder: Path, reason: StopReason, report: Path | None) -> None:
        self.say(how_it_ended(folder, reason, report))


class JsonLines:
    """One JSON object a line."""

    def __init__(self, out: Lasting | None = None) -> None:
        self._out = out or Lasting(sys.stdout)

    def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
        self._write("step", dataclasses.asdict(report) | {"cost_usd": cost_usd})

    def evaluated(self, evaluation: Evaluation) -> None:
        # Its tables may hold every prediction; they are on disk.
        self._write("evaluation", as_json(replace(evaluation, tables={}, observed=())))

    def say(self, what: str) -> None:
        self._write("note", {"what": what})

    def ended(self, folder: Path, reason: StopReason, report: Path | None) -> None:
        facts = {"run": str(folder), "reason": reason.value, "report": report and str(report)}
        self._write("stop", facts)

    def _write(self, event: str, facts: dict[str, Any]) -> None:
        self._out.write(json_module.dumps({"event": event, **facts}) + "\n")
        self._out.flush()


def measured(evaluation: Evaluation, table_follows: bool = False) -> str:
    """``held-out loss 2.1234 at step 50 (120 rows, weight 9,876, 12 s)``, other metrics after it,
    unless these are many and ``table_follows`` with all of them.

    ``200 of 2,212 rows`` where not all were measured. Where metrics are many: the main ones with
    their baselines and the counts, a line each, and how many more there are. What the model went on
    with comes last.
    """
    found = figures({"metrics": evaluation.metrics, "baselines": evaluation.baselines})
    rows = "held-out" if evaluation.split == "eval" else "test"
    head = (
        f"{rows} loss {evaluation.metrics['loss']:.4f} at step {evaluation.step} "
        f"({rows_in_words(evaluation.rows, evaluation.of_rows)} rows, "
        f"weight {evaluation.weight:,.0f}, {evaluation.seconds:.0f} s)"
    )
    samples = [f"\n  {prompt}{text!r}" for prompt, text in evaluation.samples]
    if not found.many:
        others = [f"{k} {v:.4g}" for k, v in evaluation.metrics.items() if k != "loss"]
        others += [f"{k} {v:.4g}" for k, v in evaluation.baselines.items()]
        return head + ("; " + ", ".join(others) if others else "") + "".join(samples)
    lines = [head + "".join(f"; {kind} {v:.4g}" for kind, v in found.beside("loss").items())]
    if table_follows:
        return lines[0] + "".join(samples)
    lines.append("  " + ", ".join(_beside_baselines(found, name) for name in found.main[1:]))
    counted = [m for m in found.metrics if counts(m) and ("", m) in found.values]
    if counted:
        lines.append("  " + ", ".join(f"{m} {found.values['', m]:,.0f}" for m in counted[:3]))
    left_out = len(found.values) - len(found.main) - len(counted[:3])
    by = f", by source too ({', '.join(found.sources)})" if found.sources else ""
    lines.append(f"  {left_out} more figures{by}: in the report")
    return "\n".join(lines) + "".join(samples)


def _beside_baselines(found: Figures, name: str) -> str:
    """``r2 0.512 (constant mean 0)``"""
    beside = [f"{kind} {value:.3g}" for kind, value in found.beside(name).items()]
    return f"{name} {found.values['', name]:.3g}" + (f" ({', '.join(beside)})" if beside else "")


def how_it_ended(folder: Path, reason: StopReason, report: Path | None) -> str:
    """The last lines: why, what to do next, and where the report is."""
    more = {
        StopReason.SIGNAL: "the same command goes on",
        StopReason.BUDGET: "raise cost.budget_usd and the same command goes on",
        StopReason.DEADLINE: "give run.max_hours or run.stop_at more time and the same command "
        "goes on",
    }
    then = f"; {more[reason]}" if reason in more else ""
    seen = f"\nreport: {report}" if report else ""
    return f"{reason.value}: {folder}{then}{seen}"


def clock(seconds: float) -> str:
    """1:02:03 or 2:03"""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
