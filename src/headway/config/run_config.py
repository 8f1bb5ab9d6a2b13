"""RunConfig: everything that defines a run, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from headway.config.monitor_section import Monitor
from headway.config.problems import InvalidConfig, find_credentials, find_problems
from headway.config.recipes import find_recipe
from headway.config.sections import (
    CLOSED,
    Checkpoint,
    Cost,
    Evaluate,
    Hardware,
    Run,
    Train,
    Upload,
)
from headway.config.shape import schema_of
from headway.config.track_section import Track
from headway.errors import ConfigError


class _Unchecked(BaseModel):
    """Stands for a task whose recipe is not known; never leaves the validation."""


class RunConfig(BaseModel):
    """Everything that defines a run. ``RunConfig(recipe="sft", train={...}, task={...})``.

    Raises ConfigError with all problems at once; the recipe's own Config validates ``task``.
    """

    model_config = CLOSED

    recipe: str
    """Which kind of training: `sft`, `pretrain`, or any other installed recipe."""
    run: Run = Run()
    """Which run this is and where it lives."""
    train: Train
    """The mathematics of the run."""
    hardware: Hardware = Hardware()
    """The mechanics: how the machine does it."""
    evaluate: Evaluate | None = None
    """Measurements on held-out rows while training; left out: none."""
    checkpoint: Checkpoint = Checkpoint()
    """When to save, and what to keep."""
    upload: Upload | None = None
    """A copy of the run in a bucket; left out: none."""
    cost: Cost | None = None
    """What the machine costs; left out: no money is counted."""
    monitor: Monitor = Monitor()
    """Warning signs while the run trains; left out: all of it, with its defaults."""
    track: Track | None = None
    """Trackers that the journal is mirrored to: `[tensorboard, wandb]`; left out: none."""
    task: SerializeAsAny[BaseModel] = Field(default_factory=dict, validate_default=True)
    """What to train on what: the recipe's own section."""

    def __init__(self, **tree: Any) -> None:
        try:
            super().__init__(**tree)
        except ValidationError as error:
            found = find_problems(error.errors(), tree, _schema_for(tree))
            raise InvalidConfig(found) from None
        if secrets := list(find_credentials(self.tree())):
            raise InvalidConfig(secrets)

    @field_validator("recipe")
    @classmethod
    def _recipe_is_installed(cls, name: str) -> str:
        _recipe_config(name)
        return name

    @field_validator("task", mode="before")
    @classmethod
    def _recipe_validates(cls, task: Any, info: ValidationInfo) -> BaseModel:
        if "recipe" not in info.data:  # its own problem is reported already
            return _Unchecked()
        expected = _recipe_config(info.data["recipe"])
        return task if isinstance(task, expected) else expected.model_validate(task)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a config file; see ``headway.config.load_config``."""
        from headway.config.load import load_config

        return load_config(path, overrides)  # type: ignore[return-value]

    def tree(self) -> dict[str, Any]:
        """The resolved config as plain dicts, lists, strings and numbers, defaults included."""
        return self.model_dump(mode="json")

    def save(self, path: str | Path) -> None:
        """Write the resolved config as YAML; loading it gives an equal config."""
        from headway.config.load import write_yaml

        write_yaml(self.tree(), Path(path))


def schema(recipe: str | None = None) -> dict[str, Any]:
    """JSON schema of a config file, for editors; with a recipe, its ``task`` section is in place.

    Raises ConfigError: the recipe is not installed.
    """
    return schema_of(RunConfig, recipe)


def _recipe_config(name: str) -> type[BaseModel]:
    try:
        config: type[BaseModel] = find_recipe(name).Config
    except ConfigError as error:
        raise PydanticCustomError("recipe", "{message}", {"message": str(error)}) from error
    return config


def _schema_for(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema that the messages quote; without the task's part if the recipe is unknown."""
    name = tree.get("recipe")
    try:
        return schema(name if isinstance(name, str) else None)
    except ConfigError:
        return schema()
