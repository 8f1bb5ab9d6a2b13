"""The chunked loss is the full cross-entropy, in value and gradient, and never holds the logits."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from headway.errors import ConfigError
from headway.models.backbone import Backbone, backbone, prove_backbone
from headway.models.lm_loss import _cross_entropy, judged_tokens, lm_row_sums

HIDDEN, VOCABULARY = 12, 37


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation's output had."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def case(tokens: int, bias: bool, scale: float = 1.0, softcap: float | None = None, rows: int = 3):
    generator = torch.Generator().manual_seed(tokens)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(tokens + 5, HIDDEN, generator=generator, dtype=torch.float64)
    positions = torch.randperm(tokens + 5, generator=generator)[:tokens]
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    row_of_target = torch.randint(0, rows, (tokens,), generator=generator)
    parts = Backbone(torch.nn.Identity(), head, scale, softcap)
    return hidden.requires_grad_(), parts, positions, targets, row_of_target, rows


def full(hidden, parts, positions, targets, row_of_target, rows):
    logits = parts.head(hidden) * parts.scale
    if parts.softcap:
        logits = parts.softcap * torch.tanh(logits / parts.softcap)
    losses = F.cross_entropy(logits[positions], targets, reduction="none")
    return torch.zeros(rows, dtype=losses.dtype).index_add(0, row_of_target, losses)


def gradients_of(sums, hidden, head):
    (sums.sum() / 7).backward()
    found = [hidden.grad, *(p.grad for p in head.parameters())]
    hidden.grad = None
    head.zero_grad()
    return found


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 30),
    chunk=st.integers(1, 40),
    bias=st.booleans(),
    twist=st.sampled_from([(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 5.0)]),
)
def test_sums_and_gradients_equal_the_full_cross_entropy_for_any_chunk(tokens, chunk, bias, twist):
    arguments = case(tokens, bias, *twist)
    hidden, parts = arguments[0], arguments[1]
    wanted = full(*arguments)
    found = lm_row_sums(*arguments, chunk_tokens=chunk)["loss"]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    right = gradients_of(wanted, hidden, parts.head)
    ours = gradients_of(found, hidden, parts.head)
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_row_without_targets_sums_to_zero_and_no_targets_at_all_is_no_error():
    hidden, parts, *_ = case(4, bias=False)
    nothing = torch.zeros(0, dtype=torch.long)
    sums = lm_row_sums(hidden, parts, nothing, nothing, nothing, 2)["loss"]
    assert sums.tolist() == [0.0, 0.0]
    sums.sum().backward()
    assert hidden.grad.abs().sum() == 0
    assert [f.shape for f in judged_tokens(hidden, parts, nothing, nothing)] == [(0,)] * 3


def test_token_losses_are_what_the_rows_sum():
    hidden, parts, positions, targets, row_of_target, rows = case(20, bias=True, softcap=4.0)
    each, _, _ = judged_tokens(hidden, parts, positions, targets, chunk_tokens=3)
    sums = lm_row_sums(hidden, parts, positions, targets, row_of_target, rows)["loss"]
    by_row = torch.zeros(rows, dtype=each.dtype).index_add(0, row_of_target, each)
    torch.testing.assert_close(sums, by_row.float())


def test_the_likeliest_token_is_named_with_its_own_loss_which_none_undercuts():
    hidden, parts, positions, targets, *_ = case(20, bias=True, softcap=4.0)
    losses, choices, of_choices = judged_tokens(hidden, parts, positions, targets, chunk_tokens=3)
    again, same, _ = judged_tokens(hidden, parts, positions, choices)
    torch.testing.assert_close(again, of_choices)
    assert torch.equal(same, choices) and bool((of_choices <= losses + 1e-6).all())
    assert not torch.equal(choices, targets), "nothing is proved where all targets are likeliest"


def test_a_frozen_head_takes_a_different_gradient_per_row_and_a_training_head_refuses_it():
    arguments = case(20, bias=False)
    hidden, parts, rows = arguments[0], arguments[1], arguments[-1]
    uneven = torch.arange(1.0, rows + 1)
    with pytest.raises(RuntimeError, match="same gradient"):
        (lm_row_sums(*arguments)["loss"] * uneven).sum().backward()
    parts.head.requires_grad_(False)
    (lm_row_sums(*arguments)["loss"] * uneven).sum().backward()
    ours, hidden.grad = hidden.grad, None
    (full(*arguments) * uneven).sum().backward()
    torch.testing.assert_close(ours, hidden.grad, rtol=1e-4, atol=1e-6)


def test_the_full_logits_never_exist_forward_or_backward():
    tokens, vocabulary, chunk = 200, 5000, 16
    head = torch.nn.Linear(HIDDEN, vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    index = torch.arange(tokens)
    rows = torch.zeros(tokens, dtype=torch.long)
    parts = Backbone(torch.nn.Identity(), head)
    with LargestTensor() as seen:
        sums = lm_row_sums(hidden, parts, index, index, rows, 1, chunk_tokens=chunk)["loss"]
        sums.sum().backward()
    assert seen.elements == max(chunk * vocabulary, vocabulary * HIDDEN)
    with LargestTensor() as naive:  # the control: the plain way does make them
        F.cross_entropy(head(hidden), index).backward()
    assert naive.elements == tokens * vocabulary


def test_under_autocast_the_loss_is_the_loss_of_bf16_logits():
    hidden, parts, *rest = case(20, bias=True)
    hidden = hidden.detach().float().requires_grad_()
    parts.head.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = lm_row_sums(hidden, parts, *rest)["loss"]
        plain = full(hidden, parts, *rest)
    torch.testing.assert_close(ours, plain.float(), rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    found, hidden.grad = hidden.grad, None
    plain.sum().backward()
    torch.testing.assert_close(found, hidden.grad, rtol=2e-2, atol=2e-2)


SHAPES = {
    "LlamaConfig": {"num_key_value_heads": 2},
    "CohereConfig": {"num_key_value_heads": 2},
    "GraniteConfig": {"num_key_value_heads": 2, "logits_scaling": 8.0},
    "Gemma2Config": {"num_key_value_heads": 2, "head_dim": 16, "final_logit_softcapping": 0.1},
    "PhiConfig": {},
}


def tiny(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 128, "vocab_size": 300}
    return AutoModelForCausalLM.from_config(
        getattr(transformers, family)(**sizes, **SHAPES[family])
    )


@pytest.mark.parametrize("family", SHAPES)
def test_the_split_into_body_and_head_gives_the_models_own_loss(family):
    model = tiny(family).eval()
    parts = prove_backbone(model)
    ids = torch.randint(0, 300, (1, 11))
    hidden = parts.body(input_ids=ids, use_cache=False).last_hidden_state[0]
    at = torch.arange(10)
    sums = lm_row_sums(hidden, parts, at, ids[0, 1:], torch.zeros_like(at), 1)["loss"]
    torch.testing.assert_close(sums[0] / 10, model(ids, labels=ids, use_cache=False).loss)


def test_a_twist_between_head_and_logits_that_is_not_known_is_refused():
    model = tiny("LlamaConfig")
    model.config.logit_scale = 3.0  # stands for any mismatch of what is assumed and what is done
    with pytest.raises(ConfigError, match="changes its logits"):
        prove_backbone(model)
    model.get_output_embeddings = lambda: None
    with pytest.raises(ConfigError, match="no separate body"):
        backbone(model)


# torch's CPU softmax alone is off by 5e-6 over this many tokens: both failed with it.


def test_a_large_vocabularys_loss_is_that_of_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(64, 49_152, generator=generator)
    wanted = torch.arange(64)
    logits[wanted, wanted] = 16.0  # a model that is fairly sure: the rest shares the last percent
    exact = F.cross_entropy(logits.double(), wanted)
    found, _ = _cross_entropy(logits, wanted, {"scale": 1.0, "softcap": None}, False)
    assert abs(found.double().mean() / exact - 1) < 1e-6


def test_a_large_vocabularys_gradient_is_that_of_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(64, 49_152, generator=generator)
    wanted = torch.arange(64)
    logits[wanted, wanted] = 16.0
    exact = torch.softmax(logits.double(), dim=1)
    exact[wanted, wanted] -= 1
    _, found = _cross_entropy(logits, wanted, {"scale": 1.0, "softcap": None}, True)
    off = (found[wanted, wanted].double() / exact[wanted, wanted] - 1).abs().max()
    assert off < 1e-5
