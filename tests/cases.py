"""One small run per recipe, for the conformance suite: add yours when you add a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import tiny_llama, tiny_tokenizer

WORDS = ("red", "green", "blue", "black", "white", "brown", "grey", "pink")


def tiny_base(folder: Path) -> Path:
    """A two-layer Llama with a chat tokenizer, as a folder that a hub could serve."""
    base = folder / "base"
    if not base.exists():
        tokenizer = tiny_tokenizer()
        model = tiny_llama(len(tokenizer))
        # With tied embeddings at their initial scale no adapter could move the logits far.
        model.get_input_embeddings().weight.data.mul_(10)
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
    return base


def sft(folder: Path) -> dict[str, Any]:
    rows = [
        {"question": f"What is number {i}?", "answer": " ".join(WORDS[: 1 + i % 5]) + f" {i}."}
        for i in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base_model": str(tiny_base(folder)),
        "tuning": {"kind": "lora", "rank": 4, "alpha": 8},
        "max_tokens": 64,
        "data": {"train": str(folder / "rows.jsonl"), "eval_fraction": 0.2},
    }


def sft_full(folder: Path) -> dict[str, Any]:
    return {**sft(folder), "tuning": {"kind": "full"}, "packing": True, "max_tokens": 128}


def pretrain(folder: Path) -> dict[str, Any]:
    text = "".join(f"{a} and {b} and {a}. " for a in WORDS for b in WORDS)
    (folder / "text.txt").write_text(text)
    return {
        "model": {"family": "gpt2", "layers": 2, "heads": 2, "hidden_size": 32, "dropout": 0.1},
        "tokenizer": "characters",
        "sequence_tokens": 16,
        "samples": ["red"],
        "sample_tokens": 8,
        "data": {"train": str(folder / "text.txt"), "eval_tail": 0.2},
    }


def regression(folder: Path) -> dict[str, Any]:
    def chain(i: int) -> dict[str, Any]:
        right = [float((i + n) % 3 > 0) for n in range(1 + i % 4)]
        steps = [f"{WORDS[(i + n) % 8]} {'is' if ok else 'no'}" for n, ok in enumerate(right)]
        return {
            "problem": f"What is {WORDS[i % 8]} {i}?",
            "steps": steps,
            "targets": right,
            "group": f"{i}",
        }

    rows = [chain(i) for i in range(32)]
    (folder / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base_model": str(tiny_base(folder)),
        "tuning": {"kind": "lora", "rank": 4, "alpha": 8},
        "head": {"hidden": [16], "dropout": 0.1},
        "max_tokens": 64,
        "data": {"train": str(folder / "chains.jsonl"), "eval_fraction": 0.25},
    }


def regression_full(folder: Path) -> dict[str, Any]:
    return {**regression(folder), "tuning": {"kind": "full"}, "read_at": "last", "loss": "mse"}


AUGMENTED = {"rotation_degrees": 2.0, "shift": 0.05, "contrast": 0.3, "noise": 0.1}


def vision(folder: Path) -> dict[str, Any]:
    from tiny_vision import picture_rows, tiny_qwen

    return {
        "base_model": str(tiny_qwen(folder)),
        "tuning": {"kind": "lora", "rank": 4, "alpha": 8},
        "max_tokens": 128,
        "augmentation": AUGMENTED,
        "read_rows": 2,
        "answer_tokens": 8,
        "data": {"train": str(picture_rows(folder)), "eval_fraction": 0.2},
    }


def vision_llava(folder: Path) -> dict[str, Any]:
    from tiny_vision import tiny_llava

    return {**vision(folder), "base_model": str(tiny_llava(folder))}


def vision_scratch(folder: Path) -> dict[str, Any]:
    from tiny_vision import picture_rows

    return {
        "scratch": {
            "layers": 2, "hidden_size": 32, "heads": 2, "vision_layers": 2,
            "vision_hidden_size": 32, "vision_heads": 2, "vocabulary": 280, "positions": 256,
            "deepstack": [0],
        },
        "tuning": {"kind": "full"},
        "max_tokens": 128,
        "augmentation": AUGMENTED,
        "read_rows": 2,
        "answer_tokens": 8,
        "data": {"train": str(picture_rows(folder)), "eval_fraction": 0.2, "instruction": ""},
    }  # fmt: skip


def graph_vae(folder: Path) -> dict[str, Any]:
    return {
        "model": {"latent": 8, "width": 16, "layers": 1, "decoder_layers": 1, "heads": 2,
                  "dropout": 0.1},
        "kl": {"weight": 1e-3, "warmup_steps": 3},
        "data": {"train": {"count": 40, "seed": 1}, "eval": {"count": 10, "seed": 2}},
    }  # fmt: skip


def latent_editor(folder: Path) -> dict[str, Any]:
    """Edits whose latents are some numbers of the parts: no autoencoder."""
    from headway.data.cad import write_edits

    if not (folder / "edits").exists():
        write_edits(
            folder / "edits", count=40, seed=3, vae_sha256="none",
            encode=lambda graphs: graphs.values[:, :6].astype("f4") / 100,
        )  # fmt: skip
    return {
        "base_model": str(tiny_base(folder)),
        "tuning": {"kind": "lora", "rank": 4, "alpha": 8},
        "latent": 6,
        "layers": 1,
        "editor": {"projector": 16, "head": 16, "latent_tokens": 2, "dropout": 0.1},
        "data": {"train": str(folder / "edits"), "eval_fraction": 0.2},
    }


def latent_editor_full(folder: Path) -> dict[str, Any]:
    """Every parameter trains, over the latents of an autoencoder that lies beside the edits."""
    import torch

    from headway.data.cad import write_edits
    from headway.models.graph_vae import GraphVae, VaeShape, weights_sha256
    from headway.recipes.graph_use import export_vae, latents

    if not (folder / "edits").exists():
        torch.manual_seed(1)
        vae = GraphVae(VaeShape(latent=6, width=16, layers=1, decoder_layers=1, heads=2)).eval()

        def write_vae(to: Path) -> None:
            to.mkdir()
            export_vae(vae, to, "full")

        write_edits(
            folder / "edits", count=40, seed=3, encode=lambda graphs: latents(vae, graphs),
            vae_sha256=weights_sha256(vae), write_vae=write_vae,
        )  # fmt: skip
    task = {**latent_editor(folder), "tuning": {"kind": "full"}, "layers": None}
    return {**task, "weights": {"dimensions": 1.0}}


def regression_surprise(folder: Path) -> dict[str, Any]:
    given = {**regression(folder), "lm_weight": 0.1}
    return {**given, "head": {"hidden": [16], "surprise": True, "checks": True}}


def toy(folder: Path) -> dict[str, Any]:
    return {}


CASES: dict[str, tuple[str, Callable[[Path], dict[str, Any]], str]] = {
    "sft-lora": ("sft", sft, "adapter"),
    "sft-merged": ("sft", sft, "merged"),
    "sft-full": ("sft", sft_full, "full"),
    "pretrain": ("pretrain", pretrain, "full"),
    "regression-lora": ("regression", regression, "adapter"),
    "regression-merged": ("regression", regression, "merged"),
    "regression-full": ("regression", regression_full, "full"),
    "vision-lora": ("vision", vision, "adapter"),
    "vision-llava": ("vision", vision_llava, "merged"),
    "vision-scratch": ("vision", vision_scratch, "full"),
    "graph_vae": ("graph_vae", graph_vae, "full"),
    "latent_editor-lora": ("latent_editor", latent_editor, "adapter"),
    "latent_editor-merged": ("latent_editor", latent_editor, "merged"),
    "latent_editor-full": ("latent_editor", latent_editor_full, "full"),
    "regression-surprise": ("regression", regression_surprise, "merged"),
    "toy": ("toy", toy, "weights"),
}
"""Name -> (recipe, its task section, an export format)."""


def tree_of(case: str, folder: Path) -> dict[str, Any]:
    """A whole config tree of the case; everything it needs is written below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, task, _ = CASES[case]
    return {
        "recipe": recipe,
        "run": {"name": "run", "root": folder / "runs", "seed": 5},
        "train": {"horizon": {"steps": 4}, "batch_size": 8, "learning_rate": 0.01},
        "hardware": {"device": "cpu", "precision": "fp32"},
        "evaluate": {"every_steps": 2, "worst_rows": 2},
        "checkpoint": {"every_steps": 1, "every_minutes": None, "keep_last": 9},
        "task": task(folder),
    }
