"""Architectures as folders that hold a config and a small tokenizer, and no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny import tiny_tokenizer

QWEN_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
"""Qwen2.5-7B-Instruct's published config.json: 7,615,616,512 parameters."""

QWEN_VL_2B: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
    "text_config": {
        "model_type": "qwen3_vl_text", "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-06, "tie_word_embeddings": True, "bos_token_id": None,
        "eos_token_id": 0,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5000000, "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "model_type": "qwen3_vl", "depth": 24, "hidden_size": 1024, "num_heads": 16,
        "intermediate_size": 4096, "out_hidden_size": 2048, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
    "tie_word_embeddings": True,
}  # fmt: skip
"""Qwen3-VL-2B-Instruct's published shape: 2,127,532,032 parameters, the tied head counted once."""


def architecture(folder: Path, config: dict[str, Any] = QWEN_7B) -> Path:
    """The folder, written: what a hub serves before any weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tree_7b(folder: Path, kind: str = "qlora", **sections: Any) -> dict[str, Any]:
    """Seed document 001's run on a 4090: 7 B, QLoRA rank 16, 16 rows of 2048 tokens a step."""
    tuning = {"kind": kind} | ({} if kind == "full" else {"rank": 16, "alpha": 32})
    return {
        "recipe": "sft",
        "run": {"name": "seven"},
        "train": {"horizon": {"steps": 500}, "batch_size": 16, "learning_rate": 2.0e-4},
        "checkpoint": {"every_steps": 100, "keep_last": 3},
        "task": {
            "base_model": str(architecture(folder)),
            "tuning": tuning,
            "max_tokens": 2048,
            "data": {"train": "hf:owner/rows"},
        },
        **sections,
    }


def tree_vision_2b(folder: Path, tuning: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Seed document 000's run: 2 B with a vision tower, 8 pages of up to 4,096 tokens a step."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from tiny_vision import QWEN_TEMPLATE, QWEN_TOKENS, tokenizer_of

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(QWEN_TOKENS, QWEN_TEMPLATE)
    tokenizer.save_pretrained(folder)
    ids = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in QWEN_TOKENS}
    config = {
        **QWEN_VL_2B,
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 65536, "longest_edge": 16777216},
    ).save_pretrained(folder)  # fmt: skip
    return {
        "recipe": "vision",
        "run": {"name": "pages"},
        "train": {"horizon": {"steps": 500}, "batch_size": 8, "learning_rate": 2.0e-4},
        "task": {
            "base_model": str(folder),
            "tuning": tuning,
            "max_tokens": 4096,
            "max_pixels": 1048576,
            "data": {"train": "hf:owner/pages"},
        },
        **sections,
    }


def words(folder: Path, size: int = 50_257) -> Path:
    """A tokenizer of so many words, as a folder."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    if not folder.exists():
        plain = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
        PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="w0").save_pretrained(folder)
    return folder


def tree_1b(folder: Path, **sections: Any) -> dict[str, Any]:
    """Seed document 004's model (``configs/neox_1b.yaml``): 1,213,022,208 parameters, from scratch,
    one row of 1,024 tokens at once."""
    shape = {"family": "gpt_neox", "layers": 20, "heads": 16, "hidden_size": 2048}
    return {
        "recipe": "pretrain",
        "run": {"name": "neox"},
        "train": {"horizon": {"steps": 10000}, "batch_size": 32, "learning_rate": 2.0e-4},
        "task": {
            "model": {**shape, "ffn_size": 8192},
            "tokenizer": str(words(folder / "words")),
            "sequence_tokens": 1024,
            "data": {"train": "s3://nowhere/tokens"},
        },
        **sections,
    }
