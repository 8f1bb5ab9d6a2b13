"""``headway evaluate``, ``predict`` and ``export``: use the checkpoint that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Measure a checkpoint on the run's held-out rows."""
    import dataclasses
    import json as json_module

    from headway.api import load_run
    from headway.cli.progress import measured
    from headway.cli.tables import show_table
    from headway.report.figures import figures, grid

    found = load_run(run, step, data=True).evaluate()
    facts = dataclasses.asdict(found)
    if json:
        typer.echo(json_module.dumps(facts))
        return
    typer.echo(measured(found))
    if figures(facts).many:
        head, rows = grid(figures(facts))
        typer.echo()
        show_table([title for _, title in head], rows)


def predict(
    run: RUN,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="What to ask; repeat for more.")
    ] = None,
    problem: Annotated[
        str | None, typer.Option("--problem", help="regression: what the steps should solve.")
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option("--steps", help="regression: the steps, one a line, or one each time."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="JSONL, one request a line, its keys as the options here."),
    ] = None,
    step: STEP = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens; left out: 128.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0, or left out: greedy.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line an answer.")] = False,
) -> None:
    """Try a checkpoint: a request is read and written exactly as the rows it was trained on."""
    import json as json_module

    from headway.api import load_run
    from headway.data.sources import read_records
    from headway.errors import ConfigError

    if file and not file.is_file():
        raise ConfigError(f"--file {file}: there is no such file")
    requests: list[dict[str, Any]] = [{"prompt": text} for text in prompt or ()]
    if steps:
        lines = [line for text in steps for line in text.splitlines() if line.strip()]
        requests.append({"problem": problem or "", "steps": lines})
    requests += [dict(record.data) for record in read_records(str(file))] if file else []
    if not requests:
        raise ConfigError("predict needs --prompt TEXT, --steps TEXT or --file REQUESTS.jsonl")
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    options = {key: value for key, value in given.items() if value is not None}
    trained = load_run(run, step)
    for request in requests:
        answer = trained.predict({**options, **request})
        typer.echo(json_module.dumps({**request, **answer}) if json else shown(answer["text"]))


def shown(text: str) -> str:
    """What a model said, without the control characters that would steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def export(
    run: RUN,
    to: Annotated[Path, typer.Option("--to", help="Folder to write; must be empty.")],
    format: Annotated[
        str, typer.Option("--format", help="adapter, merged, or full (a fully trained model).")
    ] = "adapter",
    step: STEP = None,
) -> None:
    """Write weights for use elsewhere; they are read back and compared before this says done."""
    from headway.api import load_run

    found = load_run(run, step).export(to, format)
    typer.echo(f"exported to {to}: " + ", ".join(f"{k} {v}" for k, v in found.items()))
