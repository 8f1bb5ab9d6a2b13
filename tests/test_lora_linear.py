"""The fused layers compute what PEFT and Transformers compute, in value and gradient."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from headway.models.attention import hidden_states, isolate
from headway.models.cpu_attention import grouped_attention
from headway.models.lora_linear import fuse_gelu, fuse_lora, fuse_swiglu, store_frozen_in_bf16

SHAPE = LlamaConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=128,
    vocab_size=300,
    tie_word_embeddings=True,
    attention_bias=True,
)
ALL_LINEAR = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
IDS = torch.arange(24)[None] * 7 % 300
POSITIONS = torch.cat([torch.arange(10), torch.arange(14)])[None]


@functools.lru_cache(maxsize=1)
def original() -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(SHAPE)


def adapted(trained: bool = True, **changes) -> torch.nn.Module:
    base = copy.deepcopy(original())
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(**{**ALL_LINEAR, **changes}))
    for name, parameter in model.named_parameters():
        if trained and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    assert isolate(model)
    return model.train()


def result(model, dtype: torch.dtype | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Last hidden states and every adapter's gradient."""
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        hidden = hidden_states(model, IDS, POSITIONS, [10, 24]).float()
    (hidden * torch.linspace(-1, 1, 64)).sum().backward()
    named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return hidden.detach(), named


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(1e-12)).item()


def assert_same(ours, right, part: float) -> None:
    assert distance(ours[0], right[0]) < part
    assert ours[1].keys() == right[1].keys()
    assert {n: d for n in right[1] if (d := distance(ours[1][n], right[1][n])) > part} == {}


@pytest.mark.parametrize(("dtype", "part"), [(None, 2e-6), (torch.bfloat16, 2e-2)])
def test_fused_layers_equal_pefts_in_value_and_in_every_gradient(dtype, part):
    right = result(adapted(), dtype)
    model = adapted()
    assert fuse_lora(model) == 2 * 7
    assert fuse_swiglu(model) == 2
    assert_same(result(model, dtype), right, part)


def test_in_bf16_the_fused_layers_are_as_near_to_the_exact_gradient_as_pefts():
    exact, peft, model = result(adapted(), None), result(adapted(), torch.bfloat16), adapted()
    fuse_lora(model), fuse_swiglu(model), store_frozen_in_bf16(model)
    ours = result(model, torch.bfloat16)
    errors = [sum(distance(r[1][n], exact[1][n]) for n in exact[1]) for r in (ours, peft)]
    assert errors[0] <= 1.1 * errors[1]


def test_a_broken_scaling_would_be_seen():
    """Negative control of the comparison above."""
    right, model = result(adapted(), None), adapted()
    fuse_lora(model)
    for module in model.modules():
        if hasattr(module, "scaling") and isinstance(module.scaling, dict):
            module.scaling = {name: value * 1.01 for name, value in module.scaling.items()}
    with pytest.raises(AssertionError):
        assert_same(result(model, None), right, 1e-4)


def test_an_untrained_adapter_changes_no_bit_of_the_output():
    model = adapted(trained=False)
    fuse_lora(model)
    with torch.no_grad():
        tuned = hidden_states(model, IDS, POSITIONS, [10, 24])
        with model.disable_adapter():
            plain = hidden_states(model, IDS, POSITIONS, [10, 24])
    assert torch.equal(tuned, plain)


def test_a_disabled_or_merged_adapter_goes_through_peft():
    model = adapted()
    fuse_lora(model)
    with torch.no_grad():
        tuned = hidden_states(model, IDS, POSITIONS, [10, 24])
        with model.disable_adapter():
            plain = hidden_states(model, IDS, POSITIONS, [10, 24])
        model.merge_adapter()
        merged = hidden_states(model, IDS, POSITIONS, [10, 24])
        model.unmerge_adapter()
    assert distance(plain, tuned) > 1e-3
    assert distance(merged, tuned) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True, "target_modules": ["q_proj"]}],
)
def test_what_the_fused_arithmetic_does_not_cover_stays_pefts(changes):
    assert fuse_lora(adapted(**changes)) == 0


def test_bf16_storage_gives_bit_identical_results_under_autocast():
    plain, stored = adapted(), adapted()
    assert store_frozen_in_bf16(stored) > 0
    assert stored.get_input_embeddings().weight.dtype == torch.float32
    assert stored.get_output_embeddings().weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in stored.parameters() if p.requires_grad)
    left, right = result(stored, torch.bfloat16), result(plain, torch.bfloat16)
    assert torch.equal(left[0], right[0])
    assert all(torch.equal(left[1][n], right[1][n]) for n in right[1])


def test_a_trainable_matrix_is_never_rounded():
    model = copy.deepcopy(original())
    assert store_frozen_in_bf16(model) == 0
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_swiglu_is_fused_only_where_the_class_computes_it():
    model = copy.deepcopy(original())
    kind = type(model.model.layers[0].mlp)

    class Odd(kind):
        def forward(self, x):
            return super().forward(x) * 2

    model.model.layers[0].mlp.__class__ = Odd
    assert fuse_swiglu(model) == 1


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    groups=st.sampled_from([1, 3]),
    long=st.booleans(),
)
def test_cpu_attention_equals_pytorchs_for_any_lengths(lengths, groups, long):
    lengths = [*lengths, 600] if long else lengths
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens, kv_heads, width = sum(lengths), 2, 8
    shapes = [(kv_heads * groups, tokens, width), *[(kv_heads, tokens, width)] * 2]
    q, k, v = (torch.randn(s, generator=generator).requires_grad_() for s in shapes)
    ours = grouped_attention(q, k, v, lengths, 0.3, torch.float32)
    pieces = zip(*(t[None].split(lengths, 2) for t in (q, k, v)), strict=True)
    right = torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(
                a, b, c, is_causal=True, scale=0.3, enable_gqa=True
            )[0]
            for a, b, c in pieces
        ],
        dim=1,
    )
    torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)
    weights = torch.randn(ours.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad(ours, (q, k, v), weights),
        torch.autograd.grad(right, (q, k, v), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_model_stored_in_bf16_is_still_proved_isolated():
    base = copy.deepcopy(original())
    model = get_peft_model(base, LoraConfig(**ALL_LINEAR))
    store_frozen_in_bf16(model)
    fuse_lora(model)
    assert isolate(model)


def test_gelu_by_pytorchs_kernel_is_gpt2s_gelu():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    ).eval()
    ids = torch.arange(20)[None]
    before = model(ids).logits
    assert fuse_gelu(model) == 2
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-6)


def test_equally_long_rows_in_bf16_equal_the_same_rows_of_unequal_company():
    """Two routes through the CPU's attention: rows as a batch, and rows one after another."""
    model = adapted()
    ids = IDS[:, :24]
    positions = torch.cat([torch.arange(8)] * 3)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        batch = hidden_states(model, ids, positions, [8, 16, 24])
        apart = hidden_states(model, ids[:, :20], positions[:, :20], [8, 16, 20])
    assert distance(apart[:16].float(), batch[:16].float()) < 1e-2
