"""``headway predict``: one question, in the words of whichever recipe trained the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway.cli.use import RUN, STEP

if TYPE_CHECKING:
    from headway.api import TrainedRun
    from headway.engine.task import Recipe


Prompt = Annotated[
    list[str] | None, typer.Option("--prompt", "-p", help="What to ask; repeat for more.")
]
Problem = Annotated[
    str | None, typer.Option("--problem", help="regression: what the steps should solve.")
]
Steps = Annotated[
    list[str] | None,
    typer.Option("--steps", help="regression: the steps, one a line, or one each time."),
]
Evidence = Annotated[
    list[str] | None,
    typer.Option("--evidence", help="regression: a passage for --steps; repeat for more."),
]
Image = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        help="vision: a picture, a folder of them, or a TIFF with pages; repeat for more.",
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        "--part", help="graph_vae, latent_editor: a part, as STEP or JSON (family, parameters)."
    ),
]
Out = Annotated[
    str | None,
    typer.Option("--out", help="latent_editor: write the edited part, as .step or .json."),
]
Instruction = Annotated[
    str | None,
    typer.Option(
        "--instruction",
        help="vision: what to ask, left out the run's own; latent_editor: what should change.",
    ),
]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and where it was given: an option, or line 3 of a file."""

    where: str
    request: Mapping[str, Any]
    problem: str = ""
    """Why it cannot be answered, where that is known already."""


def predict(
    run: RUN,
    prompt: Prompt = None,
    problem: Problem = None,
    steps: Steps = None,
    evidence: Evidence = None,
    image: Image = None,
    part: Part = None,
    out: Out = None,
    instruction: Instruction = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="JSONL, one request a line, its keys as the options here."),
    ] = None,
    step: STEP = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Longest answer, in tokens; left out: 128, of a picture 1024."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0, or left out: greedy.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line an answer.")] = False,
) -> None:
    """Try a checkpoint: a request is read and written exactly as the rows it was trained on."""
    from headway.api import load_run

    requests = requests_of(
        file,
        chain=given_only(problem=problem, steps=steps, evidence=evidence),
        prompt=prompt,
        image=image,
        part=given_only(part=part, out=out),
    )
    given = given_only(
        max_new_tokens=max_new_tokens, temperature=temperature, instruction=instruction
    )
    trained = load_run(run, step)
    check_all(trained.recipe, requests, given)
    answer_all(trained, requests, given, json)


def answer_all(
    trained: TrainedRun, requests: Sequence[Asked], options: Mapping[str, Any], json: bool
) -> None:
    """Answer one request after the other. One whose data cannot be read is named and stops none of
    the others; DataError at the end, where there was any."""
    from headway.errors import ConfigError, DataError

    failed = 0
    for asked in requests:
        try:
            if asked.problem:
                raise DataError(asked.problem)
            answer = trained.predict({**options, **asked.request})
        except ConfigError as error:
            raise ConfigError(f"{asked.where}: {error}") from error
        except DataError as error:
            if len(requests) == 1:
                raise DataError(f"{asked.where}: {error}") from error
            failed += 1
            say_failure(asked, str(error), json)
        else:
            say_answer(asked.request, answer, json)
    if failed:
        raise DataError(f"{failed:,} of {len(requests):,} have no answer; each is named above")


def say_answer(request: Mapping[str, Any], answer: Mapping[str, Any], json: bool) -> None:
    """One answer on stdout; on stderr of a picture, which it was and how long it took, and whether
    the answer was cut."""
    import json as json_module

    if json:
        typer.echo(json_module.dumps({**request, **answer}))
        return
    if "image" in request:
        facts = f"{answer['tokens']} tokens, {answer['seconds']:.1f} s"
        typer.secho(f"{picture_name(request)} ({facts})", bold=True, err=True)
    typer.echo(shown(answer["text"]))
    if answer.get("finished") is False:
        typer.echo(f"(cut off after {answer['tokens']} tokens: see --max-new-tokens)", err=True)


def say_failure(asked: Asked, why: str, json: bool) -> None:
    """A request without an answer, on stderr; as JSON on stdout too, where its line would be."""
    import json as json_module

    if json:
        typer.echo(json_module.dumps({**asked.request, "error": why}))
    typer.echo(f"headway: {asked.where}: {why}", err=True)


def picture_requests(given: Sequence[Path]) -> list[Asked]:
    """Every page of every picture. ConfigError for a path without one, DataError where none of
    them can be read."""
    from headway.data.pictures import ENDINGS, Picture, pages
    from headway.errors import ConfigError, DataError

    found: list[Asked] = []
    for place in given:
        if not place.exists():
            raise ConfigError(f"--image {place}: there is no such file or folder")
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        files = [f for f in files if f.is_file() and (f == place or f.suffix.lower() in ENDINGS)]
        if not files:
            raise ConfigError(f"--image {place}: no picture in it ({', '.join(ENDINGS)})")
        for file in files:
            request = {"image": str(file)}
            try:
                count = pages(Picture("picture 1", path=str(file)))
            except DataError as error:
                found.append(Asked("--image", request, str(error)))
                continue
            for page in range(count):
                found.append(Asked("--image", {**request, **({"page": page} if count > 1 else {})}))
    if all(asked.problem for asked in found):
        raise DataError("\n".join(f"{asked.where}: {asked.problem}" for asked in found))
    return found


def picture_name(request: Mapping[str, Any]) -> str:
    """The file of a request, and its page where it has several."""
    page = f", page {request['page'] + 1}" if "page" in request else ""
    return f"{request['image']}{page}"


def given_only(**options: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in options.items() if value is not None}


def requests_of(file: Path | None, **kinds: Any) -> list[Asked]:
    """What is asked; ConfigError for options that say two things.

    ``kinds``: ``prompt``, ``chain``, ``image`` and ``part``, as given or empty.
    """
    from headway.data.sources import read_records
    from headway.errors import ConfigError

    found = {kind: value for kind, value in kinds.items() if value}
    names = [f"--{next(iter(v)) if isinstance(v, dict) else kind}" for kind, v in found.items()]
    if len(names) + bool(file) > 1:
        other = names[1] if len(names) > 1 else "--file"
        raise ConfigError(f"{names[0]} and {other}: give one of them, not both")
    if file and not file.is_file():
        raise ConfigError(f"--file {file}: there is no such file")
    if file:
        return [Asked(record.where, record.data) for record in read_records(str(file))]
    match found:
        case {"prompt": texts}:
            return [Asked("--prompt", {"prompt": text}) for text in texts]
        case {"chain": chain}:
            if "steps" not in chain:
                raise ConfigError(f"{names[0]} needs --steps: the texts that get a number")
            lines = [line for text in chain["steps"] for line in text.splitlines() if line.strip()]
            return [Asked("--steps", {"problem": "", **chain, "steps": lines})]
        case {"image": places}:
            return picture_requests(places)
        case {"part": edit}:
            return [Asked("--part", edit)]
    raise ConfigError(
        "predict needs --prompt TEXT, --steps TEXT, --image FILE, --part FILE or "
        "--file REQUESTS.jsonl"
    )


def check_all(recipe: Recipe, requests: Sequence[Asked], options: Mapping[str, Any]) -> None:
    """Refuse an odd request, naming where it was given, before the first is answered."""
    from headway.errors import ConfigError

    for asked in requests:
        try:
            recipe.check_request({**options, **asked.request})
        except ConfigError as error:
            raise ConfigError(f"{asked.where}: {error}") from error


def shown(text: str) -> str:
    """What a model said, without the control characters that would steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
