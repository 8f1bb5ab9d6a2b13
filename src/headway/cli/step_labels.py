"""``headway data step-labels``: worked solutions to chains whose every step has an honest label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway.errors import ConfigError

if TYPE_CHECKING:
    from headway.data.step_labels import Counts

_KINDS = "arithmetic,operand,carry,dropped,swapped by default; there is operator too."
_SHARE = "Share of chains with an error; the rest are untouched."


def step_labels(
    source: Annotated[
        str, typer.Option("--from", help="Solutions with calculator notes, in GSM8K's format.")
    ],
    to: Annotated[Path, typer.Option(help="The JSONL to write: problem, steps, targets, kinds.")],
    seed: Annotated[int, typer.Option(help="Another seed, other errors.")] = 0,
    per_solution: Annotated[int, typer.Option(min=1, help="Chains of each solution.")] = 2,
    wrong_share: Annotated[float, typer.Option(min=0, max=1, help=_SHARE)] = 0.5,
    kinds: Annotated[str | None, typer.Option(help=_KINDS)] = None,
    after_error: Annotated[
        str, typer.Option(help="propagate: go on from the wrong value. stop: end at the error.")
    ] = "propagate",
    final_step: Annotated[bool, typer.Option(help="Close with 'The answer is 72.'")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only so many solutions.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; changes nothing else.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace another file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Worked solutions to chains with known errors: typed, placed, and proved to be errors."""
    from headway.cli.tables import show_json
    from headway.data.sources import Source, read_records
    from headway.data.step_labels import DEFAULT_KINDS, Counts, Options, generate, write

    if after_error not in ("propagate", "stop"):
        raise ConfigError(f"--after-error {after_error}: write propagate or stop")
    options = Options(
        seed=seed,
        per_solution=per_solution,
        wrong_share=wrong_share,
        kinds=tuple(kind.strip() for kind in kinds.split(",")) if kinds else DEFAULT_KINDS,
        after_error="stop" if after_error == "stop" else "propagate",
        final_step=final_step,
    )
    counts = Counts()
    records = read_records(Source(path=source, limit=limit))
    new = write(generate(records, options, counts, workers=workers), to, force=force)
    if json:
        show_json({"file": str(to), "new": new, **counts.tree()})
    else:
        _show(to, new, counts)


def _show(to: Path, new: bool, counts: Counts) -> None:
    from headway.cli.tables import show_facts

    refused = sum(counts.refused.values())
    typer.echo(f"{to}: {'' if new else 'already there, the same: '}{counts.chains:,} chains")
    show_facts(
        {
            "solutions": f"{counts.read:,} read, {counts.used:,} used, {refused:,} refused",
            "chains": f"{counts.untouched:,} untouched, {counts.chains - counts.untouched:,} wrong",
            "steps": f"{counts.steps:,}, {_share(counts.zeros, counts.steps)} labelled 0",
        }
    )
    wrong = sum(counts.by_kind.values())
    show_facts({k: _share(n, wrong) for k, n in counts.by_kind.most_common()}, "wrong chains")
    if refused:
        show_facts({}, "refused")
    for reason, number in counts.refused.most_common():
        typer.echo(f"  {number:>5,}  {reason}")
        typer.echo(f"         {_cut(counts.places[reason][0], 110)}")
    for kind, example in sorted(counts.examples.items()):
        typer.secho(f"\n{kind}", bold=True)
        typer.echo(f"  {_cut(example['problem'], 160)}")
        typer.secho(f"  - {example['before']}", fg="green")
        typer.secho(f"  + {example['after']}", fg="red")


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else "0"


def _cut(text: str, longest: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
