"""``headway status``: one line for each run, the latest first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from headway.report.summary import Summary


def status(
    folder: Annotated[Path, typer.Argument(help="Directory that holds the runs.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """What every run is doing, how good it is and what it has cost."""
    from datetime import UTC, datetime

    from headway.cli.tables import show_json, show_table
    from headway.viewing import glance, runs_in

    never = datetime.fromtimestamp(0, UTC)
    runs = sorted(
        (glance(run, name_below(folder, run)) for run in runs_in(folder)),
        key=lambda run: run.last_at or never,
        reverse=True,
    )
    if json:
        show_json({"runs": runs, "cost_usd": spent(runs)})
        return
    if not runs:
        typer.echo(f"no run in {folder} yet; `headway init` writes a first config")
        return
    columns = ("run", "state", "step", "loss", "held-out", "tok/s", "attempts", "cost", "last")
    now = datetime.now(UTC)
    show_table(columns, [line(run, now) for run in runs], left=2)
    total = spent(runs)
    if total is not None and len(runs) > 1:
        from headway.report.words import money

        typer.echo(f"\n{len(runs)} runs, {money(total)} spent")


def name_below(folder: Path, run: Path) -> str:
    """``run``, or ``project/run`` where runs lie in folders of their own."""
    return run.name if run == folder else str(run.relative_to(folder))


def line(run: Summary, now: datetime) -> list[str]:
    """A run's cells."""
    from headway.report.words import ago, count, money, number, short_count

    steps = f"{count(run.step)}/{count(run.steps)}" if run.steps else count(run.step)
    state: str = run.state
    if run.reason and run.reason != run.state:
        state = f"{run.state} ({run.reason})"
    if run.alerts and run.state in ("running", "dead"):
        state += f", ALERT: {', '.join(run.alerts)}"
    if run.message:
        state = f"{run.state}: {shortened(run.message)}"
    return [
        run.name,
        state,
        steps,
        number(run.loss),
        number(run.held_out_loss),
        short_count(run.tokens_per_second),
        count(run.attempts),
        money(run.cost_usd),
        ago(run.last_at, now),
    ]


def shortened(message: str, width: int = 60) -> str:
    """The first words of an error; `headway report` has the rest."""
    first = message.splitlines()[0]
    return first if len(first) <= width else first[: width - 1].rstrip() + "…"


def spent(runs: Sequence[Summary]) -> float | None:
    """US dollars over all runs that know their price; None if none does."""
    costs = [run.cost_usd for run in runs if run.cost_usd is not None]
    return sum(costs) if costs else None
