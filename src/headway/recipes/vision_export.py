"""A trained vision-language model on disk, read back and compared on a picture before it is
said to be done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from headway.models.vision import own_inputs
from headway.recipes.export import export_model

if TYPE_CHECKING:
    from headway.recipes.vision_task import VisionTask


def export_vision(task: VisionTask, base: Any, to: Path, format: str) -> Mapping[str, Any]:
    """``adapter``, ``merged``, or (a model that trained whole) ``full`` into the empty folder.

    Tokenizer, chat template and image processor lie beside the weights. Compared are the logits of
    a fixed row with a fixed picture.
    """
    probe = probe_of(task)

    def logits(model: nn.Module) -> torch.Tensor:
        device = next(model.parameters()).device
        training = model.training
        model.eval()
        with torch.no_grad():
            out = model(**{k: v.to(device) for k, v in probe.items()}, use_cache=False)
        model.train(training)
        found: torch.Tensor = out.logits.float().cpu()
        return found

    done = export_model(task, base, to, format, auto=AutoModelForImageTextToText, answer=logits)
    if format == "merged":
        for name, data in task.saved().files.items():
            if not name.startswith(("adapter_", "config")):
                (to / name).write_bytes(data)
    return done


def probe_of(task: VisionTask) -> dict[str, torch.Tensor]:
    """A fixed row: a picture of grey noise, and words around it, as the model's own forward reads
    it."""
    from PIL import Image

    drawn = np.random.default_rng(0)
    noise = drawn.integers(0, 256, (48, 96, 1), dtype=np.uint8).repeat(3, axis=2)
    pictures = [task.eyes.pixels(Image.fromarray(noise))]
    size = len(task.tokenizer)
    words = drawn.integers(0, min(size, 1000), 12)
    words[words == task.eyes.image_id] = (task.eyes.image_id + 1) % size
    marks = np.full(task.eyes.features(48, 96), task.eyes.image_id)
    ids = np.concatenate([words[:6], marks, words[6:]])
    inputs = own_inputs(task.eyes, ids, pictures)
    return inputs | _whole_patches(task, inputs)


def _whole_patches(task: VisionTask, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Patches of two equal frames, for a model read back, whose embedding knows no others."""
    frames = getattr(task.eyes.processor, "temporal_patch_size", 1)
    if "image_grid_thw" not in inputs or frames == 1:
        return {}
    side = task.eyes.processor.patch_size
    patches = inputs["pixel_values"].unflatten(1, (3, 1, side * side))
    return {"pixel_values": patches.expand(-1, -1, frames, -1).flatten(1)}
