"""What a vision-language model makes of a picture: how many features, which pixels, which places.

One class per family, all with the same few methods. The numbers are the model's own image
processor's, read from its config; what it computes is computed here without torchvision, and for
Qwen3-VL in one pass: a table of 256 values a colour in place of four passes in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, PretrainedConfig

from headway.engine.fake import with_numbers
from headway.errors import ConfigError
from headway.models.backbone import backbone
from headway.models.hub import NO_CODE, explained, locate, locate_config

FAMILIES = ("qwen3_vl", "llava")
Arrays = Mapping[str, NDArray[Any]]


class Eyes(Protocol):
    """A family's way with pictures."""

    @property
    def config(self) -> Any:
        """The whole model's, as transformers has it."""
        ...

    @property
    def processor(self) -> Any:
        """Transformers' image processor, whose numbers these are."""
        ...

    @property
    def image_id(self) -> int:
        """The token that stands for one feature."""
        ...

    def features(self, height: int, width: int) -> int:
        """How many features a picture of this size has. ValueError for one that has none."""
        ...

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that the model sees."""
        ...

    def largest(self, features: int) -> tuple[int, int]:
        """Height and width of a picture that has about so many features, or the most there can
        be."""
        ...

    def pixels(self, image: Any) -> Arrays:
        """What the model reads of an RGB picture; of several, laid end to end along axis 0."""
        ...

    def positions(
        self, model: nn.Module, ids: NDArray[np.integer], pictures: Sequence[Arrays]
    ) -> NDArray[np.int64]:
        """[k, tokens] places of a row's tokens: 1 of text, or 3 (time, height, width)."""
        ...

    def work(self, features: int) -> float:
        """What its vision tower costs for so many features, in tokens of the language model."""
        ...


@dataclass(frozen=True)
class QwenEyes:
    """Qwen3-VL: pictures of any size as patches, 2 x 2 of them a feature; places in 3 axes."""

    config: Any
    processor: Any

    @property
    def image_id(self) -> int:
        """``<|image_pad|>``."""
        return int(self.config.image_token_id)

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """The nearest multiples of a feature's side, within the budget of pixels."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        side = self.processor.patch_size * self.processor.merge_size
        size = self.processor.size
        found: tuple[int, int] = smart_resize(
            height, width, side, size["shortest_edge"], size["longest_edge"]
        )
        return found

    def features(self, height: int, width: int) -> int:
        """One a square of merged patches."""
        high, wide = self.scaled(height, width)
        side = self.processor.patch_size * self.processor.merge_size
        return (high // side) * (wide // side)

    def largest(self, features: int) -> tuple[int, int]:
        """Nearly a square, within the budget of pixels."""
        side = self.processor.patch_size * self.processor.merge_size
        most = max(1, min(features, self.processor.size["longest_edge"] // side**2))
        high = math.isqrt(most)
        return high * side, most // high * side

    def pixels(self, image: Any) -> Arrays:
        """``pixel_values`` [patches, 3 * side * side] of one frame, ``image_grid_thw`` [1, 3]."""
        high, wide = self.scaled(image.height, image.width)
        made = image.resize((wide, high), resample=self.processor.resample)
        side, merge = self.processor.patch_size, self.processor.merge_size
        rows, columns = high // side, wide // side
        values = self._table()[np.arange(3), np.asarray(made, dtype=np.uint8)]  # [high, wide, 3]
        blocks = values.reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
        patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, -1)
        grid = np.array([[1, rows, columns]], dtype=np.int64)
        return {"pixel_values": np.ascontiguousarray(patches), "image_grid_thw": grid}

    def _table(self) -> NDArray[np.float32]:
        """[3, 256] what the processor makes of each value of each colour."""
        from transformers.image_transforms import normalize, rescale

        every = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
        scaled = rescale(every, self.processor.rescale_factor)
        mean, std = self.processor.image_mean, self.processor.image_std
        table: NDArray[np.float32] = normalize(
            scaled, mean, std, input_data_format="channels_first"
        )
        return table.reshape(3, 256)

    def positions(
        self, model: nn.Module, ids: NDArray[np.integer], pictures: Sequence[Arrays]
    ) -> NDArray[np.int64]:
        """The model's own ``get_rope_index`` on this one row: [3, tokens]."""
        with with_numbers():
            row = torch.from_numpy(ids.astype(np.int64))[None]
            grids = [torch.from_numpy(p["image_grid_thw"]) for p in pictures]
            found, _ = backbone(model).body.get_rope_index(
                row,
                mm_token_type_ids=(row == self.image_id).int(),
                image_grid_thw=torch.cat(grids) if grids else None,
            )
            places: NDArray[np.int64] = found[:, 0].numpy()
        return places

    def work(self, features: int) -> float:
        """Merged patches pass the tower one by one."""
        tower, text = self.config.vision_config, self.config.text_config
        share = (tower.depth * tower.hidden_size) / (text.num_hidden_layers * text.hidden_size)
        return float(features * self.processor.merge_size**2 * share)


@dataclass(frozen=True)
class LlavaEyes:
    """LLaVA: every picture scaled and cropped to one square, seen by CLIP or SigLIP."""

    config: Any
    processor: Any

    @property
    def image_id(self) -> int:
        """``<image>``."""
        return int(self.config.image_token_id)

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Always the same square; what hangs over is cut off."""
        size = getattr(self.processor, "crop_size", None) or self.processor.size
        return int(size["height"]), int(size["width"])

    def features(self, height: int, width: int) -> int:
        """One a patch, and one for the whole where the config keeps it."""
        tower = self.config.vision_config
        high, wide = self.scaled(height, width)
        whole = 1 if tower.model_type == "clip_vision_model" else 0
        dropped = 1 if self.config.vision_feature_select_strategy == "default" else 0
        return (high // tower.patch_size) * (wide // tower.patch_size) + whole - dropped

    def largest(self, features: int) -> tuple[int, int]:
        """Every picture is as large."""
        return self.scaled(1, 1)

    def pixels(self, image: Any) -> Arrays:
        """``pixel_values`` [1, 3, height, width]."""
        made = self.processor(images=[image], return_tensors="np")["pixel_values"]
        return {"pixel_values": np.asarray(made, dtype=np.float32)}

    def positions(
        self, model: nn.Module, ids: NDArray[np.integer], pictures: Sequence[Arrays]
    ) -> NDArray[np.int64]:
        """[1, tokens]: pictures stand in line like words."""
        return np.arange(len(ids), dtype=np.int64)[None]

    def work(self, features: int) -> float:
        """The tower sees as many patches as there are features."""
        tower, text = self.config.vision_config, self.config.get_text_config()
        share = tower.num_hidden_layers * tower.hidden_size
        return float(features * share / (text.num_hidden_layers * text.hidden_size))


def eyes_of(config: PretrainedConfig, processor: Any) -> Eyes:
    """The family's eyes. Raises ConfigError for a family that is not known here."""
    if config.model_type == "qwen3_vl":
        return QwenEyes(config, processor)
    if config.model_type == "llava":
        return LlavaEyes(config, processor)
    raise ConfigError(
        f"task.base_model: the recipe vision knows the families {', '.join(FAMILIES)}, and this is "
        f"a {config.model_type}"
    )


def load_eyes(
    name: str,
    revision: str | None,
    cache: Path,
    *,
    min_pixels: int | None,
    max_pixels: int | None,
    weights: bool = True,
) -> Eyes:
    """The eyes of a model by name, its budget of pixels changed where one is given.

    Raises ConfigError: it cannot be loaded, is of no known family, or has no such budget.
    """
    with explained(name):
        place = locate(name, cache) if weights else locate_config(name, cache)[0]
        config = AutoConfig.from_pretrained(place, revision=revision, **NO_CODE)
        processor = AutoImageProcessor.from_pretrained(place, revision=revision, **NO_CODE)
    found = eyes_of(config, processor)
    with_budget(found, min_pixels, max_pixels)
    return found


def with_budget(eyes: Eyes, min_pixels: int | None, max_pixels: int | None) -> None:
    """Change the processor's budget of pixels. ConfigError where it has none, or it is no range."""
    if min_pixels is None and max_pixels is None:
        return
    size = eyes.processor.size
    if not isinstance(eyes, QwenEyes):
        raise ConfigError(
            "task.min_pixels, task.max_pixels: this model sees every picture at one size; leave "
            "them out"
        )
    low = min_pixels if min_pixels is not None else size["shortest_edge"]
    high = max_pixels if max_pixels is not None else size["longest_edge"]
    side = (eyes.processor.patch_size * eyes.processor.merge_size) ** 2
    if not low <= high or high < side:
        raise ConfigError(
            f"task.min_pixels {low:,} to task.max_pixels {high:,}: the largest must not be less "
            f"than the smallest, nor than one feature's {side:,} pixels"
        )
    eyes.processor.size = {"shortest_edge": int(low), "longest_edge": int(high)}
