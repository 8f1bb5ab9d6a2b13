"""``headway evaluate`` and ``headway export``: use the checkpoint that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUN = Annotated[Path, typer.Argument(help="Run directory, or a run's name under runs/.")]
STEP = Annotated[
    str | None,
    typer.Option(
        "--step", help="Which checkpoint: 500, step-00000500, best, or left out: the newest."
    ),
]


def evaluate(
    run: RUN,
    step: STEP = None,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            help="eval: the rows that choose the best checkpoint; test: task.data.test, which "
            "chooses nothing.",
        ),
    ] = "eval",
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Measure a checkpoint on rows that it was not trained on; kept under evals/."""
    import json as json_module

    from headway.api import load_run
    from headway.cli.progress import measured
    from headway.cli.tables import show_figures
    from headway.errors import ConfigError
    from headway.evals import as_json
    from headway.report.figures import figures

    if split not in ("eval", "test"):
        raise ConfigError(f"--split {split}: write eval or test")
    trained = load_run(run, step, data=True)
    found = trained.evaluate(split="test" if split == "test" else "eval")
    facts = as_json(found)
    if json:
        typer.echo(json_module.dumps(facts))
    else:
        typer.echo(measured(found, table_follows=True))
        if figures(facts).many:
            show_figures(figures(facts))
    try:
        kept = f"kept in {trained.keep(found)}"
    except OSError as error:  # such as an archive that nobody may write to
        kept = f"not kept: {error}"
    typer.echo(kept, err=json)


def export(
    run: RUN,
    to: Annotated[Path, typer.Option("--to", help="Folder to write; must be empty.")],
    format: Annotated[
        str, typer.Option("--format", help="adapter, merged, or full (a fully trained model).")
    ] = "adapter",
    step: STEP = None,
) -> None:
    """Write weights for use elsewhere; they are read back and compared before this says done."""
    from headway.api import load_run, refuse_full

    refuse_full(to)
    found = load_run(run, step).export(to, format)
    facts = {k.replace("_", " "): v for k, v in found.items() if k not in ("to", "format")}
    said = ", ".join(f"{name} {value}" for name, value in facts.items())
    typer.echo(f"exported to {to} as {format}, read back and compared ({said})")
