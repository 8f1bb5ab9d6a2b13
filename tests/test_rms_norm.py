"""The fused norm is the family's own, in value and gradient, and other norms are left alone."""

from __future__ import annotations

import pytest
import torch

from headway.models.rms_norm import fuse_rms_norm
from tiny import tiny_llama


def test_values_and_gradients_are_the_familys_own() -> None:
    ids = torch.arange(24)[None] % 20
    plain, fused = tiny_llama(300), tiny_llama(300)
    assert fuse_rms_norm(fused) == 2 * 2 + 1
    for model in (plain, fused):
        for norm in (m for m in model.modules() if hasattr(m, "variance_epsilon")):
            torch.manual_seed(3)
            torch.nn.init.normal_(norm.weight, 1.0, 0.2)
        model(input_ids=ids, labels=ids).loss.backward()
    for (name, one), (_, other) in zip(
        plain.named_parameters(), fused.named_parameters(), strict=True
    ):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_under_autocast_it_gives_what_the_next_linear_layer_would_read() -> None:
    model = tiny_llama(300)
    norm = model.model.layers[0].input_layernorm
    x = torch.randn(2, 5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = norm(x).bfloat16()
        fuse_rms_norm(model)
        found = norm(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


def test_a_norm_with_another_arithmetic_keeps_its_own() -> None:
    """Gemma multiplies by one plus the weight."""

    class OddRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((8,), 0.5))
            self.variance_epsilon = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.rms_norm(x, (8,), 1 + self.weight, 1e-6)

    odd = OddRMSNorm()
    before = odd(torch.ones(2, 8))
    assert fuse_rms_norm(odd) == 0
    assert torch.equal(odd(torch.ones(2, 8)), before)


@pytest.mark.parametrize("dtype", [torch.float64])
def test_the_gradient_is_the_derivative(dtype: torch.dtype) -> None:
    from headway.models.rms_norm import _RmsNorm

    x = torch.randn(3, 6, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float32, requires_grad=True)
    mine = torch.autograd.grad(
        (_RmsNorm.apply(x, weight, 1e-5, torch.float32) ** 3).sum(), (x, weight)
    )
    wide = x.detach().to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_()
    y = torch.nn.functional.rms_norm(wide[0], (6,), wide[1], 1e-5)
    theirs = torch.autograd.grad((y**3).sum(), wide)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5)
