"""A pretrained causal language model made ready to train: the part that its recipes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from headway.data.tokenizers import identity
from headway.engine.precision import weights_dtype
from headway.engine.task import BuildContext
from headway.errors import ConfigError
from headway.models.architecture import empty_causal_lm
from headway.models.attention import checkpoint_activations, isolate
from headway.models.backbone import keep_first_layers, prove_backbone
from headway.models.hub import load_causal_lm, load_tokenizer, weights_identity
from headway.models.lora_linear import fuse_lora, fuse_swiglu, store_frozen_in_bf16
from headway.models.rms_norm import fuse_rms_norm
from headway.models.tuning import Full, Lora, adapt, adapted_modules, add_tokens


class ModelConfig(Protocol):
    """What a recipe's config says of its model."""

    @property
    def base_model(self) -> str: ...  # noqa: D102
    @property
    def revision(self) -> str | None: ...  # noqa: D102
    @property
    def tuning(self) -> Full | Lora: ...  # noqa: D102
    @property
    def special_tokens(self) -> Sequence[str]: ...  # noqa: D102


def load_model(
    config: ModelConfig,
    context: BuildContext,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with the right parameters trainable, ready for flat microbatches; its facts.

    ``layers``: only so many, the first. Raises ConfigError for a machine or a model on which rows
    of varied length cannot train.
    """
    if context.compile:
        raise ConfigError(
            "hardware.compile: rows differ in length, so every step would compile again; "
            "set it to false"
        )
    quantized = config.tuning.kind == "qlora"
    base = load_base(config, context, tokenizer, quantized=quantized, layers=layers)
    prove_backbone(base)
    # Also of a token that the base model has already, such as a merged export's: its row trains.
    rows = [int(tokenizer.convert_tokens_to_ids(token)) for token in config.special_tokens]
    model = adapt(base, config.tuning, rows)
    facts = {
        "model": f"{config.base_model} ({config.tuning.kind})",
        "parameters": sum(count(p) for p in model.parameters()),
        "adapted": adapted_modules(model),
        "identities": {
            "tokenizer": identity(tokenizer)[:16],
            "base_model": weights_identity(config.base_model, config.revision, context.cache)
            if context.weights
            else "not read",
        },
    }
    if getattr(base, "all_layers", None):
        facts["layers"] = base.all_layers
    if context.precision == "bf16" and config.tuning.kind != "full":
        store_frozen_in_bf16(model)
    fuse_lora(model)
    fuse_swiglu(model)
    fuse_rms_norm(model)
    isolate(model)
    if context.activation_checkpointing:
        checkpoint_activations(model)
    return model, facts


def untouched_base(config: ModelConfig, context: BuildContext, *, layers: int | None = None) -> Any:
    """The base model in fp32, for an export to stand on; None where all its weights trained."""
    if config.tuning.kind == "full":
        return None
    tokenizer = load_tokenizer(config.base_model, config.revision, context.cache)
    whole = replace(context, precision="fp32")
    return load_base(config, whole, tokenizer, quantized=False, layers=layers)


def load_base(
    config: ModelConfig,
    context: BuildContext,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quantized: bool,
    layers: int | None = None,
) -> Any:
    """The model as downloaded, or its first ``layers``, with rows for the special tokens."""
    # A 4-bit weight is unpacked to the type it was loaded in before every product.
    four_bits_in_bf16 = quantized and context.precision != "fp32"
    load: Any = load_causal_lm
    if not context.weights:
        load = partial(empty_causal_lm, layers=context.layers)
    base = load(
        config.base_model,
        config.revision,
        context.cache,
        dtype=torch.bfloat16 if four_bits_in_bf16 else weights_dtype(context.precision),
        device=torch.device(context.device),
        quantized=quantized,
    )
    if layers is not None:
        keep_first_layers(base, layers)
    add_tokens(base, tokenizer, config.special_tokens)
    return base


def count(parameter: Tensor) -> int:
    """Weights in a parameter; 4-bit storage packs two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel() if state is not None else parameter.numel())


def counts(model: nn.Module) -> dict[str, int]:
    """``parameters`` and how many of them are ``trainable``."""
    return {
        "parameters": sum(count(p) for p in model.parameters()),
        "trainable": sum(count(p) for p in model.parameters() if p.requires_grad),
    }
