"""Small runs of the recipe ``regression``, and scorers whose scores differ from step to step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cases import WORDS, tiny_base
from headway.config import RunConfig
from headway.data.chains import Chain
from headway.models.surprise import EVIDENCE, SCALE
from headway.recipes.regression import RECIPE, RegressionConfig, RegressionTask
from toy import context

Record = dict[str, Any]
QLORA = {"kind": "qlora", "rank": 4, "alpha": 8}
LORA = {"kind": "lora", "rank": 4, "alpha": 8}
FULL = {"kind": "full"}


def record(number: int, length: int | None = None) -> Record:
    """A problem with 1 to 5 steps of different lengths, labelled 0, 0.5 or 1."""
    steps = 1 + number % 5 if length is None else length
    words = [
        " ".join(WORDS[(number + n + k) % 8] for k in range(1 + (number + n) % 3))
        for n in range(steps)
    ]
    return {
        "problem": f"What is {WORDS[number % 8]} {number}?",
        "steps": [f"{word} {n}" for n, word in enumerate(words)],
        "targets": [((number + n) % 3) / 2 for n in range(steps)],
    }


RECORDS = [record(number) for number in range(24)]
HELD = [record(number) for number in range(100, 110)]


def write(file: Path, records: Iterable[Mapping[str, Any]]) -> str:
    """The records as JSON Lines; the path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(file)


def section(folder: Path, **task: Any) -> dict[str, Any]:
    """The ``task`` section; everything it names is below ``folder``."""
    return {
        "base_model": str(tiny_base(folder)),
        "tuning": LORA,
        "head": {"hidden": [16]},
        "max_tokens": 128,
        "data": {
            "train": write(folder / "train.jsonl", RECORDS),
            "eval": write(folder / "held.jsonl", HELD),
        },
        **task,
    }


def task_of(folder: Path, built: Mapping[str, Any] | None = None, **task: Any) -> RegressionTask:
    """The task alone, built as a run builds it; ``built`` changes its context."""
    folder.mkdir(parents=True, exist_ok=True)
    config = RegressionConfig.model_validate(section(folder, **task))
    torch.manual_seed(3)  # as a run does before it builds its task
    return RECIPE.build(config, context(cache=folder / "cache", **built or {}))


def config_of(folder: Path, task: Mapping[str, Any] | None = None, **sections: Any) -> RunConfig:
    """A whole run of four steps."""
    folder.mkdir(parents=True, exist_ok=True)
    tree: dict[str, Any] = {
        "recipe": "regression",
        "run": {"name": "run", "root": folder / "runs", "seed": 5},
        "train": {"horizon": {"steps": 4}, "batch_size": 8, "learning_rate": 0.01},
        "hardware": {"device": "cpu", "precision": "fp32"},
        "evaluate": {"every_steps": 2, "worst_rows": 2},
        "checkpoint": {"every_steps": 1, "every_minutes": None, "keep_last": 9},
        "task": section(folder, **task or {}),
    }
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys}
    return RunConfig(**tree)


def awake(task: RegressionTask, share: float = 1.0) -> RegressionTask:
    """The same with noise on all that trains: an untrained head gives every step one score.

    ``share`` of it where bf16 would be magnified by it, but always the whole in the head.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in task.model.named_parameters():
            if parameter.requires_grad:
                inside = share * (0.3 if "lora" in name else 0.05)
                size = 0.2 if "head" in name else inside
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(size * noise.to(parameter.dtype))
        if task.model.surprise:  # what is SCALE times as large would drive every score to 0 or 1
            task.model.head.layers[0].weight[:, -EVIDENCE:] /= SCALE  # type: ignore[index, operator]
    task.model.eval()
    return task


def chain_of(found: Mapping[str, Any], targets: Sequence[float | None] | None = None) -> Chain:
    """A record as a reader gives it."""
    return Chain(
        problem=found.get("problem", ""),
        steps=tuple(found["steps"]),
        targets=tuple(found["targets"] if targets is None else targets),
        source="test",
        where="test",
        group="test",
    )


def evaluation_of(folder: Path) -> dict[str, Any]:
    """Metrics and baselines of the newest evaluation of the run below ``folder``."""
    newest = sorted((folder / "runs/run/evals").glob("step-*"))[-1]
    return dict(json.loads((newest / "metrics.json").read_text()))


def predictions_of(folder: Path) -> list[Record]:
    """The predictions kept beside the newest evaluation."""
    newest = sorted((folder / "runs/run/evals").glob("step-*"))[-1]
    return [json.loads(line) for line in (newest / "predictions.jsonl").read_text().splitlines()]
