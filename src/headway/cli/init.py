"""``headway init RECIPE``: a commented starter config to edit."""

from __future__ import annotations

import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from headway.errors import ConfigError


def init(recipe: str, to: Path, force: bool = False) -> Path:
    """Write the starter of ``recipe`` to ``to`` and return the path written.

    Raises ConfigError: there is no starter for it, or ``to`` exists and ``force`` is false.
    """
    from headway.config.recipes import find_recipe

    starters = starter_names()
    if recipe not in starters:
        from headway.config.recipes import find_recipe

        find_recipe(recipe)  # not installed at all? then say that, with the nearest name
        raise ConfigError(f"recipe {recipe!r} has no starter; starters: {', '.join(starters)}")
    if to.is_dir():
        to = to / f"{recipe}.yaml"
    if to.exists() and not force:
        raise ConfigError(f"{to} exists; write elsewhere with --to, or over it with --force")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(starter(recipe, to), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{to} cannot be written: {error.strerror}") from error
    return to


def starter(recipe: str, to: Path | None = None) -> str:
    """The text of a starter; FileNotFoundError if there is none.

    Its commands name the file ``to`` and the run of that name, ``{recipe}.yaml`` by default.
    """
    file = resources.files("headway") / "starters" / f"{recipe}.yaml"
    text = file.read_text(encoding="utf-8")
    if to is None:
        return text
    text = text.replace(f"headway train {recipe}.yaml", f"headway train {shlex.quote(to.name)}")
    return re.sub(rf"runs/{recipe}\b", lambda _: shlex.quote(f"runs/{to.stem}"), text)


def starter_names() -> list[str]:
    """Recipes that have a starter, sorted."""
    folder = resources.files("headway") / "starters"
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))


def init_command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Which kind of training: sft, pretrain, regression, vision, graph_vae, "
            "latent_editor."
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(help="Where to write it.", show_default="RECIPE.yaml")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
) -> None:
    """Write a commented starter config."""
    written = init(recipe, to or Path(f"{recipe}.yaml"), force)
    typer.echo(f"wrote {written}; edit it, then: headway train {written}")
