"""The command reference page, written from the verbs themselves so that it cannot go stale.

``python -m headway.cli.reference docs/commands.md`` writes it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typer.main import get_command

from headway.cli import build_app

RULES = """\
# The commands

<!-- Written by `make docs` (python -m headway.cli.reference docs/commands.md): do not edit. -->

Every verb ends with 0 when it did what it was asked, and with one message on stderr and another
number when it could not:

| code | meaning |
|---|---|
| 0 | done; of `train`: the horizon is reached, or early stopping ended the run |
| 1 | another process writes this run, or an error that has no code of its own |
| 2 | the command line itself is wrong (an unknown option, a missing argument) |
| 65 | data or a checkpoint is bad, or a step was not finite |
| 70 | `train --supervise` gave up: attempts in a row died, or hung, at one step |
| 75 | stopped with everything saved: the same command goes on |
| 76 | the budget is spent |
| 77 | the disk is full |
| 78 | the config, or what the command was given, cannot be used |
"""


def reference() -> str:
    """The whole page, one section a verb. Markdown."""
    parts = [RULES]
    for path, command in leaves(get_command(build_app()), ()):
        parts += _section(path, command)
    return "\n".join(parts).rstrip() + "\n"


def leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words after ``headway``, command) of every verb, in the order of ``--help``."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, each in inner.items():
        yield from leaves(each, (*path, name))


def main(arguments: Sequence[str]) -> None:
    """Write the page to the path in ``arguments``."""
    Path(arguments[0]).write_text(reference(), encoding="utf-8")


def _section(path: tuple[str, ...], command: Any) -> list[str]:
    given = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    words = " ".join(["headway", *path, *map(_usage, given)])
    lines = [f"## `{' '.join(('headway', *path))}`\n", f"    {words}", ""]
    lines += [inspect.cleandoc(command.help or ""), ""]
    if given or options:
        lines += ["| | default | meaning |", "|---|---|---|"]
        lines += [_row(parameter) for parameter in (*given, *options)]
        lines.append("")
    return lines


def _usage(argument: Any) -> str:
    name = argument.name.upper() + (" …" if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.name.upper()
    else:
        value = "" if parameter.is_flag else f" {parameter.name.upper()}"
        name = ", ".join(parameter.opts) + value
    return f"| `{name}` | {_default(parameter)} | {_cell(parameter.help or '')} |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "**required**"
    default = parameter.default
    if isinstance(parameter.show_default, str):
        default = parameter.show_default
    is_absent = default in (None, (), []) or getattr(parameter, "is_flag", False)
    return "" if is_absent else f"`{default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main(sys.argv[1:])
