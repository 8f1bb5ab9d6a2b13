"""The documents as tests read them: pages, fenced blocks, shell lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from typer.main import get_command

from headway.cli import build_app

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *GUIDES,
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    *sorted((ROOT / "docs" / "results").glob("*.md")),
]
FENCE = re.compile(
    r'(?:^<!-- ([^\n]*) -->\n)?^```(\w*)(?: title="([^"\n]*)")?\n(.*?)^```$',
    re.DOTALL | re.MULTILINE,
)
NOT_RUN = "# not run in CI:"
"""The first words of a shell block of a guide that is only parsed; the reason follows."""


@dataclass(frozen=True)
class Block:
    """A fenced block; ``note`` is a comment on the line before, ``title`` the name of a file."""

    note: str
    language: str
    title: str
    text: str


def fenced(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for found in FENCE.findall(text):
        yield Block(*found)


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """(the comment on the line before, the text) of each fenced block in a language."""
    for block in fenced(page.read_text(encoding="utf-8")):
        if block.language == language:
            yield block.note, block.text


def shell_lines(text: str) -> list[str]:
    """The commands of a shell block; one that goes on after a backslash is one line."""
    lines = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return [re.sub(r"\s+", " ", line) for line in lines if line and not line.startswith("#")]


def commands(pages: list[Path] = PAGES) -> list[str]:
    """Every shell line of these pages, once."""
    return sorted(
        {line for page in pages for _, text in blocks(page, "sh") for line in shell_lines(text)}
    )


def parse(line: str) -> None:
    """Parse a ``headway`` line as the command line would, without running it."""
    words = shlex.split(line)[1:]
    command: Any = get_command(build_app())
    context = click.Context(command)
    while words and words[0][0] != "-" and hasattr(command, "commands"):
        _, command, words = command.resolve_command(context, words)
    command.make_context(command.name, words)
