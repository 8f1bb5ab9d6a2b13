"""``headway check`` and ``headway doctor``: what is asked before money is spent."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headway.preflight import Answer
    from headway.records import Finding

COLOURS = {"blocker": "red", "not asked": "red", "warning": "yellow", "note": "cyan", "ok": "green"}
NARROWEST, WIDEST = 60, 110

_Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]


def check(
    config: Annotated[Path, typer.Argument(help="YAML, JSON, TOML or Python config file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, as often as needed.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="As `headway train --fresh` would start it.")
    ] = False,
    json: _Json = False,
) -> None:
    """Ask everything that can be known of a run before it costs anything; change nothing.

    Config, the run that is there, disk, device, model files, tokenizer, data through the real
    template, bucket, checkpoints, a real step on the longest rows (undone), time and price.
    Exit codes: 0, and 1 when something would not work.
    """
    from headway.checking import Inspection
    from headway.config import load_config
    from headway.preflight import ask

    inspection = Inspection(lambda: load_config(config, overrides or []), fresh=fresh)
    tell(ask(inspection.checks()), json)


def doctor(json: _Json = False) -> None:
    """What is wrong with this machine: GPU, torch, disk, network, limits, clock, environment.

    Needs no config. Exit codes: 0, and 1 when training could not run here.
    """
    from headway.doctor import checks
    from headway.preflight import ask

    tell(ask(checks()), json)


def tell(answers: Iterable[Answer], json: bool) -> None:
    """Show each answer as it comes, or all as JSON; leave with 1 if there is a blocker."""
    from headway.cli import leave
    from headway.cli.tables import show_json
    from headway.preflight import has_blocker, tree

    heard = []
    for answer in answers:
        heard.append(answer)
        if not json:
            show(answer)
    if json:
        show_json(tree(heard))
    else:
        typer.echo(f"\n{verdict(heard)}")
    leave(1 if has_blocker(heard) else 0)


def show(answer: Answer) -> None:
    """One line for the check, with its mark and its time, and more for what there is to read."""
    from headway.preflight.asking import mark

    mine = f"{answer.name:<13} {answer.seconds:6.2f} s"
    if answer.missing:
        line(answer.level, mine, f"needs {answer.missing}")
        return
    for finding in answer.findings or (None,):
        level = mark(finding) if finding else "ok"
        line(level, mine, finding.what if finding else "")
        mine = " " * len(mine)
        for word, text in more(finding):
            line("", mine, f"{word}: {text}")


def more(finding: Finding | None) -> list[tuple[str, str]]:
    """Why it matters and what to do, where that is said."""
    told = [("why", finding.why), ("fix", finding.fix)] if finding else []
    return [(word, text) for word, text in told if text]


def line(level: str, left: str, text: str) -> None:
    """``mark  check  seconds  text``, the text wrapped in its own column."""
    import shutil

    width = min(WIDEST, max(NARROWEST, shutil.get_terminal_size().columns))
    edge = 9 + 2 + len(left) + 2
    rows = [
        row
        for part in text.splitlines() or [""]
        for row in textwrap.wrap(part, max(30, width - edge), break_on_hyphens=False) or [""]
    ]
    mark = typer.style(f"{level:<9}", fg=COLOURS.get(level))
    typer.echo(f"{mark}  {left}  {rows[0]}".rstrip())
    for row in rows[1:]:
        typer.echo(" " * edge + row)


def verdict(answers: list[Answer]) -> str:
    """The last line."""
    took = f"{len(answers)} checks in {sum(answer.seconds for answer in answers):.1f} s"
    blockers = [answer.name for answer in answers if answer.level == "blocker"]
    warnings = [answer.name for answer in answers if answer.level == "warning"]
    if blockers:
        return f"{took}: this would not work ({', '.join(blockers)})"
    if warnings:
        return f"{took}: nothing is in the way; read the warnings ({', '.join(warnings)})"
    return f"{took}: nothing is in the way"
