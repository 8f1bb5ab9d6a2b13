"""Weights for use elsewhere, read back from disk and compared before anybody says done."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from headway.engine.state import safetensors_chunks
from headway.engine.task import SavedModel
from headway.errors import CheckpointError, ConfigError
from headway.models.attention import generating

TOLERANCE = 2e-3
"""Largest difference of logits, relative to the largest logit: fp32 sums in another order."""
TOLERANCE_BF16 = 2e-2
"""As much where the weights are bf16, whose every sum is rounded to 8 bits."""


class Exportable(Protocol):
    """What an export needs of a task."""

    model: nn.Module

    def saved(self) -> SavedModel: ...  # noqa: D102


def export_model(
    task: Exportable,
    base: Any,
    to: Path,
    format: str,
    *,
    auto: Any = AutoModelForCausalLM,
    answer: Callable[[nn.Module], torch.Tensor] | None = None,
) -> Mapping[str, Any]:
    """Write ``adapter``, ``merged`` or (a fully tuned model) ``full`` into the empty folder ``to``.

    ``base`` is the untouched base model in fp32, or None for a fully tuned one. ``auto``: which of
    transformers' ``AutoModelFor…`` reads the result back; ``answer``: a model's logits for
    something fixed, else for a row of tokens. Returns the largest difference between the logits of
    what was read back and of the model before it was written.
    """
    logits_of = answer or logits
    adapted = isinstance(task.model, PeftModel)
    formats = ("adapter", "merged") if adapted else ("full",)
    if format not in formats:
        raise ConfigError(f"--format {format}: this run exports {' or '.join(formats)}")
    write_saved(task, to)
    if not adapted:
        with generating(task.model) as trained:
            expected = logits_of(trained)
        found = auto.from_pretrained(to, dtype=trained.dtype)
        rounded = TOLERANCE if trained.dtype == torch.float32 else TOLERANCE_BF16
        return compared(expected, logits_of(found.to(trained.device)), to, rounded)
    name_base(base, to)
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by a name that 6 will drop.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")
        joined = PeftModel.from_pretrained(base, to)
    expected = logits_of(joined)
    if format == "adapter":
        same_adapter(task.model, joined, to)
        return {"format": format, "to": str(to), "tensors": len(list(joined.parameters()))}
    for file in to.glob("adapter_*"):
        file.unlink()
    joined.merge_and_unload(safe_merge=True).save_pretrained(to)
    found = auto.from_pretrained(to, dtype=torch.float32)
    return compared(expected, logits_of(found), to) | {"format": format}


def name_base(base: Any, to: Path) -> None:
    """Let the adapter name its base as other tools load it: a GGUF inside a package, or a file, as
    the folder it was unpacked to on this machine; a hub name as it is."""
    file = to / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.name_or_path or config["base_model_name_or_path"]
    file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def write_saved(task: Exportable, to: Path) -> None:
    """The same files a checkpoint's ``model/`` folder holds."""
    saved = task.saved()
    for name, data in saved.files.items():
        (to / name).write_bytes(data)
    for name, tensors in saved.tensors.items():
        on_host = {key: tensor.detach().cpu() for key, tensor in tensors.items()}
        with (to / name).open("wb") as file:
            file.writelines(safetensors_chunks(on_host))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    """Logits [1, 16, vocabulary] in fp32 for a fixed row of token ids."""
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    drawn = torch.randint(vocabulary, (1, 16), generator=torch.Generator().manual_seed(0))
    training = model.training
    model.eval()
    found: torch.Tensor = model(input_ids=drawn.to(device), use_cache=False).logits.float().cpu()
    model.train(training)
    return found


def compared(
    expected: torch.Tensor, found: torch.Tensor, to: Path, tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """The largest difference; CheckpointError if it is more than another order of sums explains."""
    difference = float((expected - found).abs().max() / expected.abs().max())
    if not difference <= tolerance:
        raise CheckpointError(
            f"{to}: what was read back answers differently (logits off by {difference:.2g} of the "
            "largest); do not use it"
        )
    return {"to": str(to), "largest_logit_difference": difference}


def same_adapter(trained: nn.Module, found: nn.Module, to: Path) -> None:
    """Every adapter tensor read back must be the trained one, bit for bit."""
    there = dict(found.named_parameters())
    for name, parameter in trained.named_parameters():
        trains = "lora_" in name or "trainable_tokens" in name
        if trains and not torch.equal(parameter.detach().cpu(), there[name].detach().cpu()):
            raise CheckpointError(f"{to}: {name} was read back with other values; do not use it")
