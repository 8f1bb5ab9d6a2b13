"""Which parameters train: all of them, or low-rank adapters over frozen or 4-bit weights.

Adapters are PEFT's, so a checkpoint's ``model/`` folder loads with ``PeftModel.from_pretrained``.
LoRA: arXiv:2106.09685. QLoRA: arXiv:2305.14314.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headway.engine.task import SavedModel
from headway.errors import ConfigError

ADAPTER_FILE = "adapter_model.safetensors"
MODEL_FILE = "model.safetensors"


class Full(BaseModel):
    """Every parameter trains."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["full"] = "full"


class Lora(BaseModel):
    """Low-rank adapters train; the model's own weights stay as they are.

    With ``qlora`` its linear layers are stored in 4 bits (NF4, double quantisation).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["lora", "qlora"] = "lora"
    rank: int = Field(16, ge=1, description="Rank of each adapter.")
    alpha: float = Field(32, gt=0, description="Adapters are scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Layers that get an adapter: all linear layers but the head, or name endings.",
    )


Tuning = Annotated[Full | Lora, Field(discriminator="kind")]


def adapt(
    model: PreTrainedModel,
    tuning: Full | Lora,
    tokens: Sequence[int] = (),
    layers: Sequence[str] | None = None,
) -> nn.Module:
    """The model with the right parameters trainable.

    ``tokens`` are ids whose embedding rows train in every mode; the other rows of the table stay as
    they are under lora and qlora. ``layers``: full names of the layers that get an adapter, in
    place of ``tuning.target_modules``. Raises ConfigError when no layer was adapted.
    """
    if tuning.kind == "full":
        return model.requires_grad_(True)
    targets = tuning.target_modules if layers is None else tuple(layers)
    options: dict[str, Any] = {}
    if tokens:
        options["trainable_token_indices"] = list(tokens)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        **options,
    )
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 by a name that 6 will drop.
            warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"task.tuning.target_modules: {targets!s:.300}: {error}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()  # adapters train in fp32 over any base
    if adapted_modules(adapted) == 0:
        raise ConfigError(
            f"task.tuning.target_modules: {targets!s:.300} fits no layer of this model"
        )
    return adapted


def adapted_modules(model: nn.Module) -> int:
    """How many layers carry an adapter."""
    return sum(hasattr(module, "lora_A") for module in model.modules())


def add_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]
) -> list[int]:
    """Add special tokens; returns the ids that are new. The embedding table never shrinks.

    New rows start at the mean of the old ones, so that they start as nobody in particular.
    """
    new = [token for token in tokens if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    ids = [int(i) for i in tokenizer.convert_tokens_to_ids(new)]
    table = model.get_input_embeddings().weight
    if ids and max(ids) >= table.shape[0]:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
            if ids and module is not None:
                rows = module.weight
                rows[ids] = rows[: min(ids)].mean(0, dtype=torch.float32).to(rows.dtype)
    return ids


def saved_model(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, base_model: str
) -> SavedModel:
    """What a checkpoint holds: PEFT's layout for adapters, transformers' for a whole model."""
    files = tokenizer_files(tokenizer) if tokenizer else {}
    if isinstance(model, PeftModel):
        config = model.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": base_model, "inference_mode": True}
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        files["adapter_config.json"] = _json(config)
        return SavedModel(tensors={ADAPTER_FILE: dict(tensors)}, files=files)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    config["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    files["config.json"] = _json(config)
    if getattr(model, "generation_config", None) is not None:
        files["generation_config.json"] = _json(model.generation_config.to_diff_dict())
    return SavedModel(tensors={MODEL_FILE: _untied(model)}, files=files)


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with tied weights once, under their first name, as transformers saves them."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    found = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if key not in seen:
            found[name] = tensor
        seen.add(key)
    return found


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """The tokenizer's files by name, as ``save_pretrained`` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def _json(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, indent=2, sort_keys=True, default=_plain).encode()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
