"""Where an export may be written, and that nothing unproved stays there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cases import tree_of
from headway.api import TrainedRun, load_run, train
from headway.config import RunConfig
from headway.errors import ConfigError
from headway.models.attention import generating
from headway.recipes.export import logits, name_base
from toy import toy_config


@pytest.fixture
def trained(tmp_path: Path) -> TrainedRun:
    train(toy_config(tmp_path))
    return load_run(tmp_path / "run")


def test_a_place_that_is_no_folder_is_refused_in_words(trained: TrainedRun, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for place in (file, file / "below"):
        with pytest.raises(ConfigError, match=r"--to .*notes\.txt.*; give a folder"):
            trained.export(place, "weights")
    assert file.read_text() == "mine"


def test_a_folder_that_holds_something_is_refused_and_left_alone(
    trained: TrainedRun, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        trained.export(tmp_path / "kept", "weights")
    assert (tmp_path / "kept/notes.txt").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing_behind(trained: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not onnx"):
        trained.export(tmp_path / "made", "onnx")
    assert not (tmp_path / "made").exists()
    trained.export(tmp_path / "made", "weights")
    assert (tmp_path / "made/model.safetensors").is_file()


def test_an_adapter_names_a_base_that_other_tools_load(tmp_path: Path) -> None:
    """Of a GGUF inside a package: the folder it was unpacked to, not the package."""
    from peft import AutoPeftModelForCausalLM

    tree = tree_of("sft-lora", tmp_path)
    tree["run"] = {"name": "run", "root": str(tmp_path / "runs")}
    train(RunConfig(**tree))
    to = tmp_path / "adapter"
    run = load_run(tmp_path / "runs/run")
    run.export(to, "adapter")
    file = to / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": "package:x/y.gguf"}))
    with pytest.raises((OSError, ValueError)):
        AutoPeftModelForCausalLM.from_pretrained(to)
    name_base(AutoModelForCausalLM.from_pretrained(tree["task"]["base_model"]), to)
    found = AutoPeftModelForCausalLM.from_pretrained(to)
    with generating(run.task.model) as trained:
        torch.testing.assert_close(logits(found), logits(trained), rtol=1e-4, atol=1e-4)
