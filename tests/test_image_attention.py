"""What is computed otherwise than in Transformers gives the same numbers, gradients too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("PIL", reason="pillow is not installed")

from transformers import AutoModelForImageTextToText

from headway.models import image_attention
from headway.models.image_attention import stack_pictures
from headway.models.vision import fuse_patches
from tiny_vision import tiny_llava, tiny_qwen

GRIDS = [[1, 2, 4], [1, 4, 4], [1, 2, 4], [1, 4, 2], [1, 6, 2]]


def features(model: Any, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The features of five pictures of four sizes, and the gradient of all the tower's weights."""
    patches = sum(h * w for _, h, w in GRIDS)
    drawn = torch.Generator().manual_seed(1)
    one = torch.randn(patches, 3, 1, 64, generator=drawn)
    pixels = one.expand(-1, -1, frames, -1).flatten(1)
    model.zero_grad()
    found = model.model.get_image_features(pixels, torch.tensor(GRIDS), return_dict=True)
    out = torch.cat([*found.pooler_output, *(x for each in found.deepstack_features for x in each)])
    out.square().sum().backward()
    grads = [p.grad.flatten() for p in model.model.visual.parameters() if p.grad is not None]
    return out.detach(), torch.cat(grads)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(tiny_qwen(tmp_path))


def test_pictures_of_one_size_together_are_as_each_alone_in_value_and_gradient(model: Any) -> None:
    own, own_gradient = features(model, 2)
    assert stack_pictures(model) == 2
    assert fuse_patches(model) == 1
    for frames in (1, 2):  # one frame of a still picture, or two equal ones
        found, gradient = features(model, frames)
        torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, own_gradient, rtol=1e-4, atol=1e-5)


def test_a_tower_with_another_arithmetic_keeps_its_own(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: with pictures that see each other the proof fails, and nothing changes."""
    monkeypatch.setattr(image_attention, "_by_length", lambda lengths, device: None)
    assert stack_pictures(model) == 0


def test_other_families_are_left_alone(tmp_path: Path) -> None:
    llava = AutoModelForImageTextToText.from_pretrained(tiny_llava(tmp_path))
    assert stack_pictures(llava) == fuse_patches(llava) == 0
