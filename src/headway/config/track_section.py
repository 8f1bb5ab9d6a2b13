"""The config's ``track`` section: which trackers mirror the journal, and under which names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from headway.config.sections import CLOSED


class TensorBoard(BaseModel):
    """Event files in the run's folder, `track/tensorboard`. Needs
    `pip install 'headway[track]'`, no TensorFlow."""

    model_config = CLOSED


class Wandb(BaseModel):
    """A W&B run, the same for all attempts. The key comes from `WANDB_API_KEY` or netrc."""

    model_config = CLOSED

    project: str = Field(default="headway", min_length=1)
    """W&B project."""
    entity: str | None = None
    """W&B user or team; left out: the key's own."""
    mode: Literal["online", "offline"] | None = None
    """`offline` writes to `track/wandb` in the run's folder, for `wandb sync`; left out: what
    `$WANDB_MODE` says, else online."""


class Track(BaseModel):
    """Trackers that the journal is mirrored to, beside training; left out: none.

    A list of names is enough: `[tensorboard, wandb]`. A tracker that is down never stops a run.
    """

    model_config = CLOSED

    tensorboard: TensorBoard | None = None
    """TensorBoard's event files; left out: none."""
    wandb: Wandb | None = None
    """W&B; left out: nothing goes there."""

    @model_validator(mode="before")
    @classmethod
    def _from_names(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = [given]
        if not isinstance(given, list | tuple):
            return given
        tree: dict[str, Any] = {}
        for one in given:
            named = {one: {}} if isinstance(one, str) else one
            if not isinstance(named, Mapping):
                raise ValueError(f"a tracker is a name or a section, not {one!r}")
            for name, options in named.items():
                if name not in cls.model_fields:
                    near = difflib.get_close_matches(str(name), cls.model_fields, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"known: {_names(cls)}"
                    raise ValueError(f"unknown tracker {name!r}; {hint}")
                tree[name] = {} if options is None else options
        return tree

    def options(self) -> dict[str, dict[str, Any]]:
        """Name -> options of each tracker that is asked for."""
        return {name: found for name, found in self.model_dump().items() if found is not None}


def _names(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)
