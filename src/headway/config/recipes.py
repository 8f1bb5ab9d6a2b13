"""Which kinds of training there are: whatever is installed under the entry point group."""

from __future__ import annotations

import difflib
from importlib import metadata
from typing import Any, Protocol

from pydantic import BaseModel

from headway.errors import ConfigError

GROUP = "headway.recipes"


class HasConfig(Protocol):
    """The part of a recipe that the config needs; the whole is ``headway.engine.task.Recipe``."""

    Config: type[BaseModel]


def known_recipes() -> list[str]:
    """Names of the installed recipes, sorted. Nothing of them is imported."""
    return sorted({entry.name for entry in metadata.entry_points(group=GROUP)})


def find_recipe(name: str) -> Any:
    """The recipe object registered under ``name``.

    Raises ConfigError: no recipe of this name is installed, or it cannot be imported.
    """
    found = list(metadata.entry_points(group=GROUP, name=name))
    if not found:
        known = known_recipes()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"unknown recipe {name!r}{hint} (installed: {', '.join(known) or 'none'})"
        )
    try:
        return found[0].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"recipe {name!r} is installed ({found[0].value}) but cannot be loaded: {error}"
        ) from error
