"""A vision-language model as two parts, and rows with pictures that share one forward pass.

The rows lie end to end as in ``attention``; their pictures too, and the model puts each feature
where its token stands. Each row's places are computed for that row alone. That rows then do not see
each other, nor each other's pictures, is proved once on random rows; a model for which it does not
hold runs one row at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.engine.fake import is_fake, kind_of
from headway.models.attention import (
    GENERATING,
    attend_by,
    generating,
    is_isolated,
    isolate,
    segments,
)
from headway.models.backbone import backbone, base_model
from headway.models.eyes import Arrays, Eyes

PARTS = ("language", "vision", "both")


def part_of(model: nn.Module, name: str) -> str:
    """``language``, ``vision`` or ``head``: where a module or parameter of the base model lies.

    What leads from one to the other (a merger, a projector) belongs to vision.
    """
    base = base_model(model)
    language = f"{base.base_model_prefix}.language_model."
    if name.startswith(language):
        return "language"
    return "vision" if name.startswith(f"{base.base_model_prefix}.") else "head"


def is_unread(model: nn.Module, name: str) -> bool:
    """Whether no feature passes through this module or parameter of the base model.

    LLaVA takes the features of an earlier layer of its tower than the last. What lies behind never
    has a gradient: it cannot train.
    """
    base = base_model(model)
    chosen = getattr(base.config, "vision_feature_layer", None)
    if chosen is None or "vision_tower." not in name:
        return False
    total = int(base.config.vision_config.num_hidden_layers)
    layers = [chosen] if isinstance(chosen, int) else list(chosen)
    used = max(layer if layer >= 0 else total + 1 + layer for layer in layers)
    within = name.split("vision_tower.", 1)[1].removeprefix("vision_model.")
    number = re.match(r"encoder\.layers\.(\d+)", within)
    return int(number[1]) >= used if number else within.startswith(("post_layernorm", "head"))


def linear_layers(model: nn.Module, part: str, endings: Sequence[str] | None = None) -> list[str]:
    """Full names of the linear layers of a part, the output head and what is never read left out.

    ``endings``: only those whose name ends so (``q_proj``).
    """
    base = base_model(model)
    head = base.get_output_embeddings()
    found = []
    for name, module in base.named_modules():
        if not isinstance(module, nn.Linear) or module is head or is_unread(base, name):
            continue
        there = part_of(base, name)
        fits = endings is None or any(name == e or name.endswith(f".{e}") for e in endings)
        if there != "head" and (part == "both" or there == part) and fits:
            found.append(name)
    return found


def train_only(model: nn.Module, part: str) -> None:
    """Of a model that trains whole, freeze what is not of the part, and what is never read; the
    head goes with language."""
    for name, parameter in base_model(model).named_parameters():
        there = part_of(model, name).replace("head", "language")
        parameter.requires_grad_(part in ("both", there) and not is_unread(model, name))


def adapted_by_part(model: nn.Module) -> dict[str, int]:
    """How many layers of each part carry an adapter."""
    counted = {"language": 0, "vision": 0}
    for name, module in base_model(model).named_modules():
        if hasattr(module, "lora_A"):
            counted[part_of(model, name)] += 1
    return counted


def picture_states(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Last hidden states [tokens, hidden] of a flat microbatch with pictures.

    ``input_ids`` [1, tokens], ``position_ids`` [k, 1, tokens] (k is 1 or 3), ``row_ends``;
    ``picture_keys`` name the inputs that hold the pictures, and ``picture_ends`` where each row's
    stop in each of them.
    """
    body = backbone(model).body
    ids, places = inputs["input_ids"], inputs["position_ids"]
    places = places[0] if places.shape[0] == 1 else places
    table = base_model(model).get_input_embeddings().weight  # ids may be real where it is not
    cuts = segments(inputs["row_ends"], ids.shape[1], ids.device, kind_of(table))
    keys = inputs["picture_keys"]
    if is_isolated(model):
        pictures = {key: inputs[key] for key in keys}
        out = body(input_ids=ids, position_ids=places, segments=cuts, use_cache=False, **pictures)
        return out.last_hidden_state[0]
    found, before = [], dict.fromkeys(keys, 0)
    for row, (start, end) in enumerate(cuts.spans):
        stops = {key: inputs["picture_ends"][key][row] for key in keys}
        pictures = {k: inputs[k][before[k] : stops[k]] for k in keys if stops[k] > before[k]}
        before = stops
        out = body(
            input_ids=ids[:, start:end],
            position_ids=places[..., start:end],
            use_cache=False,
            **pictures,
        )
        found.append(out.last_hidden_state[0])
    return torch.cat(found)


def flat_pictures(per_row: Sequence[Sequence[Arrays]]) -> dict[str, Any]:
    """The pictures of all rows end to end: their arrays, ``picture_keys`` and ``picture_ends``."""
    every = [picture for row in per_row for picture in row]
    keys = tuple(every[0]) if every else ()
    found: dict[str, Any] = {
        key: torch.from_numpy(np.concatenate([picture[key] for picture in every])) for key in keys
    }
    ends = {
        key: np.cumsum([sum(len(p[key]) for p in row) for row in per_row]).tolist() for key in keys
    }
    return {**found, "picture_keys": keys, "picture_ends": ends}


def fuse_patches(model: nn.Module) -> int:
    """Let Qwen's patch embedding take patches of one frame; returns how many layers do.

    It is a convolution whose window is the whole patch: a matrix product. A still picture is given
    to it as two equal frames, so the two halves of its weight are added first: half the pixels,
    half the arithmetic.
    """
    fused = 0
    for module in base_model(model).modules():
        weight = getattr(getattr(module, "proj", None), "weight", None)
        if hasattr(module, "temporal_patch_size") and weight is not None and weight.dim() == 5:
            module.forward = MethodType(_patches, module)
            fused += 1
    return fused


def _patches(self: Any, hidden_states: Tensor) -> Tensor:
    """Replaces the forward of one instance. [patches, 3 * side * side] -> [patches, width]."""
    weight, bias = self.proj.weight, self.proj.bias
    frames = weight.shape[2]
    if hidden_states.shape[-1] == weight[0].numel() and frames > 1:
        whole: Tensor = type(self).forward(self, hidden_states)
        return whole
    one = weight.sum(2) if frames > 1 else weight[:, :, 0]
    return F.linear(hidden_states.to(one.dtype), one.flatten(1), bias)


def isolate_pictures(model: nn.Module, eyes: Eyes) -> bool:
    """``attention.isolate``, proved with pictures too; False: one row runs at a time."""
    if not isolate(model):
        return False
    if is_fake(model) or _proved(model, eyes):
        return True
    attend_by(base_model(model), GENERATING)
    return False


@torch.no_grad()
def _proved(model: nn.Module, eyes: Eyes) -> bool:
    """Rows with pictures together equal each alone in the model's own forward, and other pictures
    in two of them leave the third as it was."""
    base = base_model(model)
    modes = [(module, module.training) for module in base.modules()]
    base.eval()
    kinds = {p.dtype for p in base.parameters() if p.is_floating_point()}
    mixed = torch.bfloat16 in kinds and torch.float32 in kinds
    device = base.get_input_embeddings().weight.device
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            rows, others = list(_random_rows(model, eyes, 1)), list(_random_rows(model, eyes, 2))
            with generating(model):
                own = _own_states(base, eyes, rows[1]).float()
            span = slice(len(rows[0][0]), len(rows[0][0]) + len(rows[1][0]))
            together = picture_states(model, _laid(model, eyes, rows, device))[span].float()
            mixed_rows = [others[0], rows[1], others[2]]
            disturbed = picture_states(model, _laid(model, eyes, mixed_rows, device))[span].float()
    except (RuntimeError, TypeError, ValueError):
        return False
    finally:
        for module, training in modes:
            module.training = training
    size = together.abs().max()
    exact = 1e-4 if kinds == {torch.float32} else 5e-2
    near = [(together - disturbed, 1e-5), (together - own, exact)]
    return all(bool((error.abs().max() <= limit * size).item()) for error, limit in near)


Drawn = tuple[np.ndarray[Any, np.dtype[np.int64]], list[Arrays]]


def _random_rows(model: nn.Module, eyes: Eyes, seed: int) -> Iterator[Drawn]:
    """Three rows of random words around random pictures of odd sizes; the last has none."""
    from PIL import Image

    drawn = np.random.default_rng(seed)
    side = 2 * eyes.scaled(1, 1)[0] if hasattr(eyes.processor, "merge_size") else 40
    high = min(base_model(model).get_input_embeddings().weight.shape[0], 1000)
    shapes: tuple[tuple[int, int] | None, ...] = ((side, 3 * side + 5), (side + 3, 2 * side), None)
    for words, shape in zip((4, 6, 3), shapes, strict=True):
        ids = drawn.integers(0, high, 2 * words)
        ids[ids == eyes.image_id] = (eyes.image_id + 1) % high
        if shape is None:
            yield ids, []
            continue
        noise = drawn.integers(0, 256, (*shape, 3), dtype=np.uint8)
        marks = np.full(eyes.features(*shape), eyes.image_id)
        yield (
            np.concatenate([ids[:words], marks, ids[words:]]),
            [eyes.pixels(Image.fromarray(noise))],
        )


def _laid(
    model: nn.Module, eyes: Eyes, rows: Sequence[Drawn], device: torch.device
) -> dict[str, Any]:
    """Rows as ``picture_states`` reads them."""
    places = [eyes.positions(model, ids, pictures) for ids, pictures in rows]
    inputs = {
        "input_ids": torch.from_numpy(np.concatenate([ids for ids, _ in rows]))[None],
        "position_ids": torch.from_numpy(np.concatenate(places, axis=1))[:, None],
        "row_ends": np.cumsum([len(ids) for ids, _ in rows]).tolist(),
        **flat_pictures([pictures for _, pictures in rows]),
    }
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def _own_states(base: Any, eyes: Eyes, row: Drawn) -> Tensor:
    """[tokens, hidden] of one row by the model's own forward, places and all left to it."""
    ids, pictures = row
    device = base.get_input_embeddings().weight.device
    inputs = own_inputs(eyes, ids, pictures)
    sent = {key: value.to(device) for key, value in inputs.items()}
    out = getattr(base, base.base_model_prefix)(**sent, use_cache=False)
    states: Tensor = out.last_hidden_state[0]
    return states


def own_inputs(eyes: Eyes, ids: Any, pictures: Sequence[Arrays]) -> dict[str, Tensor]:
    """One row [1, tokens] as the model's own ``forward`` and ``generate`` read it."""
    row = torch.from_numpy(np.asarray(ids).astype(np.int64))[None]
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    flat = flat_pictures([pictures])
    for key in flat["picture_keys"]:
        inputs[key] = flat[key]
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (row == eyes.image_id).int()
    return inputs
