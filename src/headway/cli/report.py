"""``headway report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[str, typer.Argument(help="Run directory, or a run's name under runs/.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="File to write; left out: report.html in the run.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the file's name as JSON.")] = False,
) -> None:
    """Write one self-contained HTML page: curves, evaluations, worst rows, cost."""
    from headway.cli.tables import show_json
    from headway.viewing import write_report

    path = write_report(run, to)
    if json:
        show_json({"report": path, "bytes": path.stat().st_size})
    else:
        typer.echo(str(path))
