"""``headway evaluate``, ``predict`` and ``export``: use the checkpoint that was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headway.engine.task import Recipe

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
    import dataclasses
    import json as json_module

    from headway.api import load_run
    from headway.cli.progress import measured
    from headway.cli.tables import show_table
    from headway.errors import ConfigError
    from headway.report.figures import figures, grid

    if split not in ("eval", "test"):
        raise ConfigError(f"--split {split}: write eval or test")
    trained = load_run(run, step, data=True)
    found = trained.evaluate(split="test" if split == "test" else "eval")
    facts = dataclasses.asdict(found)
    if json:
        typer.echo(json_module.dumps(facts))
    else:
        typer.echo(measured(found))
        if figures(facts).many:
            head, rows = grid(figures(facts))
            typer.echo()
            show_table([title for _, title in head], rows)
    try:
        kept = f"kept in {trained.keep(found)}"
    except OSError as error:  # such as an archive that nobody may write to
        kept = f"not kept: {error}"
    typer.echo(kept, err=json)


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
    evidence: Annotated[
        list[str] | None,
        typer.Option("--evidence", help="regression: a passage for --steps; repeat for more."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option("--part", help="latent_editor: a part, as STEP or JSON (family, parameters)."),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="latent_editor: what should change of it.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", help="latent_editor: write the edited part, as .step or .json."),
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
    from headway.errors import ConfigError

    chain: Mapping[str, Any] = {"problem": problem, "steps": steps, "evidence": evidence}
    edit: dict[str, Any] = {"part": part, "instruction": instruction, "out": out}
    chain, edit = ({k: v for k, v in given.items() if v is not None} for given in (chain, edit))
    if edit and (prompt or chain or file):
        raise ConfigError(f"--{next(iter(edit))}: an edit takes --part, --instruction and --out")
    requests = [("--instruction", edit)] if edit else requests_of(prompt or [], chain, file)
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    options = {key: value for key, value in given.items() if value is not None}
    trained = load_run(run, step)
    check_all(trained.recipe, requests, options)
    for _, request in requests:
        answer = trained.predict({**options, **request})
        typer.echo(json_module.dumps({**request, **answer}) if json else shown(answer["text"]))


def requests_of(
    prompts: Sequence[str], chain: Mapping[str, Any], file: Path | None
) -> list[tuple[str, dict[str, Any]]]:
    """(where it was given, request) of each; ConfigError for options that say two things."""
    from headway.data.sources import read_records
    from headway.errors import ConfigError

    if chain and (prompts or file):
        other = "--prompt" if prompts else "--file"
        raise ConfigError(f"--{next(iter(chain))} and {other}: give one of them, not both")
    if chain and "steps" not in chain:
        raise ConfigError(f"--{next(iter(chain))} needs --steps: the texts that get a number")
    if file and not file.is_file():
        raise ConfigError(f"--file {file}: there is no such file")
    found: list[tuple[str, dict[str, Any]]] = [("--prompt", {"prompt": text}) for text in prompts]
    if chain:
        lines = [line for text in chain["steps"] for line in text.splitlines() if line.strip()]
        found.append(("--steps", {"problem": "", **chain, "steps": lines}))
    if file:
        found += [(record.where, dict(record.data)) for record in read_records(str(file))]
    if not found:
        raise ConfigError("predict needs --prompt TEXT, --steps TEXT or --file REQUESTS.jsonl")
    return found


def check_all(
    recipe: Recipe,
    requests: Sequence[tuple[str, Mapping[str, Any]]],
    options: Mapping[str, Any],
) -> None:
    """Refuse an odd request, naming where it was given, before the first is answered."""
    from headway.errors import ConfigError

    for where, request in requests:
        try:
            recipe.check_request({**options, **request})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


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
