"""``headway report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run directory, or a run's name under runs/. Two or more are compared.",
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="File to write; left out: report.html in the run, or comparison.html beside the "
            "runs.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the file's name, and a comparison, as JSON.")
    ] = False,
) -> None:
    """Write one self-contained HTML page: curves, evaluations, worst rows, cost.

    Of several runs: their curves over each other, the config keys that differ, which is best by
    which figure, and what each paid for the loss that all of them reached.
    """
    from headway.cli.tables import show_json
    from headway.comparing import compare_runs, write_comparison
    from headway.viewing import write_report

    path = write_report(runs[0], to) if len(runs) == 1 else write_comparison(runs, to)
    if json:
        facts = {"report": path, "bytes": path.stat().st_size}
        if len(runs) > 1:
            from headway.report.side_by_side import as_tree

            facts |= {"comparison": as_tree(compare_runs(runs))}
        show_json(facts)
    else:
        typer.echo(str(path))
