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
    import json as json_module

    from headway.api import load_run
    from headway.cli.progress import measured
    from headway.cli.tables import show_table
    from headway.errors import ConfigError
    from headway.evals import as_json
    from headway.report.figures import figures, grid

    if split not in ("eval", "test"):
        raise ConfigError(f"--split {split}: write eval or test")
    trained = load_run(run, step, data=True)
    found = trained.evaluate(split="test" if split == "test" else "eval")
    facts = as_json(found)
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
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            help="vision: a picture, a folder of them, or a TIFF with pages; repeat for more.",
        ),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option("--instruction", help="vision: what to ask; left out: the run's own."),
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
    from headway.api import load_run

    chain = given_of(problem=problem, steps=steps, evidence=evidence)
    options = given_of(
        max_new_tokens=max_new_tokens, temperature=temperature, instruction=instruction
    )
    if image:
        requests = picture_requests(image, bool(prompt or file or chain))
    else:
        requests = requests_of(prompt or [], chain, file)
    trained = load_run(run, step)
    check_all(trained.recipe, requests, options)
    for _, request in requests:
        say_answer(request, trained.predict({**options, **request}), json)


def given_of(**options: Any) -> dict[str, Any]:
    """Those that were given."""
    return {key: value for key, value in options.items() if value is not None}


def say_answer(request: Mapping[str, Any], answer: Mapping[str, Any], json: bool) -> None:
    """One answer on stdout; of a picture, which it was and how long it took on stderr."""
    import json as json_module

    if json:
        typer.echo(json_module.dumps({**request, **answer}))
        return
    if "image" in request:
        facts = f"{answer['tokens']} tokens, {answer['seconds']:.1f} s"
        typer.secho(f"{picture_name(request)} ({facts})", bold=True, err=True)
    typer.echo(shown(answer["text"]))


def picture_requests(given: Sequence[Path], others: bool) -> list[tuple[str, dict[str, Any]]]:
    """(where, request) of every page of every picture; ConfigError for a path without one, and
    where ``others`` were asked for too."""
    from headway.data.pictures import ENDINGS, Picture, pages
    from headway.errors import ConfigError

    if others:
        raise ConfigError("--image goes with --instruction alone, not with other requests")
    found: list[tuple[str, dict[str, Any]]] = []
    for place in given:
        if not place.exists():
            raise ConfigError(f"--image {place}: there is no such file or folder")
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        files = [f for f in files if f.is_file() and (f == place or f.suffix.lower() in ENDINGS)]
        if not files:
            raise ConfigError(f"--image {place}: no picture in it ({', '.join(ENDINGS)})")
        for file in files:
            count = pages(Picture(f"--image {file}", path=str(file)))
            for page in range(count):
                more = {"page": page} if count > 1 else {}
                found.append((f"--image {file}", {"image": str(file), **more}))
    return found


def picture_name(request: Mapping[str, Any]) -> str:
    """The file of a request, and its page where it has several."""
    page = f", page {request['page'] + 1}" if "page" in request else ""
    return f"{request['image']}{page}"


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
        raise ConfigError(
            "predict needs --prompt TEXT, --steps TEXT, --image FILE or --file REQUESTS.jsonl"
        )
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
