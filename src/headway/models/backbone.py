"""Splits a causal language model into its body, which makes hidden states, and its output head.

Logits are the largest tensor of language-model training and most of them are never looked at, so
nothing here ever asks a model for its logits: the body runs, and the head is applied by `lm_loss`
where a token is predicted. What a family does between the two (a scale, a soft cap) is read from
its config and then **proved** on random tokens, so that an unknown twist is refused, not ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headway.engine.fake import is_fake
from headway.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Backbone:
    """A causal language model in two pieces: logits = softcap(scale * head(body(tokens)))."""

    body: Any
    """Returns ``last_hidden_state`` [batch, tokens, hidden]."""
    head: Any
    """Has ``weight`` [vocabulary, hidden] and perhaps ``bias`` [vocabulary]."""
    scale: float = 1.0
    """Cohere's ``logit_scale``; one over Granite's ``logits_scaling``."""
    softcap: float | None = None
    """Gemma 2's ``final_logit_softcapping`` c: logits are c * tanh(logits / c)."""


def base_model(model: nn.Module) -> Any:
    """The Hugging Face model inside PEFT's shell, or the model itself. Adapters stay in place."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def backbone(model: nn.Module) -> Backbone:
    """Body and head of any ``AutoModelForCausalLM``, PEFT-wrapped or not.

    Cheap: call it as often as needed. ``prove_backbone`` says once whether the split is right.
    Raises ConfigError where the model has no separable body or head.
    """
    base = base_model(model)
    body = getattr(base, getattr(base, "base_model_prefix", "") or "-", None)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if not isinstance(body, nn.Module) or getattr(own_layer(head), "weight", None) is None:
        raise ConfigError(
            f"{type(base).__name__} has no separate body and output head, so it cannot be trained "
            "as a language model here; use a causal language model (AutoModelForCausalLM)"
        )
    text = base.config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0)
    scale /= float(getattr(text, "logits_scaling", None) or 1.0)
    return Backbone(body, head, scale, getattr(text, "final_logit_softcapping", None))


def own_layer(head: Any) -> Any:
    """The output head inside PEFT's shells, its weights as they were before anything was adapted.

    A shell of which a row trains makes a whole new table at each look at its ``weight``: 113 MB for
    SmolLM2-135M.
    """
    head = getattr(head, "token_adapter", head)
    return getattr(head, "base_layer", head)


@torch.no_grad()
def keep_first_layers(model: nn.Module, count: int) -> None:
    """Leave ``count`` layers of a causal language model, in place; the last norm only scales then.

    Its weights and bias belong to what the last layer made: they become 1 and 0. A model whose
    ``all_layers`` says that most were left away already keeps those it has. Raises ConfigError
    where there are fewer, or where they are no single list.
    """
    body, config = backbone(model).body, base_model(model).config.get_text_config()
    stacks = [name for name, part in body.named_children() if isinstance(part, nn.ModuleList)]
    if len(stacks) != 1:
        raise ConfigError(f"task.layers: the layers of {type(body).__name__} cannot be told apart")
    stack = getattr(body, stacks[0])
    total = getattr(model, "all_layers", None) or len(stack)
    if count > total:
        raise ConfigError(f"task.layers: {count}, but the model has {total} layers")
    if count == total:
        return
    if getattr(model, "all_layers", None):
        model.all_layers = count  # type: ignore[assignment]
    setattr(body, stacks[0], stack[:count])
    after = list(dict(body.named_children())).index(stacks[0]) + 1
    config.num_hidden_layers = min(count, len(stack))
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[:count]
    for part in list(body.children())[after:]:
        for name, plain in (("weight", 1.0), ("bias", 0.0)):
            scale = getattr(part, name, None)
            if scale is not None and scale.dim() == 1:
                scale.fill_(plain)


@torch.no_grad()
def prove_backbone(model: nn.Module) -> Backbone:
    """Check on random tokens that head(body(tokens)) are the model's own logits.

    Call it before ``attention.isolate``. Raises ConfigError where they differ: the family does
    something to its logits that is unknown here.
    """
    parts, base = backbone(model), base_model(model)
    weight = parts.head.weight
    if is_fake(weight):
        return parts  # there are no numbers to compare: the run proves it
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, min(weight.shape[0], 1000), (1, 8), generator=generator)
    training = base.training
    base.eval()
    try:
        calls = {"input_ids": ids.to(weight.device), "use_cache": False}
        own = base(**calls).logits.float()
        hidden = parts.body(**calls).last_hidden_state
        split = shape_logits(
            parts.head(hidden.to(weight.dtype)).float(), parts.scale, parts.softcap
        )
    finally:
        base.train(training)
    tolerance = 1e-4 if weight.dtype == torch.float32 else 2e-2
    error = (own - split).abs().max().item()
    if not error <= tolerance * max(1.0, own.abs().max().item()):
        raise ConfigError(
            f"{type(base).__name__} changes its logits after the output head in a way headway does "
            f"not know (largest difference {error:.3g}); its loss would be wrong, so it is refused"
        )
    return parts


def shape_logits(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """What a family does to the head's output before the softmax. Any shape."""
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
