"""The engine's mathematics is a plain PyTorch loop's: the same losses, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from cases import tree_of
from headway.config import RunConfig
from headway.engine.schedule import Schedule
from headway.journal import read, timeline
from headway.opening import opened
from headway.run import train

STEPS = 20


pytestmark = pytest.mark.usefixtures("own_cache")


def headway_losses(config: RunConfig) -> tuple[list[float], Any, list[Any], dict[str, Any]]:
    """(loss of each step, the model before step 1, the rows of each step) of a real run."""
    with opened(config) as run:
        before = {k: v.clone() for k, v in run.task.model.state_dict().items()}
        rows = [
            [run.task.train[row] for m in run.task.batch_at(step) for row in m.rows]
            for step in range(STEPS)
        ]
        train(run)
        model = run.task.model
    lines = timeline(read(config.run.root / "run/journal.jsonl"))
    return [line["loss"] for line in lines], model, rows, before


def plain_losses(model: Any, batches: list[Any], schedule: Schedule) -> list[float]:
    """Padded rows through the model's own forward, full logits, mean over supervised tokens."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0)
    losses = []
    for step, rows in enumerate(batches):
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.from_numpy(row.ids.astype("int64"))
            mask[i, : len(row.ids)] = 1
            labels[i, row.at] = torch.from_numpy(row.targets.astype("int64"))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("case", ["sft-lora", "sft-full", "pretrain"])
def test_twenty_losses_equal_a_plain_loops(case: str, tmp_path: Path) -> None:
    tree = tree_of(case, tmp_path)
    tree["train"] |= {
        "horizon": {"steps": STEPS}, "learning_rate": 3e-3, "weight_decay": 0.1, "warmup": 4,
        "schedule": "cosine",
    }  # fmt: skip
    tree["run"] |= {"root": tmp_path / "runs"}
    tree["evaluate"] = None
    tree["checkpoint"] = {"every_minutes": None}
    if case == "pretrain":
        tree["task"]["model"]["dropout"] = 0.0
    else:
        tree["task"]["packing"] = False
    found, trained, rows, before = headway_losses(RunConfig(**tree))
    model = plain_model(case, trained, before, tree)
    schedule = Schedule(peak=3e-3, num_steps=STEPS, shape="cosine", warmup_steps=4)
    expected = plain_losses(model, rows, schedule)
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[-1] < 0.9 * found[0]  # they did learn, so the equality says something


def plain_model(case: str, trained: Any, before: dict[str, Any], tree: dict[str, Any]) -> Any:
    """The same weights in a fresh model with its own attention and PEFT's own arithmetic."""
    if case == "pretrain":
        config = trained.config
        config._attn_implementation = "sdpa"
        model = AutoModelForCausalLM.from_config(config)
    else:
        model = AutoModelForCausalLM.from_pretrained(tree["task"]["base_model"])
        if case == "sft-lora":
            from peft import LoraConfig, get_peft_model

            lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
            model = get_peft_model(model, lora)
    model.load_state_dict(before)
    return model.train()
