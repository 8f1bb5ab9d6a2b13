"""Language models read back from an export: every tensor from the file, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from headway.models.tuning import ADAPTER_FILE


def whole_model(folder: Path) -> nn.Module:
    """The model in ``folder``, in fp32; ValueError where a tensor is missing: it would be made up.

    Also raises what transformers raises for files that cannot be read.
    """
    language, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in found.items() if names}
    if wrong:
        raise ValueError(f"tensors {wrong}")
    loaded: nn.Module = language
    return loaded


def adapted_model(folder: Path, base: Any) -> nn.Module:
    """``base`` with the adapter in ``folder``; ValueError where a tensor was not taken over.

    Also raises what PEFT raises for files that cannot be read.
    """
    language = PeftModel.from_pretrained(base, folder)
    stored = load_file(folder / ADAPTER_FILE)
    taken = get_peft_model_state_dict(language, save_embedding_layers=False)
    if stored.keys() != taken.keys():
        raise ValueError(f"tensors {sorted(stored.keys() ^ taken.keys())[:3]} are on one side only")
    return language
