"""A new small model of Qwen3-VL's architecture, with a tokenizer made of the training answers.

For pictures of one kind and a machine without a GPU: random weights, a few million of them, that
learn to read from nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerBase, Qwen3VLConfig

from headway.config import CLOSED
from headway.data.tokenizers import train_bpe
from headway.errors import ConfigError
from headway.models.eyes import Eyes, QwenEyes

USER, ASSISTANT, END, START_OF_PICTURE, END_OF_PICTURE, PICTURE, VIDEO = SPECIAL = (
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}"
    "{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' "
    "else part['text'] }}"
    "{% endfor %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Of a new model: one token for each thing that is not text."""


class Scratch(BaseModel):
    """A new model of Qwen3-VL's architecture: its sizes, and its tokenizer's."""

    model_config = CLOSED

    layers: int = Field(default=4, ge=1)
    """Layers of the language model."""
    hidden_size: int = Field(default=192, ge=8)
    """Width of the language model."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of the language model."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Its key and value heads; left out: as many as heads."""
    ffn_size: int | None = Field(default=None, ge=1)
    """Width of its feed-forward layer; left out: 8/3 of the hidden size, rounded to 16."""
    vision_layers: int = Field(default=4, ge=1)
    """Layers of the vision tower."""
    vision_hidden_size: int = Field(default=128, ge=8)
    """Width of the vision tower."""
    vision_heads: int = Field(default=4, ge=1)
    """Attention heads of the vision tower."""
    vision_ffn_size: int | None = Field(default=None, ge=1)
    """Width of its feed-forward layer; left out: 4 times its width."""
    patch_size: int = Field(default=8, ge=2)
    """Side of a patch in pixels."""
    merge_size: int = Field(default=2, ge=1)
    """So many patches in each direction become one token of the language model."""
    deepstack: tuple[int, ...] = Field(default=(), strict=False)
    """Layers of the tower whose features are also given to the first layers of the language
    model."""
    vocabulary: int = Field(default=384, ge=263)
    """Tokens: 7 special ones, the 256 bytes, and pairs learned from the training answers."""
    positions: int = Field(default=1024, ge=8)
    """Longest row and answer together, in tokens."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""


def new_tokenizer(answers: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    """Byte pairs of the training answers; no text is unknown to it."""
    tokenizer = train_bpe(answers, size, (END, *(token for token in SPECIAL if token != END)))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def new_eyes(
    shape: Scratch, tokenizer: Any, min_pixels: int | None, max_pixels: int | None
) -> Eyes:
    """The eyes of a new model, which also hold its whole config. ConfigError for odd sizes."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    for name, width, heads in (
        ("hidden_size", shape.hidden_size, shape.heads),
        ("vision_hidden_size", shape.vision_hidden_size, shape.vision_heads),
    ):
        if width % heads or (width // heads) % 4:
            raise ConfigError(
                f"task.scratch.{name}: {width} over {heads} heads; each head's width must be a "
                "multiple of 4"
            )
    side = (shape.patch_size * shape.merge_size) ** 2
    processor = Qwen2VLImageProcessorPil(
        patch_size=shape.patch_size,
        merge_size=shape.merge_size,
        temporal_patch_size=1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={
            "shortest_edge": min_pixels if min_pixels is not None else side,
            "longest_edge": max_pixels if max_pixels is not None else 512 * side,
        },
    )
    return QwenEyes(config_of(shape, tokenizer), processor)


def config_of(shape: Scratch, tokenizer: Any) -> Qwen3VLConfig:
    """The whole model as transformers writes it."""
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL}
    return Qwen3VLConfig(
        text_config=text_of(shape, len(tokenizer), ids[END]),
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden_size,
            "num_heads": shape.vision_heads,
            "intermediate_size": shape.vision_ffn_size or 4 * shape.vision_hidden_size,
            "out_hidden_size": shape.hidden_size,
            "patch_size": shape.patch_size,
            "spatial_merge_size": shape.merge_size,
            "temporal_patch_size": 1,
            "deepstack_visual_indexes": list(shape.deepstack),
            "initializer_range": shape.init_std,
        },
        image_token_id=ids[PICTURE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[START_OF_PICTURE],
        vision_end_token_id=ids[END_OF_PICTURE],
        tie_word_embeddings=True,
    )


def text_of(shape: Scratch, vocabulary: int, end: int) -> dict[str, Any]:
    """The language model's part."""
    head = shape.hidden_size // shape.heads
    third = head // 2 // 3
    return {
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size or -(-8 * shape.hidden_size // 48) * 16,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "head_dim": head,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": True,
        "initializer_range": shape.init_std,
        "bos_token_id": None,
        "eos_token_id": end,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [head // 2 - 2 * third, third, third],
            "mrope_interleaved": True,
        },
    }
