"""What the seed system for parts got wrong (its list, 4(g)), and the page that says what holds it.

Most of the defects are held by the tests of the module that they belong to; the page names them.
Here are those that belong to no module, and the check that the page names tests that exist.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cases import tree_of
from headway.api import train
from headway.config import RunConfig
from headway.data.cad import FAMILIES, graphs_of, parts, read_edits, write_edits
from headway.data.cad.faces import FEATURES
from headway.data.cad.store import Manifest
from headway.errors import DataError
from headway.journal import read_events
from headway.models.graph_vae import Decoded, GraphVae, VaeShape
from headway.recipes.graph_rows import GraphRows
from headway.recipes.graph_vae import reconstruction

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("own_cache")


def test_every_defect_has_its_row_and_every_test_that_is_named_exists() -> None:
    page = (ROOT / "docs/results/cad.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \|(.*)$", page, re.MULTILINE))
    assert list(rows) == [str(n) for n in range(1, 16)], "every defect of the list has its row"
    there = {
        name
        for file in Path(__file__).parent.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    for number, row in rows.items():
        named = set(re.findall(r"`(test_[a-z0-9_]+)`", row))
        assert named and not named - there, (number, named - there)


# ------------------------------------------------------------------ 1: the learning rate


def steps_of(folder: Path, case: str, rate: float) -> list[dict[str, Any]]:
    tree = tree_of(case, folder)
    tree["train"] |= {
        "horizon": {"steps": 8}, "learning_rate": rate, "warmup": 3, "schedule": "linear",
    }  # fmt: skip
    train(RunConfig(**tree))
    events = read_events(folder / "runs/run/journal.jsonl", {"step"})
    return [dict(event) for event in events]


@pytest.mark.parametrize("case", ["graph_vae", "latent_editor-full"])
def test_the_rate_that_is_asked_for_is_reached_after_the_steps_of_the_warm_up(
    case: str, tmp_path: Path
) -> None:
    """There: a schedule of steps, moved on once an epoch; the first epoch ran at a rate of 0."""
    slow = steps_of(tmp_path / "a", case, 0.002)
    fast = steps_of(tmp_path / "b", case, 0.004)
    rates = [step["learning_rate"] for step in slow]
    assert max(rates) == pytest.approx(0.002) and rates.index(max(rates)) <= 3
    assert all(rate > 0 for rate in rates) and rates[-1] < rates[3]
    assert [2 * rate for rate in rates] == pytest.approx([s["learning_rate"] for s in fast])
    losses = [[step["loss"] for step in steps] for steps in (slow, fast)]
    assert losses[0][0] == losses[1][0], "before the first update"
    assert all(one != other for one, other in zip(*(each[1:] for each in losses), strict=True))


# ------------------------------------------------------------------ 11: every feature is learned


@pytest.mark.parametrize("feature", FEATURES)
def test_each_number_of_a_face_is_part_of_the_loss(feature: str) -> None:
    """There: extents of faces were given to the model, and never asked back."""
    import numpy as np

    rows = GraphRows.of(graphs_of(*parts(0, np.arange(12))))
    given = rows.tensors(np.arange(12))
    torch.manual_seed(0)
    model = GraphVae(VaeShape(latent=6, width=16, layers=1, decoder_layers=1, heads=2)).eval()
    model.fit_scales(given["types"], given["faces"], given["pairs"])
    faces, edges = model.scaled(given["faces"], given["pairs"])
    right = Decoded(
        types=torch.zeros(12, faces.shape[1], 5), faces=faces[..., : len(FEATURES)],
        joined=torch.zeros_like(given["pairs"][..., 0]), edges=edges,
        family=torch.zeros(12, len(FAMILIES)), shares=torch.zeros(12, len(FAMILIES), 9),
    )  # fmt: skip
    off = right.faces.clone()
    off[..., FEATURES.index(feature)] += 0.1
    costs = [
        sum(part.sum() for part in reconstruction(model, given, decoded).values())
        for decoded in (right, right._replace(faces=off))
    ]
    assert costs[1] > costs[0] + 1e-4


# ------------------------------------------------------------------ 15: what a set was made of


def test_a_folder_of_edits_says_seed_mix_ranges_and_wording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There: one seed and counts; the templates and ranges were in whichever script had run."""
    from headway.data.cad import wording

    def make(to: Path) -> tuple[Manifest, bool]:
        return write_edits(
            to, count=20, seed=4, encode=lambda graphs: graphs.faces[:, 0, :4].astype("f4"),
            vae_sha256="abc", mix={"single": 1.0, "noop": 1.0},
        )  # fmt: skip

    manifest, _ = make(tmp_path / "e")
    told = manifest.made_of
    assert (told["seed"], told["mix"], told["vae_sha256"]) == (4, {"single": 1, "noop": 1}, "abc")
    ranges = {(f["family"], p["name"]): p for f in told["families"] for p in f["parameters"]}
    for family in FAMILIES:
        for parameter in family.parameters:
            shown = ranges[family.name, parameter.name]
            assert (shown["low"], shown["high"]) == (parameter.low, parameter.high)
            assert shown["most_change"] == parameter.most_change
    assert make(tmp_path / "e") == (manifest, False)
    monkeypatch.setattr(wording, "NOOPS", (*wording.NOOPS, "stay as you are"))
    with pytest.raises(DataError, match="made another way"):
        make(tmp_path / "e")
    assert len(read_edits(tmp_path / "e")[0]) == 20, "what is there is read all the same"
