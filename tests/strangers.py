"""A stranger's package with recipes, installed by the same door as ours: an entry point."""

import sys
from pathlib import Path

import pytest

from headway.config import load_config
from headway.errors import ConfigError

RECIPE = '''
from typing import Annotated, Any, Literal
from pydantic import BaseModel, ConfigDict, Field
from headway.config import CLOSED

class Full(BaseModel):
    model_config = CLOSED
    kind: Literal["full"]

class Lora(BaseModel):
    model_config = CLOSED
    kind: Literal["lora"]
    rank: int = 16
    alpha: int = 32

class QLora(BaseModel):
    model_config = CLOSED
    kind: Literal["qlora"]
    rank: int = 16
    alpha: int = 32

class Source(BaseModel):
    model_config = CLOSED
    path: str
    weight: float = 1.0

class Data(BaseModel):
    model_config = CLOSED
    train: str | list[Source]
    notes: dict[str, str] = {}

class Config(BaseModel):
    model_config = CLOSED
    base_model: str
    """Name of the model."""
    tuning: Annotated[Full | Lora | QLora, Field(discriminator="kind")] = Lora(kind="lora")
    max_tokens: int = 2048
    data: Data

class Toy:
    Config = Config

class Other:
    class Config(BaseModel):
        model_config = CLOSED
        size: int = 3

class Open:
    class Config(BaseModel):
        model_config = ConfigDict(extra="allow")

TOY, OTHER, OPEN = Toy(), Other(), Open()
'''
GOOD = """\
recipe: toy
train:
  horizon: {steps: 10}
  batch_size: 16
  learning_rate: 2e-4
task:
  base_model: some/model
  tuning: {kind: qlora, rank: 8}
  data: {train: rows.jsonl}
"""


@pytest.fixture(scope="module")
def strangers_recipes(tmp_path_factory):
    """Recipes ``toy``, ``other`` and ``open``, and ``broken``, which cannot be imported."""
    site = tmp_path_factory.mktemp("site")
    info = site / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    names = ["toy = stranger_recipes:TOY", "other = stranger_recipes:OTHER"]
    names += ["open = stranger_recipes:OPEN", "broken = stranger_missing:TOY"]
    (info / "entry_points.txt").write_text("\n".join(["[headway.recipes]", *names]))
    (site / "stranger_recipes.py").write_text(RECIPE)
    sys.path.insert(0, str(site))
    yield
    sys.path.remove(str(site))
    sys.modules.pop("stranger_recipes", None)


@pytest.fixture
def write(tmp_path):
    """Writes a config file and gives its path."""

    def write_file(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def tree(**train) -> dict:
    task = {"base_model": "some/model", "data": {"train": "rows.jsonl"}}
    base = {"horizon": {"steps": 10}, "batch_size": 16, "learning_rate": 2e-4}
    return {"recipe": "toy", "train": {**base, **train}, "task": task}
