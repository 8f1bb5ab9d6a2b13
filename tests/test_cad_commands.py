"""From parts to an edited part by the command line alone, with runs of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cases import tiny_base, tree_of
from headway.api import train
from headway.cli import build_app
from headway.config import RunConfig
from headway.data.cad import find_family, read_edits
from headway.data.cad.families import are_valid
from headway.models.graph_vae import weights_sha256
from headway.recipes.graph_use import load_vae

pytestmark = pytest.mark.usefixtures("own_cache")


def said(*words: str) -> str:
    done = CliRunner().invoke(build_app(), list(words))
    assert done.exit_code == 0, (done.output, done.exception)
    return str(done.output)


def test_parts_autoencoder_edits_editor_and_an_edited_part(tmp_path: Path) -> None:
    for split, seed in (("train", "1"), ("eval", "2")):
        said("data", "cad-parts", "--to", str(tmp_path / split), "--count", "40", "--seed", seed)
    tree = tree_of("graph_vae", tmp_path)
    tree["run"]["name"] = "vae"
    tree["task"]["data"] = {"train": str(tmp_path / "train"), "eval": str(tmp_path / "eval")}
    train(RunConfig(**tree))

    edits = tmp_path / "edits"
    words = ["--vae", str(tmp_path / "runs/vae"), "--to", str(edits), "--count", "40"]
    told = json.loads(
        said("data", "cad-edits", *words, "--as-json", str(tmp_path / "e.json"), "--json")
    )
    rows, sha256 = read_edits(edits)
    assert told["sha256"] == sha256 and told["vae_sha256"] == rows.vae_sha256
    assert weights_sha256(load_vae(edits / "vae")) == rows.vae_sha256
    assert len(json.loads((tmp_path / "e.json").read_text())) == 40
    beside = json.loads((tmp_path / "metadata.json").read_text())
    assert beside["vae_sha256"] == rows.vae_sha256 and beside["latent_dim"] == rows.z_src.shape[1]
    assert json.loads(said("data", "cad-edits", *words, "--json"))["new"] is False

    tree = tree_of("latent_editor-lora", tmp_path / "b")
    tree["run"] |= {"name": "editor", "root": tmp_path / "runs"}
    tree["task"] |= {
        "base_model": str(tiny_base(tmp_path / "b")),
        "latent": 8,
        "weights": {"dimensions": 1.0},
        "data": {"train": str(edits), "eval_fraction": 0.2, "test": str(edits)},
    }
    config = RunConfig(**tree)
    config.save(tmp_path / "editor.yaml")
    assert "labels read from their texts: 40, not: 0" in said(
        "data", "lint", str(tmp_path / "editor.yaml")
    )
    train(config)
    figures = json.loads(
        said("evaluate", str(tmp_path / "runs/editor"), "--split", "test", "--json").splitlines()[0]
    )
    assert figures["metrics"]["n"] == 40 and "dimension_mae_mm" in figures["metrics"]
    assert "dimension_mae_mm/true latent" in figures["baselines"]

    part, out = tmp_path / "part.json", tmp_path / "new.json"
    dimensions = {"length": 90.0, "width": 60.0, "height": 30.0}
    part.write_text(json.dumps({"family": "block", "parameters": dimensions}))
    words = ["--part", str(part), "--instruction", "make it bigger", "--out", str(out)]
    assert "mm" in said("predict", str(tmp_path / "runs/editor"), *words)
    made = json.loads(out.read_text())
    family = find_family(made["family"])
    assert are_valid(family, [list(made["parameters"].values())])[0]
    done = CliRunner().invoke(
        build_app(), ["predict", str(tmp_path / "runs/editor"), *words, "--prompt", "x"]
    )
    assert done.exit_code != 0
