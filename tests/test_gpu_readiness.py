"""What can be proved without a GPU about the paths that only a GPU takes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from headway.engine.precision import make_deterministic
from headway.models.attention import (
    Segments,
    _varlen_fits,
    checkpoint_activations,
    hidden_states,
    isolate,
    segments,
)
from headway.models.lora_linear import fuse_lora, fuse_swiglu
from headway.models.tuning import Lora, adapt
from tiny import tiny_llama


@pytest.fixture
def kernels_as_before() -> Iterator[None]:
    wanted = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(wanted, warn_only=only_warns)


def unrepeatable() -> None:
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


def test_deterministic_means_an_unrepeatable_operation_is_refused(kernels_as_before: None) -> None:
    make_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    with pytest.raises(RuntimeError, match="deterministic"):
        unrepeatable()


def test_with_warnings_only_it_would_run_and_flash_attention_too(kernels_as_before: None) -> None:
    """Negative control: what ``make_deterministic`` did before."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.warns(UserWarning, match="deterministic"):
        unrepeatable()


def test_not_deterministic_lets_every_kernel_run(kernels_as_before: None) -> None:
    make_deterministic(False)
    unrepeatable()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_host_keeps_no_bounds_tensor() -> None:
    assert segments([2, 5], 5) == Segments((2, 5), None)


class OnGpu:
    """A query as ``_varlen_fits`` sees it: no GPU is needed to ask whether a shape fits."""

    is_cuda, dtype, device = True, torch.bfloat16, torch.device("cuda", 0)

    def __init__(self, width: int) -> None:
        self.shape = (1, 2, 5, width)


@pytest.mark.parametrize(("width", "fits"), [(64, True), (128, True), (20, False), (264, False)])
def test_only_head_widths_that_the_flash_kernel_takes_go_there(
    width: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses widths that are no multiple of 8; PyTorch's own caller pads, ours not."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuts = Segments((2, 5), torch.tensor([0, 2, 5]))
    assert _varlen_fits(OnGpu(width), OnGpu(width), 0.0, cuts) is fits  # type: ignore[arg-type]


def adapter_gradients(*, fused: bool, recompute: bool) -> Tensor:
    torch.manual_seed(1)
    model = adapt(tiny_llama(384), Lora(rank=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    if fused:
        assert fuse_lora(model) == 14
        assert fuse_swiglu(model) == 2
    assert isolate(model)
    if recompute:
        checkpoint_activations(model)
    model.train()
    ids, positions = torch.arange(24)[None] % 7, torch.arange(24)[None] % 12
    hidden = hidden_states(model, ids, positions, [12, 24])
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_fused_adapters_may_recompute_activations() -> None:
    """The two need not exclude each other: recomputing changes no bit of a fused layer's gradient,
    and both are PEFT's."""
    fused = adapter_gradients(fused=True, recompute=False)
    assert torch.equal(adapter_gradients(fused=True, recompute=True), fused)
    plain = adapter_gradients(fused=False, recompute=True)
    assert (fused - plain).norm() < 1e-5 * plain.norm()
