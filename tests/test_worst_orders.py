"""Each recipe's worst rows say what a person may put them in order by."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

from cases import CASES, tree_of
from headway.api import train
from headway.config import RunConfig
from headway.report.worst import facts_of

pytestmark = pytest.mark.usefixtures("own_cache")
ONE_OF_EACH = {recipe: case for case, (recipe, *_) in reversed(CASES.items()) if recipe != "toy"}


@pytest.mark.parametrize("recipe", sorted(ONE_OF_EACH))
def test_the_worst_rows_of_a_recipe_have_a_place_an_error_and_a_length(
    recipe: str, tmp_path: Path
) -> None:
    if recipe == "vision" and importlib.util.find_spec("PIL") is None:
        pytest.skip("Pillow is not installed")
    train(RunConfig(**tree_of(ONE_OF_EACH[recipe], tmp_path)))
    lines = (tmp_path / "runs/run/evals/step-00000004/worst.jsonl").read_text().splitlines()
    assert len(lines) >= 2
    for line in lines:
        facts = facts_of(json.loads(line))
        assert facts["where"] and math.isfinite(facts["loss"])
        assert math.isfinite(facts["error"]) and facts["length"] > 0
