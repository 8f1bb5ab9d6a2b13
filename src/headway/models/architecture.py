"""A model's architecture without its weights: made from its config alone, for the plan.

To be called within ``engine.fake.weightless``, where no tensor takes memory. 4-bit layers are the
real ``bitsandbytes`` layers with the shapes that its quantisation gives: their products run through
the shape functions that bitsandbytes itself registers. Only the quantisation, which needs numbers,
is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from headway.models.hub import explained, locate_config

UNEVEN = ("first_k_dense_replace", "mlp_only_layers", "no_rope_layers", "layers_block_type")
"""Config keys of families whose layers are not all alike."""
BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale in NF4, and scales that share one in its double quantisation
(arXiv:2305.14314, section 3)."""


def empty_causal_lm(
    name: str,
    revision: str | None,
    cache: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantized: bool = False,
    layers: int | None = None,
    auto: Any = AutoModelForCausalLM,
) -> PreTrainedModel:
    """``hub.load_causal_lm`` without weights: only ``config.json`` is read, or fetched.

    ``layers``: only so many, where all are alike; the model's ``all_layers`` says how many such
    there should be, None where they are all there. Layers of the language model that are not alike,
    since they are given features of pictures, come on top of both.
    """
    with explained(name):
        place, options = locate_config(name, cache)
        config = AutoConfig.from_pretrained(place, revision=revision, **options)
        cut = shallow(config, layers)
        model = auto.from_config(config, dtype=dtype)
    model.all_layers = cut
    model.to(device)
    if quantized:
        quantize_shapes(model, dtype)
    return model


def shallow(config: Any, layers: int | None) -> int | None:
    """Cut the config down to ``layers`` that are alike; how many it had. None: left as it is, its
    layers differ or are few.

    Where a vision tower can be cut too, each layer less is one of both: of the longer stack more
    than ``layers`` stay, and what is returned counts the shorter.
    """
    text = config.get_text_config()
    tower: Any = getattr(config, "vision_config", None)
    fed = len(getattr(tower, "deepstack_visual_indexes", None) or ())
    total = int(getattr(text, "num_hidden_layers", 0) or 0) - fed
    kinds = getattr(text, "layer_types", None) or ()
    odd = any(getattr(text, name, None) for name in UNEVEN)
    blocks = tower_depth(config)
    shorter = total if blocks is None else min(total, blocks - fed)
    if layers is None or shorter <= layers or len(set(kinds)) > 1 or odd:
        return None
    less = shorter - layers
    text.num_hidden_layers -= less
    if kinds:
        text.layer_types = list(kinds)[: text.num_hidden_layers]
    if blocks is not None:
        setattr(tower, "depth" if hasattr(tower, "depth") else "num_hidden_layers", blocks - less)
        if fed:  # that many of its layers give features; which ones is no matter of size
            tower.deepstack_visual_indexes = list(range(fed))
    return shorter


def tower_depth(config: Any) -> int | None:
    """Layers of the vision tower, where all are alike but for giving features; else None."""
    tower: Any = getattr(config, "vision_config", None)
    if config.model_type == "qwen3_vl":
        return int(tower.depth)
    chosen = getattr(config, "vision_feature_layer", None)
    if config.model_type == "llava" and isinstance(chosen, int) and chosen in (-1, -2):
        return int(tower.num_hidden_layers)
    return None


def quantize_shapes(model: Any, dtype: torch.dtype) -> int:
    """Give every linear layer but the head the shapes of NF4 storage; returns how many."""
    import bitsandbytes

    head = model.get_output_embeddings()
    found = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer is not head:
                setattr(parent, name, _four_bits(bitsandbytes, layer, dtype))
                found += 1
    model.is_loaded_in_4bit = True
    return found


def _four_bits(bitsandbytes: Any, layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """A ``Linear4bit`` of this layer's shape, its state as buffers so that they are counted."""
    made: Any = bitsandbytes.nn.Linear4bit.__new__(bitsandbytes.nn.Linear4bit)
    nn.Module.__init__(made)
    made.in_features, made.out_features = layer.in_features, layer.out_features
    made.compute_dtype, made.compute_type_is_set = dtype, True
    made.quant_state, made.quant_storage = None, torch.uint8
    made.support_avx512bf16_for_cpu = False
    made.bias = layer.bias
    size, device = layer.weight.numel(), layer.weight.device
    blocks = -(-size // BLOCK)
    shapes = {
        "packed": ((-(-size // 2), 1), torch.uint8),
        "absmax": ((blocks,), torch.uint8),
        "code": ((16,), torch.float32),
        "nested_absmax": ((-(-blocks // NESTED_BLOCK),), torch.float32),
        "nested_code": ((256,), torch.float32),
        "offset": ((), torch.float32),
    }
    parts = {
        key: torch.empty(shape, dtype=kind, device=device) for key, (shape, kind) in shapes.items()
    }
    state = bitsandbytes.functional.QuantState
    weight: Any = nn.Parameter(parts.pop("packed"), requires_grad=False)
    weight.quant_state = state(
        absmax=parts["absmax"], shape=layer.weight.shape, code=parts["code"], blocksize=BLOCK,
        quant_type="nf4", dtype=dtype, offset=parts["offset"],
        state2=state(
            absmax=parts["nested_absmax"], code=parts["nested_code"], blocksize=NESTED_BLOCK,
            dtype=torch.float32,
        ),
    )  # fmt: skip
    weight.compress_statistics, weight.quant_type = True, "nf4"
    made.weight = weight
    for key, tensor in parts.items():
        made.register_buffer(f"nf4_{key}", tensor, persistent=False)
    return made
