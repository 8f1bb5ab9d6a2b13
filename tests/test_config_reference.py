"""The schema, the reference page and the starters say what the code does."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from headway.cli.init import init, starter, starter_names
from headway.config import (
    find_recipe,
    load_config,
    schema,
)
from headway.config.reference import OWN_RECIPES, documented_recipes, reference
from headway.errors import ConfigError
from strangers import strangers_recipes, write

__all__ = ["strangers_recipes", "write"]
pytestmark = pytest.mark.usefixtures("strangers_recipes")

ROOT = Path(__file__).parents[1]


def test_the_schema_has_the_recipes_task_in_place():
    whole = schema("toy")
    json.dumps(whole)
    task = whole["$defs"]["task"]
    assert "base_model" in task["properties"] and task["additionalProperties"] is False
    refs = set(json.dumps(whole).split('"$ref": "#/$defs/')[1:])
    assert {ref.split('"')[0] for ref in refs} <= set(whole["$defs"])
    assert find_recipe("toy").Config.__name__ == "Config"


@pytest.mark.parametrize("recipe", [None, "toy"])
def test_every_key_is_described(recipe):
    for name, part in schema(recipe)["$defs"].items():
        for key, field in part.get("properties", {}).items():
            if not name.startswith("task"):
                assert field.get("description"), f"{name}.{key}"


def test_the_reference_page_is_up_to_date():
    written = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    again = reference(documented_recipes())
    assert written == again, "run: python -m headway.config.reference docs/config.md"


def test_the_reference_page_shows_a_unions_members_and_a_lists_items():
    page = reference(["toy"])
    assert "| `task.tuning (qlora).rank` | whole number | `16` |" in page
    assert "| `task.data.train[].weight` | number | `1.0` |" in page
    assert "| `task.base_model` | text | **required** | Name of the model. |" in page


@pytest.mark.parametrize("recipe", starter_names())
def test_a_starters_sections_are_valid(write, recipe):
    text = starter(recipe).replace(f"recipe: {recipe}", "recipe: open")
    assert load_config(write(text)).train.schedule == "cosine"


@pytest.mark.parametrize("recipe", starter_names())
def test_a_starter_is_valid_for_its_recipe(write, recipe):
    if recipe not in documented_recipes():
        pytest.skip(f"headway.recipes.{recipe} is not there yet")
    assert load_config(write(starter(recipe))).recipe == recipe


def test_init_writes_the_starter_and_never_over_a_file(tmp_path):
    written = init("sft", tmp_path / "new" / "mine.yaml")
    assert written.read_text(encoding="utf-8") == starter("sft", written)
    written.write_text("precious")
    with pytest.raises(ConfigError, match="exists"):
        init("sft", written)
    assert written.read_text() == "precious"
    assert init("sft", written, force=True).read_text(encoding="utf-8") == starter("sft", written)
    assert init("pretrain", tmp_path).name == "pretrain.yaml"
    with pytest.raises(ConfigError, match="did you mean 'sft'"):
        init("stf", tmp_path)
    with pytest.raises(ConfigError, match="has no starter"):
        init("toy", tmp_path)


def test_importing_the_config_imports_no_torch():
    code = "import sys, headway.config, headway.cli.init; print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert ran.stdout.strip() == "False"


def test_every_recipe_of_this_package_has_its_keys_on_the_page():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(OWN_RECIPES) == set(named["project"]["entry-points"]["headway.recipes"])
    assert documented_recipes() == list(OWN_RECIPES)
