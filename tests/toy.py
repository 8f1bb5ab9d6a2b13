"""Runs of the toy recipe: small, complete, and the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from headway.config import RunConfig
from headway.engine.task import BuildContext
from headway.records import StepReport
from headway.show import Quiet

TREE: dict[str, Any] = {
    "recipe": "toy",
    "run": {"name": "run", "seed": 3},
    "train": {"horizon": {"steps": 6}, "batch_size": 8, "learning_rate": 0.02, "warmup": 2},
    "hardware": {"device": "cpu", "precision": "fp32"},
    "checkpoint": {"every_steps": 1, "every_minutes": None, "keep_last": 50},
}


class Cut(Exception):
    """Stands for the process dying between two lines of the loop."""


class CutAt(Quiet):
    """Dies right after the journal has the step, before the save of that step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
        if report.step == self.at:
            raise Cut


def toy_config(root: Path, **sections: dict[str, Any]) -> RunConfig:
    """The tree above with sections updated key by key."""
    tree = {**TREE, "run": {**TREE["run"], "root": root}}
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys}
    return RunConfig(**tree)


def context(**changes: Any) -> BuildContext:
    """A plain build context for the toy task."""
    given: dict[str, Any] = dict(
        seed=3, batch_size=8, microbatch_size=None, precision="fp32", device="cpu", rank=0, ranks=1,
        activation_checkpointing=False, compile=False, held_out_rows=None, cache=Path("cache"),
    )  # fmt: skip
    return BuildContext(**given | changes)


def final_state(folder: Path) -> dict[str, Any]:
    """Every tensor and counter of the newest checkpoint, by file and name."""
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    found: dict[str, Any] = {"state.json": (newest / "state.json").read_text()}
    for file in newest.rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            found[f"{file.name}:{name}"] = tensor
    return found


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = (
            torch.equal(value, other[name])
            if isinstance(value, torch.Tensor)
            else value == other[name]
        )
        assert same, name
