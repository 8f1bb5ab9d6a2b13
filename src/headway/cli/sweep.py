"""``headway train --sweep``: the runs before they begin, their processes, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from headway.sweeping import Point


def swept(
    config: str, overrides: Sequence[str], sweeps: Sequence[str], options: Sequence[str]
) -> int:
    """Run a sweep; its exit code. ``options``: of ``headway train``, given to each run."""
    import signal

    from headway.supervise import Ears
    from headway.sweeping import SweepRefused, asked, sweep

    try:
        points = asked(config, overrides, sweeps)
    except SweepRefused as refused:
        return refused.code
    show_plan(points)
    ignored = {n for n in (signal.SIGHUP, signal.SIGINT) if signal.getsignal(n) == signal.SIG_IGN}
    with Ears() as ears:

        def heard() -> list[int]:
            return [n for n in ears.wait(1.0) if n not in {signal.SIGCHLD, *ignored}]

        def start(point: Point, budget_usd: float | None) -> int:
            budget = [] if budget_usd is None else [f"cost.budget_usd={budget_usd:.6f}"]
            return trained([config, *overrides, *point.overrides, *budget, *options], heard)

        code = sweep(points, start, say, fresh="--fresh" in options)
    show_comparison(points)
    return code


def trained(words: Sequence[str], heard: Callable[[], list[int]]) -> int:
    """``headway train *words`` as a child process; what is heard is passed on; its exit code."""
    import sys

    from headway.supervise import Child

    child = Child([sys.executable, "-P", "-m", "headway.cli", "train", *words])
    try:
        while (code := child.code) is None:
            for number in heard():
                child.send(number)
        return code if code >= 0 else 128 - code
    finally:
        child.close()


def show_plan(points: Sequence[Point]) -> None:
    """What will be run, before anything is."""
    from headway.cli.tables import show_table
    from headway.report.words import count, money
    from headway.sweeping import state_of

    rows, total = [], 0.0
    for n, point in enumerate(points, 1):
        found = state_of(point)
        total += (found and found.cost_usd) or 0.0
        state = "new" if found is None else f"{found.state} at step {count(found.step)}"
        spent = money(found.cost_usd) if found else "–"
        rows.append([str(n), point.name, *(value for _, value in point.values), spent, state])
    keys = [key for key, _ in points[0].values]
    show_table(["", "run", *keys, "cost", "state"], rows, left=2)
    budget = points[0].budget_usd
    if budget is not None:
        say(f"budget of the sweep: {money(budget)}, {money(total)} of it spent")


def show_comparison(points: Sequence[Point]) -> None:
    """Which is best, and what each result cost."""
    import shlex

    from headway.cli.tables import show_table
    from headway.report.words import count, money, number, short_count
    from headway.sweeping import compared

    found = compared(points)
    if not found:
        return
    rows = [
        [
            point.name,
            number(run.best_loss),
            count(run.best_step),
            number(run.loss),
            count(run.step),
            short_count(run.tokens_per_second),
            money(run.cost_usd),
            run.state,
        ]
        for point, run in found
    ]
    columns = ("run", "held-out", "at step", "loss", "step", "tok/s", "cost", "state")
    typer.echo()
    show_table(columns, rows)
    point, best = found[0]
    costs = [run.cost_usd for _, run in found if run.cost_usd is not None]
    total = f"; all of them {money(sum(costs))}" if costs else ""
    by = "held-out" if best.best_loss is not None else "training"
    loss = best.best_loss if best.best_loss is not None else best.loss
    say(f"best by {by} loss: {point.name}, {number(loss)} for {money(best.cost_usd)}{total}")
    say(f"compare: {shlex.join(['headway', 'report', *(p.folder for p, _ in found)])}")


def say(line: str) -> None:
    """To stderr: what the runs print is stdout's."""
    typer.echo(f"sweep: {line}", err=True)
