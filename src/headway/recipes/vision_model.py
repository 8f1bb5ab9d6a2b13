"""The model of the recipe ``vision``: a pretrained one made ready to train, or a new small one.

Either way: which part trains, counted; the arithmetic fused; rows proved apart, pictures included.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerBase

from headway.data.tokenizers import identity
from headway.engine.precision import weights_dtype
from headway.engine.task import BuildContext
from headway.errors import ConfigError
from headway.models.architecture import empty_causal_lm
from headway.models.attention import checkpoint_activations
from headway.models.backbone import base_model, prove_backbone
from headway.models.eyes import Eyes
from headway.models.hub import load_causal_lm, weights_identity
from headway.models.image_attention import stack_pictures
from headway.models.lora_linear import fuse_lora, fuse_swiglu, store_frozen_in_bf16
from headway.models.rms_norm import fuse_rms_norm
from headway.models.tuning import Full, Lora, adapt, adapted_modules
from headway.models.vision import (
    adapted_by_part,
    fuse_patches,
    isolate_pictures,
    linear_layers,
    train_only,
)
from headway.recipes.language_model import count
from headway.recipes.vision_scratch import Scratch

Part = Literal["language", "vision", "both"]


class ModelConfig(Protocol):
    """What the recipe's config says of its model."""

    @property
    def base_model(self) -> str | None: ...  # noqa: D102
    @property
    def revision(self) -> str | None: ...  # noqa: D102
    @property
    def scratch(self) -> Scratch | None: ...  # noqa: D102
    @property
    def tuning(self) -> Full | Lora: ...  # noqa: D102
    @property
    def adapt(self) -> Part: ...  # noqa: D102


def load_vision_model(
    config: ModelConfig, context: BuildContext, tokenizer: PreTrainedTokenizerBase, eyes: Eyes
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with the right part trainable, ready for flat microbatches; its facts.

    Raises ConfigError for a machine or a model on which rows with pictures cannot train.
    """
    if context.compile:
        raise ConfigError(
            "hardware.compile: rows differ in length, so every step would compile again; "
            "set it to false"
        )
    base = load_base(config, context, tokenizer, eyes, quantized=config.tuning.kind == "qlora")
    prove_backbone(base)
    model = adapted(base, config)
    if context.precision == "bf16" and config.tuning.kind != "full":
        store_frozen_in_bf16(model)
    fuse_lora(model)
    fuse_swiglu(model)
    fuse_rms_norm(model)
    fuse_patches(model)
    stack_pictures(model)
    together = isolate_pictures(model, eyes)
    if context.activation_checkpointing:
        checkpoint_activations(model)
    return model, facts_of(config, context, model, tokenizer, together)


def adapted(base: Any, config: ModelConfig) -> nn.Module:
    """The model with adapters on the chosen part, or with that part trainable whole."""
    tuning = config.tuning
    if isinstance(tuning, Full):
        train_only(base, config.adapt)
        return base
    endings = None if tuning.target_modules == "all-linear" else tuning.target_modules
    layers = linear_layers(base, config.adapt, endings)
    if not layers:
        raise ConfigError(
            f"task.tuning.target_modules: {endings} fits no linear layer of the part "
            f"{config.adapt} (task.adapt)"
        )
    return adapt(base, tuning, layers=layers)


def facts_of(
    config: ModelConfig,
    context: BuildContext,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    together: bool,
) -> dict[str, Any]:
    """What a person should see of the model, and the identities that must not change."""
    parts = adapted_by_part(model)
    total = sum(count(p) for p in model.parameters())
    trained = f"{config.tuning.kind}, {config.adapt}"
    if parts["language"] or parts["vision"]:
        trained += f": {parts['language']} language and {parts['vision']} vision layers adapted"
    name = config.base_model or f"new qwen3_vl {total / 1e6:.3g}M"
    alone = "" if together else "; one row at a time: its rows cannot be kept apart in one pass"
    identities = {"tokenizer": identity(tokenizer)[:16]}
    if config.base_model is not None and context.weights:
        identities["base_model"] = weights_identity(
            config.base_model, config.revision, context.cache
        )
    layers = getattr(base_model(model), "all_layers", None)
    return {
        **({"layers": layers} if layers else {}),
        "model": f"{name} ({trained}{alone})",
        "parameters": total,
        "adapted": adapted_modules(model),
        "adapted_by_part": parts,
        "identities": identities,
    }


def untouched_base(
    config: ModelConfig, context: BuildContext, tokenizer: PreTrainedTokenizerBase, eyes: Eyes
) -> Any:
    """The base model in fp32, for an export to stand on; None where it trained whole."""
    if config.tuning.kind == "full":
        return None
    return load_base(config, replace(context, precision="fp32"), tokenizer, eyes, quantized=False)


def load_base(
    config: ModelConfig,
    context: BuildContext,
    tokenizer: PreTrainedTokenizerBase,
    eyes: Eyes,
    *,
    quantized: bool,
) -> Any:
    """The model as downloaded, or with random weights drawn from the run's seed."""
    if config.base_model is None:
        torch.manual_seed(context.seed)
        made = AutoModelForImageTextToText.from_config(
            eyes.config, dtype=weights_dtype(context.precision)
        )
        made.generation_config.eos_token_id = tokenizer.eos_token_id
        return made.to(torch.device(context.device))
    four_bits_in_bf16 = quantized and context.precision != "fp32"
    load: Any = load_causal_lm
    if not context.weights:
        load = partial(empty_causal_lm, layers=context.layers)
    return load(
        config.base_model,
        config.revision,
        context.cache,
        dtype=torch.bfloat16 if four_bits_in_bf16 else weights_dtype(context.precision),
        device=torch.device(context.device),
        quantized=quantized,
        auto=AutoModelForImageTextToText,
    )
