"""Small real vision-language models and rows with pictures that tests share: random weights, no
network."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL", reason="pillow is not installed")

WORDS = ("RED", "GREEN", "BLUE", "BLACK", "WHITE", "BROWN", "GREY", "PINK")

QWEN_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}"
    "{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""What Qwen3-VL's own template writes for pictures and text."""

QWEN_TOKENS = [
    "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip

LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA 1.5's: it marks no end of an answer."""


def tokenizer_of(specials: list[str], template: str) -> Any:
    from headway.data.tokenizers import train_bpe

    texts = [f"What is written here? {a} {b}." for a in WORDS for b in WORDS]
    tokenizer = train_bpe(texts, 340, specials)
    tokenizer.chat_template = template
    return tokenizer


def tiny_qwen(folder: Path, deepstack: bool = True, merge: int = 2) -> Path:
    """A two-layer Qwen3-VL with its tokenizer and image processor, as a hub would serve it."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    base = folder / "qwen"
    if base.exists():
        return base
    tokenizer = tokenizer_of(QWEN_TOKENS, QWEN_TEMPLATE)
    ids = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in QWEN_TOKENS}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "max_position_embeddings": 512, "tie_word_embeddings": True,
            "bos_token_id": None, "eos_token_id": 0,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64,
            "out_hidden_size": 32, "patch_size": 8, "spatial_merge_size": merge,
            "temporal_patch_size": 2, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1] if deepstack else [],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(config)
    model.get_input_embeddings().weight.data.mul_(10)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=merge, temporal_patch_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
    ).save_pretrained(base)  # fmt: skip
    return base


def tiny_llava(folder: Path) -> Path:
    """A two-layer LLaVA: CLIP, a projector and a Llama."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    base = folder / "llava"
    if base.exists():
        return base
    tokenizer = tokenizer_of(["</s>", "<image>"], LLAVA_TEMPLATE)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            image_size=32, patch_size=8, projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            bos_token_id=None, eos_token_id=0,
        ),
        image_token_index=int(tokenizer.convert_tokens_to_ids("<image>")),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.weight.data.mul_(10)  # a frozen head of tiny weights could say nothing loudly
    model.generation_config.eos_token_id = 0
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(base)
    return base


def drawn(text: str, width: int = 64, height: int = 20, ink: int = 0) -> Any:
    """A picture of a text."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (width, height), 255 - ink // 2)
    ImageDraw.Draw(image).text((3, 3), text, fill=ink)
    return image


def png(image: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", **options)
    return stream.getvalue()


def row_of(number: int) -> dict[str, Any]:
    """A row with its picture inside, of an odd size."""
    text = f"{WORDS[number % 8]} {number}"
    image = drawn(text, width=49 + 7 * (number % 5), height=17 + 3 * (number % 4))
    return {
        "image_base64": base64.b64encode(png(image)).decode(),
        "instruction": "What is written here?",
        "answer": text,
        "filename": f"{number}.png",
    }


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def picture_rows(folder: Path, count: int = 24) -> Path:
    """``rows.jsonl`` below the folder."""
    return write_rows(folder / "rows.jsonl", [row_of(n) for n in range(count)])
