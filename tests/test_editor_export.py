"""An exported editor is whole: it says what it said in training, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cases import tree_of
from headway.data.cad import FAMILIES
from headway.errors import CheckpointError
from headway.models.graph_vae import GraphVae, VaeShape
from headway.models.tuning import ADAPTER_FILE
from headway.recipes.edit_rows import NAMES
from headway.recipes.editor_config import LatentEditorConfig
from headway.recipes.editor_files import (
    HEAD_FILE,
    MEANING_FILE,
    VAE_FILE,
    dimensions_of,
    load_editor,
    same_answers,
)
from headway.recipes.graph_use import SHAPE_FILE, read_latents
from headway.recipes.latent_editor import LatentEditorRecipe, LatentEditorTask
from toy import context

pytestmark = pytest.mark.usefixtures("own_cache")


def exported(folder: Path, case: str, format: str) -> tuple[LatentEditorTask, Path]:
    """An untrained editor, and its export; its head's last layers say something of every row."""
    config = LatentEditorConfig.model_validate(tree_of(case, folder)["task"])
    recipe, to = LatentEditorRecipe(), folder / "export"
    task = recipe.build(config, context(cache=folder / "cache"))
    for layer in (task.model.head.of_place, task.model.head.of_number, task.model.head.direction):
        torch.nn.init.normal_(layer.weight)
    to.mkdir()
    recipe.export(task, config, to, format)
    return task, to


@pytest.mark.parametrize("part", [HEAD_FILE, MEANING_FILE, VAE_FILE, SHAPE_FILE])
def test_an_export_that_lacks_a_part_is_refused(tmp_path: Path, part: str) -> None:
    _, to = exported(tmp_path, "latent_editor-full", "full")
    editor, _ = load_editor(to)
    assert editor.dimensions_of is not None
    (to / part).unlink()
    with pytest.raises(CheckpointError, match=r"missing|does not fit|No such file"):
        load_editor(to)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_exported_adapter_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    task, to = exported(tmp_path, "latent_editor-lora", "adapter")

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(task.config.base_model)

    load_editor(to, base=base())
    stored = load_file(to / ADAPTER_FILE)
    gone = sorted(stored)[0]
    save_file({name: t for name, t in stored.items() if name != gone}, to / ADAPTER_FILE)
    with pytest.raises(CheckpointError, match=r"does not fit: tensors .* on one side only"):
        load_editor(to, base=base())


@pytest.mark.parametrize("part", ["language model", "dimensions", "change", "direction"])
def test_what_answers_differently_when_read_back_is_no_export(tmp_path: Path, part: str) -> None:
    task, to = exported(tmp_path, "latent_editor-full", "full")
    again, _ = load_editor(to)
    assert same_answers(task, again, to)["largest_difference"] < 1e-5
    spoilt = {
        "language model": again.language.get_input_embeddings(),
        "change": again.head.change[0],
        "direction": again.head.direction,
    }
    if part == "dimensions":
        again.dimensions_of = None
    else:
        with torch.no_grad():
            spoilt[part].weight.mul_(1.5)
    with pytest.raises(CheckpointError, match="answers differently"):
        same_answers(task, again, to)


def test_the_editor_reads_the_dimensions_that_its_autoencoder_says() -> None:
    torch.manual_seed(4)
    vae = GraphVae(VaeShape(latent=6, width=16, layers=1, decoder_layers=1, heads=2)).eval()
    z = torch.randn(200, 6) * 4
    families, dimensions = read_latents(vae, z)
    assert len(set(families)) > 2
    by_name = dimensions_of(vae)(z)
    for row, (number, values) in enumerate(zip(families, dimensions, strict=True)):
        names = FAMILIES[number].names
        expected = [dict(zip(names, values, strict=True)).get(name, 0.0) for name in NAMES]
        np.testing.assert_allclose(by_name[row].numpy(), expected, rtol=1e-4, atol=1e-3)
