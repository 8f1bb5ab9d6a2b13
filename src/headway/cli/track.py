"""``headway track``: feeds a run's trackers what they lack, after training."""

from __future__ import annotations

from typing import Annotated

import typer


def track(
    run: Annotated[str, typer.Argument(help="Run directory, or its name under runs/.")],
    to: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard or wandb; left out: those in the run's config."),
    ] = None,
) -> None:
    """Send a run's journal to its trackers: what did not get there while it trained, or all of it.

    Each step is there once, however often this is called.
    """
    from headway.config import Track
    from headway.errors import ConfigError, HeadwayError, RemoteError
    from headway.tracking import FOLDER, PACKAGES, fed, in_a_line
    from headway.viewing import config_tree, find_run

    folder = find_run(run)
    saved = config_tree(folder).get("track") or {}
    asked = {name: saved.get(name) or {} for name in to} if to else saved
    unknown = [name for name in asked if name not in PACKAGES]
    if unknown:
        raise ConfigError(f"--to {unknown[0]}: the trackers are {', '.join(PACKAGES)}")
    options = Track(**asked).options()
    if not options:
        raise ConfigError(f"{folder}: its config names no tracker; say which: --to tensorboard")
    for name, chosen in options.items():
        try:
            step = fed(name, folder, chosen)
        except ImportError as error:
            raise ConfigError(f"{name}: {error}; pip install 'headway[track]'") from error
        except HeadwayError:
            raise
        except Exception as error:  # clients raise what they like
            raise RemoteError(
                f"{name}: {in_a_line(error)}. What it has stays there; the same command sends the "
                "rest, each step once"
            ) from error
        typer.echo(f"{name}: has step {step:,}; {folder / FOLDER / name}")
