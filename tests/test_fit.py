"""The memory of a step, found without numbers, is what a real step allocates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark_scripts import script
from cases import tree_of
from headway.building import optimizer_of
from headway.config import RunConfig, find_recipe
from headway.engine.fake import is_fake, kind_of, knowing, weightless, with_numbers
from headway.engine.fit import SHALLOW, Counted, Footprint, Held, at_depth, bytes_of, depth
from headway.engine.fit.depth import aligned, line
from headway.engine.fit.footprint import eight_bit_bytes, state_of
from headway.errors import ConfigError
from headway.models.architecture import empty_causal_lm
from headway.models.hub import load_causal_lm
from headway.planning.memory import Traced, Way, context_of, in_four_bits, traced
from tiny import tiny_tokenizer

measuring = script("plan_memory")
ROWS = (1, 4)

pytestmark = pytest.mark.usefixtures("own_cache")


def config_of(case: str, folder: Path, **hardware: Any) -> RunConfig:
    tree = tree_of(case, folder)
    return RunConfig(**{**tree, "hardware": {**tree["hardware"], **hardware}})


def way_of(
    config: RunConfig, rows=ROWS, kind="cpu", recompute=False, data=None, **more: Any
) -> Way:
    read = "hf:" not in str(config.task) if data is None else data
    with weightless(kind):
        context = context_of(config, data=read, activation_checkpointing=recompute)
        return traced(config, context, list(rows), **more)[0]


@pytest.mark.parametrize(
    ("case", "precision"),
    [
        ("sft-lora", "bf16"),
        ("sft-full", "fp32"),
        ("pretrain", "fp32"),
        ("regression-lora", "fp32"),
        ("regression-full", "bf16"),
        ("regression-surprise", "bf16"),
        ("vision-lora", "bf16"),
        ("vision-scratch", "fp32"),
        ("vision-llava", "bf16"),
        ("graph_vae", "fp32"),
        ("latent_editor-lora", "bf16"),
        ("latent_editor-full", "fp32"),
    ],
)
def test_the_traced_peak_is_what_the_allocator_of_a_real_step_saw(tmp_path, case, precision):
    config = config_of(case, tmp_path, precision=precision)
    way, real = way_of(config), measuring.Measured(config)
    for step in way.steps:
        seen = real.peak_bytes(step.rows)
        assert step.peak_bytes == pytest.approx(seen, rel=0.1), (step.rows, way.held)


def test_a_strangers_recipe_is_traced_too(tmp_path):
    config = config_of("toy", tmp_path)
    seen = measuring.Measured(config).peak_bytes(4)
    # The toy's tensors are some hundred bytes each; what a kernel rounds up is a large share.
    assert way_of(config).steps[-1].peak_bytes == pytest.approx(seen, rel=0.25)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("sft-lora", "cuda"),
        ("pretrain", "cpu"),
        ("regression-full", "cuda"),
        ("vision-lora", "cuda"),
    ],
)
def test_memory_rises_with_the_rows_and_recomputing_never_raises_it(tmp_path, case, kind):
    config = config_of(case, tmp_path, precision="bf16")
    kept = way_of(config, kind=kind)
    again = way_of(config, kind=kind, recompute=True)
    peaks = [step.peak_bytes for step in kept.steps]
    assert peaks == sorted(peaks) and peaks[0] < peaks[-1]
    for whole, less in zip(kept.steps, again.steps, strict=True):
        assert less.peak_bytes <= whole.peak_bytes
        assert less.flops > whole.flops, "what is not kept is computed again"
    assert again.steps[-1].peak_bytes < peaks[-1]


DEEP = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
    "intermediate_size": 80, "num_hidden_layers": 9, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 600, "max_position_embeddings": 256,
    "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def deep(folder: Path, **task: Any) -> RunConfig:
    """Nine alike layers, as a folder with a config and no weights."""
    base = folder / "deep"
    base.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer().save_pretrained(base)
    (base / "config.json").write_text(json.dumps(DEEP))
    tree = tree_of("sft-lora", folder)
    tree["task"] |= {"base_model": str(base), **task}
    return RunConfig(**{**tree, "hardware": {"device": "cpu", "precision": "bf16"}})


@pytest.mark.parametrize(
    ("tuning", "recompute"),
    [({"kind": "full"}, True), ({"kind": "lora", "rank": 4, "alpha": 8}, False)],
)
def test_two_shallow_models_say_what_every_layer_traced_says(tmp_path, tuning, recompute):
    config = deep(tmp_path, tuning=tuning)
    guessed = way_of(config, kind="cuda", recompute=recompute)
    whole = way_of(config, kind="cuda", recompute=recompute, whole=True)
    assert guessed.steps == whole.steps and guessed.held == whole.held


def test_a_straight_line_through_the_peaks_alone_would_be_wrong():
    """Negative control: at two layers another operation is the highest than at many."""
    low = [("embed", 90), ("layer", 10), ("layer", 20), ("loss", 25)]
    high = [*low[:3], ("layer", 30), ("loss", 35)]
    assert line(20, max(a for _, a in low), max(a for _, a in high)) == 90
    pairs = list(aligned(low[::-1], high[::-1]))
    assert max(line(20, a, b) for a, b in pairs) == 205 and SHALLOW == (2, 3)


def timeline_of(layers: int, blocks: int) -> list[tuple[str, int]]:
    """A tower's blocks, each with a large moment of its own, then layers that each keep more."""
    alive, found = 0, [("embed", 0)]
    for _ in range(blocks):
        found += [("mix", alive + 500), ("keep", alive + 10)]
        alive += 10
    found.append(("aten::masked_scatter", alive))
    for _ in range(layers):
        found += [("attend", alive + 40), ("keep", alive + 30)]
        alive += 30
    return [*found, ("loss", alive + 5)]


def of_timeline(layers: int, blocks: int, **more: Any) -> Footprint:
    size = 10**6 * (layers + blocks)
    there = Held(
        parameters=size, trainable=size, weights_bytes=size, gradient_bytes=size,
        optimizer_bytes=size, update_bytes=size,
    )  # fmt: skip
    forward = timeline_of(layers, blocks)
    most = max(alive for _, alive in forward)
    return Footprint(
        rows=1, tokens=1, held=there, activation_bytes=most, logits_bytes=0, flops=size,
        forward=forward, backward=(), **more,
    )  # fmt: skip


@pytest.mark.parametrize("deep", [4, 9, 40])
def test_two_stacks_of_layers_grow_together_each_laid_on_its_own(deep, monkeypatch):
    """With the deeper language model three layers ahead of the tower, as `shallow` leaves them."""
    low, high = of_timeline(2 + 3, 2), of_timeline(3 + 3, 3)
    whole = of_timeline(deep + 3, deep)
    found = at_depth(deep, low, high)
    assert (found.activation_bytes, found.flops, found.held) == (
        whole.activation_bytes, whole.flops, whole.held,
    )  # fmt: skip
    monkeypatch.setattr(depth, "BETWEEN", ())
    # Negative control: laid on each other as one.
    assert at_depth(deep, low, high).activation_bytes > 1.5 * whole.activation_bytes


def test_no_weights_are_read_and_without_them_the_model_cannot_be_loaded(tmp_path):
    config = deep(tmp_path)
    assert way_of(config, rows=[1]).held.parameters > 0
    place = (str(tmp_path / "deep"), None, tmp_path)
    kind = {"dtype": torch.float32, "device": torch.device("cpu")}
    with weightless():
        assert is_fake(empty_causal_lm(*place, **kind))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_causal_lm(*place, **kind)


def test_what_looks_at_a_number_raises_without_numbers():
    with weightless(), pytest.raises(Exception, match=r"aten._local_scalar_dense"):
        torch.ones(1).item()


def test_a_tensor_without_numbers_is_where_it_is_planned_to_be():
    assert kind_of(torch.ones(1)) == "cpu" and not is_fake(torch.ones(1))
    with weightless("cuda"):
        assert kind_of(torch.ones(1)) == "cuda" and is_fake(torch.ones(1))


def test_four_bits_take_half_a_byte_a_weight_and_their_scales(tmp_path):
    pytest.importorskip("bitsandbytes")
    plain = deep(tmp_path)
    packed = in_four_bits(plain)
    assert packed is not None and in_four_bits(packed) is None
    lora, four = way_of(plain, rows=[1, 2]), way_of(packed, rows=[1, 2])
    assert four.held.trainable == lora.held.trainable
    assert four.held.weights_bytes < lora.held.weights_bytes
    assert four.steps[0].peak_bytes < four.steps[1].peak_bytes
    with weightless():
        made = empty_causal_lm(
            str(tmp_path / "deep"), None, tmp_path, dtype=torch.bfloat16,
            device=torch.device("cpu"), quantized=True,
        )  # fmt: skip
        layer = made.model.layers[0].mlp.up_proj
        size = layer.in_features * layer.out_features
        held = bytes_of([*layer.parameters(), *layer.buffers()])
    blocks = size // 64
    assert held == size // 2 + blocks + 4 * -(-blocks // 256) + 4 * 256 + 4 * 16 + 4


def test_the_optimizers_state_is_counted_as_the_real_one_has_it(tmp_path):
    config = config_of("sft-full", tmp_path)
    real = measuring.Measured(config)
    real.peak_bytes(1)
    assert way_of(config, rows=[1]).held.optimizer_bytes == bytes_of(state_of(real.optimizer))


def test_the_8_bit_state_is_what_bitsandbytes_makes():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    parameters = [torch.nn.Parameter(torch.randn(96, 64)), torch.nn.Parameter(torch.randn(64))]
    optimizer = bitsandbytes.optim.AdamW8bit(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    made = [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and not key.startswith("qmap")
    ]
    assert eight_bit_bytes(parameters) == bytes_of(made)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_what_was_made_and_dropped_is_alive_no_more(sizes):
    with Counted() as counted:
        made = [torch.empty(size) for size in sizes]
        assert counted.live_bytes == 4 * sum(sizes)
        view = made[0][:1]
        del made
        assert counted.live_bytes == 4 * sizes[0], "a view keeps its storage"
        del view
    assert counted.live_bytes == 0 and counted.peak_bytes == 4 * sum(sizes)


def test_arithmetic_is_counted():
    with Counted() as counted:
        torch.ones(3, 5) @ torch.ones(5, 7)
    assert counted.flops == 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    "case",
    ["sft-lora", "sft-full", "pretrain", "regression-lora", "vision-lora", "vision-llava", "toy"],
)
def test_the_longest_microbatch_is_as_long_as_any_the_run_sees(tmp_path, case):
    config = config_of(case, tmp_path)
    real = replace(context_of(config), weights=True)
    task = find_recipe(config.recipe).build(config.task, real)
    seen = max(m.tokens / len(m.rows) for step in range(9) for m in task.batch_at(step))
    for rows in (1, 3, 500):
        found = task.longest(rows)
        assert len(found.rows) == rows and found.weight > 0
        again = task.longest(rows)
        assert found.rows == again.rows and found.tokens == again.tokens
    assert task.longest(1).tokens >= seen


@pytest.mark.parametrize("case", ["sft-lora", "pretrain", "regression-lora"])
def test_without_rows_the_longest_is_what_the_config_allows(tmp_path, case):
    config = config_of(case, tmp_path)
    with weightless():
        one = Traced.of(config, context_of(config, data=False))
        assert one.task.longest(3).tokens == 3 * (16 if case == "pretrain" else 64)
        assert one.at(one.task.longest(3)).activation_bytes > 0
        assert optimizer_of(config, one.task) is not None


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize("case", ["vision-lora", "vision-llava", "vision-scratch"])
def test_without_rows_a_row_has_the_largest_picture_that_it_can_have(tmp_path, case):
    config = config_of(case, tmp_path)
    with weightless():
        one = Traced.of(config, context_of(config, data=False))
        found = one.task.longest(3)
        assert one.at(found).activation_bytes > 0
    eyes, ids = one.task.eyes, found.inputs["input_ids"]
    assert found.tokens == 3 * 128 == ids.numel()
    pictured = int((ids == eyes.image_id).sum()) // 3
    most = {"vision-lora": 16, "vision-llava": 16, "vision-scratch": 120}[case]
    assert 0.9 * most <= pictured <= most, "max_pixels, or where there is none the row, is full"
    assert found.weight == 3 * (128 - pictured - 1)


def test_more_pixels_need_more_memory_and_a_row_without_room_for_a_picture_has_none(tmp_path):
    few, many, none = (
        way_of(vision_of(tmp_path, task, evaluate=None), rows=[1]).steps[0]
        for task in ({"max_pixels": 1024}, {"max_pixels": 4096}, {"max_tokens": 8})
    )
    assert few.peak_bytes < many.peak_bytes and few.flops < many.flops
    assert none.tokens == 8


def vision_of(folder: Path, task: dict[str, Any], **sections: Any) -> RunConfig:
    """A config whose rows are not there."""
    tree = tree_of("vision-lora", folder) | sections
    tree["task"] |= {"data": {"train": "hf:nobody/pages"}, **task}
    return RunConfig(**tree)


def test_numbers_that_are_shapes_stay_numbers_and_nothing_else_does():
    real = torch.tensor([2, 3])
    with weightless(), knowing():
        assert (real * 2).tolist() == [4, 6]
        made = torch.ones(4, 2)
        assert is_fake(made) and is_fake(made * real)
    with weightless(), pytest.raises(Exception, match=r"_local_scalar_dense"):
        (real * 2).tolist()
    with weightless():
        with with_numbers():
            assert torch.ones(2).tolist() == [1.0, 1.0]
        assert is_fake(torch.ones(2))


def test_a_mask_that_is_known_picks_as_many_as_it_says():
    mask = torch.tensor([[True, False, True]])
    with weightless():
        states = torch.ones(1, 3, 5, requires_grad=True)
        with knowing():
            assert states[mask, :].shape == (2, 5)
            changed = states.clone()
            changed[mask, :] = changed[mask, :] + 1
            changed.sum().backward()
            assert states.grad is not None
        with pytest.raises(Exception, match=r"aten\.(nonzero|index)"):
            states[mask, :]


def deep_vision(folder: Path, case: str, depth: int, blocks: int) -> RunConfig:
    """The case's family with so many layers, as a folder with configs and no weights."""
    tree = tree_of(case, folder)
    base = Path(tree["task"]["base_model"])
    config = json.loads((base / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": depth}
    config["text_config"].pop("layer_types", None)
    deeper = {"depth": blocks, "deepstack_visual_indexes": [1, 4]}
    config["vision_config"] |= deeper if "qwen" in base.name else {"num_hidden_layers": blocks}
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.safetensors").unlink()
    tree["task"] |= {"data": {"train": "hf:nobody/pages"}}
    return RunConfig(**{**tree, "evaluate": None, "hardware": {"precision": "bf16"}})


@pytest.mark.parametrize(
    ("case", "depth", "blocks", "recompute"),
    [("vision-lora", 9, 7, True), ("vision-lora", 6, 10, False), ("vision-llava", 6, 5, True)],
)
def test_two_shallow_models_say_it_of_a_tower_too(tmp_path, case, depth, blocks, recompute):
    """Also where some layers give or are given features of pictures."""
    config = deep_vision(tmp_path, case, depth, blocks)
    guessed = way_of(config, rows=[2], kind="cuda", recompute=recompute)
    whole = way_of(config, rows=[2], kind="cuda", recompute=recompute, whole=True)
    assert guessed.held == whole.held
    assert [step.flops for step in guessed.steps] == [step.flops for step in whole.steps]
    for few, every in zip(guessed.steps, whole.steps, strict=True):
        assert few.peak_bytes == pytest.approx(every.peak_bytes, rel=0.01)
