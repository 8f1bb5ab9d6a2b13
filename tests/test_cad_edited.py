"""From a part and a sentence to an edited part on disk, with an editor whose answer is known.

What the editor learns is measured elsewhere: here it is the way of a part through it.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cad_examples import EXAMPLES, named, needs_kernel, on_its_side, solid
from cases import tiny_base, tree_of
from headway.api import load_run, train
from headway.config import RunConfig
from headway.data.cad import FAMILIES, Graphs, find_family
from headway.data.cad.families import MOST_PARAMETERS, normalised
from headway.data.cad.recognise import part_of_step, recognised
from headway.recipes.edit_rows import EditText
from headway.recipes.edit_use import asked, edited
from toy import context


class Exact(torch.nn.Module):
    """An autoencoder without an error: a latent is the family, one of six, and the shares."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def posterior_of(
        self, types: torch.Tensor, faces: torch.Tensor, pairs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ends = np.argwhere(pairs[0, ..., 0].numpy() > 0)[None]
        edges = pairs[0, ends[0, :, 0], ends[0, :, 1], 1:].numpy()[None]
        graph = Graphs(
            np.zeros(1, np.int64), np.zeros((1, MOST_PARAMETERS)), types.numpy(),
            faces.double().numpy(), ends, edges,
        )  # fmt: skip
        part = recognised(graph)
        z = np.zeros((1, 6 + MOST_PARAMETERS), np.float32)
        z[0, FAMILIES.index(part.family)] = 1
        z[0, 6:] = normalised(part.family, np.array([part.values]))[0]
        return torch.from_numpy(z), torch.zeros(1, 6 + MOST_PARAMETERS)

    def read(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return z[:, :6], z[:, None, 6:].expand(-1, 6, -1)


class Answers(torch.nn.Module):
    """An editor whose answer is known, whatever it is asked."""

    def __init__(self, family: str, **changes: float) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.delta = torch.zeros(1, 6 + MOST_PARAMETERS)
        for name, mm in changes.items():
            place = find_family(family).place(name)
            parameter = find_family(family).parameters[place]
            self.delta[0, 6 + place] = mm / (parameter.high - parameter.low)

    def forward(self, **given: Any) -> Any:
        assert given["z"].shape == self.delta.shape
        return SimpleNamespace(delta=self.delta)


def answered(family: str, request: dict[str, Any], folder: Path, **changes: float) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base(folder))
    task: Any = SimpleNamespace(
        model=Answers(family, **changes), vae=Exact(), context=context(),
        config=SimpleNamespace(latent=6 + MOST_PARAMETERS),
        text=EditText(tokenizer, "{instruction}\n", 1, 128),
    )  # fmt: skip
    return edited(task, asked(request))


EDITS: tuple[tuple[str, dict[str, float]], ...] = (
    ("bracket", {"leg1": 20.0}), ("bracket", {"thickness": -2.0, "hole1_diameter": 1.5}),
    ("tube", {"inner_diameter": 10.0}), ("channel", {"thickness": 1.5}),
    ("block", {"height": -12.0}), ("cylinder", {"diameter": 25.0}),
    ("blockhole", {"hole_x": -14.0, "hole_diameter": 4.0}),
)  # fmt: skip


@needs_kernel
@pytest.mark.parametrize(("name", "changes"), EDITS)
def test_an_edited_step_file_reopens_with_the_requested_dimension(
    name: str, changes: dict[str, float], tmp_path: Path
) -> None:
    """The issue's bound is 0.5 mm; the path from file to file costs a thousandth of that."""
    from headway.data.cad.kernel import write_step

    write_step(tmp_path / "part.step", find_family(name), EXAMPLES[name])
    out = tmp_path / "edited.step"
    request = {"part": str(tmp_path / "part.step"), "instruction": "as known", "out": str(out)}
    found = answered(name, request, tmp_path, **changes)
    wanted = {key: value + changes.get(key, 0.0) for key, value in named(name).items()}
    again = part_of_step(out)
    assert again.family.name == name and not found["notes"]
    assert dict(zip(again.family.names, again.values, strict=True)) == pytest.approx(
        wanted, abs=5e-4
    )
    assert found["before"] == pytest.approx(named(name), abs=1e-5)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    none = answered(name, request, tmp_path)  # negative control: the editor does reach the file
    assert none["parameters"] == pytest.approx(named(name), abs=5e-4)
    assert part_of_step(out).values == pytest.approx(EXAMPLES[name], abs=5e-4)


def test_what_makes_no_part_is_written_as_the_nearest_and_said_so(tmp_path: Path) -> None:
    out = tmp_path / "edited.json"
    part = {"family": "tube", "parameters": named("tube"), "out": str(out)}
    found = answered("tube", {**part, "instruction": "x"}, tmp_path, inner_diameter=30, length=200)
    written = json.loads(out.read_text())["parameters"]
    nearest = {"length": 200.0, "outer_diameter": 40.0, "inner_diameter": 36.0}
    assert written == found["parameters"] == pytest.approx(nearest, abs=1e-3)
    assert "length 290.00 mm makes no part: 200.00 mm, the nearest, does" in found["text"]
    assert "inner_diameter 50.00 mm makes no part: 36.00 mm, the nearest, does" in found["text"]


def test_a_part_that_is_not_what_its_sentence_says_is_said_to_be(tmp_path: Path) -> None:
    part = {"family": "tube", "parameters": named("tube")}
    asked_for = {**part, "instruction": "make the tube 2 cm longer"}
    off = answered("tube", asked_for, tmp_path, length=6.0, outer_diameter=-3.0)["text"]
    assert "the sentence says length +20.00 mm; the part is off from that by " in off
    assert off.endswith("by length -14.00 mm, outer_diameter -3.00 mm")
    for instruction, changes in (("make the tube 2 cm longer", {"length": 20.3}), ("keep it", {})):
        right = answered("tube", {**part, "instruction": instruction}, tmp_path, **changes)
        assert right["notes"] == []
    assert answered("tube", {**part, "instruction": "sing"}, tmp_path, length=9.0)["notes"] == []


@needs_kernel
def test_a_turned_step_file_is_edited_and_said_to_be_turned(tmp_path: Path) -> None:
    from headway.data.cad.kernel import kernel

    on_its_side(kernel(), solid("tube"), tmp_path / "part.step")
    request = {"part": str(tmp_path / "part.step"), "instruction": "x"}
    found = answered("tube", request, tmp_path, length=10.0)
    assert found["parameters"]["length"] == pytest.approx(100.0, abs=1e-3)
    assert "lies another way: it was turned" in found["text"]


@needs_kernel
@pytest.mark.usefixtures("own_cache")
def test_whatever_a_trained_editor_answers_is_what_stands_in_its_step_file(tmp_path: Path) -> None:
    from headway.data.cad.kernel import write_step

    train(RunConfig(**tree_of("latent_editor-full", tmp_path)))
    run = load_run(tmp_path / "runs/run")
    write_step(tmp_path / "part.step", find_family("block"), EXAMPLES["block"])
    out = tmp_path / "edited.step"
    found = run.predict(
        {"part": str(tmp_path / "part.step"), "instruction": "make it bigger", "out": str(out)}
    )
    again = part_of_step(out)
    assert again.family.name == found["family"]
    assert again.values == pytest.approx(tuple(found["parameters"].values()), abs=1e-3)
    assert found["written"] == [str(out), str(out.with_suffix(".png"))]
