"""Rows in one forward pass are blind to one another, and nothing can make them see by accident."""

import functools

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from headway.models.attention import (
    attend,
    checkpoint_activations,
    generating,
    hidden_states,
    is_isolated,
    isolate,
    segments,
)
from headway.models.backbone import backbone

COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}
GQA = {**COMMON, "num_key_value_heads": 2}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300, "n_positions": 128}
FAMILIES = {
    "LlamaConfig": GQA,
    "Qwen2Config": GQA,
    "Qwen3Config": {**GQA, "head_dim": 16},
    "MistralConfig": {**GQA, "sliding_window": 6},
    "GPTNeoXConfig": COMMON,
    "GPT2Config": {**GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "Gemma3TextConfig": {**GQA, "head_dim": 16},
}


@functools.lru_cache(maxsize=1)
def tiny(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, family)(**FAMILIES[family])
    return AutoModelForCausalLM.from_config(config).train()


def flat(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(0, 300, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return ids, positions, torch.tensor(lengths).cumsum(0).tolist()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_near(a: torch.Tensor, b: torch.Tensor, part: float = 1e-5) -> None:
    assert (a - b).abs().max() <= part * max(1e-3, b.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [[13, 29, 7, 40], [16, 16, 16]])
def test_rows_together_equal_rows_apart_in_value_and_gradient(family, lengths):
    model = tiny(family)
    assert isolate(model)
    ids, positions, ends = flat(lengths)
    together = hidden_states(model, ids, positions, ends)
    (together * torch.linspace(-1, 1, together.shape[1])).sum().backward()
    packed = gradients(model)
    with generating(model):  # sdpa, one row per forward pass: Transformers' own way
        apart = hidden_states(model, ids, positions, ends)
    (apart * torch.linspace(-1, 1, apart.shape[1])).sum().backward()
    separate = gradients(model)
    assert_near(together, apart)
    assert packed.keys() == separate.keys()
    for name in separate:
        assert_near(packed[name], separate[name], 1e-4)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.data())
def test_a_token_never_changes_anything_outside_its_own_future_in_its_own_row(lengths, data):
    model = tiny("LlamaConfig")
    assert isolate(model)
    ids, positions, ends = flat(lengths)
    at = data.draw(st.integers(0, ends[-1] - 1))
    end = next(end for end in ends if at < end)
    other = ids.clone()
    other[0, at] = (other[0, at] + 1) % 300
    with torch.no_grad():
        before = hidden_states(model, ids, positions, ends)
        after = hidden_states(model, other, positions, ends)
    moved = (before - after).abs().amax(dim=1)
    assert moved[at] > 1e-3
    outside = torch.cat([moved[:at], moved[end:]])
    assert outside.numel() == 0 or outside.max() < 1e-6


def test_without_row_ends_the_same_rows_do_see_each_other():
    """Negative control: what the cut prevents is real, and large."""
    model = tiny("LlamaConfig")
    assert isolate(model)
    ids, positions, ends = flat([13, 29])
    with torch.no_grad():
        cut = hidden_states(model, ids, positions, ends)
        uncut = hidden_states(model, ids, positions, ends[-1:])
    assert (cut - uncut)[13:].abs().max() > 0.05


def test_a_forward_without_segments_or_with_a_mask_raises():
    model = tiny("LlamaConfig")
    assert isolate(model)
    ids, positions, ends = flat([5, 6])
    body = backbone(model).body
    with pytest.raises(RuntimeError, match="without segments"):
        body(input_ids=ids, position_ids=positions, use_cache=False)
    cuts = segments(ends, ids.shape[1])
    mask = torch.zeros(1, 1, 11, 11)
    with pytest.raises(RuntimeError, match="with a mask"):
        body(input_ids=ids, attention_mask=mask, segments=cuts, use_cache=False)


@pytest.mark.parametrize("asked", ["softcap", "s_aux", "position_bias"])
def test_an_attention_feature_that_is_not_computed_raises(asked):
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(RuntimeError, match=asked):
        attend(torch.nn.Module(), q, q, q, None, segments=segments([4], 4), **{asked: 1.0})


@pytest.mark.parametrize("ends", [[], [3], [0, 4], [2, 2, 4], [4, 2], [5]])
def test_row_ends_that_do_not_tile_the_tokens_are_refused(ends):
    with pytest.raises(ValueError, match="row_ends"):
        segments(ends, 4)


@pytest.mark.parametrize("family", ["Gemma2Config", "BloomConfig", "FalconConfig", "MambaConfig"])
def test_a_family_that_cannot_be_isolated_runs_one_row_at_a_time(family):
    shapes = {
        "Gemma2Config": {**GQA, "head_dim": 16},
        "BloomConfig": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300},
        "FalconConfig": {**COMMON, "alibi": True},
        "MambaConfig": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 300},
    }
    torch.manual_seed(0)
    config = getattr(transformers, family)(**shapes[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    assert not isolate(model)
    assert not is_isolated(model)
    ids, positions, ends = flat([5, 9])
    with torch.no_grad():
        both = hidden_states(model, ids, positions, ends)
        second = hidden_states(model, ids[:, 5:], positions[:, 5:], [9])
    assert_near(both[5:], second)


@pytest.mark.parametrize("family", ["LlamaConfig", "GPT2Config"])
def test_generation_with_the_cache_works_and_isolation_is_back_afterwards(family):
    model = tiny(family)
    assert isolate(model)
    ids, _, _ = flat([7])
    model.eval()
    with generating(model):
        made = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    for length in range(7, 11):
        with torch.no_grad():
            row = made[:, :length]
            hidden = hidden_states(model, row, torch.arange(length)[None], [length])
            assert backbone(model).head(hidden[-1]).argmax() == made[0, length]
    model.train()
    assert is_isolated(model)


@pytest.mark.parametrize("family", ["LlamaConfig", "GPTNeoXConfig", "GPT2Config"])
def test_recomputed_activations_change_no_gradient(family):
    model = tiny(family)
    assert isolate(model)
    ids, positions, ends = flat([9, 4])
    hidden_states(model, ids, positions, ends).pow(2).sum().backward()
    kept = gradients(model)
    checkpoint_activations(model)
    calls: list[int] = []
    layer = next(m for m in model.modules() if "Attention" in type(m).__name__)
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    hidden_states(model, ids, positions, ends).pow(2).sum().backward()
    recomputed = gradients(model)
    hook.remove()
    model.activation_checkpointing_disable()
    assert len(calls) == 2, "the layer was not recomputed"
    for name in kept:
        assert torch.equal(kept[name], recomputed[name])
